from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segx.errors import ImageError, UsageError
from segx.masks import image_io
from segx.masks.image_io import read_image
from segx.predict.sources import Item, decode, fetch, open_inputs

Block = Callable[[], AbstractContextManager[None]]


def noise(*shape: int) -> image_io.MaskArray:
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8, endpoint=True)


def saved(path: Path, pixels: image_io.PixelArray | None = None) -> Path:
    assert cv2.imwrite(str(path), noise(20, 30, 3) if pixels is None else pixels)
    return path


# one image


def test_one_image(tmp_path: Path) -> None:
    inputs = open_inputs(str(saved(tmp_path / "a.jpg")))
    assert inputs.count == 1
    (item,) = inputs
    assert (item.name, item.mask) == ("a.jpg", "a.png")


@pytest.mark.parametrize("name", ["gone", "gone.png", "gone.txt", "nul\0.png"])
def test_what_does_not_exist_is_wrong_usage(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot read") as caught:
        open_inputs(str(tmp_path / name))
    assert caught.value.message.isprintable()
    assert "folder" in caught.value.hint


def test_what_is_neither_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "a.zip").touch()
    with pytest.raises(UsageError, match=r"a\.zip is no folder, image, video or list"):
        open_inputs(str(tmp_path / "a.zip"))


# fetch and decode


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_fetch_and_decode_are_read_image(tmp_path: Path, suffix: str, channels: int) -> None:
    path = saved(tmp_path / f"a.{suffix}")
    item = Item("a", path)
    np.testing.assert_array_equal(decode(fetch(item), item, channels), read_image(path, channels))


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    item = Item("a", saved(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(decode(fetch(item), item, 1)[..., 0], pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_frame_of_a_video_needs_no_file(channels: int) -> None:
    item = Item("clip.mp4/000000", Path("gone.mp4"), frame=noise(4, 6, 3))
    got = decode(fetch(item), item, channels)
    expected = (
        noise(4, 6, 3)[..., ::-1] if channels == 3 else cv2.cvtColor(noise(4, 6, 3), cv2.COLOR_BGR2GRAY)[..., None]
    )
    np.testing.assert_array_equal(got, expected)


def test_broken_images_are_called_by_their_names_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    item = Item("sub/bad\n.png", tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"sub/bad\\n\.png is broken or no image"):
        decode(fetch(item), item, 1)


def test_unreadable_files_are_named(locked_folder: Path, unprivileged: Block) -> None:
    path = saved(locked_folder / "a.png")
    path.chmod(0)
    with unprivileged(), pytest.raises(ImageError, match=r"a\.png: Permission denied"):
        fetch(Item("a.png", path))


@pytest.mark.parametrize("path", ["/dev/zero", "folder", "pipe"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match=r"cannot read x\.png: (it is no regular file|Is a directory)"):
        fetch(Item("x.png", tmp_path / path))


def test_files_that_are_refused_are_closed(tmp_path: Path) -> None:
    def next_descriptor() -> int:
        number = os.open(os.devnull, os.O_RDONLY)
        os.close(number)
        return number

    before = next_descriptor()
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageError):
            fetch(Item("x.png", path))
    assert next_descriptor() == before


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageError, match=r"a\.png is empty"):
        fetch(Item("a.png", tmp_path / "a.png"))


def test_a_file_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ImageError, match=r"a\.png has 1024\.0 GiB") as caught:
        fetch(Item("a.png", path))
    assert "tiles" in caught.value.hint


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def _tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 100)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def _jpeg(width: int, height: int) -> bytes:
    data = cv2.imencode(".jpg", noise(8, 8))[1].tobytes()
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (_png(30_000, 40_000), "30000x40000"),
        (_bmp(30_000, 40_000), "30000x40000"),
        (_bmp(30_000, -40_000), "30000x40000"),
        (_tiff(30_000, 40_000), "30000x40000"),
        (_jpeg(60_000, 50_000), "60000x50000"),
    ],
    ids=["png", "bmp", "bmp upside down", "tiff", "jpeg"],
)
def test_a_huge_image_is_refused_before_memory_is_taken(data: bytes, size: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=rf"huge has {size} pixels, more than 134,217,728"):
            decode(data, Item("huge", Path("huge")), 1)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_the_limit_itself_is_allowed(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    data = cv2.imencode(suffix, noise(20, 30))[1].tobytes()
    item = Item("a", Path("a"))
    monkeypatch.setattr(image_io, "MAX_PIXELS", 600)
    assert decode(data, item, 1).shape == (20, 30, 1)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 599)
    with pytest.raises(ImageError, match="30x20 pixels, more than 599"):
        decode(data, item, 1)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM", b"II*\0", b"MM\0*"])
def test_a_broken_header_is_a_broken_image(start: bytes) -> None:
    with pytest.raises(ImageError, match="bad is broken or no image"):
        decode(start + bytes(range(60)), Item("bad", Path("bad")), 1)


def _in_all_formats() -> list[bytes]:
    pixels = noise(12, 15, 3)
    plain = [cv2.imencode(suffix, pixels)[1].tobytes() for suffix in (".png", ".jpg", ".bmp", ".tif")]
    stream = io.BytesIO()
    Image.fromarray(pixels).quantize(8).save(stream, "TIFF", compression="tiff_lzw")
    return [*plain, stream.getvalue()]


_CHANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=5)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # as segx.masks.image_io has it; pytest undoes that
@given(st.sampled_from(_in_all_formats()), _CHANGES, st.integers(1, 10_000), st.sampled_from([1, 3]))
def test_damaged_images_are_decoded_or_refused_by_name(
    data: bytes, changes: list[tuple[int, int]], length: int, channels: int
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(data)] = value
    said = ""
    pixels = None
    try:
        pixels = decode(bytes(damaged[:length]), Item("bad", Path("bad")), channels)
    except ImageError as error:
        said = error.message
    assert said.startswith("bad ") if pixels is None else pixels.shape[2] == channels
