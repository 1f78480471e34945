"""What all inputs have in common, and the simplest of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from segx.predict.item import Item, printable


class Inputs(Protocol):
    """A lazy sequence of images; iterated once, by one thread."""

    @property
    def source(self) -> str:
        """What it is, for messages."""
        ...

    @property
    def count(self) -> int | None:
        """How many items there are; None where that is not known (a stream), or not yet."""
        ...

    def __iter__(self) -> Iterator[Item]:
        """The items, in an order that is the same every time.

        Raises:
            ImageError: there is none.
        """
        ...


class OneImage:
    """A single image file."""

    count = 1

    def __init__(self, path: Path) -> None:
        self._path = path
        self.source = printable(str(path))

    def __iter__(self) -> Iterator[Item]:
        yield Item(self._path.name, self._path)
