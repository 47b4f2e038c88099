"""Verdicts for people (a table) and for programs (JSON lines, the contract in docs/cli.md)."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from lensborn.detector import Detection, FaceVerdict

VERDICT_STYLE = {"photographic": "green", "ai_generated": "bold red", "unsure": "yellow"}
VERDICT_WORDS = {"photographic": "photographic", "ai_generated": "AI-generated?", "unsure": "unsure"}


def json_line(value: Mapping[str, Any]) -> str:
    """One JSON object on one line, in ASCII, so that it is valid in every encoding; NaN raises ValueError.

    Bytes of a file name that are no valid text (surrogates) are written as a backslash escape: a lone
    surrogate is refused by many JSON readers.
    """
    return json.dumps(_valid_text(value), allow_nan=False)


def detection_table(detections: Iterable[Detection]) -> Table:
    """A row a face, or one for a file without any: file, face, verdict, p-values, camera, reason.

    `p` is of the first channel, `known p` of the known one; `both p` decides.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, options in (
        ("file", {"overflow": "fold", "ratio": 3}),
        ("face", {"justify": "right", "no_wrap": True}),
        ("verdict", {"no_wrap": True}),
        ("p", {"justify": "right", "no_wrap": True}),
        ("known p", {"justify": "right", "no_wrap": True}),
        ("both p", {"justify": "right", "no_wrap": True}),
        ("camera", {"overflow": "fold", "ratio": 3}),
        ("reason", {"overflow": "fold", "ratio": 5}),
    ):
        table.add_column(name, **options)
    for detection in detections:
        for row in _rows(detection):
            table.add_row(*row)
    return table


def camera_text(camera: Mapping[str, str | float | None]) -> str:
    """The camera's settings in a photographer's notation, e.g. `X-T10 f/1.4 1/4000 s 35 mm ISO 6400`."""
    words = [str(camera["model"] or camera["make"] or "")]
    if (number := camera["f_number"]) is not None:
        words.append(f"f/{number:g}")
    if isinstance(time := camera["exposure_time_s"], float | int) and time > 0:
        words.append(f"{time:g} s" if time >= 0.3 else f"1/{1 / time:.0f} s")
    if (length := camera["focal_length_mm"]) is not None:
        words.append(f"{length:g} mm")
    if (iso := camera["iso"]) is not None:
        words.append(f"ISO {iso:g}")
    return " ".join(filter(None, words)) or "none recorded"


def printable(text: str) -> str:
    """`text` with control characters and surrogates escaped: no file name may steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _rows(detection: Detection) -> list[tuple[Text, ...]]:
    file = Text(printable(detection.path))
    if detection.status == "unreadable":
        return [
            (
                file,
                Text(),
                Text("unreadable", "magenta"),
                *[Text()] * 4,
                Text(printable(detection.error or "")),
            )
        ]
    camera = Text(printable(camera_text(detection.camera)))
    if not detection.faces:
        return [(file, Text(), Text("no face", "dim"), *[Text()] * 3, camera, Text())]
    return [(file, *_face_cells(number, face), camera, Text(printable("; ".join(face.reasons))))
            for number, face in enumerate(detection.faces, start=1)]  # fmt: skip


def _face_cells(number: int, face: FaceVerdict) -> tuple[Text, ...]:
    verdict = Text(VERDICT_WORDS[face.verdict], VERDICT_STYLE[face.verdict])
    known = f"{face.known_generator.p_value:.3f}" if face.known_generator else ""
    both = "" if face.verdict == "unsure" else f"{face.combined_p_value:.3f}"
    return Text(str(number)), verdict, Text(f"{face.p_value:.3f}"), Text(known), Text(both)


def _valid_text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_valid_text(key): _valid_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid_text(item) for item in value]
    return value
