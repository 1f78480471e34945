"""Read TIFF files with tifffile, which decodes bands of any number and type as they are stored."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL.JpegImagePlugin import JpegImageFile

from segx.errors import ImageError

if TYPE_CHECKING:
    from tifffile import TiffPage

Pixels = npt.NDArray[Any]

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_BITS, _PHOTOMETRIC = 258, 262
_JPEG, _JPEG_BANDS = 7, (1, 3, 4)
# None, fax, LZW, JPEG, deflate, PackBits, LZMA and Zstandard; other decoders may return more than the image has.
_COMPRESSIONS = (1, 2, 3, 4, 5, _JPEG, 8, 32946, 32773, 34925, 50000)
_WITHOUT_PREDICTION = (1, 32773)  # libtiff does not predict there either, whatever the tags say
_ALPHA = (1, 2)
_MOST_PALETTE_BITS = 8
# The pages of a damaged file may come in a circle.
_MOST_PAGES = 1000
# A strip or tile may have more pixels than the image only up to this.
_LARGE_PART_PIXELS = 1 << 24

# What it logs of damaged files would be printed if the program has no handler.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@contextlib.contextmanager
def first_page(data: bytes) -> Iterator[TiffPage]:
    """Give the first page of a TIFF file, whose pixels are not decoded yet."""
    from tifffile import TiffFile

    with TiffFile(io.BytesIO(data)) as file:
        yield file.pages.first


def whole_pages(page: TiffPage) -> int:
    """Return the number of pages in the file of a page that are images of their own, not masks or reduced images."""
    count = 0
    with contextlib.suppress(Exception):  # of pages after the first that are damaged
        for frame in itertools.islice(page.parent.pages, _MOST_PAGES):
            other = frame.aspage()
            count += not (other.is_reduced or other.is_mask)
    return max(1, count)


def read_tiff(data: bytes, name: str, channels: int) -> tuple[Pixels, bool]:
    """Return the pixels of the first page, unturned, and whether they are colours.

    Integers of fewer bits are scaled to 8 or 16, white that is stored as 0 is inverted, palettes and CMYK become
    colours, and alpha beside gray is dropped, unless there are as many bands as ``channels``.

    Returns:
        (H, W, bands) of the file's type: BGR or BGRA, as OpenCV decodes colours, or bands in the order stored.

    Raises:
        ImageError: the file has pixels that are not supported.
        Exception: it is damaged.
    """
    with first_page(data) as page:
        if reason := _unreadable(page):
            raise ImageError(f"{name} {reason}", hint="save it as gray or RGB, with deflate, LZW or no compression")
        _check_parts(page, data)
        if page.compression in _WITHOUT_PREDICTION:
            page.predictor = 1
        planes, _, height, width, samples = page.shaped
        pixels = page.asarray(squeeze=False, maxworkers=1)[:, 0]
        photometric, bits, alpha, colours = _photometric(page), page.bitspersample, page.extrasamples, page.colormap
    pixels = np.moveaxis(pixels, 0, 2).reshape(height, width, planes * samples)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if photometric == _PALETTE and colours is not None:
        return _of_palette(pixels[..., 0], colours), True
    pixels = _with_full_range(pixels, bits)
    if photometric == _WHITE_IS_ZERO and pixels.dtype.kind == "u":
        pixels = np.iinfo(pixels.dtype).max - pixels
    elif photometric == _CMYK:
        pixels = _of_cmyk(pixels)
    bands = pixels.shape[2]
    if photometric in (_RGB, _CMYK, _YCBCR) and bands in (3, 4):
        return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][:bands]]), True
    if bands == 2 != channels and alpha and alpha[0] in _ALPHA:
        pixels = np.ascontiguousarray(pixels[..., :1])
    return pixels, False


def _photometric(page: TiffPage) -> int:
    return int(page.tags.valueof(_PHOTOMETRIC, _BLACK_IS_ZERO))


def _unreadable(page: TiffPage) -> str | None:
    photometric = _photometric(page)
    if page.compression not in _COMPRESSIONS:
        return f"has the TIFF compression {int(page.compression)}, which segx cannot decode"
    if photometric > _YCBCR or (photometric == _YCBCR and (page.compression != _JPEG or page.shaped[0] > 1)):
        return f"has the TIFF colour space {photometric}, which segx cannot decode"
    if page.dtype is None or page.dtype.kind not in "buif" or (page.imagedepth, page.tiledepth) != (1, 1):
        return (
            f"has pixels of the TIFF kind {int(page.sampleformat)} in {page.bitspersample} bits, or in three dimensions"
        )
    if page.compression == _JPEG and (page.bitspersample != 8 or page.shaped[-1] not in _JPEG_BANDS):
        return f"has JPEG data of {page.shaped[-1]} bands and {page.bitspersample} bits, which segx cannot decode"
    if photometric == _PALETTE and (page.colormap is None or page.bitspersample > _MOST_PALETTE_BITS):
        return f"has no palette, or a palette of {page.bitspersample} bits"
    return None


def _check_parts(page: TiffPage, data: bytes) -> None:
    """Check the strips or tiles before memory for the pixels is used.

    Raises:
        ValueError: some are missing, cut off, or larger than the image.
    """
    if page.samplesperpixel > 1 and _BITS not in page.tags:  # tifffile leaves out tags that are cut off
        raise ValueError("the bits of each band are missing")
    rows, columns = page.chunks[:2]
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    inside = (0 < start < start + length <= len(data) for start, length in parts)
    if len(parts) < math.prod(page.chunked) or not all(inside):
        raise ValueError("strips or tiles are missing")
    if rows * columns > max(page.imagewidth * page.imagelength, _LARGE_PART_PIXELS):
        raise ValueError("the tiles are larger than the image")
    for start, length in parts if page.compression == _JPEG else ():
        width, height = JpegImageFile(io.BytesIO(data[start : start + length])).size
        if width > columns or height > rows:
            raise ValueError("a part is larger than announced")


def _of_palette(indices: Pixels, colours: Pixels) -> Pixels:
    colours = colours if colours.max() < 256 else colours >> 8  # some programs write 8 bits
    result: Pixels = colours.T[:, ::-1].astype(np.uint8)[indices.astype(np.uint8)]
    return result


def _of_cmyk(inks: Pixels) -> Pixels:
    """Convert as libtiff does, which knows no colour profile either."""
    full = np.iinfo(inks.dtype).max
    light = full - inks
    wide = np.multiply(light[..., :3], light[..., 3:4], dtype=f"u{2 * inks.itemsize}")
    wide //= full
    result: Pixels = wide.astype(inks.dtype)
    return result


def _with_full_range(pixels: Pixels, bits: int) -> Pixels:
    """Scale integers of fewer bits than their type has, so that white is its largest value."""
    if pixels.dtype == np.bool_:
        pixels = pixels.view(np.uint8)
    if pixels.dtype.kind != "u" or pixels.itemsize > 2 or bits == 8 * pixels.itemsize:
        return pixels
    full, highest = np.iinfo(pixels.dtype).max, (1 << bits) - 1
    scaled = pixels.astype(f"u{2 * pixels.itemsize}")
    scaled *= full
    scaled += highest // 2
    scaled //= highest
    result: Pixels = scaled.astype(pixels.dtype)
    return result
