"""int8 files: what they hold, which layers stay in float, when they are made again, and their use in a bench."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import segx
from segx.errors import ArtifactError, ExportError, ImageError, RuntimeUnavailable, SegxError, UsageError
from segx.export import Derived, derive, int8, read_artifact
from segx.export.int8 import Engine, Stage, calibration_images, quantize_onnx
from segx.export.rewrites import fuse_upsampling
from segx.export.variants import _PROOF, _recipe, derived_path, existing_form
from segx.masks.agreement import compare_logits, compare_masks
from segx.masks.image_io import write_png
from segx.masks.preprocess import preprocess
from segx.model import synthetic
from segx.model.spec import ModelSpec
from segx.reporting.columns import counted
from segx.reporting.command_documents import export_document
from segx.reporting.renderers.text import to_text
from segx.results.types import Parity
from segx.runtimes import RuntimeOptions, open_runtime
from segx.system.derived import cached, manifest_path
from segx.system.files import sha256_of
from segx.system.progress import Told
from tests.benching import quick_bench
from tests.builders import exported_onnx
from tests.mutations import damaged, few_or_many, read_all

SPEC = ModelSpec(height=32, width=32)
LAYERS = ("first", "second", "third", "fourth", "head")

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the package openvino is not installed"
)
ENGINES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


def scenes(count: int, seed: int) -> np.ndarray:
    drawn = synthetic.series(count, seed=seed, height=SPEC.height, width=SPEC.width)
    return np.stack([preprocess(scene.image[..., None], SPEC) for scene in drawn])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return scenes(8, seed=7)


@pytest.fixture(scope="module")
def held_out() -> np.ndarray:
    return scenes(6, seed=8)


def saved(path: Path, nodes: list[Any], weights: dict[str, np.ndarray], output_kind: Any = "logits") -> Path:
    tensors = {name: np.asarray(values, dtype=np.float32) for name, values in weights.items()}
    facts = {"checkpoint": "small.safetensors", "weights_sha256": "5" * 64, "versions": {"segx": "0.1.0"}}
    return exported_onnx(path, SPEC, nodes, tensors, output_kind=output_kind, **facts)


def blur_and_cut(path: Path, *, brighter: float = 1.0, bias: float = -14.0, output_kind: Any = "logits") -> Path:
    """Four equal channels: blurred, passed on three times, averaged and cut at a brightness.

    One channel leaves the first layer so many times ``brighter`` and is brought back by the second. In float that
    changes nothing; in 8 bits one scale must serve all four channels, and 1000 rounds the other three to nothing.
    """
    weights = {"first.weight": np.full((4, 1, 3, 3), 1 / 9)}
    for name in LAYERS[1:4]:
        weights[f"{name}.weight"] = np.zeros((4, 4, 3, 3))
        weights[f"{name}.weight"][range(4), range(4), 1, 1] = 1.0
    weights["head.weight"] = np.full((1, 4, 1, 1), 10.0)
    weights["first.weight"][0] *= brighter
    weights["second.weight"][:, 0] /= brighter
    nodes, last = [], "image"
    for name in LAYERS[:4]:
        nodes.append(helper.make_node("Conv", [last, f"{name}.weight"], [f"{name}.sum"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{name}.sum"], [name]))
        last = name
    nodes.append(helper.make_node("Conv", [last, "head.weight", "head.bias"], ["logits"]))
    return saved(path, nodes, {**weights, "head.bias": np.array([bias])}, output_kind)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return blur_and_cut(tmp_path / "float.onnx")


def float_convs(path: Path) -> set[str]:
    """Weights that a convolution of the file takes in float."""
    model = onnx.load(path)
    kept = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    return {n.input[1].removesuffix(".weight") for n in model.graph.node if n.op_type == "Conv" and n.input[1] in kept}


def scale_of(path: Path, tensor: str) -> float:
    """Step between two values of a tensor that is rounded to 8 bits."""
    model = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0].startswith(tensor))
    return float(constants[node.input[1]].item())


@pytest.mark.parametrize("engine", ENGINES)
def test_all_layers_are_in_8_bits_where_the_masks_allow_it(
    source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray, engine: Engine
) -> None:
    said: list[str] = []
    output = tmp_path / "int8.onnx"
    stages = quantize_onnx(
        source, images, held_out, output=output, engine=engine, threads=2, progress=Told(said.append)
    )
    assert stages[-1].float_layers == ()
    assert [stage.int8_layers for stage in stages] == [len(LAYERS)]
    assert float_convs(output) == set()
    assert (stages[-1].held_out_images, stages[-1].parity.images) == (len(held_out), 2 * len(held_out))
    assert stages[-1].parity.worst_iou >= 0.98
    assert 0 < stages[-1].parity.max_abs_diff < 1.0
    assert not any("ranking" in line for line in said)


@pytest.mark.parametrize("engine", ENGINES)
def test_layers_that_ruin_the_masks_go_back_to_float(
    tmp_path: Path, images: np.ndarray, held_out: np.ndarray, engine: Engine
) -> None:
    source, output = blur_and_cut(tmp_path / "float.onnx", brighter=1000), tmp_path / "int8.onnx"
    stages = quantize_onnx(source, images, held_out, output=output, engine=engine, threads=2)
    first, last = stages[0], stages[-1]
    assert first.float_layers == ()
    assert first.parity.worst_iou < 0.5
    assert set(last.float_layers) == {"first", "second"}
    assert last.parity.worst_iou >= 0.98
    assert last.int8_layers == len(LAYERS) - 2
    assert float_convs(output) == {"first", "second"}
    assert json.loads(metadata(output)["segx.quantization"])["float_layers"] == list(stages[-1].float_layers)


@needs_openvino
def test_layers_are_ranked_by_the_engine_that_runs_the_file(
    tmp_path: Path, images: np.ndarray, held_out: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, str | None]] = []

    def spy(name: str, *args: Any, options: RuntimeOptions, **others: Any) -> Any:
        opened.append((name, options.precision))
        return open_runtime(name, *args, options=options, **others)

    monkeypatch.setattr("segx.export.int8.open_runtime", spy)
    source = blur_and_cut(tmp_path / "float.onnx", brighter=1000)
    quantize_onnx(source, images, held_out, output=tmp_path / "int8.onnx", engine="openvino", threads=2)
    assert len(opened) > len(LAYERS)
    assert {name for name, precision in opened if precision == "int8"} == {"openvino-cpu"}


def test_a_layer_that_the_engine_computes_in_float_anyway_costs_nothing(
    tmp_path: Path, images: np.ndarray, held_out: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(name: str, path: Path, *, options: RuntimeOptions, **others: Any) -> Any:
        if options.precision == "int8" and float_convs(path) == {*LAYERS} - {"fourth"}:
            raise ArtifactError(f"{path} has no int8 layers", hint="")
        return open_runtime(name, path, options=options, **others)

    monkeypatch.setattr("segx.export.int8.open_runtime", refusing)
    source, output = blur_and_cut(tmp_path / "float.onnx", brighter=1000), tmp_path / "int8.onnx"
    stages = quantize_onnx(source, images, held_out, output=output, threads=2)
    assert set(stages[-1].float_layers) == {"first", "second"}


def test_the_file_that_was_judged_is_the_file_that_is_left(
    source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray
) -> None:
    output = tmp_path / "int8.onnx"
    stages = quantize_onnx(source, images, held_out, output=output, threads=2)
    options = RuntimeOptions(threads=2, precision="int8")
    expected = open_runtime("onnxruntime-cpu", source, spec=SPEC, options=RuntimeOptions(threads=2)).infer(held_out)
    logits = open_runtime("onnxruntime-cpu", output, spec=SPEC, options=options).infer(held_out)
    assert float(np.abs(logits - expected).max()) == pytest.approx(stages[-1].parity.max_abs_diff)


def test_gates_that_cannot_be_met_are_an_error_and_leave_the_old_file(
    source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray
) -> None:
    output = tmp_path / "here" / "int8.onnx"
    output.parent.mkdir()
    output.write_text("old")
    said: list[str] = []
    with pytest.raises(ExportError, match=r"at best mean IoU [01]\.\d+ .*limit 1\.1") as caught:
        quantize_onnx(source, images, held_out, output=output, min_iou_mean=1.1, threads=2, progress=Told(said.append))
    assert "calibrate" in caught.value.hint
    costliest = caught.value.message.rpartition("most in ")[2].split(", ")
    assert len(costliest) == 3
    assert set(costliest) <= set(LAYERS)
    assert "3 of 5 layers in 8 bits" in said[-1]
    assert output.read_text() == "old"
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("worst", "mean", "message"), [(0.98, 0.0, r"IoU 0\.\d+ on held-out image \d"), (0.0, 0.995, r"mean IoU 0\.\d+")]
)
def test_the_worst_image_and_the_mean_are_gates_of_their_own(
    tmp_path: Path,
    images: np.ndarray,
    held_out: np.ndarray,
    worst: float,
    mean: float,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("segx.export.int8._MOST_FLOAT", 0)
    ruined = blur_and_cut(tmp_path / "ruined.onnx", brighter=1000)
    with pytest.raises(ExportError, match=f"at best {message}"):
        quantize_onnx(
            ruined, images, held_out, output=tmp_path / "o.onnx", min_iou_worst=worst, min_iou_mean=mean, threads=2
        )


@pytest.mark.parametrize("most_float", [0.5, 0])
def test_a_mean_that_may_meet_the_limit_by_chance_returns_layers_to_float_if_that_helps(
    tmp_path: Path, images: np.ndarray, held_out: np.ndarray, most_float: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segx.export.int8._MOST_FLOAT", most_float)
    monkeypatch.setattr("segx.export.int8._CONTRAST", 1.0)
    output, source = tmp_path / "o.onnx", blur_and_cut(tmp_path / "float.onnx", brighter=12)
    first = quantize_onnx(source, images, held_out, output=output, min_iou_worst=0, min_iou_mean=0, threads=2)[-1]
    assert first.parity.worst_iou < first.parity.mean_iou
    limit = first.parity.mean_iou
    last = quantize_onnx(source, images, held_out, output=output, min_iou_worst=0, min_iou_mean=limit, threads=2)[-1]
    if most_float:
        assert last.float_layers
        assert last.parity.mean_iou > limit
    else:
        assert last == replace(first, has_margin=False)
        made = Derived(path=output, source=source, form="int8-onnxruntime", stages=(last,), calibration=tmp_path)
        shown = " ".join(to_text(export_document(made)).split())
        assert "so other images may miss them: calibrate int8 on more images with --calibration" in shown


def test_an_attempt_that_meets_all_limits_is_taken_before_one_with_a_better_worst_image(
    tmp_path: Path, source: Path, images: np.ndarray, held_out: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    ious = iter([(0.90, 0.990), (0.985, 0.994), (0.983, 0.9951), (0.983, 0.9951)])  # worst and mean of each attempt

    def compared(*given: Any, **options: Any) -> Parity:
        parity, (worst, mean) = compare_logits(*given, **options), next(ious)
        each = replace(parity.per_image[0], flipped_pixels=999, benign_flips=0, stray_pixels=0)
        rest = (12 * mean - worst) / 11
        per_image = tuple(replace(each, iou=iou) for iou in (worst, *[rest] * 11))
        return replace(parity, worst_iou=worst, mean_iou=mean, per_image=per_image)

    monkeypatch.setattr(int8, "compare_logits", compared)
    monkeypatch.setattr(int8, "_float_counts", lambda _: iter([1, 2]))
    last = quantize_onnx(source, images, held_out, output=tmp_path / "o.onnx", threads=2)[-1]
    assert len(last.float_layers) == 2


def test_a_pixel_that_appears_in_an_empty_mask_leaves_all_layers_in_8_bits(tmp_path: Path, images: np.ndarray) -> None:
    source = blur_and_cut(tmp_path / "float.onnx", bias=-14.048)  # cuts at 0.3512, where 8 bits round up
    empty = np.zeros((6, 1, 32, 32), np.float32)
    for place, image in enumerate(empty):  # blurred, each has one pixel just below the cut
        image[0, 10:13, 10:13] = 0.3510 - 0.0001 * place
    stages = quantize_onnx(source, images, empty, output=tmp_path / "o.onnx", threads=2)
    assert stages[-1].parity.real_flips > 0
    assert stages[-1].parity.worst_iou == 1.0
    assert stages[-1].float_layers == ()


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_file_says_what_it_was_made_from_and_how(
    source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray
) -> None:
    output = tmp_path / "int8.onnx"
    quantize_onnx(source, images, held_out, output=output, threads=2)
    was, now = read_artifact(source), read_artifact(output)
    assert now == replace(was, path=output, versions=now.versions, precision="int8")
    assert {"segx", "onnx"} <= set(now.versions)
    entries = metadata(output)
    assert entries["segx.precision"] == "int8"
    facts = json.loads(entries["segx.quantization"])
    assert list(facts["mean_iou_by_calibration_images"]) == [str(len(images))]
    assert facts["weight_bits"] == (7 if int8.needs_narrow_weights() else 8)
    assert facts.items() >= {"engine": "onnxruntime", "calibration_images": len(images), "float_layers": []}.items()


@pytest.mark.parametrize("third_part", [0.5, 1.5])
def test_images_are_added_to_the_calibration_while_the_masks_become_better(
    source: Path, tmp_path: Path, held_out: np.ndarray, third_part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 32 images, those at multiples of four come first, all other even ones next."""
    monkeypatch.setattr("segx.export.int8._CONTRAST", 1.0)
    images = scenes(32, seed=7)
    images[::4] *= np.float32(0.3)  # below the cut
    images[1::2] *= np.float32(third_part)
    output = tmp_path / "int8.onnx"
    stages = quantize_onnx(source, images, held_out, output=output, threads=2)
    assert [stage.calibration_images for stage in stages] == [8, 32, 16]
    assert stages[0].parity.mean_iou < 0.5
    assert stages[2].parity.mean_iou > 0.99
    assert stages[1].parity.mean_iou <= stages[2].parity.mean_iou
    assert scale_of(output, "image") == pytest.approx(float(images[::2].max()) / 255, rel=1e-5)
    facts = json.loads(metadata(output)["segx.quantization"])
    assert facts["calibration_images"] == 16
    assert facts["mean_iou_by_calibration_images"]["8"] == stages[0].parity.mean_iou
    made = Derived(path=output, source=source, form="int8-onnxruntime", stages=stages, calibration=Path("photos"))
    shown = " ".join(to_text(export_document(made)).split())
    assert "calibrated on 16 images of photos; 32 do not make the masks better" in shown


def test_every_calibration_image_counts(source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray) -> None:
    dark = images * np.float32(0.5)
    dark[-1, 0, 0, 0] = 0.9
    output = tmp_path / "int8.onnx"
    quantize_onnx(source, dark, held_out, output=output, min_iou_worst=0.0, min_iou_mean=0.0, threads=2)
    assert scale_of(output, "image") == pytest.approx(0.9 / 255, rel=1e-5)


def test_images_twice_as_bright_as_those_of_the_calibration_are_not_cut_off(
    source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray
) -> None:
    dim = images * np.float32(0.5)
    dim[:, 0, 0, 0] = 1.0
    stages = quantize_onnx(source, dim, held_out, output=tmp_path / "int8.onnx", threads=2)
    assert stages[-1].parity.max_abs_diff < 1.0
    assert stages[-1].parity.logit_range > 30


def test_logits_are_not_rounded(source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray) -> None:
    output = tmp_path / "int8.onnx"
    quantize_onnx(source, images, held_out, output=output, threads=2)
    nodes = onnx.load(output).graph.node
    assert next(node for node in nodes if "logits" in node.output).op_type == "Conv"


@pytest.mark.parametrize(("ratio", "shared"), [(1.5, True), (4.0, False)])
def test_joined_tensors_share_a_scale_only_where_it_costs_little(
    tmp_path: Path, images: np.ndarray, held_out: np.ndarray, ratio: float, shared: bool
) -> None:
    weights = {"dim.weight": np.ones((1, 1, 1, 1)), "bright.weight": np.full((1, 1, 1, 1), ratio)}
    nodes = [helper.make_node("Conv", ["image", f"{name}.weight"], [name]) for name in ("dim", "bright")]
    nodes.append(helper.make_node("Concat", ["dim", "bright"], ["both"], axis=1))
    nodes.append(helper.make_node("Conv", ["both", "head.weight", "head.bias"], ["logits"]))
    weights |= {"head.weight": np.full((1, 2, 1, 1), 5.0), "head.bias": np.array([-1.5 * (1 + ratio)])}
    source, output = saved(tmp_path / "float.onnx", nodes, weights), tmp_path / "int8.onnx"
    quantize_onnx(source, images, held_out, output=output, min_iou_worst=0.0, min_iou_mean=0.0, threads=2)
    assert (scale_of(output, "dim") == scale_of(output, "bright")) is shared
    assert scale_of(output, "bright") == pytest.approx(ratio * float(images.max()) / 255, rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("joint", ["Concat", "Add"])
@pytest.mark.parametrize(
    ("activation", "bounds", "scale", "bias"), [("Relu", (), 0.8, -0.4), ("Clip", ("low", "high"), 0.4, 0.0)]
)
def test_an_activation_cuts_off_the_same_beside_a_tensor_with_another_range(
    tmp_path: Path,
    images: np.ndarray,
    held_out: np.ndarray,
    activation: str,
    bounds: tuple[str, ...],
    scale: float,
    bias: float,
    joint: str,
    engine: Engine,
) -> None:
    weights = {"low": np.array(0.0), "high": np.array(0.25), "cut.bias": np.array([-0.5]), "plain.bias": [bias]}
    weights |= {"cut.weight": np.ones((1, 1, 1, 1)), "plain.weight": np.full((1, 1, 1, 1), scale)}
    weights |= {"head.weight": np.ones((1, 1 + (joint == "Concat"), 1, 1)), "head.bias": np.array([-0.2])}
    nodes = [helper.make_node("Conv", ["image", f"{name}.weight", f"{name}.bias"], [name]) for name in ("cut", "plain")]
    nodes.append(helper.make_node(activation, ["cut", *bounds], ["within"]))
    nodes.append(helper.make_node(joint, ["within", "plain"], ["both"], **({"axis": 1} if joint == "Concat" else {})))
    nodes.append(helper.make_node("Conv", ["both", "head.weight", "head.bias"], ["logits"]))
    source, output = saved(tmp_path / "float.onnx", nodes, weights), tmp_path / "int8.onnx"
    limits: Any = {"min_iou_worst": 0.0, "min_iou_mean": 0.0}
    stages = quantize_onnx(source, images, held_out, output=output, engine=engine, **limits, threads=2)
    assert stages[-1].parity.max_abs_diff < 0.02


@needs_openvino
def test_the_file_for_openvino_rounds_once_around_a_maximum(
    tmp_path: Path, images: np.ndarray, held_out: np.ndarray
) -> None:
    weights = {"first.weight": np.ones((1, 1, 1, 1)), "first.bias": np.array([-0.3]), "head.weight": [[[[10.0]]]]}
    weights |= {"head.bias": np.array([-1.0])}
    nodes = [
        helper.make_node("Conv", ["image", "first.weight", "first.bias"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["first"]),
        helper.make_node("MaxPool", ["first"], ["pooled"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["pooled", "head.weight", "head.bias"], ["logits"]),
    ]
    source, output = saved(tmp_path / "float.onnx", nodes, weights), tmp_path / "int8.onnx"
    stages = quantize_onnx(source, images, held_out, output=output, engine="openvino", threads=2)
    assert stages[-1].parity.max_abs_diff < 0.1
    assert stages[-1].int8_layers == 2
    pool = next(node for node in onnx.load(output).graph.node if node.op_type == "MaxPool")
    assert [node.op_type for node in onnx.load(output).graph.node if pool.input[0] in node.output] == ["Conv"]


@pytest.mark.parametrize(
    ("processor", "flags", "largest"),
    [("x86_64", ("avx2", "avx512_vnni"), 127), ("x86_64", ("avx2",), 64), ("aarch64", (), 127)],
)
def test_weights_have_7_bits_on_x86_without_vnni(
    source: Path,
    tmp_path: Path,
    images: np.ndarray,
    held_out: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    processor: str,
    flags: tuple[str, ...],
    largest: int,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: flags)
    output = tmp_path / "int8.onnx"
    quantize_onnx(source, images, held_out, output=output, threads=2)
    weights = [numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer if "weight_quantized" in t.name]
    assert len(weights) == len(LAYERS)
    assert max(int(w.max()) for w in weights if w.dtype == np.int8) == largest


@pytest.mark.slow
def test_a_whole_unet_is_in_8_bits_at_any_batch_size(tiny_onnx: Path, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((6, *tiny_spec.input_shape), dtype=np.float32)
    output = tmp_path / "int8.onnx"
    stages = quantize_onnx(tiny_onnx, images, images, output=output, min_iou_worst=0.0, min_iou_mean=0.0, threads=2)
    operators = [node.op_type for node in onnx.load(output).graph.node]
    assert stages[0].int8_layers == operators.count("Conv") > 10
    assert "Relu" not in operators  # its range does their work
    assert output.stat().st_size < 0.3 * tiny_onnx.stat().st_size
    options = RuntimeOptions(threads=2, precision="int8")
    runtime = open_runtime("onnxruntime-cpu", output, spec=tiny_spec, options=options)
    np.testing.assert_allclose(runtime.infer(images)[3:4], runtime.infer(images[3:4]), atol=1e-4)


def test_the_file_for_onnxruntime_enlarges_by_copying_with_equal_results(
    tiny_onnx: Path, tiny_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).random((3, *tiny_spec.input_shape), dtype=np.float32)
    options = RuntimeOptions(threads=2, precision="int8")
    outputs = {}
    for name in ("copies", "resizes"):
        path = tmp_path / f"{name}.onnx"
        quantize_onnx(tiny_onnx, images, images, output=path, min_iou_worst=0, min_iou_mean=0, threads=2)
        outputs[name] = open_runtime("onnxruntime-cpu", path, spec=tiny_spec, options=options).infer(images)
        assert ("Resize" in {node.op_type for node in onnx.load(path).graph.node}) is (name == "resizes")
        monkeypatch.setattr("segx.export.rewrites.copy_upsampling", lambda _: None)
    np.testing.assert_array_equal(outputs["copies"], outputs["resizes"])
    # The transpositions cancel out: two are left, at the ends, whatever the number of copies.
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "copies.onnx"), settings, providers=["CPUExecutionProvider"])
    optimised = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert optimised.count("Transpose") <= 2
    assert "Concat" in optimised


@needs_openvino
def test_the_file_for_openvino_enlarges_within_its_layers(
    tiny_onnx: Path, tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).random((6, *tiny_spec.input_shape), dtype=np.float32)
    output = tmp_path / "int8.onnx"
    stages = quantize_onnx(tiny_onnx, images, images, output=output, engine="openvino", min_iou_worst=0, min_iou_mean=0)
    operators = [node.op_type for node in onnx.load(output).graph.node]
    layers = [node.op_type for node in onnx.load(tiny_onnx).graph.node].count("Conv")
    assert "Resize" not in operators
    assert "ConvTranspose" in operators
    assert stages[0].int8_layers == layers
    assert stages[-1].parity.max_abs_diff < 0.1 * stages[-1].parity.logit_range
    options = RuntimeOptions(threads=2, precision="int8")
    in_8_bits, of = (
        open_runtime("openvino-cpu", output, spec=tiny_spec, options=options).facts["int8 layers"].split(" of ")
    )
    assert int(in_8_bits) == int(of) > layers


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_sums_are_rounded_once_in_openvino(
    tiny_onnx: Path, tiny_spec: ModelSpec, tmp_path: Path, engine: Engine
) -> None:
    """ONNX Runtime computes a layer in 8 bits only where its result is rounded too."""
    images = np.random.default_rng(0).random((2, *tiny_spec.input_shape), dtype=np.float32)
    output = tmp_path / "int8.onnx"
    quantize_onnx(tiny_onnx, images, images, output=output, engine=engine, min_iou_worst=0, min_iou_mean=0, threads=2)
    nodes = onnx.load(output).graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}
    sums = [sorted(makers[name] for name in node.input) for node in nodes if node.op_type == "Add"]
    assert sums
    expected = ["DequantizeLinear"] * 2 if engine == "onnxruntime" else ["Conv", "DequantizeLinear"]
    assert all(inputs == expected for inputs in sums)


def enlarged(path: Path, *, mode: str = "nearest", scale: float = 2.0, used_twice: bool = False, pad: int = 1) -> Path:
    """A small image is enlarged, joined with the image itself, and convolved."""
    rng = np.random.default_rng(0)
    weights = {
        "small.weight": rng.standard_normal((3, 1, 2, 2)),
        "both.weight": rng.standard_normal((2, 4, 2 * pad + 1, 2 * pad + 1)),
        "both.bias": rng.standard_normal(2),
        "head.weight": rng.standard_normal((1, 5 if used_twice else 2, 1, 1)),
        "scales": np.array([1, 1, scale, scale]),
    }
    stride = int(scale)
    last = "sum"
    nodes = [
        helper.make_node("Conv", ["image", "small.weight"], ["small"], strides=[stride] * 2, kernel_shape=[2, 2]),
        helper.make_node(
            "Resize",
            ["small", "", "scales"],
            ["large"],
            mode=mode,
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("Concat", ["large", "image"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "both.weight", "both.bias"], ["sum"], pads=[pad] * 4),
    ]
    if used_twice:
        nodes.append(helper.make_node("Concat", ["sum", "large"], ["again"], axis=1))
        last = "again"
    nodes.append(helper.make_node("Conv", [last, "head.weight"], ["logits"]))
    return saved(path, nodes, weights)


def rewritten(path: Path) -> Path:
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    graph = ir.from_proto(model)
    fuse_upsampling(graph)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path.with_name("rewritten.onnx"))
    return path.with_name("rewritten.onnx")


@pytest.mark.parametrize(
    ("odd", "rewrites"),
    [
        ({}, True),
        ({"mode": "linear"}, False),
        ({"scale": 4.0}, False),
        ({"used_twice": True}, False),
        ({"pad": 2}, False),
    ],
)
def test_enlarging_within_layers_changes_no_logit(
    tmp_path: Path, images: np.ndarray, odd: dict[str, Any], rewrites: bool
) -> None:
    source = enlarged(tmp_path / "float.onnx", **odd)
    other = rewritten(source)
    operators = [node.op_type for node in onnx.load(other).graph.node]
    assert ("Resize" not in operators) is rewrites
    assert ("ConvTranspose" in operators) is rewrites
    options = RuntimeOptions(threads=2)
    before, after = (
        open_runtime("onnxruntime-cpu", path, spec=SPEC, options=options).infer(images) for path in (source, other)
    )
    np.testing.assert_allclose(after, before, atol=1e-5 * float(np.ptp(before)))


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_printed(
    tiny_onnx: Path, tiny_spec: ModelSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str], engine: Engine
) -> None:
    images = np.random.default_rng(0).random((2, *tiny_spec.input_shape), dtype=np.float32)
    quantize_onnx(tiny_onnx, images, images, output=tmp_path / "o.onnx", engine=engine, min_iou_worst=0, min_iou_mean=0)
    assert capfd.readouterr() == ("", "")


def test_what_the_quantiser_cannot_do_is_a_clear_error(
    source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise ValueError("odd\ngraph")

    monkeypatch.setattr("onnxruntime.quantization.qdq_quantizer.QDQQuantizer.quantize_model", fail)
    with pytest.raises(ExportError, match="cannot quantise the file: odd graph"):
        quantize_onnx(source, images, held_out, output=tmp_path / "o.onnx", threads=2)
    assert not (tmp_path / "o.onnx").exists()


def test_an_int8_file_is_not_quantised_again(
    source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray
) -> None:
    output = tmp_path / "int8.onnx"
    quantize_onnx(source, images, held_out, output=output, threads=2)
    with pytest.raises(ArtifactError, match="already int8"):
        quantize_onnx(output, images, held_out, output=tmp_path / "again.onnx", threads=2)
    assert not (tmp_path / "again.onnx").exists()


def test_files_without_logits_and_missing_ones_are_refused(
    tmp_path: Path, images: np.ndarray, held_out: np.ndarray
) -> None:
    masks = blur_and_cut(tmp_path / "mask.onnx", output_kind="mask")
    for path, reason in (
        (masks, "returns mask, but masks are compared by logits"),
        (tmp_path / "missing.onnx", "no ONNX file"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            quantize_onnx(path, images, held_out, output=tmp_path / "o.onnx", threads=2)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((0, 1, 32, 32), dtype=np.float32),
        np.zeros((2, 3, 32, 32), dtype=np.float32),
        np.zeros((2, 1, 32, 32), dtype=np.float64),
    ],
)
def test_images_that_do_not_fit_are_refused(source: Path, tmp_path: Path, images: np.ndarray, wrong: Any) -> None:
    output = tmp_path / "o.onnx"
    with pytest.raises(UsageError, match="calibration images"):
        quantize_onnx(source, wrong, images, output=output, threads=2)
    with pytest.raises(UsageError, match="held-out images"):
        quantize_onnx(source, images, wrong, output=output, threads=2)


def test_a_missing_engine_shows_before_anything_is_measured(
    source: Path, tmp_path: Path, images: np.ndarray, held_out: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    said: list[str] = []
    with pytest.raises(RuntimeUnavailable, match="openvino"):
        quantize_onnx(
            source, images, held_out, output=tmp_path / "o.onnx", engine="openvino", progress=Told(said.append)
        )
    assert said == []


LENIENT = {"min_iou": 0.0, "threads": 2}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    choose = np.random.default_rng(0)
    for number in range(6):
        write_png(tmp_path / "photos" / f"{number}.png", choose.integers(0, 256, size=(40, 40), dtype=np.uint8))
    return tmp_path / "photos"


def test_nothing_is_made_again_while_nothing_changed(source: Path, photos: Path, tmp_path: Path) -> None:
    def export(**changes: object) -> Derived:
        options = {"calibration": photos, "output": tmp_path / "out.onnx", **LENIENT}
        return derive(source, "int8-onnxruntime", **{**options, **changes})

    first = export()
    assert first.rebuilt
    assert read_artifact(first.path).precision == "int8"
    again = export()
    assert not again.rebuilt
    assert again.stages == first.stages
    assert export(min_iou=0.01).rebuilt  # another gate
    write_png(photos / "7.png", np.zeros((8, 8), np.uint8))
    assert export(min_iou=0.01).rebuilt  # another image
    first.path.write_bytes(b"damaged")
    assert export(min_iou=0.01).rebuilt
    assert export(min_iou=0.01, force=True).rebuilt
    assert "for onnxruntime" in to_text(export_document(again))


def test_an_existing_int8_file_is_reused_only_if_it_was_made_from_this_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path("model.onnx")
    source.write_bytes(b"weights")
    path = derived_path(source, "int8-openvino", _recipe(source, "int8-openvino"))
    assert existing_form(source, "int8-openvino") is None
    same = np.zeros((1, 2, 2), np.uint8)
    stage = Stage((), 1, compare_masks(same, same, ModelSpec(height=2, width=2), ["a"]), 8, 1, has_margin=True)

    def make(temporary: Path) -> tuple[Stage, ...]:
        temporary.write_bytes(b"in 8 bits")
        return (stage,)

    cached(path, {**_recipe(source, "int8-openvino"), "images_sha256": "any"}, make, source=source, proof=_PROOF)
    found = existing_form(source, "int8-openvino")
    assert found
    assert (found.path, found.stages, found.rebuilt) == (path, (stage,), False)
    assert existing_form(source, "int8-onnxruntime") is None
    path.write_bytes(b"tampered with")
    assert existing_form(source, "int8-openvino") is None
    path.write_bytes(b"in 8 bits")
    assert existing_form(source, "int8-openvino")
    manifest_path(path).write_text("{}")
    assert existing_form(source, "int8-openvino") is None
    source.write_bytes(b"other weights")
    assert existing_form(source, "int8-openvino") is None


def test_blank_masks_judge_no_file(tiny_checkpoint: Path, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    spec = replace(tiny_spec, threshold=0.9999999)  # which no pixel of an untrained model reaches
    source = segx.export_onnx(tiny_checkpoint, spec=spec, output=tmp_path / "blank.onnx", threads=2).artifact.path
    images = np.random.default_rng(0).random((3, *spec.input_shape), dtype=np.float32)
    output, said = tmp_path / "int8.onnx", list[str]()
    stages = quantize_onnx(source, images, images, output=output, threads=2, progress=Told(said.append))
    assert "masks not judged, as the float file's are blank in all 3 held-out images" in said[-1]
    shown = to_text(export_document(Derived(path=output, source=source, form="int8-openvino", stages=stages)))
    assert "not judged" in shown
    assert "1.0000" not in shown
    assert f"images      {spec.preprocessing}" in shown
    assert "calibrated  on 3 generated scenes" in shown
    assert "do not trust its masks before you calibrate it" in " ".join(shown.split())
    own = Derived(path=output, source=source, form="int8-openvino", stages=stages, calibration=tmp_path)
    assert "do not trust" not in to_text(export_document(own))


@pytest.mark.parametrize(("images", "held_out"), [(2, 1), (5, 3), (12, 8), (24, 8), (36, 12)])
def test_few_images_are_divided_so_that_enough_judge(tmp_path: Path, images: int, held_out: int) -> None:
    for number in range(images):
        write_png(tmp_path / f"{number:02}.png", np.full((8, 8), number, np.uint8))
    calibration, judged = calibration_images(SPEC, tmp_path)
    assert len(judged) == held_out
    assert len(calibration) == images - held_out
    assert not set(judged[:, 0, 0, 0]) & set(calibration[:, 0, 0, 0])


def test_a_judgement_on_few_images_is_said_to_be_one(source: Path, tmp_path: Path, images: np.ndarray) -> None:
    output = tmp_path / "int8.onnx"
    held_out = scenes(17, seed=8)
    for judges, warned in ((1, True), (6, False), (17, False)):
        stages = quantize_onnx(source, images, held_out[:judges], output=output, threads=2)
        made = Derived(path=output, source=source, form="int8-onnxruntime", stages=stages, calibration=tmp_path)
        shown = " ".join(to_text(export_document(made)).split())
        told = "Too few images to judge int8: its layers were chosen by 1 held-out image, and at least 6 are needed."
        assert (told in shown) is warned
        assert f"Masks of {counted(judges, 'held-out image')}" in shown
        assert ("and their mirror images" in shown) is (judges <= 16)


def test_one_image_cannot_both_calibrate_and_judge(tiny_onnx: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "one" / "a.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UsageError, match="one image"):
        derive(tiny_onnx, "int8-onnxruntime", calibration=tmp_path / "one", output=tmp_path / "out.onnx")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., segx.results.types.Results]:
    monkeypatch.chdir(tmp_path)
    return lambda *model, **options: quick_bench(*model, **{"num_images": 2, "batch_sizes": (1,), **options})


def test_the_bench_makes_the_int8_file_that_a_runtime_takes(
    bench: Callable[..., segx.results.types.Results], tiny_onnx: Path, photos: Path
) -> None:
    """An untrained model's masks are all noise: judged by no gate."""
    results = bench(
        model=tiny_onnx, runtimes=["onnxruntime-cpu"], precisions=("fp32", "int8"), calibration=photos, min_iou=0.0
    )
    by_precision = {cell.precision: cell for cell in results.cells}
    ((form, made),) = results.model.derived.items()
    assert form == "int8-onnxruntime"
    assert Path(made.path).name.startswith(f"{tiny_onnx.stem}-int8-onnxruntime-")
    assert made.sha256 == sha256_of(Path(made.path))
    assert by_precision["int8"].parity
    assert by_precision["int8"].parity.max_abs_diff > by_precision["fp32"].parity.max_abs_diff


def test_int8_is_calibrated_on_images_that_are_not_measured(
    bench: Callable[..., segx.results.types.Results], tiny_onnx: Path, photos: Path, tmp_path: Path
) -> None:
    own = {"images": photos, "num_images": 64, "runtimes": ["onnxruntime-cpu"]}
    results = bench(model=tiny_onnx, precisions=("fp32", "int8"), min_iou=0, **own)
    listed = Path(results.options.calibration or "")
    assert listed.parent == tmp_path / "artifacts"
    assert listed.read_text().splitlines() == [str(photos / name) for name in ("2.png", "5.png")]
    assert results.inputs.names == ("0.png", "1.png", "3.png", "4.png")
    again = derive(Path(results.model.onnx or ""), "int8-onnxruntime", calibration=listed, min_iou=0)
    assert not again.rebuilt
    assert len(bench(model=tiny_onnx, precisions=("fp32",), **own).inputs.names) == 6


def test_wrong_usage_leaves_no_list_of_calibration_images(
    bench: Callable[..., segx.results.types.Results], photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="number of images 0"):
        bench("w.pth", images=photos, num_images=0, precisions=("int8",))
    assert not (tmp_path / "artifacts").exists()


def test_what_cannot_be_quantised_is_a_row_and_the_others_go_on(
    bench: Callable[..., segx.results.types.Results], plain_onnx: Path, script: Callable[..., None]
) -> None:
    script()
    results = bench(model=plain_onnx, runtimes=["fake", "onnxruntime-cpu"], precisions=("fp32", "int8"))
    rows = {(cell.runtime, cell.precision): cell.status for cell in results.cells}
    assert rows["fake", "fp32"] == rows["onnxruntime-cpu", "fp32"] == "ok"
    assert len(rows) == 4


def test_an_int8_file_is_no_start_for_a_bench(
    bench: Callable[..., segx.results.types.Results], source: Path, photos: Path, tmp_path: Path
) -> None:
    derive(source, "int8-onnxruntime", calibration=photos, output=tmp_path / "int8.onnx", **LENIENT)
    with pytest.raises(ArtifactError, match="is already int8"):
        bench(model=tmp_path / "int8.onnx", runtimes=["onnxruntime-cpu"])


def test_a_model_without_layers_for_8_bits_is_refused(plain_onnx: Path, tmp_path: Path) -> None:
    images = np.zeros((2, *read_artifact(plain_onnx).spec.input_shape), np.float32)
    with pytest.raises(ExportError, match="has no Conv with fixed weights"):
        quantize_onnx(plain_onnx, images, images, output=tmp_path / "int8.onnx", threads=1)


@few_or_many
def test_damaged_calibration_lists_are_errors_of_one_line(tmp_path: Path, tiny_spec: ModelSpec, count: int) -> None:
    images = [tmp_path / f"{number}.png" for number in range(3)]
    for path in images:
        write_png(path, np.zeros((8, 8), dtype=np.uint8))
    path = tmp_path / "list.txt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        calibration_images(tiny_spec, path)

    text = "\n".join(map(str, images))
    read_all(iter([f"\ufeff{text}\r\n".encode()]), read)
    read_all(damaged(text.encode(), count), read)


@pytest.mark.parametrize("text", ["{0}\n{0}\n", "{0}", "", " \n\n", "{0}\n/dev/zero", "{0}\n\0"])
def test_lists_that_cannot_be_calibrated_on_are_refused(tmp_path: Path, tiny_spec: ModelSpec, text: str) -> None:
    write_png(tmp_path / "a.png", np.zeros((8, 8), dtype=np.uint8))
    (tmp_path / "list.txt").write_text(text.format(tmp_path / "a.png"))
    with pytest.raises(SegxError):
        calibration_images(tiny_spec, tmp_path / "list.txt")


def test_a_list_in_a_pipe_is_refused(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(ImageError, match="not a regular file"):
        calibration_images(tiny_spec, tmp_path / "list.txt")
