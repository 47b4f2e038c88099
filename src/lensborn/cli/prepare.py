"""`lensborn prepare`: photographs with EXIF become face crops and a table."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lensborn.prepare import Outcome


def prepare(
    photos: Annotated[list[Path], typer.Argument(exists=True, help="Photographs, or folders of them.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="The corpus: a folder, made where missing.")],
    keep_untagged: Annotated[
        bool, typer.Option("--keep-untagged", help="Keep photographs that lack some of the four camera tags.")
    ] = False,
) -> None:
    """Cut the faces of photographs with EXIF into a corpus for training and fitting.

    The first folder below each folder given is taken for the source (an album, a photographer, a site):
    sets are split by source. Photographs already in the corpus are passed over, so that an interrupted run
    can be run again.

    Example: lensborn prepare ~/photographs --out corpus
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from lensborn.datasets.corpus import CorpusError  # noqa: PLC0415
    from lensborn.prepare import list_photos  # noqa: PLC0415
    from lensborn.prepare import prepare as prepare_corpus  # noqa: PLC0415
    from lensborn.scan.errors import cannot_write  # noqa: PLC0415

    told = Console(stderr=True)
    listed = list_photos(photos, out)
    if not listed:
        told.print("no photograph found: give files, or folders that hold some")
        raise typer.Exit(2)
    crops = 0
    kept_out: Counter[str] = Counter()
    stopped = False
    progress = Progress(
        TextColumn("photographs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=told,
    )
    with progress:
        task = progress.add_task("", total=len(listed), rate="")

        def report(outcome: "Outcome") -> None:
            nonlocal crops
            crops += outcome.crops
            if outcome.kept_out:
                kept_out[outcome.kept_out] += 1
            if outcome.error:
                progress.console.print(f"{outcome.path}: {outcome.error}", markup=False, highlight=False)
            speed = progress.tasks[task].speed
            progress.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")

        try:
            prepare_corpus(listed, out, keep_untagged=keep_untagged, report=report)
        except CorpusError as error:
            progress.console.print(str(error), markup=False, highlight=False)
            raise typer.Exit(2) from error
        except OSError as error:
            progress.console.print(str(cannot_write(out, error)), markup=False, highlight=False)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            stopped = True
    _print_summary(len(listed), crops, kept_out, out)
    if stopped:
        told.print("stopped: run the same command again to go on")
        raise typer.Exit(130)
    if kept_out["unreadable"]:
        raise typer.Exit(1)


def _print_summary(listed: int, crops: int, kept_out: Counter[str], out: Path) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("photographs", "", show_header=False, box=None)
    table.add_row("photographs found", f"{listed:,}")
    for reason, count in kept_out.most_common():
        table.add_row(f"  kept out, {reason}", f"{count:,}")
    table.add_row("face crops added", f"{crops:,}")
    console = Console()
    console.print(table)
    console.print(f"corpus: {out}", markup=False, highlight=False, soft_wrap=True)
