"""Images below a folder, all or those of a glob: one directory's names in memory at a time, in a stable order."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segx.errors import ImageError, UsageError
from segx.masks.image_io import EXTENSIONS
from segx.predict.item import Item, mask_name, printable

_KINDS = ", ".join(e[1:] for e in EXTENSIONS)
_ANY_DEPTH = "**"


@dataclass(frozen=True, slots=True)
class _Directory:
    """A directory being listed."""

    prefix: str  # relative to the root, "" or "a/b/"
    entries: Iterator[tuple[str, bool]]  # (name, is a directory), sorted
    names: frozenset[str]  # all of them that have an image's suffix
    identities: tuple[tuple[int, int], ...]  # its own and those of the directories it is in

    def has(self, path: str) -> bool:
        return path[len(self.prefix) :] in self.names


class FolderInputs:
    """Images below a folder, in the order of their relative paths; hidden files and folders are left out.

    Links to folders are followed, but never back into a folder that they are in. A folder below that cannot be read is
    an item itself, which fails when it is fetched; so does a broken link.

    Args:
        folder: where to look.
        leave_out: a folder below that is passed over.
        pattern: what the parts of a relative path have to match, as in a glob; None for all.

    Raises:
        ImageError: the folder cannot be read.
        UsageError: it is the one to leave out.
    """

    def __init__(self, folder: Path, leave_out: Path | None = None, pattern: tuple[str, ...] | None = None) -> None:
        self._folder = folder
        self._pattern = pattern
        self._left_out = leave_out
        self._count: int | None = None
        self.source = printable(str(folder if pattern is None else folder.joinpath(*pattern)))
        with self._image_errors():
            os.scandir(folder).close()
        if leave_out is not None and _identity(folder) == _identity(leave_out):
            raise UsageError(f"the masks would lie among the images of {self.source}", hint="choose another folder")

    @property
    def count(self) -> int | None:
        """Known soon after the iteration began: a second listing in the background runs ahead of it."""
        return self._count

    def __iter__(self) -> Iterator[Item]:
        threading.Thread(target=self._find_count, name="segx-count", daemon=True).start()
        empty = True
        with self._image_errors():
            for directory, name in self._found():
                path = directory.prefix + name
                yield Item(path, self._folder / path, mask_name(path, directory.has))
                empty = False
        if empty:
            hint = f"put {_KINDS} files there" if self._pattern is None else f"match {_KINDS} files"
            raise ImageError(f"{self.source} holds no images", hint=hint)

    def _find_count(self) -> None:
        with contextlib.suppress(OSError):  # the iteration itself will say it
            self._count = sum(1 for _ in self._found())

    @contextlib.contextmanager
    def _image_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "check the path and the folder's permissions"
            raise ImageError(f"cannot read {self.source}: {error.strerror}", hint=hint) from error

    def _found(self) -> Iterator[tuple[_Directory, str]]:
        stack = [self._listed("", ())]
        while stack:
            directory = stack[-1]
            name, is_directory = next(directory.entries, ("", False))
            path = directory.prefix + name
            if not name:
                stack.pop()
            elif not is_directory:
                if _is_image(name) and self._is_wanted(path):
                    yield directory, name
            elif self._may_hold(path):
                identity = _identity(self._folder / path)
                if identity in directory.identities or self._is_left_out(identity):
                    continue
                try:
                    stack.append(self._listed(f"{path}/", directory.identities))
                except OSError:
                    yield directory, name

    def _listed(self, prefix: str, above: tuple[tuple[int, int], ...]) -> _Directory:
        """Raises OSError."""
        folder = self._folder / prefix
        with os.scandir(folder) as found:
            entries = sorted((entry.name, _is_directory(entry)) for entry in found if not entry.name.startswith("."))
        names = frozenset(name for name, _ in entries if _is_image(name))
        identity = _identity(folder)
        return _Directory(prefix, iter(entries), names, above if identity is None else (*above, identity))

    def _is_left_out(self, identity: tuple[int, int] | None) -> bool:
        # Looked up every time: it may be made meanwhile.
        return self._left_out is not None and identity is not None and identity == _identity(self._left_out)

    def _is_wanted(self, path: str) -> bool:
        return self._pattern is None or _matches(tuple(path.split("/")), self._pattern)

    def _may_hold(self, folder: str) -> bool:
        return self._pattern is None or _may_lead(tuple(folder.split("/")), self._pattern)


def open_glob(given: str, leave_out: Path | None) -> FolderInputs:
    """Images whose paths match a glob, relative to the last folder before its first wildcard.

    Not by ``glob.glob``: that follows links in circles, and keeps all paths.

    Raises:
        UsageError: that folder does not exist.
        ImageError: it cannot be read.
    """
    parts = Path(given).parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    if not root.is_dir():
        raise UsageError(f"{printable(given)} matches nothing: there is no folder {root}", hint="check the path")
    return FolderInputs(root, leave_out, parts[first:])


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == _ANY_DEPTH:
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _may_lead(folders: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether something below these folders can match."""
    for folder, wanted in zip(folders, pattern, strict=False):
        if wanted == _ANY_DEPTH:
            return True
        if not fnmatch.fnmatchcase(folder, wanted):
            return False
    return len(folders) < len(pattern)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


def _identity(folder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        facts = folder.stat()
        return facts.st_dev, facts.st_ino
    return None
