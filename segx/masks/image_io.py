"""Images in, masks out: read, preprocess, postprocess, write. numpy, OpenCV and Pillow; no deep-learning framework."""

from __future__ import annotations

import importlib
import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segx.errors import ImageError
from segx.model.spec import ModelSpec
from segx.system.files import write_bytes

FloatArray = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.uint8]
PixelArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# As float32 half a gigabyte per channel; several are under way at a time. A file of that many pixels is never larger.
MAX_PIXELS = 1 << 27
_MAX_BYTES = MAX_PIXELS * 8
_CUT_IT = "cut it into tiles, or make it smaller"

_HEADERS = (
    (b"\x89PNG", "PngImagePlugin", "PngImageFile"),
    (b"\xff\xd8", "JpegImagePlugin", "JpegImageFile"),
    (b"BM", "BmpImagePlugin", "BmpImageFile"),
    (b"II", "TiffImagePlugin", "TiffImageFile"),
    (b"MM", "TiffImagePlugin", "TiffImageFile"),
)

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # its news arrives as ImageError
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # likewise; only headers are read by it


def list_images(folder: Path) -> list[Path]:
    """All image files below a folder, in the order of their relative paths; hidden ones are left out.

    Raises:
        ImageError: there is no such folder, it cannot be read, or it holds no image.
    """
    try:
        if not folder.is_dir():
            found = "is no folder" if folder.exists() else "does not exist"
            raise ImageError(f"{folder} {found}", hint="give a folder of images")
        shown = [path for path in _files_below(folder) if path.suffix.lower() in EXTENSIONS]
    except OSError as error:
        where = error.filename or folder
        raise ImageError(f"cannot read {where}: {error.strerror}", hint="check the folder's permissions") from error
    if not shown:
        raise ImageError(f"{folder} holds no images", hint=f"put {', '.join(e[1:] for e in EXTENSIONS)} files there")
    return sorted(shown, key=lambda p: p.relative_to(folder).parts)


def _files_below(folder: Path) -> Iterator[Path]:
    """Not by ``rglob``: that passes over folders it may not read."""
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files_below(entry)
        elif entry.is_file():
            yield entry


def read_image(path: Path, channels: int) -> PixelArray:
    """Read one image file; EXIF rotation is not applied (a TIFF's orientation tag is), alpha is dropped.

    Args:
        path: 8- or 16-bit PNG, JPEG, TIFF (first page) or BMP.
        channels: 1 turns colour into gray by the ITU-R BT.601 luma weights; 3 repeats gray.

    Returns:
        (H, W, ``channels``) uint8 or uint16, RGB order.

    Raises:
        ImageError: missing, unreadable, empty, broken, huge, no image, or of another bit depth; the message names the
            file.
    """
    return decode_image(read_file(path, str(path)), str(path), channels)


def read_file(path: Path, name: str) -> bytes:
    """Read the bytes of an image file, whatever they are; what is no regular file is never waited for.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        ImageError: missing, unreadable, empty, no regular file, or larger than any image that would be decoded.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ImageError(f"cannot read {name}: it is no regular file", hint="give image files")
            if facts.st_size > _MAX_BYTES:
                raise ImageError(f"{name} has {facts.st_size / 2**30:.1f} GiB", hint=_CUT_IT)
            data = stream.read()
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror}", hint="check the path and its permissions") from error
    except ValueError as error:  # a null byte in the path
        raise ImageError(f"cannot read {name}: {error}", hint="check the path") from error
    if not data:
        raise ImageError(f"{name} is empty", hint="remove it or copy it again")
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Not waiting for somebody to write into a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def decode_image(data: bytes, name: str, channels: int) -> PixelArray:
    """Turn the bytes of an image file into pixels; see ``read_image``.

    Args:
        data: the file's content; the format is known by its first bytes, not by the name.
        name: what messages call it.
        channels: 1 or 3.

    Returns:
        (H, W, ``channels``) uint8 or uint16, RGB order.

    Raises:
        ImageError: broken, no image, of another bit depth, or of more than ``MAX_PIXELS`` pixels (which is found out
            before memory is taken for them).
    """
    width, height = _size_in_header(data) or (0, 0)
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width}x{height} pixels, more than {MAX_PIXELS:,}", hint=_CUT_IT)
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{name} cannot be decoded: {error.err}", hint="remove it or convert it again") from error
    if pixels is None:
        raise ImageError(f"{name} is broken or no image", hint="remove it or copy it again")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{name} has {pixels.dtype} pixels", hint="convert it to 8 or 16 bits per channel")
    return with_channels(pixels, channels)


def _size_in_header(data: bytes) -> tuple[int, int] | None:
    """(width, height) as the header has it; None where the format is another or the header is broken.

    By Pillow's classes for the formats: ``Image.open`` would warn of large images, by a limit that is its process's.
    """
    found = next((names for start, *names in _HEADERS if data.startswith(start)), None)
    if found is None:
        return None
    module, kind = found
    try:
        size: tuple[int, int] = getattr(importlib.import_module(f"PIL.{module}"), kind)(io.BytesIO(data)).size
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error, EOFError):
        return None  # OpenCV finds out for itself, and says it in its own words
    return size


def with_channels(pixels: PixelArray, channels: int) -> PixelArray:
    """Turn pixels as OpenCV decodes them into those that a model takes.

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


def in_batches(images: FloatArray, size: int) -> Iterator[FloatArray]:
    """Split (N, C, H, W) images into batches of exactly ``size``; the last is filled up with its last image."""
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        yield np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def preprocess(image: PixelArray, spec: ModelSpec) -> FloatArray:
    """Turn pixels into one model input, as torchvision's ``ToTensor`` + ``Resize((height, width))`` do.

    Bilinear with antialiasing; equal to torchvision within 1e-5. Unlike ``ToTensor``, 16-bit images are scaled too.

    Args:
        image: (H, W, C) uint8 or uint16, any size.
        spec: gives the input size, and mean and standard deviation where the model wants them.

    Returns:
        (C, height, width) float32 in [0, 1] (normalised afterwards where ``spec`` says so).
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


def masks_from_logits(logits: FloatArray, spec: ModelSpec) -> MaskArray:
    """Cut logits into masks.

    Args:
        logits: (N, K, H, W) float32.
        spec: gives the threshold of a one-class model.

    Returns:
        (N, H, W) uint8: 0 or 1 where K is 1 (``logit >= ln(t / (1 - t))``), else the index of the largest logit.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0] >= np.float32(spec.logit_threshold)).astype(np.uint8)
    classes: MaskArray = logits.argmax(axis=1).astype(np.uint8)
    return classes


def read_mask(path: Path, classes: int) -> MaskArray:
    """Read a true mask.

    Args:
        path: an 8-bit gray or palette image; a palette's indices are the values, not its colours.
        classes: the model's number of classes. With 1, what is brighter than half of the brightest pixel is foreground,
            so that 0/1, 0/255 and JPEG's blurred edges all do; with several the values are class indices.

    Returns:
        (H, W) uint8: 0 or 1, or class indices.

    Raises:
        ImageError: missing, broken, in colour, or with a value that is no class; the message names the file.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # broken PNG chunks are a SyntaxError
        raise ImageError(f"cannot read the mask {path}: {error}", hint="copy it again, or leave it out") from error
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., :3]).all():
        pixels = pixels[..., 0]  # gray, written with three equal channels
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.bool_):
        raise ImageError(f"the mask {path} is no 8-bit gray or palette image", hint="write 0/255, or class indices")
    if classes == 1:
        return (pixels.astype(np.uint8) > int(pixels.max()) // 2).astype(np.uint8)
    mask = pixels.astype(np.uint8)
    if (largest := int(mask.max())) >= classes:
        raise ImageError(
            f"the mask {path} has the value {largest}, and the model has {classes} classes",
            hint=f"write class indices from 0 to {classes - 1}",
        )
    return mask


def resize_mask(mask: MaskArray, size: tuple[int, int]) -> MaskArray:
    """Nearest-neighbour resize about pixel centres, so that the mask lies where the antialiased input did.

    Args:
        mask: (H, W) uint8.
        size: (height, width) wanted, in pixels.

    Returns:
        (height, width) uint8 with no value that ``mask`` lacks.
    """
    height, width = size
    if mask.shape == size:
        return mask
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)


def write_png(path: Path, pixels: MaskArray) -> None:
    """Write an 8-bit PNG, whole or not at all.

    Args:
        path: its folder is made where it is missing.
        pixels: (H, W) gray or (H, W, 3) RGB uint8.

    Raises:
        OutputError: the file cannot be written.
    """
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    write_bytes(path, cv2.imencode(".png", bgr)[1].tobytes())
