"""What to deploy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from segx.analysis.recommend import decide
from segx.results.types import Cell, HostMemory, Results

MakeResults = Callable[..., Results]


def cell(runtime: str, batch_size: int, seconds_per_image: float, mebibytes: int = 100, **changes: Any) -> Cell:
    made = Cell(
        runtime=runtime,
        precision="fp32",
        batch_size=batch_size,
        status="ok",
        samples_s=(seconds_per_image * batch_size,) * 10,
        host_memory=HostMemory(0, 0, mebibytes * 2**20, "made up"),
    )
    return dataclasses.replace(made, **changes)


def test_the_best_of_each_kind(make_results: MakeResults) -> None:
    results = make_results(
        cell("pytorch-cpu", 1, 0.4, 50),
        cell("onnxruntime-cpu", 1, 0.2),
        cell("onnxruntime-cpu", 8, 0.1),
        cell("openvino-cpu", 1, 0.15, precision="int8"),
    )
    throughput, latency, memory = decide(results).picks
    assert (throughput.cell.runtime, throughput.cell.batch_size) == ("onnxruntime-cpu", 8)
    assert latency.cell.runtime == "openvino-cpu"
    assert memory.cell.runtime == "pytorch-cpu"
    assert throughput.command == "segx export --weights w.pth"
    assert latency.command == "segx export --weights w.pth --precision int8 --engine openvino"
    assert memory.command == ""


def test_what_failed_or_broke_the_masks_is_never_recommended(make_results: MakeResults) -> None:
    results = make_results(
        cell("onnxruntime-cpu", 1, 0.2),
        cell("openvino-cpu", 1, 0.1, status="parity broken"),
        cell("fake", 1, 0.0001, scope="device"),  # its images still have to get there
        cell("openvino-cpu", 1, 0.1, stopped="interrupted"),  # before its masks were judged
    )
    assert {choice.cell.runtime for choice in decide(results).picks} == {"onnxruntime-cpu"}
    assert decide(make_results(cell("openvino-cpu", 1, 0.1, status="parity broken"))).picks == ()


def test_ties_are_named(make_results: MakeResults) -> None:
    noisy = (0.19, 0.2, 0.21, 0.18, 0.22, 0.2, 0.19, 0.21)
    results = make_results(
        cell("onnxruntime-cpu", 1, 0.2, samples_s=noisy),
        cell("openvino-cpu", 1, 0.2, samples_s=tuple(s * 0.99 for s in noisy)),
        cell("pytorch-cpu", 1, 0.4),
    )
    (throughput, *_) = decide(results).picks
    assert throughput.cell.runtime == "openvino-cpu"
    assert [tied.runtime for tied in throughput.ties] == ["onnxruntime-cpu"]
    assert [(str(tie.variant), tie.batch_size) for tie in throughput.ties] == [("onnxruntime-cpu:fp32", 1)]
