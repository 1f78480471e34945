"""OpenVINO with one request and with a queue; skipped with the reason where the package is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from segx.errors import ArtifactError, InferenceError, OutOfMemory, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, open_runtime
from segx.runtimes.openvino import OpenVinoCpu, OpenVinoCpuThroughput
from segx.system import machine
from tests.benching import fail

OPTIONS = RuntimeOptions(threads=2)
INT8 = RuntimeOptions(threads=2, precision="int8")

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the package openvino is not installed"
)
both = pytest.mark.parametrize("kind", [OpenVinoCpu, OpenVinoCpuThroughput])


@pytest.fixture(scope="module")
def images(tiny_spec: ModelSpec) -> np.ndarray:
    return np.random.default_rng(0).random((5, *tiny_spec.input_shape), dtype=np.float32)


@pytest.fixture(scope="module")
def tiny_int8(tiny_onnx: Path, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from segx.export.int8 import quantize_onnx

    path = tmp_path_factory.mktemp("int8") / "tiny-int8.onnx"
    # The weights are random, so the masks do not matter.
    limits = {"min_iou_worst": 0.0, "min_iou_mean": 0.0}
    quantize_onnx(tiny_onnx, images, images, output=path, engine="openvino", threads=2, **limits)
    return path


@needs_openvino
@both
@pytest.mark.parametrize("size", [1, 3])
def test_logits_match_onnxruntime(
    kind: Any, size: int, tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray
) -> None:
    expected = open_runtime("onnxruntime-cpu", tiny_onnx, spec=tiny_spec, options=OPTIONS).infer(images[:size])
    logits = kind(tiny_onnx, tiny_spec, OPTIONS).infer(images[:size])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1.0, float(np.ptp(expected))))


@needs_openvino
@both
def test_each_row_of_a_batch_belongs_to_its_image(
    kind: Any, tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray
) -> None:
    """The queue runs images in parallel; they may finish in another order."""
    runtime = kind(tiny_onnx, tiny_spec, OPTIONS)
    many = np.tile(images, (8, 1, 1, 1))
    together = runtime.infer(many)
    for image, row in zip(many, together, strict=True):
        np.testing.assert_allclose(runtime.infer(image[None])[0], row, atol=1e-4)
    assert not np.allclose(together[0], together[1])


@needs_openvino
@both
def test_results_are_not_overwritten_by_later_calls(
    kind: Any, tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray
) -> None:
    runtime = kind(tiny_onnx, tiny_spec, OPTIONS)
    first = runtime.infer(images[:1])
    kept = first.copy()
    runtime.infer(images[1:2])
    np.testing.assert_array_equal(first, kept)


@needs_openvino
@both
def test_an_empty_batch_has_empty_logits(kind: Any, tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray) -> None:
    runtime = kind(tiny_onnx, tiny_spec, OPTIONS)
    expected = runtime.infer(images)
    assert runtime.infer(images[:0]).shape == (0, *tiny_spec.output_shape)
    np.testing.assert_array_equal(runtime.infer(images), expected)


@needs_openvino
def test_a_request_that_failed_is_not_used_again(tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray) -> None:
    runtime = OpenVinoCpu(tiny_onnx, tiny_spec, OPTIONS)
    runtime._request = SimpleNamespace(infer=lambda *_, **__: fail(RuntimeError("as ever after")))
    with pytest.raises(InferenceError, match="as ever after"):
        runtime.infer(images)
    assert runtime.infer(images).shape == (len(images), *tiny_spec.output_shape)


@needs_openvino
@both
@pytest.mark.parametrize("threads", [1, 2])
def test_the_requested_threads_are_in_force(kind: Any, threads: int, tiny_onnx: Path, tiny_spec: ModelSpec) -> None:
    facts = kind(tiny_onnx, tiny_spec, RuntimeOptions(threads=threads)).facts
    assert facts["threads"] == str(threads)


@needs_openvino
@both
def test_one_request_uses_all_threads(kind: Any, tiny_onnx: Path, tiny_spec: ModelSpec) -> None:
    facts = kind(tiny_onnx, tiny_spec, OPTIONS).facts
    assert (facts["streams"], facts["requests"]) == ("1", "1")


@needs_openvino
@pytest.mark.parametrize(("threads", "batch", "tried"), [(2, 1, []), (2, 2, [1, 2]), (4, 3, [1, 2]), (4, 5, [1, 2, 4])])
def test_the_threads_are_shared_by_the_number_of_requests_that_is_fastest(
    threads: int,
    batch: int,
    tried: list[int],
    tiny_onnx: Path,
    tiny_spec: ModelSpec,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch never leaves threads idle because it has fewer images than there are requests."""
    runtime = OpenVinoCpuThroughput(tiny_onnx, tiny_spec, RuntimeOptions(threads=threads))
    measured: list[int] = []

    def seconds(requests: int, _: Any) -> float:
        measured.append(requests)
        return abs(requests - 2)  # the fastest are two

    monkeypatch.setattr(runtime, "_seconds_with", seconds)
    runtime.infer(images[:batch])
    assert measured == tried
    assert runtime.facts["requests"] == ("2" if tried else "1")
    assert int(runtime.facts["streams"]) == int(runtime.facts["requests"])
    runtime.infer(images[:1])  # such as the rest of a folder
    assert measured == tried
    assert runtime.facts["requests"] == ("2" if tried else "1")


@needs_openvino
def test_the_requests_that_were_tried_are_facts_and_a_queue_that_is_open_is_not_compiled_again(
    tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = OpenVinoCpuThroughput(tiny_onnx, tiny_spec, OPTIONS)
    compiled: list[int] = []
    compile_ = runtime._compile

    def counted(**settings: Any) -> Any:
        compiled.append(settings["NUM_STREAMS"])
        return compile_(**settings)

    monkeypatch.setattr(runtime, "_compile", counted)
    runtime.infer(images)
    assert re.fullmatch(r"1: [\d.e-]+ ms/image, 2: [\d.e-]+ ms/image", runtime.facts["requests tried"])
    assert compiled == ([2] if runtime.facts["requests"] == "2" else [2, 1])
    compiled.clear()
    runtime.infer(images)
    runtime.infer(images[:1])
    assert not compiled


@needs_openvino
def test_after_a_failure_to_share_the_threads_one_request_runs_the_images(
    tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = OpenVinoCpuThroughput(tiny_onnx, tiny_spec, OPTIONS)
    expected = runtime.infer(images[:1])
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_compile", lambda **_: fail(RuntimeError("std::bad_alloc")))
        with pytest.raises(OutOfMemory):
            runtime.infer(images)
    assert np.array_equal(runtime.infer(images[:1]), expected)
    assert runtime.facts["requests"] == "1"


@needs_openvino
@both
def test_float_layers_are_float32_even_if_the_cpu_has_bf16(kind: Any, tiny_onnx: Path, tiny_spec: ModelSpec) -> None:
    assert kind(tiny_onnx, tiny_spec, OPTIONS).facts["float precision"] == "f32"


@needs_openvino
@both
def test_an_int8_file_runs_in_int8_kernels(
    kind: Any, tiny_int8: Path, tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray
) -> None:
    import onnx

    layers = sum(node.op_type in ("Conv", "ConvTranspose") for node in onnx.load(tiny_int8).graph.node)
    runtime = kind(tiny_int8, tiny_spec, INT8)
    assert runtime.facts["int8 layers"] == f"{layers} of {layers}"
    expected = open_runtime("onnxruntime-cpu", tiny_onnx, spec=tiny_spec, options=OPTIONS).infer(images)
    error = np.abs(runtime.infer(images) - expected).max() / np.ptp(expected)
    assert 0 < error < 0.1


@needs_openvino
@both
@pytest.mark.parametrize(
    ("precision", "flags", "most"),
    [("bf16", {"amx_bf16", "avx512_bf16"}, 0.05), ("fp16", {"amx_fp16", "avx512_fp16"}, 0.01)],
)
def test_a_low_precision_runs_in_kernels_of_its_own(
    kind: Any,
    precision: Any,
    flags: set[str],
    most: float,
    tiny_onnx: Path,
    tiny_spec: ModelSpec,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not flags & {*machine.cpu_flags()}:
        pytest.skip(f"this CPU has none of {sorted(flags)}")
    monkeypatch.setattr(machine, "cpu_lacks", lambda _: "")  # avx512_fp16 alone has kernels, too slow to be offered
    runtime = kind(tiny_onnx, tiny_spec, RuntimeOptions(threads=2, precision=precision))
    narrow, layers = map(int, runtime.facts[f"{precision} layers"].split(" of "))
    assert 0 < narrow <= layers
    expected = kind(tiny_onnx, tiny_spec, OPTIONS).infer(images)
    error = np.abs(runtime.infer(images) - expected).max() / np.ptp(expected)
    assert 0 < error < most


@needs_openvino
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_the_cpu_would_emulate_is_unavailable(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: ("avx2", "avx512f", "avx512_fp16"))
    with pytest.raises(RuntimeUnavailable, match=f"no {precision} instructions"):
        OpenVinoCpu.check(RuntimeOptions(threads=2, precision=precision))
    assert OpenVinoCpu.check(OPTIONS)


@needs_openvino
@both
def test_a_file_of_another_precision_is_refused(
    kind: Any, tiny_int8: Path, tiny_onnx: Path, tiny_spec: ModelSpec
) -> None:
    with pytest.raises(ArtifactError, match="no int8 layers"):
        kind(tiny_onnx, tiny_spec, INT8)
    with pytest.raises(ArtifactError, match="layers in int8") as caught:
        kind(tiny_int8, tiny_spec, OPTIONS)
    assert "int8" in caught.value.hint


@needs_openvino
@both
def test_an_invalid_file_is_a_clear_error(kind: Any, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_text("junk")
    with pytest.raises(InferenceError, match="OpenVINO failed: Unable to read the model"):
        kind(tmp_path / "junk.onnx", tiny_spec, OPTIONS)


@needs_openvino
@both
@pytest.mark.parametrize("threads", [1, 2])
def test_a_wrong_shape_is_an_error_and_the_next_call_works(
    kind: Any, threads: int, tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray
) -> None:
    runtime = kind(tiny_onnx, tiny_spec, dataclasses.replace(OPTIONS, threads=threads))
    expected = runtime.infer(images)
    for _ in range(2):  # an error must not take a request with it: there are one or two
        with pytest.raises(InferenceError, match="OpenVINO failed"):
            runtime.infer(np.zeros((2, 3, 32, 32), dtype=np.float32))
    np.testing.assert_array_equal(runtime.infer(images), expected)


@needs_openvino
def test_out_of_memory_is_mapped(
    tiny_onnx: Path, tiny_spec: ModelSpec, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def infer(self, *_: Any, **__: Any) -> None:
            # As OpenVINO 2026.4 says it.
            raise RuntimeError(
                "Exception from src/infer_request.cpp:224:\nFailed to allocate 100663296 bytes of memory\n"
            )

    runtime = OpenVinoCpu(tiny_onnx, tiny_spec, OPTIONS)
    monkeypatch.setattr(runtime, "_request", Full())
    with pytest.raises(OutOfMemory) as caught:
        runtime.infer(images)
    assert "smaller batch" in caught.value.hint


@both
def test_without_the_package_it_is_unavailable(
    kind: Any, tiny_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeUnavailable, match="not installed") as caught:
        kind.check(OPTIONS)
    assert "pip install openvino" in caught.value.hint
    with pytest.raises(RuntimeUnavailable, match="not installed"):
        kind(tmp_path / "any.onnx", tiny_spec, OPTIONS)


def test_importing_the_runtime_does_not_import_the_package() -> None:
    code = "import sys, segx.runtimes.openvino; assert 'openvino' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
