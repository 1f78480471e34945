from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segx.errors import UsageError
from segx.masks.preprocess import (
    doubt_of_pixels,
    masks_from_logits,
    preprocess,
    resize_mask,
    to_image,
    to_model,
    unprocess,
)
from segx.model import synthetic
from segx.model.spec import ModelSpec, normalization

Pixels = npt.NDArray[Any]

GRAY = ModelSpec()
RGB = ModelSpec(in_channels=3)


def _noise(*shape: int, dtype: type = np.uint8) -> Pixels:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def _torchvision(image: Pixels, height: int, width: int) -> Pixels:
    from torchvision.transforms import Compose, Resize, ToTensor

    transform = Compose([ToTensor(), Resize((height, width))])
    result: Pixels = transform(image).numpy()
    return result


# preprocess


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size",
    [(256, 256), (255, 257), (31, 47), (512, 512), (700, 311), (1000, 17), (1, 1), (1, 300), (300, 1), (2, 3)],
    ids="{0[0]}x{0[1]}".format,
)
def test_preprocess_equals_torchvision(size: tuple[int, int], channels: int) -> None:
    image = _noise(*size, channels)
    got = preprocess(image, ModelSpec(in_channels=channels))
    assert got.shape == (channels, 256, 256)
    np.testing.assert_allclose(got, _torchvision(image, 256, 256), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(96, 160), (160, 96), (32, 512)])
def test_preprocess_equals_torchvision_for_other_inputs(height: int, width: int) -> None:
    image = _noise(123, 77, 1)
    got = preprocess(image, ModelSpec(height=height, width=width))
    np.testing.assert_allclose(got, _torchvision(image, height, width), rtol=0, atol=1e-5)


_side = st.integers(1, 60)


@given(_side, _side, _side, _side, st.sampled_from([1, 3]), st.sampled_from([np.uint8, np.uint16]), st.data())
def test_preprocess_gives_the_input_shape_within_0_and_1(
    height: int, width: int, to_height: int, to_width: int, channels: int, dtype: type, data: st.DataObject
) -> None:
    ends = st.sampled_from([0, 1, int(np.iinfo(dtype).max)])
    image = data.draw(hnp.arrays(dtype, (height, width, channels), elements=ends))
    before = image.copy()
    got = preprocess(image, ModelSpec(in_channels=channels, height=to_height, width=to_width))
    assert got.shape == (channels, to_height, to_width)
    assert got.dtype == np.float32
    assert got.min() >= 0.0
    assert got.max() <= 1.0
    np.testing.assert_array_equal(image, before)


@given(_side, _side, _side, _side, st.integers(0, 255))
def test_a_constant_image_stays_constant(height: int, width: int, to_height: int, to_width: int, value: int) -> None:
    got = preprocess(np.full((height, width, 1), value, np.uint8), ModelSpec(height=to_height, width=to_width))
    np.testing.assert_allclose(got, value / 255, rtol=0, atol=1e-6)


def test_sixteen_bits_are_scaled_like_eight() -> None:
    eight = _noise(20, 30, 1)
    sixteen = eight.astype(np.uint16) * np.uint16(257)
    np.testing.assert_allclose(preprocess(sixteen, GRAY), preprocess(eight, GRAY), rtol=0, atol=1e-6)


def test_mean_and_std_are_applied_per_channel_after_scaling() -> None:
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    image = _noise(40, 50, 3)
    plain = preprocess(image, RGB)
    both = preprocess(image, ModelSpec(in_channels=3, mean=mean, std=std))
    expected = (plain - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    np.testing.assert_allclose(both, expected, rtol=0, atol=1e-6)
    assert both.dtype == np.float32
    only_std = preprocess(image, ModelSpec(in_channels=3, std=std))
    np.testing.assert_allclose(only_std, plain / np.array(std)[:, None, None], rtol=0, atol=1e-6)


def test_an_input_range_of_0_to_255_scales_before_mean_and_std() -> None:
    image = _noise(40, 50, 3)
    caffe = ModelSpec(in_channels=3, input_range="0-255", mean=(100.0, 110.0, 120.0), std=(2.0, 2.0, 2.0))
    expected = (preprocess(image, RGB) * 255 - np.array(caffe.mean)[:, None, None]) / 2
    np.testing.assert_allclose(preprocess(image, caffe), expected, rtol=0, atol=1e-4)


def test_mean_and_std_are_in_the_order_of_the_channels() -> None:
    image = _noise(40, 50, 3)
    mean = (0.1, 0.2, 0.3)
    rgb = preprocess(image, ModelSpec(in_channels=3, mean=mean))
    bgr = preprocess(image, ModelSpec(in_channels=3, channel_order="bgr", mean=mean[::-1]))
    np.testing.assert_array_equal(bgr, rgb[::-1])


def test_linear_resizing_equals_opencv() -> None:
    image = _noise(123, 77, 3)
    got = preprocess(image, ModelSpec(in_channels=3, height=64, width=96, resize="linear"))
    expected = cv2.resize(image.astype(np.float32) / 255, (96, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(got, np.moveaxis(expected, 2, 0), rtol=0, atol=1e-5)


def test_a_white_level_is_full_brightness_and_what_exceeds_it_is_white() -> None:
    image = np.array([[[0], [2048], [4095], [5000]]], dtype=np.uint16)
    got = preprocess(image, ModelSpec(height=1, width=4, white_level=4095))
    np.testing.assert_allclose(got.ravel(), [0, 2048 / 4095, 1, 1], rtol=0, atol=1e-6)


def test_float_pixels_are_taken_as_they_are_or_by_the_white_level() -> None:
    image = np.linspace(0, 1, 4, dtype=np.float32).reshape(1, 4, 1)
    np.testing.assert_array_equal(preprocess(image, ModelSpec(height=1, width=4))[0], image[..., 0])
    scaled = preprocess(image * 255, ModelSpec(height=1, width=4, white_level=255))
    np.testing.assert_allclose(scaled[0], image[..., 0], rtol=0, atol=1e-6)


def test_a_letterbox_keeps_the_aspect_ratio_on_black() -> None:
    spec = ModelSpec(height=64, width=64, resize="letterbox")
    got = preprocess(np.full((20, 40, 1), 255, np.uint8), spec)[0]
    np.testing.assert_array_equal(got[16:48], 1.0)
    np.testing.assert_array_equal(got[:16], 0.0)
    np.testing.assert_array_equal(got[48:], 0.0)


@given(_side, _side, _side, _side, st.sampled_from(["antialias", "letterbox"]))
def test_a_mask_goes_to_the_model_and_back(
    height: int, width: int, model_height: int, model_width: int, resize: Any
) -> None:
    spec = ModelSpec(height=model_height, width=model_width, resize=resize)
    mask = np.full((height, width), 3, dtype=np.uint8)
    inside = to_image(to_model(mask, spec), (height, width), spec)
    assert inside.size
    assert (inside == 3).all()
    assert (resize_mask(inside, (height, width)) == mask).all()


@given(
    st.sampled_from(["0-1", "0-255"]), st.sampled_from(["rgb", "bgr"]), st.sampled_from(["none", "imagenet"]),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_pixels_come_back_from_model_input(input_range: Any, order: Any, normalize: str, channels: int) -> None:
    pixels = _noise(16, 24, channels)
    fields = {"input_range": input_range, "channel_order": order if channels == 3 else "rgb"}
    spec = ModelSpec.with_overrides(
        None, {**fields, "in_channels": channels, "normalize": normalize, "height": 16, "width": 24}
    )
    np.testing.assert_array_equal(unprocess(preprocess(pixels, spec), spec), pixels)


# masks_from_logits


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 2), st.just(1), st.integers(1, 4), st.integers(1, 4)),
        elements=st.floats(-30, 30, width=32),
    ),
    st.floats(0.01, 0.99),
)
def test_one_class_is_cut_where_the_sigmoid_reaches_the_threshold(
    logits: npt.NDArray[np.float32], threshold: float
) -> None:
    spec = ModelSpec(threshold=threshold)
    masks = masks_from_logits(logits, spec)
    assert masks.shape == (logits.shape[0], *logits.shape[2:])
    assert masks.dtype == np.uint8
    probabilities = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
    decided = np.abs(logits[:, 0] - spec.logit_threshold) > 1e-5
    np.testing.assert_array_equal(masks[decided], (probabilities >= threshold)[decided])


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.9])
def test_the_cut_itself_is_in_the_mask(threshold: float) -> None:
    spec = ModelSpec(threshold=threshold)
    cut = np.float32(spec.logit_threshold)
    below, above = np.nextafter(cut, np.float32(-100)), np.nextafter(cut, np.float32(100))
    logits = np.array([below, cut, above], np.float32).reshape(1, 1, 1, 3)
    assert masks_from_logits(logits, spec).tolist() == [[[0, 1, 1]]]


@given(hnp.arrays(np.float32, (2, 4, 3, 3), elements=st.floats(-9, 9, width=32)))
def test_several_classes_are_the_index_of_the_largest_logit(logits: npt.NDArray[np.float32]) -> None:
    masks = masks_from_logits(logits, ModelSpec(classes=4))
    assert masks.shape == (2, 3, 3)
    assert masks.dtype == np.uint8
    chosen = np.take_along_axis(logits, masks[:, None].astype(np.intp), axis=1)[:, 0]
    np.testing.assert_array_equal(chosen, logits.max(axis=1))


def test_class_255_fits_into_the_mask() -> None:
    logits = np.zeros((1, 256, 1, 1), np.float32)
    logits[0, 255] = 1
    assert masks_from_logits(logits, ModelSpec(classes=256)).item() == 255


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((1, 3, 4, 4), GRAY), ((1, 1, 4, 4), ModelSpec(classes=3)), ((1, 4, 4), GRAY), ((3, 4, 4), ModelSpec(classes=3))],
)
def test_logits_of_another_model_are_refused(shape: tuple[int, ...], spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=r"logits of shape \(.*\) are not \(N, \d, H, W\)"):
        masks_from_logits(np.zeros(shape, np.float32), spec)


# resize_mask

_long_side = st.integers(1, 400)


def _unique_nearest(size: int, to_size: int) -> npt.NDArray[np.bool_]:
    """Which target pixels have one nearest source pixel: the others lie just between two."""
    rest: npt.NDArray[np.bool_] = (2 * np.arange(to_size) + 1) * size % (2 * to_size) != 0
    return rest


@given(_side, _side, _long_side, _long_side)
def test_resize_equals_torchvisions_nearest_exact(height: int, width: int, to_height: int, to_width: int) -> None:
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    mask = _noise(height, width)
    expected = resize(torch.from_numpy(mask)[None], [to_height, to_width], InterpolationMode.NEAREST_EXACT)[0].numpy()
    decided = np.ix_(_unique_nearest(height, to_height), _unique_nearest(width, to_width))
    np.testing.assert_array_equal(resize_mask(mask, (to_height, to_width))[decided], expected[decided])


@given(hnp.arrays(np.uint8, st.tuples(_side, _side)), _side, _side)
def test_resize_invents_no_value(mask: npt.NDArray[np.uint8], to_height: int, to_width: int) -> None:
    resized = resize_mask(mask, (to_height, to_width))
    assert resized.shape == (to_height, to_width)
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) <= set(np.unique(mask))


@given(hnp.arrays(np.uint8, st.tuples(_side, _side)))
def test_resize_to_the_same_size_changes_nothing(mask: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(resize_mask(mask, (mask.shape[0], mask.shape[1])), mask)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(1, 7))
def test_resize_to_a_multiple_and_back_gives_the_mask(mask: npt.NDArray[np.uint8], times: int) -> None:
    height, width = mask.shape
    larger = resize_mask(mask, (height * times, width * times))
    np.testing.assert_array_equal(larger, np.kron(mask, np.ones((times, times), np.uint8)))
    np.testing.assert_array_equal(resize_mask(larger, (height, width)), mask)


# Doubts about the preparation


_IMAGENET, _PLAIN = normalization("imagenet", 3), ((), ())
_SMALL = ModelSpec(in_channels=3, height=64, width=64)


def _prepared(mean_std: tuple[tuple[float, ...], tuple[float, ...]], **changes: Any) -> ModelSpec:
    mean, std = mean_std
    return dataclasses.replace(_SMALL, mean=mean, std=std, **changes)


def _scenes(seed: int, count: int = 6, channels: int = 3) -> list[Pixels]:
    """Cells on a tinted ground, or gray ones."""
    drawn = synthetic.series(count, seed=seed, height=64, width=64)
    tint = np.array([1.0, 0.7, 0.5])[:channels] if channels > 1 else np.ones(1)
    return [np.rint(scene.image[..., None] * tint).astype(np.uint8) for scene in drawn]


def _inputs(images: list[Pixels], spec: ModelSpec) -> Pixels:
    return np.stack([preprocess(image, spec) for image in images])


def _trained(path: Path, spec: ModelSpec, *, batches: int = 1000) -> Path:
    """Save a checkpoint whose first batch normalisation has seen scenes."""
    import torch
    from safetensors.numpy import save_file

    kernel = np.random.default_rng(3).normal(0, 0.1, (16, spec.in_channels, 3, 3)).astype(np.float32)
    images = _inputs(_scenes(1, count=32, channels=spec.in_channels), spec)
    seen = torch.nn.functional.conv2d(torch.from_numpy(images), torch.from_numpy(kernel), stride=2, padding=1).numpy()
    layers = {
        "encoder.conv1.weight": kernel,
        "encoder.bn1.running_mean": seen.mean((0, 2, 3)),
        "encoder.bn1.running_var": seen.var((0, 2, 3)),
        "encoder.bn1.num_batches_tracked": np.array(batches),
        "encoder.layer1.0.bn1.running_mean": np.zeros(16, np.float32),
        "decoder.conv1.weight": np.zeros((1, 16, 1, 1), np.float32),
    }
    save_file({name: np.ascontiguousarray(values) for name, values in layers.items()}, path)
    return path


@pytest.mark.parametrize(
    ("trained", "given", "told"),
    [
        (_prepared(_IMAGENET), _prepared(_PLAIN), "--normalize imagenet"),
        (_prepared(_PLAIN), _prepared(_IMAGENET), "--normalize none"),
        (_prepared(_PLAIN, input_range="0-255"), _prepared(_PLAIN), "--input-range 0-255"),
        (_prepared(_PLAIN, input_range="0-255"), _prepared(_IMAGENET), "--input-range 0-255 --normalize none"),
        (_prepared(_PLAIN), _prepared(_PLAIN, input_range="0-255"), "--input-range 0-1"),
        (ModelSpec(), ModelSpec(mean=(0.449,), std=(0.226,)), "--normalize none"),
        (_prepared(_PLAIN), _prepared(_IMAGENET, resize="letterbox", white_level=255.0), "--normalize none"),
    ],
)
def test_images_prepared_otherwise_than_in_training_are_doubted(
    tmp_path: Path, trained: ModelSpec, given: ModelSpec, told: str
) -> None:
    checkpoint = _trained(tmp_path / "m.safetensors", trained)
    for count in (1, 6):
        images = _scenes(2, count=count, channels=given.in_channels)
        doubt = doubt_of_pixels(_inputs(images, given), given, checkpoint)
        assert f"do not look like those of the model's training, and would with {told}:" in doubt
        assert doubt_of_pixels(_inputs(images, trained), trained, checkpoint) == ""


@pytest.mark.parametrize("trained", [_prepared(_IMAGENET), _prepared(_PLAIN), _prepared(_PLAIN, input_range="0-255")])
@pytest.mark.parametrize(
    "change",
    [
        lambda image: 255 - image,
        lambda image: image // 4,
        lambda image: 200 + image // 8,
        lambda image: image[..., ::-1],
        lambda image: image.astype(np.uint16) * 257,
        lambda image: np.full_like(image, 7),
    ],
    ids=["bright ground", "dark", "weak", "other colours", "16 bits", "one colour"],
)
def test_other_images_that_are_prepared_as_in_training_are_not_doubted(
    tmp_path: Path, trained: ModelSpec, change: Any
) -> None:
    checkpoint = _trained(tmp_path / "m.safetensors", trained)
    images = [np.ascontiguousarray(change(image)) for image in _scenes(2)]
    assert doubt_of_pixels(_inputs(images, trained), trained, checkpoint) == ""


def test_what_a_checkpoint_does_not_remember_is_not_doubted(tmp_path: Path) -> None:
    given = _prepared(_PLAIN)
    images = _inputs(_scenes(2), given)
    short = _trained(tmp_path / "short.safetensors", _prepared(_IMAGENET), batches=40)
    gray = _trained(tmp_path / "gray.safetensors", ModelSpec(mean=(0.449,), std=(0.226,)))
    for checkpoint in (short, gray, None):
        assert doubt_of_pixels(images, given, checkpoint) == ""


def test_the_shipped_model_does_not_doubt_its_scenes(shipped_checkpoint: Path) -> None:
    spec = ModelSpec()
    images = [scene.image[..., None] for scene in synthetic.series(4, seed=9, height=256, width=256)]
    assert doubt_of_pixels(_inputs(images, spec), spec, shipped_checkpoint) == ""


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (_prepared(_IMAGENET, input_range="0-255"), "look like those of images in 0-1, and pixels are scaled to 0-255"),
        (_prepared(((124.0, 116.0, 104.0), (58.0, 57.0, 57.0))), "try --input-range 0-255"),
        (_prepared(((124.0, 116.0, 104.0), ()), input_range="0-255"), ""),
        (_prepared(_IMAGENET), ""),
    ],
)
def test_mean_and_std_in_other_units_are_doubted(spec: ModelSpec, told: str) -> None:
    doubt = doubt_of_pixels(_inputs(_scenes(2), spec), spec, None)
    assert told in doubt
    assert bool(told) is bool(doubt)
