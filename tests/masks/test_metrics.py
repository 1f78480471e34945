"""Overlap figures against their definitions, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segx.masks.metrics import class_ious, dice, farthest_from_boundary, lowest, mean_of_present

Masks = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.bool_]

# NaN is a class that neither mask holds; a constant, so that two tables of scores can be told apart.
_scores = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.floats(0, 1) | st.just(math.nan)
)


@st.composite
def _mask_pairs(draw: st.DrawFn) -> tuple[Masks, Masks, int]:
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)))
    classes = draw(st.integers(1, 4))
    values = st.integers(0, max(1, classes - 1))
    first, second = (draw(hnp.arrays(np.uint8, shape, elements=values)) for _ in range(2))
    return first, second, classes


def _areas(a: Masks, b: Masks, value: int) -> tuple[int, int, int]:
    """Pixels of both, of the first and of the second mask of one image that have the value."""
    pairs = list(zip(a.flat, b.flat, strict=True))
    return sum(x == y == value for x, y in pairs), sum(x == value for x, _ in pairs), sum(y == value for _, y in pairs)


@given(_mask_pairs())
def test_each_class_has_its_own_iou_and_one_that_is_absent_has_none(pair: tuple[Masks, Masks, int]) -> None:
    first, second, classes = pair
    values = [1] if classes == 1 else range(classes)
    found = class_ious(first, second, classes)
    assert found.shape == (len(first), classes)
    for row, a, b in zip(found, first, second, strict=True):
        for score, value in zip(row, values, strict=True):
            both, one, other = _areas(a, b, value)
            either = one + other - both
            assert math.isnan(score) if not either else score == pytest.approx(both / either)


@given(_mask_pairs())
def test_dice_is_twice_the_intersection_over_the_sum_of_the_areas(pair: tuple[Masks, Masks, int]) -> None:
    first, second, classes = pair
    found = dice(class_ious(first, second, classes))
    for row, a, b in zip(found, first, second, strict=True):
        for score, value in zip(row, [1] if classes == 1 else range(classes), strict=True):
            both, one, other = _areas(a, b, value)
            assert math.isnan(score) if not one + other else score == pytest.approx(2 * both / (one + other))


@given(_scores)
def test_absent_classes_count_neither_for_the_lowest_nor_for_the_mean(scores: npt.NDArray[np.float64]) -> None:
    for row, low, mean in zip(scores, lowest(scores), mean_of_present(scores), strict=True):
        present = [score for score in row if not math.isnan(score)]
        assert low == min(present, default=1.0)
        assert mean == pytest.approx(sum(present) / len(present) if present else 1.0)


def test_a_class_that_only_one_mask_holds_is_present_and_scores_nothing() -> None:
    first, second = np.array([[[0, 0, 0, 2]]], np.uint8), np.array([[[0, 0, 0, 0]]], np.uint8)
    scores = class_ious(first, second, 3)
    np.testing.assert_array_equal(scores, [[0.75, np.nan, 0.0]])
    assert mean_of_present(scores) == [0.375]
    assert lowest(scores) == [0.0]


def _farthest_by_brute_force(mask: Masks, pixels: Pixels) -> float | None:
    places = list(np.ndindex(*mask.shape))
    distances = [
        min((math.dist(place, other) for other in places if mask[other] != mask[place]), default=None)
        for place in places
        if pixels[place]
    ]
    return max((d for d in distances if d is not None), default=None)


@given(st.data())
def test_the_distance_is_that_to_the_nearest_pixel_of_another_value(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    # Few values and many of one, so that there are wide areas.
    mask = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 0, 0, 1, 3])))
    pixels = data.draw(hnp.arrays(np.bool_, shape))
    expected = _farthest_by_brute_force(mask, pixels)
    found = farthest_from_boundary(mask, pixels)
    assert found is None if expected is None else found == pytest.approx(expected, rel=1e-5)


def _half(size: int) -> Masks:
    mask = np.zeros((size, size), np.uint8)
    mask[:, size // 2 :] = 1
    return mask


def _at(mask: Masks, *places: tuple[int, int]) -> Pixels:
    pixels = np.zeros(mask.shape, np.bool_)
    for place in places:
        pixels[place] = True
    return pixels


@pytest.mark.parametrize(("column", "pixels"), [(0, 8.0), (7, 1.0), (8, 1.0), (15, 8.0)])
def test_a_pixel_beside_the_boundary_is_one_away_on_either_side(column: int, pixels: float) -> None:
    mask = _half(16)
    assert farthest_from_boundary(mask, _at(mask, (5, column))) == pixels


def test_the_farthest_of_several_pixels_counts_whatever_their_values() -> None:
    mask = _half(16)
    assert farthest_from_boundary(mask, _at(mask, (0, 6), (3, 8), (9, 12))) == 5.0
    assert farthest_from_boundary(mask, _at(mask, (0, 1), (3, 8), (9, 12))) == 7.0


def test_the_edge_of_the_image_is_no_boundary() -> None:
    mask = np.zeros((1, 9), np.uint8)
    mask[0, 8] = 1
    assert farthest_from_boundary(mask, _at(mask, (0, 0))) == 8.0


def test_there_is_no_distance_without_pixels_or_without_a_boundary() -> None:
    mask = _half(4)
    assert farthest_from_boundary(mask, _at(mask)) is None
    for value in (0, 3):
        flat = np.full((4, 4), value, np.uint8)
        assert farthest_from_boundary(flat, _at(flat, (1, 1))) is None
