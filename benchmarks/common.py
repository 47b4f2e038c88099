"""What the benchmarks share: the machine, a clock, other settings of the face finder, and numbers as Markdown."""

import contextlib
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lensborn import faces
from lensborn.detector import Detector
from lensborn.graph import cores


def machine(*packages: str) -> str:
    """Processor, cores, and versions of Python and of the packages that are installed."""
    model = platform.processor() or "unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return f"{cores()} cores of {model}, {', '.join(versions)}"


def title(detector: Detector, *packages: str) -> str:
    """What was measured: the machine, versions and model, and an empty line."""
    sha256 = (detector.info.sha256 or "")[:16]
    on = machine(*(packages or ("openvino", "torch", "nncf")))
    return f"{on}; model `{detector.info.name}`, sha256 `{sha256}…`\n"


def timed(work: Callable[[], object]) -> float:
    """Seconds that work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextlib.contextmanager
def instead(values: Mapping[str, object]) -> Iterator[None]:
    """Other values in the module of the face finder, for a while."""
    before = {name: getattr(faces, name) for name in values}
    for name, value in values.items():
        setattr(faces, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(faces, name, value)


def row(name: str, values: Sequence[float], form: str, unit: str = "") -> tuple[str, str, str]:
    """A name, the median of its values, and their range where there are several."""
    spread = f"{min(values):{form}} to {max(values):{form}}" if len(values) > 1 else ""
    return name, f"{statistics.median(values):{form}}{unit}", spread


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows as a Markdown table, and an empty line."""
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
    print()
