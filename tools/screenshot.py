"""Draws docs/detect.svg: what `lensborn detect` shows in a terminal, colours and all.

    python tools/screenshot.py [--model BUNDLE]

The command runs on a pseudo-terminal, so the picture cannot differ from the output.
"""

import argparse
import io
import os
import pty
import re
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
COLUMNS = 144
NAMES = ("portrait-fujifilm-x-t10", "generated-man", "generated-woman")
COMMAND = ("lensborn", "detect", *(f"examples/{name}.jpg" for name in NAMES))
RUN = "from lensborn.cli import main; main()"


def terminal_output(command: list[str]) -> str:
    """What a command writes to a terminal of COLUMNS columns, escape sequences included."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, COLUMNS))
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(  # noqa: S603 - the command is this project's own
        command, cwd=ROOT, env=environment, stdout=slave, stderr=subprocess.DEVNULL
    ) as process:
        os.close(slave)
        chunks = []
        with suppress(OSError):  # how Linux says that the other end was closed
            while chunk := os.read(master, 65536):
                chunks.append(chunk)
    os.close(master)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}: run it to see why")
    return b"".join(chunks).decode().replace("\r\n", "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a bundle; without it, the one shipped")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "detect.svg")
    arguments = parser.parse_args()
    model = ["--model", str(arguments.model.resolve())] if arguments.model else []

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ ", "dim") + Text(" ".join(COMMAND), "bold"))
    console.print(Text.from_ansi(terminal_output([sys.executable, "-c", RUN, *COMMAND[1:], *model])))
    svg = console.export_svg(title="lensborn", unique_id="lensborn")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # they would be fetched from elsewhere
    arguments.out.write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
