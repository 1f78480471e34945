"""The straight line that memory over batch size is told by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.stats import straight_line

_sizes = st.lists(st.integers(1, 256), min_size=2, max_size=8, unique=True)
_values = st.floats(-1e3, 1e3)


@given(_sizes, _values, _values)
def test_points_on_a_line_give_that_line(x: list[int], slope: float, intercept: float) -> None:
    found = straight_line(x, [slope * value + intercept for value in x])
    assert found == pytest.approx((slope, intercept), rel=1e-6, abs=1e-6)


@given(st.data(), _sizes)
def test_it_agrees_with_scipy(data: st.DataObject, x: list[int]) -> None:
    from scipy.stats import linregress

    y = data.draw(st.lists(_values, min_size=len(x), max_size=len(x)))
    expected = linregress(x, y)
    assert straight_line(x, y) == pytest.approx((expected.slope, expected.intercept), rel=1e-6, abs=1e-6)
