"""PyTorch in other precisions: float32 outside, really another type inside, refused where it would be emulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segx.errors import RuntimeUnavailable, UsageError
from segx.model.spec import ModelSpec
from segx.runtimes.base import RuntimeOptions
from segx.runtimes.pytorch import Float32InAndOut, PyTorchCpu, PyTorchCuda

BF16 = RuntimeOptions(threads=2, precision="bf16")
FP32 = RuntimeOptions(threads=2)


@pytest.fixture
def batch(tiny_spec: ModelSpec) -> np.ndarray:
    return np.random.default_rng(0).random((2, *tiny_spec.input_shape), dtype=np.float32)


def test_bf16_is_refused_where_the_processor_would_emulate_it(
    tiny_spec: ModelSpec, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: ("avx2", "avx512f"))
    with pytest.raises(RuntimeUnavailable, match="no bf16 arithmetic") as caught:
        PyTorchCpu(tiny_checkpoint, tiny_spec, BF16)
    assert "fp32" in caught.value.hint
    assert PyTorchCpu.check(FP32)


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_bf16_computes_in_bf16_with_float32_in_and_out(
    tiny_spec: ModelSpec, tiny_checkpoint: Path, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: (flag,))
    runtime = PyTorchCpu(tiny_checkpoint, tiny_spec, BF16)
    expected, got = PyTorchCpu(tiny_checkpoint, tiny_spec, FP32).infer(batch), runtime.infer(batch)
    assert got.dtype == np.float32
    assert 0 < np.abs(expected - got).max() < 5e-2 * max(1.0, float(np.ptp(expected)))
    assert runtime.facts["weights"] == "bfloat16"


def test_an_unknown_precision_is_refused(tiny_spec: ModelSpec, tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        PyTorchCpu(tiny_checkpoint, tiny_spec, RuntimeOptions(threads=2, precision="int8"))


@pytest.mark.parametrize(
    ("capability", "unavailable"),
    [((7, 0), {"tf32", "bf16"}), ((8, 0), set()), ((5, 2), {"tf32", "bf16", "fp16"})],
)
def test_a_gpu_that_lacks_a_precision_is_refused(
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


def test_fp16_inside_float32_outside() -> None:
    seen = []

    class Looks(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.dtype)
            return images

    logits = Float32InAndOut(Looks(), torch.float16, torch.contiguous_format)(torch.rand(1, 1, 4, 4))
    assert seen == [torch.float16]
    assert logits.dtype == torch.float32
