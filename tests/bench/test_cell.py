"""A cell from start to record, with a scripted worker."""

from __future__ import annotations

import dataclasses
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.stats import Interval
from segx.bench.cell import CellRun, failed_cell
from segx.bench.inputs import Inputs
from segx.bench.plan import CellTask, Finished, Loaded
from segx.bench.sampling import StopRule, half_width_of, run_rounds
from segx.bench.worker import CellWorkers
from segx.errors import InferenceError, OutOfMemory, RuntimeUnavailable, SegxError
from segx.masks.agreement import ParityLimits
from segx.model.spec import ModelSpec
from segx.results.types import Cell, HostMemory, Parity
from segx.runtimes import RuntimeOptions
from segx.system.processes import WorkerDied, WorkerHung
from tests import builders

LIMITS = ParityLimits(relative_diff=1e-4, flipped_share=1e-3, iou=0.99)
MEMORY = HostMemory(1, 2, 3, "made up")
# Settled once six rounds agree to 2%; given up on after 1000 s.
RULE = StopRule(min_time_s=0.0, min_runs=6, full_pass=1, max_time_s=1000.0)

NEAR, FAR = Interval(0.9, 1.1), Interval(5.0, 6.0)


class Worker:
    """Answer with the given turns, and note the requests."""

    def __init__(
        self, turns: Sequence[Sequence[float]], *, fails_at: str = "", error: BaseException | None = None
    ) -> None:
        self.asked: list[str] = []
        self.memory = MEMORY
        self._turns: Iterator[Sequence[float]] = iter(turns)
        self._fails_at, self._error = fails_at, error

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what == self._fails_at and self._error:
            raise self._error

    def load(self) -> Loaded:
        self._note("load")
        return Loaded(import_s=0.1, load_s=0.2, first_s=0.3, facts={"threads": "2"})

    def warm_up(self, runs: int) -> None:
        self._note(f"warm up {runs}")

    def sample(self, _slice_s: float) -> list[float]:
        self._note("sample")
        return list(next(self._turns))

    def finish(self) -> Finished:
        self._note("finish")
        return Finished(memory=self.memory, device_memory=None)

    def pause(self) -> None:
        self._note("pause")

    def resume(self) -> None:
        self._note("resume")

    def close(self) -> None:
        self._note("close")

    def kill(self) -> None:
        self._note("kill")


class Fakes:
    """Double of ``CellWorkers`` that gives these workers, one after the other."""

    def __init__(self, *workers: Worker) -> None:
        self.outputs: list[Path] = []
        self._workers = iter(workers)

    def cell(self, task: CellTask, *, timeout_s: float) -> Worker:
        assert timeout_s == 60.0
        self.outputs.append(task.outputs)
        return next(self._workers)


def _cell_run(
    *, batch_size: int = 1, rule: StopRule = RULE, processes: int = 1, seen: list[float] | None = None
) -> CellRun:
    task = CellTask(
        runtime="fake",
        model=Path("model.onnx"),
        spec=ModelSpec(),
        options=RuntimeOptions(threads=1),
        batch_size=batch_size,
        inputs=Inputs(Path("in"), (1, 4, 4), ("a",), "", ""),
        outputs=Path("out"),
        memory_limit_bytes=None,
    )
    seen = [] if seen is None else seen
    return CellRun(task, [rule] * processes, LIMITS, gpu=None, when_sampled=lambda done, _: seen.append(done))


def _started(worker: Worker, **options: Any) -> CellRun:
    run = _cell_run(**options)
    run.start(cast("CellWorkers", Fakes(worker)), warmup=3, timeout_s=60.0)
    return run


def _rounds(*series: Sequence[float]) -> list[list[float]]:
    """Return a round of one call for each of these seconds."""
    return [[seconds] for each in series for seconds in each]


def _sampled(*turns: Sequence[float], **options: Any) -> CellRun:
    """Return a cell after these rounds."""
    run = _started(Worker(turns), **options)
    _sample(run, len(turns))
    return run


def _sample(run: CellRun, rounds: int) -> None:
    for _ in range(rounds):
        run.sample_round(len(run.turns))


# Settled, but the median is not known to half a percent; settled and known; not settled.
SETTLED = [1.0, 1.01, 1.0, 1.01, 0.99, 0.99]
SURE = [1.0] * 200
WILD = [0.5, 1.5] * 3


# When a cell is done


def test_a_cell_goes_on_until_its_rule_is_met() -> None:
    run = _started(Worker([[1.0]] * 6))
    done = []
    for number in range(6):
        run.sample_round(number)
        done.append(run.is_done([]))
    assert done == [False] * 5 + [True]


def test_without_other_cells_settled_is_enough() -> None:
    assert _sampled(*_rounds(SETTLED)).is_done([])


def test_a_distant_cell_is_no_tie() -> None:
    assert _sampled(*_rounds(SETTLED)).is_done([FAR])


def test_a_settled_cell_that_is_tied_goes_on_until_it_is_known_better() -> None:
    run = _started(Worker(_rounds(SETTLED, SETTLED, SURE)))
    done = []
    for count in (6, 6, 200):
        _sample(run, count)
        done.append(run.is_done([FAR, NEAR]))
    assert done == [False, False, True]


def test_a_tied_cell_that_is_known_well_enough_stops() -> None:
    assert _sampled(*_rounds(SURE)).is_done([NEAR])


def test_ties_are_looked_for_when_a_cell_settles_and_not_again() -> None:
    close, apart = (_sampled(*_rounds(SETTLED, SETTLED)) for _ in range(2))
    assert not close.is_done([NEAR])
    assert apart.is_done([FAR])
    # Looking again would end the sampling when cells come apart, so that they would come apart too often.
    assert not close.is_done([FAR])
    assert not close.is_done([])
    assert apart.is_done([NEAR])


def test_a_tie_before_it_settles_does_not_count() -> None:
    run = _started(Worker(_rounds(SETTLED, SETTLED)), rule=dataclasses.replace(RULE, min_runs=12))
    _sample(run, 6)
    assert run.interval
    assert not run.is_done([NEAR])
    _sample(run, 6)
    assert run.is_done([FAR])


def test_a_cell_that_does_not_settle_does_not_go_on_for_a_tie() -> None:
    run = _sampled(*_rounds([300.0, 100.0] * 3), rule=RULE)
    assert run.is_done([Interval(0.0, 1e6)])
    run.stop_for_budget()
    run.finish(lambda _: _parity())
    assert run.cell.stopped == "not settled"


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), max_size=4), st.integers(1, 8))
def test_cells_are_tied_if_their_intervals_per_image_overlap(
    bounds: list[tuple[float, float]], batch_size: int
) -> None:
    others = [Interval(min(pair), max(pair)) for pair in bounds]
    run = _sampled(*_rounds([second * batch_size for second in SETTLED]), batch_size=batch_size)
    ours = run.interval
    assert ours
    assert run.is_done(others) != any(ours.overlaps(theirs) for theirs in others)


def test_a_failed_cell_is_done_whatever_the_others_are() -> None:
    run = _started(Worker([], fails_at="sample", error=OutOfMemory("full", hint="use less")))
    assert run.sample_round(0) == 0
    assert run.is_done([NEAR])


# The budget


def _parity(**changes: Any) -> Parity:
    return builders.parity(images=1, pixels=100, logit_range=1.0, **changes)


@pytest.mark.parametrize(
    ("turn", "others", "stopped"),
    [
        (WILD, [], "budget spent"),
        (SETTLED[:5], [], "budget spent"),
        (SETTLED, [], "settled"),
        (SETTLED, [NEAR], "settled"),  # it went on only because it was tied
    ],
)
def test_a_settled_cell_stays_settled_when_the_budget_is_spent(
    turn: list[float], others: list[Interval], stopped: str
) -> None:
    run = _sampled(*_rounds(turn))
    assert run.is_done(others) is (turn == SETTLED and not others)
    run.stop_for_budget()
    run.finish(lambda _: _parity())
    assert run.cell.stopped == stopped


def _sampled_together(paces: Sequence[float], *, min_runs: int, budget_s: float) -> list[Cell]:
    """Return cells sampled within a budget, three calls a round; rounds differ by 1%."""
    rule = dataclasses.replace(RULE, min_runs=min_runs)
    shares = ((0.99, 0.97, 1.0), (1.01, 1.0, 1.02), (1.0, 1.01, 0.99))
    runs = [
        _started(Worker([[pace * second for second in each] for each in shares] * 500), rule=rule) for pace in paces
    ]
    run_rounds(runs, shuffle=random.Random(0), when_done=lambda _: None, budget_s=budget_s)
    for run in runs:
        run.finish(lambda _: _parity())
    return [run.cell for run in runs]


def test_a_budget_is_spent_on_telling_ties_apart() -> None:
    """Two equal cells, soon settled, and a clearly slower one: the first two go on until the budget is spent."""
    cells = _sampled_together([1.0, 1.0, 3.0], min_runs=9, budget_s=200.0)
    first, second, slow = (len(cell.samples_s) for cell in cells)
    assert first == second > 30
    assert slow == 18
    assert {cell.stopped for cell in cells} == {"settled"}


def test_a_tie_ends_with_the_budget() -> None:
    cells = _sampled_together([1.0, 1.0], min_runs=9, budget_s=59.0)
    assert [len(cell.samples_s) for cell in cells] == [30, 30]
    assert {cell.stopped for cell in cells} == {"settled"}


def test_the_first_of_two_equal_cells_to_settle_goes_on_too() -> None:
    """In the round in which both make their sixth call, the second has too few calls for an interval yet."""
    first, second = _sampled_together([1.0, 1.0], min_runs=6, budget_s=200.0)
    assert len(first.samples_s) == len(second.samples_s)


# The interval


def test_there_is_no_interval_before_there_are_enough_rounds() -> None:
    assert _started(Worker([])).interval is None
    assert _sampled(*[[1.0] * 20] * 5).interval is None


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_interval_is_that_of_the_median_per_image(batch_size: int) -> None:
    rounds = [[second, second + 0.5, second] for second in range(1, 21)]
    width = half_width_of(rounds)
    assert width
    interval = _sampled(*rounds, batch_size=batch_size).interval
    middle = statistics.median(second for each in rounds for second in each) / batch_size
    assert interval == Interval(middle / (1 + width), middle * (1 + width))


def test_a_failed_cell_has_no_interval() -> None:
    worker = Worker([SURE])
    run = _started(worker)
    run.sample_round(0)
    worker._fails_at, worker._error = "sample", WorkerDied("gone", hint="look")
    run.sample_round(1)
    assert run.cell.status == "crashed"
    assert run.interval is None


# Rounds


def test_a_worker_loads_warms_up_and_is_stopped_between_its_rounds() -> None:
    worker = Worker([[1.0, 2.0], [3.0]])
    run = _started(worker)
    assert run.cell.status == "ok"
    assert (run.cell.import_s, run.cell.load_s, run.cell.first_s) == (0.1, 0.2, 0.3)
    assert run.cell.facts == {"threads": "2"}
    assert [run.sample_round(0), run.sample_round(7)] == [3.0, 3.0]
    run.finish(lambda _: _parity())
    turn = ["resume", "sample", "pause"]
    assert worker.asked == ["load", "warm up 3", "pause", *turn, *turn, "resume", "finish", "close"]


def test_calls_are_recorded_by_the_round_they_were_made_in() -> None:
    run = _started(Worker([[1.0, 2.0], [3.0]]))
    run.sample_round(0)
    run.sample_round(7)
    run.finish(lambda _: _parity())
    cell = run.cell
    assert cell.samples_s == (1.0, 2.0, 3.0)
    assert [(turn.number, turn.runs) for turn in cell.rounds] == [(0, 2), (7, 1)]
    assert cell.round_medians_s == (1.5, 3.0)


def test_progress_is_reported_after_each_round() -> None:
    seen: list[float] = []
    _sampled(*[[1.0]] * 6, seen=seen)
    assert seen == pytest.approx([i / 6 for i in range(1, 7)])


# Failures


@pytest.mark.parametrize("step", ["load", "warm up 3", "sample", "finish"])
@pytest.mark.parametrize(
    ("error", "status", "batch_size"),
    [
        (RuntimeUnavailable("no driver", hint="get one"), "unavailable", None),
        (OutOfMemory("full", hint="use less"), "out of memory", 4),
        (WorkerHung("silent", hint="wait"), "timed out", 4),
        (WorkerDied("gone", hint="look"), "crashed", 4),
        (InferenceError("no", hint="try"), "failed", 4),
    ],
)
def test_a_failure_is_a_record_wherever_it_happens(
    step: str, error: SegxError, status: str, batch_size: int | None
) -> None:
    worker = Worker([SURE], fails_at=step, error=error)
    run = _started(worker, batch_size=4)
    if step in {"sample", "finish"}:
        assert run.cell.status == "ok"
        run.sample_round(0)
    if step == "finish":
        run.finish(lambda _: _parity())
    assert (run.cell.status, run.cell.batch_size) == (status, batch_size)
    assert (run.cell.reason, run.cell.remedy) == (error.message, error.hint)
    assert worker.asked[-1] == "kill"
    assert worker.asked.count("kill") == 1
    run.abandon()  # there is nothing left to end
    assert worker.asked.count("kill") == 1
    assert run.interrupted() is None
    assert not run.cell.measured


def test_a_foreign_error_is_raised() -> None:
    run = _started(Worker([]))
    with pytest.raises(StopIteration):
        run.sample_round(0)


def test_a_failed_cell_keeps_what_is_known() -> None:
    cell = Cell(runtime="fake", precision="int8", scope="device", batch_size=2, status="ok", load_s=1.0)
    failed = failed_cell(cell, WorkerDied("gone", hint="look"))
    assert failed.variant == cell.variant
    assert (failed.load_s, failed.status, failed.batch_size) == (1.0, "crashed", 2)


# The record


def test_the_record_has_what_was_measured() -> None:
    run = _sampled(*_rounds(SETTLED))
    assert run.is_done([])
    judged: list[CellTask] = []

    def judge(task: CellTask) -> Parity:
        judged.append(task)
        return _parity()

    run.finish(judge)
    assert judged == [run.task]
    cell = run.cell
    assert (cell.status, cell.stopped, cell.host_memory, cell.parity) == ("ok", "settled", MEMORY, _parity())
    assert (cell.reason, cell.remedy, cell.host_memory_missing) == ("", "", "")
    assert (cell.device_memory, cell.device_memory_missing) == (None, "computes on the CPU")


def test_several_processes_are_one_cell() -> None:
    """The masks are judged in the first; memory is that of the process that took most."""
    workers = [Worker(_rounds(SETTLED)), Worker(_rounds(WILD))]
    workers[1].memory = dataclasses.replace(MEMORY, peak_bytes=50)
    fakes = Fakes(*workers)
    seen: list[float] = []
    run = _cell_run(processes=2, rule=dataclasses.replace(RULE, max_time_s=6.0), seen=seen)
    judged: list[CellTask] = []

    def judge(task: CellTask) -> Parity:
        judged.append(task)
        return _parity()

    for _ in range(2):
        assert run.start(cast("CellWorkers", fakes), warmup=3, timeout_s=60.0)
        _sample(run, 6)
        assert run.is_done()
        assert run.done
        run.finish(judge)
        assert not run.done
    cell = run.cell
    assert (len(judged), cell.parity, cell.stopped) == (1, _parity(), "not settled")
    assert [turn.process for turn in cell.rounds] == [0] * 6 + [1] * 6
    assert cell.samples_s == (*SETTLED, *WILD)
    assert cell.host_memory == workers[1].memory
    assert seen == sorted(seen)
    assert seen[5] == 0.5
    assert [worker.asked.count("load") for worker in workers] == [1, 1]
    assert fakes.outputs == [run.task.outputs, Path(os.devnull)]


def test_a_process_that_fails_fails_its_cell() -> None:
    workers = [Worker(_rounds(SETTLED)), Worker([], fails_at="load", error=OutOfMemory("full", hint="use less"))]
    fakes = cast("CellWorkers", Fakes(*workers))
    run = _cell_run(processes=2)
    run.start(fakes, warmup=3, timeout_s=60.0)
    _sample(run, 6)
    run.finish(lambda _: _parity())
    assert run.cell.measured
    assert not run.start(fakes, warmup=3, timeout_s=60.0)
    assert run.cell.status == "out of memory"


@pytest.mark.parametrize(("precision", "remedy"), [("fp32", "do not deploy"), ("int8", "--calibration")])
def test_masks_beyond_the_limits_are_reported_and_the_times_kept(precision: Any, remedy: str) -> None:
    run = _sampled(*_rounds(SETTLED))
    run.cell = dataclasses.replace(run.cell, precision=precision)
    run.finish(lambda _: _parity(flipped_pixels=7, worst_iou=0.5))
    cell = run.cell
    assert cell.status == "parity broken"
    assert "7 of 100 pixels changed" in cell.reason
    assert "IoU 0.5000 on b.png" in cell.reason
    assert remedy in cell.remedy
    assert cell.measured


def test_a_failing_judgement_is_a_record() -> None:
    def judge(_: CellTask) -> Parity:
        raise InferenceError("the outputs are gone", hint="again")

    run = _sampled(*_rounds(SETTLED))
    run.finish(judge)
    assert (run.cell.status, run.cell.reason) == ("failed", "the outputs are gone")


def test_an_interrupted_cell_has_its_rounds() -> None:
    assert _started(Worker([])).interrupted() is None
    run = _sampled([1.0, 2.0], [3.0])
    cell = run.interrupted()
    assert cell
    assert (cell.samples_s, cell.stopped, len(cell.rounds)) == ((1.0, 2.0, 3.0), "interrupted", 2)
    run.finish(lambda _: _parity())
    assert run.interrupted() is None  # it is recorded already


@pytest.mark.parametrize("step", ["sample", "finish"])
def test_a_cell_that_is_interrupted_while_its_worker_is_asked_is_cut_short(step: str) -> None:
    """The worker's next answer would be that to what it was asked before."""
    worker = Worker([*_rounds(SETTLED), [1.0]])
    run = _started(worker)
    _sample(run, 6)
    assert run.is_done()
    assert run.done
    worker._fails_at, worker._error = step, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run.sample_round(6) if step == "sample" else run.finish(lambda _: _parity())
    assert not run.done
    cell = run.interrupted()
    assert cell
    assert (cell.samples_s, cell.stopped) == (tuple(SETTLED), "interrupted")
