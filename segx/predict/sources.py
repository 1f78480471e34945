"""Find the images to segment: a folder, glob, list, video, image or URL becomes a lazy sequence of items."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import posixpath
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import cv2

from segx.errors import ImageError, RuntimeUnavailable, UsageError, first_line
from segx.masks.folders import (
    LIST_EXTENSIONS,
    ImageFolder,
    PassedOver,
    escaped,
    folder_to_pass_over,
    identity,
    image_errors,
    is_image,
    matches,
    paths_in,
)
from segx.masks.image_io import EXTENSIONS, IMAGE_KINDS, decode_image, not_empty, read_file, to_channels
from segx.masks.preprocess import PixelArray
from segx.system.files import URL_MARK, is_url

logger = logging.getLogger(__name__)

MASK_SUFFIX = ".png"
VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")

_IMAGE_SUFFIXES = frozenset(variant for e in EXTENSIONS for variant in (e, e.upper(), e.title()))
_SOURCE_HINT = "give a folder, an image, a video, a .txt or .lst list of paths, a quoted glob, or - for a list on stdin"
_PASSWORD = re.compile(r"://[^\s/@:]*:[^\s/@]*@")
# Only of web addresses: the keys of object stores may have these characters.
_QUERY = re.compile(r"""(https?://[^\s?#'"]*)[?#][^\s'"]*""")


@dataclass(frozen=True, slots=True)
class Item:
    """One image to segment.

    Attributes:
        name: name in the manifest: path relative to the source's root, with ``/``; bytes that are not UTF-8 are
            surrogate escapes. A frame of a video is ``clip.mp4/000012``.
        path: the file to read.
        mask: path of the mask relative to the output folder; see ``mask_name``.
        frame: (H, W, 3) uint8 BGR for a frame of a video.
        fault: why the image cannot be segmented, if that is known already; ``fetch`` raises it.
        read: returns the bytes of an image that is not at ``path``.
    """

    name: str
    path: Path
    mask: str = ""
    frame: PixelArray | None = field(default=None, compare=False, repr=False)
    fault: ImageError | None = field(default=None, compare=False)
    read: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.mask:
            object.__setattr__(self, "mask", mask_name(self.name, lambda _: False))

    @property
    def shown(self) -> str:
        """The name, printable on one line."""
        return escaped(self.name)


def mask_name(name: str, exists: Callable[[str], bool]) -> str:
    """Return the mask's path for an image's name: the image's suffix becomes ``.png``; both are relative, with ``/``.

    An image that is not a PNG keeps its suffix if the folder has another image with the same stem: next to ``a.png``,
    ``a.jpg`` becomes ``a.jpg.png``. The result depends on the content of the folder, never on the order, and differs
    for any two names in one folder. Names without an image suffix (frames of a video) get ``.png`` appended.
    ``exists`` says whether a path that differs from ``name`` only in its suffix exists too.
    """
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    if suffix not in _IMAGE_SUFFIXES:
        return name + MASK_SUFFIX
    rivals = [] if suffix == MASK_SUFFIX else [stem + other for other in _IMAGE_SUFFIXES if other != suffix]
    # A stem that is an image itself, as in ``a.jpg`` next to ``a.jpg.png``, may need the short name.
    return name + MASK_SUFFIX if any(map(exists, (stem, *rivals))) else stem + MASK_SUFFIX


class Source:
    """A lazy sequence of images, to be iterated once and by one thread; raises ImageError if there is none.

    ``count`` is None if the number of items is unknown (a stream), or not known yet. ``passed_over`` is complete once
    the iteration is.
    """

    def __init__(self, name: str, items: Callable[[], Iterator[Item]], count: int | None = None) -> None:
        self.name = name
        self.count = count
        self.passed_over = PassedOver()
        self._items = items

    def __iter__(self) -> Iterator[Item]:
        return self._items()


def open_source(  # noqa: C901, PLR0911 - one branch per kind
    given: str, *, stdin: BinaryIO | None = None, exclude: Path | None = None
) -> Source:
    """Detect what ``given`` is and check that it can be read, without decoding or listing anything yet.

    Args:
        given: a folder (searched recursively), a glob (``**`` for any depth), a list of paths (``.txt`` or ``.lst``,
            one per line or separated by null bytes), a video, an image, or ``-`` for a list on ``stdin``. All but a
            video can be URLs that fsspec reads, and so can the paths in a list.
        stdin: stream to read for ``-``; None for the process's own.
        exclude: a folder whose images are not taken, such as the output folder.

    Raises:
        UsageError: ``given`` is none of these, or does not exist.
        ImageError: it exists, but cannot be read or has no image.
    """
    if not given:
        raise UsageError("no images given", hint=_SOURCE_HINT)
    if given == "-":
        return Source("standard input", lambda: _listed_items(lambda: stdin or sys.stdin.buffer, "standard input"))
    if is_url(given):
        return _url_source(given)
    path = Path(given)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if glob.has_magic(given):
            return _glob_source(given, exclude)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read {escaped(given)}: {reason}", hint=_SOURCE_HINT) from error
    name, suffix = escaped(given), path.suffix.lower()
    if stat.S_ISDIR(mode):
        return FolderSource(path, exclude)
    if stat.S_ISFIFO(mode):  # such as a shell's <(find …)
        return Source(name, lambda: _listed_items(lambda: path.open("rb"), name))
    if suffix in LIST_EXTENSIONS:
        with image_errors(name, "check the list's permissions"), path.open("rb") as stream:
            count = sum(1 for _ in paths_in(stream, name))
        return Source(name, lambda: _listed_items(lambda: path.open("rb"), name), count)
    if suffix in VIDEO_EXTENSIONS:
        capture = _open_video(path, name)
        announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
        frames = round(announced) if announced >= 1 else None
        return Source(name, lambda: _frames(path, name, frames), frames)
    if suffix in EXTENSIONS:
        return Source(name, lambda: iter([Item(path.name, path)]), count=1)
    raise UsageError(f"{name} is not a folder, image, video or list", hint=_SOURCE_HINT)


def fetch(item: Item) -> bytes:
    """Read an item's file; for a frame of a video, whose pixels are in the item, return no bytes.

    Raises:
        ImageError: the file is missing, unreadable, empty, not a regular file, or too large, or the item has a fault.
    """
    if item.fault is not None:
        raise item.fault
    if item.read is not None:
        return item.read()
    return b"" if item.frame is not None else read_file(item.path, item.shown)


def decode(data: bytes, item: Item, channels: int, **options: Any) -> PixelArray:
    """Decode the bytes that ``fetch`` returned, with the options of ``decode_image``.

    A frame of a video has its pixels already, which are turned as they are shown.

    Raises:
        ImageError: as ``decode_image`` does.
    """
    if item.frame is not None:
        return to_channels(item.frame, channels, item.shown)
    return decode_image(data, item.shown, channels, **options)


# Folders and globs


class FolderSource(Source):
    """The images that ``ImageFolder`` finds.

    A subfolder that cannot be read is an item that fails when it is fetched; so is a broken link. ``count`` is set soon
    after the iteration begins, by a second listing in the background.

    Args:
        folder: where to search.
        exclude: a subfolder to leave out.
        pattern: glob for each part of the relative path; None for all images.

    Raises:
        ImageError: the folder cannot be read.
        UsageError: it is the excluded folder.
    """

    def __init__(self, folder: Path, exclude: Path | None = None, pattern: tuple[str, ...] | None = None) -> None:
        self._folder = folder
        self._images = ImageFolder(folder, exclude=exclude, pattern=pattern)
        super().__init__(self._images.name, self._found_items)
        with image_errors(self.name):
            os.scandir(folder).close()
        if exclude is not None and identity(folder) == identity(exclude):
            raise UsageError(f"the masks would be among the images of {self.name}", hint="choose another folder")

    def _found_items(self) -> Iterator[Item]:
        threading.Thread(target=self._find_count, name="segx-count", daemon=True).start()
        for directory, name in self._images.images(self.passed_over):
            path = directory.prefix + name
            yield Item(path, self._folder / path, mask_name(path, directory.has))

    def _find_count(self) -> None:
        with contextlib.suppress(ImageError):  # reported by the iteration itself
            self.count = sum(1 for _ in self._images.images(PassedOver()))


def _glob_source(given: str, exclude: Path | None) -> FolderSource:
    """Search the last folder before the first wildcard. ``glob.glob`` follows link cycles and keeps every path."""
    parts = Path(given).parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    if not root.is_dir():
        raise UsageError(f"{escaped(given)} matches nothing: there is no folder {root}", hint="check the path")
    return FolderSource(root, exclude, parts[first:])


# Lists of paths


def _listed_items(open_list: Callable[[], BinaryIO], name: str) -> Iterator[Item]:
    """Yield the images named by a list as it arrives; masks get the same relative paths.

    Relative paths start at the current directory. Of absolute ones, the mask gets the path without its leading slash,
    as with ``cp --parents``. All paths must be of the first one's kind, or two masks could collide. Masks of URLs are
    in a folder of their scheme.
    """
    absolute: bool | None = None
    empty = True
    with open_list() as stream:
        for raw in paths_in(stream, name):
            path, empty = os.fsdecode(raw), False
            if is_url(path):
                yield _url_item(path, _name_of_url(path))
                continue
            if absolute is None:
                absolute = path.startswith("/")
            yield _listed_item(path, absolute=absolute)
    if empty:
        raise ImageError(f"{name} has no paths", hint="give one path per line")


def _listed_item(given: str, *, absolute: bool) -> Item:
    parts = [part for part in given.split("/") if part not in ("", ".")]
    root = "/" if absolute else ""
    relative = "/".join(parts)
    if given.startswith("/") != absolute:
        kinds = ("absolute", "relative") if absolute else ("relative", "absolute")
        return Item(given, Path(), fault=wrong_entry(given, "is {1} in a list of {0} paths".format(*kinds)))
    if not parts or "\0" in given:
        return Item(given, Path(), fault=wrong_entry(given, "is not the path of a file"))
    if ".." in parts:
        reason = "has .. in its path, which would put its mask outside the output folder: give its absolute path"
        return Item(given, Path(), fault=wrong_entry(given, reason))

    def exists(other: str) -> bool:
        # A folder with an image's suffix blocks a mask of that name; other folders do not.
        check = os.path.lexists if other.lower().endswith(EXTENSIONS) else os.path.isfile
        return check(root + other)

    return Item(root + relative, Path(root + relative), mask_name(relative, exists))


def wrong_entry(name: str, reason: str) -> ImageError:
    """Return the error for an entry of a list that cannot be an image."""
    return ImageError(f"{escaped(name)} {reason}", hint="correct the list of images")


# URLs


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it, without a slash at its end.

    Raises:
        RuntimeUnavailable: the package that reads such URLs is not installed.
        UsageError: there is no such kind of URL, or it cannot be parsed.
    """
    import fsspec

    shown = escaped(_without_credentials(url))
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        hint = "install the package, on every machine that reads or writes there"
        raise RuntimeUnavailable(f"cannot use {shown}: {first_line(error)}", hint=hint) from error
    except Exception as error:
        hint = f"fsspec knows {', '.join(f'{name}://' for name in ('s3', 'gs', 'az', 'file'))} and others"
        raise UsageError(f"cannot use {shown}: {first_line(error)}", hint=hint) from error
    return system, path.rstrip("/") or path


def read_url(url: str, name: str) -> bytes:
    """Read the bytes of the image at a URL or local path; ``name`` is its name in error messages.

    Raises:
        ImageError: it is missing, unreadable, or empty.
        RuntimeUnavailable, UsageError: as ``file_system``.
    """
    if not is_url(url):
        return read_file(Path(url), name)
    system, path = file_system(url)
    if is_local(system):
        return read_file(Path(path), name)
    try:
        data: bytes = system.cat_file(path)
    except Exception as error:
        raise _unreadable(name, error) from error
    return not_empty(data, name)


def is_local(system: Any) -> bool:
    """Return whether the files of an fsspec file system are those of this machine."""
    return "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))


def _unreadable(name: str, error: Exception) -> ImageError:
    told = _without_credentials(first_line(error))
    reason = "it does not exist" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {told}"
    hint = "check the address, your credentials for it, and the network"
    return ImageError(f"cannot read {escaped(name)}: {reason}", hint=hint)


def _name_of_url(url: str) -> str:
    """Return ``s3/bucket/a.jpg`` for ``s3://bucket/a.jpg``, without credentials."""
    return _without_credentials(url).replace(URL_MARK, "/", 1)


def _without_credentials(text: str) -> str:
    """Remove user and password, and the query and fragment of web addresses, from a URL or a message with URLs."""
    return _QUERY.sub(r"\1", _PASSWORD.sub(URL_MARK, text))


def _url_item(url: str, name: str, exists: Callable[[str], bool] = lambda _: False) -> Item:
    parts = name.split("/")
    outside = "has .. in its path, which would put its mask outside the output folder"
    fault = wrong_entry(name, outside) if ".." in parts else None
    relative = "/".join(part for part in parts if part not in ("", "."))
    return Item(name, Path(), mask_name(relative, exists), fault=fault, read=partial(read_url, url, name))


def _url_source(given: str) -> Source:
    """Return the images below a URL, those that match its wildcards, those that its list names, or the one there."""
    system, path = file_system(given)
    shown, suffix = escaped(given), posixpath.splitext(path)[1].lower()
    parts = path.split("/")
    first = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    root = "/".join(parts[:first])
    try:
        is_file = system.isfile(path)
        if is_file and suffix in LIST_EXTENSIONS:
            return Source(shown, lambda: _listed_items(lambda: system.open(path, "rb"), shown))
        if is_file and suffix not in EXTENSIONS:
            raise UsageError(f"{shown} is not a folder, image or list", hint=_SOURCE_HINT)
        found = [path] if is_file else system.find(root)
        if not found and not system.exists(root):
            raise UsageError(f"cannot read {shown}: it does not exist", hint=_SOURCE_HINT)
    except UsageError:
        raise
    except Exception as error:
        raise _unreadable(given, error) from error
    base = posixpath.dirname(path) if is_file else root
    names = sorted(posixpath.relpath(each, base) for each in found)
    source = Source(shown, lambda: iter(items))
    items = [
        _url_item(system.unstrip_protocol(posixpath.join(base, name)), name, {*names}.__contains__)
        for name in (names if is_file else _images_among(names, tuple(parts[first:]), source.passed_over))
    ]
    source.count = len(items)
    if not items:
        others = f"; {source.passed_over.line}" if source.passed_over.line else ""
        raise ImageError(f"{shown} has no images{others}", hint=f"give {IMAGE_KINDS} files")
    return source


def _images_among(names: list[str], pattern: tuple[str, ...], passed_over: PassedOver) -> Iterator[str]:
    """Yield the names of images that ``FolderSource`` would find; ``passed_over`` receives the rest."""
    files = {PurePosixPath(name) for name in names}
    folders = {folder for file in files for folder in file.parents}

    @cache
    def enters(folder: PurePosixPath) -> bool:
        if not folder.name:
            return True
        if not enters(folder.parent):
            return False
        beside_images = folder.with_name("images") in folders and not pattern
        reason = folder_to_pass_over(folder, beside_images=beside_images, is_file=files.__contains__)
        if hidden := folder.name.startswith("."):
            reason = None if pattern else "hidden"
        if reason:
            passed_over.add(reason, escaped(str(folder)))
        return not (hidden or reason)

    for name in names:
        fits = not pattern or matches(tuple(name.split("/")), pattern)
        if not fits or not enters(PurePosixPath(name).parent):
            continue
        hidden = posixpath.basename(name).startswith(".")
        if is_image(name) and not hidden:
            yield name
        elif not (pattern and hidden):
            passed_over.add_file(escaped(name))


# Videos


def _open_video(path: Path, name: str) -> Any:
    # Absolute, because FFmpeg takes "a:b.mp4" for a protocol. FFmpeg only: other back ends take "%d" for a number.
    try:
        with image_errors(name), path.open("rb"):
            capture = cv2.VideoCapture(os.fsencode(path.absolute()).decode(), cv2.CAP_FFMPEG)
    except UnicodeDecodeError as error:
        raise ImageError(f"OpenCV cannot open {name}: its name is not UTF-8", hint="rename it") from error
    if not capture.isOpened():
        raise ImageError(f"{name} is not a video that OpenCV can read", hint="convert it, or give its frames as images")
    return capture


def _frames(path: Path, name: str, announced: int | None) -> Iterator[Item]:
    capture = _open_video(path, name)
    number = 0
    try:
        while (read := capture.read())[0]:
            yield Item(f"{path.name}/{number:06d}", path, frame=read[1])
            number += 1
    finally:
        capture.release()
    if number == 0:
        raise ImageError(f"{name} has no frame that can be decoded", hint="convert it, or copy it again")
    if announced is not None and number < announced:
        # Not an error: containers round, or count the length of the sound.
        logger.warning("%s announces %d frames but has %d; it may be cut off", name, announced, number)
