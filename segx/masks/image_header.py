"""What the first bytes of an image file announce, checked against the file's size before anything is decoded."""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import AvifImagePlugin, Image, PpmImagePlugin

from segx.masks.tiff import Tags, directories
from segx.system.text import printable

# Of EXIF data that cannot be read.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")

_ORIENTATION, _PAGE_KIND = 274, 254
_REDUCED, _MASK = 1, 4  # kinds of TIFF pages that are not images of their own
JPEG_START = b"\xff\xd8\xff"
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xfe])")
# Start of frame, of any coding.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SEQUENTIAL = (0xC0, 0xC1)
_MOST_JPEG_PIXELS = 256  # a byte of these: 2 bits at least code a block of 64
_JPEG_SCAN, _JPEG_END = 0xDA, b"\xff\xd9"
_JPEG_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xDA)))
_LEAST_TILE_BYTES = 14  # of JPEG 2000: the markers around its data
_CODESTREAM_END = b"\xff\xd9"  # which stands nowhere else in it
_TEN_BITS, _TWELVE_BITS = 0x40, 0x20  # flags of an AVIF file: more than 8 bits, and 12 of them
# Width, height and the largest value, between them white space and comments.
_PNM_MAXIMUM = re.compile(rb"P[2356](?:\s+(?:#[^\n\r]*[\n\r]\s*)*(\d+)){3}\s")
_BYTE, _WORD = 255, 65535


class BrokenHeader(Exception):
    """The header cannot be right; the message says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """Facts about an image file.

    Attributes:
        width: of the stored pixels, before the orientation is applied, as ``height``.
        orientation: EXIF value, 1 to 8; 1 for pixels stored as they are shown.
        pages: pages or frames; only the first is read.
        tags: of a TIFF file's first page; those that hold integers.
        white: pixel value of full brightness as OpenCV decodes the file; None for the largest of the pixels' type.
    """

    width: int
    height: int
    orientation: int = 1
    pages: int = 1
    tags: Tags | None = None
    white: int | None = None


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
    except Exception as error:  # positions and values beyond all bounds, and whatever Pillow raises about them
        raise BrokenHeader("its header is cut off or damaged") from error
    if min(header.width, header.height) < 1:
        raise BrokenHeader(f"its header announces {header.width}x{header.height} pixels")
    return header


def _fits(data: bytes, what: str, start: int, length: int) -> int:
    """Return the end of a part of the file."""
    if start + length > len(data):
        raise BrokenHeader(f"its {what} of {length:,} bytes at byte {start:,} is longer than the file")
    return start + length


def _text(kind: bytes) -> str:
    return printable(kind.decode("latin-1"))


def _orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data; 1 if it has none or cannot be read."""
    found = Image.Exif()
    try:
        found.load(exif)
        value = found.get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - what Pillow raises on damaged EXIF data is not documented
        return 1
    return value if value in range(1, 9) else 1


def _png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise BrokenHeader("its first chunk is not a header")
    width, height = struct.unpack_from(">II", data, 16)
    position, orientation, frames = 8, 1, 1
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = _fits(data, f"{_text(kind)} chunk", position, length + 12)
        if kind == b"eXIf":
            orientation = _orientation(data[position + 8 : end - 4])
        elif kind == b"acTL":
            frames = struct.unpack_from(">I", data, position + 8)[0]
        elif kind == b"IEND":
            break
        position = end
    return Header(width, height, orientation, max(1, frames))


def _jpeg(data: bytes) -> Header:
    position, orientation, size = 2, 1, (0, 0)
    while True:
        found = _JPEG_MARKER.search(data, position)  # decoders skip other bytes between segments
        if found is None:
            raise BrokenHeader("its pixels are missing")
        marker, position = found[1][0], found.end()
        if marker == _JPEG_SCAN:
            if data.rfind(_JPEG_END) < position:
                raise BrokenHeader("its end is missing")
            return Header(*size, orientation)
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        length = struct.unpack_from(">H", data, position)[0]
        end = _fits(data, "segment", position, length)
        if marker in _JPEG_FRAMES:
            size = struct.unpack_from(">HH", data, position + 3)[::-1]
            if marker in _JPEG_SEQUENTIAL and math.prod(size) > _MOST_JPEG_PIXELS * len(data):
                raise BrokenHeader(f"its header announces {size[0]}x{size[1]} pixels, more than the file can hold")
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", position + 2):
            orientation = _orientation(data[position + 2 : end])
        position = end


def _bmp(data: bytes) -> Header:
    offset, header = struct.unpack_from("<II", data, 10)
    _fits(data, "header", 0, offset)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return Header(width, abs(height))


def _gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    frames, position = 0, 13 + _gif_colours(flags)
    while position < len(data) and (kind := data[position]) in (0x2C, 0x21):
        if kind == 0x2C:
            frames += 1
            position += 11 + _gif_colours(data[position + 9])
        else:
            position += 2
        while length := data[position]:
            position = _fits(data, "block", position, length + 1)
        position += 1
    return Header(width, height, pages=max(1, frames))


def _gif_colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp(data: bytes) -> Header:
    size, orientation, frames = (0, 0), 1, 0
    riff = _fits(data, "RIFF", 8, struct.unpack_from("<I", data, 4)[0])
    position = 12
    while position + 8 <= riff:
        kind, length = struct.unpack_from("<4sI", data, position)
        end = _fits(data, f"{_text(kind)} chunk", position + 8, length)
        start, position = position + 8, end + end % 2
        if kind == b"VP8X":
            size = (_three(data, start + 4) + 1, _three(data, start + 7) + 1)
        elif kind == b"VP8L" and not any(size):
            bits = struct.unpack_from("<I", data, start + 1)[0]
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind == b"VP8 " and not any(size):
            size = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = _orientation(data[start:end])
    return Header(*size, orientation, max(1, frames))


def _three(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 3], "little")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield kind and content's start of the boxes of a JPEG 2000 or AVIF file."""
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if length == 1:
            length, start = struct.unpack_from(">Q", data, start)[0], start + 8
        elif length == 0:  # until the end of the file
            length = len(data) - position
        end = _fits(data, f"{_text(kind)} box", position, max(length, 8))
        yield kind, start
        position = end


def _jp2(data: bytes) -> Header:
    return _codestream(data, next(start for kind, start in list(_boxes(data)) if kind == b"jp2c"))


def _codestream(data: bytes, start: int = 0) -> Header:
    right, bottom, left, top, across, down = struct.unpack_from(">6I", data, start + 8)
    width, height = right - left, bottom - top
    bits = (data[start + 42] & 0x7F) + 1
    if data.rfind(_CODESTREAM_END) < start:
        raise BrokenHeader("its end is missing")
    if not across or not down or width // across * (height // down) * _LEAST_TILE_BYTES > len(data):
        raise BrokenHeader(f"its header announces more tiles of {across}x{down} pixels than the file can hold")
    return Header(width, height, white=_white(bits))


def _white(bits: int) -> int | None:
    return (1 << bits) - 1 if 8 < bits < 16 else None


def _avif(data: bytes) -> Header:
    for _ in _boxes(data):
        pass
    image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    exif = image.info.get("exif")  # Pillow adds the rotation that the container has
    depth = data[data.index(b"av1C") + 6] & (_TEN_BITS | _TWELVE_BITS)
    white = _white({_TEN_BITS: 10, _TEN_BITS | _TWELVE_BITS: 12}.get(depth, 8))
    return Header(*image.size, _orientation(exif) if exif else 1, getattr(image, "n_frames", 1), white=white)


def _pnm(data: bytes) -> Header:
    size = PpmImagePlugin.PpmImageFile(io.BytesIO(data)).size
    found = _PNM_MAXIMUM.match(data)
    most = int(found[1]) if found else None  # a bitmap has none
    # Of text, OpenCV scales 8 bits itself.
    is_scaled = most in (None, _BYTE, _WORD) or (most < _BYTE and data[1:2] in b"23")
    return Header(*size, white=None if is_scaled else most)


def _tiff(data: bytes) -> Header:
    pages = list(directories(data))
    tags = pages[0]
    (width,), (height,), (orientation,) = tags[256], tags[257], tags.get(_ORIENTATION, (1,))
    whole = sum(not kind[0] & (_REDUCED | _MASK) for kind in (page.get(_PAGE_KIND, (0,)) for page in pages))
    return Header(width, height, orientation if orientation in range(1, 9) else 1, max(1, whole), tags)


_FORMATS: tuple[tuple[bytes | tuple[bytes, ...], int, Callable[[bytes], Header]], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, _png),
    (JPEG_START, 0, _jpeg),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), 0, _tiff),
    (b"BM", 0, _bmp),
    ((b"GIF87a", b"GIF89a"), 0, _gif),
    (b"WEBP", 8, _webp),
    (b"\0\0\0\x0cjP  ", 0, _jp2),
    (b"\xff\x4f\xff\x51", 0, _codestream),
    ((b"ftypavif", b"ftypavis"), 4, _avif),
    (tuple(b"P%d%c" % (kind, space) for kind in range(1, 7) for space in b" \t\r\n"), 0, _pnm),
)
