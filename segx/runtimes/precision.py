"""How torch computes with float32 on CUDA: strictly, or with 10-bit mantissas (TF32)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# As torch starts up. Only this mixture can also be read through its older `allow_tf32` flags.
_AT_START = ("none", "none", "tf32", "tf32", "none")


def set_tf32(allowed: bool) -> None:
    """Allow TF32 in convolutions, matrix products and recurrences on CUDA, or forbid it, all alike.

    Every value on its own: a group's value does not reach one that was set before. Not by the older ``allow_tf32``
    flags: they leave convolutions at 'inherit', which a later global setting turns back on.
    """
    _write(["tf32" if allowed else "ieee"] * len(_AT_START))


def tf32_in_force() -> bool:
    """Whether a convolution on CUDA would use TF32."""
    backends: Any = torch.backends
    return bool(backends.cudnn.conv.fp32_precision == "tf32")


@contextlib.contextmanager
def as_at_start() -> Iterator[None]:
    """The values that torch starts with, for code that still reads the older flags, as ``torch.export`` does.

    Reading those raises once the newer values were set, and that code leaves convolutions at TF32.
    """
    before = [backend.fp32_precision for backend in _backends()]
    _write(_AT_START)
    try:
        yield
    finally:
        _write(before)


def _backends() -> tuple[Any, ...]:
    # Typed as plain modules, which torch replaces by objects with these values.
    backends: Any = torch.backends
    return backends, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul


def _write(values: list[str] | tuple[str, ...]) -> None:
    for backend, value in zip(_backends(), values, strict=True):
        backend.fp32_precision = value
