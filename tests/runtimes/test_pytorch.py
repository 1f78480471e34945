"""PyTorch eager: precisions and memory layouts inside, float32 and contiguous outside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import Conv2d

from segx.errors import RuntimeUnavailable, UsageError
from segx.model.smp import load_model
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, open_runtime
from segx.runtimes.pytorch import (
    PrecisionWrapper,
    PyTorchCpu,
    PyTorchCpuChannelsLast,
    PyTorchCuda,
    PyTorchCudaChannelsLast,
)
from segx.system import machine

BF16 = RuntimeOptions(threads=2, precision="bf16")
FP32 = RuntimeOptions(threads=2)
UNET_SPEC = ModelSpec(arch="Unet", encoder_name="resnet18", in_channels=3, classes=2, height=32, width=64, arguments={})


@pytest.fixture
def batch(tiny_spec: ModelSpec) -> np.ndarray:
    return np.random.default_rng(0).random((2, *tiny_spec.input_shape), dtype=np.float32)


def _ran_as(kernel: str) -> Callable[[Callable[[], object]], list[str]]:
    def kernels(run: Callable[[], object]) -> list[str]:
        run()
        return [kernel]

    return kernels


def test_bf16_is_unavailable_if_the_cpu_would_emulate_it(
    tiny_spec: ModelSpec, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: ("avx2", "avx512f"))
    with pytest.raises(RuntimeUnavailable, match="no bf16 instructions") as caught:
        PyTorchCpu(tiny_checkpoint, tiny_spec, BF16)
    assert "fp32" in caught.value.hint
    assert PyTorchCpu.check(FP32)


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_bf16_computes_in_bf16_with_float32_in_and_out(
    tiny_spec: ModelSpec, tiny_checkpoint: Path, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: (flag,))
    monkeypatch.setattr("segx.runtimes.pytorch._convolution_kernels", _ran_as("jit_bf16:avx512_core_bf16"))
    runtime = PyTorchCpu(tiny_checkpoint, tiny_spec, BF16)
    expected, got = PyTorchCpu(tiny_checkpoint, tiny_spec, FP32).infer(batch), runtime.infer(batch)
    assert got.dtype == np.float32
    assert 0 < np.abs(expected - got).max() < 5e-2 * max(1.0, float(np.ptp(expected)))
    assert runtime.facts["weights"] == "bfloat16"


@pytest.mark.skipif(bool(machine.cpu_lacks("bf16")), reason="this CPU has no bf16 instructions")
def test_bf16_is_proven_by_the_kernels_that_ran(
    tiny_spec: ModelSpec, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    infer, calls = PyTorchCpu.infer, []
    monkeypatch.setattr(PyTorchCpu, "infer", lambda *given: calls.append(os.write(1, b"mine\n")) or infer(*given))
    facts = PyTorchCpu(tiny_checkpoint, tiny_spec, BF16).facts
    assert len(calls) == 1
    counted = [int(part.split()[0]) for part in facts["convolutions"].split(", ")]
    convolutions = [each for each in load_model(tiny_checkpoint, tiny_spec).modules() if isinstance(each, Conv2d)]
    assert sum(counted) == len(convolutions)
    assert "bf16" in facts["convolutions"] or "amx" in facts["convolutions"]
    assert capfd.readouterr().out == "mine\n"  # of others, who write to stdout meanwhile


def test_bf16_is_unavailable_if_the_kernels_compute_in_fp32(
    tiny_spec: ModelSpec, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: ("avx512_bf16",))
    monkeypatch.setattr("segx.runtimes.pytorch._convolution_kernels", _ran_as("jit:avx512_core"))
    with pytest.raises(RuntimeUnavailable, match=r"emulates bfloat16 here.*jit:avx512_core"):
        PyTorchCpu(tiny_checkpoint, tiny_spec, BF16)


def test_an_unknown_precision_is_refused(tiny_spec: ModelSpec, tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        open_runtime(
            "pytorch-cpu", tiny_checkpoint, spec=tiny_spec, options=RuntimeOptions(threads=2, precision="int8")
        )


@pytest.mark.parametrize(
    ("capability", "unavailable"),
    [((7, 0), {"tf32", "bf16"}), ((8, 0), set()), ((5, 2), {"tf32", "bf16", "fp16"})],
)
def test_a_precision_that_the_gpu_lacks_is_unavailable(
    capability: tuple[int, int], unavailable: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segx.system.machine.cuda_problem", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    for precision in ("fp32", "tf32", "fp16", "bf16"):
        options = RuntimeOptions(threads=2, precision=precision)
        if precision not in unavailable:
            assert PyTorchCuda.check(options)["device"] == "some GPU"
            continue
        with pytest.raises(RuntimeUnavailable, match=f"{precision} needs compute capability"):
            PyTorchCuda.check(options)


def test_fp16_inside_and_float32_outside() -> None:
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.dtype)
            return images

    logits = PrecisionWrapper(Recorder(), torch.float16, torch.contiguous_format)(torch.rand(1, 1, 4, 4))
    assert seen == [torch.float16]
    assert logits.dtype == torch.float32


@pytest.fixture(scope="module")
def unet_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from segx.model.smp import build_module

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("unet") / "unet.pth"
    torch.save(build_module(UNET_SPEC).state_dict(), path)
    return path


@pytest.fixture
def unet_batch() -> np.ndarray:
    return np.random.default_rng(0).random((2, *UNET_SPEC.input_shape), dtype=np.float32)


def layouts(runtime: PyTorchCpu, unet_batch: np.ndarray) -> set[bool]:
    """Return whether inputs of convolutions are in channels-last layout only."""
    seen = set()

    def inspect(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (images,) = inputs
        seen.add(images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous())

    convolutions = [m for m in runtime._module.modules() if isinstance(m, torch.nn.Conv2d)]
    hooks = [convolution.register_forward_pre_hook(inspect) for convolution in convolutions]
    runtime.infer(unet_batch)
    for hook in hooks:
        hook.remove()
    return seen


def test_weights_and_activations_are_channels_last(unet_checkpoint: Path, unet_batch: np.ndarray) -> None:
    runtime = PyTorchCpuChannelsLast(unet_checkpoint, UNET_SPEC, FP32)
    weights = [p for p in runtime._module.parameters() if p.dim() == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in weights)
    assert layouts(runtime, unet_batch) == {True}
    assert (runtime.name, runtime.facts["memory format"]) == ("pytorch-cpu-channels-last", "channels_last")


def test_default_layout_is_contiguous(unet_checkpoint: Path, unet_batch: np.ndarray) -> None:
    runtime = PyTorchCpu(unet_checkpoint, UNET_SPEC, FP32)
    assert all(p.is_contiguous() for p in runtime._module.parameters())
    assert layouts(runtime, unet_batch) == {False}


def test_channels_last_logits_are_equal_and_contiguous(unet_checkpoint: Path, unet_batch: np.ndarray) -> None:
    expected = PyTorchCpu(unet_checkpoint, UNET_SPEC, FP32).infer(unet_batch)
    logits = PyTorchCpuChannelsLast(unet_checkpoint, UNET_SPEC, FP32).infer(unet_batch)
    assert logits.flags.c_contiguous
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_channels_last_on_cuda_without_a_gpu_is_unavailable(
    unet_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segx.system.machine.cuda_problem", lambda: "no driver here")
    with pytest.raises(RuntimeUnavailable, match="no driver here"):
        PyTorchCudaChannelsLast(unet_checkpoint, UNET_SPEC, FP32)
