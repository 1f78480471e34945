"""What the first bytes of an image file announce, checked against the file's size before anything is decoded."""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile

from segx.masks.tiff import first_page, whole_pages
from segx.system.text import printable

# Of EXIF data that cannot be read.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")

_ORIENTATION = 274
JPEG_START = b"\xff\xd8\xff"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_JPEG_PIXELS = 256  # a byte of these: 2 bits at least code a block of 64
_JPEG_END = b"\xff\xd9"
_JPEG2000_START = b"\xff\x4f\xff\x51"
_LEAST_TILE_BYTES = 14  # of JPEG 2000: the markers around its data


class BrokenHeader(Exception):
    """The header cannot be right; the message says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """Facts about an image file.

    Attributes:
        width: of the stored pixels, before the orientation is applied, as ``height``.
        orientation: EXIF value, 1 to 8; 1 for pixels stored as they are shown.
        pages: pages or frames; only the first is read.
        bands: of a TIFF file; 1 for the others.
    """

    width: int
    height: int
    orientation: int = 1
    pages: int = 1
    bands: int = 1


def read_header(data: bytes) -> Header | None:
    """Return what the file announces; None if it is of no supported format.

    Raises:
        BrokenHeader: a length or size in it cannot be right.
    """
    parse = next((parse for start, offset, parse in _FORMATS if data.startswith(start, offset)), None)
    if parse is None:
        return None
    try:
        header = parse(data)
    except BrokenHeader:
        raise
    except Exception as error:  # what the libraries raise on damaged files is not documented
        raise BrokenHeader("its header is cut off or damaged") from error
    if min(header.width, header.height) < 1:
        raise BrokenHeader(f"its header announces {header.width}x{header.height} pixels")
    return header


def _orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data; 1 if it has none or cannot be read."""
    found = Image.Exif()
    try:
        found.load(exif)
        return _valid_orientation(found.get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - what Pillow raises on damaged EXIF data is not documented
        return 1


def _valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _pillow_header(image: ImageFile) -> Header:
    # Image.getexif() would decode the pixels of some formats.
    return Header(*image.size, _orientation(image.info.get("exif", b"")), getattr(image, "n_frames", 1))


def _png(data: bytes) -> Header:
    """Walk the chunks: OpenCV allocates what they announce.

    Pillow refuses files with much compressed text or a large colour profile, and does not see EXIF data after the
    pixels.
    """
    if data[12:16] != b"IHDR":
        raise BrokenHeader("its first chunk is not a header")
    width, height = struct.unpack_from(">II", data, 16)
    position, orientation, frames = 8, 1, 1
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + length + 12
        if end > len(data):
            what = printable(kind.decode("latin-1"))
            raise BrokenHeader(f"its {what} chunk of {length:,} bytes at byte {position:,} is longer than the file")
        if kind == b"eXIf":
            orientation = _orientation(data[position + 8 : end - 4])
        elif kind == b"acTL":
            frames = struct.unpack_from(">I", data, position + 8)[0]
        elif kind == b"IEND":
            break
        position = end
    return Header(width, height, orientation, max(1, frames))


def _jpeg(data: bytes) -> Header:
    stream = io.BytesIO(data)
    image = JpegImageFile(stream)  # read up to its pixels
    if data.rfind(_JPEG_END) < stream.tell():
        raise BrokenHeader("its end is missing")
    if not image.info.get("progressive") and math.prod(image.size) > _MOST_JPEG_PIXELS * len(data):
        raise BrokenHeader(f"its header announces {image.width}x{image.height} pixels, more than the file can hold")
    return _pillow_header(image)


def _jpeg2000(data: bytes) -> Header:
    """Read the size from the codestream, by which OpenCV allocates; Pillow reads that of the container."""
    start = data.index(_JPEG2000_START)
    right, bottom, left, top, across, down = struct.unpack_from(">6I", data, start + 8)
    width, height = right - left, bottom - top
    if not across or not down or width // across * (height // down) * _LEAST_TILE_BYTES > len(data):
        raise BrokenHeader(f"its header announces more tiles of {across}x{down} pixels than the file can hold")
    return Header(width, height)


def _tiff(data: bytes) -> Header:
    with first_page(data) as page:
        # The tags of a damaged file may be lists.
        width, height, bands = int(page.imagewidth), int(page.imagelength), int(page.samplesperpixel)
        return Header(width, height, _valid_orientation(page.tags.valueof(_ORIENTATION)), whole_pages(page), bands)


def _by_pillow(kind: type[ImageFile]) -> Callable[[bytes], Header]:
    # Image.open() would warn of large images, and refuse those that are larger than Pillow's own limit.
    return lambda data: _pillow_header(kind(io.BytesIO(data)))


_FORMATS: tuple[tuple[bytes | tuple[bytes, ...], int, Callable[[bytes], Header]], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, _png),
    (JPEG_START, 0, _jpeg),
    (TIFF_STARTS, 0, _tiff),
    (b"BM", 0, _by_pillow(BmpImageFile)),
    ((b"GIF87a", b"GIF89a"), 0, _by_pillow(GifImageFile)),
    (b"WEBP", 8, _by_pillow(WebPImageFile)),
    (b"\0\0\0\x0cjP  ", 0, _jpeg2000),
    (_JPEG2000_START, 0, _jpeg2000),
    ((b"ftypavif", b"ftypavis"), 4, _by_pillow(AvifImageFile)),
    (tuple(b"P%d%c" % (kind, space) for kind in range(1, 7) for space in b" \t\r\n"), 0, _by_pillow(PpmImageFile)),
)
