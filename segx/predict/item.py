"""One image to segment: its name, where it is read from, and where its mask goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from segx.masks.image_io import EXTENSIONS, PixelArray

MASK_SUFFIX = ".png"

_USUAL = frozenset(variant for e in EXTENSIONS for variant in (e, e.upper(), e.title()))


@dataclass(frozen=True, slots=True)
class Item:
    """One image to segment.

    Attributes:
        name: under which the manifest knows it: a path relative to the input's root, with ``/``; bytes that are no
            UTF-8 are surrogate escapes. A frame of a video is ``clip.mp4/000012``.
        path: the file to read.
        mask: path of its mask relative to the output folder; see ``mask_name``.
        frame: (H, W, 3) uint8 in OpenCV's BGR order for a frame of a video, None for a file.
        fault: why it cannot be segmented, where that is known already.
    """

    name: str
    path: Path
    mask: str = ""
    frame: PixelArray | None = field(default=None, compare=False, repr=False)
    fault: str | None = None

    def __post_init__(self) -> None:
        if not self.mask:
            object.__setattr__(self, "mask", mask_name(self.name, lambda _: False))

    @property
    def shown(self) -> str:
        """The name as it can be printed on one line."""
        return printable(self.name)


def mask_name(name: str, is_there: Callable[[str], bool]) -> str:
    """The mask's path for an image's name: the image's suffix becomes ``.png``.

    Where the folder holds another image that differs only in the suffix, an image that is no PNG keeps its own:
    ``a.jpg`` beside ``a.png`` becomes ``a.jpg.png``. What else is in the folder decides, never the order. Names without
    a suffix of an image (frames of a video) always keep all of it.

    Args:
        name: relative path with ``/``.
        is_there: whether a path, which differs from ``name`` only in its end, is there as well.

    Returns:
        Relative path with ``/``; for two names of one folder never the same.
    """
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    if suffix not in _USUAL:
        return name + MASK_SUFFIX
    rivals = [] if suffix == MASK_SUFFIX else [stem + other for other in _USUAL if other != suffix]
    # A stem that is an image too, as ``a.jpg`` of ``a.jpg.png``, may need the short name for itself.
    return name + MASK_SUFFIX if any(map(is_there, (stem, *rivals))) else stem + MASK_SUFFIX


def printable(name: str) -> str:
    """A name on one line: line breaks, control characters and bytes that are no UTF-8 are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
