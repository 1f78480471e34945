"""The timing loop, on a scripted clock."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.bench.timing import StopRule, timed_runs
from segx.runtimes.base import FloatArray


class Lab:
    """A clock that only calls move, and that records what happens between two reads."""

    def __init__(self, latencies_s: list[float]) -> None:
        self.now_ns = 0
        self.events: list[str] = []
        self.kept: list[int] = []
        self._latencies = itertools.cycle(latencies_s)

    def clock(self) -> int:
        self.events.append("clock")
        return self.now_ns

    def infer(self, batch: FloatArray) -> FloatArray:
        self.events.append("infer")
        self.now_ns += round(next(self._latencies) * 1e9)
        return batch

    def take(self, run: int) -> FloatArray:
        self.events.append("take")
        self.now_ns += 5_000_000_000  # slow to prepare: must not be timed
        return np.full(1, run, dtype=np.float32)

    def keep(self, run: int, logits: FloatArray) -> None:
        self.events.append("keep")
        self.now_ns += 5_000_000_000
        self.kept.append(run)
        assert logits[0] == run


def run(lab: Lab, slice_s: float, first_run: int = 0) -> list[float]:
    return timed_runs(lab.infer, lab, first_run=first_run, slice_s=slice_s, clock=lab.clock)


def test_nothing_but_the_call_is_timed() -> None:
    lab = Lab([0.25])
    assert run(lab, 0.0) == [0.25]
    assert lab.events == ["take", "clock", "infer", "clock", "keep"]


def test_a_slice_ends_once_its_time_is_spent_in_calls() -> None:
    lab = Lab([0.4, 0.3])
    assert run(lab, 1.0) == [0.4, 0.3, 0.4]


def test_runs_are_numbered_on_from_the_last_slice() -> None:
    lab = Lab([0.5])
    run(lab, 1.0, first_run=7)
    assert lab.kept == [7, 8]


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_off_meanwhile_and_as_before_afterwards(enabled: bool) -> None:
    seen = []

    class Watching(Lab):
        def infer(self, batch: FloatArray) -> FloatArray:
            seen.append(gc.isenabled())
            return super().infer(batch)

    if not enabled:
        gc.disable()
    try:
        run(Watching([1.0]), 0.5)
        assert seen == [False]
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_garbage_collection_is_on_again_after_an_error() -> None:
    lab = Lab([1.0])

    def fail(_: FloatArray) -> FloatArray:
        raise MemoryError

    with pytest.raises(MemoryError):
        timed_runs(fail, lab, first_run=0, slice_s=1.0, clock=lab.clock)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("runs", "spent_s", "reason"),
    [
        (9, 9.0, None),  # too few runs
        (10, 4.9, None),  # too little time
        (10, 5.0, "complete"),
        (11, 5.1, "complete"),
        (3, 60.0, "budget spent"),
        (0, 60.0, None),  # nothing measured yet: a budget never leaves a cell empty
    ],
)
def test_stop_rule(runs: int, spent_s: float, reason: str | None) -> None:
    rule = StopRule(min_time_s=5.0, min_runs=10, full_pass=4, budget_s=60.0)
    assert rule.reason_to_stop(runs, spent_s) == reason


def test_a_full_pass_counts_like_a_minimum() -> None:
    rule = StopRule(min_time_s=0.0, min_runs=2, full_pass=64)
    assert rule.reason_to_stop(63, 100.0) is None
    assert rule.reason_to_stop(64, 100.0) == "complete"


@given(st.integers(0, 500), st.floats(0, 500), st.one_of(st.none(), st.floats(0.1, 100)))
def test_progress_is_a_fraction_and_full_when_stopping(runs: int, spent_s: float, budget_s: float | None) -> None:
    rule = StopRule(min_time_s=5.0, min_runs=10, full_pass=16, budget_s=budget_s)
    done = rule.fraction_done(runs, spent_s)
    assert 0.0 <= done <= 1.0
    if rule.reason_to_stop(runs, spent_s):
        assert done == pytest.approx(1.0)
