"""Mask files are judged pixel by pixel, at whatever size their images have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.bench.inputs import Inputs
from segx.bench.mask_files import joined, judge_masks
from segx.bench.worker import CellTask
from segx.errors import ImageError, InferenceError
from segx.masks.agreement import compare_masks
from segx.masks.image_io import FloatArray, MaskArray, write_png
from segx.model.spec import ModelSpec
from segx.predict.item import Item
from segx.predict.outputs import Wishes, finish
from segx.results.types import Parity
from segx.runtimes import RuntimeOptions

SPEC = ModelSpec(height=16, width=16)
CLASSES = ModelSpec(height=16, width=16, classes=3)
SIZES = ((16, 16), (32, 48), (20, 9))  # (height, width)
NAMES = ("a", "b", "c")


class Pass:
    """Images of different sizes, and masks as the reference would have written them."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        chance = np.random.default_rng(0)
        self.logits: FloatArray = chance.normal(0, 5, (3, *spec.output_shape)).astype(np.float32)
        self.masks: list[MaskArray] = []
        for name, (height, width), logits in zip(NAMES, SIZES, self.logits, strict=True):
            write_png(folder / "images" / f"{name}.png", np.zeros((height, width), np.uint8))
            self.masks.append(finish(logits, (width, height), spec, Wishes()).mask)
        items = tuple(Item(f"{name}.png", folder / "images" / f"{name}.png") for name in NAMES)
        inputs = Inputs(folder / "inputs.f32", spec.input_shape, NAMES, "", "images")
        self._task = CellTask(
            runtime="fake",
            model=Path("none"),
            spec=spec,
            options=RuntimeOptions(threads=1, scope="pipeline"),
            batch_size=1,
            inputs=inputs,
            outputs=folder / "masks",
            memory_limit_bytes=None,
            items=items,
        )
        self.written = folder / "masks"

    def judge(self, noise_band: float = 0.0) -> Parity:
        for name, mask in zip(NAMES, self.masks, strict=True):
            write_png(self.written / f"{name}.png", mask)
        return judge_masks(self._task, self.logits, noise_band)


@pytest.mark.parametrize("spec", [SPEC, CLASSES])
def test_the_references_own_masks_are_identical_at_any_size(tmp_path: Path, spec: ModelSpec) -> None:
    made = Pass(tmp_path, spec)
    parity = made.judge()
    assert (parity.images, parity.flipped_pixels, parity.worst_iou, parity.mean_iou) == (3, 0, 1.0, 1.0)
    assert parity.pixels == sum(height * width for height, width in SIZES)
    assert len(parity.classes) == (3 if spec is CLASSES else 0)
    assert not made.written.exists()


@pytest.mark.parametrize("spec", [SPEC, CLASSES])
def test_every_flip_is_counted_on_its_image(tmp_path: Path, spec: ModelSpec) -> None:
    made = Pass(tmp_path, spec)
    mask = made.masks[1]
    mask[3, 5:9] = 255 - mask[3, 5:9] if spec is SPEC else (mask[3, 5:9] + 1) % 3
    parity = made.judge()
    assert [image.flipped_pixels for image in parity.per_image] == [0, 4, 0]
    assert (parity.flipped_pixels, parity.benign_flips, parity.worst_image) == (4, 0, "b")
    assert parity.worst_iou < 1.0


@pytest.mark.parametrize("spec", [SPEC, CLASSES])
def test_a_flip_where_the_reference_wavers_is_benign_at_any_size(tmp_path: Path, spec: ModelSpec) -> None:
    made = Pass(tmp_path, spec)
    # Of image b every pixel of the model is 2 x 3 pixels of the mask: row 4 of it comes from row 2 of the logits.
    if spec is SPEC:
        made.logits[1, 0, 2, 2] = 0.001
        made.masks[1][4:6, 6:9] = 0
    else:
        made.logits[1, :, 2, 2] = (1.0, 0.999, -5.0)
        made.masks[1][4:6, 6:9] = 1
    parity = made.judge(noise_band=0.01)
    assert (parity.flipped_pixels, parity.benign_flips, parity.noise_band) == (6, 6, 0.01)


def test_a_value_that_no_mask_has_is_a_flip(tmp_path: Path) -> None:
    made = Pass(tmp_path, SPEC)
    made.masks[0][0, 0] = 1  # neither 0 nor 255
    assert made.judge().flipped_pixels == 1


def test_a_mask_of_another_size_is_an_error(tmp_path: Path) -> None:
    made = Pass(tmp_path, SPEC)
    made.masks[1] = made.masks[0]
    with pytest.raises(InferenceError, match=r"b\.png has 16x16 pixels, its image 48x32"):
        made.judge()


def test_a_mask_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    made = Pass(tmp_path, SPEC)
    for name, mask in zip(NAMES[:2], made.masks, strict=False):
        write_png(made.written / f"{name}.png", mask)
    with pytest.raises(ImageError, match=r"c\.png"):
        judge_masks(made._task, made.logits, 0.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([1, 3]))
def test_images_joined_are_what_they_are_together(seed: int, count: int, classes: int) -> None:
    spec = ModelSpec(height=8, width=8, classes=classes)
    chance = np.random.default_rng(seed)
    reference = chance.integers(0, max(2, classes), (count, 8, 8), dtype=np.uint8)
    masks = np.where(chance.random(reference.shape) < 0.1, 0, reference).astype(np.uint8)
    names = [str(number) for number in range(count)]
    together = compare_masks(reference, masks, spec, names)
    one_by_one = joined([compare_masks(reference[i][None], masks[i][None], spec, [names[i]]) for i in range(count)])
    assert one_by_one.per_image == together.per_image
    for field in ("images", "pixels", "flipped_pixels", "worst_iou", "worst_image", "flip_distance_px"):
        assert getattr(one_by_one, field) == getattr(together, field)
    assert one_by_one.mean_iou == pytest.approx(together.mean_iou)
    assert one_by_one.mean_dice == pytest.approx(together.mean_dice)
    for ours, theirs in zip(one_by_one.classes, together.classes, strict=True):
        assert (ours.index, ours.worst_iou, ours.worst_image) == (theirs.index, theirs.worst_iou, theirs.worst_image)
        assert ours.iou == pytest.approx(theirs.iou)
