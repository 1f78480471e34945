"""Files made of an exported one for a precision or an engine, and which variant takes which."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import segx
from segx.errors import ArtifactError, UsageError
from segx.export import Derived, ImportedModel, compare_files, default_output, export_file, read_artifact, variants
from segx.export.rewrites import rewrite_for_openvino
from segx.export.variants import derive, existing_form, form_of
from segx.model.checkpoint import checkpoint_digest
from segx.model.spec import ModelSpec
from segx.reporting.command_documents import export_json
from segx.runtimes import RUNTIMES, RuntimeOptions, Variant, open_runtime, precision_support
from segx.system.files import sha256_of
from segx.system.progress import Told
from tests.benching import quick_bench


def test_every_variant_of_the_table_has_a_form() -> None:
    forms = {
        str(Variant(info.name, precision)): form_of(Variant(info.name, precision))
        for info in RUNTIMES.values()
        for precision in info.precisions
    }
    assert {form for name, form in forms.items() if name.startswith(("pytorch", "torch"))} == {"checkpoint"}
    assert forms["onnxruntime-cpu:fp32"] == forms["tensorrt:tf32"] == "onnx"
    assert forms["openvino-cpu:fp32"] == forms["openvino-cpu-throughput:fp32"] == "openvino"
    assert forms["openvino-cpu:fp16"] == forms["openvino-cpu:bf16"] == "openvino"
    assert forms["onnxruntime-cuda:fp16"] == forms["tensorrt:fp16"] == "fp16"
    assert forms["onnxruntime-tensorrt:int8"] == "int8-tensorrt"


def test_the_file_for_openvino_gives_the_same_masks(tiny_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuned.onnx"
    rewrite_for_openvino(tiny_onnx, path)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert "ConvTranspose" in operators
    assert "Resize" not in operators
    assert read_artifact(path).spec == read_artifact(tiny_onnx).spec
    parity = compare_files(tiny_onnx, path)
    assert parity.flipped_pixels == 0
    assert 0 < parity.relative_diff < 1e-5


def test_only_the_float_file_can_be_rewritten(tiny_onnx: Path, tmp_path: Path) -> None:
    half = derive(tiny_onnx, "fp16", output=tmp_path / "half.onnx").path
    assert compare_files(tiny_onnx, half).flipped_share < 0.01
    with pytest.raises(ArtifactError, match="fp16"):
        rewrite_for_openvino(half, tmp_path / "tuned.onnx")
    # The other way round it can: half precision of what was rewritten.
    tuned = derive(tiny_onnx, "openvino", output=tmp_path / "tuned.onnx")
    assert derive(tuned.path, "fp16", output=tmp_path / "both.onnx").path.is_file()


def test_a_file_for_tensorrt_rounds_about_zero_and_leaves_biases_in_float(tiny_onnx: Path, tmp_path: Path) -> None:
    made = derive(tiny_onnx, "int8-tensorrt", output=tmp_path / "int8.onnx", min_iou=0.0, threads=2)
    graph = onnx.load(made.path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rounding = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert rounding
    for node in rounding:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert all(constants[node.input[2]].dtype == np.float32 for node in convs if len(node.input) > 2)


def test_a_runtime_refuses_a_file_of_another_precision(tiny_onnx: Path, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    half = derive(tiny_onnx, "fp16", output=tmp_path / "half.onnx").path
    with pytest.raises(ArtifactError, match="computes in fp16, not in fp32"):
        open_runtime("onnxruntime-cpu", half, spec=tiny_spec, options=RuntimeOptions(threads=1))
    with pytest.raises(ArtifactError, match="computes in fp32, not in int8"):
        open_runtime("onnxruntime-cpu", tiny_onnx, spec=tiny_spec, options=RuntimeOptions(threads=1, precision="int8"))
    with pytest.raises(UsageError, match="does not compute in bf16"):
        open_runtime("onnxruntime-cpu", tiny_onnx, spec=tiny_spec, options=RuntimeOptions(threads=1, precision="bf16"))


@pytest.fixture(scope="module")
def dynamic(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> segx.export.Exported:
    path = tmp_path_factory.mktemp("dynamic") / "dynamic.onnx"
    return segx.export_onnx(tiny_checkpoint, output=path, dynamic_size=True, threads=2)


def test_symbolic_sizes_are_proven_at_two_shapes(dynamic: segx.export.Exported) -> None:
    assert dynamic.artifact.size_multiple == 8
    assert read_artifact(dynamic.artifact.path) == dynamic.artifact
    assert {(row.height, row.width) for row in dynamic.proof.rows} == {(32, 32), (40, 56)}
    axes = onnx.load(dynamic.artifact.path).graph.input[0].type.tensor_type.shape.dim
    assert [bool(axis.dim_param) for axis in axes] == [True, False, True, True]


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino-cpu", "openvino-cpu-throughput"])
def test_a_file_with_symbolic_sizes_takes_other_sizes(
    dynamic: segx.export.Exported, tiny_checkpoint: Path, tiny_spec: ModelSpec, runtime: str
) -> None:
    spec = dataclasses.replace(tiny_spec, height=24, width=48)
    assert dynamic.artifact.takes(spec)
    images = np.random.default_rng(0).random((2, *spec.input_shape), dtype=np.float32)
    opened = [
        open_runtime(name, path, spec=spec, options=RuntimeOptions(threads=2)).infer(images)
        for name, path in ((runtime, dynamic.artifact.path), ("pytorch-cpu", tiny_checkpoint))
    ]
    np.testing.assert_allclose(*opened, atol=1e-4)


def test_symbolic_sizes_are_multiples(dynamic: segx.export.Exported, tiny_onnx: Path, tiny_spec: ModelSpec) -> None:
    assert not dynamic.artifact.takes(dataclasses.replace(tiny_spec, height=20))
    assert not dynamic.artifact.takes(dataclasses.replace(tiny_spec, threshold=0.4))
    assert not read_artifact(tiny_onnx).takes(dataclasses.replace(tiny_spec, height=64))
    with pytest.raises(ArtifactError, match="without --input-size 20x32") as caught:
        segx.benchmark(model=dynamic.artifact.path, spec=dataclasses.replace(tiny_spec, width=20), runtimes=["fake"])
    assert "multiples of 8" in caught.value.hint


@pytest.mark.slow
def test_all_precisions_of_all_cpu_engines(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [i.name for i in RUNTIMES.values() if i.device == "cpu" and not i.compiles and not i.in_browser]
    results = quick_bench(
        tiny_checkpoint, runtimes=names, precisions=["all"], batch_sizes=[2], min_iou=0.0, max_flips=1.0, num_images=2
    )
    measured = {str(cell.variant) for cell in results.cells if cell.measured}
    offered = {name: precision_support(RUNTIMES[name]).items() for name in names}
    emulated = {str(Variant(name, p)) for name, each in offered.items() for p, found in each if found == "emulated"}
    wanted = {str(Variant(name, p)) for name in names for p in RUNTIMES[name].precisions}
    assert measured == wanted - {variant for variant in emulated if not variant.endswith(":int8")}
    names = [re.sub("[0-9a-f]{8}", "KEY", Path(made.path).name) for made in results.model.derived.values()]
    assert sorted(names) == [
        "tiny-32x32-KEY-int8-onnxruntime-KEY.onnx",
        "tiny-32x32-KEY-int8-openvino-KEY.onnx",
        "tiny-32x32-KEY-openvino-KEY.onnx",
    ]


def test_two_models_of_one_file_name_share_no_file(
    plain_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = Path("other", plain_onnx.name)
    other.parent.mkdir()
    model = onnx.load(plain_onnx)
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array(-20.0, np.float32), "scale"))
    onnx.save(model, other)
    for form in ("openvino", "fp16"):
        first, second = (derive(source, form).path for source in (plain_onnx, other))
        assert first != second
        found = existing_form(plain_onnx, form)
        assert found is not None
        assert found.path == first


def test_a_form_is_made_once_until_something_changes(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for form in ("openvino", "fp16"):
        assert existing_form(tiny_onnx, form) is None
        made = derive(tiny_onnx, form)
        assert made.rebuilt
        up_to_date = dataclasses.replace(made, rebuilt=False)
        assert existing_form(tiny_onnx, form) == up_to_date
        with monkeypatch.context() as patched:
            patched.setattr(variants, "_rewrite", lambda *_, **__: pytest.fail("made again"))
            assert derive(tiny_onnx, form) == up_to_date
        made.path.write_bytes(b"damaged")
        assert existing_form(tiny_onnx, form) is None
        assert derive(tiny_onnx, form) == made
        onnx.checker.check_model(onnx.load(made.path))


def test_int8_is_made_again_where_the_cpu_takes_other_weights(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for narrow in (True, False):
        monkeypatch.setattr("segx.export.variants.needs_narrow_weights", lambda narrow=narrow: narrow)
        monkeypatch.setattr("segx.export.int8.needs_narrow_weights", lambda narrow=narrow: narrow)
        assert existing_form(tiny_onnx, "int8-onnxruntime") is None
        made = derive(tiny_onnx, "int8-onnxruntime", min_iou=0.0)
        assert made.rebuilt
        (facts,) = (each.value for each in onnx.load(made.path).metadata_props if each.key == "segx.quantization")
        assert json.loads(facts)["weight_bits"] == (7 if narrow else 8)
        assert existing_form(tiny_onnx, "int8-onnxruntime")


def test_one_call_exports_and_derives(
    tiny_checkpoint: Path, tiny_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    made = export_file(tiny_checkpoint, form="openvino", output=Path("o.onnx"), threads=2, progress=Told(said.append))
    assert isinstance(made, Derived)
    assert (made.path, made.rebuilt) == (Path("o.onnx"), True)
    assert made.source == default_output(tiny_checkpoint, checkpoint_digest(tiny_checkpoint), tiny_spec)
    assert made.parity
    assert made.parity.flipped_pixels == 0
    assert said[-2:] == ["making the openvino file", "comparing its masks with those of the exported file"]
    told = json.loads(export_json(made))
    assert (told["path"], told["flipped_pixels"]) == ("o.onnx", 0)
    assert told["recipe"]["source_sha256"] == sha256_of(made.source)
    imported = export_file(None, model=made.source)
    assert isinstance(imported, ImportedModel)
    told = json.loads(export_json(imported))
    assert (told["path"], told["artifact_sha256"]) == (str(made.source), sha256_of(made.source))
    for force in (False, True):
        again = export_file(None, model=made.source, form="openvino", output=made.path, force=force)
        assert isinstance(again, Derived)
        assert again.rebuilt is force
    with pytest.raises(UsageError, match="no model given"):
        export_file(None)
