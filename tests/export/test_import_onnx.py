"""ONNX files that were not exported here: copied with segx's input and output, or refused with the reason."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

import segx
from segx.errors import ArtifactError, UsageError
from segx.export import ImportedModel, import_model, read_artifact
from segx.export.variants import export_file, resolve_model
from segx.masks.image_io import read_image, write_png
from segx.model.spec import ModelSpec
from segx.reporting.command_documents import export_document
from segx.runtimes import RuntimeOptions, open_runtime

WEIGHT = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)


def foreign(
    path: Path,
    *,
    axes: tuple[Any, ...] = ("n", 3, 16, 24),
    ending: str = "",
    names: tuple[str, str] = ("x", "y"),
    kind: int = TensorProto.FLOAT,
    pads: tuple[int, ...] = (1, 1, 1, 1),
    extra_input: bool = False,
    external: bool = False,
) -> Path:
    """One convolution from 3 channels to 2, perhaps with more at its end."""
    given, made = names
    last = "sums" if ending else made
    nodes = [helper.make_node("Conv", [given, "w"], [last], pads=list(pads))]
    if ending:
        nodes.append(helper.make_node(ending, [last], [made], **({"axis": 1} if ending == "Softmax" else {})))
    inputs = [helper.make_tensor_value_info(given, TensorProto.FLOAT, list(axes))]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
    outputs = [helper.make_tensor_value_info(made, kind, [axes[0], 2, None, None])]
    graph = helper.make_graph(nodes, "other", inputs, outputs, [numpy_helper.from_array(WEIGHT, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    return path


def run(path: Path, images: np.ndarray) -> np.ndarray:
    runtime = open_runtime("onnxruntime-cpu", path, spec=read_artifact(path).spec, options=RuntimeOptions(threads=2))
    return runtime.infer(images)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).random((2, 3, 16, 24), dtype=np.float32)


def expected(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def test_a_file_is_taken_in_and_gives_the_same(tmp_path: Path, images: np.ndarray) -> None:
    source = foreign(tmp_path / "other.onnx")
    imported = import_model(source, {"mean": (0.5,) * 3}, output=tmp_path / "ours.onnx")
    assert imported.source == source
    assert imported.changes == ()
    artifact = read_artifact(tmp_path / "ours.onnx")
    assert artifact == imported.artifact
    spec = artifact.spec
    assert (spec.arch, spec.in_channels, spec.classes, spec.height, spec.width) == ("other", 3, 2, 16, 24)
    assert spec.mean == (0.5, 0.5, 0.5)
    assert artifact.checkpoint == "other.onnx"
    assert (artifact.batch_size, artifact.size_multiple) == (None, None)
    model = onnx.load(tmp_path / "ours.onnx")
    assert [model.graph.input[0].name, model.graph.output[0].name] == ["image", "logits"]
    np.testing.assert_array_equal(run(artifact.path, images), expected(source, images))


def test_a_file_that_was_taken_in_for_other_pixels_before_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    source = foreign(tmp_path / "other.onnx")
    for normalize in ("none", "imagenet"):
        made = export_file(None, model=source, overrides={"normalize": normalize})
        assert ("exported before for images in RGB [0, 1], no mean/std" in caplog.text) == (normalize == "imagenet")
    assert isinstance(made, ImportedModel)
    assert resolve_model(None, made.artifact.path, None).other_pixels == ("RGB [0, 1], no mean/std",)


@pytest.mark.parametrize("ending", ["Sigmoid", "Softmax"])
def test_what_squeezes_logits_is_removed(tmp_path: Path, images: np.ndarray, ending: str) -> None:
    plain, squeezed = foreign(tmp_path / "a.onnx"), foreign(tmp_path / "b.onnx", ending=ending)
    # Sigmoids may overlap; that they do not has to be said.
    imported = import_model(squeezed, {"classes": 2}, output=tmp_path / "ours.onnx")
    removed, *others = imported.changes
    assert removed == f"removed the final {ending}: masks are computed and compared on logits"
    assert [note.partition(";")[0] for note in others] == (
        ["its 2 channels may overlap, and the largest is taken, as told"] if ending == "Sigmoid" else []
    )
    np.testing.assert_array_equal(run(imported.artifact.path, images), expected(plain, images))


@pytest.mark.parametrize("names", [("image", "logits"), ("logits", "image"), ("x", "image"), ("logits", "y")])
def test_names_may_be_anything(tmp_path: Path, images: np.ndarray, names: tuple[str, str]) -> None:
    source = foreign(tmp_path / "a.onnx", names=names)
    imported = import_model(source, output=tmp_path / "ours.onnx")
    onnx.checker.check_model(onnx.load(imported.artifact.path), full_check=True)
    np.testing.assert_array_equal(run(imported.artifact.path, images), expected(source, images))


def test_a_fixed_batch_is_kept_and_said(tmp_path: Path, images: np.ndarray) -> None:
    imported = import_model(foreign(tmp_path / "a.onnx", axes=(2, 3, 16, 24)), output=tmp_path / "ours.onnx")
    assert read_artifact(imported.artifact.path).batch_size == 2
    assert run(imported.artifact.path, images).shape == (2, 2, 16, 24)


def test_symbolic_sizes_must_be_told(tmp_path: Path, images: np.ndarray) -> None:
    source = foreign(tmp_path / "a.onnx", axes=("n", 3, "h", "w"))
    with pytest.raises(UsageError, match="any height") as caught:
        import_model(source, output=tmp_path / "ours.onnx")
    assert "--input-size" in caught.value.hint
    imported = import_model(source, {"height": 16, "width": 24}, output=tmp_path / "ours.onnx")
    assert imported.artifact.size_multiple == 1
    np.testing.assert_array_equal(run(imported.artifact.path, images), expected(source, images))
    with pytest.raises(UsageError, match="only a height of 16"):
        import_model(foreign(tmp_path / "b.onnx"), {"height": 32, "width": 24})


def test_a_spec_tells_how_to_open_a_file(tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = foreign(tmp_path / "a.onnx", axes=("n", 3, "h", "w"), ending="Sigmoid")
    spec = ModelSpec(in_channels=3, classes=2, height=16, width=24, channel_order="bgr", mean=(0.5,))
    runtime = segx.open_runtime(source, spec=spec)
    np.testing.assert_array_equal(runtime.infer(images), expected(foreign(tmp_path / "plain.onnx"), images))
    (copy,) = Path("artifacts").glob("*.onnx")
    made = read_artifact(copy).spec
    assert made == dataclasses.replace(spec, arch="a", encoder_name="", arguments={})
    segx.open_runtime(source, spec=made)
    with pytest.raises(UsageError, match="returns 2 channels, not 1 classes"):
        segx.open_runtime(source, spec=dataclasses.replace(spec, classes=1))


def test_weights_beside_the_file_become_part_of_it(tmp_path: Path, images: np.ndarray) -> None:
    source = foreign(tmp_path / "a.onnx", external=True)
    wanted = expected(source, images)
    imported = import_model(source, output=tmp_path / "elsewhere" / "ours.onnx")
    (tmp_path / "w.bin").unlink()
    np.testing.assert_array_equal(run(imported.artifact.path, images), wanted)


def test_other_weights_beside_the_file_make_another_copy(tmp_path: Path, images: np.ndarray) -> None:
    source = foreign(tmp_path / "a.onnx", external=True)
    before = import_model(source, output=tmp_path / "ours.onnx").artifact
    (tmp_path / "w.bin").write_bytes((2 * WEIGHT).tobytes())
    after = import_model(source, output=tmp_path / "ours.onnx").artifact
    assert after.weights_sha256 != before.weights_sha256
    np.testing.assert_array_equal(run(tmp_path / "ours.onnx", images), expected(source, images))


def nested(path: Path, weight: np.ndarray, *, form: str) -> Path:
    """The convolution of ``foreign`` with its weights in a file beside it: in branches, constants or a function."""
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, None, None])]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 24])
    tensor = numpy_helper.from_array(weight, "w")
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    opsets, functions = [helper.make_opsetid("", 17)], []
    nodes, weights = [constant, conv], []
    if form == "branches":
        branch = helper.make_graph([conv], "branch", [], outputs, [tensor])
        nodes = [helper.make_node("If", ["always"], ["y"], then_branch=branch, else_branch=branch)]
        weights = [numpy_helper.from_array(np.ones((), bool), "always")]
    elif form == "function":
        functions = [helper.make_function("own", "Block", ["x"], ["y"], nodes, opsets)]
        nodes = [helper.make_node("Block", ["x"], ["y"], domain="own")]
        opsets = [*opsets, helper.make_opsetid("own", 1)]
    graph = helper.make_graph(nodes, "other", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)
    path.with_name("w.bin").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=99, convert_attribute=True)
    return path


@pytest.mark.parametrize("form", ["branches", "constants", "function"])
def test_weights_beside_the_file_may_be_of_any_part_of_it(tmp_path: Path, images: np.ndarray, form: str) -> None:
    for weight in (WEIGHT, 2 * WEIGHT):
        source = nested(tmp_path / "a.onnx", weight, form=form)
        imported = import_model(source, output=tmp_path / "elsewhere" / "ours.onnx")
        np.testing.assert_array_equal(run(imported.artifact.path, images), expected(source, images))


def test_a_copy_stays_as_it_is_until_something_changes(tmp_path: Path) -> None:
    source, output = foreign(tmp_path / "a.onnx"), tmp_path / "ours.onnx"
    import_model(source, output=output)
    before = output.read_bytes()
    import_model(source, output=output)
    assert output.read_bytes() == before
    assert import_model(source, {"white_level": 99.0}, output=output).artifact.spec.white_level == 99
    assert read_artifact(output).spec.white_level == 99
    output.write_bytes(b"damaged")
    import_model(source, output=output)
    assert read_artifact(output).spec.white_level is None


def test_a_copy_is_made_again_where_that_is_forced(tmp_path: Path) -> None:
    source, output = foreign(tmp_path / "a.onnx"), tmp_path / "ours.onnx"
    for force, verb in ((False, "imported"), (False, "up to date"), (True, "imported")):
        made = export_file(None, model=source, output=output, force=force)
        assert export_document(made).facts[0][0] == verb


@pytest.mark.parametrize("batch", [1, "n", 2])
def test_predict_takes_one_too(tmp_path: Path, batch: Any) -> None:
    foreign(tmp_path / "other.onnx", axes=(batch, 3, 16, 24))
    for number in range(3):
        write_png(tmp_path / "photos" / f"{number}.png", np.full((20, 30, 3), 60 * number, np.uint8))
    command = [sys.executable, "-m", "segx", "predict", "photos", "--output", "masks", "--model", "other.onnx"]
    done = subprocess.run(
        [*command, "--runtime", "onnxruntime-cpu"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3


def test_what_segx_exported_is_left_alone(plain_onnx: Path) -> None:
    imported = import_model(plain_onnx)
    assert imported.source == imported.artifact.path
    assert imported.artifact.path == plain_onnx
    assert export_document(imported).facts[0][0] == "up to date"


@pytest.mark.parametrize("option", ["output", "force"])
def test_what_asks_for_a_copy_of_a_file_that_segx_exported_is_refused(
    plain_onnx: Path, tmp_path: Path, option: str
) -> None:
    given: dict[str, Any] = {"output": {"output": tmp_path / "copy.onnx"}, "force": {"force": True}}[option]
    with pytest.raises(UsageError, match=f"--{option} has no effect on .*, which segx exported"):
        export_file(None, model=plain_onnx, **given)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"axes": ("n", 3, 16)}, "not a batch of images"),
        ({"axes": ("n", 3, 16, 24), "extra_input": True}, "2 inputs"),
        ({"axes": ("n", 3, 16, 24), "pads": (0, 0, 0, 0)}, "no logits"),
    ],
)
def test_what_is_no_segmentation_of_images_is_refused(tmp_path: Path, changes: Any, complaint: str) -> None:
    with pytest.raises(ArtifactError, match=complaint):
        import_model(foreign(tmp_path / "a.onnx", **changes), output=tmp_path / "ours.onnx")
    assert not (tmp_path / "ours.onnx").exists()


def test_quantised_damaged_and_absent_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ArtifactError, match="no ONNX file"):
        import_model(path)
    path.write_bytes(b"no onnx at all")
    with pytest.raises(ArtifactError, match="cannot be read"):
        import_model(path)
    model = onnx.load(foreign(path))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]))
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="already quantised"):
        import_model(path)


@pytest.mark.slow
def test_the_bench_takes_one_with_a_fixed_batch(tmp_path: Path) -> None:
    foreign(tmp_path / "other.onnx", axes=(2, 3, 16, 24), ending="Sigmoid")
    model = "bench --model other.onnx --classes 2"
    command = f"{model} --runtime onnxruntime-cpu,openvino-cpu --precision fp32,int8 --batch-size 1,2"
    limits = "--num-images 3 --warmup 0 --min-time 0 --min-runs 2 --max-time 1 --min-iou 0 --max-flips 100% --json"
    done = subprocess.run(
        [sys.executable, "-m", "segx", *command.split(), *limits.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    assert {(c["runtime"], c["precision"], c["batch_size"]): c["status"] for c in cells} == {
        (runtime, precision, size): "ok" if size == 2 else "failed"
        for runtime in ("onnxruntime-cpu", "openvino-cpu")
        for precision in ("fp32", "int8")
        for size in (1, 2)
    }
    assert "batches of 2" in next(c["reason"] for c in cells if c["status"] == "failed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "weights", "takes", "gives", "options", "said"),
    [
        (
            (
                "f = Cast <to = 1> (x) t = Transpose <perm = [0,3,1,2]> (f) u = Div (t, m) z = Conv (u, w, b) "
                "p = Sigmoid (z) q = Mul (p, m) y = Transpose <perm = [0,2,3,1]> (q)"
            ),
            "float[1,3,1,1] w = {3.3333, 3.3333, 3.3333}, float[1] b = {-5}, float m = {255}",
            "uint8[n,64,64,3] x",
            "float[n,64,64,1] y",
            [],
            "probability in [0, 255]",
        ),
        (
            (
                'z = Conv (x, w, b) g = Greater (z, o) f = Cast <to = 1> (g) r = Resize <mode = "nearest"> (f, , s) '
                "y = Cast <to = 7> (r) aux = Neg (z)"
            ),
            "float[1,3,1,1] w = {3.3333, 3.3333, 3.3333}, float[1] b = {-5}, float o = {0}, float[4] s = {1,1,1,1}",
            "float[n,3,64,64] x",
            "int64[n,1,64,64] y, float[n,1,64,64] aux",
            ["--output-name", "y", "--classes", "2"],
            "judged by masks alone",
        ),
    ],
)
def test_bench_and_predict_give_the_masks_that_a_wrapped_file_was_made_for(
    tmp_path: Path, body: str, weights: str, takes: str, gives: str, options: list[str], said: str
) -> None:
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({takes}) => ({gives}) <{weights}> {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "other.onnx")
    for number in range(3):
        image = np.full((64, 64, 3), 40, np.uint8)
        image[:, 16 * (number + 1) :] = 220
        write_png(tmp_path / "photos" / f"{number}.png", image)
        write_png(tmp_path / "truth" / f"{number}.png", (image[..., 0] > 128).astype(np.uint8) * 255)

    def segx(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "segx", *words, "--model", "other.onnx", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert said in done.stderr
        return done

    segx("predict", "photos", "--output", "masks", "--runtime", "openvino-cpu")
    for number in range(3):
        mask, truth = (read_image(tmp_path / folder / f"{number}.png", 1) for folder in ("masks", "truth"))
        np.testing.assert_array_equal(mask, truth)
    limits = "--batch-size 1,2 --warmup 0 --min-time 0 --min-runs 2 --max-time 1 --processes 1 --json"
    runtimes = "--runtime onnxruntime-cpu,openvino-cpu --precision fp32"
    done = segx("bench", *runtimes.split(), *limits.split(), "--images", "photos", "--masks", "truth")
    cells = json.loads(done.stdout)["cells"]
    assert [(cell["status"], cell["parity"]["truth"]["iou"]) for cell in cells] == [("ok", 1.0)] * 4
