"""Progress on standard error: a live bar on a terminal, a line now and then in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[float, str], None]
"""Report of progress: how much is done in all, and a few words on it."""
Bar = Callable[[str, float], AbstractContextManager[Advance]]
"""Opens a bar, given a title and how much there is to do."""
Say = Callable[[str], object]
"""Prints a line on what is about to happen."""

SECONDS_BETWEEN_LINES = 20.0
"""Least time between two lines in a log file."""


@contextmanager
def silent(title: str, total: float) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda done, words: None


@contextmanager
def visible(title: str, total: float) -> Iterator[Advance]:
    """Show what is done, its rate, and the time left."""
    from rich.console import Console

    console = Console(stderr=True)
    with (_live if console.is_terminal else _lines)(console, title, total) as advance:
        yield advance


@contextmanager
def _live(console: "Console", title: str, total: float) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[words]}"))
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
    ) as progress:
        task = progress.add_task(title, total=total, words="")
        yield lambda done, words: progress.update(task, completed=done, words=words)


@contextmanager
def _lines(console: "Console", title: str, total: float) -> Iterator[Advance]:
    start = last = time.monotonic()
    before: float | None = None  # done by an earlier process, where work is resumed

    def advance(done: float, words: str) -> None:
        nonlocal last, before
        before, now = done if before is None else before, time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = f"{(now - start) * (total - done) / (done - before):.0f} s left" if done > before else ""
            console.print(f"{title}: {done / total:.0%}  {words}  {left}", highlight=False, soft_wrap=True)

    yield advance
    console.print(f"{title}: done in {time.monotonic() - start:.0f} s", highlight=False, soft_wrap=True)


class Count:
    """Turns numbers of images just done into progress with a rate."""

    def __init__(self, advance: Advance, status: Callable[[], str] = str) -> None:
        """status: a few more words on the work, asked for at each advance."""
        self._advance, self._status = advance, status
        self._before, self._done, self._start = 0, 0, time.monotonic()

    def skip(self, n: int) -> None:
        """Count `n` images that were done before, which do not enter the rate."""
        self._before += n
        self._advance(self._before + self._done, "")

    def add(self, n: int) -> None:
        """Count `n` images as done."""
        self._done += n
        seconds = time.monotonic() - self._start
        words = f"{self._done / seconds:,.0f} images/s"
        if self._done < seconds:
            words = f"{seconds / self._done:.1f} s an image" if self._done else ""
        self._advance(self._before + self._done, f"{words}  {self._status()}".strip())
