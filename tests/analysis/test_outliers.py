"""Slow calls placed by hand, and the causes reported for them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.figures import seconds_for
from segx.analysis.outliers import disturbances, find_outliers
from segx.results.types import Cell, Round

CORES = 4
FIRST = "the first timed call: more --warmup"
THROTTLED = "the CPU quota was used up (cgroup throttling)"
STOLEN = "the hypervisor gave processors to others (steal)"
LOADED = "other programs were running (load above the cores)"
CAPPED = "the GPU's clock was held down (power cap)"


def _calls(count: int, slow: Sequence[int], *, factor: float = 3.0, jitter: float = 0.005) -> list[float]:
    """Calls of about 1 s, of which some take longer."""
    choose = random.Random(0)
    return [(factor if i in slow else 1.0) * choose.uniform(1 - jitter, 1 + jitter) for i in range(count)]


def _rounds(count: int, runs: int, **changes: dict[int, Any]) -> list[Round]:
    """Quiet rounds except for these: field -> number of the round -> value."""
    return [
        Round(number=i, runs=runs, load=1.0, **{name: values[i] for name, values in changes.items() if i in values})
        for i in range(count)
    ]


def _causes(samples_s: Sequence[float], rounds: Sequence[Round] = ()) -> tuple[str, ...]:
    found = find_outliers(samples_s, rounds, cores=CORES)
    assert found
    return tuple(cause for each in found for cause in each.causes)


# Which calls


@given(st.lists(st.floats(1e-4, 1.0), min_size=3, max_size=60))
def test_outliers_are_ten_deviations_and_a_tenth_above_the_median(samples_s: list[float]) -> None:
    middle = statistics.median(samples_s)
    deviation = statistics.median(abs(value - middle) for value in samples_s)
    limit = middle + max(10 * (1.4826 * deviation), 0.1 * middle)
    expected = tuple(i for i, value in enumerate(samples_s) if value > limit)
    given_s = list(samples_s)
    found = find_outliers(samples_s, [], cores=CORES)
    assert samples_s == given_s
    assert tuple(index for each in found for index in each.indices) == expected
    if expected:
        assert max(each.worst for each in found) == pytest.approx(max(samples_s) / middle)


def test_tiny_deviations_on_a_quiet_machine_are_no_outliers() -> None:
    quiet = [1.0 + 1e-9 * (i % 3) for i in range(100)]
    assert not find_outliers(quiet, [], cores=CORES)
    assert not find_outliers([*quiet, 1.0999], [], cores=CORES)  # thousands of deviations, but nothing worth telling
    assert find_outliers([*quiet, 1.1001], [], cores=CORES)


def test_equal_calls_have_no_outliers() -> None:
    assert not find_outliers([0.5] * 50, [], cores=CORES)


def test_usual_deviations_on_a_noisy_machine_are_no_outliers() -> None:
    choose = random.Random(1)
    noisy = [choose.gauss(1.0, 0.1) for _ in range(200)]
    assert not find_outliers([*noisy, 1.5], [], cores=CORES)
    (found,) = find_outliers([*noisy, 3.0], [], cores=CORES)
    assert found.indices == (200,)


def test_fast_calls_are_no_outliers() -> None:
    assert not find_outliers([1.0] * 20 + [0.01], [], cores=CORES)


@pytest.mark.parametrize("samples_s", [[], [1.0], [1.0, 9.0]])
def test_too_few_calls_have_no_outliers(samples_s: list[float]) -> None:
    assert not find_outliers(samples_s, [], cores=CORES)


def test_calls_too_short_for_the_clock_are_no_error() -> None:
    assert find_outliers([0.0, 0.0, 0.0, 1e-6], [], cores=CORES)


def test_outliers_are_reported_and_never_clipped() -> None:
    samples_s = _calls(40, (5, 9), factor=50.0)
    cell = Cell(runtime="fake", precision="fp32", batch_size=1, status="ok", samples_s=tuple(samples_s))
    (found,) = find_outliers(cell.samples_s, [], cores=CORES)
    assert found.indices == (5, 9)
    assert found.worst == pytest.approx(50.0, rel=0.02)
    assert seconds_for(cell, 40)[0] == pytest.approx(sum(samples_s))  # they count where totals are given


# What may explain them


def test_the_first_timed_call() -> None:
    assert _causes(_calls(40, (0,))) == (FIRST,)


def test_the_first_timed_call_explains_no_other_call() -> None:
    samples_s = _calls(60, (0, 25, 31))
    samples_s[0] = 9.0
    rounds = _rounds(6, 10, throttled_s={2: 2.0})
    first, others = find_outliers(samples_s, rounds, cores=CORES)
    assert (first.indices, first.causes) == ((0,), (FIRST,))
    assert (others.indices, others.causes) == ((25, 31), (THROTTLED,))
    assert (first.worst, others.worst) == pytest.approx((9.0, 3.0), rel=0.02)
    _, unexplained = find_outliers(samples_s, [], cores=CORES)
    assert unexplained.told == "nothing that was watched explains them"


def test_the_second_call_is_not_the_first() -> None:
    assert _causes(_calls(40, (1,))) == ()


@given(
    period=st.integers(3, 12),
    count=st.integers(4, 8),
    offset=st.integers(1, 12),
    shifts=st.randoms(use_true_random=False),
)
def test_equal_gaps_are_periodic_even_if_one_is_off_by_a_call(
    period: int, count: int, offset: int, shifts: random.Random
) -> None:
    slow = [offset + i * period for i in range(count)]
    assert _causes(_calls(offset + count * period, slow)) == (f"every {period}{'rd' if period == 3 else 'th'} call",)
    slow[shifts.randrange(count)] += 1
    assert _causes(_calls(offset + count * period, slow)) == (f"every {period}{'rd' if period == 3 else 'th'} call",)


def test_the_first_call_is_not_part_of_a_period() -> None:
    assert _causes(_calls(40, (0, 5, 15, 25, 35))) == (FIRST, "every 10th call")


def test_three_outliers_are_too_few_for_a_period() -> None:
    assert _causes(_calls(40, (5, 15, 25))) == ()


def test_gaps_of_different_lengths_are_not_periodic() -> None:
    assert _causes(_calls(100, (3, 7, 20, 24, 45, 80))) == ()


@pytest.mark.parametrize("slow", [range(10, 16), [*range(10, 13), *range(40, 43)], [*range(5, 9), 30, *range(60, 64)]])
def test_consecutive_outliers_are_not_periodic(slow: Sequence[int]) -> None:
    assert _causes(_calls(100, list(slow))) == ()


def test_a_burst_with_gaps_is_not_periodic() -> None:
    assert _causes(_calls(100, (10, 11, 13, 16, 17, 19))) == ()


@pytest.mark.parametrize(
    ("field", "value", "cause"),
    [
        ("throttled_s", 2.0, THROTTLED),
        ("stolen_s", 2.0, STOLEN),
        ("gpu_slowed", "power cap", CAPPED),
        ("load", 9.0, LOADED),
    ],
)
def test_events_in_the_same_round_are_causes(field: str, value: Any, cause: str) -> None:
    samples_s = _calls(60, (25,))  # in round 2
    quiet = Round(number=0, runs=10, load=1.0)

    def rounds(place: int) -> list[Round]:
        disturbed = Round(**{**vars(quiet), field: value})
        return [disturbed if i == place else quiet for i in range(6)]

    assert _causes(samples_s, rounds(2)) == (cause,)
    for elsewhere in (0, 1, 3, 5):
        assert _causes(samples_s, rounds(elsewhere)) == ()


@pytest.mark.parametrize(
    ("field", "least", "cause"),
    # Of a turn of 12 s on 4 processors, a fiftieth; of the load, half a task above the processors.
    [("throttled_s", 0.96, THROTTLED), ("stolen_s", 0.96, STOLEN), ("load", 4.5, LOADED)],
)
def test_events_that_took_almost_no_time_are_no_causes(field: str, least: float, cause: str) -> None:
    samples_s = _calls(10, (5,), jitter=0.0)
    for value, expected in ((least * 0.999, ()), (least * 1.001, (cause,))):
        turn: dict[str, Any] = {"number": 0, "runs": 10, field: value}
        assert _causes(samples_s, [Round(**turn)]) == expected


def test_without_recorded_events_there_are_no_causes() -> None:
    assert _causes(_calls(60, (25,)), _rounds(6, 10)) == ()
    assert _causes(_calls(60, (25,)), [Round(number=i, runs=10) for i in range(6)]) == ()  # the load is not known
    assert _causes(_calls(60, (25,))) == ()  # there were no rounds


def test_each_cause_is_listed_once_the_most_certain_first() -> None:
    samples_s = _calls(60, (0, 12, 22, 32, 42, 52))
    rounds = _rounds(6, 10, throttled_s={1: 2.0, 2: 2.0, 3: 2.0}, gpu_slowed={4: "power cap"})
    assert _causes(samples_s, rounds) == (FIRST, "every 10th call", THROTTLED, CAPPED)


def test_rounds_may_have_any_length() -> None:
    samples_s = _calls(30, (7,))
    lengths = (1, 6, 3, 20)
    for place in range(4):
        rounds = [Round(number=i, runs=runs, throttled_s=9.0 * (i == place)) for i, runs in enumerate(lengths)]
        assert _causes(samples_s, rounds) == ((THROTTLED,) if place == 2 else ())


# Throughout


@pytest.mark.parametrize(("disturbed", "expected"), [(0, []), (2, []), (3, [LOADED]), (6, [LOADED])])
def test_disturbances_of_half_of_the_rounds_are_listed_without_outliers(disturbed: int, expected: list[str]) -> None:
    samples_s = _calls(60, ())
    rounds = _rounds(6, 10)
    rounds[:disturbed] = [Round(number=i, runs=10, load=CORES + 1.0) for i in range(disturbed)]
    assert disturbances(samples_s, rounds, cores=CORES) == expected
    assert not find_outliers(samples_s, rounds, cores=CORES)


def test_each_round_is_judged_by_its_own_time() -> None:
    """The same figure is much of a short turn and little of a long one."""
    samples_s = [0.01] * 10 + [10.0] * 2
    rounds = [Round(number=0, runs=10, throttled_s=0.01), Round(number=1, runs=2, throttled_s=0.01)]
    assert disturbances(samples_s, rounds, cores=1) == [THROTTLED]  # one of two
    assert disturbances(samples_s, [*rounds, Round(number=2, runs=0)], cores=1) == []


def test_several_disturbances_are_all_listed() -> None:
    rounds = [Round(number=i, runs=10, load=9.0, gpu_slowed="power cap", throttled_s=1.0) for i in range(3)]
    assert disturbances(_calls(30, ()), rounds, cores=CORES) == [THROTTLED, CAPPED, LOADED]


def test_without_rounds_there_are_no_disturbances() -> None:
    assert disturbances([1.0, 1.0], [], cores=CORES) == []
