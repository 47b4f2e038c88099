"""Tables between the marks of a page."""

from pathlib import Path

import pytest

from lensborn.bench.render import write_block

PAGE = "before\n<!-- one:begin -->\nold\n<!-- one:end -->\nbetween\n<!-- two:begin -->\n<!-- two:end -->\nafter\n"


def test_a_block_replaces_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for _ in range(2):  # again, with the same outcome
        write_block(page, "one", "\n    a command\n\n| table |\n")
        assert page.read_text() == PAGE.replace("old", "    a command\n\n| table |")
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.parametrize("text", ["no marks", PAGE + PAGE, "<!-- one:begin -->"])
def test_a_page_without_just_these_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError):
        write_block(page, "one", "new")
    assert page.read_text() == text
