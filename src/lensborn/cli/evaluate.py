"""`lensborn evaluate`: how well one model tells generated faces from photographs, on the user's pictures."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lensborn import defaults
from lensborn.cli.bench import Fake, Limit, Real, Seed, Table, command, given_pictures, run, usage_errors


class Channel(StrEnum):
    """What of a model is measured."""

    FIRST = "first"
    KNOWN = "known"
    FUSED = "fused"


class Protocol(StrEnum):
    """Those of `lensborn bench` that one model is commonly measured under."""

    PUBLISHED = "published"
    EQUALISED = "equalised"


def evaluate(
    *,
    real: Real = None,
    fake: Fake = None,
    table: Table = None,
    protocol: Annotated[
        Protocol, typer.Option(help="Files as they are, or every face at one size and one JPEG quality.")
    ] = Protocol.PUBLISHED,
    model: Annotated[Path | None, typer.Option(help="A bundle; the shipped one if left out.")] = None,
    channel: Annotated[
        list[Channel] | None,
        typer.Option(
            help="The first channel, the known one, or both together, by which verdicts are given; can be given "
            "several times; all that the model has if left out."
        ),
    ] = None,
    seed: Seed = defaults.SEED,
    limit: Limit = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables, scores and manifest.")] = None,
) -> None:
    """Measure a model, with its own calibration, on sets of photographs and generated pictures.

    Pictures that the model was made from are left out, and counted; `--channel first` leaves out those of the first
    channel alone.
    `lensborn bench` measures several detectors, under every protocol. Example:

        lensborn evaluate --real ffhq=ffhq/ --fake stylegan=sg/ --protocol equalised --out results

    Exit status: 0 all files read, 1 some could not be (they are counted), 2 wrong usage.
    """
    from lensborn.bench.contestants import channel_of  # noqa: PLC0415
    from lensborn.bench.protocols import conditions_of  # noqa: PLC0415
    from lensborn.detector import Detector  # noqa: PLC0415

    with usage_errors():
        pictures = given_pictures(real, fake, table)
        detector = Detector.load(model)
        channels = channel or ([Channel.FIRST] if detector.known is None else list(Channel))
        words = ["--protocol", protocol.value, "--model", detector.info.name]
        words += [word for name in channel or [] for word in ("--channel", name.value)]
        run(
            pictures,
            [channel_of(detector, name) for name in dict.fromkeys(channels)],
            conditions_of([protocol]),
            alpha=detector.info.alpha,
            seed=seed,
            limit=limit,
            out=out,
            command=command("evaluate", words, real, fake, table, seed, limit),
        )
