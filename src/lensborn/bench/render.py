"""Rows as Markdown, LaTeX, CSV and JSON. The same rows give the same bytes."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensborn.disk import whole_file

DIGITS = 6  # that count, of numbers in CSV and JSON: beyond them a result can depend on the processor

Row = Mapping[str, Any]

_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table for people: plain text in cells, `note` below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report: Markdown text, then tables, then pictures (alternative text and file name)."""

    title: str
    text: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[tuple[str, str], ...] = ()


def markdown(title: str, sections: Sequence[Section]) -> str:
    """A report in Markdown."""
    lines = [f"# {escaped(title)}", ""]
    for section in sections:
        lines += [f"## {escaped(section.title)}", ""] * bool(section.title)
        lines += [section.text, ""] * bool(section.text)
        for table in section.tables:
            lines += [f"**{escaped(table.title)}**", "", *markdown_head(*table.header)]
            lines += [_markdown_line(map(escaped, row)) for row in table.rows]
            lines += ["", table.note, ""] if table.note else [""]
        lines += [line for name, file in section.pictures for line in (f"![{escaped(name)}]({file})", "")]
    return "\n".join(lines).rstrip("\n") + "\n"


def latex(sections: Sequence[Section]) -> str:
    """The tables of a report for LaTeX with the package booktabs."""
    lines: list[str] = ["% needs \\usepackage{booktabs}"]
    for table in (table for section in sections for table in section.tables):
        lines += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            _latex_line(table.header),
            r"\midrule",
            *map(_latex_line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header: all keys, in the order in which they come up."""
    stream = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, keys, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.{DIGITS}g}" if isinstance(v, float) else v for k, v in row.items()})
    return stream.getvalue()


def to_json(value: Any) -> str:
    """A document as JSON."""
    return json.dumps(_rounded(value), indent=2, allow_nan=False) + "\n"


def write(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write files into a folder, each aside and then renamed; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with whole_file(folder / name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    return [folder / name for name in texts]


def write_block(page: Path, name: str, text: str) -> None:
    """Put `text` between the marks `<!-- name:begin -->` and `<!-- name:end -->` of a page, for what was there.

    Raises ValueError where the page has not each of them once.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = page.read_text("utf-8").split(begin)
    _, after = rest.split(end)
    written = before + begin + "\n" + text.strip("\n") + "\n" + end + after
    write(page.parent, {page.name: written})


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def interval(row: Row, name: str) -> str:
    """A number of a row with its interval."""
    if row[name] is None:
        return "-"
    return f"{number(row[name])} [{number(row[f'{name}_low'])}, {number(row[f'{name}_high'])}]"


def percent(row: Row, name: str) -> str:
    """A share of a row with its interval, in per cent."""
    if row[name] is None:
        return "-"
    value, low, high = (f"{100 * row[key]:.1f}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} [{low}, {high}]"


def escaped(text: str) -> str:
    """Text that Markdown takes literally."""
    return "".join("\\" + c if c in "\\`*_[]<>|#" else c for c in text.replace("\n", " "))


def markdown_head(*columns: str) -> list[str]:
    """The first two lines of a table in Markdown."""
    return [_markdown_line(columns), _markdown_line(["---"] * len(columns))]


def _markdown_line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text.replace("\n", " "))


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
