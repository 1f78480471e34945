"""The timing loop, on a scripted clock."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.stats import median_interval
from segx.bench.sampling import StopRule, by_clock, timed_runs
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
    return timed_runs(by_clock(lab.infer, lab.clock), lab, first_run=first_run, slice_s=slice_s)


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
        timed_runs(by_clock(fail, lab.clock), lab, first_run=0, slice_s=1.0)
    assert gc.isenabled()


def rule(**changes: float) -> StopRule:
    values = {"min_time_s": 5.0, "min_runs": 10, "full_pass": 4, "max_time_s": 20.0}
    return StopRule(**{**values, **changes})  # type: ignore[arg-type]


STEADY, WILD = (1.0, 1.001), (0.5, 1.5)


def samples(pair: tuple[float, float], runs: int, spent_s: float) -> list[float]:
    """So many calls of about two lengths, that took so long in all."""
    raw = [pair[i % 2] for i in range(runs)]
    return [value * spent_s / sum(raw) for value in raw]


@pytest.mark.parametrize(
    ("pair", "runs", "spent_s", "reason"),
    [
        (STEADY, 9, 9.0, None),  # too few runs
        (STEADY, 10, 4.9, None),  # too little time
        (STEADY, 10, 5.0, "settled"),
        (WILD, 10, 5.0, None),  # may still settle
        (WILD, 40, 19.9, None),
        (WILD, 40, 20.0, "not settled"),
    ],
)
def test_stop_rule(pair: tuple[float, float], runs: int, spent_s: float, reason: str | None) -> None:
    assert rule().reason_to_stop(samples(pair, runs, spent_s)) == reason


def test_a_full_pass_counts_like_a_minimum() -> None:
    whole = rule(min_time_s=0.0, min_runs=2, full_pass=64)
    assert whole.reason_to_stop([1.0] * 63) is None
    assert whole.reason_to_stop([1.0] * 64) == "settled"


def test_without_enough_runs_for_an_interval_nothing_is_settled() -> None:
    few = rule(min_time_s=0.0, min_runs=3, full_pass=1, max_time_s=10.0)
    assert few.reason_to_stop([1.0] * 3) is None
    assert few.reason_to_stop([4.0] * 3) == "not settled"


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.08])
def test_the_interval_covers_the_true_median_although_sampling_stops_when_it_is_narrow(sigma: float) -> None:
    """1,000 simulated cells; latencies are log-normal with a true median of 1."""
    choose = np.random.default_rng(round(sigma * 100))
    stop = rule(min_time_s=0.0, full_pass=1, max_time_s=150.0)
    covered = 0
    for _ in range(1000):
        drawn: list[float] = []
        while not stop.reason_to_stop(drawn):
            drawn += list(choose.lognormal(0.0, sigma, size=3))
        interval = median_interval(drawn)
        covered += bool(interval and interval.spans(1.0))
    assert covered >= 930


@given(st.lists(st.floats(1e-4, 10), max_size=60))
def test_progress_is_a_fraction(drawn: list[float]) -> None:
    assert 0.0 <= rule(full_pass=16).fraction_done(drawn) <= 1.0


def test_progress_is_towards_the_minima_and_then_towards_a_settled_median() -> None:
    assert rule().fraction_done(samples(STEADY, 10, 2.5)) == pytest.approx(0.5)  # of the time
    assert rule().fraction_done(samples(STEADY, 5, 5.0)) == pytest.approx(0.5)  # of the runs
    assert rule().fraction_done(samples(STEADY, 10, 5.0)) == 1.0
    assert rule().fraction_done(samples(WILD, 40, 10.0)) == pytest.approx(0.5)  # of --max-time
