"""What shortcuts would change in the scores: bfloat16, int8, half decoding, cheaper looks; prints Markdown.

    python benchmarks/precision.py --corpus FOLDER [--model BUNDLE] [--limit N] [--rounds 5]

FOLDER holds faces.csv, a table of labelled pictures (docs/datasets.md), with them. The largest face of each picture
is judged by the networks of the bundle as they are, in bfloat16, and in int8. int8 is calibrated on a quarter of
the photographs of the table, which are not measured; it needs `pip install nncf` and is left out without.

Changes of scores are in standard deviations of the same scores over the photographs. AUCs are those of a generated
set against all photographs of the table, by the first channel, the known channel and both. Some of these pictures
may be known to the model, so that their level says nothing of how good it is: their change counts.

JPEGs whose face crop is twice as large as the networks look at, or larger, are also decoded at half size (Pillow's
`draft`), and the face found, cut and judged in that.

Cheaper looks for faces move the boxes. They matter in pictures that are shrunk before they are looked at, so the
square pictures of each set are laid side by side, as they are, to mosaics of 1024 px; faces of those are judged.
"""

import argparse
import contextlib
import copy
import importlib.util
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import instead, print_table, timed, title
from openvino import AsyncInferQueue
from PIL import Image, ImageOps
from sklearn.metrics import roc_auc_score

from lensborn.bundle import SHIPPED
from lensborn.datasets.corpus import split_of
from lensborn.datasets.pictures import Picture, choose, pictures_of_table
from lensborn.detector import Detector, judge, read_faces
from lensborn.faces import Box, Face, FaceFinder, Pixels, crop_face, crop_faces, crop_square
from lensborn.graph import core, cores
from lensborn.known import KnownGenerator
from lensborn.photo import read_photo

SHARES = (("calibrate", 0.25), ("measure", 0.75))
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # what is not int8 in a quantised network is float32
CHANGES = ("first: typical", "largest", "known: typical", "largest", "verdicts that flip")

Floats = npt.NDArray[np.float64]
Row = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Seen:
    """The largest face of a picture as the networks see it. `side`: of its crop in the picture, px."""

    picture: Picture
    crop: Pixels
    patch: Pixels | None
    side: float


@dataclass(frozen=True, eq=False)
class Judged:
    """What was said of each face (N,). `known`: NaN where that channel is silent. `both`: a p-value."""

    first: Floats
    known: Floats
    both: Floats
    verdicts: npt.NDArray[np.str_]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--limit", type=int, help="pictures a set")
    parser.add_argument("--rounds", type=int, default=5, help="of the measurement of speed")
    arguments = parser.parse_args()
    detector = Detector.load(arguments.model)
    print(title(detector))
    pictures = choose(pictures_of_table(arguments.corpus / "faces.csv"), arguments.limit, seed=0)
    faces = faces_of(pictures, detector)
    calibrating, measured = halves(faces)
    print(f"{len(measured)} faces are measured; int8 is calibrated on {len(calibrating)} others\n")
    detectors = {name: in_precision(detector, name, calibrating) for name in precisions()}
    judged = {name: judge_faces(one, measured) for name, one in detectors.items()}
    print_table(
        ("networks in", "network", "faces/s", "times fp32"), speed_rows(detectors, measured, arguments.rounds)
    )
    print_table(
        ("networks in", *CHANGES),
        [(name, *change(judged["fp32"], judged[name], measured)) for name in list(judged)[1:]],
    )
    print_table(
        ("set", "channel", "AUC, fp32", *(f"change, {n}" for n in list(judged)[1:])),
        auc_rows(judged, measured),
    )
    draft(detector, measured)
    cheaper_looks(detector, pictures)


def precisions() -> list[str]:
    """What can be measured here."""
    return [name for name in HINTS if name != "int8" or importlib.util.find_spec("nncf")]


def faces_of(pictures: Sequence[Picture], detector: Detector) -> list[Seen]:
    """The largest face of each picture that has one."""
    photos = read_faces([picture.path for picture in pictures], detector.preprocessing, detector.known)
    return [
        Seen(picture, photo.crops[0], None if photo.patches is None else photo.patches[0], photo.sides[0])
        for picture, photo in zip(pictures, photos, strict=True)
        if photo.faces
    ]


def halves(faces: Sequence[Seen]) -> tuple[list[Seen], list[Seen]]:
    """The photographs that int8 is calibrated on, and all other pictures."""
    calibrating, measured = [], []
    for face in faces:
        mine = face.picture.label == "real" and split_of(face.picture.name, SHARES) == "calibrate"
        (calibrating if mine else measured).append(face)
    return calibrating, measured


# --- networks -----------------------------------------------------------------------------------------


class Network:
    """A graph of a bundle in one precision; it stands for the `features.Encoder` of the same graph."""

    def __init__(self, xml: Path, precision: str, calibrating: npt.NDArray[np.uint8]) -> None:
        graph = core().read_model(xml)
        self.size = graph.input(0).partial_shape[2].get_length()
        graph.reshape([1, 3, self.size, self.size])
        if precision == "int8":
            graph = quantised(graph, calibrating)
        self.feature_dim = graph.output(0).partial_shape[1].get_length()
        config = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": cores(),
            "INFERENCE_NUM_THREADS": cores(),
        }
        self.queue = AsyncInferQueue(core().compile_model(graph, "CPU", config), cores())

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features (N, D) of crops (N, S, S, 3), each by itself on one core, as `graph.Graph.rows` does it."""
        features = np.empty((len(crops), self.feature_dim), dtype=np.float32)

        def keep(request: object, row: int) -> None:
            features[row] = request.get_output_tensor(0).data[0]  # type: ignore[attr-defined]

        self.queue.set_callback(keep)
        for row, crop in enumerate(crops):
            self.queue.start_async({0: planes_of(crop)}, userdata=row)
        self.queue.wait_all()
        return features


def planes_of(crop: Pixels) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(crop.transpose(2, 0, 1)[None], dtype=np.float32)


def quantised(graph: object, crops: npt.NDArray[np.uint8]) -> object:
    """The graph in int8, its ranges taken from crops."""
    os.environ.setdefault("NNCF_CI", "1")  # else it sends statistics of its use
    with contextlib.redirect_stdout(sys.stderr):
        import nncf  # noqa: PLC0415 - optional

        data = nncf.Dataset([planes_of(crop) for crop in crops])
        return nncf.quantize(graph, data, subset_size=len(crops))


def in_precision(detector: Detector, precision: str, calibrating: Sequence[Seen]) -> Detector:
    """The detector with its networks in another precision, everything else as it was."""
    other = copy.copy(detector)
    crops = np.stack([face.crop for face in calibrating])
    other.encoder = Network(detector.encoder_export.xml, precision, crops)  # type: ignore[assignment]
    if detector.known is not None:
        patches = np.stack([face.patch for face in calibrating if face.patch is not None])
        other.known = copy.copy(detector.known)
        other.known.encoder = Network(detector.known.xml, precision, patches)  # type: ignore[assignment]
    return other


def speed_rows(detectors: dict[str, Detector], faces: Sequence[Seen], rounds: int) -> Iterator[Row]:
    """Faces a second of each network in each precision, taking turns."""
    works = {}
    crops = np.stack([face.crop for face in faces])
    for name, detector in detectors.items():
        works["first", name] = lambda d=detector: d.encoder.encode(crops)
        if detector.known is not None:
            patches = np.stack([face.patch for face in faces if face.patch is not None])
            works["known", name] = lambda d=detector, p=patches: d.known.encoder.encode(p)
    rates = defaultdict(list)
    for round_ in range(rounds + 1):
        for key, work in works.items():
            seconds = timed(work)
            if round_:  # the first is for warming up
                rates[key].append(len(faces) / seconds)
    for (network, name), values in sorted(rates.items(), key=lambda item: item[0][0]):
        ratios = [a / b for a, b in zip(values, rates[network, "fp32"], strict=True)]
        yield name, network, f"{statistics.median(values):.0f}", f"{statistics.median(ratios):.2f}"


# --- scores -------------------------------------------------------------------------------------------


def judge_faces(detector: Detector, faces: Sequence[Seen]) -> Judged:
    """What a detector says of faces."""
    crops, sides = np.stack([face.crop for face in faces]), [face.side for face in faces]
    patches = np.stack([face.patch for face in faces]) if detector.known else None
    found = detector.weigh(crops, patches, sides)
    alpha = detector.info.alpha
    return Judged(
        np.array([one.score for one in found]),
        np.array([one.known.score if isinstance(one.known, KnownGenerator) else np.nan for one in found]),
        np.array([one.combined for one in found]),
        np.array(
            [
                judge(one.p_value, one.combined, side, alpha, one.known)[0]
                for one, side in zip(found, sides, strict=True)
            ]
        ),
    )


def change(before: Judged, after: Judged, faces: Sequence[Seen]) -> Row:
    """The cells of `CHANGES`."""
    real = np.array([face.picture.label == "real" for face in faces])
    cells = []
    for old, new in ((before.first, after.first), (before.known, after.known)):
        heard = np.isfinite(old) & np.isfinite(new)
        if not heard.any():
            cells += ["", ""]
            continue
        moved = np.abs(new - old)[heard] / old[heard & real].std()
        cells += [f"{np.median(moved):.4f}", f"{moved.max():.3f}"]
    flips = int((before.verdicts != after.verdicts).sum())
    return *cells, f"{flips} of {len(faces)} ({100 * flips / len(faces):.2f} %)"


def auc_rows(judged: dict[str, Judged], faces: Sequence[Seen]) -> Iterator[Row]:
    """AUC of each generated set by channel, and its change in each precision."""
    real = np.array([face.picture.label == "real" for face in faces])
    sets = np.array([face.picture.set for face in faces])
    heard = np.isfinite(judged["fp32"].known).any()
    for name in dict.fromkeys(sets[~real].tolist()):
        for channel in ("first", "known", "both") if heard else ("first",):
            scores = {
                p: np.asarray(getattr(one, channel)) * (-1 if channel == "both" else 1)
                for p, one in judged.items()
            }
            of = np.isfinite(scores["fp32"]) & (real | (sets == name))
            if not (of & ~real).any():
                continue
            areas = [roc_auc_score(~real[of], values[of]) for values in scores.values()]
            yield name, channel, f"{areas[0]:.4f}", *(f"{area - areas[0]:+.4f}" for area in areas[1:])


# --- decoding at half size ----------------------------------------------------------------------------


def draft(detector: Detector, faces: Sequence[Seen]) -> None:
    """Judge again what can be decoded at half size without being enlarged afterwards, and print the change."""
    looked_at = max(detector.preprocessing.size, detector.known.look.side if detector.known else 0)
    large = [
        f for f in faces if f.side >= 2 * looked_at and f.picture.path.suffix.lower() in (".jpg", ".jpeg")
    ]
    finder = FaceFinder()
    halved = {face: at_half_size(face, detector, finder) for face in large}
    both = [(face, half) for face, half in halved.items() if half is not None]
    if not both:
        print(f"no JPEG has a face crop of {2 * looked_at} px, twice what the networks look at")
        return
    before, after = (judge_faces(detector, one) for one in zip(*both, strict=True))
    paths = [face.picture.path for face in large]
    seconds = [timed(lambda r=read: [r(path) for path in paths]) for read in (read_photo, read_half)]
    decoding = " to ".join(f"{1000 * value / len(paths):.1f}" for value in seconds)
    print_table(
        ("decoded at half size", "faces lost", "decoding, ms", *CHANGES),
        [
            (
                f"{len(large)} JPEGs",
                str(len(large) - len(both)),
                decoding,
                *change(before, after, [face for face, _ in both]),
            )
        ],
    )


def read_half(path: Path) -> Pixels:
    """The pixels of a JPEG, decoded at half its size."""
    with Image.open(path) as image:
        image.draft("RGB", (image.width // 2, image.height // 2))
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def at_half_size(face: Seen, detector: Detector, finder: FaceFinder) -> Seen | None:
    """The largest face of the same picture decoded at half size; `side` stays that of the whole picture."""
    pixels, scale = read_half(face.picture.path), detector.preprocessing.crop_scale
    found = finder.find(pixels)[:1]
    if not found:
        return None
    crop = crop_face(pixels, found[0].box, detector.preprocessing.size, scale)
    patch = detector.known.patches(pixels, [found[0].box], scale, crop[None])[0] if detector.known else None
    return Seen(face.picture, crop, patch, face.side)


# --- cheaper looks ------------------------------------------------------------------------------------

MOSAIC = 1024  # px
SAME = 0.5  # intersection over union of two boxes of one face


CHEAPER: dict[str, Mapping[str, object]] = {
    "wide look of 512 px": {"WIDE": 512},
    "wide look of 448 px": {"WIDE": 448},
    "padding to multiples of 32 px": {"CELL": 32},
}


def mosaics(pictures: Sequence[Picture]) -> list[tuple[Picture, Pixels]]:
    """Mosaics, each with a picture that it holds, which stands for the others of its set."""
    alike: dict[tuple[str, int], list[tuple[Picture, Pixels]]] = defaultdict(list)
    for picture in pictures:
        pixels = read_photo(picture.path).pixels
        height, width = pixels.shape[:2]
        if height == width and width < MOSAIC and MOSAIC % width == 0:
            alike[picture.set, width].append((picture, pixels))
    found = []
    for (_, side), tiles in alike.items():
        n = MOSAIC // side
        for start in range(0, len(tiles) - n * n + 1, n * n):
            some = [pixels for _, pixels in tiles[start : start + n * n]]
            rows = [np.concatenate(some[row : row + n], axis=1) for row in range(0, n * n, n)]
            found.append((tiles[start][0], np.concatenate(rows)))
    return found


def seen_in(
    mosaic: tuple[Picture, Pixels], detector: Detector, finder: FaceFinder
) -> list[tuple[Face, Seen]]:
    """The faces of a mosaic as the networks see them."""
    (picture, pixels), scale = mosaic, detector.preprocessing.crop_scale
    found = finder.find(pixels)
    boxes = [face.box for face in found]
    crops = crop_faces(pixels, boxes, detector.preprocessing.size, scale)
    patches = detector.known.patches(pixels, boxes, scale, crops) if detector.known else [None] * len(found)
    return [
        (face, Seen(picture, crop, patch, crop_square(face.box, MOSAIC, MOSAIC, scale)[2]))
        for face, crop, patch in zip(found, crops, patches, strict=True)
    ]


def common_share(one: Box, other: Box) -> float:
    """Intersection over union."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = one, other
    common = max(min(ax + aw, bx + bw) - max(ax, bx), 0) * max(min(ay + ah, by + bh) - max(ay, by), 0)
    return common / (aw * ah + bw * bh - common)


def cheaper_looks(detector: Detector, pictures: Sequence[Picture]) -> None:
    """Find the faces of mosaics in each cheaper way, and print the change."""
    finder, several = FaceFinder(), mosaics(pictures)
    if not several:
        print(f"no set has enough square pictures whose side divides {MOSAIC} px")
        return
    before = [seen_in(mosaic, detector, finder) for mosaic in several]
    n_faces, rows = sum(map(len, before)), []
    for name, values in CHEAPER.items():
        with instead(values):
            after = [seen_in(mosaic, detector, finder) for mosaic in several]
        pairs = [
            (seen, again)
            for old, new in zip(before, after, strict=True)
            for face, seen in old
            for other, again in new
            if common_share(face.box, other.box) >= SAME
        ]
        olds, news = (list(side) for side in zip(*pairs, strict=True))
        moved = change(judge_faces(detector, olds), judge_faces(detector, news), olds)
        rows.append((name, f"{n_faces - len(pairs)} of {n_faces}", *moved))
    print_table(("faces found by", "lost", *CHANGES), rows)


if __name__ == "__main__":
    main()
