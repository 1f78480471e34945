"""fp16 files: types and axes, numbers, what is refused; and the layer for which fp16 is too small, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segx.errors import ArtifactError, ExportError
from segx.export import read_artifact
from segx.export.fp16 import PRECISION_KEY, BadLayer, convert_finite, convert_fp16, first_bad_layer
from segx.model.spec import ModelSpec
from tests.builders import exported_onnx

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


@pytest.fixture(scope="module")
def tiny_fp16(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "tiny-fp16.onnx"
    convert_fp16(tiny_onnx, path)
    return path


@pytest.fixture
def images(tiny_spec: ModelSpec) -> np.ndarray:
    return np.random.default_rng(0).random((3, *tiny_spec.input_shape), dtype=np.float32)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a graph from "image" to "logits", both (batch, 1, 4, 4), and check that it is a valid one."""

    def write(nodes: list[onnx.NodeProto], **weights: Any) -> Path:
        return exported_onnx(tmp_path / "source.onnx", ModelSpec(height=4, width=4), nodes, weights)

    return write


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"the_{op}_{outputs}", **attributes)


def run(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def f32(value: float) -> np.ndarray:
    return np.float32(value)


def test_input_and_output_stay_float32_with_a_symbolic_batch(tiny_fp16: Path) -> None:
    graph = onnx.load(tiny_fp16).graph
    (image,), (logits,) = graph.input, graph.output
    assert (image.name, logits.name) == ("image", "logits")
    assert [value.type.tensor_type.elem_type for value in (image, logits)] == [FLOAT, FLOAT]
    batch = image.type.tensor_type.shape.dim[0].dim_param
    assert batch
    assert logits.type.tensor_type.shape.dim[0].dim_param == batch


def test_all_is_fp16_inside_but_the_scales_of_resize_with_one_cast_at_each_end(
    tiny_onnx: Path, tiny_fp16: Path
) -> None:
    before, after = onnx.load(tiny_onnx).graph, onnx.load(tiny_fp16).graph
    ops = [n.op_type for n in after.node]
    assert ops == ["Cast", *(n.op_type for n in before.node), "Cast"]
    scales = {n.input[2] for n in after.node if n.op_type == "Resize"}
    assert scales
    assert {t.name: t.data_type for t in after.initializer} == {
        t.name: FLOAT if t.name in scales else HALF for t in after.initializer
    }
    assert tiny_fp16.stat().st_size < 0.6 * tiny_onnx.stat().st_size


@pytest.mark.parametrize("size", [1, 3])
def test_logits_are_nearly_those_of_the_float32_file(
    tiny_onnx: Path, tiny_fp16: Path, images: np.ndarray, size: int
) -> None:
    expected, got = run(tiny_onnx, images[:size]), run(tiny_fp16, images[:size])
    assert got.dtype == np.float32
    difference = np.abs(expected - got).max() / max(1.0, np.ptp(expected))
    assert 0 < difference < 5e-3
    assert first_bad_layer(tiny_fp16, images[:size]) is None


def test_it_still_says_what_it_is_and_its_precision(tiny_onnx: Path, tiny_fp16: Path, tiny_spec: ModelSpec) -> None:
    assert read_artifact(tiny_fp16).spec == tiny_spec
    assert read_artifact(tiny_fp16).weights_sha256 == read_artifact(tiny_onnx).weights_sha256
    assert {e.key: e.value for e in onnx.load(tiny_fp16).metadata_props}[PRECISION_KEY] == "fp16"


def test_nodes_named_to_be_kept_compute_in_float32(tiny_onnx: Path, tmp_path: Path, images: np.ndarray) -> None:
    kept = [n for n in onnx.load(tiny_onnx).graph.node if n.op_type == "Conv"][2].name
    convert_fp16(tiny_onnx, tmp_path / "m.onnx", keep_fp32=[kept])
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx"), strict_mode=True).graph
    conv = next(n for n in graph.node if n.name == kept)
    weights = {t.name: t.data_type for t in graph.initializer}
    assert {weights[name] for name in conv.input[1:]} == {FLOAT}
    assert [n.op_type for n in graph.node].count("Cast") == 4
    assert np.isfinite(run(tmp_path / "m.onnx", images)).all()


def test_an_operator_without_fp16_gets_casts_around_it(written: Callable[..., Path], tmp_path: Path) -> None:
    # Range takes float32 and no fp16; its result is added to what can be fp16.
    source = written(
        [
            node("Range", "zero four one", "ramp"),
            node("Cast", "four", "four_as_int", to=TensorProto.INT64),
            node("Cast", "four_as_int", "four_again", to=FLOAT),
            node("Div", "ramp four_again", "part"),
            node("Add", "image part", "logits"),
        ],
        zero=f32(0),
        one=f32(1),
        four=f32(4),
    )
    convert_fp16(source, tmp_path / "m.onnx")
    images = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
    expected = images + np.arange(4, dtype=np.float32) / 4
    np.testing.assert_allclose(run(tmp_path / "m.onnx", images), expected, atol=2e-3)


def test_constants_in_nodes_are_converted_and_a_shared_one_is_kept_in_both_types(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    value = helper.make_tensor("value", FLOAT, [], [3.0])
    source = written(
        [
            node("Constant", "", "three", value=value),
            node("Mul", "image three", "tripled"),
            node("Mul", "tripled half", "scaled"),
            node("Range", "zero half half", "ramp"),
            node("Add", "scaled ramp", "logits"),
        ],
        zero=f32(0),
        half=f32(0.5),
    )
    convert_fp16(source, tmp_path / "m.onnx")
    types = [t.data_type for t in onnx.load(tmp_path / "m.onnx").graph.initializer if t.name.startswith("half")]
    assert sorted(types) == sorted([FLOAT, HALF])
    images = np.ones((2, 1, 4, 4), dtype=np.float32)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", images), images * 1.5)


@pytest.mark.parametrize(
    ("factors", "wanted"),
    [
        ((2.0, 3.0), None),
        # 300 * 300 is beyond 65504: the second product, not those that carry it on.
        ((300.0, 300.0), BadLayer("the_Mul_b", "Mul", "overflow")),
    ],
)
def test_the_layer_that_overflows_is_named_first(
    written: Callable[..., Path], tmp_path: Path, factors: tuple[float, float], wanted: BadLayer | None
) -> None:
    source = written(
        [
            node("Mul", "image first", "a"),
            node("Mul", "a second", "b"),
            node("Sub", "b b", "c"),  # inf - inf is NaN
            node("Add", "c image", "logits"),
        ],
        first=f32(factors[0]),
        second=f32(factors[1]),
    )
    images = np.ones((2, 1, 4, 4), dtype=np.float32)
    convert_fp16(source, tmp_path / "m.onnx")
    assert first_bad_layer(source, images) is None
    assert first_bad_layer(tmp_path / "m.onnx", images) == wanted
    if wanted:
        assert str(wanted) == "overflow in the_Mul_b (Mul)"
        convert_fp16(source, tmp_path / "m.onnx", keep_fp32=["the_Mul_b", "the_Sub_c"])
        assert first_bad_layer(tmp_path / "m.onnx", images) is None


def test_a_layer_that_gives_nan_is_told_from_one_that_overflows(written: Callable[..., Path]) -> None:
    source = written([node("Log", "image", "a"), node("Relu", "a", "logits")])
    images = np.full((1, 1, 4, 4), -1.0, dtype=np.float32)
    assert first_bad_layer(source, images) == BadLayer("the_Log_a", "Log", "nan")


def test_an_older_file_stays_if_a_new_one_fails(written: Callable[..., Path], tmp_path: Path) -> None:
    source = written([node("Log", "image", "a"), node("Relu", "a", "logits")])
    (tmp_path / "m.onnx").write_text("older")
    with pytest.raises(ExportError, match="fp16 is too small for this model: nan in the_Log_a"):
        convert_finite(source, np.full((1, 1, 4, 4), -1.0, dtype=np.float32), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "source.onnx"]


def test_the_earliest_layer_counts_whichever_image_it_comes_from(written: Callable[..., Path]) -> None:
    source = written([node("Log", "image", "a"), node("Sqrt", "a", "logits")])
    images = np.stack([np.full((1, 4, 4), value, dtype=np.float32) for value in (0.5, -1.0, 2.0)])
    assert first_bad_layer(source, images[:1]) == BadLayer("the_Sqrt_logits", "Sqrt", "nan")
    for order in ([0, 1, 2], [1, 0, 2]):
        assert first_bad_layer(source, images[order]) == BadLayer("the_Log_a", "Log", "nan")
    assert first_bad_layer(source, images[2:]) is None


def test_a_weight_that_does_not_fit_is_named_and_nothing_is_written(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    source = written([node("Mul", "image huge", "logits")], huge=f32(1e5))
    with pytest.raises(ExportError, match="huge holds 1e\\+05") as caught:
        convert_fp16(source, tmp_path / "m.onnx")
    assert "bf16" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["source.onnx"]


def test_names_that_are_no_nodes_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'nowhere'"):
        convert_fp16(tiny_onnx, tmp_path / "m.onnx", keep_fp32=["nowhere"])


def test_operators_of_other_domains_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match=r"not an ONNX operator|cannot be converted"):
        convert_fp16(tmp_path / "foreign.onnx", tmp_path / "m.onnx")


def test_branches_stay_in_float32(written: Callable[..., Path], tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["double"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", FLOAT, ["batch", 1, 4, 4])],
    )
    nodes = [
        node("Add", "image image", "double"),
        node("If", "yes", "chosen", then_branch=branch, else_branch=branch),
        node("Mul", "chosen chosen", "logits"),
    ]
    convert_fp16(written(nodes, yes=np.bool_(1)), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    assert {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}["chosen"] == FLOAT
    image = np.array([[[[1.5] * 4] * 4]], dtype=np.float32)
    np.testing.assert_array_equal(run(tmp_path / "m.onnx", image), np.full_like(image, 9.0))


@pytest.mark.parametrize("content", [None, "junk"])
def test_files_that_are_missing_or_no_onnx_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "m.onnx"
    if content:
        path.write_text(content)
    with pytest.raises(ArtifactError):
        convert_fp16(path, tmp_path / "out.onnx")
    with pytest.raises(ArtifactError):
        first_bad_layer(path, np.zeros((1, 1, 4, 4), dtype=np.float32))


def test_images_of_another_size_are_a_clear_error(tiny_fp16: Path) -> None:
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot run"):
        first_bad_layer(tiny_fp16, np.zeros((1, 3, 8, 8), dtype=np.float32))


def test_an_export_says_that_it_is_fp16_and_is_finite(tiny_onnx: Path, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    batch = np.random.default_rng(0).random((2, *tiny_spec.input_shape), dtype=np.float32)
    made = tmp_path / "half.onnx"
    convert_finite(tiny_onnx, batch, made)
    assert read_artifact(made).precision == "fp16"
    assert first_bad_layer(made, batch) is None
    assert made.stat().st_size < 0.6 * tiny_onnx.stat().st_size
