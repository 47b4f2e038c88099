"""`lensborn fit`: density and calibration on a user's own photographs, for an encoder that exists."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensborn import defaults
from lensborn.cli.progress import tracked

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
        typer.Argument(metavar="PHOTOS", help="Folders of photographs, or corpora (with photos.csv)."),
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
        typer.Option(help="Gaussians in the mixture; given more than once, held-out likelihood chooses."),
    ] = [defaults.N_COMPONENTS],  # noqa: B006  (typer copies it)
    covariance: Annotated[Covariance, typer.Option(help="Shape of the covariances.")] = Covariance.FULL,
    dims: Annotated[int | None, typer.Option(help="Principal axes to project on first.")] = None,
    shrinkage: Annotated[float, typer.Option(help="Of covariances towards spheres, 0 to 1.")] = 0.0,
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
    continues where it stopped.

    Example: lensborn fit my-photos/ --encoder runs/first --out runs/my-platform --components 4 --dims 64
    """
    from lensborn.bundle import BundleError  # noqa: PLC0415  (heavy; so --help stays quick)
    from lensborn.datasets.corpus import CorpusError  # noqa: PLC0415
    from lensborn.detector import Detector, density_kind  # noqa: PLC0415
    from lensborn.features import Encoder, read_encoder  # noqa: PLC0415
    from lensborn.photo import digest_of  # noqa: PLC0415

    name = checked_out(out, name, overwrite=overwrite)
    if not 0 < alpha < 1:
        raise typer.BadParameter(f"{alpha:g} does not lie between 0 and 1; try 0.05", param_hint="--alpha")
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
    try:
        items = [item for folder in photos for item in find_items(folder, group_by, split)]
    except CorpusError as error:
        raise typer.BadParameter(str(error), param_hint="PHOTOS...") from error
    if not items:
        raise typer.BadParameter("no photographs found there", param_hint="PHOTOS...")

    cache = out.with_name(f".{out.name}.features.npz")
    try:  # before an hour of reading, not after it
        cache.parent.mkdir(parents=True, exist_ok=True)
        trial = cache.with_name(f"{cache.name}.new")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise typer.BadParameter(
            f"{error.strerror}: choose a folder that you may write to", param_hint="--out"
        ) from error
    features, groups, unreadable = _extract(items, export, compiled, cache)
    read = len(items) - unreadable
    typer.echo(
        f"{read} files read, {unreadable} unreadable, {len(groups)} faces of {defaults.MIN_CROP_PX} px "
        f"or more in {len(set(groups))} groups",
        err=True,
    )
    described = population or f"{read} photographs of {', '.join(path.resolve().name for path in photos)}"
    try:
        detector = Detector.fit(
            features,
            groups,
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
            seen=(digest_of(item.file)[:16] for item in items),
        )
        bundle = detector.save(out, overwrite=overwrite)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="PHOTOS...") from error
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

    if (folder / TABLE).is_file():
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


def _extract(
    items: Sequence[Item], export: "EncoderExport", encoder: "Encoder", cache: Path
) -> tuple["npt.NDArray[np.float32]", list[str], int]:
    """Features (N, D), group of each, and the number of unreadable files; continued from `cache`."""
    import numpy as np  # noqa: PLC0415

    fingerprint = export.fingerprint
    done = _read_cache(cache, fingerprint)
    keys = {item: item.key for item in items}
    left = [item for item in items if keys[item] not in done]
    if len(left) < len(items):
        typer.echo(f"continuing: {len(items) - len(left)} of {len(items)} files are done", err=True)
    saved = time.monotonic()
    try:
        for item, crops in tracked(item_crops(left, export.preprocessing), len(left), "reading faces"):
            if crops is None:
                done[keys[item]] = ("", None)
            else:
                done[keys[item]] = (_group(item), encoder.encode(crops))
            if time.monotonic() - saved > SAVE_EVERY_S:
                _write_cache(cache, fingerprint, done)
                saved = time.monotonic()
    finally:
        _write_cache(cache, fingerprint, done)
    parts = [done[keys[item]] for item in items]
    features = [rows for _, rows in parts if rows is not None]
    groups = [group for group, rows in parts if rows is not None for _ in rows]
    whole = np.concatenate([np.empty((0, encoder.feature_dim), np.float32), *features])
    return whole, groups, len(parts) - len(features)


def _group(item: Item) -> str:
    """A copy of a photograph has the same content, so it falls on the same side."""
    if item.group is not None:
        return item.group
    with item.file.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Done = dict[
    str, tuple[str, "npt.NDArray[np.float32] | None"]
]  # key of a file -> group, features (None: unreadable)


def _read_cache(path: Path, fingerprint: str) -> Done:
    """What an interrupted run left, or nothing where it was made by another encoder or is damaged."""
    import zipfile  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["fingerprint"]) != fingerprint:
                return {}
            counts = arrays["counts"]
            parts = np.split(arrays["features"], np.cumsum(np.maximum(counts, 0))[:-1])
            rows = zip(
                arrays["keys"].tolist(), arrays["groups"].tolist(), counts.tolist(), parts, strict=True
            )
            return {key: (group, part if count >= 0 else None) for key, group, count, part in rows}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}


def _write_cache(path: Path, fingerprint: str, done: Done) -> None:
    """Write aside, then rename. A file without features has the count -1."""
    import numpy as np  # noqa: PLC0415

    features = [rows for _, rows in done.values() if rows is not None and len(rows)]
    if not features:
        return
    aside = path.with_name(f"{path.name}.new")
    arrays: dict[str, Any] = {
        "fingerprint": np.array(fingerprint),
        "keys": np.array(list(done)),
        "groups": np.array([group for group, _ in done.values()]),
        "counts": np.array([-1 if rows is None else len(rows) for _, rows in done.values()]),
        "features": np.concatenate(features),
    }
    with aside.open("wb") as file:
        np.savez(file, **arrays)
    aside.replace(path)
