"""Pixels to model input, logits to mask; numpy, OpenCV and Pillow only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segx.model import synthetic
from segx.model.spec import ModelSpec
from segx.model.synthetic import Sample

FloatArray = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.uint8]
PixelArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def with_channels(pixels: PixelArray, channels: int) -> PixelArray:
    """Convert pixels as OpenCV decodes them to the channels that a model takes.

    Args:
        pixels: (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16.
        channels: 1 (gray) or 3 (RGB).

    Returns:
        (H, W, ``channels``), of the same dtype.
    """
    given = 1 if pixels.ndim == 2 else pixels.shape[2]
    conversions = {
        (3, 1): cv2.COLOR_BGR2GRAY,
        (4, 1): cv2.COLOR_BGRA2GRAY,
        (1, 3): cv2.COLOR_GRAY2RGB,
        (3, 3): cv2.COLOR_BGR2RGB,
        (4, 3): cv2.COLOR_BGRA2RGB,
    }
    conversion = conversions.get((given, channels))
    converted: Any = pixels if conversion is None else cv2.cvtColor(pixels, conversion)
    result: PixelArray = converted.reshape(*converted.shape[:2], channels)
    return result


def preprocess(image: PixelArray, spec: ModelSpec) -> FloatArray:
    """Convert an image to model input, as torchvision's ``ToTensor`` and ``Resize((height, width))`` do.

    Bilinear with antialiasing; equal to torchvision within 1e-5. Unlike ``ToTensor``, 16-bit images are scaled too.

    Args:
        image: (H, W, C) uint8 or uint16, any size.
        spec: the input size, and the mean and standard deviation if the model uses them.

    Returns:
        (C, height, width) float32 in [0, 1] before normalisation by ``mean`` and ``std``.
    """
    size = (spec.width, spec.height)
    scale = np.float32(np.iinfo(image.dtype).max)
    planes = []
    for plane in np.moveaxis(image, 2, 0):
        unit = plane.astype(np.float32) / scale
        if unit.shape != (spec.height, spec.width):
            unit = np.asarray(Image.fromarray(unit).resize(size, Image.Resampling.BILINEAR))
        planes.append(unit)
    result = np.stack(planes)
    if spec.mean:
        result -= np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    if spec.std:
        result /= np.asarray(spec.std, dtype=np.float32)[:, None, None]
    return result


def model_inputs(spec: ModelSpec, count: int, *, seed: int) -> Iterator[tuple[Sample, FloatArray]]:
    """Yield the first ``count`` synthetic scenes of a series, each with its (C, H, W) float32 model input.

    A scene has the model's input size, but never less than ``synthetic.MIN_SIZE`` pixels a side.
    """
    height, width = (max(n, synthetic.MIN_SIZE) for n in (spec.height, spec.width))
    for scene in synthetic.series(count, seed=seed, height=height, width=width):
        yield scene, preprocess(np.repeat(scene.image[..., None], spec.in_channels, axis=2), spec)


def in_batches(images: FloatArray, size: int) -> Iterator[FloatArray]:
    """Split (N, C, H, W) images into batches of exactly ``size``, padding the last one with its last image."""
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        yield np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def masks_from_logits(logits: FloatArray, spec: ModelSpec) -> MaskArray:
    """Threshold logits, or take the argmax of several classes.

    Args:
        logits: (N, K, H, W) float32.
        spec: the threshold of a one-class model.

    Returns:
        (N, H, W) uint8: 0 or 1 for one class (``logit >= ln(t / (1 - t))``), else the index of the largest logit.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0] >= np.float32(spec.logit_threshold)).astype(np.uint8)
    classes: MaskArray = logits.argmax(axis=1).astype(np.uint8)
    return classes


def resize_mask(mask: MaskArray, size: tuple[int, int]) -> MaskArray:
    """Resize an (H, W) mask to (height, width) by nearest neighbour about pixel centres.

    This keeps it aligned with the antialiased input, and adds no values.
    """
    height, width = size
    if mask.shape == size:
        return mask
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)
