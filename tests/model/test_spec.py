from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.errors import UsageError
from segx.model.spec import ModelSpec, normalization, range_of


def test_default_is_the_shipped_unetplusplus() -> None:
    spec = ModelSpec()
    assert (spec.arch, spec.encoder_name) == ("UnetPlusPlus", "resnet34")
    assert spec.arguments == {"encoder_depth": 4, "decoder_channels": [256, 128, 64, 32]}


@pytest.mark.parametrize("arch", ["Linknet", "FPN", "Unet"])
def test_another_architecture_has_the_arguments_of_its_library(arch: str) -> None:
    assert ModelSpec(arch=arch).arguments == {}
    assert ModelSpec.from_json(json.dumps({"arch": arch})) == ModelSpec(arch=arch)
    assert ModelSpec(arch=arch, arguments={"encoder_depth": 4}).arguments == {"encoder_depth": 4}


def test_specs_do_not_share_their_default_arguments() -> None:
    assert ModelSpec().arguments is not ModelSpec().arguments


def test_shapes_are_channels_height_width() -> None:
    spec = ModelSpec(in_channels=3, classes=5, height=64, width=96)
    assert spec.input_shape == (3, 64, 96)
    assert spec.output_shape == (5, 64, 96)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (ModelSpec(classes=3), "3 classes exclude each other"),
        (ModelSpec(class_map=True), "it returns classes, not probabilities"),
    ],
)
def test_a_threshold_without_effect_is_refused(spec: ModelSpec, complaint: str) -> None:
    for refused in (
        lambda: spec.cut_at(0.9),
        lambda: ModelSpec.with_overrides(spec, {"threshold": 0.9}),
        lambda: ModelSpec.with_overrides(
            None, {"threshold": 0.9, "classes": spec.classes, "class_map": spec.class_map}
        ),
    ):
        with pytest.raises(UsageError, match=complaint) as caught:
            refused()
        assert "leave --threshold out" in caught.value.hint
    for own in (spec, replace(spec, threshold=0.4)):
        assert own.cut_at(None) == own.cut_at(own.threshold) == own
        assert ModelSpec.with_overrides(own, {"threshold": own.threshold}) == own
        assert "--threshold" not in own.options(None)
    for cut in (ModelSpec(), ModelSpec(classes=3, multilabel=True)):
        assert cut.cut_at(0.9).threshold == 0.9


@given(st.floats(1e-6, 1 - 1e-6))
def test_logit_threshold_is_where_the_sigmoid_equals_the_threshold(threshold: float) -> None:
    cut = ModelSpec(threshold=threshold).logit_threshold
    assert 1 / (1 + math.exp(-cut)) == pytest.approx(threshold)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("in_channels", 0, "in_channels is 0"),
        ("classes", 0, "classes is 0"),
        ("classes", 257, "classes is 257"),
        ("height", 0, "256x0"),
        ("width", -4, "-4x256"),
        ("threshold", 0.0, "threshold 0.0"),
        ("threshold", 1.0, "threshold 1.0"),
        ("threshold", math.nan, "threshold nan"),
        ("mean", (0.1, 0.2), "mean has 2 values for 1 channels"),
        ("std", (0.1, 0.2, 0.3), "std has 3 values for 1 channels"),
        ("std", (0.0,), "std"),
        ("std", (-1.0,), "std"),
        ("std", (math.nan,), "std"),
        ("mean", (math.inf,), "mean"),
        ("input_range", "0-2", "input_range '0-2'"),
        ("channel_order", "bgr", "bgr for 1 channels"),
        ("resize", "crop", "resize 'crop'"),
        ("white_level", 0, "white_level 0"),
        ("white_level", math.nan, "white_level nan"),
        ("white_level", "4095", "white_level '4095' is not a finite number"),
        ("threshold", "0.5", "threshold '0.5' is not a finite number"),
        ("threshold", None, "threshold None"),
        ("mean", 0.5, "mean 0.5 is not a sequence"),
        ("threshold", 10**400, "is not a finite number"),
        ("mean", "0.5", "mean '0.5' is not a sequence"),
        ("arguments", {"decoder_channels": {1, 2}}, "arguments are not JSON values"),
    ],
)
def test_values_without_sense_are_refused(field: str, value: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        ModelSpec(**{field: value})
    assert caught.value.hint


@pytest.mark.parametrize("classes", [1, 256])
def test_bounds_of_classes_are_allowed(classes: int) -> None:
    assert ModelSpec(classes=classes).classes == classes


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def _specs(draw: st.DrawFn) -> ModelSpec:
    channels = draw(st.sampled_from([1, 3]))
    numbers = st.lists(st.floats(0.01, 10), min_size=channels, max_size=channels).map(tuple)
    return ModelSpec(
        arch=draw(st.text(min_size=1)),
        encoder_name=draw(st.text(min_size=1)),
        in_channels=channels,
        classes=draw(st.integers(1, 256)),
        height=draw(st.integers(1, 10_000)),
        width=draw(st.integers(1, 10_000)),
        threshold=draw(st.floats(0.001, 0.999)),
        mean=draw(st.just(()) | numbers),
        std=draw(st.just(()) | numbers),
        arguments=draw(st.dictionaries(st.text(), _json_values, max_size=3)),
        checkpoint_key=draw(st.text()),
    )


@given(_specs())
def test_json_round_trip(spec: ModelSpec) -> None:
    text = spec.to_json()
    assert ModelSpec.from_json(text) == spec
    assert "\n" not in text


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"mean": [0.5], "std": [0.25]}, {"mean": (0.5,), "std": (0.25,)}),
        ({"mean": np.array([0.5], np.float32), "std": np.ones(1)}, {"mean": (0.5,), "std": (1.0,)}),
        ({"mean": (0,), "std": (1,), "white_level": 4095}, {"mean": (0.0,), "std": (1.0,), "white_level": 4095.0}),
        ({"threshold": np.float32(0.25), "white_level": np.uint16(4095)}, {"threshold": 0.25, "white_level": 4095.0}),
        ({"arguments": {"decoder_channels": (32, 16)}}, {"arguments": {"decoder_channels": [32, 16]}}),
    ],
)
def test_lists_and_numbers_of_numpy_make_the_same_spec(given: dict[str, Any], plain: dict[str, Any]) -> None:
    spec = ModelSpec(**given)
    assert spec == ModelSpec(**plain) == ModelSpec.from_json(spec.to_json())
    assert spec.to_json() == ModelSpec(**plain).to_json()


def test_equal_specs_give_equal_text() -> None:
    one = ModelSpec(arguments={"a": 1, "b": 2})
    other = ModelSpec(arguments={"b": 2, "a": 1})
    assert one.to_json() == other.to_json()


def test_missing_fields_take_their_defaults() -> None:
    assert ModelSpec.from_json('{"height": 64}') == ModelSpec(height=64)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "[1]",
        "3",
        "null",
        '{"bogus": 1}',
        '{"in_channels": 0}',
        '{"white_level": "high"}',
        '{"threshold": "high"}',
        '{"height": "256"}',
        '{"height": 1.5}',
        '{"mean": 0.5}',
        '{"mean": ["a"]}',
        '{"mean": null}',
        f'{{"mean": [{10**400}]}}',
        '{"std": [NaN]}',
        '{"arch": 5}',
        '{"checkpoint_key": 5}',
        '{"arguments": null}',
        '{"arguments": [1]}',
    ],
)
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        ModelSpec.from_json(text)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(UsageError, match="bogus, other"):
        ModelSpec.from_json(json.dumps({"other": 1, "bogus": 2, "height": 64}))


def test_overrides_without_a_base_start_from_the_defaults() -> None:
    assert ModelSpec.with_overrides(None, {}) == ModelSpec()
    assert ModelSpec.with_overrides(None, {"height": 64}) == ModelSpec(height=64)


def test_the_user_wins_over_the_checkpoint() -> None:
    base = ModelSpec(encoder_name="resnet50", height=64, arguments={"encoder_depth": 5, "decoder_channels": [1]})
    merged = ModelSpec.with_overrides(base, {"height": 96, "arguments": {"encoder_depth": 3}})
    assert merged.encoder_name == "resnet50"
    assert merged.height == 96
    assert merged.arguments == {"encoder_depth": 3, "decoder_channels": [1]}


def test_overriding_leaves_the_base_as_it_was() -> None:
    base = ModelSpec()
    ModelSpec.with_overrides(base, {"arguments": {"encoder_depth": 3}})
    assert base == ModelSpec()


def test_another_architecture_drops_the_arguments_of_the_old_one() -> None:
    assert ModelSpec.with_overrides(None, {"arch": "FPN"}).arguments == {}
    given = {"arch": "FPN", "arguments": {"encoder_depth": 4}}
    assert ModelSpec.with_overrides(ModelSpec(), given).arguments == {"encoder_depth": 4}


def test_naming_the_same_architecture_keeps_its_arguments() -> None:
    base = ModelSpec(arch="FPN", arguments={"encoder_depth": 4})
    assert ModelSpec.with_overrides(base, {"arch": "FPN"}).arguments == {"encoder_depth": 4}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (ModelSpec(), "UnetPlusPlus(resnet34, depth 4, 1x256x256, 1 class)"),
        (
            ModelSpec(arch="FPN", in_channels=3, classes=4, height=64, width=96, arguments={}),
            "FPN(resnet34, 3x64x96, 4 classes)",
        ),
    ],
)
def test_text_tells_what_the_model_is(spec: ModelSpec, text: str) -> None:
    assert str(spec) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "gray [0, 1], no mean/std, 256x256"),
        ({"in_channels": 5}, "5 channels [0, 1], no mean/std, 256x256"),
        (
            {"in_channels": 3, "normalize": "imagenet", "height": 224, "width": 320},
            "RGB [0, 1], mean/std ImageNet, 320x224",
        ),
        ({"normalize": "imagenet"}, "gray [0, 1], mean/std ImageNet, 256x256"),
        (
            {"normalize": "inception", "in_channels": 3, "input_range": "0-255"},
            "RGB [0, 255], mean 127.5,127.5,127.5 std 127.5,127.5,127.5, 256x256",
        ),
        (
            {"in_channels": 3, "channel_order": "bgr", "input_range": "0-255", "mean": (104.0, 117.0, 123.5)},
            "BGR [0, 255], mean 104,117,123.5, 256x256",
        ),
        (
            {"normalize": "0.5/0.25", "resize": "letterbox", "white_level": 4095},
            "gray [0, 1], mean 0.5 std 0.25, white at 4095, 256x256 letterbox",
        ),
        (
            {"in_channels": 3, "normalize": "0.4,0.5,0.6/0.2"},
            "RGB [0, 1], mean 0.4,0.5,0.6 std 0.2,0.2,0.2, 256x256",
        ),
        ({"in_channels": 3, "mean": (0.5,)}, "RGB [0, 1], mean 0.5,0.5,0.5, 256x256"),
    ],
)
def test_the_preprocessing_is_described_in_one_line(fields: dict[str, Any], text: str) -> None:
    assert ModelSpec.with_overrides(None, fields).preprocessing == text


@pytest.mark.parametrize(
    ("encoder", "mean"),
    [("resnet34", 0.485), ("mit_b0", 0.485), ("inceptionv4", 0.5), ("xception", 0.5), ("dpn68", 124 / 255)],
)
def test_the_normalisation_of_an_encoder_is_that_of_its_imagenet_weights(encoder: str, mean: float) -> None:
    overrides = {"encoder_name": encoder, "in_channels": 3, "normalize": "encoder"}
    assert ModelSpec.with_overrides(None, overrides).mean[0] == mean


# Encoders of the library -> the weights of timm that its ImageNet weights are, or that were trained alike.
WEIGHTS = {
    r"(resnet.*|resnext50_32x4d|resnext101_32x8d|vgg.*|densenet.*)": r"\1.tv_in1k",
    r"(resnext101_32x(4|16)d)": r"\1.fb_ssl_yfcc100m_ft_in1k",
    r"(resnext101_32x(32|48)d)": "resnext101_32x32d.fb_wsl_ig1b_ft_in1k",
    r"(dpn.*)": r"\1.mx_in1k",
    r"senet154": "legacy_senet154.in1k",
    r"se_(.*)": r"legacy_se\1.in1k",
    r"inceptionresnetv2": "inception_resnet_v2.tf_in1k",
    r"inceptionv4": "inception_v4.tf_in1k",
    r"xception": "legacy_xception.tf_in1k",
    r"(?:timm-)?efficientnet-(b[0-5])": r"tf_efficientnet_\1.in1k",
    r"(?:timm-)?efficientnet-(b[67])": r"tf_efficientnet_\1.aa_in1k",
    r"timm-efficientnet-b8": "tf_efficientnet_b8.ra_in1k",
    r"timm-efficientnet-l2": "tf_efficientnet_l2.ns_jft_in1k",
    r"timm-(tf_efficientnet_lite.*)": r"\1.in1k",
    r"timm-(sk.*)": r"\1.ra_in1k",
    r"(mobileone.*)": r"\1.apple_in1k",
    r"mobilenet_v2": "mobilenetv2_100.ra_in1k",
    r"mit_.*": "resnet50.tv_in1k",  # timm has none: those of ImageNet, as in the paper's code
    r"timm-(regnet.*)": r"\1.pycls_in1k",
    r"timm-(res2.*|gernet_s)": r"\1",
    r"timm-(resnest14d)": r"\1.gluon_in1k",
}
# Names that the library translates to timm's.
TRANSLATED = ["timm-regnetx_002", "timm-regnety_320", "timm-res2net50_26w_4s", "timm-resnest14d", "timm-gernet_s"]


def test_the_normalisations_of_all_encoders_are_those_that_their_weights_were_trained_with() -> None:
    import re

    import segmentation_models_pytorch as smp
    import timm

    for encoder in [*smp.encoders.encoders, *TRANSLATED]:
        (weights,) = (
            re.sub(pattern, name, encoder) for pattern, name in WEIGHTS.items() if re.fullmatch(pattern, encoder)
        )
        expected = timm.get_pretrained_cfg(weights, allow_unregistered=False)
        mean, std = normalization("encoder", 3, encoder)
        assert mean == pytest.approx(expected.mean, abs=1e-6), encoder
        assert std == pytest.approx(expected.std, abs=1e-6), encoder


@pytest.mark.parametrize("encoder", ["tu-convnext_tiny", "timm-mobilenetv3_large_100", ""])
def test_the_normalisation_of_other_encoders_is_asked_for(encoder: str) -> None:
    with pytest.raises(UsageError, match="is not known") as caught:
        ModelSpec.with_overrides(None, {"encoder_name": encoder, "normalize": "encoder"})
    assert "--normalize MEAN/STD" in caught.value.hint


@pytest.mark.parametrize("text", ["imgnet", "0.5", "0.5/", "a/b", "0.5/0.5/0.5"])
def test_a_normalisation_that_is_neither_name_nor_numbers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither a name nor MEAN/STD"):
        ModelSpec.with_overrides(None, {"normalize": text})


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ((0.5,), (), "0-1"),
        ((), (0.25,), "0-1"),
        ((127.5,), (), "0-255"),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "0-1"),
        ((-1.0,), (1.0,), None),
        ((4000.0,), (500.0,), None),
    ],
)
def test_the_range_that_mean_and_std_are_in(
    mean: tuple[float, ...], std: tuple[float, ...], expected: str | None
) -> None:
    assert range_of(mean, std) == expected
