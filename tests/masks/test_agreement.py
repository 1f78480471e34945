from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segx.masks.agreement import LIMITS, ParityLimits, breaches, compare_logits, compare_masks
from segx.masks.metrics import mask_iou
from segx.model.spec import ModelSpec
from segx.results.types import Parity

ONE = ModelSpec()
THREE = ModelSpec(classes=3)
NAMES = ["a.png", "b.png", "c.png", "d.png"]

Masks = npt.NDArray[np.uint8]

_shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


@st.composite
def _mask_pairs(draw: st.DrawFn) -> tuple[Masks, Masks, int]:
    shape = draw(_shapes)
    classes = draw(st.integers(1, 4))
    values = st.integers(0, max(1, classes - 1))
    first, second = (draw(hnp.arrays(np.uint8, shape, elements=values)) for _ in range(2))
    return first, second, classes


_logits = st.integers(1, 3).flatmap(
    lambda classes: hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.just(classes), st.integers(1, 5), st.integers(1, 5)),
        elements=st.floats(-50, 50, width=32),
    )
)


def _iou_by_definition(first: Masks, second: Masks, classes: int) -> float:
    """Intersection over union of one image, pixel by pixel."""
    found = []
    for value in [1] if classes == 1 else range(classes):
        both = either = 0
        for a, b in zip(first.flat, second.flat, strict=True):
            both += a == value and b == value
            either += value in (a, b)
        found.append(both / either if either else 1.0)
    return min(found)


@given(_mask_pairs())
def test_iou_is_the_definition(pair: tuple[Masks, Masks, int]) -> None:
    first, second, classes = pair
    expected = [_iou_by_definition(a, b, classes) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(mask_iou(first, second, classes), expected, rtol=1e-12)


@given(_mask_pairs())
def test_iou_is_symmetric_and_a_share(pair: tuple[Masks, Masks, int]) -> None:
    first, second, classes = pair
    ious = mask_iou(first, second, classes)
    np.testing.assert_array_equal(ious, mask_iou(second, first, classes))
    assert ious.dtype == np.float64
    assert ((ious >= 0) & (ious <= 1)).all()


@given(_mask_pairs())
def test_iou_with_itself_is_one(pair: tuple[Masks, Masks, int]) -> None:
    first, _, classes = pair
    np.testing.assert_array_equal(mask_iou(first, first, classes), np.ones(len(first)))


def test_empty_masks() -> None:
    empty, full = np.zeros((1, 2, 2), np.uint8), np.ones((1, 2, 2), np.uint8)
    assert mask_iou(empty, empty, 1) == [1.0]
    assert mask_iou(empty, full, 1) == [0.0]
    assert mask_iou(full, empty, 1) == [0.0]


def test_the_background_of_one_class_does_not_count() -> None:
    first, second = np.zeros((1, 10, 10), np.uint8), np.zeros((1, 10, 10), np.uint8)
    first[0, 0, :2], second[0, 0, 1:3] = 1, 1
    assert mask_iou(first, second, 1) == pytest.approx([1 / 3])


def test_several_classes_count_by_their_worst() -> None:
    first = np.array([[[0, 0, 1, 1, 2, 2]]], np.uint8)
    second = np.array([[[0, 0, 1, 1, 1, 2]]], np.uint8)
    assert mask_iou(first, second, 3) == pytest.approx([1 / 2])


def test_a_class_that_neither_mask_holds_does_not_count() -> None:
    masks = np.array([[[0, 1]]], np.uint8)
    assert mask_iou(masks, masks, 200) == [1.0]


@given(_logits)
def test_a_run_equals_itself(logits: npt.NDArray[np.float32]) -> None:
    spec = ModelSpec(classes=logits.shape[1])
    parity = compare_logits(logits, logits.copy(), spec, NAMES)
    assert (parity.flipped_pixels, parity.worst_iou, parity.max_abs_diff) == (0, 1.0, 0.0)
    assert parity.images == len(logits)
    assert parity.pixels == logits.size // logits.shape[1]
    assert all(breaches(parity, limits) == [] for limits in LIMITS.values())


@given(hnp.arrays(np.bool_, (2, 5, 6)), st.integers(1, 60), st.randoms(use_true_random=False))
def test_flipped_pixels_are_counted(foreground: npt.NDArray[np.bool_], count: int, random: Any) -> None:
    reference = np.where(foreground, 3.0, -3.0).astype(np.float32)
    other = reference.copy()
    flipped = random.sample(range(reference.size), count)
    other.flat[flipped] *= -1
    parity = compare_logits(reference[:, None], other[:, None], ONE, NAMES)
    assert parity.flipped_pixels == count
    assert parity.flipped_share == pytest.approx(count / 60)
    assert parity.max_abs_diff == 6.0


def test_a_difference_that_flips_nothing_is_measured() -> None:
    reference = np.array([[[[-4.0, 6.0]]]], np.float32)
    parity = compare_logits(reference, reference + np.float32(0.5), ONE, NAMES)
    assert parity.flipped_pixels == 0
    assert parity.max_abs_diff == 0.5
    assert parity.logit_range == 10.0
    assert parity.relative_diff == pytest.approx(0.05)


def test_a_small_logit_range_counts_as_one() -> None:
    reference = np.array([[[[0.1, 0.2]]]], np.float32)
    parity = compare_logits(reference, reference + np.float32(0.5), ONE, NAMES)
    assert parity.relative_diff == pytest.approx(0.5)


def test_the_cut_is_that_of_the_spec() -> None:
    reference, other = np.full((1, 1, 1, 1), 0.5, np.float32), np.full((1, 1, 1, 1), -0.5, np.float32)
    assert compare_logits(reference, other, ONE, NAMES).flipped_pixels == 1
    assert compare_logits(reference, other, ModelSpec(threshold=0.9), NAMES).flipped_pixels == 0


def test_the_worst_image_is_named() -> None:
    reference = np.ones((4, 1, 4, 4), np.float32)
    other = reference.copy()
    other[1, 0, 0, :2] = -1
    other[2, 0, 0, :3] = -1
    parity = compare_logits(reference, other, ONE, NAMES)
    assert parity.worst_image == "c.png"
    assert parity.worst_iou == pytest.approx(13 / 16)
    assert parity.flipped_pixels == 5


def test_the_first_of_equally_bad_images_is_named() -> None:
    reference = np.ones((3, 1, 2, 2), np.float32)
    assert compare_logits(reference, -reference, ONE, NAMES).worst_image == "a.png"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", [ONE, THREE])
def test_logits_that_are_not_finite_breach(value: float, spec: ModelSpec) -> None:
    reference = np.zeros((2, spec.classes, 3, 3), np.float32)
    other = reference.copy()
    other[1, 0, 2, 2] = value
    parity = compare_logits(reference, other, spec, NAMES)
    assert parity.max_abs_diff == math.inf
    assert all(breaches(parity, limits) for limits in LIMITS.values())


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("both", [False, True])
def test_a_reference_that_is_not_finite_breaches(value: float, both: bool) -> None:
    reference = np.zeros((1, 1, 2, 2), np.float32)
    reference[0, 0, 0, 0] = value
    other = reference if both else np.zeros_like(reference)
    assert breaches(compare_logits(reference, other, ONE, NAMES), LIMITS["fp32"])


def test_several_classes_are_cut_by_argmax() -> None:
    reference = np.zeros((1, 3, 1, 4), np.float32)
    reference[0, [0, 1, 2, 2], 0, range(4)] = 1
    other = reference.copy()
    other[0, 1, 0, 3] = 2
    parity = compare_logits(reference, other, THREE, NAMES)
    assert parity.flipped_pixels == 1
    assert parity.worst_iou == pytest.approx(1 / 2)


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (1, 1, 4, 4), (2, 2, 4, 4), (2, 4, 4)])
def test_logits_of_another_shape_cannot_be_compared(shape: tuple[int, ...]) -> None:
    reference, other = np.zeros((2, 1, 4, 4), np.float32), np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\)") as caught:
        compare_logits(reference, other, ONE, NAMES)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 1), (4, 4), (3, 4, 5)])
def test_masks_of_another_shape_cannot_be_compared(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        compare_masks(np.zeros((3, 4, 4), np.uint8), np.zeros(shape, np.uint8), ONE, NAMES)


@given(_mask_pairs())
def test_masks_are_compared_where_there_are_no_logits(pair: tuple[Masks, Masks, int]) -> None:
    first, second, classes = pair
    parity = compare_masks(first, second, ModelSpec(classes=classes), NAMES)
    assert parity.flipped_pixels == np.count_nonzero(first != second)
    assert parity.worst_iou == mask_iou(first, second, classes).min()
    assert parity.relative_diff == 0.0


GOOD = Parity(
    images=4,
    pixels=100_000,
    flipped_pixels=0,
    benign_flips=0,
    mean_iou=1.0,
    worst_iou=1.0,
    worst_image="a.png",
    mean_dice=1.0,
    max_abs_diff=0.0,
    mean_abs_diff=0.0,
    logit_range=10.0,
    noise_band=0.0,
)
BOUNDS = ParityLimits(relative_diff=0.001, flipped_share=0.0001, iou=0.99)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"max_abs_diff": 0.01}, None),
        ({"max_abs_diff": 0.0100001}, "logits differ"),
        ({"max_abs_diff": math.inf}, "not finite"),
        ({"max_abs_diff": math.nan}, "not finite"),
        ({"max_abs_diff": 0.002, "logit_range": 0.1}, "logits differ"),
        ({"flipped_pixels": 10}, None),
        ({"flipped_pixels": 11}, "11 of 100000 pixels flipped"),
        ({"worst_iou": 0.99}, None),
        ({"worst_iou": np.nextafter(0.99, 0)}, "on a.png"),
        ({"worst_iou": math.nan}, "IoU"),
    ],
)
def test_limits_may_be_reached_but_not_passed(changes: dict[str, Any], told: str | None) -> None:
    found = breaches(dataclasses.replace(GOOD, **changes), BOUNDS)
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_every_breach_is_told() -> None:
    bad = dataclasses.replace(GOOD, flipped_pixels=50_000, worst_iou=0.1, max_abs_diff=5.0)
    assert len(breaches(bad, BOUNDS)) == 3


def test_fp32_is_judged_more_strictly_than_tf32() -> None:
    fp32, tf32 = LIMITS["fp32"], LIMITS["tf32"]
    assert fp32.relative_diff < tf32.relative_diff
    assert fp32.flipped_share < tf32.flipped_share
    assert fp32.iou > tf32.iou
