"""The tables of docs/known.md and of the README are what docs/known.json says."""

import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parent.parent
if not (ROOT / "tools").is_dir():
    pytest.skip("the tools are not part of an installation", allow_module_level=True)
sys.path.insert(0, str(ROOT / "tools"))

from known_page import readme_table, write_page  # noqa: E402

from lensborn.bundle import SHIPPED, read_bundle  # noqa: E402

ROWS = json.loads((ROOT / "docs" / "known.json").read_text())


def test_the_page_is_written_from_the_rows(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "known.md").read_text("utf-8")
    page = tmp_path / "known.md"
    measured = r"(?s)(<!-- (?!ways)\S+:begin -->\n).*?(<!-- \S+:end -->)"  # the ways have runs of their own
    page.write_text(re.sub(measured, r"\1\2", text), "utf-8")
    assert page.stat().st_size < len(text.encode()) / 2
    write_page(ROWS, page)
    assert page.read_text("utf-8") == text


def test_the_readme_is_about_the_bundle_that_is_shipped() -> None:
    table = readme_table(ROWS, SHIPPED.name, read_bundle(SHIPPED).sha256)
    assert table in (ROOT / "README.md").read_text("utf-8")
