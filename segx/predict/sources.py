"""What is to be segmented: a folder, a glob, a list, a video or one image becomes a lazy sequence of items."""

from __future__ import annotations

import glob
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from segx.errors import ImageError, UsageError
from segx.masks.image_io import EXTENSIONS, PixelArray, decode_image, read_file, with_channels
from segx.predict.folders import FolderInputs, open_glob
from segx.predict.item import Item, printable
from segx.predict.lists import ListInputs
from segx.predict.source_kinds import Inputs, OneImage
from segx.predict.video import VIDEO_EXTENSIONS, VideoInputs

LIST_EXTENSIONS = (".txt", ".lst")

__all__ = ["Inputs", "Item", "decode", "fetch", "open_inputs"]


def open_inputs(given: str, *, stdin: BinaryIO | None = None, leave_out: Path | None = None) -> Inputs:
    """Find out what ``given`` is, and that it can be read; nothing is decoded and no folder is listed yet.

    Args:
        given: a folder (with all below it), a glob (quoted; ``**`` for any depth), a list of paths (``.txt`` or
            ``.lst``, one per line, or separated by null bytes), a video, one image, or ``-`` for a list on ``stdin``.
        stdin: where ``-`` is read from; the process's own where None.
        leave_out: a folder whose images are not taken, such as that of the masks.

    Raises:
        UsageError: ``given`` is none of these, or does not exist.
        ImageError: it is there, but cannot be read, or holds no image.
    """
    if given == "-":
        return ListInputs.of_stream(stdin or sys.stdin.buffer, "standard input")
    path = Path(given)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if glob.has_magic(given):
            return open_glob(given, leave_out)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read {printable(given)}: {reason}", hint=_HINT) from error
    if stat.S_ISDIR(mode):
        return FolderInputs(path, leave_out)
    kind = ListInputs.of_pipe if stat.S_ISFIFO(mode) else _KINDS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{printable(given)} is no folder, image, video or list", hint=_HINT)
    return kind(path)


_HINT = "give a folder, an image, a video, a .txt or .lst list of paths, a quoted glob, or - for a list on stdin"
_KINDS: dict[str, Callable[[Path], Inputs]] = {
    **dict.fromkeys(LIST_EXTENSIONS, ListInputs.of_file),
    **dict.fromkeys(VIDEO_EXTENSIONS, VideoInputs),
    **dict.fromkeys(EXTENSIONS, OneImage),
}


def fetch(item: Item) -> bytes:
    """Read an item's file; the bytes of a video's frame are empty, its pixels are there already.

    Raises:
        ImageError: vanished, unreadable, empty, no file, or too large; the message names it.
    """
    if item.fault is not None:
        raise ImageError(f"{item.shown} {item.fault}", hint="correct the list of images")
    return b"" if item.frame is not None else read_file(item.path, item.shown)


def decode(data: bytes, item: Item, channels: int) -> PixelArray:
    """Turn what ``fetch`` gave into pixels.

    Args:
        data: the file's content.
        item: what it is the content of.
        channels: 1 (gray) or 3 (RGB).

    Returns:
        (H, W, ``channels``) uint8 or uint16.

    Raises:
        ImageError: broken, no image, of another bit depth, or too large; the message names it.
    """
    if item.frame is not None:
        return with_channels(item.frame, channels)
    return decode_image(data, item.shown, channels)
