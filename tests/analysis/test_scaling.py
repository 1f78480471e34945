"""Fixed cost, cost per image, knee and cliffs of made-up timings whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from segx.analysis.scaling import CostPoint, _line, cost_points, fit_cost, memory_line, why_no_curve
from segx.results.types import Cell, HostMemory

COSTS = st.floats(1e-4, 10.0)
SIZES = st.lists(st.integers(1, 128), min_size=3, max_size=8, unique=True)


def point(size: int, seconds: float, spread: float = 0.01) -> CostPoint:
    return CostPoint(size, seconds, seconds * (1 - spread), seconds * (1 + spread))


def line(fixed_s: float, per_image_s: float, sizes: tuple[int, ...] = (1, 2, 4, 8, 16)) -> list[CostPoint]:
    return [point(size, fixed_s + per_image_s * size) for size in sizes]


# The line


@given(COSTS, COSTS, SIZES, st.randoms())
def test_a_line_is_found_again_in_any_order(
    fixed_s: float, per_image_s: float, sizes: list[int], order: object
) -> None:
    points = line(fixed_s, per_image_s, tuple(sizes))
    order.shuffle(points)  # type: ignore[attr-defined]
    curve = fit_cost(points)
    assert curve
    for size in sizes:
        assert curve.seconds(size) == pytest.approx(fixed_s + per_image_s * size, rel=1e-6)
    assert curve.misfit == pytest.approx(0.0, abs=1e-6)
    assert curve.cliffs == ()


@given(st.lists(st.tuples(st.integers(1, 64), COSTS), min_size=3, max_size=8, unique_by=lambda pair: pair[0]))
def test_costs_are_not_negative_and_no_other_line_fits_better(figures: list[tuple[int, float]]) -> None:
    curve = fit_cost([point(*figure) for figure in figures])
    assert curve
    assert curve.fixed_s >= 0
    assert curve.per_image_s >= 0

    def squares(fixed_s: float, per_image_s: float) -> float:
        on_line = [figure for figure in figures if figure[0] not in curve.cliffs]
        return sum(((fixed_s + per_image_s * size - seconds) / seconds) ** 2 for size, seconds in on_line)

    best = squares(curve.fixed_s, curve.per_image_s)
    for step in (0.99, 1.01):
        for other in ((curve.fixed_s * step, curve.per_image_s), (curve.fixed_s, curve.per_image_s * step)):
            assert best <= squares(*other) * (1 + 1e-9) + 1e-12


@given(COSTS, COSTS, st.floats(1e-3, 1e3))
def test_another_unit_of_time_gives_the_same_curve(fixed_s: float, per_image_s: float, unit: float) -> None:
    curve, scaled = fit_cost(line(fixed_s, per_image_s)), fit_cost(line(fixed_s * unit, per_image_s * unit))
    assert curve
    assert scaled
    assert scaled.fixed_s == pytest.approx(curve.fixed_s * unit, rel=1e-6, abs=1e-12)
    assert scaled.per_image_s == pytest.approx(curve.per_image_s * unit, rel=1e-6, abs=1e-12)
    assert scaled.cliffs == curve.cliffs


def test_time_that_falls_with_the_batch_has_no_cost_per_image() -> None:
    curve = fit_cost([point(1, 3.0), point(2, 2.0), point(4, 1.0)])
    assert curve
    assert curve.per_image_s == 0.0
    assert curve.fixed_s > 0


def test_relative_errors_count_so_that_small_batches_tell_the_fixed_cost() -> None:
    """A tenth more at the largest batch would move an unweighted intercept far away."""
    points = line(0.1, 0.1)
    points[-1] = point(16, points[-1].seconds * 1.1)
    curve = fit_cost(points)
    assert curve
    assert curve.fixed_s == pytest.approx(0.1, abs=0.02)


# Too few


@pytest.mark.parametrize("sizes", [(), (1,), (1, 2), (2, 2, 2)])
def test_below_three_batch_sizes_there_is_a_reason_and_no_curve(sizes: tuple[int, ...]) -> None:
    points = [point(size, 1.0) for size in sizes]
    assert fit_cost(points) is None
    assert f"there are {len(set(sizes))}" in why_no_curve(points)
    assert why_no_curve(line(1, 1)) == ""


# Knee


@pytest.mark.parametrize(
    ("fixed_s", "knee"),
    [
        (0.0, 1),  # images cost the same in any batch
        (0.1, 8),  # 0.2625 s per image there, 0.25625 at best
        (100.0, None),  # still rising at the largest
    ],
)
def test_the_knee_is_the_smallest_batch_within_5_percent_of_the_best(fixed_s: float, knee: int | None) -> None:
    curve = fit_cost([point(size, fixed_s + 0.25 * size, 0.0) for size in (1, 2, 4, 8, 16)])
    assert curve
    assert curve.knee == knee


def test_a_size_whose_interval_may_be_within_5_percent_is_at_the_knee() -> None:
    exact = [point(1, 1.07, 0.0), point(2, 2.0, 0.0), point(4, 4.0, 0.0)]
    curve = fit_cost(exact)
    assert curve
    assert curve.knee == 2
    wide = fit_cost([dataclasses.replace(exact[0], low=1.04), *exact[1:]])
    assert wide
    assert wide.knee == 1


# Cliffs


@given(COSTS, COSTS, st.floats(1.5, 20.0))
def test_a_jump_is_a_cliff_and_stays_out_of_the_line(fixed_s: float, per_image_s: float, jump: float) -> None:
    points = line(fixed_s, per_image_s)
    points[-1] = point(16, points[-1].seconds * jump)
    curve = fit_cost(points)
    assert curve
    assert curve.cliffs == (16,)
    assert curve.fixed_s == pytest.approx(fixed_s, rel=1e-3, abs=1e-9 + 1e-3 * per_image_s)


@pytest.mark.parametrize("jump", [1.0, 1.1, 1.14])
def test_up_to_15_percent_is_no_cliff(jump: float) -> None:
    points = line(0.0, 0.1)
    points[-1] = point(16, points[-1].seconds * jump, 0.0)
    curve = fit_cost(points)
    assert curve
    assert curve.cliffs == ()


def test_a_jump_within_the_intervals_is_no_cliff() -> None:
    points = [*line(0.1, 0.1, (1, 2)), point(8, 1.3)]  # 0.9 by the line
    curve = fit_cost(points)
    assert curve
    assert curve.cliffs == (8,)
    unsure = [point(p.batch_size, p.seconds, 0.3) for p in points]
    curve = fit_cost(unsure)
    assert curve
    assert curve.cliffs == ()


@given(
    st.lists(st.tuples(COSTS, st.floats(0.0, 0.3)), min_size=2, max_size=5), st.floats(1.0, 4.0), st.floats(0.0, 0.3)
)
@example([(7.0, 0.25), (2.5, 0.25), (3.5, 0.125), (5.0, 0.0)], 1.0, 0.0)
def test_no_corner_of_the_intervals_explains_a_cliff(
    figures: list[tuple[float, float]], jump: float, spread: float
) -> None:
    """The smaller sizes at any ends of their intervals, by brute force."""
    smaller = [point(2**i, *figure) for i, figure in enumerate(figures)]
    size = 2 ** len(smaller)
    last = point(size, jump * max(seconds for seconds, _ in figures), spread)
    curve = fit_cost([*smaller, last])
    assert curve
    kept = [p for p in smaller if p.batch_size not in curve.cliffs]
    sizes = [p.batch_size for p in kept]
    corners = itertools.product(*((p.low, p.high) for p in kept))
    highest = max(fixed + per_image * size for fixed, per_image in (_line(sizes, corner) for corner in corners))
    fixed, per_image = _line(sizes, [p.seconds for p in kept])
    above = last.low > highest * (1 + 1e-9) and last.seconds > 1.15 * (fixed + per_image * size) * (1 + 1e-9)
    below = last.low < highest * (1 - 0.05) or last.seconds < 1.15 * (fixed + per_image * size) * (1 - 1e-9)
    if above:
        assert size in curve.cliffs
    if below:
        assert size not in curve.cliffs


def test_all_sizes_beyond_a_step_are_cliffs() -> None:
    points = line(0.1, 0.1)
    points[3:] = [point(8, 1.8), point(16, 3.4)]
    curve = fit_cost(points)
    assert curve
    assert curve.cliffs == (8, 16)


def test_two_sizes_are_too_few_to_find_a_cliff() -> None:
    curve = fit_cost([point(1, 1.0), point(2, 20.0), point(4, 40.0)])
    assert curve
    assert 2 not in curve.cliffs


# Cells as points, and memory


def cell(size: int, *samples_s: float, needed: int | None = None) -> Cell:
    return Cell(
        runtime="onnxruntime-cpu",
        precision="fp32",
        batch_size=size,
        status="ok",
        samples_s=samples_s,
        host_memory=None if needed is None else HostMemory(0, 0, needed, "made up"),
    )


def test_cells_become_points_by_batch_size_and_those_that_failed_are_left_out() -> None:
    failed = dataclasses.replace(cell(4), status="failed")
    points = cost_points([cell(2, *[2.0] * 8), failed, cell(1, 1.0, 1.2)])
    assert points == [CostPoint(1, 1.1, 1.0, 1.2), CostPoint(2, 2.0, 2.0, 2.0)]


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_memory_is_a_base_and_a_slope(base: int, per_image: int) -> None:
    found = memory_line([cell(n, 1.0, needed=base + n * per_image) for n in (4, 1, 2)])
    assert found
    assert found.per_image_bytes == pytest.approx(per_image, rel=1e-6, abs=2.0)
    assert found.base_bytes == pytest.approx(base, rel=1e-6, abs=8.0)


@given(
    st.lists(st.tuples(st.integers(1, 256), st.integers(0, 10**9)), min_size=2, max_size=8, unique_by=lambda at: at[0])
)
def test_the_line_of_memory_agrees_with_scipy(points: list[tuple[int, int]]) -> None:
    from scipy.stats import linregress

    found, expected = (
        memory_line([cell(size, 1.0, needed=needed) for size, needed in points]),
        linregress(*zip(*points, strict=True)),
    )
    assert found
    assert found.per_image_bytes == pytest.approx(expected.slope, rel=1e-6, abs=2.0)
    assert found.base_bytes == pytest.approx(max(0.0, expected.intercept), rel=1e-6, abs=8.0)


def test_memory_of_fewer_than_two_measured_sizes_has_no_line() -> None:
    failed = dataclasses.replace(cell(2, needed=5), status="failed")
    assert memory_line([]) is None
    assert memory_line([cell(1, 1.0, needed=5), cell(1, 1.0, needed=6)]) is None
    assert memory_line([cell(1, 1.0, needed=5), cell(2, 1.0), failed]) is None
