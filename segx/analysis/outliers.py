"""Find calls that took much longer than the others, and what may explain them. They are reported, never dropped."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from segx.analysis import stats
from segx.results.types import Round

# A call is an outlier when it is this many scaled median absolute deviations above the median (10 standard deviations
# of a normal distribution, as in hyperfine: src/outlier_detection.rs) …
_DEVIATIONS = 10.0
# … and this share above it: on a quiet machine ten deviations are too little to matter.
_LEAST_EXCESS = 0.1

# The shortest series that can be called periodic, and the share of its gaps that must be equal within one call.
_FEWEST_PERIODS = 4
_EQUAL_GAPS = 0.8
# A round counts as throttled or stolen from if that took at least this share of its time.
_TELLING_SHARE = 0.02
# Sampling itself keeps every processor busy, so only a higher load is unusual.
LOAD_TOLERANCE = 0.5


@dataclass(frozen=True)
class Outliers:
    """Slow calls of one cell, the worst as a multiple of the median, and what may explain them, most certain first."""

    indices: tuple[int, ...]
    worst: float
    causes: tuple[str, ...]

    @property
    def told(self) -> str:
        """Return the causes in words."""
        return ", ".join(self.causes) or "nothing that was watched explains them"


def find_outliers(samples_s: Sequence[float], rounds: Sequence[Round], *, cores: int) -> list[Outliers]:
    """Find slow calls, in seconds and in order, and what happened at the same time, on so many usable processors.

    The first timed call stands apart, unless it is part of a period: what slows it explains no other call.
    """
    if len(samples_s) < 3:
        return []
    values = np.asarray(samples_s, dtype=np.float64)
    middle = float(np.median(values))
    spread = stats.MAD_TO_SIGMA * float(np.median(np.abs(values - middle)))
    limit = middle + max(_DEVIATIONS * spread, _LEAST_EXCESS * middle)
    indices = tuple(int(i) for i in np.flatnonzero(values > limit))

    def outliers(some: Sequence[int], *causes: str) -> Outliers:
        worst = float(values[list(some)].max())
        seen = [
            cause
            for r, start in _with_starts(rounds)
            if any(start <= i < start + r.runs for i in some)
            for cause in _seen_in(r, float(values[start : start + r.runs].sum()), cores)
        ]
        # Calls too short for the clock take 0.
        return Outliers(tuple(some), worst / middle if middle else math.inf, tuple(dict.fromkeys([*causes, *seen])))

    found = []
    period = _period(indices)
    if indices and indices[0] == 0 and not (period and abs(indices[1] - period) <= 1):
        found.append(outliers(indices[:1], "the first timed call: more --warmup"))
        indices = indices[1:]
        period = _period(indices)
    if indices:
        found.append(outliers(indices, *([f"every {_ordinal(period)} call"] if period else [])))
    return found


def disturbances(samples_s: Sequence[float], rounds: Sequence[Round], *, cores: int) -> list[str]:
    """Return what disturbed at least half of the rounds, and so possibly the median too."""
    causes = [
        cause
        for r, start in _with_starts(rounds)
        for cause in _seen_in(r, sum(samples_s[start : start + r.runs]), cores)
    ]
    return [cause for cause in dict.fromkeys(causes) if causes.count(cause) * 2 >= len(rounds)]


def _ordinal(number: int) -> str:
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _with_starts(rounds: Sequence[Round]) -> Iterator[tuple[Round, int]]:
    """Yield each round with the index of its first call."""
    return zip(rounds, itertools.accumulate((r.runs for r in rounds), initial=0), strict=False)


def _period(indices: Sequence[int]) -> int | None:
    """Return the number of calls between outliers if it is nearly constant; consecutive slow calls are not a period."""
    gaps = [b - a for a, b in itertools.pairwise(indices)]
    if len(gaps) < _FEWEST_PERIODS - 1:
        return None
    usual = round(statistics.median(gaps))
    tolerance = 1 if usual > 2 else 0
    equal = sum(abs(gap - usual) <= tolerance for gap in gaps)
    return usual if usual > 1 and equal >= _EQUAL_GAPS * len(gaps) else None


def _seen_in(r: Round, spent_s: float, cores: int) -> list[str]:
    """Return what disturbed a round of ``spent_s`` seconds."""
    found = []
    if r.throttled_s > _TELLING_SHARE * spent_s * cores:
        found.append("the CPU quota was used up (cgroup throttling)")
    if r.stolen_s > _TELLING_SHARE * spent_s * cores:
        found.append("the hypervisor gave processors to others (steal)")
    if r.gpu_slowed:
        found.append(f"the GPU's clock was held down ({r.gpu_slowed})")
    if r.load is not None and r.load > cores + LOAD_TOLERANCE:
        found.append("other programs were running (load above the cores)")
    return found
