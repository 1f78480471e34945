"""Outputs are right, complete or absent, and never replace a user's file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from segx.errors import ImageError, OutputError, UsageError
from segx.masks.image_io import read_mask
from segx.masks.preprocess import MaskArray, colour_of, masks_from_logits, resize_mask
from segx.model.spec import ModelSpec
from segx.predict import output as module
from segx.predict.output import (
    LOCK_NAME,
    PARTIAL_NAME,
    OutputFolder,
    OutputOptions,
    Postprocessed,
    Together,
    class_masks,
    draw_outline,
    legend,
    postprocess,
    write_legend,
    write_outputs,
)
from segx.predict.sources import Item

Logits = npt.NDArray[np.float32]

ONE = ModelSpec(height=8, width=8)
FOUR = ModelSpec(height=8, width=8, classes=4)
OVERLAPPING = ModelSpec(height=8, width=8, classes=3, multilabel=True)


def logits(classes: int = 1, height: int = 8, width: int = 8) -> Logits:
    return np.random.default_rng(0).normal(0, 4, (classes, height, width)).astype(np.float32)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[OutputFolder]:
    with OutputFolder(tmp_path / "out") as folder:
        yield folder


# finish


@pytest.mark.parametrize("size", [(0, 20), (10.5, 20), (10,), (10, 20, 3), "640x480"])
def test_a_size_that_is_not_of_an_image_is_refused(size: Any) -> None:
    with pytest.raises(UsageError, match="is not a width and height"):
        OutputOptions(size=size)


@pytest.mark.parametrize("size", ["original", (8, 8), (13, 5)])
@pytest.mark.parametrize("spec", [ONE, FOUR])
def test_masks_are_cut_then_resized(spec: ModelSpec, size: tuple[int, int]) -> None:
    values = logits(spec.classes)
    width, height = (30, 20) if size == "original" else size
    finished = postprocess(values, (30, 20), spec, OutputOptions(size=size))
    cut = masks_from_logits(values[None], spec)[0]
    expected = resize_mask(cut, (height, width)) * (255 if spec.classes == 1 else 1)
    np.testing.assert_array_equal(finished.mask, expected)
    assert finished.mask.shape == (height, width)
    assert finished.mask.dtype == np.uint8
    assert finished.probabilities is None


def test_a_mask_is_black_and_white_or_class_indices() -> None:
    assert set(np.unique(postprocess(logits(), (8, 8), ONE, OutputOptions()).mask)) == {0, 255}
    assert set(np.unique(postprocess(logits(4), (8, 8), FOUR, OutputOptions()).mask)) == {0, 1, 2, 3}


def test_class_255_survives() -> None:
    values = np.zeros((256, 1, 1), np.float32)
    values[255] = 1
    assert postprocess(values, (1, 1), ModelSpec(classes=256, height=1, width=1), OutputOptions()).mask.item() == 255


@given(
    hnp.arrays(np.float32, (1, 4, 5), elements=st.floats(-200, 200, width=32)),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_probabilities_cut_at_the_threshold_give_the_mask(
    values: Logits, threshold: float, size: tuple[int, int]
) -> None:
    spec = ModelSpec(height=4, width=5, threshold=threshold)
    finished = postprocess(values, size, spec, OutputOptions(probabilities=True))
    assert finished.probabilities is not None
    assert finished.probabilities.dtype == np.float32
    assert finished.probabilities.shape == finished.mask.shape == size[::-1]
    decided = np.abs(finished.probabilities - threshold) > 1e-6
    np.testing.assert_array_equal((finished.probabilities >= threshold)[decided], finished.mask[decided] == 255)
    assert finished.probabilities.min() >= 0
    assert finished.probabilities.max() <= 1


@given(hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(-200, 200, width=32)))
def test_probabilities_of_several_classes_sum_to_one(values: Logits) -> None:
    finished = postprocess(values, (7, 9), ModelSpec(classes=3), OutputOptions(probabilities=True))
    assert finished.probabilities is not None
    assert finished.probabilities.shape == (3, 9, 7)
    np.testing.assert_allclose(finished.probabilities.sum(axis=0), 1, rtol=0, atol=1e-6)
    largest = finished.probabilities.max(axis=0)
    chosen = np.take_along_axis(finished.probabilities, finished.mask[None].astype(np.intp), axis=0)[0]
    np.testing.assert_array_equal(chosen, largest)


def test_probabilities_are_those_of_torch() -> None:
    import torch

    one, four = logits(), logits(4)
    sigmoid = postprocess(one, (8, 8), ONE, OutputOptions(probabilities=True)).probabilities
    softmax = postprocess(four, (8, 8), FOUR, OutputOptions(probabilities=True)).probabilities
    assert sigmoid is not None
    assert softmax is not None
    np.testing.assert_allclose(sigmoid, torch.from_numpy(one)[0].sigmoid().numpy(), rtol=1e-5)
    np.testing.assert_allclose(softmax, torch.from_numpy(four).softmax(0).numpy(), rtol=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_logits_are_not_changed(classes: int) -> None:
    values = logits(classes)
    before = values.copy()
    postprocess(values, (9, 9), ModelSpec(classes=classes), OutputOptions(probabilities=True))
    np.testing.assert_array_equal(values, before)


# Palettes and class names


@pytest.mark.parametrize("spec", [ONE, FOUR])
def test_a_palette_shows_colours_and_keeps_the_values(out: OutputFolder, spec: ModelSpec) -> None:
    finished = postprocess(logits(spec.classes), (30, 20), spec, OutputOptions())
    write_outputs(out.write, Item("a.jpg", Path("gone.jpg")), None, finished, palette=True)
    with Image.open(out.path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), finished.mask)
        shown = np.asarray(image.convert("RGB"))
    value = 255 if spec is ONE else 1
    assert (shown[finished.mask == value] == colour_of(value)).all()
    assert (shown[finished.mask == 0] == 0).all()
    np.testing.assert_array_equal(read_mask(out.path / "a.png", 256), finished.mask)


def test_a_legend_has_value_name_and_colour(out: OutputFolder) -> None:
    write_legend(out, legend(("background", "Zelle"), ONE), resume=False)
    assert json.loads((out.path / "classes.json").read_text()) == [
        {"value": 0, "name": "background", "colour": "#000000"},
        {"value": 255, "name": "Zelle", "colour": "#f0e442"},
    ]
    assert [entry["value"] for entry in legend(("a", "b", "c", "d"), FOUR)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("names", "spec"), [(("a",), ONE), (("a", "b", "c"), FOUR)])
def test_class_names_that_are_too_few_are_refused(names: tuple[str, ...], spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=r"class names? for masks of [24] values"):
        legend(names, spec)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a", "b"), ("a", "b", "c/d"), ("a", "..", "b"), ("a", "", "b")])
def test_class_names_that_name_no_folders_are_refused(names: tuple[str, ...]) -> None:
    assert [entry["channel"] for entry in legend(("a", "b", "c"), OVERLAPPING)] == [0, 1, 2]
    with pytest.raises(UsageError, match="do not name 3 folders"):
        legend(names, OVERLAPPING)


_LETTERS = st.text(st.one_of(st.characters(), st.sampled_from(["/", ".", "\0", "\n", "\udcff", "a"])), max_size=4)


@given(names=st.tuples(*[st.one_of(_LETTERS, st.just("long" * 64))] * 3))
def test_any_class_names_are_folders_and_a_legend_or_refused(names: tuple[str, ...]) -> None:
    with contextlib.suppress(UsageError), tempfile.TemporaryDirectory() as place:
        content = legend(names, OVERLAPPING)
        with OutputFolder(Path(place)) as folder:
            for resume in (False, True):
                write_legend(folder, content, resume=resume)
        assert [entry["name"] for entry in json.loads((folder.path / "classes.json").read_text())] == list(names)
        for path in class_masks("a.png", names, OVERLAPPING).values():
            (folder.path / path).parent.mkdir()


def test_a_legend_of_the_user_is_not_replaced(out: OutputFolder) -> None:
    (out.path / "classes.json").write_text("{}")
    for resume in (False, True):
        with pytest.raises(OutputError, match=r"classes\.json already exists"):
            write_legend(out, legend(("a", "b"), ONE), resume=resume)
    assert (out.path / "classes.json").read_text() == "{}"
    (out.path / "classes.json").unlink()
    (out.path / "classes.json").symlink_to("nowhere")
    with pytest.raises(OutputError, match="already exists"):
        write_legend(out, legend(("a", "b"), ONE), resume=False)


# write_outputs


def written(out: OutputFolder, name: str = "sub/a.jpg", *, overlay: bool = False, probabilities: bool = False) -> None:
    finished = postprocess(logits(), (30, 20), ONE, OutputOptions(probabilities=probabilities))
    image = np.full((20, 30, 1), 90, np.uint8) if overlay else None
    write_outputs(out.write, Item(name, Path("gone.jpg")), image, finished)


def test_the_mask_is_a_png_that_gives_it_back(out: OutputFolder) -> None:
    written(out)
    mask = postprocess(logits(), (30, 20), ONE, OutputOptions()).mask
    with Image.open(out.path / "sub" / "a.png") as image:
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(image), mask)
    assert [path.name for path in (out.path / "sub").iterdir()] == ["a.png"]


@pytest.mark.parametrize(("names", "folders"), [((), "012"), (("x", "y", "z"), "xyz")])
def test_masks_that_may_overlap_are_files_in_a_folder_for_each(
    out: OutputFolder, names: tuple[str, ...], folders: str
) -> None:
    values = logits(3)
    finished = postprocess(values, (30, 20), OVERLAPPING, OutputOptions(probabilities=True))
    item = Item("sub/a.jpg", Path("gone.jpg"))
    masks = class_masks(item.mask, names, OVERLAPPING)
    write_outputs(out.write, item, np.zeros((20, 30, 1), np.uint8), finished, masks=masks)
    assert finished.probabilities is not None
    for channel, folder in enumerate(folders):
        alone = postprocess(values[[channel]], (30, 20), ONE, OutputOptions(probabilities=True))
        np.testing.assert_array_equal(read_mask(out.path / folder / "sub" / "a.png", 1) * 255, alone.mask)
        np.testing.assert_array_equal(finished.probabilities[channel], alone.probabilities)
    assert sorted(path.name for path in (out.path / "sub").iterdir()) == ["a.overlay.jpg", "a.probabilities.npy"]


def test_overlay_and_probabilities_lie_beside_the_mask(out: OutputFolder) -> None:
    written(out, "sub/a.b.jpg", overlay=True, probabilities=True)
    names = sorted(path.name for path in (out.path / "sub").iterdir())
    assert names == ["a.b.overlay.jpg", "a.b.png", "a.b.probabilities.npy"]
    picture = cv2.imread(str(out.path / "sub" / "a.b.overlay.jpg"))
    assert picture is not None
    assert picture.shape == (20, 30, 3)
    expected = postprocess(logits(), (30, 20), ONE, OutputOptions(probabilities=True)).probabilities
    np.testing.assert_array_equal(np.load(out.path / "sub" / "a.b.probabilities.npy"), expected)


_STEMS = st.sampled_from(["a", "a.overlay", "a.probabilities", "a.overlay.jpg", "a.jpg"])


@given(st.sets(st.builds(str.__add__, _STEMS, st.sampled_from([".jpg", ".png"])), min_size=2))
def test_no_two_outputs_of_a_folder_meet(names: set[str]) -> None:
    from segx.predict.sources import mask_name

    masks = [mask_name(name, names.__contains__) for name in names]
    stems = [mask.removesuffix(".png") for mask in masks]
    suffixes = (module.OVERLAY_SUFFIX, module.PROBABILITIES_SUFFIX)
    everything = [*masks, *(stem + suffix for stem in stems for suffix in suffixes)]
    assert len(set(everything)) == len(everything)


def test_the_mask_comes_last(out: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(OutputFolder, "write", lambda _, name, *args, **kwargs: order.append(name))  # noqa: ARG005
    written(out, overlay=True, probabilities=True)
    assert order == ["sub/a.overlay.jpg", "sub/a.probabilities.npy", "sub/a.png"]


def test_where_an_overlay_cannot_be_written_there_is_no_mask(out: OutputFolder) -> None:
    (out.path / "a.overlay.jpg").mkdir()
    with pytest.raises(ImageError, match=r"a\.overlay\.jpg"):
        written(out, "a.png", overlay=True)
    assert not (out.path / "a.png").exists()


def test_a_picture_too_large_for_jpeg_is_named(out: OutputFolder) -> None:
    mask = np.zeros((1, 66_000), np.uint8)
    with pytest.raises(ImageError, match=r"long\.png as \.jpg") as caught:
        write_outputs(
            out.write, Item("long.png", Path("x")), np.zeros((1, 66_000, 1), np.uint8), Postprocessed(mask, None)
        )
    assert "--size" in caught.value.hint
    write_outputs(out.write, Item("long.png", Path("x")), None, Postprocessed(mask, None))
    assert (out.path / "long.png").exists()


def test_a_folder_that_is_gone_is_no_fault_of_the_image(out: OutputFolder) -> None:
    out.path.rename(out.path.with_name("moved"))
    with pytest.raises(OutputError, match="gone"):
        written(out)


YELLOW = (66, 228, 240)


def square(size: int = 60, value: int = 255) -> MaskArray:
    mask = np.zeros((size, size), np.uint8)
    mask[20:40, 20:40] = value
    return mask


def painted(picture: MaskArray, colour: tuple[int, int, int]) -> MaskArray:
    return (picture == np.array(colour, np.uint8)).all(axis=2).astype(np.uint8)


def test_the_outline_lies_on_the_edge_of_the_mask_and_nowhere_else() -> None:
    picture = draw_outline(np.full((60, 60, 1), 100, np.uint8), square())
    edge = square() // 255
    edge[21:39, 21:39] = 0
    np.testing.assert_array_equal(painted(picture, YELLOW), edge)
    assert (picture[edge == 0] == 100).all()


def test_holes_have_an_outline_too() -> None:
    mask = square()
    mask[28:32, 28:32] = 0
    picture = draw_outline(np.zeros((60, 60, 1), np.uint8), mask)
    assert painted(picture, YELLOW)[24:36, 24:36].any()
    assert not painted(picture, YELLOW)[29:31, 29:31].any()


def test_colours_are_in_the_order_that_opencv_encodes() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[..., 0] = 200  # red
    assert draw_outline(image, square())[0, 0].tolist() == [0, 0, 200]


def test_sixteen_bits_become_eight() -> None:
    image = np.full((60, 60, 1), 0xABCD, np.uint16)
    assert draw_outline(image, square())[0, 0].tolist() == [0xAB] * 3


@pytest.mark.parametrize("size", [(30, 30), (120, 240), (60, 61)])
def test_the_picture_gets_the_size_of_the_mask(size: tuple[int, int]) -> None:
    picture = draw_outline(np.full((*size, 1), 7, np.uint8), square())
    assert picture.shape == (60, 60, 3)
    assert picture.dtype == np.uint8
    assert painted(picture, YELLOW).any()


@pytest.mark.parametrize("value", [1, 3, 8, 254])
def test_a_class_has_the_same_colour_whatever_else_is_there(value: int) -> None:
    image = np.zeros((60, 60, 1), np.uint8)
    alone, both = square(value=value), square(value=value)
    both[:5, :5] = value - 1 or 2
    for mask in (alone, both):
        np.testing.assert_array_equal(draw_outline(image, mask)[20, 20], colour_of(value)[::-1])


@pytest.mark.parametrize("value", [0, 255])
def test_empty_and_full_masks(value: int) -> None:
    image = np.full((9, 8, 1), 50, np.uint8)
    picture = draw_outline(image, np.full((9, 8), value, np.uint8))
    assert (picture[1:-1, 1:-1] == 50).all()
    assert painted(picture, YELLOW)[0].all() == (value > 0)


def test_the_image_itself_is_not_drawn_into() -> None:
    image = np.full((60, 60, 3), 100, np.uint8)
    draw_outline(image, square())
    assert (image == 100).all()


def test_outlines_of_large_pictures_are_thicker() -> None:
    thin = draw_outline(np.zeros((60, 60, 1), np.uint8), square())
    large = np.kron(square(), np.ones((20, 20), np.uint8))
    thick = draw_outline(np.zeros((1200, 1200, 1), np.uint8), large)
    assert painted(thick, YELLOW)[:, 600].sum() > painted(thin, YELLOW)[:, 30].sum() == 2


Block = Callable[[], AbstractContextManager[None]]


def files(folder: OutputFolder) -> list[str]:
    shown = [path for path in folder.path.rglob("*") if path.name not in (LOCK_NAME, PARTIAL_NAME)]
    return sorted(str(path.relative_to(folder.path)) for path in shown)


def left_over(folder: OutputFolder) -> list[Path]:
    return list((folder.path / PARTIAL_NAME).iterdir())


# writing


@pytest.mark.parametrize("name", ["a.png", "sub/deep/a.png", "a b\n.png", "\udcff/\udcfe.png", "clip.mp4/000001.png"])
def test_files_are_written_with_their_folders(out: OutputFolder, name: str) -> None:
    out.write(name, b"content")
    assert (out.path / name).read_bytes() == b"content"
    assert left_over(out) == []


def test_nothing_but_the_files_is_left(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "new" / "out") as folder:
        folder.write("a.png", b"x")
    assert [path.name for path in folder.path.iterdir()] == ["a.png"]


def test_files_have_the_permissions_of_ordinary_files(out: OutputFolder) -> None:
    (out.path / "ordinary").touch()
    out.write("a.png", b"x")
    assert (out.path / "a.png").stat().st_mode == (out.path / "ordinary").stat().st_mode


def test_many_threads_may_write(out: OutputFolder) -> None:
    names = [f"{number % 7}/{number}.png" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: out.write(name, name.encode() * 1000), names))
    assert all((out.path / name).read_bytes() == name.encode() * 1000 for name in names)


# names


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "sub/../../a.png", "..", "a\0.png"])
def test_paths_that_would_escape_are_refused_by_name(out: OutputFolder, name: str) -> None:
    with pytest.raises(ImageError, match="outside the output folder") as caught:
        out.write(name, b"x")
    assert module.escaped(name) in caught.value.message
    assert files(out) == []


@pytest.mark.parametrize("name", ["", "sub/", "."])
def test_what_is_no_file_name_is_refused(out: OutputFolder, name: str) -> None:
    with pytest.raises(ImageError, match="not the path of a file"):
        out.write(name, b"x")


@pytest.mark.parametrize("name", sorted(module._RESERVED_NAMES))
def test_names_that_the_folder_needs_are_refused(out: OutputFolder, name: str) -> None:
    for path in (name, f"{name}/a.png"):
        with pytest.raises(ImageError, match="reserves that name"):
            out.write(path, b"x")


@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_that_leads_out_is_refused(out: OutputFolder, tmp_path: Path, absolute: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    (out.path / "sub").symlink_to(tmp_path / "elsewhere" if absolute else "../elsewhere")
    for name in ("sub/a.png", "sub/deeper/a.png"):
        with pytest.raises(ImageError, match="leads out of the output folder"):
            out.write(name, b"x")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_whose_name_begins_like_the_output_folder_is_outside(out: OutputFolder, tmp_path: Path) -> None:
    (tmp_path / "out2").mkdir()
    (out.path / "sub").symlink_to(tmp_path / "out2")
    with pytest.raises(ImageError, match="leads out"):
        out.write("sub/a.png", b"x")


def test_a_link_that_stays_inside_is_followed(out: OutputFolder) -> None:
    out.write("real/a.png", b"x")
    (out.path / "link").symlink_to(out.path / "real")
    out.write("link/b.png", b"y")
    assert (out.path / "real" / "b.png").read_bytes() == b"y"


def test_the_output_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with OutputFolder(tmp_path / "out") as folder:
        folder.write("sub/a.png", b"x")
    assert (tmp_path / "real" / "sub" / "a.png").exists()


def test_a_link_to_itself_is_refused(out: OutputFolder) -> None:
    (out.path / "loop").symlink_to("loop")
    with pytest.raises(ImageError, match=r"loop/a\.png"):
        out.write("loop/a.png", b"x")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder.png", "a folder has that name"),
        ("file/a.png", "a file has that name"),
        ("file/sub/a.png", "a file has that name"),
        ("x" * 252 + ".png", "the name is too long"),
        ("y" * 256 + "/a.png", "the name is too long"),
    ],
)
def test_a_path_that_cannot_be_written_is_the_fault_of_one_image(out: OutputFolder, name: str, reason: str) -> None:
    (out.path / "folder.png").mkdir()
    (out.path / "file").touch()
    with pytest.raises(ImageError, match=reason):
        out.write(name, b"x")
    assert left_over(out) == []
    out.write("other.png", b"x")


# what is there already


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")
    with OutputFolder(tmp_path) as folder, pytest.raises(ImageError, match=r"a\.png: it existed before"):
        folder.write("a.png", b"x")
    assert path.read_bytes() == b"precious"


def killed(folder: Path, *names: str) -> None:
    """Leave what a run does that is killed before the files of an image have their line."""
    with OutputFolder(folder) as out:
        files = Together(out, replaces=False)
        for name in names:
            files.write(name, b"of a run that was killed")


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_goes_on_replaces_what_a_killed_one_began(tmp_path: Path, times: int) -> None:
    for time in range(times):
        killed(tmp_path, f"{time}.png")
    with OutputFolder(tmp_path) as folder:
        for time in range(times):
            folder.write(f"{time}.png", b"x")
            assert (tmp_path / f"{time}.png").read_bytes() == b"x"
            with pytest.raises(ImageError, match="it existed before"):
                folder.write(f"{time}.png", b"y")
    assert not (tmp_path / PARTIAL_NAME).exists()


@pytest.mark.parametrize("link", ["none", "hard", "symbolic", "dangling"])
def test_a_file_put_there_between_two_runs_is_not_replaced(tmp_path: Path, link: str) -> None:
    killed(tmp_path / "out", "a.png")
    mine, path = tmp_path / "mine", tmp_path / "out" / "b.png"
    if link != "dangling":
        mine.write_bytes(b"mine")
    if link == "hard":
        path.hardlink_to(mine)
    elif link == "none":
        mine.rename(path)
    else:
        path.symlink_to(mine)
    with OutputFolder(tmp_path / "out") as folder, pytest.raises(ImageError, match="it existed before"):
        folder.write("b.png", b"x")
    assert path.is_symlink() == (link in ("symbolic", "dangling"))
    assert link == "dangling" or path.read_bytes() == b"mine"


def test_without_hard_links_a_file_of_the_same_content_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(module.os, "link", link)
    (tmp_path / "a.png").write_bytes(b"mine")
    (tmp_path / "b.png").write_bytes(b"x")
    with OutputFolder(tmp_path) as folder:
        folder.write("b.png", b"x")
        folder.write("sub/c.png", b"x")
        with pytest.raises(ImageError, match="it existed before"):
            folder.write("a.png", b"x")
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["a.png", "b.png", "c.png"]


def test_of_files_that_belong_together_none_is_left_where_one_cannot_be_written(out: OutputFolder) -> None:
    (out.path / "a.png").write_bytes(b"mine")

    def write() -> None:
        with out.together() as write_one:
            write_one("a.overlay.jpg", b"x")
            write_one("a.png", b"x")

    with pytest.raises(ImageError, match=r"a\.png"):
        write()
    assert files(out) == ["a.png"]
    assert left_over(out) == []


# what makes everything stop


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_stops_everything(out: OutputFolder, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OutputError, match=rf"a\.png: {os.strerror(code)}"):
        out.write("a.png", b"x")
    assert files(out) == []
    assert left_over(out) == []


@pytest.mark.parametrize("fsync", [True, False])
def test_each_file_is_on_the_disk_before_it_counts_unless_that_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fsync: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(module.os, "fsync", synced.append)
    with OutputFolder(tmp_path / "out", fsync=fsync) as folder:
        folder.write("a.png", b"x")
    assert (tmp_path / "out" / "a.png").read_bytes() == b"x"
    assert len(synced) == fsync


def test_a_file_that_cannot_be_written_to_its_end_is_not_there(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from segx.errors import OutputError
from segx.predict.output import OutputFolder
with OutputFolder(Path({str(tmp_path / "out")!r})) as folder:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    folder.write("small.png", bytes(1000))
    try:
        folder.write("large.png", bytes(1001))
    except OutputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "large.png: File too large" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.png"]


@pytest.mark.parametrize("made_again", [False, True])
def test_a_folder_that_is_gone_stops_everything(out: OutputFolder, made_again: bool) -> None:
    (out.path / LOCK_NAME).unlink()
    (out.path / PARTIAL_NAME).rmdir()
    out.path.rmdir()
    if made_again:
        out.path.mkdir()
    with pytest.raises(OutputError, match="out is gone") as caught:
        out.write("sub/a.png", b"x")
    assert caught.value.hint
    assert not (out.path / "sub").exists()


def test_a_folder_that_goes_while_a_file_is_written(
    out: OutputFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "fsync", lambda _: out.path.rename(tmp_path / "moved"))
    with pytest.raises(OutputError, match="out is gone"):
        out.write("sub/a.png", b"x")
    assert not out.path.exists()


def test_a_folder_that_may_not_be_written(locked_folder: Path, unprivileged: Block) -> None:
    locked_folder.chmod(0o555)
    with unprivileged(), pytest.raises(OutputError, match="Permission denied"), OutputFolder(locked_folder / "out"):
        pass


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="out"), OutputFolder(tmp_path / "out"):
        pass


# one run at a time

_HOLDER = """
import sys
from pathlib import Path
from segx.predict.output import OutputFolder
with OutputFolder(Path(sys.argv[1])) as folder:
    (folder.path / ".segx-partial" / "17").write_bytes(b"half a m")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in tmp_path/out, which has a file half written."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_second_run_is_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(OutputError, match=f"in use by another run, process {holder.pid}") as caught:
        OutputFolder(tmp_path / "out").__enter__()
    assert "wait" in caught.value.hint
    assert (tmp_path / "out" / PARTIAL_NAME / "17").exists()


def test_a_killed_run_leaves_neither_its_lock_nor_half_a_file(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with OutputFolder(tmp_path / "out") as folder:
        assert left_over(folder) == []
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lock_whose_file_its_holder_removes_meanwhile_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    calls = 0

    def removed_just_before(descriptor: int, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / LOCK_NAME).unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_just_before)
    with OutputFolder(tmp_path):
        assert calls == 2
        with pytest.raises(OutputError, match="in use"), OutputFolder(tmp_path):
            pass


def test_a_run_whose_folder_was_removed_leaves_the_next_one_alone(tmp_path: Path) -> None:
    first = OutputFolder(tmp_path / "out")
    with first:
        (tmp_path / "out").rename(tmp_path / "moved")
        with OutputFolder(tmp_path / "out") as second:
            first.__exit__(None, None, None)
            second.write("a.png", b"x")
            with pytest.raises(OutputError, match="in use"), OutputFolder(tmp_path / "out"):
                pass
            first._lock = os.open(os.devnull, os.O_RDONLY)


_RUN = """
import itertools, sys
from pathlib import Path
from segx.errors import OutputError
from segx.predict.output import OutputFolder
from segx.predict.manifest import Manifest, Entry, parse_entries

out = Path(sys.argv[1]) / "out"
written = 0
with OutputFolder(out) as folder, Manifest.open(folder, {}, resume=False) as manifest:
    try:
        for number in itertools.count():
            folder.write(f"{number}.png", bytes(7000))
            manifest.append(Entry(str(number), "done", mask=f"{number}.png"))
            written += 1
    except OutputError as error:
        print(error, "-", error.hint)
with OutputFolder(out) as folder, Manifest.open(folder, {}, resume=True) as manifest:
    assert len(manifest.masks) == written > 10
    assert all(path.stat().st_size == 7000 for path in out.glob("*.png"))
    assert not list((out / ".segx-partial").iterdir())
    try:
        while True:
            manifest.append(Entry("x" * 1000, "failed"))
    except OutputError as error:
        print(error, "-", error.hint)
    assert manifest.path.read_bytes().endswith(b"\\n")
    assert sum(1 for _ in parse_entries(manifest.path.open("rb"), "it")) >= written
"""


def test_nothing_is_half_written_when_the_disk_is_full(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    mount = ["sh", "-c", 'mount -t tmpfs -o size=400k tmpfs "$1" && shift && exec "$@"', "sh", str(tmp_path)]
    if unshare is None or subprocess.run([unshare, "-m", *mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    command = [unshare, "-m", *mount, sys.executable, "-c", _RUN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "No space left on device - free some space" in first
    assert "manifest.jsonl" in second
    assert "free some space" in second
