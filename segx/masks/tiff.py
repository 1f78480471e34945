"""Read the tags of a TIFF file, and its bands as they are stored: OpenCV reads only gray and colours right."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Tags = Mapping[int, tuple[int, ...]]
Pixels = npt.NDArray[Any]

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANES = 273, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 317, 322, 323, 324, 325
_EXTRA, _PIXEL_KIND = 338, 339
# What a file of one band needs.
_LAYOUT = (
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _FILL_ORDER, _STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES),
    *(_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES),
)

_BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 1, 2, 3, 6
_MOST_PALETTE_BITS = 8
_SEPARATE, _DIFFERENCES = 2, 2
_JPEG = 7
# None, fax, LZW, JPEG, deflate and PackBits.
_COMPRESSIONS = (1, 2, 3, 4, 5, _JPEG, 8, 32946, 32773)
_UNSIGNED, _FLOAT, _UNTYPED = 1, 3, 4
_HALF_BITS, _BYTE = 16, 8
_LONG, _LONG8 = 4, 16
_INTEGERS = {1: "B", 3: "H", _LONG: "I", 13: "I", _LONG8: "Q"}


def directories(data: bytes) -> Iterator[Tags]:
    """Yield the tags of each page that hold integers.

    Raises:
        struct.error, OverflowError: the first page's tags are cut off.
    """
    order, big, position = _start(data)
    count, entry, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    seen = set[int]()
    while position and position not in seen:
        seen.add(position)
        try:
            number = struct.unpack_from(order + count, data, position)[0]
            position += struct.calcsize(order + count)
            end = position + number * struct.calcsize(order + entry)
            yield dict(_integers(data, data[position:end], order, entry, offset))
            position = struct.unpack_from(order + offset, data, end)[0]
        except (struct.error, OverflowError):
            if len(seen) == 1:
                raise
            return


def _start(data: bytes) -> tuple[str, bool, int]:
    """Return byte order, whether it is a BigTIFF, and where the first page's tags are."""
    order, big = "<" if data.startswith(b"II") else ">", b"+" in data[2:4]
    return order, big, struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]


def _integers(
    data: bytes, entries: bytes, order: str, entry: str, offset: str
) -> Iterator[tuple[int, tuple[int, ...]]]:
    for tag, kind, count, stored in struct.iter_unpack(order + entry, entries):
        if code := _INTEGERS.get(kind):
            size = count * struct.calcsize(code)
            start = struct.unpack(order + offset, stored)[0] if size > len(stored) else 0
            values = data[start : start + size] if size > len(stored) else stored[:size]
            if len(values) == size > 0:
                yield tag, struct.unpack(f"{order}{count}{code}", values)


def bands_of(tags: Tags) -> int:
    """Return the number of bands, alpha among them."""
    return tags.get(_SAMPLES, (1,))[0]


def bits_of(tags: Tags) -> int:
    """Return the bits of a pixel in one band."""
    return tags.get(_BITS, (1,))[0]


def is_inverted(tags: Tags) -> bool:
    """Return whether white is stored as 0."""
    return _photometric(tags) == 0


def is_rgb(tags: Tags) -> bool:
    """Return whether the first three bands are red, green and blue."""
    return _photometric(tags) == _RGB


def unreadable(tags: Tags) -> str | None:
    """Return why OpenCV cannot read a file, or would return black or wrong pixels; None if it can."""
    if (compression := tags.get(_COMPRESSION, (1,))[0]) not in _COMPRESSIONS:
        return f"has the TIFF compression {compression}, which OpenCV cannot decode"
    if (photometric := _photometric(tags)) > _YCBCR:
        return f"has the TIFF colour space {photometric}, which OpenCV cannot decode"
    if photometric == _PALETTE and bits_of(tags) > _MOST_PALETTE_BITS:
        return f"has a palette of {bits_of(tags)} bits, which OpenCV cannot decode"
    if (kind := _kind(tags)) > _FLOAT and kind != _UNTYPED:
        return "has complex numbers for pixels"
    if has_plain_bands(tags) and bands_of(tags) > 1 and not _is_separate(tags) and _predictor(tags) > _DIFFERENCES:
        return f"has {bands_of(tags)} bands with floating-point prediction, which OpenCV cannot decode"
    return None


def hides_damage(tags: Tags) -> bool:
    """Return whether OpenCV leaves pixels black that cannot be decompressed, as it does up to 8 bits."""
    return tags.get(_COMPRESSION, (1,)) != (1,) and bits_of(tags) <= _BYTE


def has_alpha(tags: Tags) -> bool:
    """Return whether the band after the colours, or after gray, is alpha."""
    return tags.get(_EXTRA, (0,))[0] in (1, 2)


def has_plain_bands(tags: Tags) -> bool:
    """Return whether OpenCV would read a file wrong whose bands can be read as they are stored.

    It takes the first of several bands for gray, multiplies colours by alpha, and knows no half precision.
    """
    if _photometric(tags) not in (0, _BLACK_IS_ZERO, _RGB) or tags.get(_COMPRESSION) == (_JPEG,):
        return False
    bands = bands_of(tags)
    return bands > (3 if is_rgb(tags) else 1) or (bands > 1 and _is_separate(tags)) or _is_half(tags)


def _photometric(tags: Tags) -> int:
    return tags.get(_PHOTOMETRIC, (_BLACK_IS_ZERO,))[0]


def _predictor(tags: Tags) -> int:
    return tags.get(_PREDICTOR, (1,))[0]


def _kind(tags: Tags) -> int:
    return tags.get(_PIXEL_KIND, (_UNSIGNED,))[0]


def _is_half(tags: Tags) -> bool:
    return bits_of(tags) == _HALF_BITS and _kind(tags) == _FLOAT


def _is_separate(tags: Tags) -> bool:
    return tags.get(_PLANES) == (_SEPARATE,)


def read_bands(data: bytes, tags: Tags) -> Pixels | None:
    """Return (H, W, bands) in the file's type, unturned; None if OpenCV cannot decode them.

    With other tags, bands that lie pixel by pixel are a file of one wide band, and each of bands stored apart is a file
    of its own, whatever compresses them.
    """
    bands, (width,), (height,) = bands_of(tags), tags[_WIDTH], tags[_HEIGHT]
    pixels: Pixels | None
    if _is_separate(tags):
        offsets, sizes = (_STRIP_OFFSETS, _STRIP_BYTES) if _STRIP_OFFSETS in tags else (_TILE_OFFSETS, _TILE_BYTES)
        parts = len(tags[offsets]) // bands
        files = ({tag: tags[tag][n * parts : (n + 1) * parts] for tag in (offsets, sizes)} for n in range(bands))
        planes = [_decoded(data, tags, own) for own in files]
        pixels = None if any(plane is None for plane in planes) else np.dstack(planes)  # type: ignore[arg-type]
    else:
        tile = tags.get(_TILE_WIDTH, (width,))[0]
        wide = {tag: (tags[tag][0] * bands,) for tag in (_WIDTH, _TILE_WIDTH) if tag in tags}
        differences = bands > 1 and _predictor(tags) == _DIFFERENCES
        pixels = _decoded(data, tags, wide | ({_PREDICTOR: (1,)} if differences else {}))
        if pixels is not None:
            pixels = pixels.reshape(height, width, bands)
            for left in range(0, width, tile) if differences else ():
                part = pixels[:, left : left + tile].view(f"u{pixels.itemsize}")
                np.cumsum(part, axis=1, dtype=part.dtype, out=part)
    if pixels is None or not _is_half(tags):
        return pixels
    halves: Pixels = pixels.view(np.float16)
    return halves


def _decoded(data: bytes, tags: Tags, changed: Tags) -> Pixels | None:
    """Decode one band of a file after changing its tags."""
    kind = _UNSIGNED if _is_half(tags) else _kind(tags)
    own: dict[int, tuple[int, ...]] = {_SAMPLES: (1,), _PHOTOMETRIC: (_BLACK_IS_ZERO,), _PIXEL_KIND: (kind,)}
    own |= {tag: tags[tag] for tag in _LAYOUT if tag in tags} | {_BITS: (bits_of(tags),)} | dict(changed)
    order, big, _ = _start(data)
    place = len(data) + -len(data) % 8
    word, kind_of_words, count = ("Q", _LONG8, "Q") if big else ("I", _LONG, "H")
    values_at = place + struct.calcsize(order + count) + len(own) * (12 + 8 * big) + struct.calcsize(word)
    entries, values = struct.pack(order + count, len(own)), b""
    for tag, numbers in sorted(own.items()):
        packed = struct.pack(f"{order}{len(numbers)}{word}", *numbers)
        inside = packed if len(numbers) == 1 else struct.pack(order + word, values_at + len(values))
        entries += struct.pack(f"{order}HH{word}", tag, kind_of_words, len(numbers)) + inside
        values += b"" if len(numbers) == 1 else packed
    start = data[:8] if big else data[:4]
    head = start + struct.pack(order + word, place)
    file = head + data[len(head) :] + bytes(place - len(data)) + entries + struct.pack(order + word, 0) + values
    pixels: Pixels | None = cv2.imdecode(np.frombuffer(file, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels
