import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lensborn.datasets.corpus import split_of
from lensborn.datasets.generators import canonical, is_known
from lensborn.datasets.layouts import LAYOUTS, read_pictures
from lensborn.datasets.pictures import PictureSetError


def png(shade=0):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def tree(root, *files):
    """Pictures at the paths, and what people's disks have beside them."""
    for n, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
    for stray in (".DS_Store", "Thumbs.db", "README", "._1.jpg"):
        (root / stray).write_text("stray")
    (root / "empty").mkdir(exist_ok=True)
    return root


def sets(pictures):
    return {(picture.label, picture.set) for picture in pictures}


def test_the_papers_nine_test_folders(tmp_path):
    generators = (
        "DDIM", "FreeDoM_T", "HPS", "LDM", "Midjourney", "SDXL", "stable_diffusion_v_2_1_text2img_p2g3",
        "stylegan2", "VQ-GAN_celebahq",
    )  # fmt: skip
    root = tree(
        tmp_path / "data", "celeba-face/1.JPG", "celeba-face/2.jpg", *(f"{g}/sub/a.PNG" for g in generators)
    )
    (root / "train.txt").write_text("/data/zou/celeba-face/1.JPG\n")
    (root / "test.txt").write_text("/data/zou/celeba-face/2.jpg\n")
    pictures = read_pictures(root)
    names = {"ddim", "freedom", "hps", "ldm", "midjourney", "sdxl", "sd2.1", "stylegan2", "vqgan"}
    assert sets(pictures) == {("real", "celeba-hq")} | {("fake", name) for name in names}
    assert [p.path.name for p in pictures if p.label == "real"] == ["2.jpg"]  # 1.JPG is for fitting


def test_the_thirteen_of_blades(tmp_path):
    generators = [
        "ddim",
        "freeDoM",
        "hps",
        "ldm",
        "midjourney",
        "sdxl",
        "sdv21",
        "stargan",
        "stylegan2",
        "pigan",
        "progan",
        "vqgan",
    ]
    root = tree(
        tmp_path / "data",
        "celeba-face/imgs/1.jpg",
        "celeba-face/imgs/2.jpg",
        *(f"{g}/a.png" for g in generators),
    )
    (root / "celeba-face" / "test.txt").write_text("../data/celeba-face/imgs/1.jpg\n")
    pictures = read_pictures(root)
    assert len(sets(pictures)) == 13
    assert ("fake", "sd2.1") in sets(pictures)
    assert [p.path.name for p in pictures if p.label == "real"] == ["1.jpg"]


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("ffhq", "00000/00001.png", ("real", "ffhq")),
        ("ffhq", "images1024x1024/00000/00001.PNG", ("real", "ffhq")),
        ("images1024x1024", "00000/00001.PNG", ("real", "ffhq")),
        ("ffhq-dataset", "thumbnails128x128/00000/00001.png", ("real", "ffhq-thumbnails")),
        ("fdf", "images/1.png", ("real", "fdf")),
        ("CelebAMask-HQ", "CelebA-HQ-img/7.jpg", ("real", "celeba-hq")),
        ("DiFF", "T2I/SDXL/Zoë/1.png", ("fake", "sdxl")),
        ("DiFF", "DiFF_real/1.png", ("real", "diff-real")),
        ("DiFF", "FE_cycle_diff/1.png", ("fake", "cyclediff")),
        ("DiffusionFace", "DDIM/images/1.png", ("fake", "ddim")),
        ("stylegan2", "0/1.png", ("fake", "stylegan2")),  # 0 is a part, not a class
    ],
)
def test_folders_named_after_what_they_hold(tmp_path, name, file, expected):
    assert sets(read_pictures(tree(tmp_path / name, file))) == {expected}


def test_diffusionface_names_its_photographs_real_and_its_fakes_after_generators(tmp_path):
    folders = ("Real", "ADM", "SDv15_DS0.3", "stable_diffusion_v_2_1_text2img_p2g3/aligned", "Inpaint/images")
    root = tree(tmp_path / "DiffusionFace", *(f"{folder}/1.png" for folder in folders))
    names = {"adm", "sd1.5", "sd2.1", "inpaint"}
    assert sets(read_pictures(root)) == {("real", "real")} | {("fake", name) for name in names}
    tree(root, "Wild/1.png")
    with pytest.raises(PictureSetError, match=r"Wild.*move it"):
        read_pictures(root)


def test_a_folder_of_both_names_is_refused(tmp_path):
    for root, file in (("ffhq", "stylegan2/1.png"), ("stylegan2", "ffhq/1.png")):
        with pytest.raises(PictureSetError, match="after a generator and after photographs"):
            read_pictures(tree(tmp_path / root, file))


def test_masks_are_no_photographs(tmp_path):
    root = tree(tmp_path / "CelebAMask-HQ", "CelebA-HQ-img/7.jpg", "CelebAMask-HQ-mask-anno/0/00007_hair.png")
    assert [p.path.name for p in read_pictures(root)] == ["7.jpg"]


def test_a_list_of_photographs_that_are_not_there_is_refused(tmp_path):
    root = tree(tmp_path / "celeba-hq", "imgs/1.jpg", "imgs/2.jpg")
    (root / "test.txt").write_text("3.jpg\n")
    with pytest.raises(PictureSetError, match=r"test\.txt names no photograph"):
        read_pictures(root)
    (root / "test.txt").write_bytes(b"C:\\imgs\\2.jpg\r\n\r\n")
    assert [p.path.name for p in read_pictures(root)] == ["2.jpg"]


@pytest.mark.parametrize("above", ["", "train", "test"])
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("progan/0_real/1.png", ("real", "progan-real")),
        ("progan/cat/1_fake/1.png", ("fake", "progan")),
        ("StyleGAN2/fake/1.jpg", ("fake", "stylegan2")),
        ("Midjourney/val/nature/1.jpg", ("real", "midjourney-real")),
        ("Midjourney/val/ai/1.jpg", ("fake", "midjourney")),
        ("real/1.jpg", ("real", "real")),
        ("fake/1.jpg", ("fake", "fake")),
        ("fake/sdv21/1.jpg", ("fake", "sd2.1")),
        ("real/ffhq/00000/1.jpg", ("real", "ffhq")),
    ],
)
def test_folders_named_after_classes(tmp_path, above, file, expected):
    assert sets(read_pictures(tree(tmp_path / "set", f"{above}/{file}".lstrip("/")))) == {expected}


def test_photographs_below_a_generators_name_are_not_taken_for_its_own(tmp_path):
    root = tree(tmp_path / "GenImage", "a/b/Midjourney/imagenet_midjourney/val/nature/1.jpg")
    assert {picture.label for picture in read_pictures(root)} == {"real"}
    with pytest.raises(PictureSetError, match="--layout classes"):
        read_pictures(root, "sets")


def test_the_folder_of_one_generator(tmp_path):
    root = tree(tmp_path / "progan", "cat/0_real/1.png", "dog/1_fake/1.png")
    assert sets(read_pictures(root)) == {("real", "progan-real"), ("fake", "progan")}


def test_names_are_unique_and_free_of_machine_paths(tmp_path):
    pictures = read_pictures(tree(tmp_path / "set", "real/a.png", "fake/a.png", "fake/b/a.png"))
    assert len({p.name for p in pictures}) == 3
    assert all(p.name.startswith("set/") for p in pictures)


@pytest.mark.parametrize(
    "content",
    [
        [{"path": "a.png", "label": 0, "source": "s"}, {"path": "b.png", "label": 1, "generator": "SDv2.1"}],
        {"images": [{"file": "a.png", "label": "real"}, {"image": "b.png", "label": "fake"}]},
        {"a.png": "real", "b.png": "fake"},
        {"real": ["a.png"], "fake": ["b.png"]},
    ],
)
def test_lists_in_json(tmp_path, content):
    (tmp_path / "list.json").write_text(json.dumps(content))
    pictures = read_pictures(tmp_path / "list.json")
    assert [(p.label, p.path.name) for p in pictures] == [("real", "a.png"), ("fake", "b.png")]


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[1]",
        '[{"path": "/etc/passwd", "label": 0}]',
        '[{"path": "a/../../b.png", "label": 0}]',
        '[{"path": "a", "label": 7}]',
    ],
)
def test_a_bad_list_says_what_it_needs(tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(PictureSetError, match=r"list\.json"):
        read_pictures(tmp_path / "list.json")


SCALARS = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(["path", "label", "set", "images", "real", "x"])


def containers(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)


@given(st.recursive(SCALARS, containers, max_leaves=8))
def test_any_json_is_a_list_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        assert all(p.label in ("real", "fake") for p in read_pictures(path))
    except PictureSetError as error:
        assert "any.json" in str(error)


def test_tables_and_corpora(tmp_path):
    (tmp_path / "faces.csv").write_text(
        "file,label,set,generator,source\na.png,real,r,,s\nb.png,fake,,SD v2.1,\n"
    )
    expected = {("real", "r"), ("fake", "sd2.1")}
    assert sets(read_pictures(tmp_path)) == sets(read_pictures(tmp_path / "faces.csv")) == expected
    header = "file,photo_sha1,source,f_number,exposure_time_s,focal_length_mm,iso,size"
    (tmp_path / "photos.csv").write_text(f"{header}\nc.png,x,site,2,0.01,50,100,64\n")
    (photograph,) = read_pictures(tmp_path / "photos.csv")
    assert (photograph.label, photograph.set, photograph.source) == ("real", "photographs", "site")


def test_what_has_no_known_layout_is_refused_with_the_remedy(tmp_path):
    tree(tmp_path / "set", "holiday/1.png")
    with pytest.raises(PictureSetError, match=r"README.* holiday/: .*--real NAME=DIR"):
        read_pictures(tmp_path / "set")
    with pytest.raises(PictureSetError, match="does not exist"):
        read_pictures(tmp_path / "nowhere")
    with pytest.raises(PictureSetError, match=", ".join(LAYOUTS)):
        read_pictures(tmp_path / "set", "other")
    tree(tmp_path / "mixed", "sdxl/1.png", "holiday/1.png")
    with pytest.raises(PictureSetError, match="holiday"):
        read_pictures(tmp_path / "mixed")
    tree(tmp_path / "classes", "real/1.png", "loose.png")
    with pytest.raises(PictureSetError, match="loose"):
        read_pictures(tmp_path / "classes")


def test_generators_have_one_name_each():
    for name in ("StyleGAN2", "stylegan-2", "SG2", "stylegan2-ada"):
        assert canonical(name) == "stylegan2"
    for name in ("SDv2.1", "sd21", "stable-diffusion-2-1", "Stable Diffusion v2.1", "SDv21_DS0.7"):
        assert canonical(name) == "sd2.1"
    for name in ("SDXL", "T2I_SDXL"):
        assert canonical(name) == "sdxl"
    assert canonical("FS_holiday") == "fs_holiday"
    assert canonical("StyleGAN") == "stylegan1"
    assert canonical(" My Generator ") == "my generator"
    assert is_known("FLUX.1-dev")
    assert not is_known("holiday")


@given(st.text(max_size=20))
def test_a_canonical_name_is_its_own(name):
    assert canonical(canonical(name)) == canonical(name)


def test_splits_are_the_same_for_ever():
    keys = ("a", "flickr.com/someone", "Zoë", "")
    assert [split_of(key) for key in keys] == SPLITS_OF_KEYS


SPLITS_OF_KEYS = ["calibrate", "train", "calibrate", "calibrate"]


def test_every_layout_is_documented():
    page = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text()
    assert all(f"`{name}`" in page for name in LAYOUTS)


def test_a_collection_above_generators_does_not_merge_them(tmp_path):
    files = [
        f"GenImage/{name}/train/{kind}/1.png" for name in ("Midjourney", "glide") for kind in ("nature", "ai")
    ]
    assert sets(read_pictures(tree(tmp_path / "data", *files))) == {
        ("real", "midjourney-real"), ("fake", "midjourney"), ("real", "glide-real"), ("fake", "glide"),
    }  # fmt: skip
