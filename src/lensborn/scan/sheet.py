"""A contact sheet of the most suspicious faces: one HTML file that needs nothing else and runs nothing."""

import base64
import heapq
import io
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from lensborn.faces import crop_face
from lensborn.photo import UnreadableError, decode_photo
from lensborn.report import VERDICT_WORDS, printable
from lensborn.scan.listing import unescaped
from lensborn.scan.places import place_of
from lensborn.scan.table import Row, read_columns

FACES = 100  # on a sheet
SIDE = 160  # of a crop, in pixels
_QUALITY = 85
_COLUMNS = (
    "path", "size", "face", "box_x", "box_y", "box_w", "box_h", "score", "combined_p_value", "verdict", "reasons",
)  # fmt: skip
_GONE = '<div class="gone">cannot be read any more</div>'

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>lensborn: the most suspicious faces</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({side}px, 1fr)); gap: 1.5rem 1rem; }}
figure {{ margin: 0; }}
img, .gone {{ width: {side}px; height: {side}px; display: block; background: #ddd; }}
.gone {{ display: grid; place-items: center; color: #666; }}
figcaption {{ overflow-wrap: anywhere; margin-top: .3rem; }}
.ai_generated {{ color: #a40000; font-weight: bold; }}
small {{ color: #555; display: block; }}
</style>
</head>
<body>
<h1>The most suspicious faces</h1>
<p>{faces} of {judged} judged faces, the most unusual first. Model {model}; flagged where p is at most
{alpha:g} %, unless unsure. p is that of both channels together: of photographs like those calibrated on, at most
that share looks as strange.<br>A verdict is a measured oddity, no proof.</p>
<main>
{figures}
</main>
</body>
</html>
"""
_FIGURE = """<figure>
{picture}
<figcaption><span class="{verdict}">{words}</span>, p = {p:.2g}<small>{path}, face {number}</small>
<small>{reasons}</small></figcaption>
</figure>"""


def sheet(table: Path, told: dict[str, Any], faces: int = FACES) -> str:
    """The page for the table and what its summary says, with the `faces` of the lowest combined p-values.

    Faces too small to judge are left out. Pictures are read once more; one that is gone or changed beyond reading
    leaves an empty frame.
    """
    rows = heapq.nsmallest(faces, _judged(table), key=_suspicion)
    return _PAGE.format(
        side=SIDE,
        faces=len(rows),
        judged=told["false_discovery_rate"]["faces"],
        model=_text(f"{told['model']} ({told['sha256'][:16]})"),
        alpha=100 * told["alpha"],
        figures="\n".join(map(_figure, rows)),
    )


def _judged(table: Path) -> Iterator[Row]:
    for columns in read_columns(table, _COLUMNS):
        for values in zip(*(columns[name] for name in _COLUMNS), strict=True):
            row = dict(zip(_COLUMNS, values, strict=True))
            if row["verdict"] not in (None, "unsure"):
                yield row


def _suspicion(row: Row) -> tuple[float, float, str, int]:
    return row["combined_p_value"], -row["score"], row["path"], row["face"]


def _figure(row: Row) -> str:
    return _FIGURE.format(
        picture=_picture(row),
        verdict=row["verdict"],
        words=_text(VERDICT_WORDS[row["verdict"]]),
        p=row["combined_p_value"],
        path=_text(row["path"]),
        number=row["face"] + 1,
        reasons=_text("; ".join(row["reasons"])),
    )


def _picture(row: Row) -> str:
    path = unescaped(row["path"])
    try:
        pixels = decode_photo(place_of(path).read(path, row["size"])).pixels
    except UnreadableError:
        return _GONE
    crop = crop_face(pixels, [row[f"box_{side}"] for side in "xywh"], SIDE)
    data = io.BytesIO()
    Image.fromarray(crop).save(data, "JPEG", quality=_QUALITY)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _text(text: str) -> str:
    """Text for HTML: no file name may be markup or steer what is shown."""
    return escape(printable(text))
