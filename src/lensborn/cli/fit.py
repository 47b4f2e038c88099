"""`lensborn fit`: density and calibration on a user's own photographs, for an encoder that exists."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensborn import defaults
from lensborn.cli.detect import check_share
from lensborn.cli.progress import tracked
from lensborn.disk import whole_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lensborn.features import Encoder, EncoderExport, Preprocessing

SAVE_EVERY_S = 30.0  # what an interruption can lose


class GroupBy(StrEnum):
    """What stays on one side of the division into fit and calibration."""

    PHOTO = "photo"
    FOLDER = "folder"


class Density(StrEnum):
    """What is fitted."""

    MIXTURE = "mixture"
    CONTRAST = "contrast"


class Covariance(StrEnum):
    """Shape of the components' covariances."""

    FULL = "full"
    TIED = "tied"
    DIAG = "diag"


MIXTURE_OPTIONS = ("components", "covariance", "dims", "shrinkage", "l2", "seed")


@dataclass(frozen=True)
class Item:
    """One file to take faces from. `group`: its group, or None for the hash of its content.

    `is_crop`: the picture was cut for one face.
    """

    file: Path
    group: str | None
    is_crop: bool

    @property
    def key(self) -> str:
        """Changes with the file, so that what an interrupted run left is used for the same file only."""
        try:
            stat = self.file.stat()
        except OSError:
            return f"{self.file}|missing"
        return f"{self.file}|{stat.st_size}|{stat.st_mtime_ns}|{self.group}|{self.is_crop}"


def fit(
    *,
    context: typer.Context,
    photos: Annotated[
        list[Path],
        typer.Argument(
            metavar="PHOTOS", exists=True, help="Folders of photographs, or corpora (with photos.csv)."
        ),
    ],
    encoder: Annotated[
        Path, typer.Option(metavar="RUN|BUNDLE", help="A finished `lensborn pretrain` run, or a bundle.")
    ],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="The folder to write.")],
    group_by: Annotated[
        GroupBy, typer.Option(help="What stays together in folders; in a corpus it is the source.")
    ] = GroupBy.PHOTO,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="Of corpora, only the sources of this split "
            f"({', '.join(name for name, _ in defaults.SPLITS)}); can be given more than once. "
            "An encoder has seen those of train."
        ),
    ] = None,
    density: Annotated[
        Density | None,
        typer.Option(
            help="mixture: how likely features are; contrast: how long, or how ordinary their textures. "
            "Without it, what suits the encoder: a contrast needs textures."
        ),
    ] = None,
    components: Annotated[
        list[int],
        typer.Option(
            min=1, help="Gaussians in the mixture; given more than once, held-out likelihood chooses."
        ),
    ] = [defaults.N_COMPONENTS],  # noqa: B006  (typer copies it)
    covariance: Annotated[Covariance, typer.Option(help="Shape of the covariances.")] = Covariance.FULL,
    dims: Annotated[int | None, typer.Option(min=1, help="Principal axes to project on first.")] = None,
    shrinkage: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of covariances towards spheres, 0 to 1.")
    ] = 0.0,
    l2: Annotated[bool, typer.Option("--l2", help="Divide each feature by its length first.")] = False,
    alpha: Annotated[
        float, typer.Option(help="Share of photographs that may be flagged, in (0, 1).")
    ] = defaults.ALPHA,
    name: Annotated[str | None, typer.Option(help="Of the model; without it, the folder's.")] = None,
    population: Annotated[
        str | None, typer.Option(help="In words, the photographs that the false-alarm rate is promised for.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Under which the model may be used.")] = "unspecified",
    seed: Annotated[int, typer.Option(help="Of the mixture's start.")] = defaults.SEED,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
) -> None:
    """Fit and calibrate a model on your own photographs, so that the false-alarm rate holds for those.

    Half of the photographs, chosen by hash, fit the density; the other half calibrate it. An interrupted run
    continues where it stopped. The model has no known channel: `lensborn teach --real` calibrates both channels
    of one that has, as the shipped one.

    Example: lensborn fit my-photos/ --encoder runs/first --out runs/my-platform --components 4 --dims 64
    """
    from lensborn.bundle import BundleError  # noqa: PLC0415  (heavy; so --help stays quick)
    from lensborn.datasets.corpus import CorpusError  # noqa: PLC0415
    from lensborn.detector import Detector, density_kind  # noqa: PLC0415
    from lensborn.features import Encoder, read_encoder  # noqa: PLC0415
    from lensborn.scan.errors import cannot_write  # noqa: PLC0415

    name = checked_out(out, name, overwrite=overwrite)
    check_share(alpha, "--alpha")
    if unknown := set(split or ()) - {known for known, _ in defaults.SPLITS}:
        raise typer.BadParameter(f"no such split: {', '.join(sorted(unknown))}", param_hint="--split")
    try:
        export = read_encoder(encoder)
        compiled = Encoder(export.xml)
    except BundleError as error:
        raise typer.BadParameter(str(error), param_hint="--encoder") from error
    try:
        kind = density_kind(density.value if density else None, export)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--density") from error
    if kind == "contrast" and (given := _given(context, MIXTURE_OPTIONS)):
        raise typer.BadParameter(
            "a contrast has no such settings: leave them out, or add --density mixture",
            param_hint=", ".join(f"--{name}" for name in given),
        )
    if dims and dims > export.feature_dim:
        raise typer.BadParameter(
            f"the encoder gives {export.feature_dim} numbers a face: take no more axes", param_hint="--dims"
        )
    try:
        items = [item for folder in photos for item in find_items(folder, group_by, split)]
    except CorpusError as error:
        raise typer.BadParameter(str(error), param_hint="PHOTOS...") from error
    if not items:
        raise typer.BadParameter("no photographs found there", param_hint="PHOTOS...")

    cache = _checked_cache(out)
    try:
        faces = _extract(items, export, compiled, cache)
        _say_read(faces)
        names = ", ".join(path.resolve().name for path in photos)
        described = population or f"{len(faces.digests)} photographs of {names}"
        detector = Detector.fit(
            faces.features,
            faces.groups,
            export,
            name=name,
            population=described,
            licence=licence,
            alpha=alpha,
            density=kind,
            n_components=components if len(components) > 1 else components[0],
            covariance=covariance.value,
            n_dims=dims,
            shrinkage=shrinkage,
            l2_normalise=l2,
            seed=seed,
            seen=(digest[:16] for digest in faces.digests),
        )
        bundle = detector.save(out, overwrite=overwrite)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="PHOTOS...") from error
    except OSError as error:
        typer.echo(f"lensborn fit: {cannot_write(out, error)}", err=True)
        raise typer.Exit(2) from error
    cache.unlink(missing_ok=True)
    typer.echo(f"photographs flagged at alpha = {alpha:g}, with 95 % intervals:")
    for row in bundle.manifest["measured"]:
        typer.echo(
            f"  {row['set']}: {row['flagged']} of {row['faces']}, {100 * row['share']:.1f} % "
            f"({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        )
    typer.echo(f"{bundle.path} is written: lensborn detect --model {out} PATH...")


def checked_out(out: Path, name: str | None = None, *, overwrite: bool) -> str:
    """The name of the bundle to write: that given, or the folder's. BadParameter where it cannot be called that, or
    be written there, which should show before minutes of work, not after."""
    from lensborn.bundle import BundleError, check_target, is_name  # noqa: PLC0415

    try:
        check_target(out, overwrite=overwrite)
    except BundleError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    called = name or out.resolve().name
    if not is_name(called):
        raise typer.BadParameter(
            "give a name of 1 to 100 printable characters", param_hint="--name" if name else "--out"
        )
    return called


def _checked_cache(out: Path) -> Path:
    """Where features are kept until the bundle is written. BadParameter where they cannot be, which should show
    before hours of reading, not after."""
    cache = out.with_name(f".{out.name}.features.npz")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        trial = cache.with_name(f"{cache.name}.new")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise typer.BadParameter(
            f"{error.strerror}: choose a folder that you may write to", param_hint="--out"
        ) from error
    return cache


def _say_read(faces: "Faces") -> None:
    typer.echo(
        f"{len(faces.digests)} files read, {faces.unreadable} unreadable, {len(faces.groups)} faces of "
        f"{defaults.MIN_CROP_PX} px or more in {len(set(faces.groups))} groups",
        err=True,
    )
    if faces.copies:
        typer.echo(f"{faces.copies} more are copies of these: every photograph counts once", err=True)


def _given(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Those of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def find_items(folder: Path, group_by: GroupBy, splits: Sequence[str] | None) -> Iterator[Item]:
    """The files of a corpus (its sources are the groups), or of a folder of photographs.

    Raises CorpusError for a malformed table.
    """
    from lensborn.datasets.corpus import TABLE, read_corpus, split_of  # noqa: PLC0415
    from lensborn.photo import find_photos  # noqa: PLC0415

    # not Path.is_file, which raises where a name is too long, or a folder may not be looked into
    if os.path.isfile(folder / TABLE):  # noqa: PTH113
        for crop in read_corpus(folder):
            if not splits or split_of(crop.source) in splits:
                yield Item(crop.file, crop.source, is_crop=True)
        return
    for file in find_photos([folder]):
        yield Item(file, str(file.parent) if group_by is GroupBy.FOLDER else None, is_crop=False)


def item_crops(
    items: Sequence[Item], preprocessing: "Preprocessing"
) -> Iterator[tuple[Item, "npt.NDArray[np.uint8] | None"]]:
    """For each file, the crops (N, S, S, 3) of its faces large enough to judge; None if unreadable.

    A corpus's crops go the way that `lensborn detect` would take them, or the calibration would not hold for
    it; of each, the face that it was cut for is the largest.
    """
    import numpy as np  # noqa: PLC0415

    from lensborn.detector import read_faces  # noqa: PLC0415

    for item, photo in zip(items, read_faces((item.file for item in items), preprocessing), strict=True):
        large = np.array([side >= defaults.MIN_CROP_PX for side in photo.sides], dtype=bool)
        crops = photo.crops[large]
        yield item, None if photo.error else crops[:1] if item.is_crop else crops


@dataclass(frozen=True)
class Faces:
    """What the files gave. `features`: (N, D), a row a face; `groups`: (N,), what each face belongs to.

    `digests`: SHA-256 of every photograph that was read. `unreadable`, `copies`: numbers of files; a copy has the
    content of a file before it, and its faces are left out: counted twice, they would make p-values look finer.
    """

    features: "npt.NDArray[np.float32]"
    groups: list[str]
    digests: list[str]
    unreadable: int
    copies: int


def _extract(items: Sequence[Item], export: "EncoderExport", encoder: "Encoder", cache: Path) -> Faces:
    """The faces of all items; continued from `cache`. Raises OSError where that cannot be written."""
    import numpy as np  # noqa: PLC0415

    from lensborn.photo import digest_of  # noqa: PLC0415

    fingerprint = export.fingerprint
    done = _read_cache(cache, fingerprint)
    keys = {item: item.key for item in items}
    left = [item for item, key in keys.items() if key not in done]
    if len(left) < len(keys):
        typer.echo(f"continuing: {len(keys) - len(left)} of {len(keys)} files are done", err=True)
    saved = time.monotonic()
    try:
        for item, crops in tracked(item_crops(left, export.preprocessing), len(left), "reading faces"):
            digest = "" if crops is None else digest_of(item.file)
            # Without a digest, the file is gone since it was read.
            done[keys[item]] = (digest, None if crops is None or not digest else encoder.encode(crops))
            if time.monotonic() - saved > SAVE_EVERY_S:
                _write_cache(cache, fingerprint, done)
                saved = time.monotonic()
    finally:
        _write_cache(cache, fingerprint, done)
    parts: dict[str, tuple[str, npt.NDArray[np.float32]]] = {}  # digest -> group, features
    unreadable = 0
    for item in items:
        digest, rows = done[keys[item]]
        if rows is None:
            unreadable += 1
        else:
            parts.setdefault(digest, (digest if item.group is None else item.group, rows))
    return Faces(
        np.concatenate(
            [np.empty((0, encoder.feature_dim), np.float32), *(rows for _, rows in parts.values())]
        ),
        [group for group, rows in parts.values() for _ in rows],
        list(parts),
        unreadable,
        copies=len(items) - unreadable - len(parts),
    )


Done = dict[
    str, tuple[str, "npt.NDArray[np.float32] | None"]
]  # key of a file -> SHA-256 of its content, features (None: unreadable)


def _read_cache(path: Path, fingerprint: str) -> Done:
    """What an interrupted run left, or nothing where it was made by another encoder or is damaged."""
    import numpy as np  # noqa: PLC0415

    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["fingerprint"]) != fingerprint:
                return {}
            counts = arrays["counts"]
            parts = np.split(arrays["features"], np.cumsum(np.maximum(counts, 0))[:-1])
            rows = zip(
                arrays["keys"].tolist(), arrays["digests"].tolist(), counts.tolist(), parts, strict=True
            )
            return {key: (digest, part if count >= 0 else None) for key, digest, count, part in rows}
    except Exception:  # a damaged file may raise anything; it is made anew
        return {}


def _write_cache(path: Path, fingerprint: str, done: Done) -> None:
    """Write whole or not at all. A file without features has the count -1."""
    import numpy as np  # noqa: PLC0415

    features = [rows for _, rows in done.values() if rows is not None and len(rows)]
    if not features:
        return
    arrays: dict[str, Any] = {
        "fingerprint": np.array(fingerprint),
        "keys": np.array(list(done)),
        "digests": np.array([digest for digest, _ in done.values()]),
        "counts": np.array([-1 if rows is None else len(rows) for _, rows in done.values()]),
        "features": np.concatenate(features),
    }
    with whole_file(path) as file:
        np.savez(file, **arrays)
