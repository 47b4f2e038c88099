"""Progress of long work: a bar with its rate and the time left, on standard error where that is a terminal."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def tracked(results: Iterator[T], total: int, description: str) -> Iterator[T]:
    """Pass `results` on, with a bar that counts them up to `total`."""
    if not sys.stderr.isatty():  # then rich need not be loaded
        yield from results
        return
    with progress_bar() as bar:
        yield from bar.track(results, total, description=description)


def progress_bar(*, shown: bool = True) -> "Progress":
    """A bar with rate and time left on standard error where that is a terminal, and it is to be `shown`."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text  # noqa: PLC0415

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        speed_estimate_period=600,  # s, since a step may take longer than rich's 30
        disable=not (shown and sys.stderr.isatty()),
    )
