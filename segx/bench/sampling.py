"""Timed calls and when to stop making them. Nothing but the call stands between two clock reads."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from segx.analysis.stats import relative_half_width
from segx.runtimes.base import FloatArray

Clock = Callable[[], int]
# A batch in, its logits and the seconds it took out.
TimedCall = Callable[[FloatArray], tuple[FloatArray, float]]
StopReason = Literal["settled", "not settled", "budget spent"]

# A median is settled when its 95 % interval reaches no further than this share of it.
SETTLED = 0.02

_GROWTH = 1.25


class Batches(Protocol):
    """Where timed calls take their input and leave their output."""

    def take(self, run: int) -> FloatArray:
        """The input of run ``run``."""
        ...

    def keep(self, run: int, logits: FloatArray) -> None:
        """The output of run ``run``."""
        ...


def timed_runs(call: TimedCall, batches: Batches, *, first_run: int, slice_s: float) -> list[float]:
    """Call at least once, and until ``slice_s`` seconds of calls are spent.

    Args:
        call: one inference that gives its own seconds.
        batches: gives inputs and keeps outputs, outside the timed part.
        first_run: number of the first run; inputs go on from where the last slice stopped.
        slice_s: seconds of timed calls.

    Returns:
        Seconds of each call.
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
    """A synchronous inference, timed from the host: nothing but the call stands between two clock reads.

    Args:
        infer: one inference.
        clock: monotonic, in nanoseconds.
    """

    def call(batch: FloatArray) -> tuple[FloatArray, float]:
        start = clock()
        logits = infer(batch)
        end = clock()
        return logits, (end - start) / 1e9

    return call


@dataclass(frozen=True)
class StopRule:
    """When a cell has been sampled enough.

    Attributes:
        min_time_s: seconds of timed calls, at least.
        min_runs: timed calls, at least.
        full_pass: calls that take every image through once, at least.
        max_time_s: seconds of timed calls after which to give up on settling, once all minima are met.
    """

    min_time_s: float
    min_runs: int
    full_pass: int
    max_time_s: float

    def reason_to_stop(self, samples_s: Sequence[float]) -> StopReason | None:
        """Why to stop after these samples, or None to go on."""
        runs, spent_s = len(samples_s), sum(samples_s)
        if runs < self._enough_runs or spent_s < self.min_time_s:
            return None
        if self.settled(samples_s):
            return "settled"
        return "not settled" if spent_s >= self.max_time_s else None

    def settled(self, samples_s: Sequence[float], within: float = SETTLED) -> bool:
        """Whether the median's interval was no wider than ``within`` when last looked at.

        Looking after every call and stopping at the first narrow interval would pick narrow ones: over 1,000 simulated
        runs the interval then held the true median in 92 %, and in 95 % when looked at only as the samples grow by a
        quarter (tests/bench/test_timing.py).
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
        """How far towards the end, 0 to 1, for progress: towards the minima, then towards a settled median."""
        runs, spent_s = len(samples_s), sum(samples_s)
        wanted_s = max(self.min_time_s, spent_s * self._enough_runs / max(1, runs))
        width = relative_half_width(samples_s) if samples_s else None
        if width is not None and width > SETTLED:
            # The interval narrows with the square root of the number of calls.
            wanted_s = max(wanted_s, min(self.max_time_s, spent_s * (width / SETTLED) ** 2))
        return min(1.0, spent_s / wanted_s) if wanted_s > 0 else float(bool(runs))
