import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lensborn.datasets import pictures as picture_sets
from lensborn.datasets.pictures import Picture, PictureSetError
from lensborn.photo import UnreadableError


def pictures(label, name, n):
    return [Picture(Path(f"{i}"), f"{name}/{i}", name, label, "") for i in range(n)]


def test_limit_is_a_stable_choice_from_each_set():
    everything = pictures("real", "r", 50) + pictures("fake", "f", 5)
    chosen = picture_sets.choose(everything, 10, 0)
    assert [p.set for p in chosen] == ["r"] * 10 + ["f"] * 5
    assert picture_sets.choose(everything, 10, 0) == chosen != picture_sets.choose(everything, 10, 1)
    assert set(chosen) < set(picture_sets.choose(everything, 20, 0))  # a larger limit keeps them
    assert picture_sets.choose(everything, None, 0) == everything


@pytest.mark.parametrize(
    ("sets", "word"),
    [
        (pictures("real", "r", 2), "no fake"),
        (pictures("fake", "r", 2), "no real"),
        (pictures("fake", "r", 2) + pictures("real", "r", 2), "different names"),
        (pictures("fake", "f", 2) * 2 + pictures("real", "r", 2), "twice"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(sets, word):
    with pytest.raises(PictureSetError, match=word):
        picture_sets.choose(sets, None, 0)


def test_a_table_gives_sets_and_sources(tmp_path):
    table = tmp_path / "faces.csv"
    table.write_text("file,label,set,source\na/1.jpg,real,r,s1\nb/2.jpg,fake,f,\n")
    assert picture_sets.pictures_of_table(table) == [
        Picture(tmp_path / "a/1.jpg", "a/1.jpg", "r", "real", "s1"),
        Picture(tmp_path / "b/2.jpg", "b/2.jpg", "f", "fake", ""),
    ]


@pytest.mark.parametrize(
    "row", ["a.jpg,maybe,s", "a.jpg,real", ",real,s", "/etc/a.jpg,real,s", "a/../../b.jpg,real,s", "", '"']
)
def test_a_bad_table_names_the_record(tmp_path, row):
    table = tmp_path / "faces.csv"
    table.write_text("file,label,set\n" + row + "\n")
    with pytest.raises(PictureSetError, match=r"record 2|no rows|line 1: .* mend its quotes"):
        picture_sets.pictures_of_table(table)


def test_a_quote_that_is_not_closed_takes_no_rows_with_it(tmp_path):
    table = tmp_path / "faces.csv"
    rows = [f"{n}.jpg,real,s,Ann" for n in range(9)]
    table.write_text("\n".join(["file,label,set,source", *rows[:4], '4.jpg,real,s,"Bob', *rows[5:]]) + "\n")
    with pytest.raises(PictureSetError, match="mend its quotes"):
        picture_sets.pictures_of_table(table)


def test_a_pipe_is_no_table_and_is_not_waited_for(tmp_path):
    os.mkfifo(table := tmp_path / "faces.csv")
    with pytest.raises(PictureSetError, match="a pipe or device"):
        picture_sets.pictures_of_table(table)


def test_a_file_has_one_name_however_it_is_written(tmp_path):
    table = tmp_path / "faces.csv"
    table.write_text("file,label,set\na.jpg,real,s\n./a.jpg,real,s\nb.jpg,fake,t\n")
    with pytest.raises(PictureSetError, match="twice"):
        picture_sets.choose(picture_sets.pictures_of_table(table), None, 0)


def test_a_name_may_hold_half_a_character(tmp_path):
    pictures = [Picture(tmp_path, name, name, label) for name, label in (("\ud800", "real"), ("b", "fake"))]
    assert picture_sets.choose(pictures, 1, 0) == pictures


@given(st.binary(max_size=300) | st.text('ab,\n"\rrealfkst=/', max_size=300).map(lambda t: t.encode()))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, content):
    table = tmp_path_factory.getbasetemp() / "any.csv"
    table.write_bytes(b"file,label,set\n" + content)
    try:
        assert all(p.label in ("real", "fake") for p in picture_sets.pictures_of_table(table))
    except PictureSetError as error:
        assert "any.csv" in str(error)


def test_a_folder_gives_its_pictures_by_name(tmp_path):
    for name in ("below", "empty"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "below" / "A.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (picture,) = picture_sets.pictures_of_folder("r", tmp_path, "real")
    assert (picture.name, picture.set, picture.label) == ("r/below/A.PNG", "r", "real")
    assert picture.read() == picture.path.read_bytes()
    with pytest.raises(PictureSetError, match="holds no picture"):
        picture_sets.pictures_of_folder("r", tmp_path / "empty", "real")
    with pytest.raises(PictureSetError, match="not a folder"):
        picture_sets.pictures_of_folder("r", tmp_path / "nowhere", "real")


def test_a_missing_picture_says_so(tmp_path):
    with pytest.raises(UnreadableError, match="no such file"):
        Picture(tmp_path / "a.png", "a.png", "r", "real").read()
