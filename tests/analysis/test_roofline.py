"""The roofline: a network's work against a device's peaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from segx.analysis.roofline import ceiling_of, why_no_ceiling
from segx.bench.roofline_probe import network_work
from segx.errors import ArtifactError
from segx.model.spec import ModelSpec
from segx.results.types import Cell, Peaks, Results, Work

MakeResults = Callable[..., Results]

WORK = Work(operations=10**9, weight_bytes=10**6, activation_bytes=10**7, operators=3)
PEAKS = Peaks(
    device="cpu",
    operations_per_s={"fp32": 1e11, "int8": 4e11},
    copy_bytes_per_s=1e10,
    method="made up",
    missing={"bf16": "no such instructions"},
)
CELL = Cell(runtime="onnxruntime-cpu", precision="fp32", batch_size=2, status="ok", samples_s=(0.04,) * 3)


def with_ceiling(results: Results, *peaks: Peaks) -> Results:
    return dataclasses.replace(results, model=dataclasses.replace(results.model, work=WORK), peaks=peaks)


# The bound


@pytest.fixture
def seconds_at_best(make_results: MakeResults) -> Callable[..., float]:
    """Return the least seconds of a call by the peaks, the batch size and the precision."""

    def least(peaks: Peaks, batch_size: int, precision: str = "fp32") -> float:
        cell = dataclasses.replace(CELL, batch_size=batch_size, precision=precision)
        slow = dataclasses.replace(cell, samples_s=(1e6,) * 3)
        found = ceiling_of(slow, with_ceiling(make_results(slow), peaks))
        assert found
        return found.seconds

    return least


def test_the_longer_of_arithmetic_and_traffic_counts(seconds_at_best: Callable[..., float]) -> None:
    assert seconds_at_best(PEAKS, 1) == pytest.approx(0.01)
    slow = dataclasses.replace(PEAKS, copy_bytes_per_s=1e8)
    assert seconds_at_best(slow, 1) == pytest.approx(0.11)
    assert seconds_at_best(slow, 4) == pytest.approx(0.41)  # weights once per call


def test_narrow_precisions_have_their_own_peak_and_fewer_bytes(seconds_at_best: Callable[..., float]) -> None:
    assert seconds_at_best(PEAKS, 1, "int8") == pytest.approx(0.0025)
    slow = dataclasses.replace(PEAKS, copy_bytes_per_s=1e8)
    assert seconds_at_best(slow, 1, "int8") == pytest.approx(0.11 / 4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(small=st.integers(1, 64), more=st.integers(1, 64))
def test_a_larger_batch_takes_no_less_and_no_more_per_image(
    seconds_at_best: Callable[..., float], small: int, more: int
) -> None:
    few, many = (seconds_at_best(PEAKS, batch) for batch in (small, small + more))
    assert many >= few
    assert many / (small + more) <= few / small * (1 + 1e-12)


# A cell's share


def test_a_cell_has_a_share_of_its_ceiling(make_results: MakeResults) -> None:
    found = ceiling_of(CELL, with_ceiling(make_results(CELL), PEAKS))
    assert found
    assert found.seconds == pytest.approx(0.02)
    assert found.share == pytest.approx(0.5)
    assert found.bound_by == "arithmetic"
    assert found.operations_per_s == pytest.approx(5e10)
    slow = dataclasses.replace(CELL, samples_s=(0.5,) * 3)
    found = ceiling_of(slow, with_ceiling(make_results(slow), dataclasses.replace(PEAKS, copy_bytes_per_s=1e8)))
    assert found
    assert found.bound_by == "memory"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "failed", "samples_s": ()}, "not measured"),
        ({"precision": "bf16"}, "no such instructions"),
        ({"precision": "fp16"}, "peak in fp16 was not measured"),
        ({"runtime": "onnxruntime-cuda"}, "peaks were not measured"),
    ],
)
def test_without_a_ceiling_there_is_a_reason(make_results: MakeResults, change: dict[str, Any], reason: str) -> None:
    cell = dataclasses.replace(CELL, **change)
    results = with_ceiling(make_results(cell), PEAKS)
    assert ceiling_of(cell, results) is None
    assert reason in why_no_ceiling(cell, results)


def test_a_cell_that_beats_the_probe_has_no_share(make_results: MakeResults) -> None:
    """A share of more than all is none."""
    fast = dataclasses.replace(CELL, samples_s=(0.0199,) * 3)
    results = with_ceiling(make_results(fast), PEAKS)
    assert ceiling_of(fast, results) is None
    assert "peak not reached by the probe" in why_no_ceiling(fast, results)
    even = dataclasses.replace(CELL, samples_s=(0.02,) * 3)
    found = ceiling_of(even, with_ceiling(make_results(even), PEAKS))
    assert found
    assert found.share == pytest.approx(1.0)


def test_without_work_there_is_no_ceiling(make_results: MakeResults) -> None:
    assert ceiling_of(CELL, make_results(CELL)) is None
    assert "operations were not counted" in why_no_ceiling(CELL, make_results(CELL))


def test_each_device_has_its_own_peaks(make_results: MakeResults) -> None:
    gpu = dataclasses.replace(PEAKS, device="cuda", operations_per_s={"fp32": 1e13})
    results = with_ceiling(make_results(CELL), PEAKS, gpu)
    assert results.peaks_of("cuda") == gpu
    found = ceiling_of(dataclasses.replace(CELL, runtime="onnxruntime-cuda"), results)
    assert found
    assert found.seconds == pytest.approx(0.0021)  # bound by memory there


# Counting


def save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, list[int]], image: list[Any]) -> Path:
    """A network of these nodes, from ``image`` to ``logits``."""
    graph = helper.make_graph(
        nodes,
        "made up",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [
            helper.make_tensor(name, TensorProto.FLOAT, dims, b"\0" * 4 * _product(dims), raw=True)
            for name, dims in weights.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _product(dims: list[int]) -> int:
    result = 1
    for dim in dims:
        result *= dim
    return result


def node(op: str, inputs: list[str], output: str = "logits", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


@pytest.mark.parametrize(
    ("nodes", "weights", "image", "multiplications", "values"),
    [
        # 8 output channels of 5x5, each from 4 channels and 3x3
        ([node("Conv", ["image", "w"], pads=[1] * 4)], {"w": [8, 4, 3, 3]}, [4, 5, 5], 8 * 25 * 36, 100 + 200),
        # two groups: each from 2 channels
        ([node("Conv", ["image", "w"], pads=[1] * 4, group=2)], {"w": [8, 2, 3, 3]}, [4, 5, 5], 8 * 25 * 18, 300),
        # half of the rows and columns
        ([node("Conv", ["image", "w"], strides=[2, 2])], {"w": [8, 4, 1, 1]}, [4, 4, 4], 8 * 4 * 4, 64 + 32),
        # 4 channels of 5x5, each value spread over 8 channels and 2x2
        ([node("ConvTranspose", ["image", "w"], strides=[2, 2])], {"w": [4, 8, 2, 2]}, [4, 5, 5], 100 * 32, 100 + 800),
        ([node("MatMul", ["image", "w"])], {"w": [6, 7]}, [5, 6], 5 * 7 * 6, 30 + 35),
        # what lies between is fused
        (
            [node("Conv", ["image", "w"], "x"), node("Relu", ["x"])],
            {"w": [2, 1, 1, 1]},
            [1, 3, 3],
            18,
            9 + 18,
        ),
    ],
)
def test_operations_and_bytes_are_counted(
    nodes: list[onnx.NodeProto],
    weights: dict[str, list[int]],
    image: list[int],
    multiplications: int,
    values: int,
    tmp_path: Path,
) -> None:
    path = save(tmp_path / "made_up.onnx", nodes, weights, ["batch", *image])
    for batch in (1, 3):
        work = network_work(path, batch)
        assert work.operations == 2 * multiplications
        assert work.activation_bytes == 4 * values
        assert work.weight_bytes == 4 * sum(_product(dims) for dims in weights.values())
        assert work.operators == 1


@pytest.mark.parametrize(("transposed", "weight"), [(0, [6, 7]), (1, [7, 6])])
def test_a_product_of_matrices_may_be_transposed(transposed: int, weight: list[int], tmp_path: Path) -> None:
    path = save(tmp_path / "made_up.onnx", [node("Gemm", ["image", "w"], transB=transposed)], {"w": weight}, ["n", 6])
    assert network_work(path).operations == 2 * 6 * 7


def test_the_count_is_that_of_pytorchs_own_counter(
    tiny_checkpoint: Path, tiny_onnx: Path, tiny_spec: ModelSpec
) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from segx.model.smp import load_model

    module = load_model(tiny_checkpoint, tiny_spec)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(torch.zeros(1, *tiny_spec.input_shape))
    assert network_work(tiny_onnx).operations == counter.get_total_flops()


def test_nothing_counts_in_a_network_without_products(plain_onnx: Path) -> None:
    work = network_work(plain_onnx)
    assert (work.operations, work.operators, work.activation_bytes) == (0, 0, 0)


def test_unknown_shapes_are_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "made_up.onnx", [node("Conv", ["image", "w"])], {"w": [2, 1, 1, 1]}, ["n", 1, "h", "w2"])
    with pytest.raises(ArtifactError, match="the shape of image cannot be inferred"):
        network_work(path)


def test_files_other_than_onnx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be counted"):
        network_work(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(ArtifactError, match="cannot be counted"):
        network_work(tmp_path / "broken.onnx")
