"""Timed calls in rounds of random order, and when to stop making them."""

from __future__ import annotations

import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from segx.analysis.stats import SETTLED, relative_half_width
from segx.runtimes.base import FloatArray

if TYPE_CHECKING:
    from segx.bench.cell import CellRun

Clock = Callable[[], int]
# Takes a batch; returns its logits and the seconds it took.
TimedCall = Callable[[FloatArray], tuple[FloatArray, float]]
StopReason = Literal["settled", "not settled", "budget spent"]

_GROWTH = 1.25

# With a budget, a cell surely this much slower than the best is sampled in every fourth round only.
_DOMINATED = 1.1
_DOMINATED_EVERY = 4


class Batches(Protocol):
    """Inputs and outputs of timed calls."""

    def take(self, run: int) -> FloatArray:
        """Return the input of run ``run``."""

    def keep(self, run: int, logits: FloatArray) -> None:
        """Store the output of run ``run``."""


def timed_runs(call: TimedCall, batches: Batches, *, first_run: int, slice_s: float) -> list[float]:
    """Call at least once, and until ``slice_s`` seconds are spent in calls; return the seconds of each.

    Inputs are read and outputs stored outside the timed part. ``first_run`` is the number of the first run, so that
    inputs continue where the last slice stopped.
    """
    seconds: list[float] = []
    spent = 0.0
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        while not seconds or spent < slice_s:
            run = first_run + len(seconds)
            logits, taken = call(batches.take(run))
            batches.keep(run, logits)
            seconds.append(taken)
            spent += taken
    finally:
        if was_enabled:
            gc.enable()
    return seconds


def by_clock(infer: Callable[[FloatArray], FloatArray], clock: Clock = time.perf_counter_ns) -> TimedCall:
    """Time a synchronous inference from the host, by a monotonic clock in nanoseconds."""

    def call(batch: FloatArray) -> tuple[FloatArray, float]:
        # Nothing but the call may stand between the two clock reads.
        start = clock()
        logits = infer(batch)
        end = clock()
        return logits, (end - start) / 1e9

    return call


@dataclass(frozen=True)
class StopRule:
    """When a cell has been sampled enough.

    Attributes:
        full_pass: number of calls that run every image once; a minimum like ``min_runs`` and ``min_time_s``.
        max_time_s: seconds of timed calls after which to stop although the median is not settled, once all minima are
            met.
    """

    min_time_s: float
    min_runs: int
    full_pass: int
    max_time_s: float

    def reason_to_stop(self, samples_s: Sequence[float]) -> StopReason | None:
        """Return why to stop after these samples, or None to continue."""
        runs, spent_s = len(samples_s), sum(samples_s)
        if runs < self._enough_runs or spent_s < self.min_time_s:
            return None
        if self.settled(samples_s):
            return "settled"
        return "not settled" if spent_s >= self.max_time_s else None

    def settled(self, samples_s: Sequence[float], within: float = SETTLED) -> bool:
        """Return whether the median's interval was no wider than ``within`` when last checked.

        Checking after every call and stopping at the first narrow interval would select narrow ones: over 1,000
        simulated runs the interval then held the true median in 92 %, and in 95 % when checked only as the samples
        grow by a quarter (tests/bench/test_sampling.py).
        """
        count = max(1, self.min_runs)
        while (larger := math.ceil(count * _GROWTH)) <= len(samples_s):
            count = larger
        width = relative_half_width(samples_s[:count])
        return width is not None and width <= within

    @property
    def _enough_runs(self) -> int:
        return max(self.min_runs, self.full_pass, 1)

    def fraction_done(self, samples_s: Sequence[float]) -> float:
        """Return the progress towards the minima, then towards a settled median, 0 to 1."""
        runs, spent_s = len(samples_s), sum(samples_s)
        needed_s = max(self.min_time_s, spent_s * self._enough_runs / max(1, runs))
        width = relative_half_width(samples_s) if samples_s else None
        if width is not None and width > SETTLED:
            # The interval narrows with the square root of the number of calls.
            needed_s = max(needed_s, min(self.max_time_s, spent_s * (width / SETTLED) ** 2))
        return min(1.0, spent_s / needed_s) if needed_s > 0 else float(bool(runs))


def run_rounds(
    cells: Sequence[CellRun],
    *,
    shuffle: random.Random,
    when_done: Callable[[CellRun], None],
    budget_s: float | None = None,
    first_number: int = 0,
) -> None:
    """Sample cells in rounds until each is done, so that drift of the machine affects all alike.

    Each round takes the remaining cells in a new random order; figures of the same round can be paired. With a budget,
    a cell that is clearly slower than the best is sampled in every fourth round only, and one that is settled but tied
    with another goes on.

    Args:
        cells: loaded cells.
        shuffle: seeded source of the orders.
        when_done: called once for each cell.
        budget_s: seconds of timed calls for all cells together; each gets one round in any case.
        first_number: number of the first round, to tell the rounds of several groups apart.
    """
    active, spent_s = list(cells), 0.0
    for number in itertools.count(first_number):
        if not active:
            return
        all_of_them = budget_s is None or (number - first_number) % _DOMINATED_EVERY == 0
        turns = [cell for cell in active if all_of_them or not _dominated(cell, cells)]
        shuffle.shuffle(turns)
        for cell in turns:
            spent_s += cell.sample_round(number)
            others = () if budget_s is None else (other for other in cells if other is not cell and not other.failed)
            if cell.is_done([other.interval for other in others]):
                active.remove(cell)
                when_done(cell)
        if budget_s is not None and spent_s >= budget_s:
            for cell in active:
                cell.stop_for_budget()
                when_done(cell)
            return


def _dominated(cell: CellRun, cells: Sequence[CellRun]) -> bool:
    ours = cell.interval
    intervals = [interval for other in cells if not other.failed and (interval := other.interval)]
    return ours is not None and any(ours.low > _DOMINATED * theirs.high for theirs in intervals)
