"""Which precisions a machine computes in, by runtime."""

from __future__ import annotations

from typing import Any

import pytest

from segx.runtimes import RUNTIMES, precision_support
from segx.system import machine
from segx.system.machine import GpuReading

_AMX = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@pytest.mark.parametrize(
    ("runtime", "flags", "expected"),
    [
        ("pytorch-cpu", ("avx2",), {"fp32": "native", "fp16": "emulated", "bf16": "emulated", "int8": "no"}),
        ("pytorch-cpu", _AMX, {"fp32": "native", "fp16": "emulated", "bf16": "native", "int8": "no"}),
        ("openvino-cpu", ("avx512_fp16",), {"fp16": "emulated", "bf16": "emulated", "int8": "emulated"}),
        ("openvino-cpu", (*_AMX, "amx_fp16"), {"fp16": "native", "bf16": "native", "int8": "native"}),
        ("onnxruntime-cpu", _AMX, {"fp32": "native", "tf32": "no", "bf16": "no", "fp16": "no", "int8": "native"}),
    ],
)
def test_instruction_sets_decide_on_a_cpu(
    runtime: str, flags: tuple[str, ...], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    assert expected.items() <= precision_support(RUNTIMES[runtime]).items()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), {"fp32": "native", "tf32": "native", "fp16": "native", "bf16": "native"}),
        ((7, 5), {"fp32": "native", "tf32": "no", "fp16": "native", "bf16": "no"}),
    ],
)
def test_the_compute_capability_decides_on_a_gpu(
    capability: tuple[int, int], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "compute_capability", lambda: capability)
    assert expected.items() <= precision_support(RUNTIMES["pytorch-cuda"]).items()


def test_without_a_gpu_only_fp32_is_left_to_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "compute_capability", lambda: (0, 0))
    assert {each for each, found in precision_support(RUNTIMES["pytorch-cuda"]).items() if found != "no"} == {"fp32"}


@pytest.mark.parametrize(("read", "expected"), [(("9.0", "7.5"), (9, 0)), (("",), (0, 0)), ((), (0, 0))])
def test_the_first_gpu_has_the_compute_capability(
    read: tuple[str, ...], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuple(GpuReading("GPU", 0, "", text, "", None, None, None, None) for text in read)
    monkeypatch.setattr(machine, "gpus", lambda: found)
    assert machine.compute_capability.__wrapped__() == expected
