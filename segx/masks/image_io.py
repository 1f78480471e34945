"""Read images and ground-truth masks, write PNG; OpenCV and Pillow only."""

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
from PIL import Image

from segx.errors import ImageError
from segx.masks.preprocess import MaskArray, PixelArray, with_channels
from segx.system.files import write_bytes

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# Half a gigabyte per channel as float32, and several images are in memory at a time.
MAX_PIXELS = 1 << 27
_MAX_BYTES = MAX_PIXELS * 8  # no file of that many pixels is larger
_REDUCE = "cut it into tiles, or downscale it"

_HEADERS = (
    (b"\x89PNG", "PngImagePlugin", "PngImageFile"),
    (b"\xff\xd8", "JpegImagePlugin", "JpegImageFile"),
    (b"BM", "BmpImagePlugin", "BmpImageFile"),
    (b"II", "TiffImagePlugin", "TiffImageFile"),
    (b"MM", "TiffImagePlugin", "TiffImageFile"),
)

# A broken image raises ImageError; neither library's own messages are needed.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


def list_images(folder: Path) -> list[Path]:
    """Return all image files below a folder except hidden ones, sorted by relative path.

    Raises:
        ImageError: the folder is missing, unreadable or without images.
    """
    try:
        if not folder.is_dir():
            found = "is not a folder" if folder.exists() else "does not exist"
            raise ImageError(f"{folder} {found}", hint="pass a folder of images")
        images = [path for path in _files_below(folder) if path.suffix.lower() in EXTENSIONS]
    except OSError as error:
        where = error.filename or folder
        raise ImageError(f"cannot read {where}: {error.strerror}", hint="check the folder's permissions") from error
    if not images:
        raise ImageError(f"{folder} holds no images", hint=f"supported: {', '.join(e[1:] for e in EXTENSIONS)}")
    return sorted(images, key=lambda p: p.relative_to(folder).parts)


def _files_below(folder: Path) -> Iterator[Path]:
    # rglob would silently skip folders that cannot be read.
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files_below(entry)
        elif entry.is_file():
            yield entry


def read_image(path: Path, channels: int) -> PixelArray:
    """Read one image file.

    EXIF rotation is not applied (a TIFF's orientation tag is); alpha is dropped.

    Args:
        path: 8- or 16-bit PNG, JPEG, TIFF (first page) or BMP.
        channels: 1 converts colour to gray by the ITU-R BT.601 luma weights; 3 repeats gray.

    Returns:
        (H, W, ``channels``) uint8 or uint16, RGB order.

    Raises:
        ImageError: the file is missing, unreadable, empty, broken, too large, not an image or of another bit depth.
    """
    return decode_image(read_file(path, str(path)), str(path), channels)


def read_file(path: Path, name: str) -> bytes:
    """Read the bytes of an image file without blocking on pipes; ``name`` is its name in error messages.

    Raises:
        ImageError: the file is missing, unreadable, empty, not a regular file, or larger than any accepted image.
    """
    try:
        with open(path, "rb", opener=_open_without_blocking) as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ImageError(f"cannot read {name}: it is not a regular file", hint="pass image files")
            if facts.st_size > _MAX_BYTES:
                raise ImageError(f"{name} has {facts.st_size / 2**30:.1f} GiB", hint=_REDUCE)
            data = stream.read()
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror}", hint="check the path and its permissions") from error
    except ValueError as error:  # a null byte in the path
        raise ImageError(f"cannot read {name}: {error}", hint="check the path") from error
    if not data:
        raise ImageError(f"{name} is empty", hint="remove it or copy it again")
    return data


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def decode_image(data: bytes, name: str, channels: int) -> PixelArray:
    """Decode the bytes of an image file; see ``read_image``.

    Args:
        data: the file's content; its first bytes decide the format, not the file name.
        name: the image's name in error messages.
        channels: 1 or 3.

    Returns:
        (H, W, ``channels``) uint8 or uint16, RGB order.

    Raises:
        ImageError: broken, not an image, of another bit depth, or of more than ``MAX_PIXELS`` pixels (checked before
            memory is allocated).
    """
    width, height = _size_in_header(data) or (0, 0)
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width}x{height} pixels, more than {MAX_PIXELS:,}", hint=_REDUCE)
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{name} cannot be decoded: {error.err}", hint="remove it or convert it again") from error
    if pixels is None:
        raise ImageError(f"{name} is broken or not an image", hint="remove it or copy it again")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{name} has {pixels.dtype} pixels", hint="convert it to 8 or 16 bits per channel")
    return with_channels(pixels, channels)


def _size_in_header(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) from the header, or None for other formats and broken headers.

    Uses Pillow's format classes: ``Image.open`` would warn about large images by a process-wide limit.
    """
    found = next((names for start, *names in _HEADERS if data.startswith(start)), None)
    if found is None:
        return None
    module, kind = found
    try:
        size: tuple[int, int] = getattr(importlib.import_module(f"PIL.{module}"), kind)(io.BytesIO(data)).size
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error, EOFError):
        return None  # OpenCV reports it when decoding
    return size


def read_mask(path: Path, classes: int) -> MaskArray:
    """Read a ground-truth mask.

    Args:
        path: an 8-bit gray or palette image; for a palette, its indices are the values.
        classes: the model's number of classes. With one, pixels brighter than half of the brightest are foreground, so
            that 0/1, 0/255 and blurred JPEG edges all work; with several, the values are class indices.

    Returns:
        (H, W) uint8: 0 or 1, or class indices.

    Raises:
        ImageError: the file is missing, broken, in colour, or has a value that is not a class.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # broken PNG chunks are a SyntaxError
        raise ImageError(f"cannot read the mask {path}: {error}", hint="copy it again, or leave it out") from error
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., :3]).all():
        pixels = pixels[..., 0]  # gray, written with three equal channels
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.bool_):
        raise ImageError(f"the mask {path} is not an 8-bit gray or palette image", hint="write 0/255 or class indices")
    if classes == 1:
        return (pixels.astype(np.uint8) > int(pixels.max()) // 2).astype(np.uint8)
    mask = pixels.astype(np.uint8)
    if (largest := int(mask.max())) >= classes:
        raise ImageError(
            f"the mask {path} has the value {largest}, but the model has {classes} classes",
            hint=f"write class indices from 0 to {classes - 1}",
        )
    return mask


def write_png(path: Path, pixels: MaskArray) -> None:
    """Write (H, W) gray or (H, W, 3) RGB uint8 pixels as PNG, completely or not at all; create missing folders.

    Raises:
        OutputError: the file cannot be written.
    """
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    write_bytes(path, cv2.imencode(".png", bgr)[1].tobytes())
