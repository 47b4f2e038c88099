"""`lensborn paper`: the experiments of the method's paper, on the user's data and encoders."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lensborn import defaults
from lensborn.cli.bench import (
    Data,
    Fake,
    Layout,
    Limit,
    Real,
    Seed,
    Table,
    command,
    encoder_contestant,
    given_pictures,
    usage_errors,
    without_folder,
)
from lensborn.cli.detect import check_share
from lensborn.cli.progress import progress_bar


class Experiment(StrEnum):
    """Those of Zou et al. 2025."""

    TABLE1 = "table1"
    TABLE2 = "table2"
    TABLE3 = "table3"
    FIG4 = "fig4"
    FIG5 = "fig5"


class ConditionName(StrEnum):
    """Conditions of lensborn.bench.protocols that the experiments make sense in."""

    PUBLISHED = "published"
    EQUALISED_192 = "equalised-192"
    EQUALISED_256 = "equalised-256"
    EQUALISED_512 = "equalised-512"


def paper(
    experiment: Annotated[Experiment, typer.Argument(help="A table or figure of the paper.")],
    data: Data = None,
    *,
    layout: Layout = "auto",
    real: Real = None,
    fake: Fake = None,
    table: Table = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND:PATH",
            help="An encoder, several for table2 and table3; see docs/extractors.md. The shipped one if left out.",
        ),
    ] = None,
    fitted_to: Annotated[
        str, typer.Option(help="The photographic set that the mixture is fitted to, and measured against.")
    ],
    condition: Annotated[
        ConditionName, typer.Option(help="How pictures are shown; the paper's is published.")
    ] = ConditionName.PUBLISHED,
    alpha: Annotated[float, typer.Option(help="Nominal share of photographs flagged.")] = defaults.ALPHA,
    seed: Seed = defaults.SEED,
    limit: Limit = None,
    out: Annotated[Path, typer.Option(help="Folder for report, tables, plot and manifest.")],
) -> None:
    """Do an experiment of Zou et al. 2025 again, on your data and encoders.

    Example:

        lensborn paper table3 faces.csv --fitted-to ffhq --encoder ranking=lensborn:runs/ranking \\
            --encoder manipulation=lensborn:runs/manipulation --encoder both=lensborn:runs/both --out table3

    Exit status: 0 all files read, 1 some could not be (they are counted), 2 wrong usage.
    """
    from lensborn.bench import experiments, plots, report  # noqa: PLC0415
    from lensborn.bench.contestants import SHIPPED, contestant  # noqa: PLC0415
    from lensborn.bench.observing import observe  # noqa: PLC0415
    from lensborn.datasets.layouts import read_pictures  # noqa: PLC0415
    from lensborn.datasets.pictures import PictureSetError, choose  # noqa: PLC0415

    check_share(alpha, "--alpha")
    words = [experiment.value, *(path.name for path in data or [])]
    words += ["--layout", layout] if layout != "auto" else []
    words += [word for spec in encoder or [] for word in ("--encoder", without_folder(spec))]
    words += ["--fitted-to", fitted_to, "--condition", condition.value]
    words += ["--alpha", str(alpha)] if alpha != defaults.ALPHA else []
    with usage_errors():
        if experiment.startswith("fig"):
            plots.check(t_sne=experiment is Experiment.FIG5)
        pictures = [picture for path in data or [] for picture in read_pictures(path, layout)]
        pictures = choose([*pictures, *given_pictures(real, fake, table)], limit, seed)
        known = sorted({picture.set for picture in pictures if picture.label == "real"})
        if fitted_to not in known:
            raise PictureSetError(f"no photographic set {fitted_to}: --fitted-to takes {', '.join(known)}")
        encoders = [encoder_contestant(spec) for spec in encoder or []] or [contestant(SHIPPED, refits=True)]
        with progress_bar() as bar:
            watching, counting = (
                bar.add_task("pictures", total=len(pictures)),
                bar.add_task("rows", total=None),
            )
            observed = observe(
                pictures,
                [condition.value],
                encoders,
                keep=out / "kept",
                progress=lambda count: bar.update(watching, advance=count),
            )
            text = experiments.do(
                experiment.value,
                observed,
                encoders,
                condition.value,
                fitted_to,
                out,
                manifest=report.describe(
                    observed,
                    encoders,
                    command=command("paper", words, real, fake, table, seed, limit),
                    alpha=alpha,
                    seed=seed,
                    reference=True,
                    fitted_to=fitted_to,
                ),
                progress=lambda done, of: bar.update(counting, completed=done, total=of),
            )
    typer.echo(text)
    typer.echo(f"Written to {out}")
    if any("unreadable" in seen.reasons for seen in observed.conditions.values()):
        raise typer.Exit(1)
