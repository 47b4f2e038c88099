"""`lensborn teach`: a user's own generators, for the known channel of a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lensborn.cli.fit import checked_out
from lensborn.cli.progress import tracked

if TYPE_CHECKING:
    from lensborn.detector import Detector
    from lensborn.teach import Lesson

FORMAT_AUC = 0.9  # from which the formats alone are said to tell the sides apart


def teach(
    *,
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="The folder to write.")],
    fake: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Pictures of a generator; can be given more than once."),
    ] = None,
    real: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Photographs of your own platform; can be given more than once."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The model to start from; without it, the shipped.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
) -> None:
    """Teach the known channel a generator, from 30 pictures on, or photographs of your own platform, from 60 on.

    It takes a minute or two. What the model knew before stays known; the first channel does not change. The report
    compares generators before and after on pictures kept apart, and says how many of your photographs were flagged
    before.

    Example: lensborn teach --fake newgen=downloads/newgen --real my-photos --out runs/mine
    """
    from lensborn.detector import Detector, now  # noqa: PLC0415  (heavy; so --help stays quick)
    from lensborn.memory import LEAST_POPULATION  # noqa: PLC0415
    from lensborn.teach import OWN, card_of, card_section, known_of  # noqa: PLC0415
    from lensborn.teach import teach as learn  # noqa: PLC0415

    name = checked_out(out, overwrite=overwrite)
    try:
        detector = Detector.load(base)
        known = known_of(detector)
    except ValueError as error:  # of a bundle, too
        raise typer.BadParameter(str(error), param_hint="--base") from error
    if not (fake or real):
        raise typer.BadParameter("nothing to learn: give --fake NAME=DIR, --real DIR, or both")
    folders = {name: [folder] for name, folder in map(_named, fake or [])}
    if len(folders) < len(fake or []):
        raise typer.BadParameter("a name is given twice: give every generator once", param_hint="--fake")
    if OWN in folders:
        raise typer.BadParameter(f"{OWN!r} is kept for photographs: choose another", param_hint="--fake")
    lessons = [_study(name, places, True, detector) for name, places in folders.items()]
    if real:
        lessons.append(_study(OWN, real, False, detector))
    else:
        typer.echo("warning: without --real, nothing is learnt of your own platform's photographs", err=True)
    _warn_of_format(lessons)
    try:
        channel, report = learn(known, lessons)
        section = card_section(report, channel.head)
        card = card_of(detector.card, name, section)
        taught = detector.with_known(channel, name=name, card=card, created=now())
        bundle = taught.save(out, overwrite=overwrite)
    except ValueError as error:  # LessonError and BundleError, and a head that cannot be learnt
        typer.echo(f"lensborn teach: {error}", err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        reason = f"{error.strerror or error}: free the disk or grant access, and run it again"
        typer.echo(f"lensborn teach: {reason}", err=True)
        raise typer.Exit(2) from error
    typer.echo(section)
    for alarms in report.alarms:
        if alarms.calibrating < LEAST_POPULATION:
            typer.echo(
                f"warning: {alarms.calibrating} of your photographs calibrate, too few to be a population of their "
                f"own, so that they hardly count: give {LEAST_POPULATION} or more",
                err=True,
            )
    smallest = channel.head.smallest_p
    if smallest > known.head.smallest_p:
        typer.echo(
            f"warning: the smallest alpha at which this model can flag a face is {smallest:.2g} now "
            f"({known.head.smallest_p:.2g} before): for a smaller one, give more photographs",
            err=True,
        )
    typer.echo(f"{bundle.path} is written: lensborn detect --model {out} PATH...")


def _named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not folder or not name.isprintable():
        raise typer.BadParameter(
            f"{text!r} is not NAME=DIR, as newgen=downloads/newgen is", param_hint="--fake"
        )
    return name, Path(folder)


def _study(name: str, folders: list[Path], generated: bool, detector: "Detector") -> "Lesson":
    from lensborn.datasets.pictures import files_below  # noqa: PLC0415
    from lensborn.teach import MOST, Lesson, study  # noqa: PLC0415

    hint = "--fake" if generated else "--real"
    for folder in folders:
        if not folder.is_dir():
            raise typer.BadParameter(f"{folder} is not a folder of pictures", param_hint=hint)
    files = [file for folder in folders for file in files_below(folder)]
    if len(files) > MOST:
        typer.echo(f"{name}: {MOST} of {len(files)} pictures are taken, evenly spread", err=True)
        files = [files[number * len(files) // MOST] for number in range(MOST)]
    found = list(tracked(study(files, detector), len(files), f"studying {name}"))
    faces = tuple(face for face in found if face is not None)
    return Lesson(name, generated, faces, len(found) - len(faces))


def _warn_of_format(lessons: "list[Lesson]") -> None:
    """Say where size and coding alone tell generated from real: taught under rough delivery, but measured so."""
    from lensborn.bench.audit import audit, container_features  # noqa: PLC0415

    sides = [
        [face.container for one in lessons if one.generated == kind for face in one.faces] for kind in (0, 1)
    ]
    if not all(sides):
        return
    features = container_features([container for side in sides for container in side])
    interval = audit(features[: len(sides[0])], features[len(sides[0]) :])
    if interval is not None and interval.low > FORMAT_AUC:
        typer.echo(
            f"warning: size and coding of the files alone tell the generated pictures from yours (AUC "
            f"{interval.value:.2f}): learning does not see them, but give both sides in one format where you can",
            err=True,
        )
