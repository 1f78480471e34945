from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Callable
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
from PIL import Image

from segx.errors import ImageError, OutputError
from segx.masks.image_io import list_images, read_image, read_mask, write_png

Block = Callable[[], AbstractContextManager[None]]
Pixels = npt.NDArray[Any]

FORMATS = ("png", "jpg", "tif", "bmp")


def _noise(*shape: int, dtype: type = np.uint8) -> Pixels:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def _saved(image: Image.Image, path: Path, **settings: Any) -> Path:
    image.save(path, **settings)
    return path


_side = st.integers(1, 60)

# read_image


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


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_rotation_is_not_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = Image.fromarray(np.zeros((5, 7), np.uint8))
    image.paste(255, (0, 0, 3, 2))
    exif = image.getexif()
    exif[0x112] = orientation
    got = read_image(_saved(image, tmp_path / f"a.{suffix}", exif=exif), 1)
    assert got.shape == (5, 7, 1)
    assert got[0, 0] > 200
    assert got[-1, -1] < 50


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
def test_other_pixel_types_are_refused_by_name(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "deep.tif"
    assert cv2.imwrite(str(path), np.ones((4, 4), dtype))
    with pytest.raises(ImageError, match=r"deep\.tif has " + np.dtype(dtype).name) as caught:
        read_image(path, 1)
    assert "8 or 16 bits" in caught.value.hint


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused_by_name(tmp_path: Path, suffix: str, kept: float) -> None:
    path = _saved(Image.fromarray(_noise(60, 80, 3)), tmp_path / f"cut.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}"):
        read_image(path, 1)


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


ODD_NAMES = ["a b.png", "zeile\numbruch.png", "细胞-ñ-🔬.png", "per%cent.png", "'quote\".png", "-dash.png"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    pixels = _noise(3, 4)
    write_png(tmp_path / name, pixels)
    assert list_images(tmp_path) == [tmp_path / name]
    np.testing.assert_array_equal(read_image(tmp_path / name, 1)[..., 0], pixels)


# list_images


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images_are_listed_by_relative_path(tmp_path: Path) -> None:
    _touch(tmp_path, "b.png", "a/z.jpg", "a.tif", "a/b/c.bmp", "a-b.png", "10.png", "9.png")
    listed = [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)]
    assert listed == ["10.png", "9.png", "a/b/c.bmp", "a/z.jpg", "a-b.png", "a.tif", "b.png"]


def test_every_known_extension_counts_in_either_case(tmp_path: Path) -> None:
    names = [f"{i}.{e}" for i, e in enumerate(["png", "PNG", "jpg", "JPEG", "jpeg", "Tif", "tiff", "BMP"])]
    _touch(tmp_path, *names, "notes.txt", "a.gif", "png", "archive.png.zip")
    assert [p.name for p in list_images(tmp_path)] == names


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png", ".b.png", "._a.png", ".cache/c.png", "sub/.d/e.png", "sub/f.png")
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "f.png"]


def test_a_folder_that_is_hidden_itself_may_be_asked_for(tmp_path: Path) -> None:
    _touch(tmp_path, ".hidden/a.png")
    assert [p.name for p in list_images(tmp_path / ".hidden")] == ["a.png"]


def test_folders_are_no_images(tmp_path: Path) -> None:
    _touch(tmp_path, "folder.png/a.png")
    assert [p.name for p in list_images(tmp_path)] == ["a.png"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "notes.txt", ".hidden.png")
    with pytest.raises(ImageError, match="holds no images") as caught:
        list_images(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "png" in caught.value.hint


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone does not exist"):
        list_images(tmp_path / "gone")
    _touch(tmp_path, "a.png")
    with pytest.raises(ImageError, match=r"a\.png is not a folder"):
        list_images(tmp_path / "a.png")


def test_an_unreadable_folder_is_refused(locked_folder: Path, unprivileged: Block) -> None:
    _touch(locked_folder, "a.png")
    locked_folder.chmod(0o000)
    with unprivileged(), pytest.raises(ImageError, match="Permission denied"):
        list_images(locked_folder)


def test_a_folder_in_an_unreadable_folder_is_refused(locked_folder: Path, unprivileged: Block) -> None:
    _touch(locked_folder, "sub/a.png")
    locked_folder.chmod(0o000)
    with unprivileged(), pytest.raises(ImageError, match="sub"):
        list_images(locked_folder / "sub")


def test_an_unreadable_folder_further_down_is_not_passed_over(locked_folder: Path, unprivileged: Block) -> None:
    _touch(locked_folder, "a.png", "sub/b.png")
    (locked_folder / "sub").chmod(0o000)
    with unprivileged(), pytest.raises(ImageError, match="sub"):
        list_images(locked_folder)
    (locked_folder / "sub").chmod(0o755)


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


def test_gray_written_as_three_channels_is_gray(tmp_path: Path) -> None:
    wanted = np.array([[0, 2], [1, 1]], np.uint8)
    np.testing.assert_array_equal(read_mask(_mask_file(tmp_path, np.repeat(wanted[..., None], 3, axis=2)), 3), wanted)


def test_a_value_that_is_no_class_is_named(tmp_path: Path) -> None:
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
