"""Memory that the engine's process shares with ours: rows for images going in, rows for logits coming out."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from segx.errors import OutOfMemory, first_line
from segx.runtimes.base import FloatArray

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the memory is divided.

    Attributes:
        slots: how many batches it holds.
        batch_size: rows of each, at most.
        input_shape: (C, H, W) of an image.
        output_shape: (K, H, W) of its logits.
    """

    slots: int
    batch_size: int
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]

    @property
    def inputs_bytes(self) -> int:
        """Of one slot; whole pages, so that every batch begins on one."""
        return _whole_pages(self.batch_size * math.prod(self.input_shape) * _FLOAT_BYTES)

    @property
    def outputs_bytes(self) -> int:
        """Likewise, of the logits."""
        return _whole_pages(self.batch_size * math.prod(self.output_shape) * _FLOAT_BYTES)

    @property
    def total_bytes(self) -> int:
        """All slots."""
        return self.slots * (self.inputs_bytes + self.outputs_bytes)


class Slots:
    """The memory as arrays.

    Attributes:
        inputs: per slot (batch_size, C, H, W) float32.
        outputs: per slot (batch_size, K, H, W) float32.

    Raises:
        OutOfMemory: there is no room for it.
    """

    def __init__(self, layout: Layout, descriptor: int) -> None:
        with _memory_errors(layout.total_bytes):
            memory = mmap.mmap(descriptor, layout.total_bytes)  # unmapped with the last array that shows it
        self.inputs: list[FloatArray] = []
        self.outputs: list[FloatArray] = []
        offset = 0
        for _ in range(layout.slots):
            self.inputs.append(_rows(memory, offset, layout.batch_size, layout.input_shape))
            offset += layout.inputs_bytes
            self.outputs.append(_rows(memory, offset, layout.batch_size, layout.output_shape))
            offset += layout.outputs_bytes


def anonymous_file(size: int) -> int:
    """A descriptor of ``size`` bytes that have no name, so that nothing is left of them however the processes end.

    Not ``multiprocessing.shared_memory``: its files lie in /dev/shm, of which a container has 64 MiB by default.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("segx-batches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


@contextlib.contextmanager
def _memory_errors(size: int) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError) as error:
        raise OutOfMemory(
            f"cannot get {size / 2**20:.0f} MiB for batches: {first_line(error)}", hint="use a smaller batch size"
        ) from error


def _rows(memory: mmap.mmap, offset: int, count: int, shape: tuple[int, int, int]) -> FloatArray:
    values = np.frombuffer(memory, dtype=np.float32, count=count * math.prod(shape), offset=offset)
    return values.reshape(count, *shape)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
