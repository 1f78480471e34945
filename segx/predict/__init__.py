"""Segment image files: read, infer, write masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segx.errors import UsageError

__all__ = ["OutputOptions"]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What to write for each image, and how to treat what is already there and what fails.

    Attributes:
        size: size of the masks: ``"original"`` for that of each image, or (width, height) in pixels.
        probabilities: write ``NAME.probabilities.npy`` too.
        overlay: write ``NAME.overlay.jpg``, the image with the mask's outline, too.
        palette: write masks as PNG with a colour for each value, which image viewers show; values stay what they are.
        class_names: a name for each value of a mask, background first; written to ``classes.json``. For a multilabel
            model, a name for each channel, which its folder of masks gets instead of its number.
        resume: continue the run that the output folder holds.
        ignore_orientation: segment the pixels as they are stored, not turned as EXIF or TIFF tags say that they are
            shown.
        fsync: wait for each file to be on the disk before its image counts as done, so that a power failure loses none.
        on_error: skip an image that cannot be segmented, or stop at the first one.

    Raises:
        UsageError: a value is not allowed.
    """

    size: Literal["original"] | tuple[int, int] = "original"
    probabilities: bool = False
    overlay: bool = False
    palette: bool = False
    class_names: tuple[str, ...] = ()
    resume: bool = False
    ignore_orientation: bool = False
    fsync: bool = True
    on_error: Literal["skip", "stop"] = "skip"

    def __post_init__(self) -> None:
        if self.size != "original" and min(self.size) < 1:
            raise UsageError(f"size {self.size[0]}x{self.size[1]} is not positive", hint="give pixels, as in 640x480")
        if self.on_error not in ("skip", "stop"):
            raise UsageError(f"on_error is {self.on_error!r}", hint="give skip or stop")
