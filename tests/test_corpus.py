"""The table of a corpus survives a round trip, refuses what it cannot mean, and splits by source for ever."""

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lensborn import defaults
from lensborn.datasets.corpus import (
    COLUMNS,
    LANDMARKS,
    TABLE,
    TAGS,
    CorpusError,
    read_corpus,
    split_of,
    write_table,
)

ROW = {
    "file": "photos/a_0.jpg",
    "photo_sha1": "a" * 40,
    "source": "album, one",
    "make": 'the "maker"',
    "f_number": "2.8",
    "exposure_time_s": "0.004",
    "focal_length_mm": "50.0",
    "iso": "400.0",
    "size": "320",
} | {name: str(float(i)) for i, name in enumerate(LANDMARKS)}


def test_a_row_becomes_a_crop(tmp_path: Path) -> None:
    assert write_table(tmp_path, [ROW]) == tmp_path / TABLE
    (crop,) = read_corpus(tmp_path)
    assert crop.file == tmp_path / "photos" / "a_0.jpg"
    assert (crop.photo, crop.source, crop.size) == ("a" * 40, "album, one", 320)
    np.testing.assert_array_equal(crop.tags, [2.8, 0.004, 50.0, 400.0])
    assert crop.landmarks is not None
    np.testing.assert_array_equal(crop.landmarks, np.arange(10, dtype=np.float32).reshape(5, 2))
    assert crop.row["make"] == 'the "maker"'
    assert [path.name for path in tmp_path.iterdir()] == [TABLE]  # nothing is left aside


def test_what_a_photograph_does_not_say_is_nan_or_none(tmp_path: Path) -> None:
    write_table(tmp_path, [ROW | {"iso": "", "nose_x": ""}])
    (crop,) = read_corpus(tmp_path)
    assert math.isnan(crop.tags[TAGS.index("iso")])
    assert crop.landmarks is None


def test_tables_with_other_columns_are_read(tmp_path: Path) -> None:
    write_table(tmp_path, [ROW | {"licence": "CC0"}], (*COLUMNS, "licence"))
    assert read_corpus(tmp_path)[0].row["licence"] == "CC0"
    with pytest.raises(ValueError, match="licence"):
        write_table(tmp_path, [ROW | {"licence": "CC0"}])
    assert read_corpus(tmp_path)[0].row["licence"] == "CC0"  # a failed writing leaves the table as it was


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("iso", "-1"),
        ("iso", "0"),
        ("iso", "inf"),
        ("iso", "nan"),
        ("f_number", "f/2.8"),
        ("size", "wide"),
        ("nose_x", "nan"),
        ("file", "/etc/passwd"),
        ("file", "../secret.jpg"),
        ("file", ""),
    ],
)
def test_a_bad_value_is_told_with_its_row(tmp_path: Path, column: str, value: str) -> None:
    write_table(tmp_path, [ROW, ROW | {column: value}])
    with pytest.raises(CorpusError, match=r"row 3: .*: mend or remove the row"):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "lensborn prepare"),
        (b"", "empty"),
        (b"\n", "lacks the columns file"),
        (b"file,source\na,b\n", "lacks the columns photo_sha1"),
        (b"\xff\xfe\0", "not in UTF-8"),
        ((",".join(COLUMNS) + "\nonly,three,fields\n").encode(), "row 2"),
        ((",".join(COLUMNS) + "\n" + "," * len(COLUMNS) + "\n").encode(), "row 2"),
    ],
)
def test_a_bad_table_is_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / TABLE).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        read_corpus(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TABLE).write_bytes((",".join(COLUMNS) + "\n").encode() + content)
    with contextlib.suppress(CorpusError):
        read_corpus(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_comes_back(tmp_path: Path, text: str) -> None:
    write_table(tmp_path, [ROW | {"source": text}])
    assert read_corpus(tmp_path)[0].source == text


def test_splits_are_fixed_and_have_their_shares() -> None:
    assert [split_of(key) for key in ("a", "b", "c", "one/two")] == [
        "calibrate",
        "train",
        "train",
        "test",
    ]
    names = [split_of(f"source {i}") for i in range(20_000)]
    for name, share in defaults.SPLITS:
        assert names.count(name) / len(names) == pytest.approx(share, abs=0.015)


def test_growing_the_first_split_only_moves_keys_into_it() -> None:
    for i in range(500):
        if split_of(f"{i}", (("a", 0.5), ("b", 0.5))) == "a":
            assert split_of(f"{i}", (("a", 0.7), ("b", 0.3))) == "a"


@given(st.text(max_size=20))
def test_every_key_has_a_split(key: str) -> None:
    assert split_of(key) in dict(defaults.SPLITS)
    assert split_of(key, (("only", 0.1),)) == "only"
