"""Statistics against scipy, and against their own invariants."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.stats import (
    RUNS_FOR_PERCENTILE,
    median_interval,
    percentile,
    ratio_interval,
    relative_half_width,
)

seconds = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300)


@given(st.integers(1, 3000))
def test_median_interval_is_the_narrowest_with_95_percent_by_scipy(count: int) -> None:
    from scipy.stats import binom

    interval = median_interval([float(i) for i in range(1, count + 1)])
    if count < 6:
        assert interval is None
        return
    assert interval
    rank = int(interval.low)
    assert interval.high == count - rank + 1
    assert 1 - 2 * binom.cdf(rank - 1, count, 0.5) >= 0.95
    if rank < count // 2:
        assert 1 - 2 * binom.cdf(rank, count, 0.5) < 0.95 + 1e-9


@given(seconds)
def test_median_interval_holds_the_samples_own_median(samples: list[float]) -> None:
    interval = median_interval(samples)
    assert interval is None or interval.spans(median(samples))


@given(seconds, st.randoms(use_true_random=False))
def test_order_does_not_matter(samples: list[float], order: object) -> None:
    shuffled = list(samples)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert median(shuffled) == median(samples)
    assert median_interval(shuffled) == median_interval(samples)


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


def test_intervals_cover_the_true_median() -> None:
    """1,000 runs of skewed latencies with outliers; the interval is one of 95 %."""
    choose = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        samples = choose.lognormal(mean=0.0, sigma=0.3, size=25)
        samples[choose.random(25) < 0.05] *= 5
        interval = median_interval(list(samples))
        # The outliers push the median of the mixture above 1, that of the log-normal.
        covered += bool(interval and interval.spans(1.0 * np.exp(0.3 * 0.0660)))
    assert covered >= 930


@pytest.mark.parametrize("paired", [True, False])
def test_ratio_intervals_cover_the_true_ratio(paired: bool) -> None:
    choose = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        drift = np.cumsum(choose.normal(0, 0.02, size=30)) if paired else np.zeros(30)
        slow = 2.0 * np.exp(drift + choose.normal(0, 0.03, size=30))
        fast = 1.0 * np.exp(drift + choose.normal(0, 0.03, size=30))
        interval = ratio_interval(list(slow), list(fast), paired=paired, seed=seed)
        covered += bool(interval and interval.spans(2.0))
    assert covered >= 0.9 * 300


def test_pairing_cancels_what_disturbs_a_whole_round() -> None:
    choose = np.random.default_rng(2)
    drift = np.exp(np.linspace(0, 1, 40))
    slow, fast = 1.1 * drift * choose.normal(1, 0.005, 40), drift * choose.normal(1, 0.005, 40)
    paired = ratio_interval(list(slow), list(fast), paired=True)
    alone = ratio_interval(list(slow), list(fast), paired=False)
    assert paired
    assert alone
    assert not paired.spans(1.0)
    assert alone.spans(1.0)


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=6, max_size=40),
    st.booleans(),
)
def test_ratio_intervals_hold_the_ratio_itself(pairs: list[tuple[float, float]], paired: bool) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    interval = ratio_interval(a, b, paired=paired)
    assert interval
    assert interval.spans(median(a) / median(b))


def test_ratio_intervals_need_rounds_and_pairs() -> None:
    assert ratio_interval([1.0] * 5, [1.0] * 5, paired=True) is None
    with pytest.raises(ValueError, match="7 rounds cannot be paired with 6"):
        ratio_interval([1.0] * 7, [1.0] * 6, paired=True)


def test_the_same_figures_give_the_same_interval() -> None:
    a, b = list(np.random.default_rng(3).random(20)), list(np.random.default_rng(4).random(20))
    assert ratio_interval(a, b, paired=True) == ratio_interval(a, b, paired=True)


def test_relative_half_width() -> None:
    assert relative_half_width([1.0] * 5) is None
    assert relative_half_width([2.0] * 10) == 0.0
    assert relative_half_width([1.0, 1.0, 1.0, 1.1, 1.0, 0.8]) == pytest.approx(0.2)
