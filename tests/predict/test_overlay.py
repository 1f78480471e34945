from __future__ import annotations

import numpy as np
import pytest

from segx.masks.image_io import MaskArray
from segx.predict.overlay import _COLOURS, outlined

YELLOW = (66, 228, 240)


def square(size: int = 60, value: int = 255) -> MaskArray:
    mask = np.zeros((size, size), np.uint8)
    mask[20:40, 20:40] = value
    return mask


def painted(picture: MaskArray, colour: tuple[int, int, int]) -> MaskArray:
    return (picture == np.array(colour, np.uint8)).all(axis=2).astype(np.uint8)


def test_the_outline_lies_on_the_edge_of_the_mask_and_nowhere_else() -> None:
    picture = outlined(np.full((60, 60, 1), 100, np.uint8), square())
    edge = square() // 255
    edge[21:39, 21:39] = 0
    np.testing.assert_array_equal(painted(picture, YELLOW), edge)
    assert (picture[edge == 0] == 100).all()


def test_holes_have_an_outline_too() -> None:
    mask = square()
    mask[28:32, 28:32] = 0
    picture = outlined(np.zeros((60, 60, 1), np.uint8), mask)
    assert painted(picture, YELLOW)[24:36, 24:36].any()
    assert not painted(picture, YELLOW)[29:31, 29:31].any()


def test_colours_are_in_the_order_that_opencv_encodes() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[..., 0] = 200  # red
    assert outlined(image, square())[0, 0].tolist() == [0, 0, 200]


def test_sixteen_bits_become_eight() -> None:
    image = np.full((60, 60, 1), 0xABCD, np.uint16)
    assert outlined(image, square())[0, 0].tolist() == [0xAB] * 3


@pytest.mark.parametrize("size", [(30, 30), (120, 240), (60, 61)])
def test_the_picture_gets_the_size_of_the_mask(size: tuple[int, int]) -> None:
    picture = outlined(np.full((*size, 1), 7, np.uint8), square())
    assert picture.shape == (60, 60, 3)
    assert picture.dtype == np.uint8
    assert painted(picture, YELLOW).any()


@pytest.mark.parametrize("value", [1, 3, 8, 254])
def test_a_class_has_the_same_colour_whatever_else_is_there(value: int) -> None:
    image = np.zeros((60, 60, 1), np.uint8)
    alone, both = square(value=value), square(value=value)
    both[:5, :5] = value - 1 or 2
    expected = _COLOURS[(value - 1) % 7]
    for mask in (alone, both):
        np.testing.assert_array_equal(outlined(image, mask)[20, 20], expected)


@pytest.mark.parametrize("value", [0, 255])
def test_empty_and_full_masks(value: int) -> None:
    image = np.full((9, 8, 1), 50, np.uint8)
    picture = outlined(image, np.full((9, 8), value, np.uint8))
    assert (picture[1:-1, 1:-1] == 50).all()
    assert painted(picture, YELLOW)[0].all() == (value > 0)


def test_the_image_itself_is_not_drawn_into() -> None:
    image = np.full((60, 60, 3), 100, np.uint8)
    outlined(image, square())
    assert (image == 100).all()


def test_outlines_of_large_pictures_are_thicker() -> None:
    thin = outlined(np.zeros((60, 60, 1), np.uint8), square())
    large = np.kron(square(), np.ones((20, 20), np.uint8))
    thick = outlined(np.zeros((1200, 1200, 1), np.uint8), large)
    assert painted(thick, YELLOW)[:, 600].sum() > painted(thin, YELLOW)[:, 30].sum() == 2
