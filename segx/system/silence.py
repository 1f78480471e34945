"""Silence for libraries that print, log and warn, and for output that nobody takes."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what libraries print to stdout, log and warn about; their errors still arrive as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class Output(io.FileIO):
    """A standard stream that never raises: what it cannot write is dropped, and the first reason kept."""

    _error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, or drop them."""
        try:
            return super().write(data)
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
    outputs = Output(1, "w", closefd=False), Output(2, "w", closefd=False)
    for output, name in zip(outputs, ("stdout", "stderr"), strict=True):
        before = getattr(sys, name)
        text = io.TextIOWrapper(
            io.BufferedWriter(output),
            encoding=before and before.encoding,
            errors=before and before.errors,
            line_buffering=name == "stderr" or output.isatty(),
        )
        setattr(sys, name, text)
    return outputs
