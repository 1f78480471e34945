"""Timed calls and when to stop making them. Nothing but the call stands between two clock reads."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from segx.runtimes.base import FloatArray

Clock = Callable[[], int]


class Batches(Protocol):
    """Where timed calls take their input and leave their output."""

    def take(self, run: int) -> FloatArray:
        """The input of run ``run``."""
        ...

    def keep(self, run: int, logits: FloatArray) -> None:
        """The output of run ``run``."""
        ...


def timed_runs(
    infer: Callable[[FloatArray], FloatArray],
    batches: Batches,
    *,
    first_run: int,
    slice_s: float,
    clock: Clock = time.perf_counter_ns,
) -> list[float]:
    """Call ``infer`` at least once, and until ``slice_s`` seconds of calls are spent.

    Args:
        infer: one inference, synchronous.
        batches: gives inputs and keeps outputs, outside the timed part.
        first_run: number of the first run; inputs go on from where the last slice stopped.
        slice_s: seconds of timed calls.
        clock: monotonic, in nanoseconds.

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
            batch = batches.take(run)
            start = clock()
            logits = infer(batch)
            end = clock()
            batches.keep(run, logits)
            seconds.append((end - start) / 1e9)
            spent += seconds[-1]
    finally:
        if was_enabled:
            gc.enable()
    return seconds


@dataclass(frozen=True)
class StopRule:
    """When a cell has been sampled enough: all minima met, or the budget spent.

    Attributes:
        min_time_s: seconds of timed calls, at least.
        min_runs: timed calls, at least.
        full_pass: calls that take every image through once, at least.
        budget_s: seconds of timed calls after which to stop in any case; None for no limit.
    """

    min_time_s: float
    min_runs: int
    full_pass: int
    budget_s: float | None = None

    def reason_to_stop(self, runs: int, spent_s: float) -> str | None:
        """``complete``, ``budget spent``, or None to go on."""
        if runs >= max(self.min_runs, self.full_pass) and spent_s >= self.min_time_s:
            return "complete"
        if runs and self.budget_s is not None and spent_s >= self.budget_s:
            return "budget spent"
        return None

    def fraction_done(self, runs: int, spent_s: float) -> float:
        """How far towards stopping, 0 to 1, for progress."""
        parts = [runs / max(self.min_runs, self.full_pass, 1)]
        if self.min_time_s > 0:
            parts.append(spent_s / self.min_time_s)
        done = min(parts)
        if self.budget_s:
            done = max(done, spent_s / self.budget_s)
        return min(1.0, done)
