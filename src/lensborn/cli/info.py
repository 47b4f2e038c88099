"""`lensborn info`: what a model was trained, fitted and calibrated on, and how good it was measured to be."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensborn.cli.detect import PIPE_WIDTH

if TYPE_CHECKING:
    from rich.table import Table


def info(
    model: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="The model; without it, the one shipped.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, with the SHA-256 of the model.")
    ] = False,
) -> None:
    """Print what a model was trained, fitted and calibrated on, its licence and its measured table.

    Example: lensborn info runs/my-platform
    """
    from rich.console import Console  # noqa: PLC0415  (heavy; so --help stays quick)

    from lensborn.bundle import KNOWN_KEY, SHIPPED, BundleError, read_bundle  # noqa: PLC0415
    from lensborn.report import json_line, printable  # noqa: PLC0415

    try:
        bundle = read_bundle(SHIPPED if model is None else model)
    except BundleError as error:
        raise typer.BadParameter(str(error), param_hint="BUNDLE") from error
    manifest = dict(bundle.manifest)
    if bundle.known is not None:
        head = bundle.known.head
        verdict = {
            "calibrated_on": head.memory.calibrated_on,
            "margin": head.margin,
            "smallest_p": head.smallest_p,
        }
        manifest[KNOWN_KEY] = {"verdict": verdict, **manifest[KNOWN_KEY]}
    if as_json:
        typer.echo(json_line({**manifest, "sha256": bundle.sha256}))
        return
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(_settings({"name": bundle.name, "sha256": bundle.sha256, "folder": str(bundle.path)}))
    for key in (
        "created",
        "licence",
        "calibration",
        "density",
        "encoder",
        "preprocessing",
        "training",
        "versions",
    ):
        first = " of the first channel" if key == "calibration" and bundle.known else ""
        console.print(f"\n{key}{first}", style="bold", markup=False)
        value = manifest[key]
        console.print(
            _settings(value) if isinstance(value, Mapping) else f"  {printable(str(value))}", markup=False
        )
    if known := manifest.get(KNOWN_KEY):
        console.print("\nknown generators", style="bold")
        rest = {key: value for key, value in known.items() if key not in ("sets", "files", "measured")}
        console.print(_settings(rest))
        console.print(_measured(known["sets"]))
        if known.get("measured"):
            console.print(_measured(known["measured"]))
    if manifest["measured"]:
        console.print("\nmeasured", style="bold")
        console.print(_measured(manifest["measured"]))


def _settings(values: Mapping[str, Any]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, show_header=False, padding=(0, 2))
    for key, value in _flat(values):
        table.add_row(_text(key), _text(value))
    return table


def _measured(rows: Sequence[Mapping[str, Any]]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))  # eight columns fit a terminal of 80
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(_text(column), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    return table


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted names."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def _text(value: Any) -> Any:
    from rich.text import Text  # noqa: PLC0415

    from lensborn.report import printable  # noqa: PLC0415

    return Text(
        "" if value is None else f"{value:.4g}" if isinstance(value, float) else printable(str(value))
    )
