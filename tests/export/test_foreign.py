"""Foreign ONNX graphs of every form give the mask that they were made for, or say why not."""

from __future__ import annotations

import contextlib
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx.parser
import pytest

from segx.cli.options import refuse_reading_options
from segx.errors import ArtifactError, SegxError, UsageError
from segx.export import adapt, import_model, import_onnx, read_artifact
from segx.export.artifact import load_onnx
from segx.export.foreign import convert
from segx.export.verify import TrialRun, comparison_images
from segx.masks.agreement import LIMITS, breaches, compare_logits
from segx.masks.preprocess import masks_from_logits, preprocess
from segx.model.spec import ModelSpec
from segx.system.processes import Workers
from tests.benching import import_all
from tests.mutations import damaged, read_all

HEIGHT, WIDTH = 16, 24
IMAGE = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
IMAGE[:, WIDTH // 2 :] = 220
RIGHT = np.zeros((HEIGHT, WIDTH), bool)
RIGHT[:, WIDTH // 2 :] = True

# 10 * (mean of the channels - 0.5), and the same as two and three classes by brightness.
ONE = "float[1,3,1,1] w = {3.3333, 3.3333, 3.3333}, float[1] b = {-5}"
TWO = "float[2,3,1,1] w = {-1.6667,-1.6667,-1.6667,1.6667,1.6667,1.6667}, float[2] b = {2.5,-2.5}"
THREE = "float[3,3,1,1] w = {0,0,0,6.6667,6.6667,6.6667,13.3333,13.3333,13.3333}, float[3] b = {0,-5,-20}"


def model(
    path: Path,
    body: str,
    *,
    weights: str = ONE,
    takes: str = f"float[n,3,{HEIGHT},{WIDTH}] x",
    gives: str = f"float[n,1,{HEIGHT},{WIDTH}] y",
    opset: int = 17,
    imports: str = "",
) -> Path:
    """A graph in ONNX's text form, in which ``z`` is a convolution of ``x``."""
    if "z = " not in body:
        body = f"z = Conv (x, w, b) {body}"
    text = f'<ir_version: 8, opset_import: ["": {opset}{imports}]> g ({takes}) => ({gives}) <{weights}> {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def mask_of(path: Path, tmp_path: Path, **overrides: Any) -> tuple[np.ndarray, ModelSpec, tuple[str, ...]]:
    """The mask of the image by the copy, its spec, and what was done."""
    copy = tmp_path / "copy.onnx"
    done = convert(path, overrides, copy, "0" * 64)
    artifact = read_artifact(copy)
    proto = onnx.load(copy)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["image", "logits"]
    images = np.repeat(
        preprocess(IMAGE[..., : artifact.spec.in_channels], artifact.spec)[None], artifact.batch_size or 2, 0
    )
    (logits,) = TrialRun(proto, copy).run(["logits"], images, hint="")
    assert logits.dtype == np.float32
    assert logits.shape == (len(images), *artifact.spec.output_shape)
    return masks_from_logits(logits, artifact.spec)[-1], artifact.spec, done


HALVED = "h = MaxPool <kernel_shape = [2,2], strides = [2,2]>"

FORMS: dict[str, tuple[str, dict[str, Any], str]] = {
    # Sigmoid, then what changes no value.
    "identity": ("p = Sigmoid (z) y = Identity (p)", {}, "removed the final Sigmoid"),
    "cast": ("p = Sigmoid (z) q = Cast <to = 10> (p) y = Cast <to = 1> (q)", {}, "removed the final Sigmoid"),
    "clip": (
        "p = Sigmoid (z) y = Clip (p, lo, hi)",
        {"weights": f"{ONE}, float lo = {{0}}, float hi = {{1}}"},
        "removed the final Sigmoid",
    ),
    "squeeze": (
        "p = Sigmoid (z) y = Squeeze (p, one)",
        {"weights": f"{ONE}, int64[1] one = {{1}}", "gives": "float[n,16,24] y"},
        "three axes",
    ),
    "nearest": (
        f'{HALVED} (z) p = Sigmoid (h) y = Resize <mode = "nearest"> (p, , s)',
        {"weights": f"{ONE}, float[4] s = {{1,1,2,2}}"},
        "removed the final Sigmoid",
    ),
    # Probabilities that have to become logits.
    "bilinear": (
        f'{HALVED} (z) p = Sigmoid (h) y = Resize <mode = "linear"> (p, , s)',
        {"weights": f"{ONE}, float[4] s = {{1,1,2,2}}"},
        "probability in [0, 1]",
    ),
    "foreground of softmax": (
        "p = Softmax <axis = 1> (z) y = Gather <axis = 1> (p, k)",
        {"weights": f"{TWO}, int64[1] k = {{1}}"},
        "probability in [0, 1]",
    ),
    "hard sigmoid": ("y = HardSigmoid <alpha = 0.1, beta = 0.5> (z)", {}, "probability in [0, 1]"),
    "by hand": (
        "n = Neg (z) e = Exp (n) d = Add (e, i) y = Reciprocal (d)",
        {"weights": f"{ONE}, float i = {{1}}"},
        "[0, 1]",
    ),
    "in 255": ("p = Sigmoid (z) y = Mul (p, f)", {"weights": f"{ONE}, float f = {{255}}"}, "probability in [0, 255]"),
    # Classes.
    "softmax": (
        "y = Softmax <axis = 1> (z)",
        {"weights": TWO, "gives": "float[n,2,16,24] y"},
        "removed the final Softmax",
    ),
    "softmax of old exporters": (
        "t = Transpose <perm = [0,2,3,1]> (z) p = Softmax <axis = 3> (t) y = Transpose <perm = [0,3,1,2]> (p)",
        {"weights": TWO, "gives": "float[n,2,16,24] y", "opset": 11},
        "removed the final Softmax",
    ),
    "argmax": (
        "a = ArgMax <axis = 1, keepdims = 0> (z) y = Cast <to = 2> (a)",
        {"weights": TWO, "gives": "uint8[n,16,24] y"},
        "removed the final ArgMax",
    ),
    "booleans": (
        "y = Greater (z, o)",
        {"weights": f"{ONE}, float o = {{0}}", "gives": "bool[n,1,16,24] y"},
        "masks alone",
    ),
    # Layouts and types.
    "channels last": (
        "t = Transpose <perm = [0,3,1,2]> (x) z = Conv (t, w, b) y = Transpose <perm = [0,2,3,1]> (z)",
        {"takes": "float[n,16,24,3] x", "gives": "float[n,16,24,1] y"},
        "channels-last",
    ),
    "half": (
        "v = Cast <to = 10> (w) c = Cast <to = 10> (b) z = Conv (x, v, c) y = Sigmoid (z)",
        {"takes": "float16[n,3,16,24] x", "gives": "float16[n,1,16,24] y"},
        "computed in float32 instead of float16; removed the final Sigmoid",
    ),
    "double": (
        "h = Cast <to = 1> (x) z = Conv (h, w, b) y = Cast <to = 11> (z)",
        {"takes": "double[n,3,16,24] x", "gives": "double[n,1,16,24] y"},
        "float64",
    ),
    "bytes": (
        "f = Cast <to = 1> (x) u = Div (f, m) z = Conv (u, w, b) y = Identity (z)",
        {"takes": "uint8[n,3,16,24] x", "weights": f"{ONE}, float m = {{255}}"},
        "images become uint8",
    ),
    "a quarter": (
        "y = AveragePool <kernel_shape = [4,4], strides = [4,4]> (z)",
        {"gives": "float[n,1,4,6] y"},
        "enlarged by 4 bilinearly",
    ),
    "no batch": (
        "y = Squeeze (z, o)",
        {"takes": "float[1,3,16,24] x", "weights": f"{TWO}, int64[1] o = {{0}}", "gives": "float[2,16,24] y"},
        "three axes",
    ),
    "batch of one in a reshape": (
        "y = Reshape (z, s)",
        {"weights": f"{ONE}, int64[4] s = {{1,1,16,24}}"},
        "one image at a time",
    ),
    "names of ours": (
        "z = Conv (x, image, b) logits = Identity (z) y = Identity (logits)",
        {"weights": ONE.replace(" w ", " image ")},
        "",
    ),
    "four channels": (
        "y = Identity (z)",
        {"takes": "float[n,1,16,24] x", "weights": "float[1,1,1,1] w = {10}, float[1] b = {-5}"},
        "",
    ),
    # Training mode and old opsets.
    "batch normalisation": (
        "y, m2, v2 = BatchNormalization <training_mode = 1> (z, g, b, m, g)",
        {"weights": f"{ONE}, float[1] g = {{1}}, float[1] m = {{-5}}"},
        "1 BatchNormalization from training",
    ),
    "upsample": (
        'h = MaxPool <kernel_shape = [2,2], strides = [2,2]> (z) y = Upsample <mode = "linear"> (h, s)',
        {"weights": f"{ONE}, float[4] s = {{1,1,2,2}}", "opset": 9},
        "lifted from opset 9",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_mask_is_the_one_that_the_graph_was_made_for(tmp_path: Path, form: str) -> None:
    body, parts, said = FORMS[form]
    mask, _, done = mask_of(model(tmp_path / "a.onnx", body, **parts), tmp_path)
    assert said in "; ".join(done)
    wrong = np.count_nonzero(mask.astype(bool) != RIGHT)
    # Pooled and enlarged edges are a pixel or two wider.
    assert wrong <= (HEIGHT * 2 if form in ("bilinear", "upsample", "a quarter") else 0)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_the_threshold_on_probabilities_holds(tmp_path: Path, threshold: float) -> None:
    weights = f"{TWO}, int64[1] k = {{1}}"
    path = model(tmp_path / "a.onnx", "p = Softmax <axis = 1> (z) y = Gather <axis = 1> (p, k)", weights=weights)
    copy = tmp_path / "copy.onnx"
    convert(path, {"threshold": threshold}, copy, "0" * 64)
    images = np.random.default_rng(0).random((2, 3, HEIGHT, WIDTH), dtype=np.float32)
    (probabilities,) = TrialRun(onnx.load(path), path).run(["y"], images, hint="")
    (logits,) = TrialRun(onnx.load(copy), copy).run(["logits"], images, hint="")
    np.testing.assert_array_equal(
        masks_from_logits(logits, read_artifact(copy).spec), probabilities[:, 0] >= np.float32(threshold)
    )


def test_a_softmax_along_rows_stays(tmp_path: Path) -> None:
    path = model(tmp_path / "a.onnx", "y = Softmax <axis = 2> (z)", weights=THREE, gives="float[n,3,16,24] y")
    with pytest.raises(UsageError, match="may overlap"):
        convert(path, {}, tmp_path / "copy.onnx", "0" * 64)
    assert "removed" not in "; ".join(convert(path, {"classes": 3}, tmp_path / "copy.onnx", "0" * 64))


@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (2, 1), (3, 3)])
def test_a_class_map_is_judged_by_masks_alone(tmp_path: Path, classes: int, channels: int) -> None:
    body = (
        'a = ArgMax <axis = 1> (z) f = Cast <to = 1> (a) r = Resize <mode = "nearest"> (f, , s) y = Cast <to = 7> (r)'
    )
    weights = f"{THREE if classes == 3 else TWO}, float[4] s = {{1,1,1,1}}"
    path = model(tmp_path / "a.onnx", body, weights=weights, gives="int64[n,1,16,24] y")
    with pytest.raises(UsageError, match="not of how many classes") as caught:
        mask_of(path, tmp_path)
    assert f"--classes {max(classes, 2)}" in caught.value.hint
    mask, spec, done = mask_of(path, tmp_path, classes=classes)
    assert (spec.classes, spec.class_map) == (channels, True)
    assert "judged by masks alone" in done[-1]
    assert np.array_equal(mask > 0, RIGHT)
    if classes == 3:
        assert set(np.unique(mask)) == {0, 2}
        with pytest.raises(UsageError, match="not a map of 2 classes"):
            mask_of(path, tmp_path, classes=2)


def test_flips_of_a_class_map_are_never_noise() -> None:
    spec = ModelSpec(classes=1, height=8, width=8, class_map=True)
    reference = np.full((1, 1, 8, 8), -16, np.float32)
    other = reference.copy()
    other[..., 0] = 16
    assert not breaches(compare_logits(reference, reference, spec, ["a"], noise_band=32.0), LIMITS["fp32"])
    parity = compare_logits(reference, other, spec, ["a"], noise_band=32.0)
    assert (parity.max_abs_diff, parity.real_flips) == (0.0, 8)
    assert breaches(parity, LIMITS["fp32"])


NESTED = f"float[3,3,1,1] w = {{{', '.join(['6.6667'] * 9)}}}, float[3] b = {{-2, -10, -19}}"  # all, right, none


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ("y = Sigmoid (z)", {}),
        ("p = Sigmoid (z) y = Identity (p)", {"multilabel": True}),
        ("y = Identity (z)", {"multilabel": True}),
        ("m = Neg (z) e = Exp (m) s = Add (e, one) y = Reciprocal (s)", {"multilabel": True}),
    ],
)
def test_sigmoid_channels_give_a_mask_each(tmp_path: Path, body: str, options: dict[str, Any]) -> None:
    path = model(
        tmp_path / "a.onnx", body, weights=f"{NESTED}, float one = {{1}}", gives=f"float[n,3,{HEIGHT},{WIDTH}] y"
    )
    masks, spec, done = mask_of(path, tmp_path, **options)
    assert (spec.classes, spec.multilabel) == (3, True)
    assert "its 3 channels may overlap" in " ".join(done)
    for mask, expected in zip(masks, (np.ones_like(RIGHT), RIGHT, np.zeros_like(RIGHT)), strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert "--multilabel" in spec.options(None)


def test_channels_that_may_overlap_or_not_are_asked_about(tmp_path: Path) -> None:
    body = "m = Neg (z) e = Exp (m) s = Add (e, one) y = Reciprocal (s)"
    path = model(tmp_path / "a.onnx", body, weights=f"{NESTED}, float one = {{1}}", gives="float[n,3,16,24] y")
    with pytest.raises(UsageError, match="3 channels of probabilities that do not add up to 1") as caught:
        mask_of(path, tmp_path)
    assert "--multilabel" in caught.value.hint
    assert "--no-multilabel" in caught.value.hint
    assert not mask_of(path, tmp_path, multilabel=False)[1].multilabel


def test_a_threshold_without_effect_is_refused(tmp_path: Path) -> None:
    form, parts, _ = FORMS["argmax"]
    path = model(tmp_path / "a.onnx", form, **parts)
    with pytest.raises(UsageError, match="2 classes exclude each other"):
        mask_of(path, tmp_path, threshold=0.9)
    copy = mask_of(
        path,
        tmp_path,
        **import_onnx.overrides_of(ModelSpec(in_channels=3, classes=2, threshold=0.9, height=HEIGHT, width=WIDTH)),
    )
    assert copy[1].threshold == 0.5
    form, parts, _ = FORMS["softmax"]
    foreground = {"output_channel": 1, "threshold": 0.9}
    assert mask_of(model(tmp_path / "b.onnx", form, **parts), tmp_path, **foreground)[1].threshold == 0.9


def test_one_channel_is_no_multilabel_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the model returns one channel"):
        mask_of(model(tmp_path / "a.onnx", "y = Sigmoid (z)"), tmp_path, multilabel=True)


def test_one_of_several_sigmoid_channels_is_taken(tmp_path: Path) -> None:
    path = model(tmp_path / "a.onnx", "y = Sigmoid (z)", weights=THREE, gives="float[n,3,16,24] y")
    mask, spec, done = mask_of(path, tmp_path, output_channel=2)
    assert spec.classes == 1
    assert "channel 2 is used of 3" in done
    assert mask.any()
    assert not mask_of(path, tmp_path, classes=3)[1].multilabel
    with pytest.raises(UsageError, match="no channel 3"):
        mask_of(path, tmp_path, output_channel=3)


def test_numbers_that_may_be_anything_are_asked_about(tmp_path: Path) -> None:
    path = model(tmp_path / "a.onnx", "a = Abs (z) y = Add (a, b)", weights=f"{ONE.replace('-5', '3')}")
    with pytest.raises(UsageError, match="below 0 outside the mask") as caught:
        mask_of(path, tmp_path)
    assert "--output-range logits" in caught.value.hint
    assert mask_of(path, tmp_path, output_range="logits")[0].all()


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    gives = "float[n,1,16,24] y, float[n,1,16,24] aux"
    path = model(tmp_path / "a.onnx", "y = Sigmoid (z) aux = Neg (z)", gives=gives)
    with pytest.raises(UsageError, match=re.escape("2 outputs: y (n, 1, 16, 24) float, aux (n, 1, 16, 24)")) as caught:
        mask_of(path, tmp_path)
    assert f"segx export --model {path} --output-name NAME" in caught.value.hint
    mask, _, done = mask_of(path, tmp_path, output_name="y")
    assert np.array_equal(mask > 0, RIGHT)
    assert done[0] == "y is used of 2 outputs"
    assert not np.array_equal(mask_of(path, tmp_path, output_name="aux")[0] > 0, RIGHT)
    with pytest.raises(UsageError, match="no output 'z'"):
        mask_of(path, tmp_path, output_name="z")


@pytest.mark.parametrize(
    ("body", "gives", "named"),
    [
        # As softmax(1).max(1) is exported, with and without the axis of classes.
        ("best = ReduceMax <axes = [1], keepdims = 0> (p)", "float[n,16,24] best, int64[n,16,24] classes", "classes"),
        ("best = ReduceMax <axes = [1]> (p)", "float[n,1,16,24] best, int64[n,16,24] classes", "classes"),
        ("sizes = Shape (p)", "int64[4] sizes, float[n,2,16,24] p", "p"),
        ("mean = GlobalAveragePool (p)", "float[n,2,1,1] mean, float[n,2,16,24] p", "p"),
        ("t = Transpose <perm = [0,2,3,1]> (z)", "int64[4] z, float[n,16,24,1] t", "t"),
        ("", "float[n,2,16,24] p, int64[n,16,24] classes", "NAME"),
        ("sizes = Shape (p)", "float[n,2,16,24] p, int64[4] sizes, float[n,2,16,24] z", "NAME"),
    ],
)
def test_the_output_that_can_be_masks_is_proposed(tmp_path: Path, body: str, gives: str, named: str) -> None:
    body = f"p = Softmax <axis = 1> (z) classes = ArgMax <axis = 1, keepdims = 0> (p) {body}"
    path = model(tmp_path / "a.onnx", body, weights=TWO, gives=gives)
    with pytest.raises(UsageError, match="outputs: ") as caught:
        mask_of(path, tmp_path)
    assert f"--output-name {named}`" in caught.value.hint
    with pytest.raises(UsageError, match="no output 'masks'; ") as caught:
        mask_of(path, tmp_path, output_name="masks")
    assert f"--output-name {named}`" in caught.value.hint


@pytest.mark.parametrize(("axes", "layout"), [("n,3,16,3", None), ("n,64,64,64", None), ("n,3,16,3", "nchw")])
def test_layouts_that_cannot_be_told_are_asked_for(tmp_path: Path, axes: str, layout: str | None) -> None:
    path = model(tmp_path / "a.onnx", "y = Identity (z)", takes=f"float[{axes}] x", gives="float[n,1,h,w] y")
    if layout is None:
        with pytest.raises(UsageError, match="cannot be told") as caught:
            convert(path, {}, tmp_path / "copy.onnx", "0" * 64)
        assert "--layout nchw" in caught.value.hint
    else:
        convert(path, {"layout": layout}, tmp_path / "copy.onnx", "0" * 64)
        assert read_artifact(tmp_path / "copy.onnx").spec.width == 3


def test_the_stride_of_symbolic_sizes_is_found_and_named(tmp_path: Path) -> None:
    body = (
        f"{HALVED} (x) i = MaxPool <kernel_shape = [2,2], strides = [2,2]> (h) "
        'u = Resize <mode = "nearest"> (i, , s) v = Add (u, h) t = Resize <mode = "nearest"> (v, , s) '
        "z = Conv (t, w, b) y = Identity (z)"
    )
    path = model(
        tmp_path / "a.onnx",
        body,
        weights=f"{ONE}, float[4] s = {{1,1,2,2}}",
        takes="float[n,c,h,w] x",
        gives="float[n,1,h,w] y",
    )
    with pytest.raises(UsageError, match="any number of channels") as caught:
        convert(path, {}, tmp_path / "copy.onnx", "0" * 64)
    assert "--in-channels 3" in caught.value.hint
    with pytest.raises(UsageError, match="any height in multiples of 4"):
        convert(path, {"in_channels": 3}, tmp_path / "copy.onnx", "0" * 64)
    with pytest.raises(UsageError, match="in multiples of 4, not 66x64") as caught:
        convert(path, {"in_channels": 3, "width": 66, "height": 64}, tmp_path / "copy.onnx", "0" * 64)
    assert "--input-size 68x64" in caught.value.hint
    convert(path, {"in_channels": 3, "width": 68, "height": 64}, tmp_path / "copy.onnx", "0" * 64)
    assert read_artifact(tmp_path / "copy.onnx").size_multiple == 4


def test_axes_of_negative_length_and_outputs_that_tell_another_shape(tmp_path: Path) -> None:
    path = model(tmp_path / "a.onnx", "y = Identity (z)", gives="float[1,1,16,24] y")
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, path)
    assert np.array_equal(mask_of(path, tmp_path)[0] > 0, RIGHT)
    assert read_artifact(tmp_path / "copy.onnx").batch_size is None


def test_control_flow(tmp_path: Path) -> None:
    body = (
        "s = Shape (x) n0 = Gather (s, i) c = Greater (n0, i) "
        "y = If (c) <then_branch = a () => (float[n,1,16,24] p) { p = Identity (z) }, "
        "else_branch = d () => (float[n,1,16,24] q) { q = Neg (z) }>"
    )
    path = model(tmp_path / "a.onnx", body, weights=f"{ONE}, int64 i = {{0}}")
    assert np.array_equal(mask_of(path, tmp_path)[0] > 0, RIGHT)


@pytest.mark.parametrize(
    ("parts", "body", "complaint"),
    [
        ({"imports": ', "mmdeploy": 1'}, "y = mmdeploy.grid_sampler (z)", "grid_sampler of the domain mmdeploy"),
        ({}, "y = Sgimoid (z)", "uses Sgimoid"),
        ({"opset": 99}, "y = Identity (z)", r"opset 99.*knows versions up to \d+"),
        (
            {"weights": f"{ONE}, float s = {{0.1}}, uint8 o = {{0}}"},
            "q = QuantizeLinear (z, s, o) y = DequantizeLinear (q, s, o)",
            "already quantised",
        ),
        (
            {"takes": "float[n,3,16,24] x, float[1] scale"},
            "y = Mul (z, scale)",
            re.escape("2 inputs: x (n, 3, 16, 24) float, scale (1) float"),
        ),
        ({}, "r = RandomNormalLike (z) y = Add (z, r)", "different values each time it runs, because of Random"),
        (
            {"weights": f"{ONE}, float[1] g = {{1}}"},
            "t, m2, v2 = BatchNormalization <training_mode = 1> (z, g, g, g, g) y = Add (t, m2)",
            "training mode",
        ),
        ({"gives": "float[n,1,14,22] y"}, "y = AveragePool <kernel_shape = [3,3]> (z)", "no logits"),
    ],
)
def test_what_cannot_be_taken_in_is_refused_with_the_reason(
    tmp_path: Path, parts: dict[str, Any], body: str, complaint: str
) -> None:
    path = model(tmp_path / "a.onnx", body, **parts)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        convert(path, {}, tmp_path / "copy.onnx", "0" * 64)
    assert "size" not in caught.value.hint or "no logits" in complaint


def all_in(kind: str, path: Path, body: str, factor: float = 1) -> Path:
    """A model whose weights, times a factor, are of another type too."""
    named = {"float16": "float16", "float64": "double"}[kind]
    model(path, body, takes=f"{named}[n,3,16,24] x", gives=f"{named}[n,1,16,24] y")
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        values = factor * onnx.numpy_helper.to_array(tensor).astype(kind)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_models_of_other_floats_become_float32(tmp_path: Path, kind: str) -> None:
    to = {"float16": 10, "float64": 11}[kind]
    body = f"o = Constant <value = float[1] {{1}}> () e = Cast <to = {to}> (o) d = Mul (z, e) y = Sigmoid (d)"
    mask, _, done = mask_of(all_in(kind, tmp_path / "a.onnx", body), tmp_path)
    assert np.array_equal(mask > 0, RIGHT)
    assert done == (
        f"computed in float32 instead of {kind}",
        "removed the final Sigmoid: masks are computed and compared on logits",
    )
    copy = onnx.load(tmp_path / "copy.onnx")
    assert {tensor.data_type for tensor in copy.graph.initializer} == {onnx.TensorProto.FLOAT}


def test_numbers_that_float32_lacks_are_refused(tmp_path: Path) -> None:
    path = all_in("float64", tmp_path / "a.onnx", "y = Identity (z)", factor=1e200)
    with pytest.raises(ArtifactError, match=r"float64.*w has values up to 3\.33e\+200") as caught:
        convert(path, {}, tmp_path / "copy.onnx", "0" * 64)
    assert caught.value.hint == "export it in float32"


def test_a_newer_form_of_file_is_named_with_both_numbers(tmp_path: Path) -> None:
    path = model(tmp_path / "a.onnx", "y = Identity (z)")
    proto = onnx.load(path)
    proto.ir_version = 99
    onnx.save(proto, path)
    with pytest.raises(ArtifactError, match=r"IR version 99.*up to \d+"):
        convert(path, {}, tmp_path / "copy.onnx", "0" * 64)
    proto.ir_version = onnx.IR_VERSION
    onnx.save(proto, path)
    assert np.array_equal(mask_of(path, tmp_path)[0] > 0, RIGHT)


def test_an_opset_that_only_onnx_knows_is_named_with_both_numbers(tmp_path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    path = model(tmp_path / "a.onnx", "y = Identity (z)", opset=newest)
    try:
        TrialRun(onnx.load(path), path)
    except ArtifactError as error:
        assert re.search(rf"opset {newest}.*onnxruntime \S+ knows versions up to \d+", error.message)  # noqa: PT017


@pytest.mark.parametrize("fault", ["raises", "returns other values"])
def test_an_opset_that_cannot_be_lifted_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def convert_version(_: onnx.ModelProto, target: int) -> onnx.ModelProto:
        if fault == "raises":
            raise RuntimeError("no adapter for Affine")
        other = onnx.load(model(tmp_path / "b.onnx", "y = Abs (z)"))
        other.opset_import[0].version = target
        return other

    monkeypatch.setattr(adapt.version_converter, "convert_version", convert_version)
    path = model(tmp_path / "a.onnx", "y = Identity (z)", opset=9)
    with pytest.raises(ArtifactError, match=r"opset 9 of .* is too old") as caught:
        convert(path, {}, tmp_path / "copy.onnx", "0" * 64)
    assert "opset 17" in caught.value.hint


def with_weights_beside(path: Path) -> Path:
    """The file where the weights of a model now are."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(proto, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    return path.with_name("weights.data")


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    path = model(tmp_path / "a.onnx", "y = Identity (z)")
    with_weights_beside(path).unlink()
    with pytest.raises(ArtifactError, match=r"are in .*weights\.data, which does not exist"):
        convert(path, {}, tmp_path / "copy.onnx", "0" * 64)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b'<?xml version="1.0"?><net name="x">', "OpenVINO"),
        (b'{"error": "not found"}', "JSON"),
        (b"ftrt\0\0\0\0", "TensorRT plan"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (struct.pack("<Q", 9) + b'{"a": {}}', "safetensors"),
        (pickle.dumps({"state_dict": 1}, protocol=2), "pickle"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"", "empty"),
    ],
)
def test_what_is_no_onnx_is_called_by_its_name(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=what):
        import_model(path)


def test_archives_and_folders_are_called_by_their_names(tmp_path: Path) -> None:
    for member, what in (("model/data.pkl", "PyTorch checkpoint"), ("a.onnx", "zip archive")):
        with zipfile.ZipFile(tmp_path / "a.onnx", "w") as archive:
            archive.writestr(member, b"")
        with pytest.raises(ArtifactError, match=what):
            import_model(tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match="is a folder"):
        import_model(tmp_path)


def test_options_that_tell_how_to_read_a_file_need_a_foreign_one(plain_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--layout has no effect"):
        import_model(plain_onnx, {"layout": "nchw"})
    with pytest.raises(UsageError, match="layout 'hwc' is unknown"):
        import_model(model(tmp_path / "a.onnx", "y = Identity (z)"), {"layout": "hwc"})
    with pytest.raises(click.UsageError, match="--output-name has no effect without --model"):
        refuse_reading_options({"output_name": "y"})


ENDLESS = (
    "y = Loop (most, again, z) <body = l (int64 i, bool more, float[n,1,16,24] p) => "
    "(bool still, float[n,1,16,24] q) { still = Identity (more) q = Identity (p) }>"
)
ENDLESS_WEIGHTS = f"{ONE}, int64 most = {{9223372036854775807}}, bool again = {{1}}"


def test_a_graph_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path / "a.onnx", ENDLESS, weights=ENDLESS_WEIGHTS)
    monkeypatch.setattr(import_onnx, "_TIMEOUT_S", 4.0)
    with pytest.raises(ArtifactError, match=r"reading and running .* within 4 s"):
        import_model(path, output=tmp_path / "copy.onnx")
    assert not (tmp_path / "copy.onnx").exists()


def _with_a_wrong_field(data: bytes, rng: random.Random) -> bytes:
    """Return a variant of a model in which one field of its graph is wrong."""
    proto = onnx.ModelProto.FromString(data)
    graph = proto.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    value, number = rng.choice([*graph.input, *graph.output]), rng.choice((0, -1, 7, 2**40, 2**62))
    changes: list[Callable[[], Any]] = [
        lambda: node.ClearField("input"),
        lambda: node.ClearField("output"),
        lambda: node.input.extend(node.output),
        lambda: setattr(node, "op_type", rng.choice(("", "Loop", "If", "Constant", "ArgMax", "Cast", "Dropout"))),
        lambda: tensor.dims.__setitem__(slice(None), [number] * rng.randrange(5)),
        lambda: setattr(tensor, "data_type", number % 30),
        lambda: tensor.ClearField("float_data"),
        lambda: _put_beside(tensor, rng.choice(("", ".", "/dev/zero", "../w", "w.bin")), number),
        lambda: setattr(rng.choice(value.type.tensor_type.shape.dim), "dim_value", number),
        lambda: setattr(value.type.tensor_type, "elem_type", number % 30),
        lambda: setattr(proto.opset_import[0], "version", number),
    ]
    rng.choice(changes)()
    return bytes(proto.SerializeToString())


def _put_beside(tensor: onnx.TensorProto, location: str, offset: int) -> None:
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", str(offset))):
        tensor.external_data.add(key=key, value=text)


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_models_are_artifact_errors(tmp_path: Path, count: int) -> None:
    path = model(tmp_path / "a.onnx", "r = Relu (z) y = Sigmoid (r)")
    whole, rng = path.read_bytes(), random.Random(0)
    variants = [whole.replace(b"Relu", b"R\xfflu"), whole.replace(b"Sigmoid", b"\n\x1b[2J\0a"), *damaged(whole, count)]
    variants += [_with_a_wrong_field(whole, rng) for _ in range(count)]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for reader in (read_artifact, import_onnx._kind_of, import_onnx._weights_beside, load_onnx):
            with contextlib.suppress(SegxError):
                reader(path)

    read_all(iter(variants), read)
    arguments = {"path": path, "variants": variants, "copy": tmp_path / "copy.onnx"}
    failures = Workers(threads=1).call(import_all, arguments, torch=False, timeout_s=1000.0)
    assert len(failures) > count
    assert max(map(len, failures)) < 1000


@pytest.mark.parametrize("precision", ["fp16", "int8-onnxruntime"])
def test_old_and_wrapped_models_can_be_derived_from(tmp_path: Path, precision: Any) -> None:
    from segx.export.variants import derive

    parts = {"takes": "float[n,16,24,3] x", "gives": "float[n,16,24,1] y"}
    body = (
        "t = Transpose <perm = [0,3,1,2]> (x) z = Conv (t, w, b) s = Sigmoid (z) y = Transpose <perm = [0,2,3,1]> (s)"
    )
    source = tmp_path / "copy.onnx"
    convert(model(tmp_path / "a.onnx", body, opset=11, **parts), {}, source, "0" * 64)
    made = derive(source, precision, output=tmp_path / "derived.onnx", min_iou=0.9 if "int8" in precision else None)
    images = comparison_images(read_artifact(source).spec)
    assert read_artifact(made.path).spec.input_shape == images.shape[1:]
