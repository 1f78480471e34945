"""The trained UNet++ itself: parity of the exported file on real-looking images, and that it segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segx.masks.agreement import LIMITS, breaches, compare_logits
from segx.masks.metrics import class_ious, lowest
from segx.masks.preprocess import FloatArray, MaskArray, preprocess
from segx.model import synthetic
from segx.model.checkpoint import described, read_state_dict
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, open_runtime
from segx.system import machine

IMAGES = 8


@pytest.fixture(scope="module")
def options() -> RuntimeOptions:
    return RuntimeOptions(threads=machine.usable_cores())


@pytest.fixture(scope="module")
def scenes() -> list[synthetic.Sample]:
    """From the series that training never saw."""
    return list(synthetic.series(IMAGES, seed=2))


@pytest.fixture(scope="module")
def images(scenes: list[synthetic.Sample]) -> FloatArray:
    return np.stack([preprocess(scene.image[..., None], ModelSpec()) for scene in scenes])


@pytest.fixture(scope="module")
def reference(shipped_checkpoint: Path, images: FloatArray, options: RuntimeOptions) -> FloatArray:
    runtime = open_runtime("pytorch-cpu", shipped_checkpoint, spec=ModelSpec(), options=options)
    return np.concatenate([runtime.infer(image[None]) for image in images])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_onnxruntime_gives_the_masks_of_pytorch(
    batch_size: int, shipped_onnx: Path, images: FloatArray, reference: FloatArray, options: RuntimeOptions
) -> None:
    runtime = open_runtime("onnxruntime-cpu", shipped_onnx, spec=ModelSpec(), options=options)
    logits = np.concatenate([runtime.infer(images[i : i + batch_size]) for i in range(0, IMAGES, batch_size)])
    parity = compare_logits(reference, logits, ModelSpec(), [str(i) for i in range(IMAGES)])
    assert parity.images == IMAGES
    assert parity.worst_iou >= 0.9999
    assert parity.flipped_share <= 1e-5
    assert breaches(parity, LIMITS["fp32"]) == []


def test_it_finds_the_cells(scenes: list[synthetic.Sample], reference: FloatArray) -> None:
    found: MaskArray = (reference[:, 0] >= 0).astype(np.uint8)
    truth: MaskArray = np.stack([scene.mask for scene in scenes]).astype(np.uint8)
    assert lowest(class_ious(found, truth, 1)).mean() >= 0.95


def test_logits_are_decided(reference: FloatArray) -> None:
    """Masks near the cut would flip with the last bit; these have real margins."""
    assert float((np.abs(reference) < 0.5).mean()) < 0.01


def test_the_file_is_half_precision_live_parameters_only(shipped_checkpoint: Path) -> None:
    import torch

    state = read_state_dict(shipped_checkpoint)
    assert {t.dtype for t in state.values()} <= {torch.float16, torch.int64}
    assert not any(name.startswith("encoder.layer4") for name in state)
    assert shipped_checkpoint.stat().st_size < 23e6
    assert described(shipped_checkpoint).spec == ModelSpec()
