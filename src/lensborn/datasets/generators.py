"""One table of generators' names: data sets spell them in many ways."""

import re

#: Canonical name and the other spellings, without case, spaces, dots, dashes and underscores.
_SPELLINGS = {
    "progan": ("pggan", "progressivegan"),
    "stylegan1": ("stylegan", "stylegan1", "sg1"),
    "stylegan2": ("sg2", "stylegan2ada", "stylegan2f", "stylegan2ffhq", "stylegan2celebahq"),
    "stylegan3": ("sg3", "stylegan3r", "stylegan3t"),
    "stargan": ("starganv1",),
    "pigan": (),
    "vqgan": ("vqgancelebahq", "tamingtransformers"),
    "ldm": ("latentdiffusion", "latentdiffusionmodel"),
    "ddim": ("diffusionddim",),
    "ddpm": (),
    "sd1.4": ("sd14", "sdv14", "stablediffusionv14", "stablediffusion14"),
    "sd1.5": ("sd15", "sdv15", "stablediffusionv15", "stablediffusion15", "stablediffusionv15text2img"),
    "sd2.1": (
        "sd21", "sdv21", "stablediffusionv21", "stablediffusion21", "stablediffusionv21text2img",
        "stablediffusionv21text2imgp2g3",
    ),
    "sd3": ("stablediffusion3", "sdv3"),
    "sdxl": ("stablediffusionxl", "sdxl10"),
    "freedom": ("freedomt", "freedomi"),
    "hps": ("humanpreferencescore",),
    "midjourney": ("midj", "mj"),
    "flux": ("flux1", "flux1dev", "flux1schnell"),
    "dalle2": ("dalle2",),
    "dalle3": ("dalle3",),
    "glide": (),
    "adm": ("guideddiffusion",),
    "biggan": (),
}  # fmt: skip
_CANONICAL = {
    spelling: name
    for name, others in _SPELLINGS.items()
    for spelling in (*others, re.sub(r"[\W_]+", "", name))
}


def canonical(name: str) -> str:
    """The name by which tables call a generator; an unknown one is put in lower case and kept."""
    bare = re.sub(r"[\W_]+", "", name.casefold())
    return _CANONICAL.get(bare, name.strip().casefold())


def is_known(name: str) -> bool:
    """Whether the table knows the generator."""
    return re.sub(r"[\W_]+", "", name.casefold()) in _CANONICAL
