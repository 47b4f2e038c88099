"""Speed of a scan: files a second with the model, and what listing, joining and writing cost without it.

    python benchmarks/scan_speed.py [--pictures 300] [--side 512] [--files 200000]

The first part scans portraits cut from the examples; the second lists that many empty files, "judges" them by an
engine that does nothing, and scans them again with nothing to do. Peak memory is that of the whole process so far.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lensborn.detector import CAMERA_KEYS, Detection, Detector, FaceVerdict, ModelInfo
from lensborn.graph import cores
from lensborn.scan.listing import Entry, Filters, checked_roots
from lensborn.scan.results import Results
from lensborn.scan.run import Engine, on_this_machine, scan, settings_of
from lensborn.scan.table import Row, rows_of

EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--files", type=int, default=200_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_portraits(folder / "portraits", arguments.pictures, arguments.side)
        write_empty_files(folder / "empty", arguments.files)
        detector = Detector.load()
        next(detector.detect_many([EXAMPLES / "generated-man.jpg"]))  # what a first picture costs
        print(f"{cores()} cores, {detector.info.name}, portraits of {arguments.side} px")
        for what, engine, files, pictures in (
            ("scanned", on_this_machine(detector), arguments.pictures, "portraits"),
            ("without judging", judging_nothing(detector.info), arguments.files, "empty"),
            ("nothing to do", judging_nothing(detector.info), arguments.files, "empty"),
        ):
            seconds = timed(
                lambda e=engine, p=pictures: run(folder / p, folder / f"{p}-out", e, detector.info)
            )
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{what}: {files} files in {seconds:.1f} s, {files / seconds:.1f} files/s, peak {peak:.0f} MiB"
            )


def run(pictures: Path, out: Path, engine: Engine, info: ModelInfo) -> None:
    roots = checked_roots([str(pictures)])
    settings = settings_of(roots, Filters(), info)
    with Results.opened(out, settings) as results:
        scan(results, roots, Filters(), engine, settings, share=0.0, rate=0.1)


def judging_nothing(info: ModelInfo) -> Engine:
    """Every file has one face, always the same."""
    face = FaceVerdict((1.0, 2.0, 90.0, 90.0), 1000.0, 0.5, None, "photographic", ("within the range",))

    def engine(entries: Iterator[Entry]) -> Iterator[tuple[int, list[Row]]]:
        for entry in entries:
            camera = dict.fromkeys(CAMERA_KEYS)
            yield 1, rows_of(entry, Detection(entry.path, "ok", None, 100, 100, camera, (face,), info))

    return engine


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_portraits(folder: Path, number: int, side: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        with Image.open(EXAMPLES / ("generated-man.jpg", "generated-woman.jpg")[index % 2]) as image:
            left, top = rng.integers(0, 60, 2)
            cut = image.crop((left, top, left + 960, top + 960)).resize((side, side))
            cut.save(folder / f"{index}.jpg", quality=90)


def write_empty_files(folder: Path, number: int) -> None:
    for index in range(number):
        below = folder / f"{index // 1000:05}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{index}.jpg").touch()


if __name__ == "__main__":
    main()
