from __future__ import annotations

import io
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from segx.errors import ImageError, OutputError, UsageError
from segx.masks import image_io
from segx.masks.image_io import (
    Remarks,
    decode_image,
    jpeg_scale,
    read_image,
    read_inputs,
    read_mask,
    write_png,
)
from segx.model.spec import ModelSpec
from tests.mutations import damaged, few_or_many, read_all

Block = Callable[[], AbstractContextManager[None]]
Pixels = npt.NDArray[Any]

FORMATS = ("png", "jpg", "tif", "bmp", "webp", "gif", "jp2", "avif", "ppm")


def _noise(*shape: int, dtype: type = np.uint8) -> Pixels:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def _saved(image: Image.Image, path: Path, **settings: Any) -> Path:
    image.save(path, **settings)
    return path


_side = st.integers(1, 60)

# read_image


@pytest.mark.parametrize(
    ("paths", "told"),
    [([], "no images given"), ("a.png", "a.png is not a list"), (Path("a.png"), "a.png is not a list")],
)
def test_model_input_is_made_of_a_list_of_images(paths: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_inputs(paths, ModelSpec())


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_lossless_gray_comes_back_to_the_bit(tmp_path: Path, suffix: str) -> None:
    gray = _noise(13, 21)
    path = _saved(Image.fromarray(gray), tmp_path / f"a.{suffix}")
    got = read_image(path, 1)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[..., 0], gray)
    np.testing.assert_array_equal(read_image(path, 3), np.dstack([gray] * 3))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_lossless_colour_comes_back_in_rgb_order(tmp_path: Path, suffix: str) -> None:
    rgb = _noise(13, 21, 3)
    got = read_image(_saved(Image.fromarray(rgb), tmp_path / f"a.{suffix}"), 3)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, rgb)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_read(tmp_path: Path, mode: str) -> None:
    smooth = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)
    image = Image.fromarray(smooth).convert(mode)
    path = _saved(image, tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(path, 1)[..., 0].astype(int), smooth, atol=4)
    assert read_image(path, 3).shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_kept(tmp_path: Path, suffix: str, channels: int) -> None:
    rgb = _noise(9, 11, 3, dtype=np.uint16)
    pixels = rgb[..., ::-1] if channels == 3 else rgb[..., 0]
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), pixels)
    got = read_image(path, channels)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, rgb if channels == 3 else rgb[..., :1])


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_becomes_gray_by_bt601_luma(tmp_path: Path, mode: str) -> None:
    rgb = _noise(30, 30, 3)
    path = _saved(Image.fromarray(rgb).convert(mode), tmp_path / "a.png")
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_image(path, 1)[..., 0], luma, rtol=0, atol=0.51)


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_dropped(tmp_path: Path, channels: int) -> None:
    rgb, alpha = _noise(10, 12, 3), _noise(10, 12, 1)
    opaque = _saved(Image.fromarray(rgb), tmp_path / "opaque.png")
    clear = _saved(Image.fromarray(np.dstack([rgb, alpha])), tmp_path / "clear.png")
    np.testing.assert_array_equal(read_image(clear, channels), read_image(opaque, channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_beside_gray_is_dropped(tmp_path: Path, channels: int) -> None:
    gray = _noise(10, 12)
    image = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(_noise(12, 10).T.copy())])
    got = read_image(_saved(image, tmp_path / "a.png"), channels)
    np.testing.assert_array_equal(got, np.dstack([gray] * channels))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_one_bit_becomes_0_and_255(tmp_path: Path, suffix: str) -> None:
    bits = _noise(7, 19) > 127
    path = _saved(Image.fromarray(bits), tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], np.where(bits, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_a_palette_is_resolved_into_its_colours(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(_noise(10, 12, 3)).quantize(8)
    path = _saved(image, tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(path, 3), np.asarray(image.convert("RGB")))


def test_the_first_page_of_a_tiff_counts(tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (10, 200))
    path = _saved(first, tmp_path / "a.tif", save_all=True, append_images=[second])
    assert (read_image(path, 1) == 10).all()


def _encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def _stored_turned(kind: str, mode: str, orientation: int) -> tuple[bytes, Pixels]:
    """Return a file with an orientation, and its pixels as viewers show them."""
    image = Image.fromarray(np.add.outer(20 * np.arange(5), 30 * np.arange(7)).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x112] = orientation
    settings: dict[str, Any] = {"tiffinfo": {0x112: orientation}} if kind == "TIFF" else {"exif": exif}
    if kind == "WEBP":
        settings["lossless"] = True
    data = _encoded(image, kind, **settings)
    return data, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("TIFF", "L"), ("TIFF", "RGBA")]
)
def test_images_are_turned_as_they_are_shown(kind: str, mode: str, orientation: int) -> None:
    data, shown = _stored_turned(kind, mode, orientation)
    got = decode_image(data, "a", 3)
    wanted = np.asarray(Image.fromarray(shown).convert("RGBA").convert("RGB"))
    np.testing.assert_allclose(got.astype(int), wanted, atol=12 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("JPEG", "RGB"), ("TIFF", "L"), ("TIFF", "RGBA")])
def test_the_orientation_may_be_ignored(kind: str, mode: str, orientation: int) -> None:
    data, _ = _stored_turned(kind, mode, orientation)
    stored, _ = _stored_turned(kind, mode, 1)
    got = decode_image(data, "a", 1, ignore_orientation=True)
    np.testing.assert_array_equal(got, decode_image(stored, "a", 1))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_jpeg_is_decoded_smaller_in_the_same_proportions(mode: str, channels: int, orientation: int) -> None:
    smooth = cv2.GaussianBlur(_noise(640, 960, 3), (0, 0), 12)
    exif = Image.Exif()
    exif[0x112] = orientation
    data = _encoded(Image.fromarray(smooth).convert(mode), "JPEG", quality=95, exif=exif)
    scale = jpeg_scale(data, (60, 80))
    assert scale == 4
    full, small = decode_image(data, "a", channels), decode_image(data, "a", channels, scale=scale)
    assert [side * scale for side in small.shape[:2]] == [*full.shape[:2]]
    size = small.shape[1::-1]
    averaged = cv2.resize(full, size, interpolation=cv2.INTER_AREA).reshape(small.shape)
    np.testing.assert_allclose(small.astype(int), averaged, atol=3)


@pytest.mark.parametrize(
    ("size", "kind", "least", "scale"),
    [
        ((1024, 1024), "JPEG", (64, 64), 8),
        ((1024, 1024), "JPEG", (65, 64), 4),  # would be less than twice as large
        ((1024, 1020), "JPEG", (32, 32), 4),  # 1020 is not a multiple of 8
        ((1023, 1024), "JPEG", (32, 32), 1),
        ((100, 100), "JPEG", (64, 64), 1),
        ((1024, 1024), "PNG", (64, 64), 1),
    ],
)
def test_how_much_smaller_an_image_is_decoded(
    size: tuple[int, int], kind: str, least: tuple[int, int], scale: int
) -> None:
    assert jpeg_scale(_encoded(Image.new("L", size), kind), least) == scale


def test_a_broken_jpeg_is_refused_by_its_decoding() -> None:
    data = b"\xff\xd8\xff"
    with pytest.raises(ImageError):
        decode_image(data, "a", 1, scale=jpeg_scale(data, (64, 64)))


def test_sixteen_bits_are_turned_too() -> None:
    deep = _noise(5, 7, dtype=np.uint16)
    exif = Image.Exif()
    exif[0x112] = 6
    got = decode_image(_encoded(Image.fromarray(deep), "PNG", exif=exif), "a", 1)
    np.testing.assert_array_equal(got[..., 0], np.rot90(deep, -1))


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # as segx has it; pytest undoes that
def test_an_orientation_that_cannot_be_read_is_none() -> None:
    image = Image.fromarray(_noise(5, 7))
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        assert decode_image(_encoded(image, "JPEG", exif=exif), "a", 1).shape == (5, 7, 1)


_LOSSLESS = {"WEBP": {"lossless": True}, "GIF": {}, "JPEG2000": {"irreversible": False}, "PPM": {}}


@pytest.mark.parametrize("kind", _LOSSLESS)
@pytest.mark.parametrize("name", ["a.webp", "a.jpg"])
def test_other_formats_are_read_by_their_content(kind: str, name: str) -> None:
    image = Image.fromarray(_noise(40, 30, 3)).quantize(64)
    data = _encoded(image if kind == "GIF" else image.convert("RGB"), kind, **_LOSSLESS[kind])
    np.testing.assert_array_equal(decode_image(data, name, 3), np.asarray(image.convert("RGB")))


def test_avif_is_read() -> None:
    smooth = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)
    got = decode_image(_encoded(Image.fromarray(np.dstack([smooth] * 3)), "AVIF", quality=95), "a", 1)
    np.testing.assert_allclose(got[..., 0].astype(int), smooth, atol=6)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_read_and_said(kind: str) -> None:
    first, second, third = (Image.fromarray(np.full((8, 6), value, np.uint8)) for value in (200, 10, 90))
    data = _encoded(first, kind, save_all=True, append_images=[second, third])
    remarks = Remarks()
    assert (abs(decode_image(data, "a.x", 1, remarks=remarks).astype(int) - 200) < 4).all()
    decode_image(_encoded(first, "PNG"), "b.png", 1, remarks=remarks)
    assert remarks.lines() == ["the first page or frame is read of 1 image (the first: a.x) with up to 3"]


def test_cmyk_has_the_colours_that_are_shown() -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        got = decode_image(_encoded(image, kind, quality=95), "a", 3)
        np.testing.assert_allclose(got[8, 8].astype(int), (200, 40, 90), atol=6)


# TIFF: bands, types of pixels


def _tiff(
    pixels: Pixels, *, photometric: int = 1, separate: bool = False, body: bytes = b"", **more: tuple[int, ...]
) -> bytes:
    """Return a TIFF file of (H, W, bands), uncompressed unless other tags and ``body`` are given."""
    height, width, bands = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    planes = [pixels[..., band] for band in range(bands)] if separate else [pixels]
    body = body or b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes)
    size = len(body) // len(planes)
    tags: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (8 * pixels.itemsize,) * bands,
        259: (1,),
        262: (photometric,),
        273: tuple(8 + n * size for n in range(len(planes))),
        277: (bands,),
        278: (height,),
        279: (size,) * len(planes),
        284: (2 if separate else 1,),
        339: (kind,) * bands,
        **{int(name[1:]): value for name, value in more.items()},
    }
    place = 8 + len(body)
    values_at = place + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHI", tag, 4, len(numbers))
        entries += packed if len(numbers) == 1 else struct.pack("<I", values_at + len(values))
        values += b"" if len(numbers) == 1 else packed
    return b"II*\0" + struct.pack("<I", place) + body + struct.pack("<H", len(tags)) + entries + bytes(4) + values


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [2, 3, 4, 5, 13])
def test_as_many_bands_as_channels_come_back_to_the_bit(bands: int, dtype: type, separate: bool) -> None:
    pixels = _noise(9, 11, bands, dtype=dtype)
    got = decode_image(_tiff(pixels, separate=separate), "a.tif", bands)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, pixels)


@pytest.mark.parametrize(("bands", "channels"), [(5, 3), (5, 1), (2, 1), (3, 1), (4, 3), (3, 4), (1, 4)])
def test_another_number_of_bands_is_refused_by_number(bands: int, channels: int) -> None:
    with pytest.raises(ImageError, match=rf"a\.tif has {bands} bands?, and the model takes {channels} channel"):
        decode_image(_tiff(_noise(9, 11, bands)), "a.tif", channels)


@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize("bands", [3, 5])
def test_compressed_bands_come_back_to_the_bit(bands: int, differences: bool) -> None:
    pixels = _noise(40, 33, bands)
    stored = np.diff(pixels, axis=1, prepend=np.uint8(0)) if differences else pixels
    data = zlib.compress(stored.tobytes())
    file = _tiff(pixels, body=data, _259=(8,), _279=(len(data),), _317=(1 + differences,))
    np.testing.assert_array_equal(decode_image(file, "a.tif", bands), pixels)


def test_rgba_images_are_for_models_of_four_channels() -> None:
    rgba = _noise(9, 11, 4)
    for data in (_encoded(Image.fromarray(rgba), "PNG"), _tiff(rgba, photometric=2, _338=(2,))):
        np.testing.assert_array_equal(decode_image(data, "a", 4), rgba)
        np.testing.assert_array_equal(decode_image(data, "a", 3), rgba[..., :3])


def test_white_stored_as_zero_is_white() -> None:
    for dtype in (np.uint8, np.uint16):
        pixels = _noise(9, 11, 1, dtype=dtype)
        got = decode_image(_tiff(pixels, photometric=0), "a.tif", 1)
        np.testing.assert_array_equal(got, np.iinfo(dtype).max - pixels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_up_to_one_are_read(dtype: type) -> None:
    pixels = np.linspace(0, 1, 99).reshape(9, 11, 1).astype(dtype)
    got = decode_image(_tiff(pixels), "a.tif", 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.repeat(pixels, 3, axis=2).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "highest", "level"),
    [(np.float32, 220, 255), (np.int32, 220, 255), (np.int16, 4000, 4095), (np.uint32, 70_000, 70_000)],
)
def test_other_types_need_a_white_level(dtype: type, highest: int, level: int) -> None:
    pixels = np.linspace(0, highest, 99).reshape(9, 11, 1).astype(dtype)
    with pytest.raises(ImageError, match=rf"{np.dtype(dtype).name} pixels up to {highest}") as caught:
        decode_image(_tiff(pixels), "a.tif", 1)
    assert f"--white-level {level}," in caught.value.hint
    got = decode_image(_tiff(pixels), "a.tif", 1, white_level=level)
    np.testing.assert_array_equal(got, pixels.astype(np.float32))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((4, 4, 1), -5, np.int16), "int16 pixels below 0, down to -5"),
        (np.full((4, 4, 1), -0.5, np.float32), "float32 pixels below 0, down to -0.5"),
        (np.full((4, 4, 1), np.nan, np.float32), "float32 pixels that are not finite"),
    ],
)
def test_pixels_without_brightness_are_refused_by_reason(pixels: Pixels, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(_tiff(pixels), "a.tif", 1, white_level=255)


@pytest.mark.parametrize(
    ("changed", "reason"), [({"_259": (50002,)}, "compression 50002"), ({"_262": (8,)}, "colour space 8")]
)
def test_what_opencv_cannot_decode_is_refused_by_reason(changed: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(_tiff(_noise(4, 5, 3), **changed), "a.tif", 3)


def _told(white_level: float | None, *images: Pixels) -> list[str]:
    remarks = Remarks(white_level)
    for number, pixels in enumerate(images):
        decode_image(_tiff(pixels), f"{number}.tif", 1, white_level=white_level, remarks=remarks)
    return remarks.lines()


def test_a_palette_of_16_bits_is_refused_by_reason() -> None:
    with pytest.raises(ImageError, match="palette of 16 bits"):
        decode_image(_tiff(_noise(4, 5, 1, dtype=np.uint16), photometric=3), "a.tif", 1)


def test_sixteen_bits_that_use_few_of_them_are_told_once() -> None:
    images = [np.full((4, 4, 1), highest, np.uint16) for highest in (0, 900, 3520, 9000, 65535)]
    (line,) = _told(None, *images)
    assert "no pixel is above 3520 of 65535 in 2 images (the first: 1.tif)" in line
    assert "--white-level 4095" in line
    assert not _told(None, *images[3:])
    assert not _told(4095, *images[:3])


def test_pixels_that_do_not_fit_the_white_level_are_told_once() -> None:
    dark, fitting, bright = (np.full((4, 4, 1), value, np.float32) for value in (0.8, 220, 3520))
    assert not _told(255, fitting)
    assert _told(255, dark, fitting, bright, bright) == [
        "--white-level 255 cuts off brighter pixels, up to 3520, of 2 images (the first: 2.tif)",
        "no pixel is above 0.8 in 1 image (the first: 0.tif), far below --white-level 255",
    ]


# Sizes and lengths that a file announces


_BOMB = """
import resource, sys
from segx.errors import ImageError
from segx.masks.image_io import decode_image
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_image(data, "a", 1)
except ImageError as error:
    print(error.message)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _lying_files() -> dict[str, bytes]:
    image = Image.fromarray(_noise(60, 80, 3))
    png, jpeg = _encoded(image, "PNG"), _encoded(image, "JPEG")
    webp, jp2 = _encoded(image, "WEBP", lossless=True), _encoded(image, "JPEG2000")
    at = jpeg.index(b"\xff\xc0") + 5
    codestream, header = jp2.index(b"\xff\x51"), jp2.index(b"ihdr")
    many = bytearray(jp2)
    many[codestream + 6 : codestream + 14] = many[header + 4 : header + 12] = struct.pack(">II", 11_000, 11_000)
    gif = bytearray(_encoded(image.quantize(8), "GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    return {
        "png text": png[:33] + struct.pack(">I4s", 0x7FFFFFF0, b"tEXt") + png[33:],
        "png palette": png[:33] + struct.pack(">I4s", 0x7FFFFFF0, b"PLTE") + png[33:],
        "png pixels": png[:33] + struct.pack(">I4s", 0x40000000, b"IDAT") + png[41:],
        "jpeg size": jpeg[:at] + struct.pack(">HH", 11_000, 11_000) + jpeg[at + 4 :],
        "webp": webp[:16] + struct.pack("<I", 0x7FFFFFF0) + webp[20:],
        "gif canvas": bytes(gif),
        "jpeg 2000": bytes(many),
    }


@pytest.mark.parametrize("name", _lying_files())
def test_a_length_beyond_the_file_takes_no_memory(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", _BOMB], input=_lying_files()[name], capture_output=True, check=True)
    *message, kibibytes = done.stdout.decode().splitlines()
    assert message
    assert int(kibibytes) < 50_000


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused_by_name(tmp_path: Path, suffix: str, kept: float) -> None:
    path = _saved(Image.fromarray(_noise(60, 80, 3)), tmp_path / f"cut.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}"):
        read_image(path, 1)


def test_a_jpeg_that_a_broken_transfer_left_with_zeros_is_refused() -> None:
    data = _encoded(Image.fromarray(_noise(60, 80, 3)), "JPEG")
    half = len(data) // 2
    with pytest.raises(ImageError, match="its end is missing"):
        decode_image(data[:half] + bytes(100 * half), "a.jpg", 1)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [b"", b"no image at all\n" * 20, b"\x89PNG\r\n\x1a\n", _png_header(100_000, 100_000), _png_header(0, 5)],
    ids=["empty", "text", "magic only", "absurdly large", "no pixels"],
)
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.png") as caught:
        read_image(tmp_path / "bad.png", 1)
    assert caught.value.hint


def test_missing_files_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: No such file"):
        read_image(tmp_path / "gone.png", 1)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png"):
        read_image(tmp_path / "folder.png", 1)
    with pytest.raises(ImageError, match=r"below\.png"):
        read_image(_saved(Image.fromarray(_noise(2, 2)), tmp_path / "a.png") / "below.png", 1)


def test_unreadable_files_are_refused_by_name(locked_folder: Path, unprivileged: Block) -> None:
    path = _saved(Image.fromarray(_noise(2, 2)), locked_folder / "secret.png")
    path.chmod(0o000)
    with unprivileged(), pytest.raises(ImageError, match=r"secret\.png: Permission denied"):
        read_image(path, 1)


# write_png


@given(hnp.arrays(np.uint8, st.tuples(_side, _side) | st.tuples(_side, _side, st.just(3))))
def test_png_round_trip(pixels: npt.NDArray[np.uint8]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "a.png"
        write_png(path, pixels)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
        got = read_image(path, 1 if pixels.ndim == 2 else 3)
    np.testing.assert_array_equal(got if pixels.ndim == 3 else got[..., 0], pixels)


def test_a_png_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"a\.png"):
        write_png(tmp_path / "file" / "a.png", _noise(2, 2))


# read_mask


def _mask_file(folder: Path, pixels: npt.NDArray[np.uint8], mode: str | None = None) -> Path:
    path = folder / "mask.png"
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray(pixels, mode="P")
        image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(path)
    return path


@pytest.mark.parametrize("bright", [1, 255])
def test_a_true_mask_may_be_0_1_or_0_255(tmp_path: Path, bright: int) -> None:
    wanted = np.array([[0, 1], [1, 0]], np.uint8)
    np.testing.assert_array_equal(read_mask(_mask_file(tmp_path, wanted * np.uint8(bright)), 1), wanted)


def test_an_empty_true_mask_is_empty(tmp_path: Path) -> None:
    assert not read_mask(_mask_file(tmp_path, np.zeros((3, 3), np.uint8)), 1).any()


def test_the_indices_of_a_palette_are_the_classes(tmp_path: Path) -> None:
    wanted = np.array([[0, 1, 2]], np.uint8)
    np.testing.assert_array_equal(read_mask(_mask_file(tmp_path, wanted, "P"), 3), wanted)


def test_a_mask_is_turned_as_its_image_is(tmp_path: Path) -> None:
    wanted = _noise(5, 7) // 128
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(np.rot90(wanted)).save(tmp_path / "mask.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", 2), wanted)


def test_gray_written_as_three_channels_is_gray(tmp_path: Path) -> None:
    wanted = np.array([[0, 2], [1, 1]], np.uint8)
    np.testing.assert_array_equal(read_mask(_mask_file(tmp_path, np.repeat(wanted[..., None], 3, axis=2)), 3), wanted)


def test_a_value_that_is_no_class_is_named(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(_mask_file(tmp_path, np.array([[0, 255]], np.uint8)), 2), [[0, 1]])
    with pytest.raises(ImageError, match=r"255.*2 classes"):  # 255 may stand for pixels to ignore
        read_mask(_mask_file(tmp_path, np.array([[0, 1, 255]], np.uint8)), 2)
    with pytest.raises(ImageError, match=r"255.*3 classes"):
        read_mask(_mask_file(tmp_path, np.array([[0, 255]], np.uint8)), 3)


def test_a_mask_in_colour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="gray or palette"):
        read_mask(_mask_file(tmp_path, np.array([[[0, 1, 2]]], np.uint8)), 1)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_broken_mask_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"mask\.png"):
        read_mask(tmp_path / "mask.png", 1)


# Damaged files


def _saved_in_every_way() -> dict[str, bytes]:
    """Return small images of every format, plain, with several pages, compressed and with EXIF data."""
    gray, colour = Image.fromarray(_noise(12, 16)), Image.fromarray(_noise(12, 16, 3))
    exif = Image.Exif()
    exif[0x112] = 6
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "png": (gray, {"exif": exif}),
        "png-palette": (gray.convert("P"), {}),
        "jpeg": (colour, {"exif": exif}),
        "jpeg-progressive": (colour, {"progressive": True}),
        "bmp": (gray, {}),
        "gif": (gray, {"save_all": True, "append_images": [gray.rotate(180)]}),
        "webp": (colour, {"save_all": True, "append_images": [colour.rotate(180)]}),
        "webp-lossless": (colour, {"lossless": True, "exif": exif}),
        "jpeg2000": (colour, {}),
        "avif": (colour, {}),
        "ppm": (colour, {}),
        "tiff": (gray, {"save_all": True, "append_images": [gray]}),
        "tiff-lzw": (colour, {"compression": "tiff_lzw"}),
        "tiff-group4": (gray.convert("1"), {"compression": "group4"}),
    }
    files = {"pgm-text": b"P2\n4 1\n255\n0 1 2 255"}
    for name, (image, settings) in made.items():
        stream = io.BytesIO()
        image.save(stream, name.partition("-")[0].replace("jpeg2000", "JPEG2000"), **settings)
        files[name] = stream.getvalue()
    return files | {
        "tiff-bands": _tiff(_noise(12, 16, 5)),
        "tiff-planes": _tiff(_noise(12, 16, 5), separate=True),
        "tiff-half": _tiff(np.ones((12, 16, 1), np.float16)),
    }


@few_or_many
@pytest.mark.parametrize("kind", _saved_in_every_way())
def test_damaged_images_and_masks_are_image_errors(tmp_path: Path, kind: str, count: int) -> None:
    mask = tmp_path / "mask.png"

    def read_as_mask(data: bytes) -> None:
        mask.write_bytes(data)
        read_mask(mask, 2)

    files = damaged(_saved_in_every_way()[kind], count)
    read_all(files, lambda data: decode_image(data, "a", 3), lambda data: decode_image(data, "a", 5), read_as_mask)


@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_a_compressed_tiff_with_a_hole_is_broken(compression: str, bands: int) -> None:
    """OpenCV leaves pixels black that libtiff cannot decode."""
    pixels = _noise(64, 64, bands) if bands > 1 else _noise(64, 64)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "TIFF", compression=compression)
    whole = stream.getvalue()
    assert np.array_equal(decode_image(whole, "a.tif", bands).reshape(pixels.shape), pixels)
    middle = len(whole) // 2
    with pytest.raises(ImageError, match="its pixels are cut off or damaged"):
        decode_image(whole[:middle] + bytes(200) + whole[middle + 200 :], "a.tif", bands)


def test_a_whole_tiff_that_opencv_cannot_decode_is_not_called_broken() -> None:
    four_bits = _tiff(_noise(8, 4, 1), _256=(8,), _258=(4,))
    with pytest.raises(ImageError, match=r"a\.tif is a TIFF file of a kind that OpenCV cannot decode") as caught:
        decode_image(four_bits, "a.tif", 1)
    assert "8 or 16 bits" in caught.value.hint


@pytest.mark.parametrize("mode", ["LA", "CMYK"])
def test_a_whole_jpeg_2000_that_opencv_cannot_decode_is_not_called_broken(mode: str) -> None:
    whole = _encoded(Image.fromarray(_noise(64, 64, 3)).convert(mode), "JPEG2000")
    with pytest.raises(ImageError, match=r"a\.jp2 is a JPEG 2000 file of a kind that OpenCV cannot decode") as caught:
        decode_image(whole, "a.jp2", 1)
    assert caught.value.hint == "convert it to PNG or TIFF"


@pytest.mark.parametrize("no_jp2", [True, False])
def test_a_jpeg_2000_without_an_end_is_broken(no_jp2: bool) -> None:
    """A copy that was interrupted, of a size that was set before, ends in zeros."""
    whole = _encoded(Image.fromarray(_noise(64, 64, 3)), "JPEG2000", no_jp2=no_jp2)
    assert decode_image(whole, "a.jp2", 3).shape == (64, 64, 3)
    for length in (len(whole) // 2, len(whole) - 2):
        with pytest.raises(ImageError, match=r"a\.jp2 is broken: its end is missing"):
            decode_image(whole[:length] + bytes(len(whole) - length), "a.jp2", 3)


# 0, 1024, 2048 and 4095 in each of four rows, as OpenJPEG stores 12 bits.
_TWELVE_BITS = bytes.fromhex(
    "ff4fff5100290000000000040000000400000000000000000000000400000004000000000000000000010b0101ff52000c0000000100000404"
    "0001ff5c00044060ff90000a0000000000250001ff93dfe050116234f949bf259a254293bd9a95c1501501500fffd9"
)


def _pnm(kind: int, maximum: int, values: list[int]) -> bytes:
    header = f"P{kind} # a comment\n{len(values)} 1\n{maximum}\n".encode()
    if kind == 2:
        return header + " ".join(map(str, values)).encode()
    return header + np.array(values, ">u2" if maximum > 255 else "u1").tobytes()


def _avif(bits: int) -> bytes:
    full = (1 << bits) - 1
    pixels = np.repeat(np.array([0, full // 2, full], np.uint16), 16)[None].repeat(16, axis=0)
    settings = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100]
    return cv2.imencode(".avif", np.dstack([pixels] * 3), settings)[1].tobytes()


_LEVELS = (15, 100, 255, 1023, 4095, 65535)


@pytest.mark.parametrize(
    ("data", "shares"),
    [
        *((_pnm(kind, most, [0, most // 2, most]), (0, most // 2 / most, 1)) for kind in (2, 5) for most in _LEVELS),
        (_TWELVE_BITS, (0, 1024 / 4095, 2048 / 4095, 1)),
        (_avif(10), (0, 0.5, 1)),
        (_avif(12), (0, 0.5, 1)),
    ],
)
def test_white_is_what_the_header_says(data: bytes, shares: tuple[float, ...]) -> None:
    remarks = Remarks()
    row = decode_image(data, "a", 1, remarks=remarks)[0, :, 0]
    assert row[:: len(row) // len(shares)] / np.iinfo(row.dtype).max == pytest.approx(shares, abs=1 / 255)
    assert remarks.lines() == []


@pytest.mark.parametrize("most", [100, 1023])
def test_a_white_level_is_one_of_the_stored_pixels(most: int) -> None:
    data = _pnm(5, most, [0, most // 2, most])
    assert decode_image(data, "a", 1, white_level=most)[0, :, 0].tolist() == [0, most // 2, most]


def test_a_mask_that_announces_more_than_it_holds_is_not_decoded(tmp_path: Path) -> None:
    png = bytearray(_mask_file(tmp_path, _noise(4, 4)).read_bytes())
    png[33:37] = struct.pack(">I", 2**32 - 1)  # the length of the chunk after the header
    (tmp_path / "mask.png").write_bytes(png)
    with pytest.raises(ImageError, match=r"mask\.png is broken.*longer than the file"):
        read_mask(tmp_path / "mask.png", 1)


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_io, "_LARGE_PIXELS", 10)
    decode, at_once = image_io._decoded, threading.Lock()

    def decode_alone(*arguments: Any, **keywords: Any) -> Any:
        assert at_once.acquire(blocking=False)
        try:
            return decode(*arguments, **keywords)
        finally:
            at_once.release()

    monkeypatch.setattr(image_io, "_decoded", decode_alone)
    png = cv2.imencode(".png", _noise(200, 200))[1].tobytes()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: decode_image(png, "a.png", 1), range(40)))
