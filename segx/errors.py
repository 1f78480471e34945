"""The exception tree, with the exit code of each class.

SegxError                 1  something failed; `hint` says what to do
├── UsageError            2  an option or argument is invalid
├── CheckpointError       1  weights cannot be read or do not fit the model
├── ImageError            1  an image cannot be read
├── OutputError           1  a file or folder cannot be written
├── ArtifactError         1  an exported file is missing, unknown or out of date
├── ExportError           1  export or its verification failed
├── RuntimeUnavailable    1  a package, device or library is missing
├── InferenceError        1  a runtime failed while running
│   └── OutOfMemory       1  a runtime ran out of memory
├── ResultsError          1  a results file is unreadable or has an unknown version
├── NotComparable         1  two runs differ in more than what is compared
└── GateNotMet            3  a parity or regression gate was not met
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterator


class SegxError(Exception):
    """Base of all errors that segx raises: a line that says what is wrong, and a ``hint`` that says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Default pickling loses keyword-only arguments, and errors are sent between processes.
        return functools.partial(type(self), hint=self.hint), (self.message,), self.__dict__


class UsageError(SegxError):
    """An option or argument is invalid."""

    exit_code = 2


class CheckpointError(SegxError):
    """Weights cannot be read or do not fit the model."""


class ImageError(SegxError):
    """An image cannot be read."""


class OutputError(SegxError):
    """A file or folder cannot be written."""


class ArtifactError(SegxError):
    """An exported file is missing, unknown or out of date."""


class ExportError(SegxError):
    """Export or its verification failed."""


class RuntimeUnavailable(SegxError):
    """A package, device or library that a runtime needs is missing."""


class InferenceError(SegxError):
    """A runtime failed while running."""


class OutOfMemory(InferenceError):
    """A runtime ran out of host or device memory."""


class ResultsError(SegxError):
    """A results file is unreadable or has an unknown version."""


class NotComparable(SegxError):
    """Two runs differ in something that makes them incomparable."""


class GateNotMet(SegxError):
    """A parity or regression gate was not met."""

    exit_code = 3


# As C++, torch, ONNX Runtime, OpenVINO, OpenCV and the C library say it; only some have an exception for it.
_MEMORY_SIGNS = (
    "bad_alloc", "bad allocation", "out of memory", "not enough memory", "can't alloc",
    "Cannot allocate memory", "Failed to allocate", "Insufficient memory",
)  # fmt: skip


def lacks_memory(error: BaseException) -> bool:
    """Return whether memory ran out, by an error or by any that led to it."""
    for each in _chain(error):
        if isinstance(each, (MemoryError, OutOfMemory)) or getattr(each, "errno", None) == errno.ENOMEM:
            return True
        # Errors of segx, and of the system, quote names of files.
        if not isinstance(each, (SegxError, OSError)) and any(sign in str(each) for sign in _MEMORY_SIGNS):
            return True
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 200 characters, or the error's class name if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
