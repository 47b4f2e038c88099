import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lensborn import defaults
from lensborn.datasets.corpus import split_of
from lensborn.datasets.generators import canonical, is_known
from lensborn.datasets.layouts import LAYOUTS, read_pictures
from lensborn.datasets.pictures import PictureSetError
from lensborn.datasets.shards import pictures_of_shard
from lensborn.photo import UnreadableError, decode_photo


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
    for stray in (".DS_Store", "Thumbs.db", "README"):
        (root / stray).write_text("stray")
    (root / "empty").mkdir()
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
        ("CelebAMask-HQ", "CelebA-HQ-img/7.jpg", ("real", "celeba-hq")),
        ("DiFF", "T2I/SDXL/Zoë/1.png", ("fake", "sdxl")),
        ("DiFF", "DiFF_real/1.png", ("real", "diff-real")),
        ("DiffusionFace", "DDIM/images/1.png", ("fake", "ddim")),
    ],
)
def test_folders_named_after_what_they_hold(tmp_path, name, file, expected):
    assert sets(read_pictures(tree(tmp_path / name, file))) == {expected}


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
def test_folders_named_after_classes(tmp_path, file, expected):
    assert sets(read_pictures(tree(tmp_path / "set", file))) == {expected}


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
    "content", ["[", "[1]", '[{"path": "/etc/passwd", "label": 0}]', '[{"path": "a", "label": 7}]']
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
    with pytest.raises(PictureSetError, match="--real NAME=DIR"):
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
    for name in ("SDv2.1", "sd21", "stable-diffusion-2-1", "Stable Diffusion v2.1"):
        assert canonical(name) == "sd2.1"
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


# --- shards -------------------------------------------------------------------------------------------


def shard(path, members):
    with tarfile.open(path, "w") as out:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                out.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def test_shards_are_read_in_place(tmp_path):
    members = [
        ("000.png", png(1)), ("000.json", b'{"label": "fake", "generator": "SD v2.1"}'),
        ("001.PNG", png(2)), ("001.cls", b"0\n"),
        ("002.txt", b"a caption without a picture"),
    ]  # fmt: skip
    shard(tmp_path / "part-0.tar", members)
    shard(
        tmp_path / "part-1.tar", [("9.png", png(3)), ("9.json", b'{"label": 0, "set": "r", "source": "s"}')]
    )
    pictures = read_pictures(tmp_path)
    assert sets(pictures) == {("fake", "sd2.1"), ("real", "part-0-real"), ("real", "r")}
    assert [decode_photo(p.read()).pixels[0, 0, 0] for p in pictures] == [1, 2, 3]
    assert pictures[2].source == "s"


def test_hostile_shards_point_nowhere(tmp_path):
    link = tarfile.TarInfo("1.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = shard(tmp_path / "s.tar", [("1.png", link), ("../../2.png", png(7)), ("../../2.cls", b"1")])
    (picture,) = pictures_of_shard(path)
    assert picture.path == path
    assert decode_photo(picture.read()).pixels[0, 0, 0] == 7


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([("1.png", png())], "no label"),
        ([("1.cls", b"0")], "no picture"),
        ([("1.png", png()), ("1.json", b"{")], "not a whole"),
    ],
)
def test_shards_that_cannot_be_used_are_refused(tmp_path, members, word):
    with pytest.raises(PictureSetError, match=word):
        pictures_of_shard(shard(tmp_path / "s.tar", members))


def test_a_shard_that_is_cut_off_is_refused(tmp_path):
    path = shard(tmp_path / "s.tar", [("1.cls", b"0"), ("1.png", png())])
    whole = path.read_bytes()
    path.write_bytes(whole[:1600])  # within the picture
    with pytest.raises(PictureSetError, match="fetch it again"):
        pictures_of_shard(path)


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_shard_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.tar"
    path.write_bytes(content)
    with pytest.raises(PictureSetError):
        pictures_of_shard(path)


def test_a_shard_may_be_larger_than_a_picture_may(tmp_path, monkeypatch):
    path = shard(tmp_path / "s.tar", [("1.cls", b"0"), ("1.png", png(5))])
    monkeypatch.setattr(defaults, "MAX_FILE_BYTES", 5000)
    assert path.stat().st_size > 5000
    (picture,) = pictures_of_shard(path)
    assert decode_photo(picture.read()).pixels[0, 0, 0] == 5
    path.unlink()
    with pytest.raises(UnreadableError, match="no such file"):
        picture.read()


def test_every_layout_is_documented():
    page = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text()
    assert all(f"`{name}`" in page for name in LAYOUTS)
