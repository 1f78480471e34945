"""Progress of a long command on stderr: a bar with ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from typing import TextIO

_PLAIN_INTERVAL_S = 15.0
# Less of a job than this share is no basis for the time that the rest takes.
_BASIS = 0.05
# Drawing the bar takes a millisecond or two of a processor that the workers need.
_REFRESHES_PER_S = 4


class Progress:
    """Where a long job reports its progress; this one shows nothing. Subclasses show what they override."""

    def say(self, text: str) -> None:
        """Show what is being done now."""

    def expect(self, total: float) -> None:
        """Set how much work there is, in any unit."""

    def reach(self, done: float, text: str = "") -> None:
        """Set how much of it is done, with a status text."""

    def warn(self, text: str) -> None:
        """Show a warning that stays on the screen."""


SILENT = Progress()


class Told(Progress):
    """Pass each line, of what is being done and of warnings, to a function."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def say(self, text: str) -> None:
        """Pass a line on."""
        self._tell(text)

    def warn(self, text: str) -> None:
        """Pass a line on."""
        self._tell(text)


class PlainLines(Progress):
    """Print one line per step, for logs, and how far the work is every 15 seconds at most."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last = ""
        self._total = 0.0
        self._started = self._shown = clock()

    def say(self, text: str) -> None:
        """Print a line unless it repeats the last one."""
        if text != self._last:
            self.warn(text)
            self._last = text

    def expect(self, total: float) -> None:
        """Set the amount of work; its clock starts at the first call."""
        if not self._total:
            self._started = self._shown = self._clock()
        self._total = total

    def reach(self, done: float, text: str = "") -> None:
        """Print the share that is done and the time left, if they are known and it is time to."""
        now = self._clock()
        if now - self._shown < _PLAIN_INTERVAL_S:
            return
        known = []
        if 0 < done < self._total:
            left_s = seconds_left(done, self._total, now - self._started)
            left = "" if left_s is None else f", about {duration(left_s)} left"
            known = [f"{done / self._total:.0%} done{left}"]
        if line := "; ".join([*known, *filter(None, (text,))]):
            self._shown = now
            self.say(line)

    def warn(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)


def seconds_left(done: float, total: float, spent_s: float) -> float | None:
    """Return how long the rest of a job takes at the speed so far, or None if too little is done to tell."""
    return spent_s * (total / done - 1) if 0 < _BASIS * total <= done < total else None


def duration(seconds: float) -> str:
    """Return a duration in minutes and seconds: ``4 min 31 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class Work:
    """Add up the parts of a job for one progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._amounts: dict[Hashable, float] = {}
        self._fractions: dict[Hashable, float] = {}

    def expect(self, part: Hashable, amount: float) -> None:
        """Add a part; the unit of ``amount`` is the same for all parts."""
        self._amounts[part] = amount
        self._progress.expect(sum(self._amounts.values()))

    def reach(self, part: Hashable, fraction: float) -> None:
        """Set how much of a part is done, 0 to 1; parts that were not expected are ignored."""
        self._fractions[part] = fraction
        self._progress.reach(sum(amount * self._fractions.get(key, 0.0) for key, amount in self._amounts.items()))


@contextlib.contextmanager
def progress_on(stream: TextIO = sys.stderr) -> Iterator[Progress]:
    """Give a bar if ``stream`` is a terminal that can move its cursor, otherwise plain lines."""
    if not stream.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield PlainLines(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    # On a narrow terminal the description gives way, and nothing else.
    description = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    whole = [Column(no_wrap=True, min_width=columns) for columns in (16, 4, 7, 10)]
    columns = (
        TextColumn("{task.description}", markup=False, table_column=description),
        BarColumn(16, table_column=whole[0]),
        TextColumn("{task.fields[status]}", markup=False, table_column=whole[1]),
        TimeElapsedColumn(table_column=whole[2]),
        TextColumn("{task.fields[left]}", table_column=whole[3]),
    )
    console = Console(file=stream)
    with Bar(*columns, console=console, transient=True, expand=True, refresh_per_second=_REFRESHES_PER_S) as bar:
        task = bar.add_task("starting", total=None, status="", left="")
        started = 0.0

        class Terminal(Progress):
            def say(self, text: str) -> None:
                bar.update(task, description=text)

            def expect(self, total: float) -> None:
                nonlocal started
                started = started or time.monotonic()
                bar.update(task, total=total)

            def reach(self, done: float, text: str = "") -> None:
                total = bar.tasks[0].total or 0.0
                left_s = seconds_left(done, total, time.monotonic() - started)
                left = "" if left_s is None else f"{round(left_s) // 60}:{round(left_s) % 60:02} left"
                bar.update(task, completed=done, status=text or (f"{done / total:.0%}" if total else ""), left=left)

            def warn(self, text: str) -> None:
                bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield Terminal()
