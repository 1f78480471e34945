"""Figures as they are displayed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.stats import Interval
from segx.reporting.columns import digits, iou, memory, recorded, seconds, sparkline, spread, times


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (digits(1234.5), "1,234"),
        (digits(0.001234), "0.00123"),
        (seconds(0.00847), "8.47 ms"),
        (seconds(2.5), "2.50 s"),
        (seconds(5e-6), "5.00 µs"),
        (memory(747), "0.729 KiB"),
        (memory(66 * 2**20), "66.0 MiB"),
        (memory(3 * 2**30), "3.00 GiB"),
        (iou(0.99999), "0.9999"),
        (iou(1.0), "1.0000"),
        (iou(0.819), "0.8190"),
        (iou(0.81899), "0.8189"),
        (seconds(0.01996, exact=True), "19.96 ms"),
        (seconds(10800, exact=True), "10,800 s"),
        (memory(111411199, exact=True), "106.2 MiB"),
        (times(1 / 300), "0.0033x"),
        (times(0.1), "0.10x"),
        (spread(Interval(0.003, 0.2)), "0.0030–0.20"),
    ],
)
def test_figures_have_three_digits_and_the_unit_that_fits(shown: str, expected: str) -> None:
    assert shown == expected


def test_bars_start_at_zero_and_mark_failures() -> None:
    assert sparkline([8.0, 4.0, 1.0, 0.0]) == "█▅▂▁"
    assert sparkline([6.9, 8.0]) == "▇█"
    assert sparkline([1.0, float("nan"), None]) == "█×·"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""


@given(st.lists(st.none() | st.just(float("nan")) | st.floats(0, 1e9)))
def test_every_value_has_a_bar(values: list[float | None]) -> None:
    assert len(sparkline(values)) == len(values)


@given(st.lists(st.floats(0.001, 1e6), min_size=2))
def test_a_larger_value_never_has_a_lower_bar(values: list[float]) -> None:
    heights = ["▁▂▃▄▅▆▇█".index(bar) for bar in sparkline(sorted(values))]
    assert heights == sorted(heights)


def test_a_record_is_told_field_by_field_without_what_is_unknown() -> None:
    fields = {
        "cpu": "AMD EPYC",
        "cpu_quota": 2.5,
        "frequency_mhz": None,
        "memory_total_bytes": 3 << 30,
        "variables": {"OMP_NUM_THREADS": "2", "KMP_AFFINITY": ""},
        "versions": {"numpy": "2.0"},
    }
    assert dict(recorded(fields, "versions")) == {
        "processor": "AMD EPYC",
        "CPU quota": "2.5 cores",
        "memory total": "3.00 GiB",
        "variable OMP_NUM_THREADS": "2",
    }
