"""What is written for an image: its mask, and where wished its probabilities and a picture with the mask's outline."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from segx.errors import ImageError
from segx.masks.image_io import FloatArray, MaskArray, PixelArray, masks_from_logits, resize_mask
from segx.model.spec import ModelSpec
from segx.predict.item import MASK_SUFFIX, Item
from segx.predict.output import OutputFolder
from segx.predict.overlay import outlined

OVERLAY_SUFFIX = ".overlay.jpg"
PROBABILITIES_SUFFIX = ".probabilities.npy"

# Outlines are one or two pixels wide: halved chroma would wash their colour out.
_JPEG = [
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]

__all__ = ["Finished", "OutputFolder", "Wishes", "Written", "finish", "write_outputs"]


@dataclass(frozen=True)
class Wishes:
    """What is wanted of each image.

    Attributes:
        size: of the mask, ``"original"`` for the image's, or (width, height) in pixels.
        probabilities: write them too.
        overlay: write the picture with the mask's outline too.
    """

    size: Literal["original"] | tuple[int, int] = "original"
    probabilities: bool = False
    overlay: bool = False


@dataclass(frozen=True)
class Finished:
    """What came out for one image.

    Attributes:
        mask: (H, W) uint8 in the wished size: 0 or 255 of a model with one class, else class indices.
        probabilities: (H, W) float32 of a model with one class, else (K, H, W); None where not wished. Cut at the
            threshold they give the mask: they are resized as it is, to the nearest.
    """

    mask: MaskArray
    probabilities: FloatArray | None


@dataclass(frozen=True)
class Written:
    """What was written for one image.

    Attributes:
        mask: path of the mask relative to the output folder, with ``/``.
        width: of the mask in pixels.
        height: of the mask in pixels.
        area_pixels: pixels of the mask that are not 0; 0 is the background, also among several classes.
    """

    mask: str
    width: int
    height: int
    area_pixels: int


def finish(logits: FloatArray, original_size: tuple[int, int], spec: ModelSpec, wishes: Wishes) -> Finished:
    """Cut one image's logits into its mask, and give it its size.

    Args:
        logits: (K, H, W) float32.
        original_size: (width, height) of the image in pixels.
        spec: gives the threshold of a model with one class.
        wishes: the size, and whether probabilities are wanted.
    """
    width, height = original_size if wishes.size == "original" else wishes.size
    mask = masks_from_logits(logits[None], spec)[0]
    if spec.classes == 1:
        mask *= np.uint8(255)
    probabilities = None
    if wishes.probabilities:
        planes = [_resized(plane, (width, height)) for plane in _probabilities(logits)]
        probabilities = planes[0] if len(planes) == 1 else np.stack(planes)
    return Finished(resize_mask(mask, (height, width)), probabilities)


def _probabilities(logits: FloatArray) -> FloatArray:
    """Sigmoid of one class, softmax over several; neither overflows."""
    if logits.shape[0] == 1:
        small = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    powers = np.exp(logits - logits.max(axis=0))
    result: FloatArray = powers / powers.sum(axis=0)
    return result


def _resized(plane: FloatArray, size: tuple[int, int]) -> FloatArray:
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.float32)


def write_outputs(folder: OutputFolder, item: Item, image: PixelArray | None, finished: Finished) -> Written:
    """Write what came out for one image; the mask last, so that where it is, all is.

    Beside ``a.png`` lie ``a.overlay.jpg`` and ``a.probabilities.npy``.

    Args:
        folder: where to.
        item: the image's names.
        image: (H, W, C) pixels for the overlay, None for none. The picture gets the mask's size.
        finished: what came out.

    Raises:
        ImageError: this image's files cannot be written; others can.
        OutputError: nothing can be written any more.
    """
    stem = item.mask.removesuffix(MASK_SUFFIX)
    mask = finished.mask
    if image is not None:
        overlay = _encoded(".jpg", outlined(image, mask), item, _JPEG)
        folder.write(stem + OVERLAY_SUFFIX, overlay, source=item.path)
    if finished.probabilities is not None:
        stream = io.BytesIO()
        np.save(stream, finished.probabilities, allow_pickle=False)
        folder.write(stem + PROBABILITIES_SUFFIX, stream.getvalue(), source=item.path)
    folder.write(item.mask, _encoded(MASK_SUFFIX, mask, item, []), source=item.path)
    height, width = mask.shape
    return Written(item.mask, width, height, int(np.count_nonzero(mask)))


def _encoded(suffix: str, pixels: MaskArray, item: Item, settings: list[int]) -> bytes:
    reason = "it is too large"  # JPEG ends at 65,500 pixels a side
    try:
        encoded, data = cv2.imencode(suffix, pixels, settings)
    except cv2.error as error:
        encoded, reason = False, error.err
    if not encoded:
        hint = "make it smaller with --size, or leave the overlay out"
        raise ImageError(f"cannot encode {item.shown} as {suffix}: {reason}", hint=hint)
    return data.tobytes()
