"""The parity check for people's own tests."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import segx
from segx.errors import ArtifactError, InferenceError, UsageError
from segx.export import OutputKind, derive
from segx.masks.image_io import write_png
from segx.masks.preprocess import FloatArray
from segx.model.spec import ModelSpec
from segx.testing import assert_same_masks

SPEC = ModelSpec(height=32, width=32)


def _disk(images: FloatArray, radius: float = 10.0, shift: float = 0.0) -> FloatArray:
    """Return logits whose mask is a disk in each image."""
    y, x = np.mgrid[:32, :32]
    inside = radius - np.hypot(y - 16, x - 16 - shift)
    return np.repeat(inside[None, None].astype(np.float32), len(images), axis=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    chance = np.random.default_rng(0)
    for number in range(3):
        write_png(tmp_path / "photos" / f"{number}.png", chance.integers(0, 256, (40, 50), dtype=np.uint8))
    return tmp_path / "photos"


def test_a_checkpoint_its_module_and_its_export_have_the_same_masks(
    tiny_checkpoint: Path, tiny_onnx: Path, photos: Path
) -> None:
    parity = assert_same_masks(tiny_checkpoint, tiny_onnx, photos, require="noise", batch_size=2)
    assert (parity.images, parity.real_flips) == (3, 0)
    module = segx.load_model(tiny_checkpoint)
    assert_same_masks(module, tiny_onnx, sorted(photos.iterdir()), require="noise")
    assert_same_masks(segx.open_runtime(tiny_checkpoint), str(tiny_onnx), photos, require="noise")


def test_an_int8_file_is_opened_in_its_own_precision(tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    made = derive(tiny_onnx, "int8-onnxruntime", output=tmp_path / "int8.onnx", min_iou=0.0, threads=2)
    opened = segx.open_runtime(made.path)
    assert opened.infer(np.zeros((2, 1, 32, 32), np.float32)).shape == (2, 1, 32, 32)
    parity = assert_same_masks(tiny_onnx, made.path, photos, min_iou=0.0, max_flips=1.0, require=None)
    assert parity.max_abs_diff > 0


def test_the_ending_of_an_onnx_file_may_have_capitals(tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(tiny_onnx, tmp_path / "TINY.ONNX"))
    assert_same_masks(segx.open_runtime(tiny_onnx), copy, photos, require="identical")


def test_a_runtime_that_takes_another_kind_of_file_is_wrong_usage(tiny_checkpoint: Path, tiny_onnx: Path) -> None:
    with pytest.raises(UsageError, match=r"onnxruntime-cpu takes no \.safetensors"):
        segx.open_runtime(tiny_checkpoint, "onnxruntime-cpu")
    with pytest.raises(UsageError, match=r"pytorch-cpu takes no \.onnx"):
        segx.open_runtime(tiny_onnx, "pytorch-cpu")


@pytest.mark.parametrize("kind", ["probabilities", "mask"])
def test_a_file_that_does_not_return_logits_is_refused(kind: OutputKind, tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    next(entry for entry in model.metadata_props if entry.key == "segx.output_kind").value = kind
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match=f"returns {kind}, but masks are compared by logits"):
        segx.open_runtime(tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match=f"returns {kind}, but masks are compared by logits"):
        assert_same_masks(tiny_onnx, tmp_path / "other.onnx", np.zeros((1, 1, 32, 32), np.float32))


def test_edges_may_differ_and_objects_may_not() -> None:
    images = np.zeros((2, 1, 32, 32), np.float32)
    assert_same_masks(_disk, lambda batch: _disk(batch, 10.4), images, spec=SPEC, min_iou=0.8, max_flips=0.1)
    with pytest.raises(AssertionError, match=r"required to be identical, but there are edges only.*image 0 \(\d+ px"):
        assert_same_masks(
            _disk, lambda batch: _disk(batch, 10.4), images, spec=SPEC, min_iou=0.8, max_flips=0.1, require="identical"
        )
    with pytest.raises(AssertionError, match="required to be edges, but there are small changes"):
        assert_same_masks(_disk, lambda batch: _disk(batch, shift=4), images, spec=SPEC, min_iou=0.3, max_flips=0.5)


def test_the_gate_is_named() -> None:
    images = np.zeros((1, 1, 32, 32), np.float32)
    with pytest.raises(AssertionError, match=r"IoU 0\.\d+ on image 0 \(limit 0\.99\)"):
        assert_same_masks(_disk, lambda batch: _disk(batch, shift=4), images, spec=SPEC, require=None, max_flips=1.0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_flips": 50}, "max_flips 50 is not a share"),
        ({"min_iou": math.nan}, "min_iou nan is not a share"),
        ({"min_iou": -0.1}, "min_iou -0.1 is not a share"),
        ({"require": "exact"}, "require 'exact' is not known"),
        ({"batch_size": 0}, "batch size 0 is too small"),
        ({"images": np.zeros((0, 1, 32, 32), np.float32)}, r"images of shape \(0, 1, 32, 32\)"),
        ({"images": []}, "no images given"),
        ({"images": np.zeros((1, 32, 32), np.float32)}, r"images of shape \(1, 32, 32\)"),
    ],
)
def test_limits_and_images_without_sense_are_refused(wrong: dict[str, Any], told: str) -> None:
    arguments = {"images": np.zeros((1, 1, 32, 32), np.float32), "spec": SPEC, **wrong}
    with pytest.raises(UsageError, match=told):
        assert_same_masks(_disk, lambda batch: -_disk(batch), **arguments)


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits[:, :, :16],
        lambda logits: logits[:, 0],
        lambda logits: logits[:1],
        lambda logits: np.concatenate([logits, logits]),
        lambda logits: np.repeat(logits, 2, axis=1),
    ],
    ids=["other size", "no channels", "fewer", "more", "more channels"],
)
def test_logits_of_another_shape_name_their_model(change: Callable[[FloatArray], FloatArray]) -> None:
    def served(batch: FloatArray) -> FloatArray:
        return change(_disk(batch))

    images = np.zeros((3, 1, 32, 32), np.float32)
    with pytest.raises(InferenceError, match=r"model_b returned logits of shape \(.*\), not \(2, 1, 32, 32\)"):
        assert_same_masks(_disk, served, images, spec=SPEC, batch_size=2)


def test_two_functions_do_not_say_what_images_they_take() -> None:
    with pytest.raises(UsageError, match="neither model is a file"):
        assert_same_masks(_disk, _disk, np.zeros((1, 1, 32, 32), np.float32))
