"""The account of the wall time, on a clock that only the test moves."""

from __future__ import annotations

import time

import pytest

from segx.bench.session import WallClock
from segx.results.types import Wall


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stand_in = Clock()
    monkeypatch.setattr(time, "perf_counter", stand_in)
    return stand_in


def test_each_part_has_its_time_and_the_total_has_all(clock: Clock) -> None:
    watch = WallClock()
    for seconds in (2.0, 3.0):
        with watch.timing("export"):
            clock.now_s += seconds
    clock.now_s += 4.0
    watch.add("sampling", 1.5)
    watch.add("sampling", 0.5)
    watch.add("peaks", 1.0)
    wall = watch.read()
    assert wall == Wall(total=9.0, sampling=2.0, loading=0.0, export=5.0, reference=0.0, peaks=1.0)
    assert wall.overhead == pytest.approx(1 / 9)


def test_the_time_of_a_part_that_fails_counts(clock: Clock) -> None:
    watch = WallClock()

    def fail() -> None:
        with watch.timing("reference"):
            clock.now_s += 2.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert watch.read().reference == 2.0


def test_reading_does_not_stop_the_clock(clock: Clock) -> None:
    watch = WallClock()
    clock.now_s += 1.0
    assert watch.read().total == 1.0
    clock.now_s += 1.0
    assert watch.read().total == 2.0


def test_the_time_of_earlier_sessions_counts(clock: Clock) -> None:
    watch = WallClock()
    watch.add("sampling", 0.5)
    clock.now_s += 1.0
    earlier = Wall(total=9.0, sampling=2.0, loading=1.0, export=5.0, reference=0.0, peaks=1.0)
    watch.go_on_from(earlier)
    assert watch.read() == Wall(total=10.0, sampling=2.5, loading=1.0, export=5.0, reference=0.0, peaks=1.0)


def test_the_overhead_is_never_negative() -> None:
    assert Wall(total=1.0, sampling=1.0, loading=1.0, export=0.0, reference=0.0).overhead == 0.0
