"""Statistics against scipy, and against their own invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.stats import (
    RUNS_FOR_PERCENTILE,
    Interval,
    Spread,
    deviation_of_densest_half,
    holm,
    mann_kendall_p,
    percentile,
    pooled_process_sd,
    spread_of_median,
    student_p,
    student_t,
    theil_sen_slope,
)


@pytest.mark.parametrize("percent", RUNS_FOR_PERCENTILE)
def test_percentiles_agree_with_scipy_and_need_enough_runs(percent: int) -> None:
    from scipy.stats.mstats import mquantiles

    count = RUNS_FOR_PERCENTILE[percent]
    samples = list(np.random.default_rng(percent).lognormal(size=count))
    assert percentile(samples[:-1], percent) is None
    expected = np.quantile(samples, percent / 100, method="inverted_cdf")
    assert percentile(samples, percent) == expected
    # Another definition of the same percentile lies within the neighbouring samples.
    ordered, rank = sorted(samples), samples.index(expected)
    other = float(mquantiles(samples, [percent / 100])[0])
    place = ordered.index(samples[rank])
    assert ordered[place - 1] <= other <= ordered[min(place + 1, count - 1)]


# Spread of a median over rounds and processes

Rounds = list[list[float]]


def simulated(
    choose: np.random.Generator, *, processes: int, rounds: int, process_sd: float, turn_sd: float = 0.03
) -> tuple[Rounds, float]:
    """Return logarithms of round medians and the median of all calls; the true value is 0.

    Processes and turns differ, and so do five calls within each turn, by 1%.
    """
    calls = choose.normal(0, process_sd, (processes, 1, 1)) + choose.normal(0, turn_sd, (processes, rounds, 1))
    calls = calls + choose.normal(0, 0.01, (processes, rounds, 5))
    return [list(map(float, of_process)) for of_process in np.median(calls, axis=2)], float(np.median(calls))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("process_sd", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("cells", [3, 8])
def test_intervals_hold_the_true_value_and_equal_cells_are_tied(processes: int, process_sd: float, cells: int) -> None:
    """At least 93% and at most 5%, in benches of so many cells; one process cannot know how others differ."""
    if processes == 1:
        process_sd = 0.0
    choose = np.random.default_rng(round(1000 * process_sd) + processes)
    covered = apart = count = 0
    for _ in range(600 // cells):
        drawn = [simulated(choose, processes=processes, rounds=10, process_sd=process_sd) for _ in range(cells)]
        pooled = pooled_process_sd([rounds for rounds, _ in drawn])
        (first, first_median), *others = drawn
        for rounds, median in others:
            spread = spread_of_median(rounds, pooled)
            ratios = [list(np.subtract(*of_process)) for of_process in zip(first, rounds, strict=True)]
            of_ratio = spread_of_median(ratios, None if pooled is None else pooled * math.sqrt(2))
            assert spread
            assert of_ratio
            covered += abs(median) <= spread.reach
            apart += abs(first_median - median) > of_ratio.reach
            count += 1
    assert covered >= 0.93 * count
    assert apart <= 0.05 * count


def test_treating_calls_as_independent_would_not_hold_it() -> None:
    """Why the round is the unit: with 3% from turn to turn and 1% from call to call."""
    choose = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        calls = (choose.normal(0, 0.03, (10, 1)) + choose.normal(0, 0.01, (10, 20))).ravel()
        low, high = np.sort(calls)[[86, 113]]  # by order statistics of 200 calls
        covered += low <= 0 <= high
    assert covered < 0.7 * 300


def test_a_disturbance_of_whole_rounds_cancels_in_their_ratio() -> None:
    drift = np.linspace(0, 1, 40)
    noise = np.random.default_rng(2).normal(0, 0.005, (2, 40))
    slow, fast = drift + noise[0] + math.log(1.1), drift + noise[1]
    paired = spread_of_median([list(slow - fast)], None)
    alone = [spread_of_median([list(each)], None) for each in (slow, fast)]
    assert paired
    assert alone[0]
    assert alone[1]
    assert paired.reach < math.log(1.1) < (alone[0] + alone[1]).reach


@pytest.mark.parametrize("rounds", [[[0.0] * 5], [[0.0] * 3, [0.0] * 2], [[0.0] * 9, [0.0]], [[]]])
def test_too_few_rounds_have_no_spread(rounds: Rounds) -> None:
    assert spread_of_median(rounds, None) is None


def test_rounds_without_any_difference_have_no_width() -> None:
    spread = spread_of_median([[1.0] * 6, [1.0] * 6], 0.0)
    assert spread
    assert spread.around(2.0) == Interval(2.0, 2.0)


def test_processes_that_differ_widen_the_interval() -> None:
    steady = list(np.random.default_rng(1).normal(0, 0.001, 10))
    apart = [value + 0.05 for value in steady]
    alike, different = spread_of_median([steady, steady], 0.0), spread_of_median([steady, apart], 0.0)
    told = spread_of_median([steady, steady], 0.05)
    assert alike
    assert different
    assert told
    assert different.reach > 5 * alike.reach
    assert told.reach > 5 * alike.reach
    assert pooled_process_sd([[steady, steady]]) == 0.0
    assert pooled_process_sd([[steady, apart]]) == pytest.approx(math.sqrt(7 / 2) * 0.05, rel=0.01)
    assert pooled_process_sd([[steady]]) is None


@given(st.floats(4, 10_000))
def test_student_t_agrees_with_scipy(freedom: float) -> None:
    from scipy.stats import t

    assert student_t(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=0.005)


@given(st.floats(4, 200), st.floats(-6, 6), st.floats(0.01, 3))
def test_student_p_is_two_sided(freedom: float, score: float, sd: float) -> None:
    from scipy.stats import t

    assert student_p(score * sd, Spread(sd**2, freedom)) == pytest.approx(2 * t.sf(abs(score), freedom))
    assert student_p(0.0, Spread(0.0, freedom)) == 1.0
    assert student_p(0.1, Spread(0.0, freedom)) == 0.0


@given(st.lists(st.floats(0, 1), max_size=9))
def test_holm_is_by_definition(p_values: list[float]) -> None:
    """A p-value is the largest, up to its rank, of each times the number of those that are left."""
    ordered = sorted(p_values)
    steps = [min(1.0, p * (len(ordered) - rank)) for rank, p in enumerate(ordered)]
    expected = [max(steps[: ordered.index(p) + ordered.count(p)]) for p in p_values]
    found = holm(p_values)
    assert all(low <= high for low, high in zip(p_values, found, strict=True))
    assert sorted(found) == pytest.approx(sorted(max(steps[: i + 1]) for i in range(len(steps))))
    assert all(low <= high + 1e-12 for low, high in zip(found, expected, strict=True))


def test_a_trend_is_told_from_none() -> None:
    rising = [float(i) for i in range(8)]
    assert mann_kendall_p(rising) == pytest.approx(2 / math.factorial(8))  # of all orders, two are monotonic
    assert theil_sen_slope(rising) == 1.0
    assert mann_kendall_p([1.0, 2.0] * 4) > 0.3
    assert mann_kendall_p([1.0] * 8) == 1.0
    assert theil_sen_slope([1.0] * 8) == 0.0


def test_the_spread_of_a_difference_is_that_of_welch() -> None:
    one, other = Spread(0.04 / 8, 7), Spread(0.09 / 5, 4)
    assert (one + other).freedom == pytest.approx((0.005 + 0.018) ** 2 / (0.005**2 / 7 + 0.018**2 / 4))
    assert (one + other).variance == pytest.approx(0.023)
    nothing = Spread(0.0, 5)
    assert nothing + nothing == nothing


@pytest.mark.parametrize("count", [4, 7, 8, 14, 20])
def test_the_deviation_of_the_densest_half_is_that_of_normal_values_whatever_the_others_are(count: int) -> None:
    values = np.random.default_rng(count).normal(5, 2, (4000, count))
    found = [deviation_of_densest_half(list(each)) for each in values]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(2, rel=0.35)
    assert deviation_of_densest_half([1.0] * (count - count // 2) + [3.0] * (count // 2)) == 0.0
