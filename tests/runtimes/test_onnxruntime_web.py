"""ONNX Runtime Web: what the contract of all runtimes does not cover, and a bench of it."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from segx.errors import ArtifactError, InferenceError, OutOfMemory, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, check_runtime, onnxruntime_web
from segx.runtimes.onnxruntime_web import OnnxRuntimeWeb, OnnxRuntimeWebGpu
from segx.system.processes import WorkerDied
from segx.web import server
from tests.benching import quick_bench

OPTIONS = RuntimeOptions(threads=2)
Open = Callable[..., OnnxRuntimeWeb]


@pytest.fixture
def opened(browser_ready: None, tiny_onnx: Path, tiny_spec: ModelSpec) -> Iterator[Open]:  # noqa: ARG001
    running: list[OnnxRuntimeWeb] = []

    def open_it(path: Path = tiny_onnx, **options: object) -> OnnxRuntimeWeb:
        running.append(OnnxRuntimeWeb(path, tiny_spec, dataclasses.replace(OPTIONS, **options)))
        return running[-1]

    yield open_it
    for runtime in running:
        runtime.close()


@pytest.mark.slow
@pytest.mark.usefixtures("browser_ready")
def test_a_bench_of_it_has_masks_memory_and_the_settings_in_force(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = quick_bench(tiny_checkpoint, runtimes=["onnxruntime-web"], threads=2, batch_sizes=[2])
    (cell,) = results.cells
    assert cell.status == "ok"
    assert cell.parity
    assert cell.parity.flipped_pixels == 0
    assert (cell.facts["threads"], cell.facts["cross-origin isolated"]) == ("2", "yes")
    assert cell.facts["build"] == "ort-wasm-simd-threaded.wasm"
    assert "Chrom" in cell.facts["browser"]
    assert cell.load_s
    assert cell.first_s
    assert max(cell.samples_s) < cell.load_s  # fetching and compiling are no part of a run
    assert cell.host_memory
    assert 1e6 < cell.host_memory.needed_bytes < 1e9
    assert "processes" in cell.host_memory.method


@pytest.mark.usefixtures("browser_ready")
def test_a_file_of_another_precision_is_refused(opened: Open, tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    (precision,) = (entry for entry in model.metadata_props if entry.key == "segx.precision")
    precision.value = "int8"
    onnx.save(model, tmp_path / "int8.onnx")
    with pytest.raises(ArtifactError, match="computes in int8, not in fp32"):
        opened(tmp_path / "int8.onnx")


def _program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\ncase $* in *--version) echo Chromium 1; exit;; esac\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [("echo '[1:FATAL:a.cc:1] No usable sandbox!' >&2; exit 1", "No usable sandbox!"), ("exec sleep 60", "within 1 s")],
)
@pytest.mark.usefixtures("browser_ready")
def test_a_browser_that_shows_no_page_is_unavailable(
    script: str, complaint: str, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGX_CHROMIUM", _program(tmp_path / "chromium", script))
    monkeypatch.setattr(onnxruntime_web, "_START_TIMEOUT_S", 1.0)
    with pytest.raises(RuntimeUnavailable, match=complaint) as caught:
        opened()
    assert str(tmp_path) in caught.value.hint


@pytest.mark.slow
def test_a_page_that_crashes_ends_the_cell(opened: Open, tiny_spec: ModelSpec) -> None:
    runtime = opened()
    for folder in runtime._page._browser.processes():
        if b"--type=renderer" in (folder / "cmdline").read_bytes():
            os.kill(int(folder.name), signal.SIGKILL)
    with pytest.raises(WorkerDied, match="the page crashed"):
        runtime.infer(np.zeros((1, *tiny_spec.input_shape), dtype=np.float32))


@pytest.mark.slow
def test_a_closed_page_leaves_no_thread_behind(opened: Open) -> None:
    before = threading.active_count()
    opened().close()
    until = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert threading.active_count() == before


@pytest.mark.slow
def test_more_memory_than_allowed_is_out_of_memory(opened: Open, tiny_spec: ModelSpec) -> None:
    runtime = opened(memory_limit_bytes=40 << 20)
    batch = np.zeros((1, *tiny_spec.input_shape), dtype=np.float32)
    runtime.infer(batch)
    with pytest.raises(OutOfMemory, match="WebAssembly could not allocate memory"):
        runtime.infer(batch.repeat(512, axis=0))


@pytest.mark.slow
def test_fewer_threads_than_asked_for_are_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {name: value for name, value in server.HEADERS.items() if name != "Cross-Origin-Embedder-Policy"}
    monkeypatch.setattr(server, "HEADERS", headers)
    with pytest.raises(RuntimeUnavailable, match="1 of 2 threads, cross-origin isolated: no"):
        opened()


@pytest.mark.slow
def test_a_file_that_is_no_onnx_is_a_clear_error(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_text("junk")
    with pytest.raises(InferenceError, match="ONNX Runtime Web failed: Failed to load model") as caught:
        opened(tmp_path / "junk.onnx")
    assert "\n" not in caught.value.message


SWIFTSHADER = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")


@pytest.mark.slow
@pytest.mark.usefixtures("browser_ready")
def test_webgpu_on_the_processor_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_web, "_WEBGPU_FLAGS", SWIFTSHADER)
    monkeypatch.setattr(onnxruntime_web, "_GPU_DEVICES", ("null",))
    with pytest.raises(RuntimeUnavailable, match=r"no GPU here.*swiftshader|no WebGPU adapter") as caught:
        check_runtime("onnxruntime-webgpu", OPTIONS)
    assert "onnxruntime-web" in caught.value.hint


@pytest.mark.usefixtures("browser_ready")
def test_webgpu_on_a_machine_without_a_gpu_is_unavailable_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_web.sys, "platform", "linux")
    monkeypatch.setattr(onnxruntime_web, "_GPU_DEVICES", ("none",))
    monkeypatch.setattr(onnxruntime_web, "Browser", None)
    with pytest.raises(RuntimeUnavailable, match="this machine has no GPU"):
        check_runtime("onnxruntime-webgpu", OPTIONS)


@pytest.mark.slow
def test_webgpu_gives_the_logits_of_wasm(
    opened: Open, tiny_onnx: Path, tiny_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor that passes for a GPU, which is slow and right."""
    script = onnxruntime_web.static_files()["/session.js"].read_text()
    (tmp_path / "session.js").write_text(script.replace("return software ?", "return false ?"))
    files = {**onnxruntime_web.static_files(), "/session.js": tmp_path / "session.js"}
    monkeypatch.setattr(onnxruntime_web, "static_files", lambda: files)
    monkeypatch.setattr(onnxruntime_web, "_WEBGPU_FLAGS", SWIFTSHADER)
    monkeypatch.setattr(onnxruntime_web, "_GPU_DEVICES", ("null",))
    try:
        gpu = OnnxRuntimeWebGpu(tiny_onnx, tiny_spec, OPTIONS)
    except RuntimeUnavailable as error:
        pytest.skip(error.message)
    batch = np.random.default_rng(0).random((2, *tiny_spec.input_shape), dtype=np.float32)
    assert "swiftshader" in gpu.facts["adapter"].lower()
    assert gpu.facts["build"] == "ort-wasm-simd-threaded.asyncify.wasm"
    np.testing.assert_allclose(gpu.infer(batch), opened().infer(batch), atol=1e-3)
    gpu.close()
