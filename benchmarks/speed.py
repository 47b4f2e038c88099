"""How fast detection is, beside the reference approach and beside its own limit; prints Markdown.

    python benchmarks/speed.py [--model BUNDLE] [--pictures 400] [--rounds 5] [--reference 60] [--repeats 200]

Pictures are made from the portraits of examples/: 256 to 1024 px, mirrored, recompressed, one face each. Compared
are, taking turns in one process, so that a busy machine slows all:

- detection of the whole folder by `Detector.detect_many`;
- the reference approach, as the code of papers goes: a ResNet-50 (random weights, which take as long as trained
  ones) in torch, eager, float32, a picture at a time, resized whole to 224 px, and scikit-learn's GaussianMixture;
- the limit: the networks of the bundle alone on crops that are ready, an input at a time as in detection;
- the first network in batches of 32 on all cores, to see whether batches were faster.

Then one warm picture of 1024 px that is alone, on all cores, the start of the command line on one picture (files in
the system's cache), peak memory of that command, and where the time of a picture goes on one core. Needs the extra
`train`; peak memory needs Linux.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import print_table, row, timed, title
from PIL import Image, ImageOps
from sklearn.mixture import GaussianMixture

from lensborn import defaults
from lensborn.bundle import SHIPPED
from lensborn.detector import Detector, PhotoFaces, read_faces
from lensborn.faces import FaceFinder, crop_face, crop_square
from lensborn.graph import core, cores
from lensborn.photo import read_photo
from lensborn.pretext.model import Encoder

EXAMPLES = Path(__file__).parent.parent / "examples"
PORTRAITS = ("generated-man.jpg", "generated-woman.jpg", "portrait-fujifilm-x-t10.jpg")
SIDES = (256, 1024)
BATCH = 32
DETECT = "from lensborn.cli import main; main()"
MEASURED = f"""
import pathlib, sys
try:
    {DETECT}
finally:
    print(pathlib.Path("/proc/self/status").read_text(), file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--reference", type=int, default=60, help="pictures a round for the reference approach"
    )
    parser.add_argument("--repeats", type=int, default=200, help="of one warm picture")
    parser.add_argument("--starts", type=int, default=7)
    arguments = parser.parse_args()
    detector = Detector.load(arguments.model)
    print(title(detector))
    with tempfile.TemporaryDirectory() as name:
        files = write_portraits(Path(name), arguments.pictures)
        rows = throughput(detector, files, arguments.rounds, arguments.reference)
        rows += latency(detector, arguments.repeats)
        rows += starts(arguments.model, Path(name), arguments.starts)
        print_table(("measure", "value", "lowest to highest"), rows)
        print_table(("part of a picture", "ms on one core", "share"), parts(detector, files))


def write_portraits(folder: Path, number: int) -> list[Path]:
    """So many JPEGs of one face each: sides between SIDES, evenly on a logarithmic scale, quality 75 to 95."""
    rng = np.random.default_rng(0)
    files = []
    for index in range(number):
        side = int(np.exp(rng.uniform(*np.log(SIDES))))
        with Image.open(EXAMPLES / PORTRAITS[index % len(PORTRAITS)]) as image:
            picture = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        files.append(folder / f"{index:05}.jpg")
        picture.save(files[-1], quality=int(rng.integers(75, 96)), subsampling=int(rng.choice([0, 2])))
    return files


# --- pictures a second --------------------------------------------------------------------------------


class Reference:
    """The reference approach, warm."""

    def __init__(self) -> None:
        torch.set_num_threads(cores())
        self.encoder = Encoder("resnet50").eval()
        rng = np.random.default_rng(0)
        features = rng.normal(size=(50 * defaults.N_COMPONENTS, defaults.FEATURE_DIM)).astype(np.float32)
        self.mixture = GaussianMixture(
            defaults.N_COMPONENTS, reg_covar=1.0, max_iter=1, init_params="random_from_data", random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one step of EM is enough to have the shapes
            self.mixture.fit(features)

    @torch.no_grad()
    def score(self, path: Path) -> float:
        """The score of a picture."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
        crop = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))
        return -float(self.mixture.score_samples(self.encoder(crop).numpy())[0])


def throughput(
    detector: Detector, files: Sequence[Path], rounds: int, n_reference: int
) -> list[tuple[str, str, str]]:
    """Pictures a second of each way, and the ratios, as rows of the table."""
    faces = list(read_faces(files, detector.preprocessing, detector.known))
    assert all(len(photo.faces) == 1 for photo in faces), "every picture shall have one face"
    reference, some = Reference(), files[:: max(len(files) // n_reference, 1)][:n_reference]
    crops, patches = stacked(faces)
    batches = batched(detector, crops)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "detection": (len(files), lambda: list(detector.detect_many(files))),
        "reference approach": (len(some), lambda: [reference.score(path) for path in some]),
        "limit: networks alone": (len(files), lambda: networks_alone(detector, crops, patches)),
        "first network alone": (len(files), lambda: detector.encoder.encode(crops)),
        f"first network alone, batches of {BATCH}": (len(crops) // BATCH * BATCH, batches),
    }
    rates: dict[str, list[float]] = defaultdict(list)
    for round_ in range(rounds + 1):
        for name, (number, work) in ways.items():
            seconds = timed(work)
            if round_:  # the first is for warming up
                rates[name].append(number / seconds)
    rows = [row(f"{name}, pictures/s", values, ".1f") for name, values in rates.items()]
    for name, unit, factor in (("reference approach", " times", 1), ("limit: networks alone", " %", 100)):
        ratios = [factor * a / b for a, b in zip(rates["detection"], rates[name], strict=True)]
        rows.append(row(f"detection over {name}", ratios, ".1f", unit))
    return rows


def stacked(faces: Sequence[PhotoFaces]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
    """Crops and patches of all faces."""
    patches = [photo.patches for photo in faces if photo.patches is not None]
    return np.concatenate([photo.crops for photo in faces]), np.concatenate(patches) if patches else None


def networks_alone(
    detector: Detector, crops: npt.NDArray[np.uint8], patches: npt.NDArray[np.uint8] | None
) -> None:
    """What the networks have to do for so many faces, and nothing else."""
    detector.encoder.encode(crops)
    if detector.known is not None and patches is not None:
        detector.known.encoder.encode(patches)


def batched(detector: Detector, crops: npt.NDArray[np.uint8]) -> Callable[[], None]:
    """The first network on batches, each on all cores."""
    graph = core().read_model(detector.encoder_export.xml)
    graph.reshape([BATCH, 3, detector.encoder.size, detector.encoder.size])
    config = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": cores()}
    request = core().compile_model(graph, "CPU", config).create_infer_request()

    def run() -> None:
        for start in range(0, len(crops) // BATCH * BATCH, BATCH):
            batch = crops[start : start + BATCH].transpose(0, 3, 1, 2)
            request.infer({0: np.ascontiguousarray(batch, dtype=np.float32)}, share_inputs=True)

    return run


# --- one picture --------------------------------------------------------------------------------------


def latency(detector: Detector, repeats: int) -> list[tuple[str, str, str]]:
    """Milliseconds of one warm picture of 1024 px that is alone."""
    path = EXAMPLES / PORTRAITS[0]
    milliseconds = [1000 * timed(lambda: detector.detect(path)) for _ in range(repeats + 10)][10:]
    spread = f"{min(milliseconds):.1f} to {max(milliseconds):.1f}"
    middle, late = np.percentile(milliseconds, [50, 95])
    return [
        ("one warm picture of 1024 px, median, ms", f"{middle:.1f}", spread),
        ("the same, 95th percentile, ms", f"{late:.1f}", ""),
    ]


def starts(model: Path, folder: Path, repeats: int) -> list[tuple[str, str, str]]:
    """Seconds and peak memory of the command line, on one picture and on all."""
    options = ["detect", "--json", "--model", model]
    one = EXAMPLES / PORTRAITS[0]
    seconds = [timed(lambda: in_a_process(DETECT, *options, one)) for _ in range(repeats + 1)][1:]
    peaks = [peak_mib(in_a_process(MEASURED, *options, paths)) for paths in (one, folder)]
    return [
        row("`lensborn detect` on one picture, from the start, s", seconds, ".2f"),
        row("peak memory of that, MiB", peaks[:1], ".0f"),
        row("peak memory of `lensborn detect` on all pictures, MiB", peaks[1:], ".0f"),
    ]


def in_a_process(code: str, *arguments: object) -> str:
    """What a program says on standard error."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
    return done.stderr


def peak_mib(status: str) -> float:
    """The peak that the system wrote down for a process; what `getrusage` says counts its parent, too."""
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def parts(detector: Detector, files: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    """Where the time of a picture goes, one after the other on one core."""
    finder, known, scale = FaceFinder(), detector.known, detector.preprocessing.crop_scale
    seconds: dict[str, float] = defaultdict(float)

    def clocked(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        seconds[name] += time.perf_counter() - began
        return result

    for path in files:
        photo = clocked("decode", lambda path=path: read_photo(path))
        faces = clocked("find the face", lambda photo=photo: finder.find(photo.pixels))
        box = faces[0].box
        crop = clocked("crop", lambda p=photo, b=box: crop_face(p.pixels, b, detector.encoder.size, scale))
        features = clocked("first network", lambda crop=crop: detector.encoder.encode(crop[None]))
        clocked("its score", lambda features=features: detector.score_features(features))
        if known is not None:
            side = crop_square(box, photo.width, photo.height, scale)[2]
            patches = clocked(
                "patch", lambda p=photo, b=box, c=crop: known.patches(p.pixels, [b], scale, c[None])
            )
            look = clocked("known channel", lambda p=patches, s=side: known.look_at(p, [s]))
            clocked("its score and p-value", lambda look=look, first=features: known.judge(look, first))
    whole = timed(lambda: [detector.detect(path, alone=False) for path in files])
    for name, value in seconds.items():
        yield name, f"{1000 * value / len(files):.2f}", f"{100 * value / whole:.0f} %"
    yield "`Detector.detect`, all of it", f"{1000 * whole / len(files):.2f}", "100 %"


if __name__ == "__main__":
    main()
