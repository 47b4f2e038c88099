"""`lensborn detect`: verdicts on the faces of pictures."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lensborn import defaults
from lensborn.cli.progress import tracked

if TYPE_CHECKING:
    from lensborn.detector import Detection, Detector

PIPE_WIDTH = 160  # columns of a table where it goes to a file or a pipe
LEAST_WIDTH = 80  # of one on a terminal: a narrower one would have no room for reasons

Model = Annotated[Path | None, typer.Option(metavar="BUNDLE", help="The model; without it, the one shipped.")]
Alpha = Annotated[
    float | None,
    typer.Option(help="Share of photographs that may be flagged, in (0, 1); without it, the model's own."),
]


def detect(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Pictures, and folders of pictures.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a file, one line each.")] = False,
    model: Model = None,
    alpha: Alpha = None,
) -> None:
    """Find the faces of pictures, and flag those that look generated.

    Exit status: 0 all files were read, 1 some could not be, 2 wrong usage. A verdict is no proof.

    Examples: lensborn detect examples/

    lensborn detect --json --alpha 0.01 portrait.jpg album/ > verdicts.jsonl
    """
    from lensborn.photo import find_photos  # noqa: PLC0415  (heavy; so --help stays quick)
    from lensborn.scan.places import is_remote  # noqa: PLC0415

    for path in paths:
        if not path:
            raise typer.BadParameter(
                "an empty path, as of a variable that is not set: name a file, or . for this folder",
                param_hint="PATH...",
            )
        if is_remote(path):
            raise typer.BadParameter(
                f"{path} is an address: download it, or give it to `lensborn scan`", param_hint="PATH..."
            )
    files = list(find_photos(map(Path, paths)))
    if not files:
        raise typer.BadParameter("no pictures found there", param_hint="PATH...")
    detector = load_detector(model, alpha)
    detections = detector.detect_many(files)
    if len(files) > 1 and not (
        as_json and sys.stdout.isatty()
    ):  # a bar between the lines would be in the way
        detections = tracked(detections, len(files), "detecting")
    unreadable = _print_lines(detections) if as_json else _print_table(detections, detector)
    raise typer.Exit(1 if unreadable else 0)


def check_share(share: float, option: str, example: float = defaults.ALPHA) -> None:
    """Raise BadParameter unless the value of that option lies between 0 and 1."""
    if not 0 < share < 1:
        raise typer.BadParameter(
            f"{share:g} does not lie between 0 and 1; try {example:g}", param_hint=option
        )


def load_detector(model: Path | None, alpha: float | None) -> "Detector":
    """The detector of the options --model and --alpha, with a warning where it can flag nothing."""
    from lensborn.bundle import BundleError  # noqa: PLC0415
    from lensborn.detector import Detector  # noqa: PLC0415

    if alpha is not None:
        check_share(alpha, "--alpha")
    try:
        detector = Detector.load(model, alpha)
    except BundleError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error
    if detector.smallest_p > detector.info.alpha:
        typer.echo(
            f"warning: nothing can be flagged at alpha {detector.info.alpha:g}, as the smallest p-value that "
            f"this model's calibration allows is {detector.smallest_p:.2g}",
            err=True,
        )
    return detector


def _print_lines(detections: Iterable["Detection"]) -> int:
    from lensborn.report import json_line  # noqa: PLC0415

    unreadable = 0
    for detection in detections:
        print(json_line(detection.to_dict()), flush=True)
        unreadable += detection.status == "unreadable"
    return unreadable


def _print_table(detections: Iterable["Detection"], detector: "Detector") -> int:
    from rich.console import Console  # noqa: PLC0415

    from lensborn.report import detection_table  # noqa: PLC0415

    found = list(detections)
    console = Console(width=max(Console().width, LEAST_WIDTH) if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(detection_table(found))
    info = found[0].model
    by = "how unusual they look" if detector.known is None else "both channels' scores together"
    console.print(
        f"\nmodel {info.name}; at most {100 * info.alpha:g} % of photographs like those calibrated on are flagged, "
        f"by {by}.\nA verdict is a measured oddity, no proof.",
        style="dim",
        highlight=False,
        markup=False,
    )
    return sum(detection.status == "unreadable" for detection in found)
