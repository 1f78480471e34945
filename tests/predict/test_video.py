from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from segx.errors import ImageError
from segx.predict.sources import decode, fetch, open_inputs


def film(path: Path, values: list[int]) -> Path:
    """Every frame of one gray value."""
    code = cv2.VideoWriter.fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), code, 10, (64, 48))
    for value in values:
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "100%d:a b.mp4"])
def test_every_frame_is_an_item(tmp_path: Path, name: str) -> None:
    inputs = open_inputs(str(film(tmp_path / name, [0, 80, 160, 240])))
    items = list(inputs)
    assert inputs.count == 4
    assert [item.name for item in items] == [f"{name}/{number:06}" for number in range(4)]
    assert [item.mask for item in items] == [f"{name}/{number:06}.png" for number in range(4)]
    for item, value in zip(items, [0, 80, 160, 240], strict=True):
        pixels = decode(fetch(item), item, 1)
        assert pixels.shape == (48, 64, 1)
        assert abs(float(pixels.mean()) - value) < 4


def test_frames_are_decoded_as_they_are_asked_for(tmp_path: Path) -> None:
    items = iter(open_inputs(str(film(tmp_path / "a.avi", [0, 100, 200]))))
    first = next(items)
    assert first.frame is not None
    kept = first.frame.copy()
    next(items)
    np.testing.assert_array_equal(first.frame, kept)  # not the capture's own buffer


@pytest.mark.parametrize("content", [b"", b"no video" * 100])
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.mp4 is no video"):
        open_inputs(str(tmp_path / "bad.mp4"))


def test_a_video_cut_off_gives_the_frames_it_has_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = film(tmp_path / "cut.avi", [200] * 40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames = len(list(open_inputs(str(path))))
    assert 0 < frames < 40
    assert f"cut.avi announces 40 frames and holds {frames}" in caplog.text


def test_a_whole_video_is_no_cause_for_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(open_inputs(str(film(tmp_path / "a.avi", [0, 100, 200]))))) == 3
    assert not caplog.text


def test_a_name_that_is_no_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.mp4"))
    film(tmp_path / "a.mp4", [0, 0]).rename(path)
    with pytest.raises(ImageError, match=r"\\udcff\.mp4: its name is no UTF-8"):
        open_inputs(str(path))
