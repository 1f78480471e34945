"""Timed calls in rounds of random order, and when to stop making them."""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from segx.analysis.figures import pytorch_variant
from segx.analysis.stats import FEWEST_ROUNDS, SETTLED, spread_of_median
from segx.bench.inputs import BatchFiles
from segx.runtimes.base import FloatArray

if TYPE_CHECKING:
    from segx.bench.cell import CellRun

# Takes a batch; returns its logits and the seconds it took.
TimedCall = Callable[[FloatArray], tuple[FloatArray, float]]
StopReason = Literal["settled", "not settled", "budget spent"]

_GROWTH = 1.25
_LONGEST_SLICE_S = 0.5

# With a budget, a cell surely this much slower than the best is sampled in every fourth round only.
_DOMINATED = 1.1
_DOMINATED_EVERY = 4
# A ratio to PyTorch is sampled until it is known this well.
_RATIO_KNOWN = 0.05


def timed_runs(call: TimedCall, batches: BatchFiles, *, first_run: int, slice_s: float) -> list[float]:
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


def by_clock(infer: Callable[[FloatArray], FloatArray], clock: Callable[[], int] = time.perf_counter_ns) -> TimedCall:
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

    @property
    def slice_s(self) -> float:
        """Seconds of timed calls of one round.

        The intervals come from rounds: there are at least ten in the shortest sampling, and of a longer one a hundred
        are enough, since between two rounds workers are stopped and started.
        """
        return min(_LONGEST_SLICE_S, max(self.min_time_s / 10, self.max_time_s / 100))

    def reason_to_stop(self, rounds: Sequence[Sequence[float]]) -> StopReason | None:
        """Return why to stop after these rounds, each the seconds of its calls, or None to continue."""
        spent_s = _seconds_in(rounds)
        if _calls_in(rounds) < self._enough_runs or spent_s < self.min_time_s:
            return None
        if self.settled(rounds):
            return "settled"
        return "not settled" if spent_s >= self.max_time_s else None

    def settled(self, rounds: Sequence[Sequence[float]], within: float = SETTLED) -> bool:
        """Return whether the median's interval was no wider than ``within`` when last checked.

        Checking after every round and stopping at the first narrow interval would select narrow ones, so it is checked
        only as the rounds grow by a quarter (tests/bench/test_sampling.py).
        """
        count = FEWEST_ROUNDS
        while (larger := math.ceil(count * _GROWTH)) <= len(rounds):
            count = larger
        width = half_width_of(rounds[:count])
        return width is not None and width <= within

    @property
    def _enough_runs(self) -> int:
        return max(self.min_runs, self.full_pass, 1)

    def fraction_done(self, rounds: Sequence[Sequence[float]]) -> float:
        """Return the progress towards the minima, then towards a settled median, 0 to 1."""
        runs, spent_s = _calls_in(rounds), _seconds_in(rounds)
        needed_s = max(self.min_time_s, spent_s * self._enough_runs / max(1, runs))
        width = half_width_of(rounds)
        if width is not None and width > SETTLED:
            # The interval narrows with the square root of the number of rounds.
            needed_s = max(needed_s, min(self.max_time_s, spent_s * (width / SETTLED) ** 2))
        return min(1.0, spent_s / needed_s) if needed_s > 0 else float(bool(runs))


def half_width_of(rounds: Sequence[Sequence[float]]) -> float | None:
    """Return the half-width of the interval of the median within one process, as a share; None for too few rounds."""
    spread = spread_of_median([[_log_median(seconds) for seconds in rounds]], None)
    return math.expm1(spread.reach) if spread else None


def _log_median(seconds: Sequence[float]) -> float:
    return math.log(max(statistics.median(seconds), 1e-9))  # at least a tick of the clock


def _calls_in(rounds: Sequence[Sequence[float]]) -> int:
    return sum(map(len, rounds))


def _seconds_in(rounds: Sequence[Sequence[float]]) -> float:
    return sum(map(sum, rounds))


def run_rounds(
    cells: Sequence[CellRun],
    *,
    shuffle: random.Random,
    when_done: Callable[[CellRun], None],
    budget_s: float | None = None,
    first_number: int = 0,
) -> None:
    """Sample cells in rounds until each is done, so that drift of the machine affects all alike.

    Each round takes the cells in a new random order; figures of the same round can be paired. Without a budget, a cell
    that is done goes on with short turns while others are sampled, and until its ratio to PyTorch is known to
    ``_RATIO_KNOWN``, unless its time is spent: a ratio rests on the rounds that both cells share. With a budget, a cell
    that is done ends, one that is clearly slower than the best is sampled in every fourth round only, and one that is
    settled but tied with another goes on.

    Args:
        cells: loaded cells.
        shuffle: seeded source of the orders.
        when_done: called once for each cell.
        budget_s: seconds of timed calls for all cells together; each gets one round in any case.
        first_number: number of the first round, to tell the rounds of several groups apart.
    """
    if budget_s is not None:
        _run_within(budget_s, cells, shuffle, when_done, first_number)
        return
    active = list(cells)
    for number in itertools.count(first_number):
        lingering = [cell for cell in cells if cell not in active and _lingers(cell, cells, alone=not active)]
        if not active and not lingering:
            break
        turns = [*active, *lingering, *({_base_of(cell, cells): None for cell in lingering} if not active else ())]
        turns = list(dict.fromkeys(cell for cell in turns if cell))
        shuffle.shuffle(turns)
        for cell in turns:
            cell.sample_round(number, short=cell not in active)
            if cell in active and cell.is_done():
                active.remove(cell)
    for cell in cells:
        when_done(cell)


def _lingers(cell: CellRun, cells: Sequence[CellRun], *, alone: bool) -> bool:
    """Return whether a cell that is done takes more short turns; ``alone`` if no other is sampled any more."""
    if cell.failed or cell.time_is_spent:
        return False
    if not alone:
        return True
    base = _base_of(cell, cells)
    if base is None or base.failed or base.time_is_spent:
        return False
    reach = _ratio_reach(cell, base)
    return reach is not None and reach > _RATIO_KNOWN


def _base_of(cell: CellRun, cells: Sequence[CellRun]) -> CellRun | None:
    """Return PyTorch eager among the cells that take turns; None without it or if this is it."""
    base = pytorch_variant(cell.cell)
    return next((other for other in cells if other.cell.variant == base and other is not cell), None)


def _ratio_reach(cell: CellRun, base: CellRun) -> float | None:
    """Return the half-width of the interval of the ratio of two cells, as a share; None for too few shared rounds."""
    theirs = dict(base.turns)
    logs = [_log_median(ours) - _log_median(theirs[number]) for number, ours in cell.turns if number in theirs]
    spread = spread_of_median([logs], None)
    return math.expm1(spread.reach) if spread else None


def _run_within(
    budget_s: float,
    cells: Sequence[CellRun],
    shuffle: random.Random,
    when_done: Callable[[CellRun], None],
    first_number: int,
) -> None:
    active, spent_s = list(cells), 0.0
    for number in itertools.count(first_number):
        if not active:
            return
        all_of_them = (number - first_number) % _DOMINATED_EVERY == 0
        turns = [cell for cell in active if all_of_them or not _dominated(cell, cells)]
        shuffle.shuffle(turns)
        for cell in turns:
            spent_s += cell.sample_round(number)
            if cell.is_done([other.interval for other in cells if other is not cell and not other.failed]):
                active.remove(cell)
                when_done(cell)
        if spent_s >= budget_s:
            for cell in active:
                cell.stop_for_budget()
                when_done(cell)
            return


def _dominated(cell: CellRun, cells: Sequence[CellRun]) -> bool:
    ours = cell.interval
    intervals = [interval for other in cells if not other.failed and (interval := other.interval)]
    return ours is not None and any(ours.low > _DOMINATED * theirs.high for theirs in intervals)
