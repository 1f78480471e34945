"""Checkpoint to ONNX: what the file holds, when it is rebuilt, and that a failed proof leaves nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segx
from segx.errors import ArtifactError, ExportError, InferenceError, OutOfMemory, SegxError, UsageError
from segx.export import Artifact, default_output, onnx, read_artifact, verify
from segx.masks.preprocess import masks_from_logits
from segx.model.spec import ModelSpec
from segx.reporting.command_documents import export_document
from segx.reporting.renderers.text import to_text
from segx.runtimes import RuntimeOptions, open_runtime
from segx.system.derived import manifest_path


def run_onnx(path: Path, spec: ModelSpec, images: np.ndarray) -> np.ndarray:
    runtime = open_runtime("onnxruntime-cpu", path, spec=spec, options=RuntimeOptions(threads=2))
    return runtime.infer(images)


@pytest.fixture(scope="module")
def images(tiny_spec: ModelSpec) -> np.ndarray:
    return np.random.default_rng(0).random((7, *tiny_spec.input_shape), dtype=np.float32)


@pytest.fixture(scope="module")
def logits(tiny_spec: ModelSpec, tiny_checkpoint: Path, images: np.ndarray) -> np.ndarray:
    runtime = open_runtime("pytorch-cpu", tiny_checkpoint, spec=tiny_spec, options=RuntimeOptions(threads=2))
    return runtime.infer(images)


def test_the_file_is_self_contained_with_a_symbolic_batch_and_no_batch_norm(tiny_onnx: Path) -> None:
    import onnx

    model = onnx.load(tiny_onnx, load_external_data=False)
    (image,), (output,) = model.graph.input, model.graph.output
    assert (image.name, output.name) == ("image", "logits")
    batch = image.type.tensor_type.shape.dim[0].dim_param
    assert batch
    assert output.type.tensor_type.shape.dim[0].dim_param == batch
    assert all(node.op_type != "BatchNormalization" for node in model.graph.node)
    assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
    # No external data, no leftovers: the file, its manifest, and nothing else.
    assert sorted(p.name for p in tiny_onnx.parent.iterdir()) == [tiny_onnx.name, f"{tiny_onnx.name}.json"]


def test_the_file_alone_says_what_it_is(tiny_onnx: Path, tiny_spec: ModelSpec, tiny_checkpoint: Path) -> None:
    artifact = read_artifact(tiny_onnx)
    assert artifact.spec == tiny_spec
    assert artifact.output_kind == "logits"
    assert artifact.checkpoint == tiny_checkpoint.name
    assert len(artifact.weights_sha256) == 64
    assert {"segx", "torch", "onnx"} <= set(artifact.versions)


def test_an_unknown_kind_of_output_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'masks' is not known") as caught:
        segx.export_onnx(tmp_path / "none.pth", output_kind="masks")  # type: ignore[arg-type]
    assert "mask" in caught.value.hint


def test_the_proof_is_in_the_manifest(tiny_onnx: Path) -> None:
    manifest = json.loads(manifest_path(tiny_onnx).read_text())
    assert [row["batch_size"] for row in manifest["proof"]["rows"]] == [1, 4]
    assert all(row["parity"]["flipped_pixels"] == 0 for row in manifest["proof"]["rows"])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_logits_are_the_models(
    tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray, logits: np.ndarray, size: int
) -> None:
    np.testing.assert_allclose(run_onnx(tiny_onnx, tiny_spec, images[:size]), logits[:size], atol=1e-5)


def test_probabilities_and_masks_are_the_models(
    tiny_checkpoint: Path, tiny_spec: ModelSpec, tmp_path: Path, images: np.ndarray, logits: np.ndarray
) -> None:
    path = tmp_path / "p.onnx"
    segx.export_onnx(tiny_checkpoint, output=path, output_kind="probabilities", threads=2)
    np.testing.assert_allclose(run_onnx(path, tiny_spec, images), 1 / (1 + np.exp(-logits)), atol=1e-5)
    path = tmp_path / "m.onnx"
    exported = segx.export_onnx(tiny_checkpoint, output=path, output_kind="mask", threads=2)
    masks = run_onnx(path, tiny_spec, images)
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks, masks_from_logits(logits, tiny_spec))
    assert "pixels differ, logits by at most" in " ".join(to_text(export_document(exported)).split())


@pytest.mark.slow
def test_several_classes_and_colour(tmp_path: Path) -> None:
    import torch

    from segx.model.smp import build_module

    spec = ModelSpec(arch="Unet", encoder_name="resnet18", in_channels=3, classes=4, height=32, width=64, arguments={})
    torch.manual_seed(0)
    torch.save(build_module(spec).state_dict(), tmp_path / "unet.pth")
    for kind, channels in (("logits", (4, 32, 64)), ("mask", (32, 64)), ("probabilities", (4, 32, 64))):
        path = tmp_path / f"{kind}.onnx"
        segx.export_onnx(tmp_path / "unet.pth", spec=spec, output=path, output_kind=kind, threads=2)
        got = run_onnx(path, spec, np.zeros((3, 3, 32, 64), dtype=np.float32))
        assert got.shape == (3, *channels)
        if kind == "probabilities":
            np.testing.assert_allclose(got.sum(axis=1), 1.0, atol=1e-5)


@pytest.fixture
def copied(tiny_onnx: Path, tmp_path: Path) -> Path:
    path = tmp_path / tiny_onnx.name
    shutil.copy(tiny_onnx, path)
    shutil.copy(manifest_path(tiny_onnx), manifest_path(path))
    return path


@pytest.fixture
def exports(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths that the exporter was run for; it copies the tiny file's graph here, which takes no time."""
    from onnx import helper, load, save

    ran: list[Path] = []

    def write(_: Any, artifact: Artifact) -> None:
        ran.append(artifact.path)
        model = load(tiny_onnx)
        helper.set_model_props(model, artifact.metadata())
        save(model, artifact.path)

    monkeypatch.setattr(onnx, "_write_onnx", write)
    return ran


def test_nothing_is_rebuilt_when_nothing_changed(copied: Path, tiny_checkpoint: Path, exports: list[Path]) -> None:
    before = copied.stat().st_mtime_ns
    exported = segx.export_onnx(tiny_checkpoint, output=copied)
    assert not exported.rebuilt
    assert exports == []
    assert copied.stat().st_mtime_ns == before
    assert [row.batch_size for row in exported.proof.rows] == [1, 4]


@pytest.mark.parametrize("change", ["spec", "force", "damage"])
def test_it_is_rebuilt_when_something_changed(
    copied: Path, tiny_checkpoint: Path, tiny_spec: ModelSpec, exports: list[Path], change: str
) -> None:
    from dataclasses import replace

    if change == "damage":
        copied.write_bytes(copied.read_bytes()[:-1])
    spec = replace(tiny_spec, threshold=0.4) if change == "spec" else tiny_spec
    exported = segx.export_onnx(tiny_checkpoint, spec=spec, output=copied, force=change == "force", threads=2)
    assert exported.rebuilt
    assert len(exports) == 1
    assert read_artifact(copied).spec == spec


@pytest.mark.usefixtures("exports")
def test_a_proof_does_not_fail_on_what_rounding_does_to_empty_masks(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pixel that lies on the threshold may fall on either side of it."""

    def at_threshold(images: np.ndarray, offset: float) -> np.ndarray:
        logits = np.full((len(images), 1, *images.shape[2:]), -8.0, np.float32)
        logits[:, 0, 0, 0] = offset
        return logits

    class Exported:
        def infer(self, images: np.ndarray) -> np.ndarray:
            return at_threshold(images, 1e-5)

        def close(self) -> None:
            pass

    monkeypatch.setattr(onnx, "_run", lambda _, images: at_threshold(images, -1e-5))
    monkeypatch.setattr(verify, "open_runtime", lambda *_, **__: Exported())
    exported = segx.export_onnx(tiny_checkpoint, output=tmp_path / "a.onnx", threads=2)
    assert {row.parity.flipped_pixels for row in exported.proof.rows} == {1, 4}


@pytest.mark.usefixtures("exports")
def test_a_failed_proof_leaves_no_file(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: Any, images: np.ndarray) -> np.ndarray:
        return really_run(module, images) + np.float32(0.01)

    really_run = onnx._run
    monkeypatch.setattr(onnx, "_run", wrong)
    with pytest.raises(ExportError, match="differs from PyTorch at batch 1"):
        segx.export_onnx(tiny_checkpoint, output=tmp_path / "m.onnx", threads=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("exports")
@pytest.mark.parametrize("failure", ["other logits", "no logits", "no memory"])
def test_a_failed_proof_of_symbolic_sizes_says_that_they_are_the_reason(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    class Exported:
        def infer(self, images: np.ndarray) -> np.ndarray:
            if failure == "other logits":
                return np.zeros((len(images), 1, *images.shape[2:]), np.float32)
            raise (InferenceError if failure == "no logits" else OutOfMemory)("index out of bounds", hint="again")

        def close(self) -> None:
            pass

    monkeypatch.setattr(verify, "open_runtime", lambda *_, **__: Exported())
    kind: type[SegxError] = OutOfMemory if failure == "no memory" else ExportError
    with pytest.raises(kind) as caught:
        segx.export_onnx(tiny_checkpoint, output=tmp_path / "m.onnx", dynamic_size=True, threads=2)
    if failure != "no memory":
        reason = "differs from PyTorch at batch 1, 32x32" if failure == "other logits" else "index out of bounds"
        assert caught.value.message.startswith("UnetPlusPlus does not export with symbolic sizes: ")
        assert reason in caught.value.message
        assert caught.value.hint == "leave --dynamic-size out"


def test_what_torch_cannot_export_is_told_in_its_own_words(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    import torch

    artifact = Artifact(
        path=tmp_path / "m.onnx",
        spec=tiny_spec,
        output_kind="logits",
        checkpoint="tiny.safetensors",
        weights_sha256="",
        versions={},
    )
    with pytest.raises(ExportError) as caught:
        onnx._write_onnx(torch.nn.MaxPool2d(64), artifact)
    assert caught.value.message.startswith("torch.onnx cannot export UnetPlusPlus: Given input size: (1x32x32). ")


def test_a_failed_export_leaves_the_old_file_alone(
    copied: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ExportError("the exporter fails", hint="none")

    monkeypatch.setattr(onnx, "_write_onnx", fail)
    before = copied.read_bytes()
    with pytest.raises(ExportError):
        segx.export_onnx(tiny_checkpoint, output=copied, force=True)
    assert copied.read_bytes() == before
    assert sorted(p.name for p in copied.parent.iterdir()) == [copied.name, f"{copied.name}.json"]


@pytest.mark.parametrize("problem", ["batch norm", "fixed batch", "no onnx"])
def test_the_proof_looks_at_the_structure(tiny_onnx: Path, tmp_path: Path, problem: str) -> None:
    import onnx

    from segx.export.verify import _check_structure

    model = onnx.load(tiny_onnx)
    if problem == "fixed batch":
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    if problem == "batch norm":
        _normalise_last_convolution(model)
    if problem == "no onnx":
        model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "m.onnx")
    wanted = {"batch norm": "not folded", "fixed batch": "not symbolic", "no onnx": "checker"}[problem]
    with pytest.raises(ExportError, match=wanted):
        _check_structure(tmp_path / "m.onnx")


def _normalise_last_convolution(model: Any) -> Any:
    """Put a batch normalisation behind the convolution that makes the logits, and return the convolution."""
    from onnx import TensorProto, helper

    channels = ["bn_scale", "bn_bias", "bn_mean", "bn_var"]
    for name in channels:
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]))
    conv = next(node for node in model.graph.node if node.output[0] == "logits")
    conv.output[0] = "before"
    model.graph.node.append(helper.make_node("BatchNormalization", ["before", *channels], ["logits"]))
    return conv


@pytest.mark.parametrize("why", ["an addition", "used twice", "shared weights"])
def test_batch_normalisations_that_cannot_be_folded_are_accepted(tiny_onnx: Path, tmp_path: Path, why: str) -> None:
    import onnx
    from onnx import helper

    from segx.export.verify import _check_structure

    model = onnx.load(tiny_onnx)
    conv = _normalise_last_convolution(model)
    if why == "an addition":
        conv.output[0] = "earlier"
        model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Add", ["earlier"] * 2, ["before"]))
    if why == "used twice":
        model.graph.node.append(helper.make_node("Relu", ["before"], ["unused"]))
    if why == "shared weights":
        model.graph.node.append(helper.make_node("Relu", [conv.input[1]], ["unused"]))
    onnx.save(model, tmp_path / "m.onnx")
    _check_structure(tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "dynamic_size"), [("densenet121", False), ("tu-resnetv2_50", True)])
def test_encoders_whose_batch_normalisations_cannot_be_folded_are_exported(
    tmp_path: Path, encoder: str, dynamic_size: bool
) -> None:
    import torch

    from segx.model.smp import build_module

    spec = ModelSpec(arch="FPN", encoder_name=encoder, in_channels=3, height=64, width=64, arguments={})
    torch.manual_seed(0)
    torch.save(build_module(spec).state_dict(), tmp_path / "w.pth")
    exported = segx.export_onnx(
        tmp_path / "w.pth", spec=spec, output=tmp_path / "m.onnx", dynamic_size=dynamic_size, threads=2
    )
    assert all(row.parity.flipped_pixels == 0 for row in exported.proof.rows)


@pytest.mark.slow
def test_a_decoder_that_pools_the_last_stage_takes_symbolic_sizes(tmp_path: Path) -> None:
    import torch

    from segx.model.smp import build_module

    spec = ModelSpec(arch="PAN", encoder_name="resnet18", in_channels=3, height=128, width=128, arguments={})
    torch.manual_seed(0)
    torch.save(build_module(spec).state_dict(), tmp_path / "pan.pth")
    exported = segx.export_onnx(
        tmp_path / "pan.pth", spec=spec, output=tmp_path / "m.onnx", dynamic_size=True, threads=2
    )
    assert all(row.parity.flipped_pixels == 0 for row in exported.proof.rows)
    # Its last maps have more than one pixel at this size.
    images = np.random.default_rng(0).random((1, 3, 272, 416), dtype=np.float32)
    expected = onnx._run(onnx._load_with_output(tmp_path / "pan.pth", spec, "logits"), images)
    got = run_onnx(tmp_path / "m.onnx", dataclasses.replace(spec, height=272, width=416), images)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    onnx.save(helper.make_model(graph), tmp_path / "foreign.onnx")
    (tmp_path / "junk.onnx").write_text("junk")
    (tmp_path / "empty.onnx").touch()
    for name, complaint in (
        ("foreign.onnx", "not exported by segx"),
        ("junk.onnx", "cannot be read|not exported"),
        ("empty.onnx", "not exported by segx"),
        ("missing.onnx", "no ONNX file"),
    ):
        with pytest.raises(ArtifactError, match=complaint):
            read_artifact(tmp_path / name)


def test_files_of_other_weights_sizes_and_normalisations_have_other_names(tiny_spec: ModelSpec) -> None:
    checkpoint = Path("weights/unet.pth")
    specs = [
        tiny_spec,
        dataclasses.replace(tiny_spec, height=64),
        dataclasses.replace(tiny_spec, mean=(0.5,)),
        dataclasses.replace(tiny_spec, resize="letterbox"),
    ]
    names = {default_output(checkpoint, digest * 32, spec).name for digest in ("ab", "cd") for spec in specs}
    assert len(names) == 8
    assert all(re.fullmatch(r"unet-32x(32|64)-[0-9a-f]{8}\.onnx", name) for name in names)


def test_exporting_after_pytorch_forbade_tf32_gives_the_same_bytes_and_leaves_it_forbidden(
    tiny_checkpoint: Path, tiny_spec: ModelSpec, tiny_onnx: Path, tmp_path: Path
) -> None:
    from segx.runtimes.pytorch import tf32_enabled

    open_runtime("pytorch-cpu", tiny_checkpoint, spec=tiny_spec, options=RuntimeOptions(threads=2))
    again = segx.export_onnx(tiny_checkpoint, output=tmp_path / "again.onnx", threads=2)
    assert again.artifact.path.read_bytes() == tiny_onnx.read_bytes()
    assert not tf32_enabled()
