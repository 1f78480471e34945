"""Damaged variants of files, the same on every run."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from segx.errors import SegxError

# How many variants of each kind a test tries.
few_or_many = pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])

_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
_MISSING: Any = object()
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 1e308, float("nan"), float("-inf"), "", "x", "\0", "\ud800", "a\nb", _MISSING),
    *([], {}, [None], ["x"], [[]], {"a": 1}),
)
_MOST_GROWTH_BYTES = 2**30
_LONGEST_MESSAGE = 1000


def damaged(data: bytes, count: int) -> Iterator[bytes]:
    """Yield variants of a file: flipped bits, wrong numbers, parts that are cut off, missing, doubled or added."""
    rng = random.Random(len(data))
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            # Most of what a reader relies on stands at the beginning.
            at = rng.randrange(min(len(changed), rng.choice((32, 128, len(data)))) or 1)
            length = rng.randrange(1, 40)
            size = rng.choice((1, 2, 4, 8))
            number = (rng.choice(_NUMBERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))
            match rng.randrange(7):
                case 0:
                    changed[at : at + 1] = bytes((b ^ 1 << rng.randrange(8)) for b in changed[at : at + 1])
                case 1:
                    changed[at : at + size] = number
                case 2:
                    del changed[at:]
                case 3:
                    del changed[at : at + length]
                case 4:
                    changed[at:at] = rng.randbytes(length)
                case 5:
                    changed[at:at] = changed[at : at + length]
                case 6:
                    changed[at : at + length] = bytes(length)
        yield bytes(changed)


def damaged_json(data: bytes, count: int) -> Iterator[bytes]:
    """Yield variants of a JSON file: damaged as any file, with values of wrong types, and deep nesting."""
    yield b"[" * 100_000
    rng = random.Random(len(data))
    places = list(_places(json.loads(data)))
    others = damaged(data, count)
    for number in range(count):
        if number % 3 == 0:
            yield next(others)
            continue
        values = json.loads(data)
        *path, last = rng.choice(places)
        inner = values
        for key in path:
            inner = inner[key]
        if (value := rng.choice(_VALUES)) is _MISSING:
            del inner[last]
        else:
            inner[last] = value
        yield json.dumps(values).encode()


def _places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value, of a list to the first ones."""
    for key, inner in value.items() if isinstance(value, dict) else list(enumerate(value))[:3]:
        yield (key,)
        if isinstance(inner, dict | list):
            yield from ((key, *rest) for rest in _places(inner))


def read_all(variants: Iterator[bytes], *readers: Callable[[bytes], object]) -> None:
    """Read every variant: a reader returns or raises a short ``SegxError``, in bounded memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in variants:
        for read in readers:
            try:
                read(data)
            except SegxError as error:
                if len(error.message) > _LONGEST_MESSAGE:
                    raise
            except BaseException as error:
                error.add_note(f"the file: {data[:4000]!r}")
                raise
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < _MOST_GROWTH_BYTES
