"""Read images and ground-truth masks, write PNG; OpenCV and Pillow only."""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from segx.errors import ImageError, UsageError, first_line
from segx.masks.image_header import JPEG_START, BrokenHeader, Header, read_header
from segx.masks.preprocess import (
    CONVERSIONS,
    FloatArray,
    MaskArray,
    PixelArray,
    full_brightness,
    preprocess,
    with_channels,
)
from segx.masks.tiff import (
    Tags,
    bands_of,
    bits_of,
    has_alpha,
    has_plain_bands,
    hides_damage,
    is_inverted,
    is_rgb,
    read_bands,
    unreadable,
)
from segx.model.spec import ModelSpec
from segx.system.files import write_bytes
from segx.system.silence import messages_dropped

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
    *(".webp", ".gif", ".jp2", ".j2k", ".avif", ".pbm", ".pgm", ".ppm", ".pnm"),
)

IMAGE_KINDS = ", ".join(e[1:] for e in EXTENSIONS)

# Half a gigabyte per channel as float32, and several images are in memory at a time.
MAX_PIXELS = 1 << 27
_MAX_BYTES = MAX_PIXELS * 8  # no file of that many pixels is larger
# Decoders take up to 16 bytes a pixel for a while, also for files of a few bytes, so that larger images are decoded one
# at a time.
_LARGE_PIXELS = 1 << 24
_LARGE = threading.Lock()
_REDUCE = "cut it into tiles, or downscale it"

_TEXT = (b"P1", b"P2", b"P3")
_COPY = "remove it or copy it again"
_CONVERT = "convert it to PNG or TIFF"
_CONVERT_TIFF = "save it as gray or RGB of 8 or 16 bits, with deflate, LZW or no compression"
# Full brightness of 8, 10, 12, 14 and 16 bits.
_WHITE_LEVELS = (255, 1023, 4095, 16383, 65535)
# By how much smaller a JPEG image may get while it is decoded.
_SCALED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_DARK = 8  # images below this part of the range are told of

# A broken image raises ImageError; neither library's own messages are needed.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# MAX_PIXELS is checked before.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_inputs(paths: Iterable[Path | str], spec: ModelSpec) -> FloatArray:
    """Read images as a model expects them: (N, C, H, W) float32, resized, scaled and normalised as its spec says.

    Raises:
        UsageError: there is no path, or a single one that is not in a list.
        ImageError: one cannot be read.
    """
    if isinstance(paths, (str, Path)):
        raise UsageError(f"{paths} is not a list of images", hint="give paths as in ['a.png', 'b.png']")
    pixels = (read_image(Path(path), spec.in_channels, white_level=spec.white_level) for path in paths)
    images = [preprocess(each, spec) for each in pixels]
    if not images:
        raise UsageError("no images given", hint="give at least one path")
    return np.stack(images)


_REMARKS = {
    "bright": "--white-level {level:g} cuts off brighter pixels, up to {largest:g}, of {images}",
    "dark": "no pixel is above {largest:g} in {images}, far below --white-level {level:g}",
    "dark 16 bits": (
        "no pixel is above {largest} of 65535 in {images}: the model sees them dark; if they have fewer than 16 bits, "
        "give --white-level {fitting}"
    ),
    "pages": "the first page or frame is read of {images} with up to {largest}",
}
_REMARKING = threading.Lock()  # of all instances, so that they can be pickled


class Remarks:
    """What to tell about the images of a run once, not for each of them. Thread-safe."""

    def __init__(self, white_level: float | None = None) -> None:
        self._white_level = white_level
        # By what is told: the number of images, the largest value, and the first image.
        self._found: dict[str, tuple[int, float, str]] = {}

    def add(self, name: str, pages: int, pixels: PixelArray) -> None:
        """Add an image, with the number of its pages or frames."""
        if pages > 1:
            self._add("pages", pages, name)
        if self._white_level is None and pixels.dtype != np.uint16:
            return
        brightest, full = pixels.max().item(), full_brightness(pixels, self._white_level)
        if brightest > full:
            self._add("bright", brightest, name)
        elif 0 < brightest < full / _DARK:
            self._add("dark" if self._white_level else "dark 16 bits", brightest, name)

    def _add(self, what: str, value: float, name: str, images: int = 1) -> None:
        with _REMARKING:
            count, largest, first = self._found.get(what, (0, value, name))
            self._found[what] = (count + images, max(largest, value), first)

    def merge(self, other: Remarks) -> None:
        """Add what there is to tell about the images of another run."""
        for what, (count, largest, first) in other._found.items():
            self._add(what, largest, first, count)

    def lines(self) -> list[str]:
        """Return what to tell, one fact a line."""
        return [
            _REMARKS[what].format(
                images=f"{count} image{'s' * (count > 1)} (the first: {first})",
                largest=largest,
                level=self._white_level,
                fitting=_fitting_white_level(largest),
            )
            for what, (count, largest, first) in sorted(self._found.items())
        ]


def _fitting_white_level(brightest: float) -> int:
    return next((level for level in _WHITE_LEVELS if brightest <= level), math.ceil(brightest))


def read_image(
    path: Path, channels: int, *, white_level: float | None = None, remarks: Remarks | None = None
) -> PixelArray:
    """Read one image file; see ``decode_image``.

    Raises:
        ImageError: as ``decode_image``; or the file is missing, unreadable, empty or not a regular file.
    """
    return decode_image(read_file(path, str(path)), str(path), channels, white_level=white_level, remarks=remarks)


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
                raise ImageError(f"{name} is {facts.st_size / 2**30:.1f} GiB large", hint=_REDUCE)
            data = stream.read()
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror}", hint="check the path and its permissions") from error
    except ValueError as error:  # a null byte in the path
        raise ImageError(f"cannot read {name}: {error}", hint="check the path") from error
    return not_empty(data, name)


def not_empty(data: bytes, name: str) -> bytes:
    """Return the bytes of a file; raises ``ImageError`` if there are none."""
    if not data:
        raise ImageError(f"{name} is empty", hint="remove it or copy it again")
    return data


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def decode_image(
    data: bytes,
    name: str,
    channels: int,
    *,
    white_level: float | None = None,
    ignore_orientation: bool = False,
    scale: int = 1,
    remarks: Remarks | None = None,
) -> PixelArray:
    """Decode the bytes of an image file: PNG, JPEG, TIFF, BMP, WebP, GIF, JPEG 2000, AVIF, PBM, PGM or PPM.

    The first of several pages or frames is read. Alpha is dropped, unless the image has as many bands as ``channels``.

    Args:
        data: the file's content; its first bytes decide the format, not the file name.
        name: the image's name in error messages.
        channels: 1 converts colour to gray by the ITU-R BT.601 luma weights; 3 repeats gray; any other number takes
            images of that many bands.
        white_level: pixel value of full brightness, which 32-bit integers and floats above 1 need.
        ignore_orientation: leave the pixels as they are stored, instead of turned as EXIF or TIFF tags say.
        scale: by how much smaller the image gets while it is decoded; see ``jpeg_scale``.
        remarks: receives what is to be told once for many images.

    Returns:
        (H, W, ``channels``), RGB order: uint8 or uint16; float32 for other types.

    Raises:
        ImageError: broken, not an image, of more than ``MAX_PIXELS`` pixels (checked before memory is allocated), or
            of bands or pixel values that do not fit.
    """
    header = _checked_header(data, name)
    bands = bands_of(header.tags) if header.tags else 1
    plain = header.tags is not None and has_plain_bands(header.tags)
    with _LARGE if header.width * header.height > _LARGE_PIXELS else contextlib.nullcontext():
        pixels = _decoded(data, name, header, plain=plain, scale=scale)
    turned_by_opencv = header.tags is not None and not plain
    if ignore_orientation == turned_by_opencv:
        orientation = header.orientation
        pixels = _turned(pixels, {6: 8, 8: 6}.get(orientation, orientation) if turned_by_opencv else orientation)
    if header.white and white_level is None:
        pixels = _with_white(pixels, header.white)
    scaled = _scaled(pixels, name, white_level)
    if remarks is not None:
        remarks.add(name, header.pages, scaled)
    if plain and header.tags:
        if bands == channels:
            return scaled
        scaled = _as_opencv_decodes(scaled, header.tags)
        return to_channels(scaled, channels, name, colour=is_rgb(header.tags))
    return to_channels(scaled, channels, name)


def jpeg_scale(data: bytes, size: tuple[int, int]) -> int:
    """Return by how much smaller a JPEG image may be decoded for a model input of (height, width): 1, 2, 4 or 8.

    It stays twice as large, and keeps its proportions exactly. 1 for other formats.
    """
    header = None
    if data.startswith(JPEG_START):
        with contextlib.suppress(BrokenHeader):  # which decoding reports
            header = read_header(data)
    if header is None:
        return 1
    sides, least = (header.width, header.height), 2 * max(size)
    fitting = (scale for scale in _SCALED if all(side % scale == 0 and side // scale >= least for side in sides))
    return max(fitting, default=1)


def _checked_header(data: bytes, name: str) -> Header:
    """Return what an image file announces.

    Raises:
        ImageError: it is not an image, a length in it cannot be right, or it has more than ``MAX_PIXELS`` pixels.
    """
    try:
        header = read_header(data)
    except BrokenHeader as error:
        raise ImageError(f"{name} is broken: {error}", hint=_COPY) from error
    if header is None:
        raise ImageError(f"{name} is not an image of a known format", hint=f"{_COPY}, or {_CONVERT}")
    bands = bands_of(header.tags) if header.tags else 1
    if header.width * header.height > MAX_PIXELS or header.width * header.height * bands > _MAX_BYTES:
        many = f" in {bands} bands" if bands > 1 else ""
        raise ImageError(
            f"{name} has {header.width}x{header.height} pixels{many}, more than {MAX_PIXELS:,}", hint=_REDUCE
        )
    return header


def _decoded(data: bytes, name: str, header: Header, *, plain: bool, scale: int) -> Any:
    """Return pixels of any type: as OpenCV decodes them, or ``plain`` for (H, W, bands) as they are stored."""
    tags = header.tags
    if tags and (reason := unreadable(tags)):
        raise ImageError(f"{name} {reason}", hint=_CONVERT_TIFF)
    pixels: Any
    try:
        if plain and tags:
            pixels = read_bands(data, tags)
        else:
            if data.startswith(_TEXT):  # OpenCV wants white space after the last number
                data += b"\n"
            with messages_dropped():  # by libjpeg and libpng, on damaged files
                how = _SCALED[scale] | cv2.IMREAD_IGNORE_ORIENTATION if scale > 1 else cv2.IMREAD_UNCHANGED
                pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), how)
    except cv2.error as error:
        raise ImageError(f"{name} cannot be decoded: {error.err}", hint="remove it or convert it again") from error
    except (struct.error, LookupError, TypeError, ValueError) as error:  # tags that do not fit together
        raise ImageError(f"{name} is broken: its tags do not fit together", hint=_COPY) from error
    if pixels is None and _is_whole(data):
        kind, hint = ("TIFF", _CONVERT_TIFF) if tags else ("JPEG 2000", _CONVERT)
        raise ImageError(f"{name} is a {kind} file of a kind that OpenCV cannot decode", hint=hint)
    if pixels is None or (tags and hides_damage(tags) and _is_whole(data) is False):
        raise ImageError(f"{name} is broken: its pixels are cut off or damaged", hint=_COPY)
    if tags and is_inverted(tags) and (plain or bits_of(tags) > 8) and pixels.dtype.kind == "u":
        pixels = np.iinfo(pixels.dtype).max - pixels  # which OpenCV does for 8 bits
    return pixels


def _is_whole(data: bytes) -> bool | None:
    """Return whether Pillow can decode a TIFF or JPEG 2000 file, where it is no laxer than OpenCV; None for others."""
    with messages_dropped():  # by libtiff
        try:
            image = Image.open(io.BytesIO(data), formats=("TIFF", "JPEG2000"))
        except Exception:  # noqa: BLE001 - what Pillow raises is not documented
            return None
        with image:
            try:
                image.load()
            except Exception:  # noqa: BLE001 - nor is this
                return False
    return True


def _turned(pixels: Any, orientation: int) -> Any:
    """Turn stored pixels as EXIF says that they are shown."""
    if orientation == 1:
        return pixels
    turned = np.swapaxes(pixels, 0, 1) if orientation >= 5 else pixels
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(turned[rows, columns])


def _with_white(pixels: Any, white: int) -> Any:
    """Scale integers so that full brightness, which is ``white``, becomes the largest value of their type."""
    most = np.iinfo(pixels.dtype).max
    levels = np.minimum(np.rint(np.arange(most + 1) * (most / white)), most).astype(pixels.dtype)
    return levels[pixels]


def _scaled(pixels: Any, name: str, white_level: float | None) -> PixelArray:
    """Return 8 and 16 bits as they are, other types as float32, whose full brightness must be known."""
    if pixels.dtype in (np.uint8, np.uint16):
        result: PixelArray = pixels
        return result
    kind = pixels.dtype.name
    if not np.isfinite(pixels).all():
        raise ImageError(f"{name} has {kind} pixels that are not finite (NaN or infinite)", hint="fill them in")
    low, high = pixels.min().item(), pixels.max().item()
    if low < 0:
        raise ImageError(f"{name} has {kind} pixels below 0, down to {low:g}", hint="shift them to 0 or more")
    if white_level is None and (pixels.dtype.kind != "f" or high > 1):
        raise ImageError(
            f"{name} has {kind} pixels up to {high:g}, but their full brightness is unknown",
            hint=f"give it, as in --white-level {_fitting_white_level(high)}, or convert it to 8 or 16 bits",
        )
    floats: PixelArray = pixels.astype(np.float32)
    return floats


def _as_opencv_decodes(pixels: Any, tags: Tags) -> PixelArray:
    """Return bands as they are stored, (H, W, bands), as gray or BGR if they are that beside alpha."""
    bands = pixels.shape[2]
    chosen = slice(None)
    if is_rgb(tags) and bands in (3, 4):
        chosen = slice(2, None, -1)
    elif bands == 1 or (bands == 2 and has_alpha(tags)):
        chosen = slice(0, 1)
    result: PixelArray = np.ascontiguousarray(pixels[..., chosen])
    return result


def to_channels(pixels: PixelArray, channels: int, name: str, *, colour: bool = True) -> PixelArray:
    """Convert pixels as OpenCV decodes them to the channels that a model takes; see ``with_channels``.

    Without ``colour``, three or four bands are not BGR and alpha.

    Raises:
        ImageError: they have another number of bands.
    """
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    if bands != channels and ((bands, channels) not in CONVERSIONS or not (colour or bands == 1)):
        raise ImageError(
            f"{name} has {bands} band{'s' * (bands > 1)}, and the model takes {channels} channel{'s' * (channels > 1)}",
            hint=f"give images of {channels} bands" if channels > 1 else "give gray images",
        )
    return with_channels(pixels, channels)


def read_mask(path: Path, classes: int) -> MaskArray:
    """Read a ground-truth mask.

    Args:
        path: an 8-bit gray or palette image; for a palette, its indices are the values.
        classes: the model's number of classes. With one, pixels brighter than half of the brightest are foreground, so
            that 0/1, 0/255 and blurred JPEG edges all work; with several, the values are class indices. With two, 0/255
            works too.

    Returns:
        (H, W) uint8: 0 or 1, or class indices.

    Raises:
        ImageError: the file is missing, broken, in colour, or has a value that is not a class.
    """
    name = f"the mask {path}"
    data = read_file(path, name)
    _checked_header(data, name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image))
    except Exception as error:  # what Pillow raises on damaged files is not documented
        raise ImageError(f"cannot read {name}: {first_line(error)}", hint="copy it again, or leave it out") from error
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., :3]).all():
        pixels = pixels[..., 0]  # gray, written with three equal channels
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.bool_):
        raise ImageError(f"the mask {path} is not an 8-bit gray or palette image", hint="write 0/255 or class indices")
    if classes == 1:
        return (pixels.astype(np.uint8) > int(pixels.max()) // 2).astype(np.uint8)
    mask = pixels.astype(np.uint8)
    largest = int(mask.max())
    if classes == 2 and largest == 255 and ((mask == 0) | (mask == 255)).all():  # isin takes eight times the memory
        return mask // 255
    if largest >= classes:
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
