"""Peaks of the machine, on a clock that only the test moves where figures matter."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from segx.analysis.roofline import ceiling_of
from segx.bench import roofline_probe
from segx.bench.roofline_probe import measure_roofline, openvino_peaks, torch_peaks
from segx.errors import RuntimeUnavailable
from segx.results.types import Peaks, Results, Work
from segx.system.processes import Workers


class Clock:
    """Moves by what each call takes."""

    def __init__(self) -> None:
        self.now_s = 10.0

    def __call__(self) -> float:
        return self.now_s

    def product(self, seconds: Callable[[int], float]) -> Callable[[int], Callable[[], None]]:
        """Products that take so long, by their number."""
        self.calls = 0

        def make(size: int) -> Callable[[], None]:
            def multiply() -> None:
                self.calls += 1
                self.sizes.add(size)
                self.now_s += 2 * size**3 * seconds(self.calls)

            return multiply

        self.sizes: set[int] = set()
        return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stand_in = Clock()
    monkeypatch.setattr(time, "perf_counter", stand_in)
    return stand_in


def test_the_best_of_many_disturbed_products_is_the_peak(clock: Clock) -> None:
    make = clock.product(lambda call: 1e-10 if call % 7 == 0 else 5e-10)
    assert roofline_probe._best_rate(make) == pytest.approx(1e10)


def test_large_products_are_tried_if_they_are_fast(clock: Clock) -> None:
    roofline_probe._best_rate(clock.product(lambda _: 1e-10))  # 10 GFLOP/s
    assert max(clock.sizes) == 1024
    roofline_probe._best_rate(clock.product(lambda _: 1e-14))  # 100 TFLOP/s
    assert max(clock.sizes) == 8192


def test_the_first_call_does_not_count(clock: Clock) -> None:
    took = iter([9.0, *[0.5] * 10])

    def call() -> None:
        clock.now_s += next(took)

    assert roofline_probe._least_seconds(call) == pytest.approx(0.5)


def test_a_narrower_number_is_never_slower_than_fp32() -> None:
    assert roofline_probe._at_least_fp32({"fp32": 2.0, "bf16": 1.0, "int8": 3.0}) == {
        "fp32": 2.0,
        "bf16": 2.0,
        "int8": 3.0,
    }


@pytest.mark.parametrize("measure", [openvino_peaks, partial(torch_peaks, "cpu")])
def test_the_processors_are_measured(measure: Callable[..., Peaks]) -> None:
    found = measure(threads=2)
    assert found.device == "cpu"
    assert set(found.operations_per_s) | set(found.missing) == {"fp32", "bf16", "int8"}
    # Of whatever machine: between a toy and a supercomputer.
    assert all(1e8 < rate < 1e15 for rate in found.operations_per_s.values())
    assert 1e7 < found.copy_bytes_per_s < 1e14
    assert all(rate >= found.operations_per_s["fp32"] for rate in found.operations_per_s.values())
    assert "2 threads" in found.method


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the figures are, they are measured quickly."""
    monkeypatch.setattr(roofline_probe, "_SECONDS_EACH", 0.0)
    monkeypatch.setattr(roofline_probe, "_SIZES", (256,))
    monkeypatch.setattr(roofline_probe, "_COPY_BYTES", {"cpu": 2**20})


@pytest.mark.usefixtures("brief")
def test_a_product_that_pytorch_lacks_is_missing_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def lacks(*_: Any) -> None:
        raise RuntimeError('"addmm" not implemented for Char\nand so on')

    monkeypatch.setattr(torch, "_int_mm", lacks)
    found = torch_peaks("cpu", threads=1)
    assert "int8" not in found.operations_per_s
    assert "not implemented for Char" in found.missing["int8"]
    assert "and so on" not in found.missing["int8"]


@pytest.mark.usefixtures("brief")
def test_a_product_that_fails_once_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    multiply, calls = torch.mm, 0

    def fails_once(*operands: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("out of memory")
        return multiply(*operands)

    monkeypatch.setattr(torch, "mm", fails_once)
    found = torch_peaks("cpu", threads=1)
    assert "fp32" in found.operations_per_s
    assert "fp32" not in found.missing


def test_without_a_gpu_its_peaks_are_unavailable() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeUnavailable, match="sees no GPU"):
        torch_peaks("cuda", threads=1)


@pytest.mark.gpu
def test_a_gpu_is_measured() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    found = torch_peaks("cuda", threads=1)
    assert found.device == "cuda"
    assert found.operations_per_s["fp16"] > found.operations_per_s["fp32"] > 1e11
    assert found.copy_bytes_per_s > 1e10


# In worker processes


class OneWorker:
    """Run what a worker would run, in this process, or fail as one does."""

    def __init__(self, *, gpu_fails: bool = False) -> None:
        self.called: list[str] = []
        self._gpu_fails = gpu_fails

    def call(self, function: Callable[..., Any], arguments: dict[str, Any], **_: Any) -> Any:
        self.called.append(function.__name__)
        if function in (torch_peaks, openvino_peaks):
            device = arguments.get("device", "cpu")
            if self._gpu_fails and device == "cuda":
                raise RuntimeUnavailable("the GPU fell off the bus", hint="reseat it")
            return Peaks(device=device, operations_per_s={}, copy_bytes_per_s=1.0, method="made up")
        return function(**arguments)


def found_by(workers: Any, onnx: Path | None, *, gpu: int | None = None) -> tuple[Work | None, tuple[Peaks, ...]]:
    return measure_roofline(workers, onnx, gpu=gpu, threads=1, timeout_s=60.0)


def test_work_and_peaks_come_from_a_real_worker(tiny_onnx: Path) -> None:
    work, found = found_by(Workers(threads=2), tiny_onnx)
    assert work
    assert work.operations > 0
    assert [entry.device for entry in found] == ["cpu"]


def test_without_operations_there_is_nothing_to_measure(plain_onnx: Path) -> None:
    workers = OneWorker()
    assert found_by(workers, plain_onnx, gpu=0) == (None, ())
    assert found_by(workers, None) == (None, ())
    assert len(workers.called) == 1


@pytest.mark.parametrize(("installed", "called"), [(True, "openvino_peaks"), (False, "torch_peaks")])
def test_pytorch_measures_where_openvino_is_missing(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, installed: bool, called: str
) -> None:
    workers = OneWorker()
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    _, found = found_by(workers, tiny_onnx)
    assert workers.called == ["network_work", called]
    assert len(found) == 1


def test_a_gpu_is_measured_beside_the_processors(tiny_onnx: Path) -> None:
    _, found = found_by(OneWorker(), tiny_onnx, gpu=0)
    assert [entry.device for entry in found] == ["cpu", "cuda"]


def test_what_fails_is_left_out_with_a_warning(tiny_onnx: Path, caplog: pytest.LogCaptureFixture) -> None:
    work, found = found_by(OneWorker(gpu_fails=True), tiny_onnx, gpu=0)
    assert work
    assert [entry.device for entry in found] == ["cpu"]
    assert "fell off the bus" in caplog.text
    assert found_by(OneWorker(), tiny_onnx.with_name("missing.onnx")) == (None, ())


# In a bench


def test_a_bench_records_its_roofline_and_the_time_that_took(bench: Callable[..., Results], tiny_onnx: Path) -> None:
    results = bench(model=tiny_onnx, runtimes=["onnxruntime-cpu"], batch_sizes=(1,), num_images=1)
    (cell,) = results.cells
    assert results.model.work
    assert results.model.work.operations > 0
    (peaks,) = results.peaks
    # So small a network stays in a cache and may be faster than the probe, but not than this.
    rates = {name: 1e6 * rate for name, rate in peaks.operations_per_s.items()}
    faster = replace(peaks, operations_per_s=rates, copy_bytes_per_s=1e6 * peaks.copy_bytes_per_s)
    found = ceiling_of(cell, replace(results, peaks=(faster,)))
    assert found
    assert 0 < found.share < 1
    assert results.wall
    assert results.wall.peaks > 0
    assert results.wall.overhead >= 0
