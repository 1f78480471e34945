"""Silence for libraries that print, log and warn, and for output that nobody takes."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what libraries print to stdout, log and warn about; their errors still arrive as exceptions."""
    level = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class _Messages:
    """What libraries in C print to descriptor 2, while ``sys.stderr`` writes to another one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dropping = 0
        self._kept = -1

    def move_stderr(self) -> int:
        """Return another descriptor of what stderr is."""
        self._kept = os.dup(2)
        return self._kept

    @contextlib.contextmanager
    def dropped(self) -> Iterator[None]:
        """Drop them, while any thread is in this; not in programs that use segx, which have their own output there."""
        if self._kept < 0:
            yield
            return
        with self._lock:
            if not self._dropping:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
            self._dropping += 1
        try:
            yield
        finally:
            with self._lock:
                self._dropping -= 1
                if not self._dropping:
                    os.dup2(self._kept, 2)


_MESSAGES = _Messages()
messages_dropped = _MESSAGES.dropped


class Output(io.FileIO):
    """A standard stream that never raises: what it cannot write is dropped, and the first reason kept."""

    _error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, or drop them; wait for the reader of a pipe that is full and does not wait itself."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
            return written
        except OSError as error:
            self._error = self._error or error
            return memoryview(data).nbytes

    @property
    def lost(self) -> str:
        """Return why something could not be written; an empty string if nothing was, or its reader went away."""
        if self._error is None or self._error.errno == errno.EPIPE:
            return ""
        return "it is closed" if self._error.errno == errno.EBADF else str(self._error.strerror)


def replace_outputs() -> tuple[Output, Output]:
    """Make stdout and stderr streams that never raise, and return what is below them.

    A descriptor that is closed is opened again, on a file that takes nothing: another file would get its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDONLY), number)
            os.set_inheritable(number, True)  # noqa: FBT003 - takes no keyword
    outputs = Output(1, "w", closefd=False), Output(_MESSAGES.move_stderr(), "w", closefd=False)
    for output, name in zip(outputs, ("stdout", "stderr"), strict=True):
        before = getattr(sys, name)
        text = io.TextIOWrapper(
            io.BufferedWriter(output),
            encoding=before and before.encoding,
            errors="replace" if name == "stdout" else "backslashreplace",
            line_buffering=name == "stderr" or output.isatty(),
        )
        setattr(sys, name, text)
    return outputs
