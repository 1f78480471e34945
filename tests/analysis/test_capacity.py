"""Machines, hours and price from the times of a bench."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.capacity import CapacityPlan, Demand, plan_capacity
from segx.masks.metrics import TruthScore
from segx.reporting.capacity_document import capacity_data, capacity_document
from segx.reporting.renderers.text import to_text
from segx.results.types import Cell
from segx.runtimes import Scope
from tests import builders


def cell(runtime: str, seconds_per_image: float, batch_size: int = 1, scope: Scope = "forward", **changes: Any) -> Cell:
    made = Cell(
        runtime=runtime,
        precision="fp32",
        batch_size=batch_size,
        status="ok",
        scope=scope,
        samples_s=(seconds_per_image * batch_size,) * 10,
    )
    return dataclasses.replace(made, **changes)


def plan_of(*cells: Cell, images: int = 1_000_000, deadline_s: float = 36_000.0, **demand: Any) -> CapacityPlan:
    return plan_capacity(builders.results(*cells), Demand(images=images, deadline_s=deadline_s, **demand))


WORSE = TruthScore(iou=0.8, dice=0.9, reference_iou=0.9, reference_dice=0.95, loss=0.1, loss_low=0.08, loss_high=0.12)


def test_a_worked_example() -> None:
    started = {"import_s": 10.0, "load_s": 80.0, "first_s": 10.0}
    (fleet,) = plan_of(cell("openvino-cpu", 0.1, **started), images=718_000, price_per_hour=2.0).fleets
    assert fleet.machines == 2  # 71,800 s of work in 35,900 s
    assert fleet.hours == pytest.approx(10.0)
    assert fleet.price == pytest.approx(40.0)
    (fleet,) = plan_of(cell("openvino-cpu", 0.1, **started), images=718_001).fleets
    assert (fleet.machines, fleet.price) == (3, None)


def test_files_count_as_far_as_they_were_measured() -> None:
    forward = [cell("openvino-cpu", 0.010), cell("onnxruntime-cpu", 0.030), cell("pytorch-cpu", 0.050)]
    piped = [cell("onnxruntime-cpu", 0.035, scope="pipeline"), cell("pytorch-cpu", 0.053, scope="pipeline")]
    fleets = {fleet.cell.runtime: fleet for fleet in plan_of(*forward, *piped).fleets}
    assert {name: fleet.basis for name, fleet in fleets.items()} == {
        "openvino-cpu": "estimated",
        "onnxruntime-cpu": "measured",
        "pytorch-cpu": "measured",
    }
    assert fleets["openvino-cpu"].seconds_per_image == pytest.approx(0.015)
    assert fleets["onnxruntime-cpu"].seconds_per_image == pytest.approx(0.035)
    assert {fleet.basis for fleet in plan_of(*forward).fleets} == {"forward"}
    assert {fleet.basis for fleet in plan_of(*piped).fleets} == {"measured"}


def test_the_fastest_batch_size_of_each_variant_counts_and_the_fewest_machines_come_first() -> None:
    cells = [cell("pytorch-cpu", 0.1), cell("openvino-cpu", 0.05), cell("openvino-cpu", 0.02, batch_size=4)]
    fleets = plan_of(*cells).fleets
    assert [(fleet.cell.runtime, fleet.cell.batch_size) for fleet in fleets] == [
        ("openvino-cpu", 4),
        ("pytorch-cpu", 1),
    ]


def test_a_slow_start_costs_machines_and_counts_in_the_order() -> None:
    slow = {"import_s": 0.0, "load_s": 90.0, "first_s": 0.0}
    plan = plan_of(cell("openvino-cpu", 0.01, **slow), cell("pytorch-cpu", 0.02), images=50_000, deadline_s=100.0)
    assert [(fleet.cell.runtime, fleet.machines) for fleet in plan.fleets] == [
        ("pytorch-cpu", 10),
        ("openvino-cpu", 50),
    ]


def test_a_variant_that_failed_from_file_to_file_is_left_out() -> None:
    forward = [cell("openvino-cpu", 0.01), cell("pytorch-cpu", 0.02)]
    failed = cell("openvino-cpu", 0.01, scope="pipeline", status="parity broken")
    assert [fleet.cell.runtime for fleet in plan_of(*forward, failed).fleets] == ["pytorch-cpu"]


def test_the_decision_says_on_what_it_is_based() -> None:
    def decision(*cells: Cell) -> str:
        results = builders.results(*cells)
        plan = plan_capacity(results, Demand(images=10**6, deadline_s=36_000.0))
        return to_text(capacity_document(plan, results)).splitlines()[-1]

    forward, piped = cell("openvino-cpu", 0.05), cell("pytorch-cpu", 0.1, scope="pipeline")
    assert decision(forward).startswith("At least 2 machines with openvino-cpu:fp32")
    assert decision(forward, cell("pytorch-cpu", 0.09), piped).startswith("About 2 machines with openvino-cpu:fp32")
    assert decision(piped).startswith("3 machines with pytorch-cpu:fp32")


def test_cores_change_the_time_on_a_cpu_alone() -> None:
    cells = [cell("openvino-cpu", 0.1), cell("onnxruntime-cuda", 0.1)]
    times = {fleet.cell.runtime: fleet.seconds_per_image for fleet in plan_of(*cells, cores=8).fleets}
    assert times == pytest.approx({"openvino-cpu": 0.025, "onnxruntime-cuda": 0.1})  # measured with 2 threads
    results = builders.results(*cells)
    many = dataclasses.replace(results, options=dataclasses.replace(results.options, threads=64))
    again = plan_capacity(many, Demand(images=1, deadline_s=60.0, cores=8))
    assert {fleet.cell.runtime: fleet.seconds_per_image for fleet in again.fleets} == pytest.approx(times)
    few_threads = dataclasses.replace(results, machine=dataclasses.replace(results.machine, cores_usable=16))
    again = plan_capacity(few_threads, Demand(images=1, deadline_s=60.0, cores=8))
    assert {fleet.cell.runtime: fleet.seconds_per_image for fleet in again.fleets} == pytest.approx(times)


def test_what_may_not_be_deployed_is_not_planned_with() -> None:
    broken = cell("openvino-cpu", 0.01, status="parity broken")
    cut_short = cell("onnxruntime-cpu", 0.01, stopped="interrupted")
    plan = plan_of(broken, cut_short, cell("pytorch-cpu", 0.2))
    assert [fleet.cell.runtime for fleet in plan.fleets] == ["pytorch-cpu"]
    assert plan_of(broken).fleets == ()


@pytest.mark.parametrize(
    "forward",
    [
        cell("openvino-cpu", 0.01, status="parity broken"),
        cell("openvino-cpu", 0.01, parity=builders.parity(images=8, truth=WORSE)),
    ],
    ids=["logits differ", "worse by the true masks"],
)
def test_what_failed_in_the_forward_scope_is_not_planned_with(forward: Cell) -> None:
    """The pipeline scope judges neither logits nor quality."""
    piped = cell("openvino-cpu", 0.02, scope="pipeline", parity=builders.parity())
    plan = plan_of(forward, piped, cell("pytorch-cpu", 0.1), cell("pytorch-cpu", 0.2, scope="pipeline"))
    assert [fleet.cell.runtime for fleet in plan.fleets] == ["pytorch-cpu"]
    other = dataclasses.replace(piped, batch_size=4)  # was not run in the forward scope
    assert {fleet.cell.batch_size for fleet in plan_of(forward, piped, other).fleets} == {4}


def test_what_the_bench_requires_of_masks_holds_for_its_plan() -> None:
    edges = builders.parity(flipped_pixels=50, worst_iou=0.999)
    fast = cell("openvino-cpu", 0.01, parity=edges, precision="int8")
    cells = fast, cell("onnxruntime-cpu", 0.2, parity=builders.parity())
    results = builders.results(*cells)
    results = dataclasses.replace(results, options=dataclasses.replace(results.options, require="identical"))
    plan = plan_capacity(results, Demand(images=100, deadline_s=3600.0))
    assert [fleet.cell.runtime for fleet in plan.fleets] == ["onnxruntime-cpu"]
    assert "masks identical" in to_text(capacity_document(plan, results))
    plan = plan_capacity(results, Demand(images=100, deadline_s=3600.0, require="edges"))
    assert len(plan.fleets) == 2


def test_no_number_of_machines_starts_faster() -> None:
    (fleet,) = plan_of(cell("openvino-cpu", 0.1, import_s=1.0, load_s=8.0, first_s=1.0), deadline_s=10.0).fleets
    assert (fleet.machines, fleet.hours, fleet.price) == (None, None, None)
    plan = plan_of(cell("openvino-cpu", 0.1, import_s=1.0, load_s=8.0, first_s=1.0), deadline_s=10.0)
    assert "starting and segmenting one image take longer" in to_text(
        capacity_document(plan, builders.results(fleet.cell))
    )


@pytest.mark.parametrize(("price", "told"), [(0.4, "0.40"), (0.004, "0.004"), (0.0416, "0.0416"), (1234.5, "1,234.50")])
def test_the_price_is_told_as_given(price: float, told: str) -> None:
    plan = plan_of(cell("openvino-cpu", 0.1), price_per_hour=price)
    text = to_text(capacity_document(plan, builders.results(cell("openvino-cpu", 0.1))))
    assert f" {told} per machine and hour" in text


def test_a_start_that_was_not_measured_is_told() -> None:
    piped = cell("openvino-cpu", 0.1, scope="pipeline")
    (told,) = (line for line in capacity_data(plan_of(piped))["assumptions"] if "start" in line and "not" in line)
    assert "openvino-cpu:fp32" in told


def test_one_image_cannot_be_split() -> None:
    (fleet,) = plan_of(cell("openvino-cpu", 2.0), images=3, deadline_s=1.9).fleets
    assert (fleet.machines, fleet.hours) == (None, None)
    (fleet,) = plan_of(cell("openvino-cpu", 2.0), images=3, deadline_s=2.0).fleets
    assert fleet.machines == 3


@given(
    st.integers(1, 10**9),
    st.floats(1e-5, 1.0),
    st.floats(60.0, 1e6),
    st.floats(0.0, 59.0),
    st.floats(0.0, 100.0),
)
def test_the_machines_are_done_in_time_and_one_fewer_is_not(
    images: int, seconds: float, deadline_s: float, start_s: float, price: float
) -> None:
    made = cell("openvino-cpu", seconds, import_s=0.0, load_s=start_s, first_s=0.0)
    (fleet,) = plan_of(made, images=images, deadline_s=deadline_s, price_per_hour=price).fleets
    assert fleet.machines
    assert fleet.hours
    assert fleet.hours * 3600 <= deadline_s * (1 + 1e-9)
    if fleet.machines > 1:
        assert start_s + images * fleet.seconds_per_image / (fleet.machines - 1) > deadline_s * (1 - 1e-9)
    assert fleet.price == pytest.approx(fleet.machines * fleet.hours * price)
    if fleet.machines_range:
        assert fleet.machines_range[0] <= fleet.machines <= fleet.machines_range[1]


def test_text_and_data_say_what_is_assumed() -> None:
    results = builders.results(cell("openvino-cpu", 0.1))
    plan = plan_capacity(results, Demand(images=10**6, deadline_s=86_400.0, price_per_hour=0.5, cores=4))
    shown, data = to_text(capacity_document(plan, results)), capacity_data(plan)
    assert "--scope forward,pipeline" in shown
    assert "multiplied by 0.5" in shown
    assert data["fleets"][0]["variant"] == "openvino-cpu:fp32"
    assert data["fleets"][0]["machines"] == 1
    assert data["demand"]["images"] == 10**6
    assert data["assumptions"]
