"""Parity per image and class, within noise, off the boundary, against the ground truth; flips and their margins."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segx.masks.agreement import (
    BENIGN,
    FEW_PIXELS,
    LIMITS,
    MARGIN_EDGES,
    REAL,
    SAME,
    VERDICTS,
    ParityLimits,
    breaches,
    changed_images,
    classify_flips,
    compare_logits,
    compare_masks,
    few_pixels,
    meets,
    quality,
    rounding_band,
    verdict,
)
from segx.masks.metrics import class_ious, dice, farthest_from_boundary, lowest
from segx.masks.preprocess import FloatArray
from segx.model.spec import ModelSpec
from segx.results.types import Parity
from tests import builders
from tests.builders import SIZE, image_parity, noisy, small_spec

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


def _iou_of_present(reference: Masks, mask: Masks, classes: int) -> float:
    """Return the lowest IoU of the classes in the reference's mask; 1 without one."""
    values = [value for value in ([1] if classes == 1 else range(classes)) if (reference == value).any()]
    pairs = [(reference == value, mask == value) for value in values]
    return min(((ours & theirs).sum() / (ours | theirs).sum() for ours, theirs in pairs), default=1.0)


def _iou(first: Masks, second: Masks, classes: int) -> npt.NDArray[np.float64]:
    return lowest(class_ious(first, second, classes))


@given(_mask_pairs())
def test_iou_is_the_definition(pair: tuple[Masks, Masks, int]) -> None:
    first, second, classes = pair
    expected = [_iou_by_definition(a, b, classes) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(_iou(first, second, classes), expected, rtol=1e-12)


@given(_mask_pairs())
def test_iou_is_symmetric_and_a_share(pair: tuple[Masks, Masks, int]) -> None:
    first, second, classes = pair
    ious = _iou(first, second, classes)
    np.testing.assert_array_equal(ious, _iou(second, first, classes))
    assert ious.dtype == np.float64
    assert ((ious >= 0) & (ious <= 1)).all()


@given(_mask_pairs())
def test_iou_with_itself_is_one(pair: tuple[Masks, Masks, int]) -> None:
    first, _, classes = pair
    np.testing.assert_array_equal(_iou(first, first, classes), np.ones(len(first)))


def test_empty_masks() -> None:
    empty, full = np.zeros((1, 2, 2), np.uint8), np.ones((1, 2, 2), np.uint8)
    assert _iou(empty, empty, 1) == [1.0]
    assert _iou(empty, full, 1) == [0.0]
    assert _iou(full, empty, 1) == [0.0]


def test_the_background_of_one_class_does_not_count() -> None:
    first, second = np.zeros((1, 10, 10), np.uint8), np.zeros((1, 10, 10), np.uint8)
    first[0, 0, :2], second[0, 0, 1:3] = 1, 1
    assert _iou(first, second, 1) == pytest.approx([1 / 3])


def test_several_classes_count_by_their_worst() -> None:
    first = np.array([[[0, 0, 1, 1, 2, 2]]], np.uint8)
    second = np.array([[[0, 0, 1, 1, 1, 2]]], np.uint8)
    assert _iou(first, second, 3) == pytest.approx([1 / 2])


def test_a_class_that_neither_mask_holds_does_not_count() -> None:
    masks = np.array([[[0, 1]]], np.uint8)
    assert _iou(masks, masks, 200) == [1.0]


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
    ious = [_iou_of_present(*masks, classes) for masks in zip(first, second, strict=True)]
    assert [image.iou for image in parity.per_image] == pytest.approx(ious)
    assert parity.worst_iou == pytest.approx(min(ious))
    assert parity.relative_diff == 0.0


Logits = npt.NDArray[np.float32]

ANYTHING = ParityLimits(relative_diff=math.inf, flipped_share=1.0, iou=0.0)

# Quarters: sums, differences and halves of them are exact in float32.
_quarters = st.integers(-12, 12).map(lambda n: n / 4)
_bands = st.integers(0, 8).map(lambda n: n / 8)


@st.composite
def _runs(draw: st.DrawFn, *classes: int) -> tuple[Logits, Logits]:
    """A reference's logits and a run's."""
    kinds = st.sampled_from(classes or (1, 2, 3, 4))
    shape = (draw(st.integers(1, 3)), draw(kinds), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    first, second = (draw(hnp.arrays(np.float32, shape, elements=_quarters)) for _ in range(2))
    return first, second


def _spec(logits: Logits) -> ModelSpec:
    return ModelSpec(classes=logits.shape[1])


def _one_class(rows: Any) -> Logits:
    """(N, H, W) -> (N, 1, H, W)."""
    return np.asarray(rows, np.float32)[:, None]


def _scores(masks: Masks, classes: int) -> Logits:
    """Logits that are cut into these masks."""
    if classes == 1:
        return np.where(masks[:, None] > 0, 4.0, -4.0).astype(np.float32)
    return np.stack([np.where(masks == value, 4.0, 0.0) for value in range(classes)], axis=1).astype(np.float32)


GOOD = builders.parity(max_abs_diff=0.0, mean_abs_diff=0.0, logit_range=10.0)
LIMIT = ParityLimits(relative_diff=0.001, flipped_share=0.0001, iou=0.99, mean_iou=0.995)
PIXELS = 65536


def _changed(flips: int, iou: float = 1.0, *, stray: int = 0, pixels: int = PIXELS, images: int = 1) -> Parity:
    """Return a parity of images of which the first has real flips."""
    counts = {"flipped_pixels": flips, "stray_pixels": stray, "pixels": pixels}
    first = image_parity("a.png", iou=iou, flip_distance_px=1.0, **counts)
    return builders.parity(first, *(image_parity(f"{i}.png", pixels=pixels) for i in range(1, images)))


@pytest.mark.parametrize(
    ("parity", "message"),
    [
        (GOOD, None),
        (dataclasses.replace(GOOD, max_abs_diff=0.01), None),
        (dataclasses.replace(GOOD, max_abs_diff=0.0100001), "logits differ"),
        (dataclasses.replace(GOOD, max_abs_diff=math.inf), "not finite"),
        (dataclasses.replace(GOOD, max_abs_diff=math.nan), "not finite"),
        (dataclasses.replace(GOOD, max_abs_diff=0.002, logit_range=0.1), "logits differ"),
        (_changed(10, pixels=100_000), None),
        (_changed(11, pixels=100_000), "11 of 100,000 pixels changed"),
        (_changed(5, 0.99, images=2), None),
        (_changed(5, float(np.nextafter(0.99, 0)), images=2), "IoU 0.9900 on a.png"),
        (_changed(5, 0.98996, images=2), "IoU 0.9899 on a.png (limit 0.99)"),
        (_changed(5, 0.99), "mean IoU 0.9900"),
        (dataclasses.replace(GOOD, max_abs_diff=0.0104), "logits differ by 1.04e-"),
        (_changed(6, stray=6), None),
        (_changed(7, stray=7), "7 of 65,536 pixels changed"),
        (_changed(7, stray=7, images=2), "7 pixels of a.png have a class"),
    ],
)
def test_limits_may_be_reached_but_not_exceeded(parity: Parity, message: str | None) -> None:
    found = "; ".join(breaches(parity, LIMIT))
    assert message in found if message else not found


def test_every_exceeded_limit_has_a_message() -> None:
    bad = dataclasses.replace(_changed(5000, 0.1, stray=5000), max_abs_diff=500.0)
    assert len(breaches(bad, LIMIT)) == 5


# Differences that say nothing about a mask


def _object(side: int, size: int = 256) -> Masks:
    masks = np.zeros((1, size, size), np.uint8)
    masks[0, 20 : 20 + side, 20 : 20 + side] = 1
    return masks


def _with_flips(reference: Masks, count: int, *, value: int = 1) -> Masks:
    """Return the masks with another value at some pixels of the last row."""
    run = reference.copy()
    run[0, -1, 5 : 5 + count] = value
    return run


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("side", [0, 1, 70])
@pytest.mark.parametrize("classes", [1, 3])
def test_a_flip_within_the_noise_fails_no_image(precision: str, side: int, classes: int) -> None:
    """However small the object is, none included, and also where the pixel has a class that the image lacks."""
    reference = _scores(_object(side), classes)
    run = reference.copy()
    new = (0, classes - 1, -1, -1)
    reference[new] = reference[0, 0, -1, -1] - 1e-6 if classes > 1 else -1e-6
    run[new] = reference[0, 0, -1, -1] + 1e-6 if classes > 1 else 1e-6
    parity = compare_logits(reference, run, ModelSpec(classes=classes), NAMES)
    assert (parity.flipped_pixels, parity.real_flips) == (1, 0)
    assert (parity.worst_iou, parity.mean_iou) == (1.0, 1.0)
    assert verdict(parity, LIMITS[precision]) == "noise only"


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("reference", [_object(0), _object(70)])
def test_a_few_real_flips_fail_no_image(precision: str, reference: Masks) -> None:
    parity = compare_masks(reference, _with_flips(reference, FEW_PIXELS), ONE, NAMES)
    assert parity.real_flips == FEW_PIXELS
    assert verdict(parity, LIMITS[precision]) == "small changes"


def test_in_large_images_more_flips_are_few() -> None:
    assert [few_pixels(pixels) for pixels in (64 * 64, 500_000, 1024 * 2048)] == [4, 5, 20]


@pytest.mark.parametrize("precision", LIMITS)
def test_an_object_in_an_image_without_one_fails_by_its_pixels(precision: str) -> None:
    """Also among many other images, where the share of all pixels is small."""
    others = np.repeat(_object(0), 63, axis=0)
    reference = np.concatenate([_object(0), others])
    run = np.concatenate([_object(40), others])  # 1,600 of 65,536 pixels: 2.4%
    names = [str(i) for i in range(64)]
    parity = compare_masks(reference, run, ONE, names)
    assert parity.worst_iou == 1.0  # the image has no class that could overlap
    assert parity.per_image[0].stray_pixels == 1600
    assert "1,600 pixels of 0 have a class" in "; ".join(breaches(parity, LIMITS[precision]))


@pytest.mark.parametrize("precision", LIMITS)
def test_a_lost_object_fails(precision: str) -> None:
    parity = compare_masks(_object(40), _object(0), ONE, NAMES)
    assert parity.worst_iou == 0.0
    assert verdict(parity, LIMITS[precision]) == "FAILED"


def test_stray_pixels_of_an_absent_class_are_counted_and_do_not_enter_the_iou() -> None:
    reference = _object(70)
    parity = compare_masks(reference, _with_flips(reference, 3, value=2), THREE, NAMES)
    assert parity.per_image[0].stray_pixels == 3
    assert parity.worst_iou > 0.9999
    assert parity.classes[2].iou is None


@given(_runs(), st.sampled_from(sorted(LIMITS)), st.data())
def test_noise_never_fails_masks(pair: tuple[Logits, Logits], precision: str, data: st.DataObject) -> None:
    reference, _ = pair
    eighths = st.integers(-4, 4).map(lambda n: n / 8)
    run = reference + data.draw(hnp.arrays(np.float32, reference.shape, elements=eighths))
    parity = compare_logits(reference, run, _spec(run), NAMES, noise_band=0.5)
    by_masks = dataclasses.replace(LIMITS[precision], relative_diff=math.inf)
    assert verdict(parity, by_masks) in ("identical", "noise only")


def test_the_noise_band_is_at_least_what_rounding_changes() -> None:
    reference = _one_class([[[-512.0, 0.01, -0.02]]])
    parity = compare_logits(reference, -reference, ONE, NAMES)
    assert parity.noise_band == rounding_band(reference) == 512 / 2**15
    assert (parity.flipped_pixels, parity.benign_flips) == (3, 1)


# How far off the boundary the masks differ


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(90, 91), "edges only"),  # beside the object
        (slice(90, 92), "edges only"),
        (slice(90, 93), "small changes"),
        (slice(200, 201), "small changes"),
    ],
)
def test_changes_off_the_boundary_are_small_changes(rows: slice, expected: str) -> None:
    reference = _object(70)
    run = reference.copy()
    run[0, rows, 30:34] = 1
    parity = compare_masks(reference, run, ONE, NAMES)
    assert verdict(parity, LIMITS["int8"]) == expected
    assert [image.name for image in changed_images(parity)] == (["a.png"] if expected == "small changes" else [])


def test_a_speck_in_an_image_without_a_boundary_is_a_small_change() -> None:
    parity = compare_masks(_object(0), _with_flips(_object(0), 1), ONE, NAMES)
    assert verdict(parity, LIMITS["int8"]) == "small changes"


@pytest.mark.parametrize(
    ("required", "met"),
    [
        (None, {"identical", "noise only", "edges only", "small changes", "FAILED", None}),
        ("identical", {"identical"}),
        ("noise", {"identical", "noise only"}),
        ("edges", {"identical", "noise only", "edges only"}),
    ],
)
def test_a_requirement_is_met_by_verdicts_that_are_as_good(required: Any, met: set[Any]) -> None:
    assert {found for found in (*VERDICTS, None) if meets(found, required)} == met


def test_fp32_is_judged_more_strictly_than_tf32() -> None:
    fp32, tf32 = LIMITS["fp32"], LIMITS["tf32"]
    assert fp32.relative_diff < tf32.relative_diff
    assert fp32.flipped_share < tf32.flipped_share
    assert fp32.iou > tf32.iou


# Per image


@given(_runs())
def test_the_figures_of_all_images_follow_from_those_of_each(pair: tuple[Logits, Logits]) -> None:
    reference, run = pair
    parity = compare_logits(reference, run, _spec(run), NAMES, noise_band=0.5)
    images = parity.per_image
    unit = max(1.0, parity.logit_range)
    assert [image.name for image in images] == NAMES[: len(run)]
    assert parity.flipped_pixels == sum(image.flipped_pixels for image in images)
    assert parity.benign_flips == sum(image.benign_flips for image in images)
    assert parity.mean_iou == pytest.approx(np.mean([image.iou for image in images]))
    assert parity.mean_dice == pytest.approx(np.mean([image.dice for image in images]))
    assert parity.worst_iou == min(image.iou for image in images)
    assert parity.relative_diff == pytest.approx(max(image.max_diff for image in images))
    assert parity.mean_abs_diff == pytest.approx(unit * np.mean([image.mean_diff for image in images]))
    distances = [image.flip_distance_px for image in images if image.flip_distance_px is not None]
    assert parity.flip_distance_px == max(distances, default=None)


@given(_runs())
def test_an_image_is_judged_alike_alone_and_among_others(pair: tuple[Logits, Logits]) -> None:
    reference, run = pair
    together = compare_logits(reference, run, _spec(run), NAMES, noise_band=0.25)
    for i, image in enumerate(together.per_image):
        (alone,) = compare_logits(
            reference[i : i + 1], run[i : i + 1], _spec(run), NAMES[i:], noise_band=0.25
        ).per_image
        # Only the unit of the differences is that of all images.
        assert dataclasses.replace(alone, max_diff=image.max_diff, mean_diff=image.mean_diff) == image


def test_differences_of_one_image_are_in_units_of_the_range_of_all() -> None:
    reference = _one_class([[[-4.0, 4.0]], [[-1.0, 1.0]]])
    run = reference.copy()
    run[1, 0, 0, 0] -= 2.0
    first, second = compare_logits(reference, run, ONE, NAMES).per_image
    assert (first.max_diff, first.mean_diff) == (0.0, 0.0)
    assert (second.max_diff, second.mean_diff) == (0.25, 0.125)


def test_dice_of_an_image_is_that_of_its_masks() -> None:
    reference, run = _one_class([[[1, 1, 1, -1]]]), _one_class([[[1, 1, -1, 1]]])
    (image,) = compare_logits(reference, run, ONE, NAMES).per_image
    assert image.iou == pytest.approx(2 / 4)
    assert image.dice == pytest.approx(4 / 6)


# Benign and real flips


@given(_runs(1), _bands, st.sampled_from([0.5, 0.75, 0.2]))
def test_a_flip_of_one_class_is_benign_within_the_band_about_the_cut(
    pair: tuple[Logits, Logits], band: float, threshold: float
) -> None:
    reference, run = pair
    spec = ModelSpec(threshold=threshold)
    cut = np.float32(spec.logit_threshold)
    pixels = list(zip(reference.flat, run.flat, strict=True))
    flips = [before for before, after in pixels if (before >= cut) != (after >= cut)]
    parity = compare_logits(reference, run, spec, NAMES, noise_band=band)
    assert parity.flipped_pixels == len(flips)
    assert parity.benign_flips == sum(abs(before - cut) <= band for before in flips)
    assert parity.noise_band == max(band, rounding_band(reference))


@given(_runs(2, 3, 5), _bands)
def test_a_flip_of_several_classes_is_benign_where_the_two_are_within_twice_the_band(
    pair: tuple[Logits, Logits], band: float
) -> None:
    reference, run = pair
    flipped = benign = 0
    for image in range(len(run)):
        for row, column in np.ndindex(*run.shape[2:]):
            before, after = (list(logits[image, :, row, column]) for logits in (reference, run))
            new = after.index(max(after))
            if before.index(max(before)) != new:
                flipped += 1
                benign += max(before) - before[new] <= 2 * band
    parity = compare_logits(reference, run, _spec(run), NAMES, noise_band=band)
    assert (parity.flipped_pixels, parity.benign_flips, parity.real_flips) == (flipped, benign, flipped - benign)


@given(_runs(), st.data())
def test_a_run_that_differs_by_no_more_than_the_noise_has_no_real_flip(
    pair: tuple[Logits, Logits], data: st.DataObject
) -> None:
    """The definition of the band: what the reference does to itself is never held against a run."""
    reference, _ = pair
    eighths = st.integers(-4, 4).map(lambda n: n / 8)
    run = reference + data.draw(hnp.arrays(np.float32, reference.shape, elements=eighths))
    parity = compare_logits(reference, run, _spec(run), NAMES, noise_band=0.5)
    assert parity.real_flips == 0
    assert verdict(parity, ANYTHING) == ("noise only" if parity.flipped_pixels else "identical")


@given(_runs())
def test_a_wider_band_makes_no_flip_real(pair: tuple[Logits, Logits]) -> None:
    reference, run = pair
    real = [
        compare_logits(reference, run, _spec(run), NAMES, noise_band=band).real_flips for band in (0.0, 0.5, 1.0, 1e9)
    ]
    assert real == sorted(real, reverse=True)
    assert real[-1] == 0


def test_without_noise_only_a_pixel_on_the_very_cut_is_benign() -> None:
    reference = _one_class([[[0.0, 0.25, -0.25]]])
    parity = compare_logits(reference, -reference - np.float32(0.125), ONE, NAMES)
    assert (parity.flipped_pixels, parity.benign_flips) == (3, 1)


@pytest.mark.parametrize(("run", "real"), [((5.0, 5.05, -5.0), 0), ((5.0, 4.95, 10.0), 1)])
def test_a_flip_to_a_class_that_was_far_behind_is_real(run: tuple[float, ...], real: int) -> None:
    """Also where a third class was near."""
    reference, other = (np.array(logits, np.float32).reshape(1, 3, 1, 1) for logits in ((5.0, 4.95, -5.0), run))
    parity = compare_logits(reference, other, THREE, NAMES, noise_band=0.1)
    assert (parity.flipped_pixels, parity.real_flips) == (1, real)


def test_of_masks_alone_no_flip_is_known_to_be_benign() -> None:
    reference, run = np.zeros((1, 2, 2), np.uint8), np.eye(2, dtype=np.uint8)[None]
    parity = compare_masks(reference, run, ONE, NAMES)
    assert (parity.flipped_pixels, parity.benign_flips, parity.noise_band) == (2, 0, 0.0)
    assert parity.truth is None
    assert verdict(parity, ANYTHING) == "small changes"


# How far off the boundary


def _nearest_other(mask: Masks, place: tuple[int, ...]) -> float | None:
    others = (math.dist(place, other) for other in np.ndindex(*mask.shape) if mask[other] != mask[place])
    return min(others, default=None)


@given(st.data(), st.integers(1, 3))
def test_a_flip_is_as_far_as_the_nearest_pixel_of_another_value_of_the_reference(
    data: st.DataObject, classes: int
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6)))
    values = st.integers(0, max(1, classes - 1))
    reference, run = (data.draw(hnp.arrays(np.uint8, shape, elements=values)) for _ in range(2))
    parity = compare_logits(_scores(reference, classes), _scores(run, classes), ModelSpec(classes=classes), NAMES)
    for image, before, after in zip(parity.per_image, reference, run, strict=True):
        flips = [tuple(map(int, place)) for place in np.argwhere(before != after)]
        distances = [d for place in flips if (d := _nearest_other(before, place)) is not None]
        expected = max(distances, default=None)
        if expected is None:
            assert image.flip_distance_px is None
        else:
            assert image.flip_distance_px == pytest.approx(expected, rel=1e-5)
            assert image.flip_distance_px == farthest_from_boundary(before, before != after)


def test_a_flip_in_an_image_without_a_boundary_has_no_distance() -> None:
    reference = _one_class(np.full((2, 3, 3), -1.0))
    reference[1, 0, 0, 0] = 1.0
    run = reference.copy()
    run[:, 0, 2, 2] = 1.0
    parity = compare_logits(reference, run, ONE, NAMES)
    assert [image.flip_distance_px for image in parity.per_image] == [None, pytest.approx(math.sqrt(8))]
    assert parity.flip_distance_px == pytest.approx(math.sqrt(8))


# Per class


def test_a_class_is_averaged_over_the_images_that_hold_it() -> None:
    reference = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 0]], [[0, 1, 1, 1]]], np.uint8)
    run = np.array([[[0, 0, 0, 1]], [[0, 0, 0, 0]], [[0, 1, 1, 1]]], np.uint8)
    parity = compare_logits(_scores(reference, 3), _scores(run, 3), THREE, NAMES)
    background, middle, absent = parity.classes
    assert background.iou == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert background.worst_iou == pytest.approx(2 / 3)
    assert background.worst_image == "a.png"
    assert middle.iou == pytest.approx((1 / 2 + 1) / 2)  # b.png does not hold it
    assert middle.worst_iou == pytest.approx(1 / 2)
    assert middle.worst_image == "a.png"
    assert (absent.iou, absent.worst_iou, absent.worst_image) == (None, None, "")
    assert [entry.index for entry in parity.classes] == [0, 1, 2]
    assert parity.worst_class == middle


def test_the_worst_class_has_the_lowest_mean_and_not_the_lowest_image() -> None:
    reference = np.zeros((3, 1, 10), np.uint8)
    run = reference.copy()
    reference[:, 0, :4], run[:, 0, :2] = 1, 1  # 1/2 in every image
    reference[0, 0, 9] = 2  # none in the first
    run[0, 0, 8] = 2
    reference[1:, 0, 8:], run[1:, 0, 8:] = 2, 2  # all in the others
    parity = compare_masks(reference, run, THREE, NAMES)
    assert parity.classes[2].worst_iou == 0.0
    assert parity.worst_class == parity.classes[1]


def test_a_class_that_was_lost_altogether_is_the_worst() -> None:
    reference, run = np.array([[[0, 1, 2, 2]]], np.uint8), np.array([[[0, 1, 1, 1]]], np.uint8)
    parity = compare_masks(reference, run, THREE, NAMES)
    assert parity.worst_class
    assert (parity.worst_class.index, parity.worst_class.iou) == (2, 0.0)


def test_one_class_is_not_told_apart() -> None:
    parity = compare_logits(_one_class([[[1, -1]]]), _one_class([[[1, 1]]]), ONE, NAMES)
    assert parity.classes == ()
    assert parity.worst_class is None


@given(_runs(2, 3, 4))
def test_every_class_has_an_entry(pair: tuple[Logits, Logits]) -> None:
    reference, run = pair
    parity = compare_logits(reference, run, _spec(run), NAMES)
    assert [entry.index for entry in parity.classes] == list(range(run.shape[1]))
    assert parity.worst_class
    assert parity.worst_class.iou == min(entry.iou for entry in parity.classes if entry.iou is not None)
    assert min(entry.worst_iou for entry in parity.classes if entry.worst_iou is not None) == parity.worst_iou


# Against the truth


def _judged(reference: Masks, run: Masks, truth: Masks, classes: int = 1) -> Parity:
    spec = ModelSpec(classes=classes)
    names = [str(i) for i in range(len(run))]
    return compare_logits(_scores(reference, classes), _scores(run, classes), spec, names, truth=truth)


@given(st.data(), st.integers(1, 3))
def test_the_truth_is_scored_by_the_mean_of_the_classes_present(data: st.DataObject, classes: int) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
    values = st.integers(0, max(1, classes - 1))
    reference, run, truth = (data.draw(hnp.arrays(np.uint8, shape, elements=values)) for _ in range(3))
    parity = _judged(reference, run, truth, classes)
    expected: dict[str, list[float]] = {"iou": [], "dice": [], "reference_iou": [], "reference_dice": []}
    for i in range(len(truth)):
        for prefix, masks in (("", run), ("reference_", reference)):
            ious = class_ious(truth[i : i + 1], masks[i : i + 1], classes)
            for name, scores in (("iou", ious), ("dice", dice(ious))):
                present = [score for score in scores[0] if not math.isnan(score)]
                expected[prefix + name].append(sum(present) / len(present) if present else 1.0)
    assert parity.truth
    for name, values_of_images in expected.items():
        assert getattr(parity.truth, name) == pytest.approx(np.mean(values_of_images))
    assert [image.truth_iou for image in parity.per_image] == pytest.approx(expected["iou"])
    assert [image.truth_dice for image in parity.per_image] == pytest.approx(expected["dice"])
    assert parity.truth.loss == pytest.approx(parity.truth.reference_iou - parity.truth.iou)


def test_without_true_masks_there_is_no_score() -> None:
    parity = compare_logits(_one_class([[[1, -1]]]), _one_class([[[1, 1]]]), ONE, NAMES)
    assert parity.truth is None
    assert (parity.per_image[0].truth_iou, parity.per_image[0].truth_dice) == (None, None)


def _rows(*foreground: int) -> Masks:
    """One image per number, each of 100 pixels of which so many are foreground."""
    return np.array([[[int(i < count) for i in range(100)]] for count in foreground], np.uint8)


def test_too_few_images_tell_nothing_of_a_loss() -> None:
    truth = _judged(_rows(20), _rows(10), _rows(20)).truth
    assert truth
    assert truth.loss == pytest.approx(0.5)
    assert (truth.loss_low, truth.loss_high) == (-1.0, 1.0)


def test_the_same_masks_lose_nothing() -> None:
    masks = _rows(10, 20, 30, 10, 20, 30)
    truth = _judged(masks, masks, _rows(12, 20, 24, 12, 20, 24)).truth
    assert truth
    assert (truth.loss, truth.loss_low, truth.loss_high) == (0.0, 0.0, 0.0)


def test_a_loss_in_every_image_is_sure_and_a_gain_is_negative() -> None:
    full, half = _rows(*[80] * 10), _rows(*[40] * 10)
    worse, better = _judged(full, half, full).truth, _judged(half, full, full).truth
    assert worse
    assert better
    assert (worse.loss, worse.loss_low, worse.loss_high) == pytest.approx((0.5, 0.5, 0.5))
    assert (better.loss, better.loss_low, better.loss_high) == pytest.approx((-0.5, -0.5, -0.5))


def test_losses_that_gains_outweigh_cannot_be_told_from_none() -> None:
    reference, run = _rows(*[50, 40] * 8), _rows(*[40, 50] * 8)
    truth = _judged(reference, run, _rows(*[50] * 16)).truth
    assert truth
    assert truth.loss == pytest.approx(0.0)
    assert truth.loss_low < -0.03
    assert truth.loss_high > 0.03


def test_the_interval_of_the_loss_is_always_the_same_and_holds_it() -> None:
    reference, run = _rows(*range(40, 60)), _rows(*range(38, 58))
    first, again = (_judged(reference, run, _rows(*[60] * 20)).truth for _ in range(2))
    assert first
    assert first == again
    assert first.loss_low < first.loss < first.loss_high


def test_the_interval_covers_the_true_loss() -> None:
    """200 sets of 30 images of 100 pixels, each of which is lost with a probability of 1/5."""
    choose = np.random.default_rng(5)
    whole = np.ones((30, 1, 100), np.uint8)
    covered = 0
    for _ in range(200):
        truth = _judged(whole, (choose.random(whole.shape) > 0.2).astype(np.uint8), whole).truth
        assert truth
        covered += truth.loss_low <= 0.2 <= truth.loss_high
    assert 0.89 * 200 <= covered < 200


# Verdicts


@given(_runs(), st.sampled_from(sorted(LIMITS)), _bands)
def test_masks_fail_exactly_where_a_limit_is_exceeded(pair: tuple[Logits, Logits], precision: str, band: float) -> None:
    reference, run = pair
    parity = compare_logits(reference, run, _spec(run), NAMES, noise_band=band)
    assert (verdict(parity, LIMITS[precision]) == "FAILED") == bool(breaches(parity, LIMITS[precision]))
    found = verdict(parity, ANYTHING)
    assert (found == "identical") == (not parity.flipped_pixels)
    assert (found in ("identical", "noise only")) == (not parity.real_flips)
    assert (found == "small changes") == bool(changed_images(parity))


def test_every_precision_has_limits_that_a_run_equal_to_the_reference_meets() -> None:
    from typing import get_args

    from segx.runtimes import Precision

    assert set(LIMITS) == set(get_args(Precision))
    assert {verdict(GOOD, limits) for limits in LIMITS.values()} == {"identical"}


def test_8_bits_are_judged_by_masks_alone() -> None:
    far = dataclasses.replace(GOOD, max_abs_diff=1000.0)
    assert breaches(far, LIMITS["int8"]) == []
    assert breaches(far, LIMITS["fp16"])
    assert breaches(_changed(50, 0.981, images=2), LIMITS["int8"]) == ["mean IoU 0.9905 (limit 0.995)"]


@pytest.mark.parametrize("limits", [LIMIT, LIMITS["int8"], LIMITS["fp32"]])
def test_gates_of_the_user_replace_what_they_name_and_leave_the_rest(limits: ParityLimits) -> None:
    assert limits.with_gates(min_iou=None, max_flips=None) == limits
    by_iou = limits.with_gates(min_iou=0.5, max_flips=None)
    assert (by_iou.iou, by_iou.flipped_share) == (0.5, limits.flipped_share)
    assert breaches(_changed(5, 0.5, pixels=2**20), by_iou) == []
    by_flips = limits.with_gates(min_iou=None, max_flips=0.25)
    assert (by_flips.iou, by_flips.mean_iou, by_flips.flipped_share) == (limits.iou, limits.mean_iou, 0.25)
    assert breaches(dataclasses.replace(GOOD, max_abs_diff=1e6), by_flips) == []
    assert breaches(dataclasses.replace(GOOD, max_abs_diff=math.inf), by_flips) == ["logits are not finite"]


def test_a_gate_is_named_as_it_was_given() -> None:
    (flips,) = breaches(_changed(1000), LIMITS["int8"].with_gates(min_iou=None, max_flips=0.0025))
    assert "(limit 0.25%)" in flips


def test_a_gate_of_zero_is_a_gate() -> None:
    assert breaches(_changed(1), LIMIT.with_gates(min_iou=None, max_flips=0.0))
    assert not breaches(_changed(6, 0.0), LIMIT.with_gates(min_iou=0.0, max_flips=None))


# Quality


@pytest.mark.parametrize(
    ("low", "high", "images", "expected"),
    [
        (-0.1, 0.001, 6, "no worse"),
        (-0.2, -0.1, 6, "no worse"),
        (0.0, 0.0011, 6, "unclear"),
        (0.0009, 0.1, 6, "unclear"),
        (0.001, 0.1, 6, "worse"),
        (-1.0, 1.0, 5, "unclear"),
        (0.0, 0.0, 5, "unclear"),
    ],
)
def test_quality_is_by_the_interval_of_the_loss_and_a_margin(
    low: float, high: float, images: int, expected: str
) -> None:
    score = _judged(_rows(1), _rows(1), _rows(1)).truth
    assert score
    score = dataclasses.replace(score, loss=(low + high) / 2, loss_low=low, loss_high=high)
    assert quality(builders.parity(images=images, truth=score), 0.001) == expected


def test_without_true_masks_the_quality_is_unknown() -> None:
    assert quality(GOOD, 0.001) is None


# Logits that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("classes", [1, 3])
def test_one_image_that_is_not_finite_leaves_the_others_their_figures(value: float, classes: int) -> None:
    reference = np.random.default_rng(0).normal(size=(3, classes, 4, 4)).astype(np.float32)
    run = reference + np.float32(0.25)
    run[1, 0, 2, 2] = value
    parity = compare_logits(reference, run, ModelSpec(classes=classes), NAMES)
    assert [math.isfinite(image.max_diff) for image in parity.per_image] == [True, False, True]
    assert [math.isfinite(image.mean_diff) for image in parity.per_image] == [True, False, True]
    assert parity.per_image[0].max_diff == pytest.approx(0.25 / max(1.0, parity.logit_range))
    assert parity.max_abs_diff == parity.mean_abs_diff == math.inf
    assert all(verdict(parity, limits) == "FAILED" for limits in (*LIMITS.values(), ANYTHING))


def test_a_pixel_that_is_no_number_is_background() -> None:
    reference = _one_class([[[1.0, 1.0, -1.0]]])
    run = reference.copy()
    run[0, 0, 0, ::2] = np.nan
    parity = compare_logits(reference, run, ONE, NAMES)
    assert parity.flipped_pixels == 1
    assert parity.worst_iou == 0.5


# Through JSON


def _through_json(parity: Parity) -> Parity:
    """As results are saved: JSON has neither infinity nor NaN, and null stands for both."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return msgspec.convert(json.loads(json.dumps(finite(dataclasses.asdict(parity)), allow_nan=False)), Parity)


@given(_runs(), st.booleans(), st.booleans())
def test_parity_survives_json(pair: tuple[Logits, Logits], with_truth: bool, broken: bool) -> None:
    reference, run = pair
    if broken:
        run[0, 0, 0, 0] = np.nan
    truth = np.zeros((len(run), *run.shape[2:]), np.uint8) if with_truth else None
    parity = compare_logits(reference, run, _spec(run), NAMES, noise_band=0.25, truth=truth)
    assert (parity.truth is not None) == with_truth
    assert (parity.max_abs_diff == math.inf) == broken
    assert _through_json(parity) == parity
    if not broken:  # infinite differences are null in JSON
        assert msgspec.convert(dataclasses.asdict(parity), Parity) == parity


def test_a_parity_of_extremes_alone_survives_json() -> None:
    assert _through_json(GOOD) == GOOD
    infinite = dataclasses.replace(GOOD, max_abs_diff=math.inf, mean_abs_diff=math.inf)
    assert _through_json(infinite) == infinite


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_is_still_broken_after_json(value: float) -> None:
    reference = np.zeros((1, 1, 2, 2), np.float32)
    reference[0, 0, 0, 0] = value
    parity = compare_logits(reference, np.zeros_like(reference), ONE, NAMES)
    assert verdict(_through_json(parity), ANYTHING) == "FAILED"


@pytest.mark.parametrize("name", ["max_abs_diff", "mean_abs_diff", "logit_range", "noise_band"])
def test_every_infinite_figure_survives_json(name: str) -> None:
    changes: dict[str, Any] = {name: math.inf}
    parity = dataclasses.replace(GOOD, **changes)
    assert _through_json(parity) == parity


MakeParity = Callable[..., Parity]
Script = Callable[..., None]

# Flips


@given(st.integers(1, 4), st.floats(0.0, 0.5), st.floats(0.0, 0.3), st.integers(0, 99))
def test_flips_are_those_that_parity_counts(classes: int, noise: float, band: float, seed: int) -> None:
    spec = small_spec(classes)
    reference, logits = noisy(classes, 2, noise, seed)
    parity = compare_logits(reference, logits, spec, ["a", "b"], noise_band=band)
    for index, image in enumerate(parity.per_image):
        flips = classify_flips(reference[index], logits[index], spec, parity.noise_band)
        assert (flips.kinds == BENIGN).sum() == image.benign_flips
        assert (flips.kinds == REAL).sum() == image.flipped_pixels - image.benign_flips
        assert ((flips.reference != flips.mask) == (flips.kinds != SAME)).all()


@given(st.integers(1, 4), st.floats(0.0, 0.5), st.integers(0, 99))
def test_the_histogram_has_every_pixel_and_every_flip_once(classes: int, noise: float, seed: int) -> None:
    reference, logits = noisy(classes, 1, noise, seed)
    flips = classify_flips(reference[0], logits[0], small_spec(classes), 0.05)
    histogram = flips.histogram
    assert len(histogram.pixels) == len(MARGIN_EDGES) - 1
    assert sum(histogram.pixels) == SIZE * SIZE
    assert sum(histogram.benign) == (flips.kinds == BENIGN).sum()
    assert sum(histogram.real) == (flips.kinds == REAL).sum()
    assert all(b + r <= n for n, b, r in zip(histogram.pixels, histogram.benign, histogram.real, strict=True))
    # Inside the band and outside it are different bins but for the one that holds its edge.
    benign, real = (np.flatnonzero(counts) for counts in (histogram.benign, histogram.real))
    assert not (benign.size and real.size) or benign.max() <= real.min()


@pytest.mark.parametrize(
    ("margin", "edge"), [(0.0, 0.0), (1e-9, 0.0), (0.011, 1e-2), (50.0, 10**1.5), (5e4, MARGIN_EDGES[-2])]
)
def test_a_margin_is_the_distance_from_the_cut(margin: float, edge: float) -> None:
    spec = small_spec(1, threshold=0.7)
    reference = np.full((1, SIZE, SIZE), spec.logit_threshold + margin, dtype=np.float64).astype(np.float32)
    if margin == 0.0:
        reference[:] = np.float32(spec.logit_threshold)
    (filled,) = np.flatnonzero(classify_flips(reference, reference, spec, 0.0).histogram.pixels)
    assert MARGIN_EDGES[filled] == pytest.approx(edge)


def test_the_margin_of_several_classes_is_half_the_lead() -> None:
    reference = np.zeros((3, SIZE, SIZE), dtype=np.float32)
    reference[1], reference[2] = 5.0, 3.0
    (filled,) = np.flatnonzero(classify_flips(reference, reference, small_spec(3), 0.0).histogram.pixels)
    assert MARGIN_EDGES[filled] <= 1.0 < MARGIN_EDGES[filled + 1]
    flipped = reference.copy()
    flipped[0] = 9.0  # over the class it flipped to the lead is 5
    (filled,) = np.flatnonzero(classify_flips(reference, flipped, small_spec(3), 0.0).histogram.real)
    assert MARGIN_EDGES[filled] <= 2.5 < MARGIN_EDGES[filled + 1]


# Classes that may overlap


@given(_logits.filter(lambda values: values.shape[1] > 1), st.data())
def test_masks_that_may_overlap_are_judged_each_by_itself(reference: FloatArray, data: st.DataObject) -> None:
    """As those of as many models of one class."""
    shape, channels = reference.shape, reference.shape[1]
    other = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-50, 50, width=32)))
    names = [f"{i}" for i in range(len(reference))]
    band = rounding_band(reference)
    together = compare_logits(reference, other, ModelSpec(classes=channels, multilabel=True), names, noise_band=band)
    alone = [
        compare_logits(reference[:, [i]], other[:, [i]], ONE, names, noise_band=band).per_image for i in range(channels)
    ]
    for image, masks in zip(together.per_image, zip(*alone, strict=True), strict=True):
        assert image.pixels == sum(mask.pixels for mask in masks)
        assert image.flipped_pixels == sum(mask.flipped_pixels for mask in masks)
        assert image.real_flips == sum(mask.real_flips for mask in masks)
        assert image.stray_pixels == sum(mask.stray_pixels for mask in masks)
        assert image.iou == min(mask.iou for mask in masks)
        distances = [mask.flip_distance_px for mask in masks if mask.real_flips]
        assert image.flip_distance_px == (None if None in distances else max(distances, default=None))
    assert together.blank_images == sum(
        all((each >= 0).all() or (each < 0).all() for each in image) for image in reference
    )


def test_an_object_that_is_lost_in_one_of_the_masks_fails() -> None:
    reference = np.full((1, 2, 64, 64), -9, np.float32)
    reference[0, 0, :32], reference[0, 1, 10:30, 10:30] = 9, 9
    other = reference.copy()
    other[0, 1] = -9  # the pixels keep their class in the other mask
    spec = ModelSpec(classes=2, multilabel=True)
    parity = compare_logits(reference, other, spec, ["a.png"])
    assert verdict(parity, LIMITS["int8"]) == "FAILED"
    assert parity.worst_class is not None
    assert parity.worst_class.index == 1
