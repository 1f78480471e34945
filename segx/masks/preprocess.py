"""Pixels to model input, logits to mask; numpy, OpenCV and Pillow only."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segx.errors import UsageError
from segx.model import synthetic
from segx.model.checkpoint import FirstLayer, described
from segx.model.spec import InputRange, ModelSpec, normalization, range_of
from segx.model.synthetic import Sample

FloatArray = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.uint8]
PixelArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]


# Images do not fit if the first layer's results are at least _FAR from those of the training (the median over channels
# of the Kullback-Leibler divergence), and their contrast differs by at least _CONTRAST (the median of ln of the ratio
# of variances). Another preparation must bring them nearer by a factor of at least _NEARER. For models of resnet18 and
# mobilenet_v2 that were trained for a moment on photos, cells and tissue, and eleven kinds of images, this held for
# none that were prepared as in training, and for 20 of 22 that were like the training's and prepared otherwise, by
# ImageNet's mean and std, by none, or to 255.
_FAR, _CONTRAST, _NEARER = 0.8, 1.0, 4.0
FIRST_IMAGES = 8  # that are looked at
_POINTS = 64  # of a side at which results are computed
_EPSILON = 1e-5  # that of batch normalisation
_PREPARATIONS: tuple[tuple[str, InputRange], ...] = (
    ("none", "0-1"),
    ("imagenet", "0-1"),
    ("inception", "0-1"),
    ("none", "0-255"),
)

# RGB values of Okabe & Ito 2008, "Color universal design", distinguishable by colour-blind people. A class has the same
# colour in every image; 255, the foreground of a model with one class, is yellow.
_COLOURS = ((230, 159, 0), (86, 180, 233), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 158, 115), (0, 114, 178))

# (bands of pixels as OpenCV decodes them, channels of a model): how to convert them.
CONVERSIONS: Mapping[tuple[int, int], int] = {
    (3, 1): cv2.COLOR_BGR2GRAY,
    (4, 1): cv2.COLOR_BGRA2GRAY,
    (1, 3): cv2.COLOR_GRAY2RGB,
    (3, 3): cv2.COLOR_BGR2RGB,
    (4, 3): cv2.COLOR_BGRA2RGB,
    (4, 4): cv2.COLOR_BGRA2RGBA,
}


def with_channels(pixels: PixelArray, channels: int) -> PixelArray:
    """Convert pixels as OpenCV decodes them to the channels that a model takes.

    Args:
        pixels: (H, W), (H, W, 3) BGR or (H, W, 4) BGRA.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA), or as many as the pixels have.

    Returns:
        (H, W, ``channels``), of the same dtype.
    """
    given = 1 if pixels.ndim == 2 else pixels.shape[2]
    conversion = CONVERSIONS.get((given, channels))
    converted: Any = pixels if conversion is None else cv2.cvtColor(pixels, conversion)
    result: PixelArray = converted.reshape(*converted.shape[:2], channels)
    return result


def preprocess(image: PixelArray, spec: ModelSpec) -> FloatArray:
    """Convert an image to model input.

    With the defaults of a spec as torchvision's ``ToTensor`` and ``Resize((height, width))`` do, within 1e-5; unlike
    ``ToTensor``, 16-bit images are scaled too.

    Args:
        image: (H, W, C), any size: uint8, uint16, or float32 in [0, 1] unless the spec has a white level.
        spec: the input size, and what else is done to images.

    Returns:
        (C, height, width) float32, in ``spec.input_range`` before normalisation by ``mean`` and ``std``.
    """
    top, left, height, width = image_box((image.shape[0], image.shape[1]), spec)
    result = np.zeros(spec.input_shape, dtype=np.float32)
    inside = result[:, top : top + height, left : left + width]
    white = full_brightness(image, spec.white_level)
    for plane, target in zip(np.moveaxis(image, 2, 0), inside, strict=True):
        limited = np.clip(plane.astype(np.float32), 0, np.float32(white)) if spec.white_level else plane
        target[...] = _resized(limited, (width, height), spec)
    result /= np.float32(white)  # rather than the pixels of a large image
    if spec.channel_order == "bgr":
        result = result[::-1]
    if spec.input_range == "0-255":
        result *= np.float32(255)
    if spec.mean:
        result -= np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    if spec.std:
        result /= np.asarray(spec.std, dtype=np.float32)[:, None, None]
    return np.ascontiguousarray(result)


def full_brightness(image: PixelArray, white_level: float | None) -> float:
    """Return the pixel value of full brightness."""
    kind: Any = image.dtype
    return white_level or (1.0 if kind == np.float32 else np.iinfo(kind).max)


def _resized(plane: PixelArray, size: tuple[int, int], spec: ModelSpec) -> PixelArray:
    """Resize an (H, W) plane to (width, height) in float32."""
    if plane.shape == size[::-1]:
        return plane
    if spec.resize == "linear":
        return np.asarray(cv2.resize(plane.astype(np.float32), size, interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    return np.asarray(Image.fromarray(plane).convert("F").resize(size, Image.Resampling.BILINEAR))


def unprocess(image: FloatArray, spec: ModelSpec) -> npt.NDArray[np.uint8]:
    """Turn model input, (C, H, W) float32, back into pixels to look at: (H, W, 1) gray or (H, W, 3) RGB uint8.

    Of a model with more bands than three these are the first three, of one with two the first.
    """
    values = image.astype(np.float64)
    if spec.std:
        values *= np.asarray(spec.std)[:, None, None]
    if spec.mean:
        values += np.asarray(spec.mean)[:, None, None]
    if spec.input_range == "0-255":
        values /= 255
    if spec.channel_order == "bgr":
        values = values[::-1]
    shown = values[: 3 if len(values) >= 3 else 1]
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, 0, 2))


def doubt_of_pixels(images: FloatArray, spec: ModelSpec, checkpoint: Path | None) -> str:
    """Return why (N, C, H, W) images may be prepared otherwise than in training, and what to try; empty if they fit.

    Only a checkpoint with batch normalisation remembers what its training was like.
    """
    if (spec.mean or spec.std) and (told := range_of(spec.mean, spec.std)) and told != spec.input_range:
        return (
            f"mean and std look like those of images in {told}, and pixels are scaled to {spec.input_range}: try "
            f"--input-range {told}"
        )
    layer = described(checkpoint, spec.checkpoint_key).first_layer if checkpoint else None
    if layer is None or spec.in_channels not in (1, 3) or layer.kernel.shape[1] != spec.in_channels:
        return ""
    now, contrast = _misfit(images, layer)
    if now < _FAR or contrast < _CONTRAST:
        return ""
    pixels = [unprocess(image, spec) for image in images]
    misfits: list[tuple[float, ModelSpec]] = []
    for name, input_range in _PREPARATIONS:
        mean, std = normalization(name, spec.in_channels, input_range=input_range)
        other = replace(spec, mean=mean, std=std, input_range=input_range, white_level=None)
        misfits.append((_misfit(np.stack([preprocess(each, other) for each in pixels]), layer)[0], other))
    misfit, best = min(misfits, key=lambda pair: pair[0])
    if misfit * _NEARER > now:
        return ""
    options = shlex.join(replace(best, white_level=spec.white_level).options(spec))
    return f"images do not look like those of the model's training, and would with {options}: check how it was trained"


def _misfit(images: FloatArray, layer: FirstLayer) -> tuple[float, float]:
    """Return how far a layer's results, and their contrast, are from those of the training; 0 for equal ones."""
    size = layer.kernel.shape[2:]
    edges = ((0, 0), (0, 0), *((side // 2, side // 2) for side in size))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(images, edges), size, axis=(2, 3))
    step = max(1, max(images.shape[2:]) // _POINTS)
    results = np.tensordot(windows[:, :, ::step, ::step], layer.kernel, axes=((1, 4, 5), (1, 2, 3))) + layer.bias
    variance, expected = results.var((0, 1, 2)) + _EPSILON, layer.variance + _EPSILON
    contrast = np.log(variance / expected)
    divergence = variance / expected - 1 - contrast + (results.mean((0, 1, 2)) - layer.mean) ** 2 / expected
    return float(np.median(divergence)) / 2, abs(float(np.median(contrast)))


def image_box(size: tuple[int, int], spec: ModelSpec) -> tuple[int, int, int, int]:
    """Return where an image of (height, width) lies in the model input: top, left, height and width in pixels."""
    if spec.resize != "letterbox":
        return 0, 0, spec.height, spec.width
    scale = min(spec.height / size[0], spec.width / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    return (spec.height - height) // 2, (spec.width - width) // 2, height, width


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
    """Threshold logits, or take the argmax of exclusive classes.

    Args:
        logits: (N, K, H, W) float32.
        spec: the threshold, and whether classes are exclusive.

    Returns:
        (N, H, W) uint8: 0 or 1 for one class (``logit >= ln(t / (1 - t))``), else the index of the largest logit; for a
        multilabel model (N, K, H, W) of 0 or 1.

    Raises:
        UsageError: the shape is not that of logits of this model.
    """
    if logits.ndim != 4 or logits.shape[1] != spec.classes:
        wanted = f"(N, {spec.classes}, H, W)"
        raise UsageError(f"logits of shape {logits.shape} are not {wanted}", hint="give the spec of their model")
    if spec.exclusive:
        classes: MaskArray = logits.argmax(axis=1).astype(np.uint8)
        return classes
    masks = (logits >= np.float32(spec.logit_threshold)).astype(np.uint8)
    return masks if spec.multilabel else masks[:, 0]


def colour_of(value: int) -> tuple[int, int, int]:
    """Return red, green and blue for a value of a mask; black for 0, the background."""
    return _COLOURS[(value - 1) % len(_COLOURS)] if value else (0, 0, 0)


def resize_mask(mask: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Resize an (H, W) or (K, H, W) mask or probabilities to (height, width) by nearest neighbour about pixel centres.

    This keeps it aligned with the antialiased input, and adds no values.
    """
    height, width = size
    if mask.shape[-2:] == size:
        return mask
    if mask.ndim == 3:
        return np.stack([resize_mask(plane, size) for plane in mask])
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=mask.dtype)


def to_image(output: npt.NDArray[Any], image_size: tuple[int, int], spec: ModelSpec) -> npt.NDArray[Any]:
    """Return the part of a model output, (…, height, width), that shows an image of (height, width)."""
    top, left, height, width = image_box(image_size, spec)
    return output[..., top : top + height, left : left + width]


def to_model(mask: MaskArray, spec: ModelSpec) -> MaskArray:
    """Resize an image's mask, (…, H, W), as the image is for the model, with 0 outside the image."""
    top, left, height, width = image_box((mask.shape[-2], mask.shape[-1]), spec)
    result = np.zeros((*mask.shape[:-2], spec.height, spec.width), dtype=np.uint8)
    result[..., top : top + height, left : left + width] = resize_mask(mask, (height, width))
    return result
