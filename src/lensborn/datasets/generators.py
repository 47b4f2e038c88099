"""One table of generators' names: data sets spell them in many ways.

Spellings are those of the papers and of the folders of ForenSynths, GenImage, DiffusionFace, DiFF, BLADES and Zou
et al. 2025. DiFF puts the task before a name (`T2I_SDXL`), DiffusionFace the setting behind it (`SDv15_DS0.3`,
`stable_diffusion_v_2_1_text2img_p2g3`): both are left out.
"""

import re

#: Canonical name and the other spellings, without case, spaces, dots, dashes and underscores.
_SPELLINGS = {
    "adm": ("guideddiffusion",),
    "biggan": (),
    "codiff": ("collabdiff", "collaborativediffusion"),
    "cyclediff": ("cyclediffusion",),
    "dalle2": (),
    "dalle3": (),
    "dcface": (),
    "ddim": ("diffusionddim",),
    "ddpm": (),
    "diffface": (),
    "diffswap": (),
    "dreambooth": (),
    "flux": ("flux1", "flux1dev", "flux1schnell"),
    "freedom": ("freedomt", "freedomi"),
    "glide": (),
    "hps": ("humanpreferencescore",),
    "imagic": (),
    "inpaint": ("inpainting",),
    "ldm": ("latentdiffusion", "latentdiffusionmodel"),
    "lora": (),
    "midjourney": ("midj", "mj"),
    "pigan": (),
    "pndm": (),
    "progan": ("pggan", "progressivegan"),
    "sd1.4": ("sdv14", "stablediffusionv14", "stablediffusion14"),
    "sd1.5": ("sdv15", "stablediffusionv15", "stablediffusion15"),
    "sd2.1": ("sdv21", "stablediffusionv21", "stablediffusion21"),
    "sd3": ("sdv3", "stablediffusionv3", "stablediffusion3"),
    "sdxl": ("stablediffusionxl", "sdxl10"),
    "sdxl-refiner": ("sdxlrefine",),
    "stargan": ("starganv1",),
    "stylegan1": ("stylegan", "sg1"),
    "stylegan2": ("sg2", "stylegan2ada", "stylegan2f", "stylegan2ffhq", "stylegan2celebahq"),
    "stylegan3": ("sg3", "stylegan3r", "stylegan3t"),
    "vqdm": (),
    "vqgan": ("vqgancelebahq", "tamingtransformers"),
    "wukong": (),
}
_TASK = re.compile(r"^(?:t2i|i2i|fs|fe)[\W_]+")
_SETTING = re.compile(r"[\W_]*(?:ds[\W_]*0[\W_]*\d|(?:text|img)2img(?:[\W_]*p\d+g\d+)?)$")


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name)


_CANONICAL = {spelling: name for name, others in _SPELLINGS.items() for spelling in (*others, _bare(name))}


def canonical(name: str) -> str:
    """The name by which tables call a generator; an unknown one is put in lower case and kept."""
    return _find(name) or name.strip().casefold()


def is_known(name: str) -> bool:
    """Whether the table knows the generator."""
    return _find(name) is not None


def _find(name: str) -> str | None:
    plain = name.strip().casefold()
    shorter = _SETTING.sub("", _TASK.sub("", plain))
    return _CANONICAL.get(_bare(plain)) or _CANONICAL.get(_bare(shorter))
