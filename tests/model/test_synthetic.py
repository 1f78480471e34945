from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from segx.errors import OutputError, UsageError
from segx.masks.image_io import read_image
from segx.model.synthetic import MIN_SIZE, Sample, generate, series, write_samples


def _digest(sample: Sample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.mask.tobytes()).hexdigest()


# Drawn once. The same pixels must come out of every numpy on every machine: results name scenes by seed and index.
@pytest.mark.parametrize(
    ("index", "seed", "height", "width", "digest"),
    [
        (0, 0, 256, 256, "607708b7475fd627a8569150cfc1fc0ed3602595cd1b0926293b15a681c6229f"),
        (7, 3, 64, 64, "86b02400e61133c1368126efa60199a373aaac04a128b6f132a6dec8092e8614"),
        (2, 1, 48, 80, "1e53b0aaeb1b0a0ffaca784c8e3f9caeb24d98b452421d327278e9642c63eca3"),
        (5, 0, 16, 16, "b3a9db8970741bd52d2e1e39ea7938cb70fb75a1d81b75984d65e04a8f53e285"),
        (41, 2, 100, 61, "142c7e364396eb77801cea52bf2f954fac91579e51f8615f43d0a837855869dd"),
    ],
)
def test_pixels_are_pinned(index: int, seed: int, height: int, width: int, digest: str) -> None:
    sample = generate(index, seed=seed, height=height, width=width)
    assert sample.image.shape == sample.mask.shape == (height, width)
    assert (sample.image.dtype, sample.mask.dtype) == (np.uint8, np.bool_)
    assert _digest(sample) == digest


def test_a_scene_does_not_depend_on_those_drawn_before() -> None:
    alone = generate(3, seed=5, height=48, width=48)
    in_a_row = list(series(5, seed=5, height=48, width=48))
    assert _digest(in_a_row[3]) == _digest(alone)
    assert [sample.name for sample in in_a_row] == [f"sample_{i:05d}" for i in range(5)]


def test_the_global_random_state_has_no_say() -> None:
    np.random.seed(1)  # noqa: NPY002 - the legacy global state is what is meant
    one = generate(0, height=32, width=32)
    np.random.seed(2)  # noqa: NPY002
    assert _digest(generate(0, height=32, width=32)) == _digest(one)


def test_seeds_and_indices_name_different_scenes() -> None:
    scenes = [generate(i, seed=s, height=32, width=32) for i in range(4) for s in range(4)]
    assert len({_digest(scene) for scene in scenes}) == len(scenes)


@pytest.mark.parametrize("index", [0, 10**6, 2**40])
def test_the_series_is_endless(index: int) -> None:
    assert generate(index, height=32, width=32).name == f"sample_{index:05d}"


@pytest.mark.parametrize(("height", "width"), [(MIN_SIZE, MIN_SIZE), (MIN_SIZE, 200), (200, MIN_SIZE), (33, 71)])
def test_small_and_oblong_scenes_can_be_drawn(height: int, width: int) -> None:
    for sample in series(5, height=height, width=width):
        assert sample.image.shape == sample.mask.shape == (height, width)
        assert np.ptp(sample.image) > 0


@pytest.mark.parametrize(
    ("index", "settings", "told"),
    [
        (0, {"height": MIN_SIZE - 1}, "256x15"),
        (0, {"width": 0}, "0x256"),
        (0, {"height": -256}, "256x-256"),
        (-1, {}, "index -1"),
        (0, {"seed": -3}, "seed -3"),
    ],
)
def test_arguments_without_sense_are_refused(index: int, settings: dict[str, int], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        generate(index, **settings)
    assert caught.value.hint


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    return list(series(24, seed=3, height=128, width=128))


def test_cells_cover_some_of_every_scene(scenes: list[Sample]) -> None:
    covered = np.array([scene.mask.mean() for scene in scenes])
    assert covered.min() > 0.01
    assert covered.max() < 0.9
    assert 0.15 < covered.mean() < 0.5


def test_cells_are_brighter_than_their_surroundings(scenes: list[Sample]) -> None:
    assert all(s.image[s.mask].mean() > s.image[~s.mask].mean() for s in scenes)


def test_no_brightness_threshold_gives_the_mask(scenes: list[Sample]) -> None:
    best = [
        max(
            np.count_nonzero((s.image >= cut) & s.mask) / np.count_nonzero((s.image >= cut) | s.mask)
            for cut in range(0, 256, 2)
        )
        for s in scenes
    ]
    assert np.median(best) < 0.95


def test_debris_shines_outside_the_mask(scenes: list[Sample]) -> None:
    bright = [np.count_nonzero(s.image[~s.mask] > np.median(s.image[s.mask])) for s in scenes]
    assert np.mean(np.array(bright) > 0) > 0.5


def test_written_files_hold_the_pixels(tmp_path: Path) -> None:
    names = list(write_samples(tmp_path, count=3, seed=4, height=32, width=48))
    assert names == ["sample_00000", "sample_00001", "sample_00002"]
    for sample in series(3, seed=4, height=32, width=48):
        image = read_image(tmp_path / "images" / f"{sample.name}.png", 1)
        mask = read_image(tmp_path / "masks" / f"{sample.name}.png", 1)
        np.testing.assert_array_equal(image[..., 0], sample.image)
        np.testing.assert_array_equal(mask[..., 0], np.where(sample.mask, 255, 0))
    assert len(list(tmp_path.rglob("*"))) == 2 + 6


def test_each_name_is_told_once_its_files_are_there(tmp_path: Path) -> None:
    for done, name in enumerate(write_samples(tmp_path, count=2, height=32, width=32), start=1):
        assert len(list(tmp_path.rglob("*.png"))) == 2 * done
        assert (tmp_path / "masks" / f"{name}.png").is_file()


def test_writing_where_a_file_is_fails(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("x")
    with pytest.raises(OutputError, match="images"):
        list(write_samples(tmp_path, count=1, height=32, width=32))


@pytest.mark.parametrize("kind", ["other", "link", "folder that is a link"])
def test_files_of_the_user_are_not_replaced(tmp_path: Path, kind: str) -> None:
    list(write_samples(tmp_path / "out", count=1, height=16, width=16))
    list(write_samples(tmp_path / "out", count=1, height=16, width=16))  # the same again
    path = tmp_path / "out" / "masks" / "sample_00000.png"
    if kind == "folder that is a link":
        path.parent.rename(tmp_path / "elsewhere")
        path.parent.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        (tmp_path / "mine").write_bytes(b"corrected by hand")
        path.symlink_to(tmp_path / "mine") if kind == "link" else (tmp_path / "mine").rename(path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"is a link|already exists"):
        list(write_samples(tmp_path / "out", count=2, height=16, width=16))
    assert path.read_bytes() == before
