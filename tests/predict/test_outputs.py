from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from segx.errors import ImageError, OutputError
from segx.masks.image_io import masks_from_logits, resize_mask
from segx.model.spec import ModelSpec
from segx.predict import outputs as module
from segx.predict.item import Item
from segx.predict.outputs import Finished, OutputFolder, Wishes, Written, finish, write_outputs

Logits = npt.NDArray[np.float32]

ONE = ModelSpec(height=8, width=8)
FOUR = ModelSpec(height=8, width=8, classes=4)


def logits(classes: int = 1, height: int = 8, width: int = 8) -> Logits:
    return np.random.default_rng(0).normal(0, 4, (classes, height, width)).astype(np.float32)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[OutputFolder]:
    with OutputFolder(tmp_path / "out") as folder:
        yield folder


# finish


@pytest.mark.parametrize("size", ["original", (8, 8), (13, 5)])
@pytest.mark.parametrize("spec", [ONE, FOUR])
def test_masks_are_cut_then_resized(spec: ModelSpec, size: tuple[int, int]) -> None:
    values = logits(spec.classes)
    width, height = (30, 20) if size == "original" else size
    finished = finish(values, (30, 20), spec, Wishes(size=size))
    cut = masks_from_logits(values[None], spec)[0]
    expected = resize_mask(cut, (height, width)) * (255 if spec.classes == 1 else 1)
    np.testing.assert_array_equal(finished.mask, expected)
    assert finished.mask.shape == (height, width)
    assert finished.mask.dtype == np.uint8
    assert finished.probabilities is None


def test_a_mask_is_black_and_white_or_class_indices() -> None:
    assert set(np.unique(finish(logits(), (8, 8), ONE, Wishes()).mask)) == {0, 255}
    assert set(np.unique(finish(logits(4), (8, 8), FOUR, Wishes()).mask)) == {0, 1, 2, 3}


def test_class_255_survives() -> None:
    values = np.zeros((256, 1, 1), np.float32)
    values[255] = 1
    assert finish(values, (1, 1), ModelSpec(classes=256, height=1, width=1), Wishes()).mask.item() == 255


@given(
    hnp.arrays(np.float32, (1, 4, 5), elements=st.floats(-200, 200, width=32)),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_probabilities_cut_at_the_threshold_give_the_mask(
    values: Logits, threshold: float, size: tuple[int, int]
) -> None:
    spec = ModelSpec(height=4, width=5, threshold=threshold)
    finished = finish(values, size, spec, Wishes(probabilities=True))
    assert finished.probabilities is not None
    assert finished.probabilities.dtype == np.float32
    assert finished.probabilities.shape == finished.mask.shape == size[::-1]
    decided = np.abs(finished.probabilities - threshold) > 1e-6
    np.testing.assert_array_equal((finished.probabilities >= threshold)[decided], finished.mask[decided] == 255)
    assert finished.probabilities.min() >= 0
    assert finished.probabilities.max() <= 1


@given(hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(-200, 200, width=32)))
def test_probabilities_of_several_classes_sum_to_one(values: Logits) -> None:
    finished = finish(values, (7, 9), ModelSpec(classes=3), Wishes(probabilities=True))
    assert finished.probabilities is not None
    assert finished.probabilities.shape == (3, 9, 7)
    np.testing.assert_allclose(finished.probabilities.sum(axis=0), 1, rtol=0, atol=1e-6)
    largest = finished.probabilities.max(axis=0)
    chosen = np.take_along_axis(finished.probabilities, finished.mask[None].astype(np.intp), axis=0)[0]
    np.testing.assert_array_equal(chosen, largest)


def test_probabilities_are_those_of_torch() -> None:
    import torch

    one, four = logits(), logits(4)
    sigmoid = finish(one, (8, 8), ONE, Wishes(probabilities=True)).probabilities
    softmax = finish(four, (8, 8), FOUR, Wishes(probabilities=True)).probabilities
    assert sigmoid is not None
    assert softmax is not None
    np.testing.assert_allclose(sigmoid, torch.from_numpy(one)[0].sigmoid().numpy(), rtol=1e-5)
    np.testing.assert_allclose(softmax, torch.from_numpy(four).softmax(0).numpy(), rtol=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_logits_are_not_changed(classes: int) -> None:
    values = logits(classes)
    before = values.copy()
    finish(values, (9, 9), ModelSpec(classes=classes), Wishes(probabilities=True))
    np.testing.assert_array_equal(values, before)


# write_outputs


def written(
    out: OutputFolder, name: str = "sub/a.jpg", *, overlay: bool = False, probabilities: bool = False
) -> Written:
    finished = finish(logits(), (30, 20), ONE, Wishes(probabilities=probabilities))
    image = np.full((20, 30, 1), 90, np.uint8) if overlay else None
    return write_outputs(out, Item(name, Path("gone.jpg")), image, finished)


def test_the_mask_is_a_png_that_gives_it_back(out: OutputFolder) -> None:
    facts = written(out)
    mask = finish(logits(), (30, 20), ONE, Wishes()).mask
    with Image.open(out.path / "sub" / "a.png") as image:
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(image), mask)
    assert facts == Written("sub/a.png", 30, 20, int((mask == 255).sum()))
    assert [path.name for path in (out.path / "sub").iterdir()] == ["a.png"]


def test_the_area_of_several_classes_is_all_but_the_background(out: OutputFolder) -> None:
    mask = np.array([[0, 1, 2], [0, 0, 255]], np.uint8)
    assert write_outputs(out, Item("a.png", Path("x")), None, Finished(mask, None)).area_pixels == 3


def test_overlay_and_probabilities_lie_beside_the_mask(out: OutputFolder) -> None:
    written(out, "sub/a.b.jpg", overlay=True, probabilities=True)
    names = sorted(path.name for path in (out.path / "sub").iterdir())
    assert names == ["a.b.overlay.jpg", "a.b.png", "a.b.probabilities.npy"]
    picture = cv2.imread(str(out.path / "sub" / "a.b.overlay.jpg"))
    assert picture is not None
    assert picture.shape == (20, 30, 3)
    expected = finish(logits(), (30, 20), ONE, Wishes(probabilities=True)).probabilities
    np.testing.assert_array_equal(np.load(out.path / "sub" / "a.b.probabilities.npy"), expected)


_STEMS = st.sampled_from(["a", "a.overlay", "a.probabilities", "a.overlay.jpg", "a.jpg"])


@given(st.sets(st.builds(str.__add__, _STEMS, st.sampled_from([".jpg", ".png"])), min_size=2))
def test_no_two_outputs_of_a_folder_meet(names: set[str]) -> None:
    from segx.predict.item import mask_name

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
        write_outputs(out, Item("long.png", Path("x")), np.zeros((1, 66_000, 1), np.uint8), Finished(mask, None))
    assert "--size" in caught.value.hint
    assert write_outputs(out, Item("long.png", Path("x")), None, Finished(mask, None)).width == 66_000


def test_a_folder_that_is_gone_is_no_fault_of_the_image(out: OutputFolder) -> None:
    out.path.rename(out.path.with_name("moved"))
    with pytest.raises(OutputError, match="gone"):
        written(out)
