"""`lensborn evaluate`: how well a model tells generated faces from photographs, on the user's pictures."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lensborn.bench.protocols import Result
    from lensborn.bench.tables import Evaluation
    from lensborn.datasets.pictures import Label, Picture

PIPE_WIDTH = 160  # columns of the tables where they go to a file or a pipe


def evaluate(
    *,
    real: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A folder of photographs; can be given several times."),
    ] = None,
    fake: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A folder of generated pictures; can be given several times."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="CSV with columns file, label (real or fake), set and, if known, source."),
    ] = None,
    protocol: Annotated[
        Literal["published", "equalised"],
        typer.Option(help="Files as they are, or every face at one size and one JPEG quality."),
    ] = "published",
    model: Annotated[Path | None, typer.Option(help="A bundle; the shipped one if left out.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap, the audit's folds and --limit.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many pictures a set.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables, scores and manifest.")] = None,
) -> None:
    """Measure a model on sets of photographs and generated pictures.

    Example: lensborn evaluate --real ffhq=ffhq/ --fake stylegan=sg/ --protocol equalised --out results

    Exit status: 0 all files read, 1 some could not be (they are counted), 2 wrong usage.
    """
    from lensborn.bench import protocols, tables  # noqa: PLC0415
    from lensborn.bundle import BundleError  # noqa: PLC0415
    from lensborn.datasets.pictures import PictureSetError, choose  # noqa: PLC0415
    from lensborn.detector import Detector  # noqa: PLC0415

    try:
        pictures = choose(_pictures(real or [], fake or [], table), limit, seed)
        detector = Detector.load(model)
    except (PictureSetError, BundleError) as error:
        raise typer.BadParameter(str(error)) from error
    if out is not None and out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out {out} is a file: name a folder")

    results = list(_with_progress(protocols.measure(pictures, protocol, detector), len(pictures)))
    settings = ["--protocol", protocol, "--model", detector.info.name, "--seed", str(seed)]
    settings += ["--limit", str(limit)] if limit else []
    manifest = tables.describe(
        results,
        model=asdict(detector.info),
        protocol=protocol,
        seed=seed,
        command=_command(real or [], fake or [], table, settings),
    )
    evaluation = tables.evaluate(results, detector.info.alpha, seed, manifest)
    _print(evaluation)
    if out is not None:
        tables.write(out, evaluation, results)
        typer.echo(f"Written to {out}")
    if any(result.measured.reason == "unreadable" for result in results):
        raise typer.Exit(1)


def _pictures(real: list[str], fake: list[str], table: Path | None) -> "list[Picture]":
    from lensborn.datasets.pictures import (  # noqa: PLC0415
        PictureSetError,
        pictures_of_folder,
        pictures_of_table,
    )

    pictures = pictures_of_table(table) if table else []
    given: list[tuple[Label, list[str]]] = [("real", real), ("fake", fake)]
    for label, options in given:
        for option in options:
            name, separator, folder = option.partition("=")
            if not (name and separator and folder):
                raise PictureSetError(f"--{label} {option}: write NAME=DIR")
            pictures += pictures_of_folder(name, Path(folder), label)
    return pictures


def _command(real: list[str], fake: list[str], table: Path | None, settings: list[str]) -> str:
    """The command with folders left out: a manifest names sets, not the machine they lay on."""
    words = ["lensborn", "evaluate"]
    for label, options in (("--real", real), ("--fake", fake)):
        for option in options:
            words += [label, option.partition("=")[0] + "=DIR"]
    words += ["--table", table.name] if table else []
    return shlex.join([*words, *settings])


def _with_progress(results: "Iterator[Result]", total: int) -> "Iterator[Result]":
    """Pass on, with a bar, rate and time left on standard error where that is a terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task("", total=total, rate="")
        for result in results:
            yield result
            speed = bar.tasks[task].speed
            bar.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")


def _print(evaluation: "Evaluation") -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from lensborn.bench import tables  # noqa: PLC0415
    from lensborn.report import printable  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)

    def show(header: "Sequence[str]", rows: "Iterable[Sequence[str]]") -> None:
        table = Table(*header, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)
        console.print()

    show(tables.GENERATOR_HEADER, map(tables.generator_cells, evaluation.generators))
    show(tables.PHOTOGRAPH_HEADER, map(tables.photograph_cells, evaluation.photographs))
    console.print(Text("\n".join(tables.summary_lines(evaluation.summary))))
    if any(row["marked"] for row in evaluation.generators):
        console.print(Text(tables.mark_line(evaluation.manifest["protocol"])))
