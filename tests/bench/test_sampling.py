"""The timing loop on a scripted clock, the stop rule, and rounds on a machine that drifts."""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.stats import Interval, spread_of_median
from segx.bench.sampling import StopRule, by_clock, run_rounds, timed_runs
from segx.results import types
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


def samples(pair: tuple[float, float], runs: int, spent_s: float) -> list[list[float]]:
    """Return rounds of one call each, of about two lengths, that took so long in all."""
    raw = [pair[i % 2] for i in range(runs)]
    return [[value * spent_s / sum(raw)] for value in raw]


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


@pytest.mark.parametrize(
    ("min_time_s", "max_time_s", "slice_s"), [(1.0, 4.0, 0.1), (9.0, 20.0, 0.5), (0.0, 1.0, 0.01), (0.0, 0.0, 0.0)]
)
def test_a_round_is_a_tenth_of_the_shortest_or_a_hundredth_of_the_longest_sampling(
    min_time_s: float, max_time_s: float, slice_s: float
) -> None:
    rule = StopRule(min_time_s=min_time_s, min_runs=1, full_pass=1, max_time_s=max_time_s)
    assert rule.slice_s == pytest.approx(slice_s)


def test_a_full_pass_counts_like_a_minimum() -> None:
    whole = rule(min_time_s=0.0, min_runs=2, full_pass=64)
    assert whole.reason_to_stop([[1.0] * 9] * 7) is None
    assert whole.reason_to_stop([[1.0] * 8] * 8) == "settled"


def test_without_enough_runs_for_an_interval_nothing_is_settled() -> None:
    few = rule(min_time_s=0.0, min_runs=3, full_pass=1, max_time_s=10.0)
    assert few.reason_to_stop([[1.0]] * 3) is None
    assert few.reason_to_stop([[4.0]] * 3) == "not settled"


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.08])
def test_the_interval_covers_the_true_median_although_sampling_stops_when_it_is_narrow(sigma: float) -> None:
    """500 simulated cells; rounds vary by ``sigma`` about a true median of 1, and calls within a round by 1%."""
    choose = np.random.default_rng(round(sigma * 100))
    stop = rule(min_time_s=0.0, full_pass=1, max_time_s=150.0)
    covered = 0
    for _ in range(500):
        drawn: list[list[float]] = []
        while not stop.reason_to_stop(drawn):
            drawn.append(list(choose.lognormal(choose.normal(0.0, sigma), 0.01, size=3)))
        spread = spread_of_median([[math.log(statistics.median(each)) for each in drawn]], None)
        covered += bool(spread and abs(math.log(statistics.median(itertools.chain(*drawn)))) <= spread.reach)
    assert covered >= 465


@given(st.lists(st.lists(st.floats(1e-4, 10), min_size=1, max_size=4), max_size=60))
def test_progress_is_a_fraction(drawn: list[list[float]]) -> None:
    assert 0.0 <= rule(full_pass=16).fraction_done(drawn) <= 1.0


def test_progress_is_towards_the_minima_and_then_towards_a_settled_median() -> None:
    assert rule().fraction_done(samples(STEADY, 10, 2.5)) == pytest.approx(0.5)  # of the time
    assert rule().fraction_done(samples(STEADY, 5, 5.0)) == pytest.approx(0.5)  # of the runs
    assert rule().fraction_done(samples(STEADY, 10, 5.0)) == 1.0
    assert rule().fraction_done(samples(WILD, 40, 10.0)) == pytest.approx(0.5)  # of --max-time


# Rounds

NAMES = ("onnxruntime-cpu", "openvino-cpu", "openvino-cpu-throughput")


class Machine:
    """A machine that gets slower with every call."""

    def __init__(self, drift: float) -> None:
        self.slowness = 1.0
        self.drift = drift
        self.log: list[str] = []


class Cell:
    """A cell of known speed that needs a given number of rounds, and takes at most as many short ones."""

    def __init__(
        self, name: str, machine: Machine, call_s: float, rounds: int, *, most: int = 1000, noise: float = 0.0
    ) -> None:
        self.name = name
        self.cell = types.Cell(runtime=name, precision="fp32", batch_size=1, status="ok")
        self.turns: list[tuple[int, list[float]]] = []
        self.short: list[int] = []
        self._most = most
        self._noise = random.Random(name), noise
        self.samples_s: list[float] = []
        self.numbers: list[int] = []
        self.others: list[int] = []
        self.broke = False
        self._machine, self._call_s, self._rounds = machine, call_s, rounds

    failed = False

    @property
    def interval(self) -> Interval | None:
        """Known to 1% after two turns."""
        return Interval(self._call_s * 0.99, self._call_s * 1.01) if len(self.samples_s) > 1 else None

    @property
    def time_is_spent(self) -> bool:
        return len(self.turns) >= self._most

    def sample_round(self, number: int, *, short: bool = False) -> float:
        self._machine.log.append(self.name)
        self.numbers.append(number)
        self.short += [number] if short else []
        choose, noise = self._noise
        self.samples_s.append(self._call_s * self._machine.slowness * math.exp(choose.gauss(0.0, noise)))
        self.turns.append((number, self.samples_s[-1:]))
        self._machine.slowness *= 1 + self._machine.drift
        return self.samples_s[-1]

    def is_done(self, others: Sequence[Interval | None] = ()) -> bool:
        self.others.append(len(others))
        return len(self.samples_s) >= self._rounds

    def stop_for_budget(self) -> None:
        self.broke = True


def test_every_cell_gets_its_rounds_and_is_done_once() -> None:
    machine = Machine(0.0)
    cells = [Cell(name, machine, 1.0, rounds, most=4) for name, rounds in zip(NAMES, (1, 5, 3), strict=True)]
    done: list[str] = []
    run_rounds(cells, shuffle=random.Random(0), when_done=lambda cell: done.append(cell.name))
    assert [len(cell.samples_s) - len(cell.short) for cell in cells] == [1, 5, 3]
    assert done == list(NAMES)


def test_a_cell_that_is_done_goes_on_with_short_turns_beside_the_others() -> None:
    """Ratios rest on the rounds that two cells share; it ends when its time is spent."""
    machine = Machine(0.0)
    quick, slow = Cell("onnxruntime-cpu", machine, 1.0, 2, most=7), Cell("openvino-cpu", machine, 1.0, 10)
    run_rounds([quick, slow], shuffle=random.Random(0), when_done=lambda _: None)
    assert (quick.numbers, quick.short) == ([0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6])
    assert (slow.numbers, slow.short) == (list(range(10)), [])


def test_the_ratio_to_pytorch_is_sampled_until_it_is_known() -> None:
    machine = Machine(0.0)
    base = Cell("pytorch-cpu", machine, 3.0, 6, noise=0.1)
    cells = [base, Cell("onnxruntime-cpu", machine, 1.0, 6, noise=0.1), Cell("openvino-cpu", machine, 1.0, 6)]
    run_rounds(cells, shuffle=random.Random(0), when_done=lambda _: None)
    logs = [math.log(ours / theirs) for ours, theirs in zip(base.samples_s, cells[1].samples_s, strict=False)]
    spread = spread_of_median([logs], None)
    assert spread
    assert spread.reach <= math.log(1.05) < spread_of_median([logs[:-1]], None).reach  # type: ignore[union-attr]
    assert len(base.samples_s) > 12
    limited = [Cell("pytorch-cpu", machine, 3.0, 6, noise=0.5, most=9), Cell("openvino-cpu", machine, 1.0, 6, most=99)]
    run_rounds(limited, shuffle=random.Random(0), when_done=lambda _: None)
    assert [len(cell.samples_s) for cell in limited] == [9, 9]


def test_each_round_takes_everyone_in_an_order_that_varies_and_repeats_with_the_seed() -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        machine = Machine(0.0)
        cells = [Cell(name, machine, 1.0, 30) for name in NAMES]
        run_rounds(cells, shuffle=random.Random(seed), when_done=lambda _: None)
        return [tuple(machine.log[i : i + 3]) for i in range(0, 90, 3)]

    assert all(len(set(order)) == 3 for order in orders(0))
    assert len(set(orders(0))) > 3
    assert orders(0) == orders(0)
    assert orders(0) != orders(1)


def test_drift_that_fools_a_fixed_order_is_cancelled() -> None:
    """Two equally fast cells; the machine becomes half as fast meanwhile."""

    def ratio(machine: Machine, cells: list[Cell]) -> float:
        first, second = (statistics.median(cell.samples_s) for cell in cells)
        assert machine.slowness > 1.9
        return second / first

    machine = Machine(0.0035)
    cells = [Cell(name, machine, 1.0, 100) for name in NAMES[:2]]
    for cell in cells:
        for number in range(100):
            cell.sample_round(number)
    assert ratio(machine, cells) > 1.3

    machine = Machine(0.0035)
    cells = [Cell(name, machine, 1.0, 100) for name in NAMES[:2]]
    run_rounds(cells, shuffle=random.Random(0), when_done=lambda _: None)
    assert ratio(machine, cells) == pytest.approx(1.0, abs=0.01)


def sampled_rounds(calls_s: dict[str, float], budget_s: float | None, rounds: int = 1000) -> dict[str, Cell]:
    machine = Machine(0.0)
    cells = {name: Cell(name, machine, call_s, rounds) for name, call_s in calls_s.items()}
    done: list[str] = []
    run_rounds(
        list(cells.values()), shuffle=random.Random(0), when_done=lambda cell: done.append(cell.name), budget_s=budget_s
    )
    assert sorted(done) == sorted(calls_s)
    return cells


def test_a_budget_is_kept_by_all_together() -> None:
    cells = sampled_rounds({NAMES[0]: 1.0, NAMES[1]: 1.0}, budget_s=10.0)
    assert [len(cell.samples_s) for cell in cells.values()] == [5, 5]
    assert all(cell.broke for cell in cells.values())


def test_a_budget_never_leaves_a_cell_empty() -> None:
    assert [len(cell.samples_s) for cell in sampled_rounds({NAMES[0]: 1.0, NAMES[1]: 9.0}, budget_s=0.0).values()] == [
        1,
        1,
    ]


def test_with_a_budget_the_clearly_dominated_have_fewer_turns() -> None:
    cells = sampled_rounds(dict(zip(NAMES, (1.0, 1.05, 2.0), strict=True)), budget_s=100.0)
    best, close, slow = (len(cell.samples_s) for cell in cells.values())
    assert best == close
    assert slow < best / 3
    assert cells[NAMES[2]].numbers[:2] == [0, 1]  # until it is known to be slow
    assert all(number % 4 == 0 for number in cells[NAMES[2]].numbers[2:])


def test_without_a_budget_all_have_their_turns() -> None:
    cells = sampled_rounds({NAMES[0]: 1.0, NAMES[1]: 2.0}, budget_s=None, rounds=20)
    assert [cell.numbers for cell in cells.values()] == [list(range(20))] * 2


def test_other_cells_count_only_with_a_budget_to_spend_on_ties() -> None:
    assert set(sampled_rounds({NAMES[0]: 1.0, NAMES[1]: 1.0}, budget_s=None, rounds=5)[NAMES[0]].others) == {0}
    assert sampled_rounds({NAMES[0]: 1.0, NAMES[1]: 1.0}, budget_s=100.0, rounds=5)[NAMES[0]].others[-1] == 1
