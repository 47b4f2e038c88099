"""Speed of a scan: files a second with the model, and what listing, joining and writing cost without it.

    python benchmarks/scan_speed.py [--pictures 300] [--side 512] [--files 200000 ...]

The first part scans portraits cut from the examples; the second lists that many empty files, "judges" them by an
engine that does nothing, and scans them again with nothing to do. Peak memory is that of the whole process so far.
Prints Markdown.
"""

import argparse
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import print_table, timed, title
from PIL import Image

from lensborn.detector import CAMERA_KEYS, Detection, Detector, FaceVerdict, ModelInfo
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
    parser.add_argument("--files", type=int, nargs="+", default=[200_000])
    arguments = parser.parse_args()
    detector = Detector.load()
    print(title(detector, "openvino", "pyarrow"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        portraits = folder / "portraits"
        write_portraits(portraits, arguments.pictures, arguments.side)
        next(detector.detect_many([EXAMPLES / "generated-man.jpg"]))  # what a first picture costs
        rows = [scanned(f"portraits of {arguments.side} px", portraits, on_this_machine(detector), detector)]
        for number in arguments.files:
            write_empty_files(empty := folder / str(number), number)
            for what in (
                "listed, joined and written, without judging",
                "the same scan again, with nothing to do",
            ):
                rows.append(scanned(what, empty, judging_nothing(detector.info), detector))
    print_table(("scan", "files", "files/s", "peak memory, MiB"), rows)


def scanned(what: str, pictures: Path, engine: Engine, detector: Detector) -> tuple[str, str, str, str]:
    """A row of the table; results stay beside the pictures, so that a second scan goes on with them."""
    files = sum(1 for _ in pictures.rglob("*.jpg"))
    seconds = timed(lambda: run(pictures, pictures.with_name(f"{pictures.name}-out"), engine, detector))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return what, f"{files:,}", f"{files / seconds:,.0f}", f"{peak:.0f}"


def run(pictures: Path, out: Path, engine: Engine, detector: Detector) -> None:
    roots = checked_roots([str(pictures)])
    settings = settings_of(roots, Filters(), detector.info)
    with Results.opened(out, settings) as results:
        scan(results, roots, Filters(), engine, settings, rate=0.1)


def judging_nothing(info: ModelInfo) -> Engine:
    """Every file has one face, always the same."""
    face = FaceVerdict((1.0, 2.0, 90.0, 90.0), 1000.0, 0.5, None, 0.5, "photographic", ("within the range",))

    def engine(entries: Iterator[Entry]) -> Iterator[tuple[int, list[Row]]]:
        for entry in entries:
            camera = dict.fromkeys(CAMERA_KEYS)
            yield 1, rows_of(entry, Detection(entry.path, "ok", None, 100, 100, camera, (face,), info))

    return engine


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
