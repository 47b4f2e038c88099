"""Peak memory of `lensborn scan`, with many files and with very large pictures among them; prints Markdown.

    python benchmarks/scan_memory.py [--files 100000] [--side 96] [--large 10000] [--copies 2]

A portrait of examples/ is shrunk to about --side px and linked until there are --files of it, and enlarged to a
square of --large px in each of the `FORMATS`. Each format is scanned beside a few small pictures, and then all at
once, by the command line in a process of its own. Every file must be judged, and have a face. Memory is
the peak that Linux keeps of a process (VmHWM), so that no moment is missed, added up over all it started.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table, title
from PIL import Image

from lensborn.detector import Detector

PORTRAIT = Path(__file__).parent.parent / "examples" / "generated-man.jpg"
LIMIT_MIB = 1536
LINKS = 30_000  # of one file, where some file systems allow 65,000
FEW = 40
SCAN = (sys.executable, "-c", "from lensborn.cli import main; main()", "scan")

Change = Callable[[Image.Image], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--large", type=int, default=10_000)
    parser.add_argument("--copies", type=int, default=2, help="of each large picture")
    arguments = parser.parse_args()
    print(title(Detector.load(), "openvino", "pillow", "pyarrow"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small(folder / "few", FEW, arguments.side)
        write_small(folder / "small", arguments.files, arguments.side)
        for form in FORMATS:
            write_large(folder / "large" / form, form, arguments.large, arguments.copies)
        megapixels = f"{arguments.large**2 / 1e6:.0f} megapixels"
        rows = [
            measured(f"{form}, {megapixels}", folder / "out" / form, folder / "few", folder / "large" / form)
            for form in FORMATS
        ]
        rows.append(measured(f"{arguments.side} px", folder / "out" / "small", folder / "small"))
        large = [folder / "large" / form for form in FORMATS]
        together = f"{arguments.side} px, and all of the large ones"
        rows.append(measured(together, folder / "out" / "all", *large, folder / "small"))
    print_table(("pictures", "files", "peak memory, MiB", f"below {LIMIT_MIB:,} MiB?"), rows)


def measured(what: str, out: Path, *folders: Path) -> tuple[str, str, str, str]:
    """A row of the table: the scan of these folders."""
    out.parent.mkdir(exist_ok=True)
    peak = peak_mib([*SCAN, *map(str, folders), "--out", str(out)])
    files = json.loads((out / "summary.json").read_text())["files"]
    assert files["unreadable"] == files["no_face"] == 0, f"every picture shall have a face: {files}"
    return what, f"{files['ok']:,}", f"{peak:,.0f}", "yes" if peak < LIMIT_MIB else "no"


# --- pictures -----------------------------------------------------------------------------------------


def turned(image: Image.Image) -> Image.Image:
    """On its side, as a camera that was held upright stores it."""
    return image.transpose(Image.Transpose.ROTATE_90)


def translucent(image: Image.Image) -> Image.Image:
    """With a grey veil of transparency, which no coder leaves out."""
    image = image.convert("RGBA")
    image.putalpha(250)
    return image


def deep(image: Image.Image) -> Image.Image:
    """Grey, in 16 bits."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def with_orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


#: What becomes of the picture, the suffix and the options of its file.
FORMATS: dict[str, tuple[Change, str, dict[str, Any]]] = {
    "JPEG": (Image.Image.copy, ".jpg", {"quality": 90}),
    "JPEG, progressive, full chroma": (
        Image.Image.copy,
        ".jpg",
        {"quality": 90, "progressive": True, "subsampling": 0},
    ),
    "JPEG, turned by EXIF": (turned, ".jpg", {"quality": 90, "exif": with_orientation()}),
    "PNG": (Image.Image.copy, ".png", {"compress_level": 1}),
    "PNG with transparency": (lambda image: image.convert("RGBA"), ".png", {"compress_level": 1}),
    "PNG, grey, 16 bits": (deep, ".png", {"compress_level": 1}),
    "TIFF": (Image.Image.copy, ".tif", {"compression": "tiff_lzw"}),
    "WebP": (Image.Image.copy, ".webp", {"method": 0}),
    "WebP with transparency": (translucent, ".webp", {"method": 0}),
}


def portrait(side: int) -> Image.Image:
    with Image.open(PORTRAIT) as image:
        return image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def write_large(folder: Path, form: str, side: int, copies: int) -> None:
    """So many names of one file."""
    change, suffix, options = FORMATS[form]
    folder.mkdir(parents=True)
    first = folder / f"0{suffix}"
    change(portrait(side)).save(first, **options)
    for index in range(1, copies):
        (folder / f"{index}{suffix}").hardlink_to(first)


def write_small(folder: Path, number: int, side: int) -> None:
    """So many names, a thousand a folder; of every `LINKS` the picture is a pixel larger."""
    for index in range(number):
        below = folder / f"{index // 1000:05}"
        below.mkdir(parents=True, exist_ok=True)
        path = below / f"{index}.jpg"
        if index % LINKS == 0:
            portrait(side + index // LINKS).save(path, quality=90)
            first = path
        else:
            path.hardlink_to(first)


# --- memory -------------------------------------------------------------------------------------------


def peak_mib(command: list[str]) -> float:
    """The peak memory of a command and all that it starts, which must end well."""
    peaks: dict[int, int] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603
        while process.poll() is None:
            for pid in (process.pid, *descendants(process.pid)):
                peaks[pid] = max(peak_kib(pid), peaks.get(pid, 0))
            time.sleep(0.05)
    assert process.returncode == 0, f"the scan ended with {process.returncode}"
    return sum(peaks.values()) / 1024


def descendants(pid: int) -> Iterator[int]:
    """All processes below one, of any depth."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may just have ended
            parent = path.read_text().rpartition(")")[2].split()[1]
            children[int(parent)].append(int(path.parent.name))
    waiting = children[pid]
    while waiting:
        yield (found := waiting.pop())
        waiting += children[found]


def peak_kib(pid: int) -> int:
    """The peak so far of a process; 0 for one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


if __name__ == "__main__":
    main()
