"""Channels last: the layout is really another one inside, and nobody sees it outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segx.errors import RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes.base import RuntimeOptions
from segx.runtimes.pytorch import PyTorchCpu
from segx.runtimes.pytorch_channels_last import PyTorchCpuChannelsLast, PyTorchCudaChannelsLast

OPTIONS = RuntimeOptions(threads=2)
SPEC = ModelSpec(arch="Unet", encoder_name="resnet18", in_channels=3, classes=2, height=32, width=64, arguments={})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from segx.model.smp import build_module

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("unet") / "unet.pth"
    torch.save(build_module(SPEC).state_dict(), path)
    return path


@pytest.fixture
def batch() -> np.ndarray:
    return np.random.default_rng(0).random((2, *SPEC.input_shape), dtype=np.float32)


def layouts(runtime: PyTorchCpu | PyTorchCpuChannelsLast, batch: np.ndarray) -> set[bool]:
    """Whether the inputs of the convolutions are in channels-last order, and in no other."""
    seen = set()

    def look(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (images,) = inputs
        seen.add(images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous())

    convolutions = [m for m in runtime._module.modules() if isinstance(m, torch.nn.Conv2d)]
    hooks = [convolution.register_forward_pre_hook(look) for convolution in convolutions]
    runtime.infer(batch)
    for hook in hooks:
        hook.remove()
    return seen


def test_weights_and_what_flows_are_channels_last(checkpoint: Path, batch: np.ndarray) -> None:
    runtime = PyTorchCpuChannelsLast(checkpoint, SPEC, OPTIONS)
    weights = [p for p in runtime._module.parameters() if p.dim() == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in weights)
    assert layouts(runtime, batch) == {True}
    assert (runtime.name, runtime.facts["memory format"]) == ("pytorch-cpu-channels-last", "channels_last")


def test_pytorch_itself_stays_as_it_is(checkpoint: Path, batch: np.ndarray) -> None:
    runtime = PyTorchCpu(checkpoint, SPEC, OPTIONS)
    assert all(p.is_contiguous() for p in runtime._module.parameters())
    assert layouts(runtime, batch) == {False}


def test_logits_are_the_same_and_in_the_usual_order(checkpoint: Path, batch: np.ndarray) -> None:
    expected = PyTorchCpu(checkpoint, SPEC, OPTIONS).infer(batch)
    logits = PyTorchCpuChannelsLast(checkpoint, SPEC, OPTIONS).infer(batch)
    assert logits.flags.c_contiguous
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_on_cuda_without_a_gpu_it_says_why(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segx.system.machine.cuda_problem", lambda: "no driver here")
    with pytest.raises(RuntimeUnavailable, match="no driver here"):
        PyTorchCudaChannelsLast(checkpoint, SPEC, OPTIONS)
