"""`lensborn bench`: detectors side by side on labelled pictures, under every protocol, with the format audit."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lensborn import defaults
from lensborn.cli.detect import PIPE_WIDTH, check_share
from lensborn.cli.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lensborn.bench.contestants import Contestant
    from lensborn.bench.observing import Observed
    from lensborn.bench.tables import Tables
    from lensborn.datasets.pictures import Label, Picture


class ProtocolName(StrEnum):
    """The protocols of lensborn.bench.protocols."""

    PUBLISHED = "published"
    EQUALISED = "equalised"
    DELIVERY = "delivery"


Data = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[DATA]...", help="Data sets in a known layout, or tables like faces.csv."),
]
Layout = Annotated[str, typer.Option(help="Of DATA; see docs/datasets.md.")]
Real = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=DIR", help="A folder of photographs; can be given several times."),
]
Fake = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=DIR", help="A folder of generated pictures; can be given several times."),
]
Table = Annotated[
    Path | None,
    typer.Option(help="CSV with columns file, label (real or fake), set and, if known, source."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the bootstrap, the audit's folds and --limit.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many pictures a set.")]


def bench(
    data: Data = None,
    *,
    layout: Layout = "auto",
    real: Real = None,
    fake: Fake = None,
    table: Table = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            help="A bundle, a CSV of scores, module:function, an installed entry point, or 'shipped', the default; "
            "BUNDLE:known and BUNDLE:fused for its other channels; can be given several times, and the first is "
            "compared with each other one."
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KIND:PATH", help="A frozen encoder, under densities fitted here."),
    ] = None,
    protocol: Annotated[
        list[ProtocolName] | None, typer.Option(help="Given several times; all of them if left out.")
    ] = None,
    refit: Annotated[
        bool, typer.Option(help="Also fit the bundles' features to each photographic set's reference half.")
    ] = True,
    alpha: Annotated[
        float, typer.Option(help="Nominal share of photographs flagged, of what is fitted here.")
    ] = defaults.ALPHA,
    seed: Seed = defaults.SEED,
    limit: Limit = None,
    out: Annotated[Path, typer.Option(help="Folder for report, tables, plots, scores and manifest.")],
    views: Annotated[
        Path | None,
        typer.Option(
            help="Write what detectors are shown into this folder, to score it elsewhere, and stop."
        ),
    ] = None,
) -> None:
    """Measure detectors side by side: published, equalised and delivered pictures, with the format audit.

    An interrupted run goes on where it stopped, but for detectors that are functions. Example:

        lensborn bench faces.csv --detector shipped --detector highpass_detector:score --out results

    Exit status: 0 all files read, 1 some could not be (they are counted), 2 wrong usage.
    """
    from lensborn.bench.contestants import SHIPPED, contestant, told_apart  # noqa: PLC0415
    from lensborn.bench.protocols import conditions_of  # noqa: PLC0415
    from lensborn.datasets.layouts import read_pictures  # noqa: PLC0415

    check_share(alpha, "--alpha")
    protocols = protocol or list(ProtocolName)
    with usage_errors():
        pictures = [picture for path in data or [] for picture in read_pictures(path, layout)]
        pictures += given_pictures(real, fake, table)
        specs = detector or ([] if encoder else [SHIPPED])
        contestants = [contestant(spec, refits=refit) for spec in specs]
        contestants = told_apart([*contestants, *(encoder_contestant(spec) for spec in encoder or [])])
        words = [*(path.name for path in data or []), *(["--layout", layout] if layout != "auto" else [])]
        for option, values in (("--detector", detector), ("--encoder", encoder)):
            for value in values or []:
                words += [option, without_folder(value)]
        words += [word for name in protocol or [] for word in ("--protocol", name)]
        words += ["--no-refit"] * (not refit) + ["--alpha", f"{alpha:g}"] * (alpha != defaults.ALPHA)
        run(
            pictures,
            contestants,
            conditions_of(protocols),
            alpha=alpha,
            seed=seed,
            limit=limit,
            out=out,
            views=views,
            command=command("bench", words, real, fake, table, seed, limit),
        )


@contextmanager
def usage_errors() -> "Iterator[None]":
    """Errors of what the user gave, and of the place to write to, as wrong usage."""
    from lensborn.bench.contestants import ContestantError  # noqa: PLC0415
    from lensborn.bench.plots import PlotError  # noqa: PLC0415
    from lensborn.bundle import BundleError  # noqa: PLC0415
    from lensborn.datasets.pictures import PictureSetError  # noqa: PLC0415

    try:
        yield
    except (PictureSetError, ContestantError, BundleError, PlotError) as error:
        raise typer.BadParameter(str(error)) from error
    except OSError as error:  # what was seen so far is kept
        reason = f"{error.strerror or error}: free the disk or grant access, and run it again"
        raise typer.BadParameter(reason) from error


def run(
    pictures: "Sequence[Picture]",
    contestants: "Sequence[Contestant]",
    conditions: Sequence[str],
    *,
    alpha: float,
    seed: int,
    limit: int | None,
    out: Path | None,
    command: str,
    views: Path | None = None,
) -> None:
    """Observe, judge, print, and write where there is an `out`; raises Exit(1) where a file was unreadable."""
    from lensborn.bench import plots, report  # noqa: PLC0415
    from lensborn.bench.judging import Refit, entries_of, needs_reference  # noqa: PLC0415
    from lensborn.bench.observing import export_views, observe  # noqa: PLC0415
    from lensborn.bench.tables import Judged, make_tables, score_rows  # noqa: PLC0415
    from lensborn.datasets.pictures import choose  # noqa: PLC0415

    chosen = choose(pictures, limit, seed)
    if out is not None and out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out {out} is a file: name a folder")
    if out is not None and views is None:
        out.mkdir(parents=True, exist_ok=True)  # now, not when all pictures were scored
    with progress_bar() as bar:
        watching = bar.add_task("pictures", total=len(chosen))

        def seen(count: int) -> None:
            bar.update(watching, advance=count)

        if views is not None:
            missing = export_views(chosen, conditions, views, progress=seen)
            if missing:
                counts = ", ".join(f"{count} {reason}" for reason, count in missing.items())
                typer.echo(f"not shown, over all conditions: {counts}", err=True)
            raise typer.Exit(int("unreadable" in missing))
        keep = out / "kept" if out else None
        observed = observe(chosen, conditions, contestants, keep=keep, progress=seen)
        _check_shown(observed)
        reference = needs_reference(contestants)
        judged = Judged(observed, reference=reference, alpha=alpha, refit=Refit(seed=seed))
        entries = entries_of(contestants)
        counting = bar.add_task("rows", total=None)
        tables = make_tables(
            judged, entries, seed=seed, progress=lambda n, of: bar.update(counting, completed=n, total=of)
        )
    manifest = report.describe(
        observed, contestants, command=command, alpha=alpha, seed=seed, reference=reference
    )
    _print(tables)
    if left_out := next(iter(observed.conditions.values())).reasons.count("seen"):
        typer.echo(
            f"{left_out} of {len(chosen)} pictures are left out, as a detector was made from them: give others, or "
            "measure the first channel of a model alone, which may know fewer",
            err=True,
        )
    if out is not None:
        try:
            plots.check()
            drawn = True
        except plots.PlotError as error:
            typer.echo(f"no plots: {error}", err=True)
            drawn = False
        report.write_report(out, tables, score_rows(judged, entries), manifest, plots=drawn)
        typer.echo(f"Written to {out}")
    if any("unreadable" in seen.reasons for seen in observed.conditions.values()):
        raise typer.Exit(1)


def _check_shown(observed: "Observed") -> None:
    """Raise BadParameter where no picture of a class could be shown: there is nothing to measure."""
    for label, name in (("real", "photographs"), ("fake", "generated pictures")):
        mine = [n for n, picture in enumerate(observed.pictures) if picture.label == label]
        reasons = [condition.reasons[n] for condition in observed.conditions.values() for n in mine]
        if all(reasons):
            counts = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())
            raise typer.BadParameter(f"none of the {name} can be measured ({counts}): give others")


def given_pictures(real: list[str] | None, fake: list[str] | None, table: Path | None) -> "list[Picture]":
    """The pictures of the options --real, --fake and --table. Raises PictureSetError."""
    from lensborn.datasets.pictures import (  # noqa: PLC0415
        PictureSetError,
        pictures_of_folder,
        pictures_of_table,
    )

    pictures = pictures_of_table(table) if table else []
    given: list[tuple[Label, list[str]]] = [("real", real or []), ("fake", fake or [])]
    for label, options in given:
        for option in options:
            name, separator, folder = option.partition("=")
            if not (name and separator and folder):
                raise PictureSetError(f"--{label} {option}: write NAME=DIR")
            pictures += pictures_of_folder(name, Path(folder), label)
    return pictures


def command(
    verb: str,
    words: Sequence[str],
    real: list[str] | None,
    fake: list[str] | None,
    table: Path | None,
    seed: int,
    limit: int | None,
) -> str:
    """The command with folders left out: a manifest names sets, not the machine they lay on."""
    line = ["lensborn", verb, *words]
    for label, options in (("--real", real), ("--fake", fake)):
        for option in options or []:
            line += [label, option.partition("=")[0] + "=DIR"]
    line += ["--table", table.name] if table else []
    line += ["--seed", str(seed)] + (["--limit", str(limit)] if limit else [])
    return shlex.join(line)


def without_folder(spec: str) -> str:
    """A detector or encoder as a manifest names it: without the folder that its file lies in."""
    head, separator, path = spec.rpartition(":") if "=" in spec else ("", "", spec)
    return f"{head}{separator}{Path(path).name}"


def encoder_contestant(spec: str) -> "Contestant":
    """The frozen encoder of an option --encoder NAME=KIND:PATH. Raises ContestantError."""
    from lensborn.bench.contestants import ContestantError, EncoderContestant  # noqa: PLC0415
    from lensborn.bench.extractors import load_extractor  # noqa: PLC0415

    name, _, source = spec.partition("=")
    kind, _, path = source.partition(":")
    if not (name and kind and path):
        raise ContestantError(f"--encoder {spec}: write NAME=KIND:PATH, as clip=clip:ViT-B-16.safetensors")
    try:
        extractor = load_extractor(kind, Path(path))
    except ValueError as error:
        raise ContestantError(f"--encoder {name}: {error}") from error
    return EncoderContestant(name, extractor.sha256, extractor, kind, texture_dim=extractor.texture_dim)


def _print(tables: "Tables") -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table as Grid  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from lensborn.bench import report  # noqa: PLC0415
    from lensborn.report import printable  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for table in report.printed_tables(tables):
        console.print(Text(table.title, style="bold"))
        grid = Grid(*table.header, box=None, header_style="bold", pad_edge=False)
        for row in table.rows:
            grid.add_row(*(Text(printable(cell)) for cell in row))
        console.print(grid)
        console.print(Text(table.note.replace("**", "")))
