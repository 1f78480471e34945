"""torch.compile: one compiled graph or an error, never eager; nothing cached before or left behind."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from segx.errors import InferenceError, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes import torch_compile
from segx.runtimes.base import RuntimeOptions
from segx.runtimes.pytorch import PyTorchCpu
from segx.runtimes.torch_compile import CompiledModule, TorchCompileCpu, TorchCompileCuda
from segx.system import machine

OPTIONS = RuntimeOptions(threads=2)

try:
    TorchCompileCpu.check(OPTIONS)
except RuntimeUnavailable as missing:
    pytest.skip(f"torch-compile-cpu: {missing}", allow_module_level=True)


class Scaled(torch.nn.Module):
    """Compiles in a second; ``factor`` is a constant to the compiler."""

    factor = 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.sigmoid() * self.factor


class WithBranch(torch.nn.Module):
    """Has a graph break: the branch depends on the values."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 1 if images.sum() > 0 else images - 1


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.slow
def test_the_result_matches_the_module(images: torch.Tensor) -> None:
    module = Scaled()
    torch.testing.assert_close(CompiledModule(module, threads=2)(images), module(images))


@pytest.mark.slow
def test_each_input_shape_is_compiled_once(images: torch.Tensor) -> None:
    compiled = CompiledModule(Scaled(), threads=2)
    for batch, graphs in ((images, 1), (images[:2], 2), (images, 2), (images[:2], 2)):
        assert compiled(batch).shape == batch.shape
        assert compiled._graphs == graphs


def test_a_module_with_graph_breaks_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(InferenceError, match="cannot compile the model as one graph: Data-dependent"):
        CompiledModule(WithBranch(), threads=2)(images)


@pytest.mark.slow
@pytest.mark.parametrize("suppress", [False, True], ids=["errors", "errors suppressed"])
def test_recompiling_in_a_later_call_is_refused(images: torch.Tensor, suppress: bool) -> None:
    module = Scaled()
    compiled = CompiledModule(module, threads=2)
    compiled(images)
    module.factor = 3
    # With suppressed errors, torch would run eagerly.
    with torch._dynamo.config.patch(suppress_errors=suppress), pytest.raises(InferenceError, match="a later call"):
        compiled(images)


@pytest.mark.slow
def test_too_many_shapes_are_refused(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()  # graphs of other tests count too
    monkeypatch.setattr(torch_compile, "_MAX_SHAPES", 1)
    compiled = CompiledModule(Scaled(), threads=2)
    compiled(images)
    with pytest.raises(InferenceError, match="cannot compile the model as one graph"):
        compiled(images[:1])


def test_running_without_compiling_is_refused(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As older versions of torch do if compiling is disabled in the environment."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    with pytest.raises(InferenceError, match="without compiling") as caught:
        CompiledModule(Scaled(), threads=2)(images)
    assert "TORCH_COMPILE_DISABLE" in caught.value.hint


@pytest.mark.slow
def test_no_earlier_compilation_is_reused(images: torch.Tensor) -> None:
    counters.clear()
    for _ in range(2):
        CompiledModule(Scaled(), threads=2)(images)
    assert counters["inductor"]["fxgraph_cache_hit"] == 0
    assert counters["aot_autograd"]["autograd_cache_hit"] == 0
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_headers_are_not_precompiled_for_later_processes(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    precompiled = []
    really_compile = torch_compile.compile_by_inductor

    def compile_and_look(*arguments: object) -> object:
        precompiled.append(torch_compile.inductor_config.cpp_cache_precompile_headers)
        return really_compile(*arguments)

    monkeypatch.setattr(torch_compile, "compile_by_inductor", compile_and_look)
    CompiledModule(Scaled(), threads=2)(images)
    assert precompiled == [False]


@pytest.mark.slow
def test_the_compilation_leaves_nothing_behind(
    images: torch.Tensor, temporary_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = tmp_path / "usual"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(usual))
    threads_before, children_before = torch_compile.inductor_config.compile_threads, child_processes()
    compiled = CompiledModule(Scaled(), threads=2)
    compiled(images)
    assert list(temporary_files.iterdir()) == []
    assert [path for path in usual.rglob("*") if path.is_file()] == []
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(usual)
    assert torch_compile.inductor_config.compile_threads == threads_before
    assert child_processes() <= children_before
    compiled(images)  # still works without its files


def child_processes() -> set[str]:
    if sys.platform != "linux":
        return set()
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def test_a_failed_compilation_leaves_no_files(images: torch.Tensor, temporary_files: Path) -> None:
    with pytest.raises(InferenceError):
        CompiledModule(WithBranch(), threads=2)(images)
    assert list(temporary_files.iterdir()) == []


@pytest.mark.slow
def test_the_compiler_prints_nothing(images: torch.Tensor, capfd: pytest.CaptureFixture[str]) -> None:
    CompiledModule(Scaled(), threads=2)(images)
    with pytest.raises(InferenceError):
        CompiledModule(WithBranch(), threads=2)(images)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_loading_runs_eagerly_and_the_first_call_compiles(tiny_spec: ModelSpec, tiny_checkpoint: Path) -> None:
    batch = np.random.default_rng(0).random((2, *tiny_spec.input_shape), dtype=np.float32)
    runtime = TorchCompileCpu(tiny_checkpoint, tiny_spec, OPTIONS)
    assert isinstance(runtime._run, CompiledModule)
    assert runtime._run._graphs == 0
    logits = runtime.infer(batch)
    assert runtime._run._graphs == 1
    np.testing.assert_allclose(
        logits, PyTorchCpu(tiny_checkpoint, tiny_spec, OPTIONS).infer(batch), rtol=1e-4, atol=1e-4
    )
    assert runtime.facts["compile cache"] == "empty at the first call"


def test_it_is_unavailable_without_a_compiler() -> None:
    without = torch_compile.inductor_config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with without, pytest.raises(RuntimeUnavailable, match=r"no C\+\+ compiler") as caught:
        TorchCompileCpu.check(OPTIONS)
    assert "g++" in caught.value.hint


def test_it_is_unavailable_without_python_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match=r"no Python\.h") as caught:
        TorchCompileCpu.check(OPTIONS)
    assert "python3-dev" in caught.value.hint


def test_it_is_unavailable_if_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch_compile.dynamo_config.patch(disable=True), pytest.raises(RuntimeUnavailable, match="disabled"):
        TorchCompileCpu.check(OPTIONS)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(RuntimeUnavailable, match="disabled"):
        TorchCompileCpu.check(OPTIONS)


@pytest.mark.parametrize("missing", ["triton", "compiler"])
def test_on_cuda_it_is_unavailable_without_triton_or_a_compiler(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr("segx.runtimes.pytorch.PyTorchCuda.check", staticmethod(lambda _: {}))
    monkeypatch.setattr(torch_compile, "has_triton", lambda: missing != "triton")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(RuntimeUnavailable, match="Triton is missing" if missing == "triton" else "no C compiler"):
        TorchCompileCuda.check(OPTIONS)


@pytest.mark.gpu
def test_on_cuda_the_device_is_timed_and_its_memory_counted(tiny_spec: ModelSpec, tiny_checkpoint: Path) -> None:
    if problem := machine.cuda_problem():
        pytest.skip(problem)
    batch = np.random.default_rng(0).random((2, *tiny_spec.input_shape), dtype=np.float32)
    runtime = TorchCompileCuda(tiny_checkpoint, tiny_spec, OPTIONS)
    expected = runtime.infer(batch)
    logits, seconds = runtime.infer_timed(batch)
    np.testing.assert_array_equal(logits, expected)
    assert 0 < seconds < 1
    assert runtime.peak_device_bytes()[0] > 0
