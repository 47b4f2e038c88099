"""`lensborn scan`: every picture of folders and object stores, resumable, into one table."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensborn.cli.detect import PIPE_WIDTH, Alpha, Model, check_share, load_detector
from lensborn.cli.progress import progress_bar

if TYPE_CHECKING:
    from lensborn.detector import Detector
    from lensborn.scan.run import Engine, Progress


class EngineName(StrEnum):
    """Where pictures are judged."""

    LOCAL = "local"
    RAY = "ray"


def scan(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="FOLDER", help="Folders and pictures, or addresses like s3://bucket/prefix."),
    ],
    out: Annotated[str, typer.Option(metavar="RESULTS", help="The folder to write, or to go on with.")],
    model: Model = None,
    alpha: Alpha = None,
    fdr: Annotated[
        float,
        typer.Option(help="False-discovery rate of the summary, in (0, 1): false alarms among the flagged."),
    ] = 0.1,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Only pictures whose name, or path below FOLDER, matches; repeatable."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Not the pictures and folders that match; repeatable."),
    ] = None,
    any_suffix: Annotated[
        bool,
        typer.Option(
            "--any-suffix", help="Also files whose names do not end as those of pictures do, such as hashes."
        ),
    ] = False,
    min_bytes: Annotated[int, typer.Option(min=0, help="Not pictures of fewer bytes, as icons are.")] = 0,
    sheet: Annotated[
        bool,
        typer.Option("--sheet", help="Also write sheet.html, with the faces of the 100 lowest p-values."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew: what RESULTS holds is dropped.")
    ] = False,
    engine: Annotated[
        EngineName, typer.Option(help="This machine, or a Ray cluster (needs the extra `ray`).")
    ] = EngineName.LOCAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: how many; without it, one a machine.")
    ] = None,
) -> None:
    """Judge every picture below folders into a table; run again, it goes on where it stopped.

    Unchanged files are not judged twice. RESULTS gets faces.parquet and summary.json. Exit status: 0 all files
    were read, 1 some could not be, 2 wrong usage or a disk that refuses, 130 after Ctrl-C.

    Example: lensborn scan profile-pictures/ --out results --sheet
    """
    try:
        from lensborn.scan import run  # noqa: PLC0415  (heavy; so --help stays quick)
        from lensborn.scan.sheet import sheet as page_of  # noqa: PLC0415
    except ModuleNotFoundError as error:
        typer.echo(f"scanning needs {error.name}: pip install 'lensborn[scan]'", err=True)
        raise typer.Exit(2) from None
    from lensborn.scan.errors import ScanError  # noqa: PLC0415
    from lensborn.scan.listing import Filters, checked_roots, lies_below, pattern_of  # noqa: PLC0415
    from lensborn.scan.places import is_remote  # noqa: PLC0415
    from lensborn.scan.results import SHEET, Results, write_whole  # noqa: PLC0415

    check_share(fdr, "--fdr", example=0.1)
    if is_remote(out):
        raise typer.BadParameter("results go to a disk: name a folder, and copy it then", param_hint="--out")
    detector = load_detector(model, alpha)
    included, excluded = (tuple(map(pattern_of, patterns or ())) for patterns in (include, exclude))
    filters = Filters(included, excluded, min_bytes, any_suffix)
    try:
        roots = checked_roots(folders)
        if any_suffix and lies_below(out, roots):
            raise ScanError(
                f"{out} lies in a folder to scan, and --any-suffix would judge it: choose another --out"
            )
        if engine is EngineName.RAY and not all(
            is_remote(root) or Path(root).is_absolute() for root in folders
        ):
            raise ScanError("with --engine ray, give paths from the root on: workers start in other folders")
        settings = run.settings_of(roots, filters, detector.info)
        judging = _engine(engine, detector, model, workers)
        with _stopped_politely(), Results.opened(Path(out), settings, overwrite=overwrite) as results:
            with _progress() as progress:
                told = run.scan(results, roots, filters, judging, settings, rate=fdr, progress=progress)
            if sheet:
                write_whole(results.folder / SHEET, page_of(results.table, told))
    except ScanError as error:
        typer.echo(f"lensborn scan: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped: run the same command again to go on", err=True)
        raise typer.Exit(130) from error
    _print(told, out)
    raise typer.Exit(1 if told["files"]["unreadable"] else 0)


def _engine(name: EngineName, detector: "Detector", model: Path | None, workers: int | None) -> "Engine":
    if name is EngineName.LOCAL:
        from lensborn.scan.run import on_this_machine  # noqa: PLC0415

        return on_this_machine(detector)
    try:
        from lensborn.scan.cluster import on_ray  # noqa: PLC0415
    except ModuleNotFoundError as error:
        typer.echo(f"--engine ray needs {error.name}: pip install 'lensborn[ray]'", err=True)
        raise typer.Exit(2) from None
    return on_ray(model.resolve() if model else None, detector.info, workers)


@contextmanager
def _stopped_politely() -> Iterator[None]:
    """A request to end (SIGTERM) is as Ctrl-C: what was judged is written first."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress() -> Iterator["Progress"]:
    """A bar for the stage at work, with rate and time left, on standard error where that is a terminal."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}
        listed = 0

        def show(stage: str, through: int, total: int | None) -> None:
            nonlocal listed
            if stage not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=through)
            if stage == "listing":
                listed = through
            elif stage == "judging" and through == 0 and total is not None and total < listed:
                typer.echo(f"continuing: {listed - total:,} of {listed:,} files are done", err=True)

        yield show


def _print(told: dict[str, Any], out: str) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    discovered = told["false_discovery_rate"]
    for name, number in (
        *((f"files, {status.replace('_', ' ')}", count) for status, count in told["files"].items()),
        *((f"faces, {verdict.replace('_', ' ')}", count) for verdict, count in told["faces"].items()),
        (f"faces flagged at a false-discovery rate of {discovered['rate']:g}", discovered["flagged"]),
    ):
        table.add_row(name, f"{number:,}")
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table)
    console.print(
        Text(
            f"\nmodel {told['model']}; written to {out}. A verdict is a measured oddity, no proof.",
            style="dim",
        )
    )
