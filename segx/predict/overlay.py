"""A picture with the outline of its mask."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from segx.masks.image_io import MaskArray, PixelArray

# BGR, of Okabe & Ito 2008 ("Color universal design"), which the colour-blind can tell apart. Of a class by its index,
# so that it is the same in all pictures; 255, the mask of a model with one class, is yellow.
_COLOURS = ((0, 159, 230), (233, 180, 86), (66, 228, 240), (0, 94, 213), (167, 121, 204), (115, 158, 0), (178, 114, 0))


def outlined(image: PixelArray, mask: MaskArray) -> MaskArray:
    """Draw the outline of a mask into a picture.

    Args:
        image: (H, W, 1) gray or (H, W, 3) RGB, uint8 or uint16, any size.
        mask: (height, width) uint8, 0 the background; every other value gets a colour.

    Returns:
        (height, width, 3) uint8, BGR order, as OpenCV encodes it.
    """
    height, width = mask.shape
    pixels: Any = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    if image.shape[:2] != mask.shape:
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    code = cv2.COLOR_GRAY2BGR if image.shape[2] == 1 else cv2.COLOR_RGB2BGR
    picture = np.ascontiguousarray(cv2.cvtColor(pixels, code))
    thickness = max(1, round(min(height, width) / 300))
    for value in np.flatnonzero(np.bincount(mask.ravel())).tolist():
        if value == 0:
            continue
        found, _ = cv2.findContours((mask == value).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        colour = _COLOURS[(value - 1) % len(_COLOURS)]
        cv2.drawContours(picture, found, -1, colour, thickness, cv2.LINE_8)
    return picture
