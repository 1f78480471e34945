"""Images whose paths stand in a list: a file, a pipe or standard input, read as it comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from segx.errors import ImageError
from segx.masks.image_io import EXTENSIONS
from segx.predict.item import Item, mask_name, printable

_CHUNK_BYTES = 1 << 16
_LONGEST_PATH_BYTES = 1 << 16  # far more than any system takes: without a separator it is no list
_OUTSIDE = "has .. in its path, so that its mask would lie outside the output folder: give its absolute path"


class ListInputs:
    """Paths one per line, or separated by null bytes where there are any; empty ones are passed over.

    Relative paths count from the current directory. Masks get the same relative paths; those of absolute paths get
    all of it without the slash it begins with, as with ``cp --parents``. All paths of one list are of the kind of the
    first, else two masks could meet.

    Args:
        begin: opens the list, once.
        source: what messages call it.
        count: how many paths it has, where that is known.
    """

    def __init__(self, begin: Callable[[], BinaryIO], source: str, count: int | None = None) -> None:
        self._begin = begin
        self.source = source
        self.count = count

    @classmethod
    def of_file(cls, path: Path) -> ListInputs:
        """A list that can be read twice: its paths are counted now.

        Raises:
            ImageError: it cannot be read, or is no list.
        """
        try:
            with path.open("rb") as stream:
                count = sum(1 for _ in _paths(stream, printable(str(path))))
        except OSError as error:
            hint = "check the list's permissions"
            raise ImageError(f"cannot read {printable(str(path))}: {error.strerror}", hint=hint) from error
        return cls(lambda: path.open("rb"), printable(str(path)), count)

    @classmethod
    def of_pipe(cls, path: Path) -> ListInputs:
        """A named pipe, such as a shell's ``<(find …)``."""
        return cls(lambda: path.open("rb"), printable(str(path)))

    @classmethod
    def of_stream(cls, stream: BinaryIO, source: str) -> ListInputs:
        """An open stream."""
        return cls(lambda: stream, source)

    def __iter__(self) -> Iterator[Item]:
        absolute: bool | None = None
        with self._begin() as stream:
            for raw in _paths(stream, self.source):
                path = os.fsdecode(raw)
                if absolute is None:
                    absolute = path.startswith("/")
                yield _item(path, absolute=absolute)
        if absolute is None:
            raise ImageError(f"{self.source} holds no paths", hint="give one path per line")


def _paths(stream: BinaryIO, source: str) -> Iterator[bytes]:
    read = getattr(stream, "read1", stream.read)  # a line of a pipe comes when it is written, not when a block is full
    chunk: bytes = read(_CHUNK_BYTES).removeprefix(b"\xef\xbb\xbf")
    separator = b"\0" if b"\0" in chunk else b"\n"
    rest = b""
    while chunk:
        *whole, rest = (rest + chunk).split(separator)
        if len(rest) > _LONGEST_PATH_BYTES:
            raise ImageError(f"{source} is no list of paths", hint="give one path per line")
        yield from filter(None, (path if separator == b"\0" else path.removesuffix(b"\r") for path in whole))
        chunk = read(_CHUNK_BYTES)
    if rest := rest if separator == b"\0" else rest.removesuffix(b"\r"):
        yield rest


def _item(given: str, *, absolute: bool) -> Item:
    parts = [part for part in given.split("/") if part not in ("", ".")]
    root = "/" if absolute else ""
    relative = "/".join(parts)
    name = root + relative
    if given.startswith("/") != absolute:
        kinds = ("absolute", "relative") if absolute else ("relative", "absolute")
        return Item(given, Path(), fault="is {1} in a list of {0} paths".format(*kinds))
    if not parts or "\0" in given:
        return Item(given, Path(), fault="is no path of a file")
    if ".." in parts:
        return Item(given, Path(), fault=_OUTSIDE)

    def is_there(other: str) -> bool:
        # A folder of an image's name is in the way of a mask, another one is not.
        kind = os.path.lexists if other.lower().endswith(EXTENSIONS) else os.path.isfile
        return kind(root + other)

    return Item(name, Path(name), mask_name(relative, is_there))
