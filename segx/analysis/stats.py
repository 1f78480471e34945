"""Statistics of timed calls: pure functions on seconds, with the source of each formula. No sample is ever dropped."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95

# With fewer samples, fewer than six lie beyond the percentile, and it says little more than the slowest call.
RUNS_FOR_PERCENTILE = {90: 64, 95: 130, 99: 662}

# Standard deviation of a normal distribution divided by its median absolute deviation.
MAD_TO_SIGMA = 1.4826

# A median is settled when its 95% interval extends no further than this share of it.
SETTLED = 0.02

# With fewer rounds nothing is said about the uncertainty of a median.
FEWEST_ROUNDS = 6
# Weight of the variance between processes that is pooled over all cells.
_PRIOR_FREEDOM = 4


@dataclass(frozen=True)
class Interval:
    """A range that holds the true value with 95% confidence."""

    low: float
    high: float

    def spans(self, value: float) -> bool:
        """Return whether the interval contains ``value``."""
        return self.low <= value <= self.high

    def overlaps(self, other: Interval) -> bool:
        """Return whether the intervals have a value in common."""
        return self.low <= other.high and other.low <= self.high


def percentile(samples: Sequence[float], percent: int) -> float | None:
    """Return a high percentile by nearest rank: the smallest sample that at least ``percent`` of all do not exceed.

    ``percent`` is 90, 95 or 99. Returns None with fewer samples than ``RUNS_FOR_PERCENTILE``.

    Source: Hyndman & Fan 1996, "Sample Quantiles in Statistical Packages", definition 1.
    """
    if len(samples) < RUNS_FOR_PERCENTILE[percent]:
        return None
    return sorted(samples)[math.ceil(len(samples) * percent / 100) - 1]


@dataclass(frozen=True)
class Spread:
    """How uncertain an estimate is, in logarithms: the variance of its error, and the degrees of freedom of that."""

    variance: float
    freedom: float

    def __add__(self, other: Spread) -> Spread:
        """Return the spread of the difference of two independent estimates.

        Source: Welch 1947, "The Generalization of 'Student's' Problem when several different population variances are
        involved".
        """
        variance = self.variance + other.variance
        if variance == 0.0:
            return self
        return Spread(variance, variance**2 / (self.variance**2 / self.freedom + other.variance**2 / other.freedom))

    @property
    def reach(self) -> float:
        """Half-width of the 95% interval."""
        return student_t(self.freedom) * math.sqrt(self.variance)

    def around(self, estimate: float) -> Interval:
        """Return the 95% interval of a positive figure."""
        return Interval(estimate * math.exp(-self.reach), estimate * math.exp(self.reach))


def spread_of_median(rounds: Sequence[Sequence[float]], process_sd: float | None) -> Spread | None:
    """Return the uncertainty of a median call, measured in rounds of several processes.

    The rounds are the unit: calls of one round share what disturbed it. Medians of rounds vary within a process, and
    processes differ, since memory layout and placement of threads do. Two processes alone tell little about that
    variance, so it is moderated by the one pooled over all cells of the bench, with the weight of four degrees of
    freedom. With one process, only the variance within it is known.

    Args:
        rounds: per process, the logarithm of the median call of each round.
        process_sd: standard deviation between processes, pooled over the cells; None if unknown.

    Returns:
        The spread; None with fewer than 6 rounds, or fewer than 2 in a process.

    Source: Kalibera & Jones 2013, "Rigorous Benchmarking in Reasonable Time" (levels of repetition); Smyth 2004,
    "Linear Models and Empirical Bayes Methods" (moderated variance).
    """
    if sum(map(len, rounds)) < FEWEST_ROUNDS or min(map(len, rounds)) < 2:
        return None
    within = _variance_of_medians(rounds)
    count = len(rounds)
    if count == 1:
        return Spread(within, len(rounds[0]) - 1)
    between = statistics.variance([statistics.median(each) for each in rounds])
    prior = (process_sd or 0.0) ** 2 + within
    freedom = _PRIOR_FREEDOM + count - 1
    return Spread((_PRIOR_FREEDOM * prior + (count - 1) * between) / freedom / count, freedom)


def pooled_process_sd(cells: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """Return the standard deviation between processes over several cells, given as in ``spread_of_median``.

    Of the variance between the medians of processes, what the rounds within them explain is taken off. The variance
    over n cells is enlarged by 1 + 3 / (n - 1), because that over few cells is uncertain itself: so intervals hold 95%
    in simulations (tests/analysis/test_stats.py). None without a cell of several processes.
    """
    found = [
        max(0.0, statistics.variance([statistics.median(each) for each in rounds]) - _variance_of_medians(rounds))
        for rounds in cells
        if len(rounds) > 1 and min(map(len, rounds)) > 1
    ]
    return math.sqrt(statistics.fmean(found) * (1 + 3 / max(0.5, len(found) - 1))) if found else None


def _variance_of_medians(rounds: Sequence[Sequence[float]]) -> float:
    """Return the variance of a process's median over its rounds, averaged over the processes.

    That of a median of n normal values is pi / 2 times that of their mean.
    """
    return statistics.fmean(math.pi / 2 * statistics.variance(each) / len(each) for each in rounds)


def deviation_of_densest_half(values: Sequence[float]) -> float:
    """Return a standard deviation from the half of the values that differ least, whatever the others are.

    The factor for few values is from simulations of normal ones.

    Source: Rousseeuw & Leroy 1988, "A Robust Scale Estimator Based on the Shortest Half".
    """
    ordered = sorted(values)
    half = math.ceil(len(ordered) / 2)
    length = min(high - low for low, high in zip(ordered, ordered[half - 1 :], strict=False))
    return MAD_TO_SIGMA * (1 + 8 / len(ordered)) * length / 2


def student_t(freedom: float) -> float:
    """Return the 97.5% quantile of Student's t; within 0.5% from 4 degrees of freedom on.

    Source: Abramowitz & Stegun 1964, "Handbook of Mathematical Functions", 26.7.5.
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def student_p(estimate: float, spread: Spread) -> float:
    """Return the two-sided p-value of an estimate's difference from 0, by Student's t."""
    # scipy.special imports in a third of the time of scipy.stats.
    from scipy.special import stdtr

    if spread.variance == 0.0:
        return float(estimate == 0.0)
    return 2 * float(stdtr(spread.freedom, -abs(estimate) / math.sqrt(spread.variance)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, so that one of them is at most 5% falsely in 5% of all families.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def mann_kendall_p(values: Sequence[float]) -> float:
    """Return the two-sided p-value of the Mann-Kendall test that a series has no trend; 1.0 if all values are equal.

    Source: Mann 1945, "Nonparametric Tests Against Trend".
    """
    from scipy.stats import kendalltau

    p_value = float(kendalltau(range(len(values)), values).pvalue)
    return 1.0 if math.isnan(p_value) else p_value


def theil_sen_slope(values: Sequence[float]) -> float:
    """Return the median of the slopes between all pairs of values, per step; at least two values.

    Source: Sen 1968, "Estimates of the Regression Coefficient Based on Kendall's Tau".
    """
    from scipy.stats import theilslopes

    return float(theilslopes(values).slope)
