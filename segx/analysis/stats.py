"""Statistics of timed calls: pure functions on seconds, with the source of each formula. No sample is ever dropped."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95

# Fewest samples that bound a percentile with 99 % confidence, one overlong value allowed: the early-stopping rule of
# MLPerf LoadGen (loadgen/early_stopping.cc).
RUNS_FOR_PERCENTILE = {90: 64, 95: 130, 99: 662}

# Standard deviation of a normal distribution divided by its median absolute deviation.
MAD_TO_SIGMA = 1.4826

# A median is settled when its 95 % interval extends no further than this share of it.
SETTLED = 0.02

_RESAMPLES = 1000
# With fewer rounds a percentile bootstrap of a median repeats the same few values.
_FEWEST_ROUNDS = 6


@dataclass(frozen=True)
class Interval:
    """A range that holds the true value with 95 % confidence."""

    low: float
    high: float

    def spans(self, value: float) -> bool:
        """Return whether the interval contains ``value``."""
        return self.low <= value <= self.high

    def overlaps(self, other: Interval) -> bool:
        """Return whether the intervals have a value in common."""
        return self.low <= other.high and other.low <= self.high


def median_interval(samples: Sequence[float]) -> Interval | None:
    """Return the 95 % confidence interval of the median, by order statistics; no distribution is assumed.

    The number of samples below the true median is binomial(n, 1/2), so the interval from the k-th smallest to the k-th
    largest holds it with probability 1 - 2 P(B < k). The largest k that keeps 95 % is taken. Below 6 samples even the
    whole range has less, and there is none.

    Source: Conover 1999, "Practical Nonparametric Statistics", section 3.2.
    """
    rank = _interval_rank(len(samples))
    if rank == 0:
        return None
    ordered = sorted(samples)
    return Interval(ordered[rank - 1], ordered[-rank])


def _interval_rank(count: int) -> int:
    """Return the largest k with 2 P(binomial(count, 1/2) < k) <= 5 %; 0 if there is none."""
    tail, rank = 0.0, 0
    log_half = count * math.log(0.5)
    while rank < count // 2:
        # By logarithms: the coefficients of long series overflow a float.
        log_choose = math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1)
        tail += math.exp(log_choose + log_half)
        if 2 * tail > 1 - CONFIDENCE:
            break
        rank += 1
    return rank


def percentile(samples: Sequence[float], percent: int) -> float | None:
    """Return a high percentile by nearest rank: the smallest sample that at least ``percent`` of all do not exceed.

    ``percent`` is 90, 95 or 99. Returns None with fewer samples than ``RUNS_FOR_PERCENTILE``.

    Source: Hyndman & Fan 1996, "Sample Quantiles in Statistical Packages", definition 1.
    """
    if len(samples) < RUNS_FOR_PERCENTILE[percent]:
        return None
    return sorted(samples)[math.ceil(len(samples) * percent / 100) - 1]


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, paired: bool, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of median(numerators) / median(denominators), by percentile bootstrap.

    It always contains the ratio itself, and is the same for the same figures and seed; None below 6 rounds. Each side
    has a figure per round. If ``paired``, they are of the same rounds in the same order, and rounds are resampled, so
    that a disturbance of a whole round affects both sides alike.

    Raises:
        ValueError: ``paired`` with different numbers of rounds.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    if paired and len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} rounds cannot be paired with {len(denominators)}")
    if min(len(numerators), len(denominators)) < _FEWEST_ROUNDS:
        return None
    return _bootstrap_ratio(tuple(numerators), tuple(denominators), paired, seed)


# Tables, notes and files show the same ratios.
@functools.lru_cache(maxsize=8192)
def _bootstrap_ratio(
    numerators: tuple[float, ...], denominators: tuple[float, ...], paired: bool, seed: int
) -> Interval:
    choose = np.random.default_rng(seed)
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    chosen = choose.integers(len(top), size=(_RESAMPLES, len(top)))
    others = chosen if paired else choose.integers(len(bottom), size=(_RESAMPLES, len(bottom)))
    ratios = _row_medians(top[chosen]) / _row_medians(bottom[others])
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [outside, 1 - outside])
    estimate = statistics.median(numerators) / statistics.median(denominators)
    return Interval(min(float(low), estimate), max(float(high), estimate))


def _row_medians(values: FloatArray) -> FloatArray:
    """Return ``np.median(values, axis=1)``, six times as fast for short rows."""
    ordered = np.sort(values, axis=1)
    half = values.shape[1] // 2
    medians: FloatArray = ordered[:, half] if values.shape[1] % 2 else (ordered[:, half - 1] + ordered[:, half]) / 2
    return medians


def relative_half_width(samples: Sequence[float]) -> float | None:
    """Return the larger half-width of the median's interval as a share of the median; None without an interval."""
    interval, middle = median_interval(samples), statistics.median(samples)
    if interval is None or middle <= 0:
        return None
    return max(interval.high - middle, middle - interval.low) / middle


def mann_whitney_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p-value of the Mann-Whitney U test that two series have the same distribution.

    Normal approximation with correction for ties and continuity; valid from 9 values a side. Returns 1.0 if all values
    are equal.

    Raises:
        ValueError: a series is empty.

    Source: Mann & Whitney 1947, "On a Test of Whether one of Two Random Variables is Stochastically Larger".
    """
    if not a or not b:
        raise ValueError("no samples")
    values = np.concatenate([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)])
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[places]  # equal values share the mean of their ranks
    u = float(ranks[: len(a)].sum()) - len(a) * (len(a) + 1) / 2
    total = len(values)
    ties = float((counts**3 - counts).sum()) / (total * (total - 1))
    sigma = math.sqrt(len(a) * len(b) / 12 * (total + 1 - ties))
    if sigma == 0.0:
        return 1.0
    distance = abs(u - len(a) * len(b) / 2) - 0.5
    return min(1.0, math.erfc(max(distance, 0.0) / sigma / math.sqrt(2)))


def benjamini_hochberg(p_values: Sequence[float], rate: float) -> list[bool]:
    """Return which tests are significant if ``rate``, in (0, 1), is the expected share of false positives among them.

    Source: Benjamini & Hochberg 1995, "Controlling the False Discovery Rate".
    """
    ordered = sorted(p_values)
    passing = [p for rank, p in enumerate(ordered, start=1) if p <= rate * rank / len(ordered)]
    return [bool(passing) and p <= passing[-1] for p in p_values]
