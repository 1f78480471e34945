"""Time and memory over batch size: a fixed part and a part per image, the knee, and cliffs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segx.analysis.figures import interval_of, needed_bytes
from segx.results.types import Cell

FEWEST_SIZES = 3

# A batch size is at the knee if its throughput is within this share of the best.
_KNEE = 0.05
# A batch size is a cliff if its time is this share above the line through smaller ones.
_CLIFF = 0.15
# At most this many of the smaller sizes, the largest ones, are varied within their intervals.
_VARIED = 6


@dataclass(frozen=True)
class CostPoint:
    """The median seconds of one call at one batch size, above 0, with their 95% interval."""

    batch_size: int
    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class CostCurve:
    """The line ``seconds = fixed_s + per_image_s * batch``, and where the measurements leave it.

    Neither ``fixed_s`` nor ``per_image_s`` is negative.

    Attributes:
        knee: smallest measured batch size from which throughput gains less than 5%; None if only the largest does, so
            that throughput may go on rising beyond it.
        cliffs: batch sizes clearly above the line through smaller ones; they are left out of the fit.
        misfit: largest relative error of the line at the points it was fitted to.
    """

    fixed_s: float
    per_image_s: float
    knee: int | None
    cliffs: tuple[int, ...]
    misfit: float

    def seconds(self, batch_size: float) -> float:
        """Return the seconds of one call, by the line."""
        return self.fixed_s + self.per_image_s * batch_size


@dataclass(frozen=True)
class MemoryLine:
    """The line ``bytes = base_bytes + per_image_bytes * batch``, by least squares; ``base_bytes`` is at least 0."""

    per_image_bytes: float
    base_bytes: float


def cost_points(cells: Sequence[Cell]) -> list[CostPoint]:
    """Return the measured cells of one variant as points, by batch size; the range serves as missing interval."""
    points = []
    for cell in cells:
        if cell.measured and cell.batch_size:
            interval = interval_of(cell)
            low, high = (interval.low, interval.high) if interval else (min(cell.samples_s), max(cell.samples_s))
            points.append(CostPoint(cell.batch_size, cell.median_s, low, high))
    return sorted(points, key=lambda point: point.batch_size)


def fit_cost(points: Sequence[CostPoint]) -> CostCurve | None:
    """Fit the line, find the knee and the cliffs; ``points`` has one per batch size, in any order.

    The line minimises the sum of squared *relative* errors, so that small batches, which determine the fixed cost,
    count as much as large ones. Neither part may be negative. There is none below 3 batch sizes, because any two points
    lie on a line (see ``why_no_curve``).

    Sources: Tofallis 2008, "Least Squares Percentage Regression"; Lawson & Hanson 1974, "Solving Least Squares
    Problems", chapter 23.
    """
    if why_no_curve(points):
        return None
    ordered = sorted(points, key=lambda point: point.batch_size)
    on_line: list[CostPoint] = []
    cliffs = []
    for point in ordered:
        if _is_cliff(point, on_line):
            cliffs.append(point.batch_size)
        else:
            on_line.append(point)
    fixed_s, per_image_s = _line([p.batch_size for p in on_line], [p.seconds for p in on_line])
    misfit = max(abs(fixed_s + per_image_s * p.batch_size - p.seconds) / p.seconds for p in on_line)
    return CostCurve(fixed_s, per_image_s, _knee(ordered), tuple(cliffs), misfit)


def why_no_curve(points: Sequence[CostPoint]) -> str:
    """Return why there is no curve; empty if there is one."""
    sizes = len({point.batch_size for point in points})
    return "" if sizes >= FEWEST_SIZES else f"a cost curve takes {FEWEST_SIZES} batch sizes, and there are {sizes}"


def _line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Return intercept and slope, neither negative, with the least sum of squared relative errors.

    In two unknowns the optimum is the unconstrained one if that is not negative, else it lies on one of the two axes.
    """
    weights = 1 / np.asarray(seconds, dtype=np.float64)
    rising = np.asarray(sizes, dtype=np.float64) * weights
    w, r = float(weights.sum()), float(rising.sum())
    ww, rw, rr = float(weights @ weights), float(rising @ weights), float(rising @ rising)
    determinant = ww * rr - rw * rw
    if determinant > 0:
        fixed, per_image = (w * rr - r * rw) / determinant, (r * ww - w * rw) / determinant
        if fixed >= 0 and per_image >= 0:
            return fixed, per_image
    # On each axis the sum of squares is the number of points minus this gain.
    return (w / ww, 0.0) if w * w / ww > r * r / rr else (0.0, r / rr)


def _is_cliff(point: CostPoint, smaller: Sequence[CostPoint]) -> bool:
    """Return whether a point lies above the line through smaller ones, wherever these lie in their intervals."""
    if len(smaller) < FEWEST_SIZES - 1:
        return False
    sizes = [p.batch_size for p in smaller]
    fixed, per_image = _line(sizes, [p.seconds for p in smaller])
    if point.seconds <= (1 + _CLIFF) * (fixed + per_image * point.batch_size):
        return False
    # The ends of the intervals are also the weights of the line, so every combination is tried.
    ends: list[tuple[float, ...]] = [(p.seconds,) for p in smaller[:-_VARIED]]
    ends += [(p.low, p.high) for p in smaller[-_VARIED:]]
    lines = (_line(sizes, seconds) for seconds in itertools.product(*ends))
    return point.low > max(fixed + per_image * point.batch_size for fixed, per_image in lines)


def _knee(ordered: Sequence[CostPoint]) -> int | None:
    """Return the knee; a size counts as within 5% of the best if its interval allows it."""
    least = min(point.seconds / point.batch_size for point in ordered)
    knee = next(p.batch_size for p in ordered if (1 - _KNEE) * p.low / p.batch_size <= least)
    return None if knee == ordered[-1].batch_size else knee


def memory_line(cells: Sequence[Cell]) -> MemoryLine | None:
    """Fit a line to the peak bytes of the measured cells of one variant; None below 2 batch sizes with known bytes."""
    known = [(cell.batch_size, needed_bytes(cell)) for cell in cells if cell.measured]
    points = [(size, needed) for size, needed in known if size and needed is not None]
    if len({size for size, _ in points}) < 2:
        return None
    sizes, needed_by_size = np.array(sorted(points), dtype=np.float64).T
    per_image, base = np.polyfit(sizes, needed_by_size, 1)
    return MemoryLine(float(per_image), max(0.0, float(base)))
