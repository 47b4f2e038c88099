import io
import os
import struct
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lensborn import defaults
from lensborn.datasets import shards
from lensborn.datasets.layouts import read_pictures
from lensborn.datasets.pictures import PictureSetError
from lensborn.datasets.shards import pictures_of_shard
from lensborn.photo import UnreadableError, decode_photo


def png(shade=0):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def shard(path, members, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as out:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                out.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def test_shards_are_read_in_place(tmp_path):
    folder = tmp_path / "portraits"
    folder.mkdir()
    members = [
        ("000.png", png(1)), ("000.json", b'{"label": "fake", "generator": "SD v2.1"}'),
        ("001.PNG", png(2)), ("001.cls", b"0\n"), ("001.txt", b"a caption"),
        ("002.txt", b"a caption without a picture"), ("Zo\u00eb/003.jpg", png(3)), ("Zo\u00eb/003.TXT", b"real"),
    ]  # fmt: skip
    shard(folder / "part-0.tar", members)
    shard(folder / "part-1.TAR", [("9.png", png(4)), ("9.json", b'{"label": 0, "set": "r", "source": "s"}')])
    (folder / ".DS_Store").write_text("stray")
    pictures = read_pictures(folder)
    assert [(p.label, p.set) for p in pictures] == [
        ("fake", "sd2.1"), ("real", "portraits-real"), ("real", "portraits-real"), ("real", "r"),
    ]  # fmt: skip
    assert [decode_photo(p.read()).pixels[0, 0, 0] for p in pictures] == [1, 2, 3, 4]
    assert pictures[3].source == "s"
    assert pictures[2].name == "part-0.tar/Zo\u00eb/003.jpg"
    assert {p.set for p in read_pictures(folder / "part-1.TAR")} == {"r"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_file_points_nowhere(tmp_path, kind):
    link = tarfile.TarInfo("1.png")
    link.type, link.linkname = kind, "/etc/passwd"
    members = [
        ("1.png", link),
        ("../../2.png", png(7)),
        ("../../2.cls", b"1"),
        ("/3.png", png(8)),
        ("/3.cls", b"1"),
    ]
    path = shard(tmp_path / "s.tar", members)
    pictures = pictures_of_shard(path)
    assert {picture.path for picture in pictures} == {path}
    assert [decode_photo(p.read()).pixels[0, 0, 0] for p in pictures] == [7, 8]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, form):
    name = "a" * 90 + "/" + "b" * 90
    path = shard(tmp_path / "s.tar", [(f"{name}.png", png(6)), (f"{name}.cls", b"fake")], form)
    (picture,) = pictures_of_shard(path)
    assert picture.name == f"s.tar/{name}.png"
    assert decode_photo(picture.read()).pixels[0, 0, 0] == 6


def test_a_sparse_member_is_left_out(tmp_path):
    path = tmp_path / "s.tar"
    good = shard(tmp_path / "good.tar", [("2.png", png()), ("2.cls", b"0")]).read_bytes()
    path.write_bytes(header("1.png", b"%011o\0" % 0, tarfile.GNUTYPE_SPARSE) + good)
    assert [p.name for p in pictures_of_shard(path)] == ["s.tar/2.png"]


@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE]
)
@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 11 + b"\x00",  # -256
        b"\x80" + b"\0" * 3 + struct.pack(">Q", 2**62),
        b"77777777777\0",  # 8 GiB
        b"what is it?\0",
    ],
)
def test_impossible_sizes_are_refused_at_once(tmp_path, kind, size):
    path = tmp_path / "s.tar"
    path.write_bytes(header("1.png", size, kind) + bytes(4096))
    with pytest.raises(PictureSetError, match=r"s\.tar"):
        pictures_of_shard(path)


def test_many_headers_for_one_member_are_refused(tmp_path):
    path = tmp_path / "s.tar"
    block = header("x", b"%011o\0" % 512, tarfile.XHDTYPE) + b"9 path=a\n".ljust(512, b"\0")
    path.write_bytes(block * 5000)
    with pytest.raises(PictureSetError, match="not a whole"):
        pictures_of_shard(path)


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([("1.png", png())], "no label"),
        ([("1.png", png()), ("1.txt", b"a caption")], "no label"),
        ([("1.png", png()), ("1.json", b"null")], "no label"),
        ([("1.cls", b"0")], "no picture"),
        ([("1.png", png()), ("1.json", b"{")], r"1\.json is no JSON"),
        ([("1.png", png()), ("1.json", b"[" * 100_000)], r"1\.json is no JSON"),
        ([("1.cls", b"0"), ("1.jpg", png()), ("1.webp", png())], r"1\.jpg and 1\.webp are pictures of one"),
        ([("1.cls", b"0"), ("1.png", png()), ("1.png", png())], r"1\.png and 1\.png are pictures of one"),
        ([("1.cls", b"0"), ("1.png", png()), ("1_0.5.png", png())], r"1_0\.5\.png has more than one dot"),
        (
            [("1.cls", b"0"), ("1.png", png()), ("a/2.x.JPG", png()), ("a/2.x.cls", b"0")],
            r"2\.x\.JPG has more",
        ),
    ],
)
def test_shards_that_cannot_be_used_are_refused(tmp_path, members, word):
    with pytest.raises(PictureSetError, match=word):
        pictures_of_shard(shard(tmp_path / "s.tar", members))


def test_what_is_no_picture_of_a_sample_is_passed_over(tmp_path):
    """Names may have any number of dots beside a picture, or hidden; the same name may be in two folders."""
    members = [
        ("a/1.mask.png", png(3)),
        ("a/1.png", png(1)),
        ("a/1.cls", b"0"),
        ("a/1.meta.json", b"{"),
        ("a/1.gif", b""),
        ("a/._1.png", b""),
    ]
    members += [
        ("a/._1.png", b""),
        ("b/1.png", png(2)),
        ("b/1.cls", b"1"),
        ("b/.1.x.jpg", b""),
        ("b/1.png.txt", b""),
    ]
    pictures = pictures_of_shard(shard(tmp_path / "s.tar", members))
    assert [(p.name, p.label) for p in pictures] == [("s.tar/a/1.png", "real"), ("s.tar/b/1.png", "fake")]


def test_what_cannot_be_opened_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    for name in ("pipe.tar", "folder.tar", "nowhere.tar"):
        with pytest.raises(PictureSetError, match=name):
            pictures_of_shard(tmp_path / name)


def test_the_number_of_members_is_bounded(tmp_path, monkeypatch):
    path = shard(tmp_path / "s.tar", [("1.cls", b"0"), ("1.png", png())])
    monkeypatch.setattr(shards, "MAX_MEMBERS", 1)
    with pytest.raises(PictureSetError, match="split it"):
        pictures_of_shard(path)


def test_a_shard_that_is_cut_off_is_refused(tmp_path):
    path = shard(tmp_path / "s.tar", [("1.cls", b"0"), ("1.png", png())])
    whole = path.read_bytes()
    for end in (100, 600, 1100, 1600):  # within each header and each content
        path.write_bytes(whole[:end])
        with pytest.raises(PictureSetError, match=r"fetch it again|no picture"):
            pictures_of_shard(path)


def test_what_a_stranger_wrote_can_be_printed(tmp_path):
    note = b'{"label": 1, "set": "a\\u001b[2Jb\\ud800", "source": "c\\nd"}'
    (picture,) = pictures_of_shard(
        shard(tmp_path / "s.tar", [("\x1b\udc80.png", png()), ("\x1b\udc80.json", note)])
    )
    for text in (picture.name, picture.set, picture.source):
        assert text.isprintable()
        assert text.encode()


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_shard_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.tar"
    path.write_bytes(content)
    with pytest.raises(PictureSetError):
        pictures_of_shard(path)


WHOLE = io.BytesIO()
with tarfile.open(fileobj=WHOLE, mode="w", format=tarfile.PAX_FORMAT) as _out:
    for _name, _content in (("1.cls", b"0"), ("\u00e9" * 60 + ".png", png()), ("1.png", png())):
        _info = tarfile.TarInfo(_name)
        _info.size = len(_content)
        _out.addfile(_info, io.BytesIO(_content))


@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=6), st.booleans())
def test_a_shard_with_changed_bytes_is_read_or_refused(tmp_path_factory, changes, summed):
    content = bytearray(WHOLE.getvalue())
    for place, value in changes:
        content[place] = value
        if summed:  # the header's checksum follows, so that the change is believed
            start = place // 512 * 512
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    path = tmp_path_factory.getbasetemp() / "changed.tar"
    path.write_bytes(content)
    try:
        for picture in pictures_of_shard(path):
            offset, size = picture.span
            assert 0 <= offset <= offset + size <= len(content)
            assert len(picture.read()) == size
    except PictureSetError as error:
        assert "changed.tar" in str(error)


def test_a_shard_may_be_larger_than_a_picture_may(tmp_path, monkeypatch):
    path = shard(
        tmp_path / "s.tar", [("1.cls", b"0"), ("1.png", png(5)), ("2.cls", b"0"), ("2.png", bytes(6000))]
    )
    monkeypatch.setattr(defaults, "MAX_FILE_BYTES", 5000)
    assert path.stat().st_size > 5000
    small, large = pictures_of_shard(path)
    assert decode_photo(small.read()).pixels[0, 0, 0] == 5
    with pytest.raises(UnreadableError, match="larger than a picture"):  # counted, not dropped
        large.read()
    path.unlink()
    with pytest.raises(UnreadableError, match="no such file"):
        small.read()
