"""Telling a person what a long command is doing: a bar with ETA on a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO


class Progress(Protocol):
    """What a long job says of itself."""

    def say(self, text: str) -> None:
        """What it is doing now."""
        ...

    def expect(self, total: float) -> None:
        """How much work there is, in any unit."""
        ...

    def reach(self, done: float) -> None:
        """How much of it is done."""
        ...


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def expect(self, total: float) -> None:
        """Nothing."""

    def reach(self, done: float) -> None:
        """Nothing."""


class PlainLines:
    """One line per step, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = ""

    def say(self, text: str) -> None:
        """A line, unless it repeats the last one."""
        if text != self._last:
            print(text, file=self._stream, flush=True)
            self._last = text

    def expect(self, total: float) -> None:
        """Nothing: lines have no bar."""

    def reach(self, done: float) -> None:
        """Nothing: lines have no bar."""


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
    with Bar(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        class Terminal:
            def say(self, text: str) -> None:
                bar.update(task, description=text)

            def expect(self, total: float) -> None:
                bar.reset(task, total=total)

            def reach(self, done: float) -> None:
                bar.update(task, completed=done)

        yield Terminal()
