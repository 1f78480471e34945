from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.predict.item import Item, mask_name, printable


def _masks(*names: str) -> dict[str, str]:
    return {name: mask_name(name, set(names).__contains__) for name in names}


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("a.png", "a.png"),
        ("a.PNG", "a.png"),
        ("a.jpg", "a.png"),
        ("sub/dir.x/a.Tiff", "sub/dir.x/a.png"),
        ("a b\n.jpeg", "a b\n.png"),
        ("scan", "scan.png"),
        ("scan.webp", "scan.webp.png"),
        ("a.jPg", "a.jPg.png"),
        ("clip.mp4/000012", "clip.mp4/000012.png"),
        ("\udcff.bmp", "\udcff.png"),
    ],
)
def test_the_suffix_of_an_image_becomes_png(name: str, mask: str) -> None:
    assert mask_name(name, lambda _: False) == mask
    assert Item(name, Path(name)).mask == mask


def test_images_that_differ_only_in_the_suffix_keep_it() -> None:
    assert _masks("a.jpg", "a.png", "a.tif", "b.tif") == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png",
        "a.tif": "a.tif.png",
        "b.tif": "b.png",
    }


def test_a_name_that_another_mask_would_have_is_left_to_it() -> None:
    assert _masks("a.jpg", "a.png", "a.jpg.png") == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png",
        "a.jpg.png": "a.jpg.png.png",
    }


def test_a_folder_in_the_way_of_a_mask_is_avoided() -> None:
    assert mask_name("a.jpg", {"a.jpg", "a.png"}.__contains__) == "a.jpg.png"


_SUFFIXES = st.lists(st.sampled_from([".png", ".jpg", ".JPG", ".Tif", ".tIf", ".bmp", ".webp", ""]), max_size=4)
_NAMES = st.builds(lambda stem, suffixes: stem + "".join(suffixes), st.sampled_from(["a", "b"]), _SUFFIXES)


@given(st.sets(_NAMES, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_no_two_images_of_a_folder_share_a_mask_whatever_the_order(names: set[str], order: random.Random) -> None:
    shuffled = sorted(names)
    order.shuffle(shuffled)
    masks = _masks(*shuffled)
    assert len(set(masks.values())) == len(masks)
    assert masks == _masks(*sorted(names))
    assert all(mask.endswith(".png") for mask in masks.values())


@given(st.text())
def test_a_name_is_shown_on_one_printable_line(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode("utf-8")


def test_plain_names_are_shown_as_they_are() -> None:
    assert printable("sub/a b-细胞.png") == "sub/a b-细胞.png"
    assert printable("a\nb\udcff\x1b") == r"a\nb\udcff\x1b"
