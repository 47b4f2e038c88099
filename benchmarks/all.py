"""Every benchmark of speed, memory and precision, one after the other; writes their tables into the documentation.

    python benchmarks/all.py [--corpus CORPUS] [--only NAME ...] [--quick]

Each is run as its page then says. What is between the marks `<!-- NAME:begin -->` and `<!-- NAME:end -->` of its
page is replaced, once it has ended well; the prose around is for people to keep true. --quick tries them at small
sizes and prints instead. Those that need a corpus (docs/training.md) are left out without one. Give it an idle
machine: at full size it takes an hour or two on two cores.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lensborn.bench.render import write_block

HERE = Path(__file__).parent
SPEED, SCAN = (HERE.parent / "docs" / name for name in ("speed.md", "scan.md"))


@dataclass(frozen=True)
class Benchmark:
    """A program and how it is run. CORPUS stands for the folder given. `quick`: options to try it with."""

    page: Path
    program: str
    options: str
    quick: str

    @property
    def needs_corpus(self) -> bool:
        return "CORPUS" in self.options


#: By the name of their marks.
BENCHMARKS = {
    "speed": Benchmark(
        SPEED,
        "speed.py",
        "--pictures 300 --rounds 3 --reference 40 --repeats 100",
        "--pictures 9 --rounds 1 --reference 2 --repeats 5 --starts 1",
    ),
    "scan-speed": Benchmark(
        SCAN,
        "scan_speed.py",
        "--pictures 300 --files 200000 1000000",
        "--pictures 9 --files 300",
    ),
    "scan-memory": Benchmark(
        SPEED, "scan_memory.py", "--files 100000 --large 10000", "--files 30 --large 2000 --copies 1"
    ),
    "precision": Benchmark(
        SPEED, "precision.py", "--corpus CORPUS --rounds 3", "--corpus CORPUS --limit 60 --rounds 1"
    ),
    "training": Benchmark(
        SPEED,
        "training_speed.py",
        "CORPUS --rounds 3",
        "CORPUS --backbone efficientnet_lite0 --size 64 --batch 8 --rounds 1 --steps 2",
    ),
    "mixture": Benchmark(
        SPEED,
        "mixture.py",
        "--corpus CORPUS --faces 25000",
        "--corpus CORPUS --faces 3000 --held-out 500 --components 2",
    ),
    "mixture-drawn": Benchmark(
        SPEED,
        "mixture.py",
        "--faces 25000",
        "--faces 3000 --held-out 500 --components 2",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.only:
        benchmark = BENCHMARKS[name]
        if benchmark.needs_corpus and not arguments.corpus:
            print(f"{name} is left out: it needs --corpus", file=sys.stderr)
            continue
        options = benchmark.quick if arguments.quick else benchmark.options
        text = printed(benchmark.program, options, arguments.corpus)
        if arguments.quick:
            print(text)
        else:
            write_block(benchmark.page, name, text)
            print(f"{name} is written to {benchmark.page.name}", file=sys.stderr)


def printed(program: str, options: str, corpus: Path | None) -> str:
    """The command as code, and what it prints; it must end well."""
    words = [str(corpus) if word == "CORPUS" else word for word in options.split()]
    command = [sys.executable, str(HERE / program), *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return f"    python benchmarks/{program} {options}\n\n{done.stdout}"


if __name__ == "__main__":
    main()
