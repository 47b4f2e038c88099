"""Which pictures serve for what in training, calibrating and judging the known channel (`known.py`), and what both
channels say of those that are judged: the data of its tables."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from lensborn import defaults
from lensborn.bench.conditional import delivery_traits
from lensborn.bench.delivery import equalise
from lensborn.datasets.corpus import read_corpus, split_of
from lensborn.datasets.pictures import Picture, pictures_of_table
from lensborn.detector import Detector, judge, read_faces
from lensborn.faces import FaceFinder, crop_face, crop_square
from lensborn.known import KnownGenerator
from lensborn.photo import decode_photo
from lensborn.signs import measured
from lensborn.teach import known_of

UNSEEN = "portraits"
PHOTOS = "photos"
SIDE = 192  # px: every face is measured at this size, too
EQUALISED = f"equalised-{SIDE}"
HALVES = (("calibrate", 0.5), ("judge", 0.5))
Floats = NDArray[np.float64]
Place = Callable[[Picture], Path | None]  # the file of a picture under a condition, where it has one
Conditions = Mapping[str, Place]


@dataclass(frozen=True)
class Look:
    """What both channels say of the largest face of a picture, and how it was delivered (T,)."""

    picture: Picture
    score: float
    p_value: float
    known: KnownGenerator | None
    fused: float  # both channels' evidence, see `KnownHead.fused`; NaN where the known one says nothing
    combined: float  # the smallest alpha at which the face is flagged; NaN where the verdict is "unsure"
    traits: Floats
    signs: Floats  # (2,), see `signs.measured`; NaN where the channel says nothing

    @property
    def unsure(self) -> bool:
        """Whether the face is too small, or has too little fine detail, for a verdict."""
        return bool(np.isnan(self.combined))


SCORES: dict[str, Callable[[Look], float]] = {
    "one-class": lambda look: look.score,
    "known": lambda look: look.known.score if look.known else np.nan,
    "fused": lambda look: look.fused,
}
LEVELS: dict[str, Callable[[Look], float]] = {
    "one-class": lambda look: look.p_value,
    "known": lambda look: look.known.p_value if look.known else 1.0,
    "verdict": lambda look: 1.0 if look.unsure else look.combined,
}


def labelled(folder: Path) -> list[Picture]:
    """The pictures of faces.csv."""
    return pictures_of_table(folder / "faces.csv")


def splits_of(folder: Path, leave_out: Sequence[str]) -> dict[str, list[Picture]]:
    """The labelled pictures by use, after those of training: "train" and, to choose the epoch, "validate".

    Of the others, and of the generated ones in "validate", half calibrate and half are judged, as are all pictures
    of the sets that were left out, and the portraits of sources that nothing was learnt from.
    """
    from lensborn.pretext.known import picture_split  # noqa: PLC0415

    splits: dict[str, list[Picture]] = {"train": [], "calibrate": [], "judge": []}
    for picture in labelled(folder):
        if picture.set == UNSEEN and split_of(picture.source) in ("train", "validate"):
            continue
        split = "judge" if picture.set in (*leave_out, UNSEEN) else str(picture_split(picture))
        if split == "validate":  # photographs help to learn the head, generated faces to calibrate it
            split = "train" if picture.label == "real" else "calibrate"
        if picture.set not in (*leave_out, UNSEEN) and split == (
            "judge" if picture.label == "real" else "calibrate"
        ):
            split = split_of(f"calibrate/{picture.name}", HALVES)
        splits[split].append(picture)
    return splits


def photographs(folder: Path, split: str) -> list[Picture]:
    """The corpus's photographs of a split by source, as labelled pictures."""
    return [
        Picture(crop.file, crop.row["file"], PHOTOS, "real", crop.source)
        for crop in read_corpus(folder)
        if split_of(crop.source) == split
    ]


def placed(pictures: Iterable[Picture], place: Place) -> list[tuple[Picture, Path]]:
    """The pictures that have a file under a condition, with it."""
    return [(picture, path) for picture in pictures if (path := place(picture))]


def equalised(pictures: Iterable[Picture], folder: Path) -> Iterator[tuple[Picture, Path]]:
    """Each picture's largest face at SIDE px as JPEG, in files; those with a face of that side / 1.2 or more."""
    finder = FaceFinder()
    for number, picture in enumerate(pictures):
        pixels = decode_photo(picture.read()).pixels
        faces = finder.find(pixels)
        if faces and crop_square(faces[0].box, pixels.shape[1], pixels.shape[0])[2] * 1.2 >= SIDE:
            path = folder / f"{number:05d}.jpg"
            path.write_bytes(equalise(crop_face(pixels, faces[0].box, SIDE)))
            yield picture, path


def equalised_once(folder: Path, view: Path) -> list[tuple[Picture, Path]]:
    """The equalised files of everything that is ever judged; made by the first call."""
    index = view / "index.json"
    everything = labelled(folder) + photographs(folder, "test") + photographs(folder, "calibrate")
    if not index.exists():
        made = equalised(track(everything, "equalising"), view)
        index.write_text(json.dumps({picture.name: path.name for picture, path in made}))
    names = json.loads(index.read_text())
    return [(picture, view / names[picture.name]) for picture in everything if picture.name in names]


def look(detector: Detector, files: Sequence[tuple[Picture, Path]], what: str) -> list[Look]:
    """What both channels say of the largest face of each file that has one."""
    channel, looks = known_of(detector), []
    photos = read_faces((path for _, path in files), detector.preprocessing, channel)
    for photo, (picture, _) in zip(track(photos, what, total=len(files)), files, strict=True):
        if photo.faces and photo.patches is not None:
            crop, patch, side = photo.crops[:1], photo.patches[:1], photo.sides[:1]
            (found,) = detector.weigh(crop, patch, side)
            known = found.known if isinstance(found.known, KnownGenerator) else None
            signs, fused = np.full(2, np.nan), np.nan
            if known:
                seen = channel.look_at(patch, side).features
                signs = measured(channel.head.signs.known(seen), channel.head.scale.levels)[0]
                fused = float(channel.head.fused([known.score], [found.score])[0])
            verdict, _ = judge(found.p_value, found.combined, side[0], defaults.ALPHA, found.known)
            combined = np.nan if verdict == "unsure" else found.combined
            traits = delivery_traits(patch, side)[0]
            looks.append(Look(picture, found.score, found.p_value, known, fused, combined, traits, signs))
    return looks


def values_of(
    looks: Sequence[Look], sets: Sequence[str], value: Callable[[Look], float] = SCORES["known"]
) -> Floats:
    """A number of the looks at some sets, those that are finite."""
    values = np.array([value(one) for one in looks if one.picture.set in sets])
    return values[np.isfinite(values)]
