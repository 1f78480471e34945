"""Find image files in folders and in lists of paths."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

from segx.errors import ImageError
from segx.masks.image_io import EXTENSIONS, IMAGE_KINDS

# In each folder that a prediction wrote.
PREDICTION_NAME = "segx-predict.json"
LIST_EXTENSIONS = (".txt", ".lst")

_SHOWN_NAMES = 3
_CHUNK_BYTES = 1 << 16
_MAX_PATH_BYTES = 1 << 16  # far above any system's limit: without a separator by then, the file is not a list
_ANY_DEPTH = "**"


def escaped(name: str) -> str:
    """Return a name on one line, with line breaks, control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def is_image(name: str) -> bool:
    """Return whether a name has the suffix of an image, in any case."""
    return name.lower().endswith(EXTENSIONS)


@contextlib.contextmanager
def image_errors(name: str, hint: str = "check the path and its permissions") -> Iterator[None]:
    """Raise ``ImageError`` for an ``OSError``."""
    try:
        yield
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror}", hint=hint) from error


class PassedOver:
    """What a search for images left out."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, what: str, name: str) -> None:
        """Add a file or folder; ``what`` says of which kind it is."""
        self._counts[what] += 1
        self._found.setdefault(what, []).extend([name] * (self._counts[what] <= _SHOWN_NAMES))

    def add_file(self, name: str) -> None:
        """Add a file that is hidden or has no image's suffix."""
        base = os.path.basename(name)  # noqa: PTH119
        suffix = os.path.splitext(base)[1]  # noqa: PTH122
        self.add("hidden" if base.startswith(".") else suffix or "without suffix", name)

    @property
    def line(self) -> str:
        """The counts and some names on one line; empty if nothing was left out."""
        kinds = []
        for what, count in sorted(self._counts.items()):
            more = ", …" if count > _SHOWN_NAMES else ""
            kinds.append(f"{count} {what} ({', '.join(self._found[what])}{more})")
        return f"passed over {', '.join(kinds)}" if kinds else ""


def folder_to_pass_over(
    folder: PurePath, *, beside_images: bool, is_file: Callable[[PurePath], bool] = os.path.isfile
) -> str | None:
    """Return what a folder is whose images are masks; None for others.

    ``beside_images`` says whether a folder named ``images`` is next to it.
    """
    if beside_images and folder.name == "masks":
        return "folder of masks beside images"
    if folder.name == "pictures" and is_file(folder.with_name("results.json")):
        return "folder of pictures of a bench"
    # A folder that cannot be read is reported when it is listed.
    return "folder of an earlier prediction" if is_file(folder / PREDICTION_NAME) else None


def list_images(folder: Path, passed_over: PassedOver | None = None) -> list[Path]:
    """Return all image files that ``ImageFolder`` finds, ordered by relative path; ``passed_over`` receives the rest.

    Raises:
        ImageError: the folder, or one below it, cannot be read, or it has no images.
    """
    found = ImageFolder(folder, skip_unreadable=False).images(passed_over or PassedOver())
    return [folder / directory.prefix / name for directory, name in found]


def images_of(source: Path) -> list[Path]:
    """Return the images below a folder, or those that a text file lists, one path a line.

    Raises:
        ImageError: the folder or list is missing, unreadable or names no images.
    """
    if source.suffix.lower() not in LIST_EXTENSIONS or source.is_dir():
        return list_images(source)
    if source.exists() and not source.is_file():
        raise ImageError(f"cannot read {source}: it is not a regular file", hint="write the list to a file")
    with image_errors(str(source)), source.open("rb") as stream:
        images = [Path(os.fsdecode(path)) for path in dict.fromkeys(paths_in(stream, str(source)))]
    if not images:
        raise ImageError(f"{source} lists no images", hint="give one path per line")
    return images


def paths_in(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the paths, which are separated by null bytes if there are any, else by line breaks; skip blank ones."""
    read = getattr(stream, "read1", stream.read)  # returns a pipe's lines as they are written, not in full blocks
    chunks: Iterator[bytes] = iter(lambda: read(_CHUNK_BYTES), b"")
    start = b""
    for chunk in chunks:
        start += chunk
        if b"\0" in chunk or b"\n" in chunk or len(start) > _MAX_PATH_BYTES:
            break
    separator = b"\0" if b"\0" in start else b"\n"
    line_end = b"" if separator == b"\0" else b"\r"
    rest = b""
    for chunk in itertools.chain([start.removeprefix(b"\xef\xbb\xbf")], chunks):
        *whole, rest = (rest + chunk).split(separator)
        if len(rest) > _MAX_PATH_BYTES:
            raise ImageError(f"{name} is not a list of paths", hint="give one path per line")
        yield from (path.removesuffix(line_end) for path in whole if path.strip())
    if rest.strip():
        yield rest.removesuffix(line_end)


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory being listed."""

    prefix: str  # relative to the root: "" or "a/b/"
    entries: Iterator[tuple[str, bool]]  # (name, is a directory), sorted
    images: frozenset[str]  # names that have an image's suffix
    identities: tuple[tuple[int, int], ...]  # (device, inode) of this directory and its parents
    has_folder_of_images: bool  # one of that name
    linked: bool  # it, or a parent below the root, is a link

    def has(self, path: str) -> bool:
        """Return whether an image in it has this path, relative to the root."""
        return path[len(self.prefix) :] in self.images


class ImageFolder:
    """Images below a folder, ordered by relative path; hidden files and folders, and masks, are left out.

    Only the names of the directories being listed are in memory, and the identities of linked ones: without a pattern,
    each folder is listed once, however many links lead to it. With one, links are only not followed back into a parent.

    Args:
        folder: where to search.
        exclude: a subfolder to leave out.
        pattern: glob for each part of the relative path; None for all images.
        skip_unreadable: give a subfolder that cannot be read as if it were an image, and what only has an image's name,
            such as a broken link or a pipe; without it, the first raises, and the second is passed over.
    """

    def __init__(
        self,
        folder: Path,
        *,
        exclude: Path | None = None,
        pattern: tuple[str, ...] | None = None,
        skip_unreadable: bool = True,
    ) -> None:
        self.name = escaped(str(folder.joinpath(*(pattern or ()))))
        self._folder = folder
        self._exclude = exclude
        self._pattern = pattern
        self._skip_unreadable = skip_unreadable

    def images(self, passed_over: PassedOver) -> Iterator[tuple[Directory, str]]:
        """Yield directories and names; ``passed_over`` receives the rest.

        Raises:
            ImageError: the folder cannot be read, or has no images.
        """
        empty = True
        try:
            for found in self._walk(passed_over):
                yield found
                empty = False
        except OSError as error:
            where = escaped(str(error.filename or self._folder))
            no_folder = isinstance(error, (FileNotFoundError, NotADirectoryError))
            hint = "pass a folder of images" if no_folder else "check its permissions"
            raise ImageError(f"cannot read {where}: {error.strerror}", hint=hint) from error
        if empty:
            hint = f"put {IMAGE_KINDS} files there" if self._pattern is None else f"match {IMAGE_KINDS} files"
            others = f"; {passed_over.line}" if passed_over.line else ""
            raise ImageError(f"{self.name} has no images{others}", hint=hint)

    def _walk(self, passed_over: PassedOver) -> Iterator[tuple[Directory, str]]:
        stack = [self._list("", (), passed_over)]
        found = set[tuple[int, int] | None]()  # by links
        while stack:
            directory = stack[-1]
            name, is_directory = next(directory.entries, ("", False))
            path = directory.prefix + name
            if not name:
                stack.pop()
            elif not is_directory:
                if self._pattern is not None and not matches(tuple(path.split("/")), self._pattern):
                    continue
                if not is_image(name):
                    passed_over.add_file(escaped(path))
                elif self._skip_unreadable or (self._folder / path).is_file():
                    yield directory, name
                else:
                    passed_over.add("no regular file", escaped(path))
            elif self._enters(path, directory, found, passed_over):
                try:
                    below_link = directory.linked or (self._folder / path).is_symlink()
                    stack.append(self._list(f"{path}/", directory.identities, passed_over, linked=below_link))
                except OSError:
                    if not self._skip_unreadable:
                        raise
                    yield directory, name

    def _list(
        self, prefix: str, parents: tuple[tuple[int, int], ...], passed_over: PassedOver, *, linked: bool = False
    ) -> Directory:
        folder = self._folder / prefix
        with os.scandir(folder) as found:
            entries = sorted((entry.name, _is_directory(entry)) for entry in found)
        hidden = [name for name, _ in entries if name.startswith(".")]
        for name in hidden if self._pattern is None else ():
            passed_over.add("hidden", escaped(prefix + name))
        entries = [(name, is_directory) for name, is_directory in entries if not name.startswith(".")]
        images = frozenset(name for name, _ in entries if is_image(name))
        own = identity(folder)
        identities = parents if own is None else (*parents, own)
        return Directory(prefix, iter(entries), images, identities, ("images", True) in entries, linked)

    def _enters(
        self, path: str, parent: Directory, found: set[tuple[int, int] | None], passed_over: PassedOver
    ) -> bool:
        if self._pattern is not None and not matches(tuple(path.split("/")), self._pattern, below=True):
            return False
        folder = self._folder / path
        own = identity(folder)
        # The excluded folder is looked up each time because it may be created during the iteration.
        excluded = self._exclude is not None and own is not None and own == identity(self._exclude)
        if excluded or own in parent.identities:
            return False
        linked = self._pattern is None and (parent.linked or folder.is_symlink())
        if linked and (own in found or self._is_found_without_links(folder)):
            passed_over.add("folder found elsewhere too", escaped(path))
            return False
        beside_images = parent.has_folder_of_images and self._pattern is None
        reason = folder_to_pass_over(folder, beside_images=beside_images)
        if reason:
            passed_over.add(reason, escaped(path))
        elif linked:
            found.add(own)
        return reason is None

    def _is_found_without_links(self, folder: Path) -> bool:
        """Return whether a folder lies below the root, in no folder that is hidden or passed over."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # it is gone, a loop, or elsewhere
            each = self._folder.resolve()
            for part in folder.resolve().relative_to(each).parts:
                beside_images = (each / "images").is_dir()
                each /= part
                if part.startswith(".") or folder_to_pass_over(each, beside_images=beside_images):
                    return False
            return True
        return False


def matches(parts: tuple[str, ...], pattern: tuple[str, ...], *, below: bool = False) -> bool:
    """Return whether a path matches or, with ``below``, whether a path below this folder can."""
    if not pattern:
        return not parts and not below
    if pattern[0] == _ANY_DEPTH:
        return below or matches(parts, pattern[1:]) or (bool(parts) and matches(parts[1:], pattern))
    if not parts:
        return below
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:], below=below)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


def identity(folder: Path) -> tuple[int, int] | None:
    """Return device and inode; None if the folder cannot be read."""
    with contextlib.suppress(OSError):
        facts = folder.stat()
        return facts.st_dev, facts.st_ino
    return None
