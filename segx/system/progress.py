"""Telling a person what a long command is doing: a bar with ETA on a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol, TextIO

_PLAIN_INTERVAL_S = 15.0
# Drawing the bar takes a millisecond or two of a processor that others need.
_REFRESHES_PER_S = 4


class Progress(Protocol):
    """What a long job says of itself."""

    def say(self, text: str) -> None:
        """What it is doing now."""
        ...

    def expect(self, total: float) -> None:
        """How much work there is, in any unit."""
        ...

    def reach(self, done: float, text: str = "") -> None:
        """How much of it is done, and how it stands, in words."""
        ...

    def warn(self, text: str) -> None:
        """What went wrong with a part of it, and stays on the screen."""
        ...


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def expect(self, total: float) -> None:
        """Nothing."""

    def reach(self, done: float, text: str = "") -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""


class PlainLines:
    """One line per step, for logs; now and then how far it is."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last = ""
        self._total = 0.0
        self._begun = self._told = clock()

    def say(self, text: str) -> None:
        """A line, unless it repeats the last one."""
        if text != self._last:
            print(text, file=self._stream, flush=True)
            self._last = text

    def expect(self, total: float) -> None:
        """The work begins now."""
        self._total = total
        self._begun = self._told = self._clock()

    def reach(self, done: float, text: str = "") -> None:
        """A line with the time that is left where that is known, but not too often."""
        now = self._clock()
        if now - self._told < _PLAIN_INTERVAL_S:
            return
        known = []
        if 0 < done < self._total:
            left_s = (now - self._begun) * (self._total / done - 1)
            known = [f"{done / self._total:.0%} done, about {_duration(left_s)} left"]
        if line := "; ".join([*known, *filter(None, (text,))]):
            self._told = now
            self.say(line)

    def warn(self, text: str) -> None:
        """A line."""
        print(text, file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class Work:
    """Adds the parts of a job up for one bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._amounts: dict[Hashable, float] = {}
        self._fractions: dict[Hashable, float] = {}

    def expect(self, part: Hashable, amount: float) -> None:
        """A part, and how much work it is, in any unit that is the same for all."""
        self._amounts[part] = amount
        self._progress.expect(sum(self._amounts.values()))

    def reach(self, part: Hashable, fraction: float) -> None:
        """How much of a part is done, 0 to 1; what was not expected counts for nothing."""
        self._fractions[part] = fraction
        self._progress.reach(sum(amount * self._fractions.get(key, 0.0) for key, amount in self._amounts.items()))


@contextlib.contextmanager
def progress_on(stream: TextIO = sys.stderr) -> Iterator[Progress]:
    """A bar where ``stream`` is a terminal, else plain lines."""
    if not stream.isatty():
        yield PlainLines(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(file=stream), transient=True, refresh_per_second=_REFRESHES_PER_S) as bar:
        task = bar.add_task("starting", total=None)

        class Terminal:
            def say(self, text: str) -> None:
                bar.update(task, description=text)

            def expect(self, total: float) -> None:
                bar.reset(task, total=total)

            def reach(self, done: float, text: str = "") -> None:
                bar.update(task, completed=done, description=text or None)

            def warn(self, text: str) -> None:
                bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield Terminal()
