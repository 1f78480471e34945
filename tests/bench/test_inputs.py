"""Inputs on disk and outputs of timed runs."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segx.bench.inputs import BatchFiles, Inputs, collect_outputs, prepare_inputs, set_aside, unlike
from segx.errors import ImageError
from segx.masks.agreement import compare_logits
from segx.masks.image_io import read_image
from segx.masks.preprocess import preprocess
from segx.model.spec import ModelSpec

SPEC = ModelSpec(height=16, width=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.png", "sub/c.png"]):
        cv2.imwrite(str(images / name), np.full((20 + i, 30), 60 * i + 10, dtype=np.uint8))
    return images


def test_images_of_a_folder_in_order(folder: Path, tmp_path: Path) -> None:
    inputs = prepare_inputs(tmp_path / "in", SPEC, folder=folder, count=64)
    assert inputs.names == ("a.png", "b.png", "sub/c.png")
    for i, name in enumerate(inputs.names):
        expected = preprocess(read_image(folder / name, 1), SPEC)
        np.testing.assert_array_equal(inputs.read(i, 1)[0], expected)


def test_the_first_images_are_taken_and_no_more_than_there_are(folder: Path, tmp_path: Path) -> None:
    assert prepare_inputs(tmp_path / "in", SPEC, folder=folder, count=2).names == ("a.png", "b.png")
    assert len(prepare_inputs(tmp_path / "in", SPEC, folder=folder, count=64).names) == 3


def _folder_of(count: int, folder: Path) -> Path:
    folder.mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:02}.png"), np.full((20, 30), number, dtype=np.uint8))
    return folder


@pytest.mark.parametrize(
    ("images", "count", "aside"),
    [
        (30, 10, [f"{number:02}" for number in range(10, 30)]),  # what is not measured is enough
        (12, 10, ["02", "05", "08", "11"]),  # every third is not measured
        (6, 64, ["02", "05"]),
        (5, 64, []),
    ],
)
def test_images_that_calibrate_are_not_measured(tmp_path: Path, images: int, count: int, aside: list[str]) -> None:
    folder = _folder_of(images, tmp_path / "images")
    kept = set_aside(folder, count)
    assert [path.stem for path in kept] == aside
    measured = prepare_inputs(tmp_path / "in", SPEC, folder=folder, count=count, without=kept).names
    assert len(measured) == min(count, images - len(kept))
    assert not {path.name for path in kept} & set(measured)


def test_true_masks_that_may_overlap_are_in_a_folder_for_each(folder: Path, tmp_path: Path) -> None:
    spec = ModelSpec(height=16, width=16, classes=2, multilabel=True)
    with pytest.raises(ImageError, match=r"0 has no mask for a\.png"):
        prepare_inputs(tmp_path / "in", spec, folder=folder, count=64, masks=tmp_path / "masks")
    for channel, value in enumerate((0, 255)):
        for image in folder.rglob("*.png"):
            path = tmp_path / "masks" / str(channel) / image.relative_to(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((20, 30), value, dtype=np.uint8))
    truth = prepare_inputs(tmp_path / "in", spec, folder=folder, count=64, masks=tmp_path / "masks").true_masks()
    assert truth is not None
    assert truth.shape == (3, 2, 16, 16)
    assert not truth[:, 0].any()
    assert truth[:, 1].all()


def test_images_of_other_brightness_or_contrast_are_unlike() -> None:
    images = np.random.default_rng(0).normal(0.5, 0.1, (4, 2, 16, 16)).astype(np.float32)
    assert unlike(images, images + np.float32(0.05)) == ""
    for other in (images * 255, images + np.float32(0.2), (images - 0.5) * 3 + 0.5):
        assert unlike(images, other).startswith("channel 0: mean 0.5, std 0.1 against")
    other = images.copy()
    other[:, 1] = 0  # one channel alone
    assert unlike(images, other).startswith("channel 1")


def test_a_broken_image_among_good_ones_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"bad\.png"):
        prepare_inputs(tmp_path / "in", SPEC, folder=folder, count=64)


def test_generated_images_follow_the_spec(tmp_path: Path) -> None:
    spec = ModelSpec(height=16, width=32, in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    inputs = prepare_inputs(tmp_path / "in", spec, folder=None, count=2)
    batch = inputs.read(0, 2)
    assert batch.shape == (2, 3, 16, 32)
    assert batch.min() < 0.0
    np.testing.assert_array_equal(batch[:, 0], batch[:, 1])


def numbered(path: Path, count: int) -> Inputs:
    """Image i is filled with i."""
    np.arange(count, dtype=np.float32).repeat(16 * 16).tofile(path)
    return Inputs(path, SPEC.input_shape, tuple(f"{i}" for i in range(count)), "", "")


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 12), batch_size=st.integers(1, 16), runs=st.integers(0, 30))
def test_every_image_is_run_and_its_first_output_kept(
    tmp_path_factory: pytest.TempPathFactory, count: int, batch_size: int, runs: int
) -> None:
    folder = tmp_path_factory.mktemp("batches")
    batches = BatchFiles(numbered(folder / "in", count), batch_size, folder / "out")
    for run in range(runs):
        batch = batches.take(run)
        assert batch.shape == (batch_size, *SPEC.input_shape)
        batches.keep(run, batch + 1000 * (run // batches.full_pass))
    assert batches.full_pass == math.ceil(count / batch_size)
    kept = collect_outputs(folder / "out", SPEC)
    assert len(kept) == batch_size * min(runs, batches.full_pass)
    assert [int(row.max()) for row in kept] == [i % count for i in range(len(kept))]
    assert not (folder / "out").exists()


def test_outputs_of_an_earlier_cell_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old" * 100)
    batches = BatchFiles(numbered(tmp_path / "in", 1), 1, tmp_path / "out")
    batches.keep(0, batches.take(0))
    assert len(collect_outputs(tmp_path / "out", SPEC)) == 1


def test_outputs_of_all_images_are_judged_without_holding_them_in_memory(tmp_path: Path) -> None:
    """Two files of 10 MiB each; masks are kept, which are a sixteenth of that."""
    spec = ModelSpec(classes=4, height=128, width=128)
    shape = (40, *spec.output_shape)
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for name in ("reference", "run"):
        logits.tofile(tmp_path / name)
    del logits
    tracemalloc.start()
    reference, run = (collect_outputs(tmp_path / name, spec) for name in ("reference", "run"))
    parity = compare_logits(reference, run, spec, [f"{i}" for i in range(len(run))])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parity.flipped_pixels == 0
    assert peak < 0.5 * reference.nbytes
