"""Building blocks of charts: series, and Plotly traces and axes as plain dictionaries.

Only scatter and bar are used: the page's build of Plotly draws little else, and the tests let it check every chart.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from segx.analysis.figures import interval_per_image
from segx.reporting.columns import literal
from segx.reporting.renderers.html.theme import LineStyle, line_styles
from segx.results.types import Cell, Results

Trace = dict[str, Any]
Interval = tuple[float, float]

_MOST_TICKS = 12
_LABEL_WIDTH = 18


@dataclass(frozen=True)
class Series:
    """The measured cells of one variant, by ascending batch size."""

    name: str
    cells: tuple[Cell, ...]
    style: LineStyle


def measured_series(results: Results) -> list[Series]:
    """Return a series for each variant with measured cells, the fastest first."""
    cells: dict[str, list[Cell]] = {}
    for cell in sorted(filter(lambda cell: cell.measured, results.cells), key=lambda cell: cell.seconds_per_image):
        cells.setdefault(str(cell.variant), []).append(cell)
    styles = line_styles(cells)
    return [
        Series(name, tuple(sorted(found, key=lambda cell: cell.batch_size or 0)), styles[name])
        for name, found in cells.items()
    ]


def batch_sizes(series: Iterable[Series]) -> list[int]:
    """Return all batch sizes measured, ascending."""
    return sorted({cell.batch_size or 0 for cell in cells_of(series)})


def cells_of(series: Iterable[Series]) -> list[Cell]:
    """Return the cells of all series."""
    return [cell for one in series for cell in one.cells]


# Traces


def trace(name: str, kind: str, hover: Sequence[str] | None = None, **properties: Any) -> Trace:
    """Return a trace that the legend entry of ``name`` hides; ``hover``: a label per point, with ``<b>``, ``<br>``."""
    hovering = {"hoverinfo": "skip"} if hover is None else {"hovertext": list(hover), "hoverinfo": "text"}
    return {"type": kind, "name": literal(name), "legendgroup": name, **hovering, **properties}


def points(
    name: str,
    style: LineStyle,
    x: Sequence[Any],
    y: Sequence[float],
    hover: Sequence[str] | None = None,
    *,
    mode: str = "lines+markers",
    x_intervals: Sequence[Interval | None] = (),
    y_intervals: Sequence[Interval | None] = (),
    **properties: Any,
) -> Trace:
    """Return points joined by a line, with error bars where an interval (low, high) is known.

    ``x`` holds numbers or dates; ``properties`` replace those set here.
    """
    drawn = {
        "mode": mode,
        "x": [round_off(value) if isinstance(value, float) else value for value in x],
        "y": [round_off(value) for value in y],
        "line": {"color": style.color, "dash": style.dash, "width": 2 if "markers" in mode else 1.5},
        "marker": {"color": style.color, "symbol": style.symbol, "size": 9},
    }
    if x_intervals:
        drawn["error_x"] = _error_bars(x, x_intervals)
    if y_intervals:
        drawn["error_y"] = _error_bars(y, y_intervals)
    return trace(name, "scatter", hover, **drawn | properties)


def throughput(name: str, style: LineStyle, x: Sequence[Any], cells: Sequence[Cell], hover: Sequence[str]) -> Trace:
    """Return the images per second of measured cells as a line with 95% intervals."""
    rates = [1 / cell.seconds_per_image for cell in cells]
    return points(name, style, x, rates, hover, y_intervals=list(map(rate_interval, cells)))


def bar(name: str, style: LineStyle, value: float, hover: str, pattern: str = "") -> Trace:
    """Return one horizontal bar, labelled with its name and filled with a Plotly pattern."""
    marker = {
        "color": style.color,
        "line": {"color": style.color, "width": 1},
        "pattern": {"shape": pattern, "fillmode": "replace", "size": 7, "solidity": 0.4},
    }
    return trace(name, "bar", [hover], orientation="h", y=[wrapped(name)], x=[round_off(value)], marker=marker)


def rate_interval(cell: Cell) -> Interval | None:
    """Return the 95% interval of images per second; None with too few calls."""
    interval = interval_per_image(cell)
    return (1 / interval.high, 1 / interval.low) if interval else None


def _error_bars(values: Sequence[float], intervals: Sequence[Interval | None]) -> dict[str, Any]:
    ends = [interval or (value, value) for value, interval in zip(values, intervals, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [round_off(high - value) for value, (_, high) in zip(values, ends, strict=True)],
        "arrayminus": [round_off(value - low) for value, (low, _) in zip(values, ends, strict=True)],
        "thickness": 1.4,
        "width": 5,
    }


def round_off(value: float, count: int = 5) -> float:
    """Round to ``count`` significant digits, which keeps the page small; 0 for numbers that are not finite."""
    if value == 0 or not math.isfinite(value):
        return 0.0
    return round(value, count - 1 - math.floor(math.log10(abs(value))))


# Layouts


def layout(x: Mapping[str, Any], y: Mapping[str, Any], *, named: bool = False, **more: Any) -> dict[str, Any]:
    """Return a Plotly layout with two axes and room for their titles; ``named``: names are written at the points."""
    return {
        "xaxis": {"automargin": "bottom", **x},
        "yaxis": {"automargin": "left", **y},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "showlegend": False,
        "hovermode": "closest",
        "meta": {"named": named},
        **more,
    }


def batch_axis(sizes: Iterable[int]) -> dict[str, Any]:
    """Return a logarithmic axis of batch sizes."""
    ticks = sorted(sizes)
    while len(ticks) > _MOST_TICKS:
        ticks = ticks[::2]
    return {"title": {"text": "batch size (images per call)"}, "type": "log", "tickvals": ticks, "ticktext": ticks}


def linear_batch_axis(sizes: Iterable[int]) -> dict[str, Any]:
    """Return a linear axis of batch sizes from 0, without labels that would overlap."""
    largest = max(sizes)
    ticks = [0, *(size for size in sorted(sizes) if size * _MOST_TICKS >= largest)]
    return {"title": {"text": "batch size (images per call)"}, "rangemode": "tozero", "tickvals": ticks}


def linear_axis(title: str, **more: Any) -> dict[str, Any]:
    """Return a linear axis from 0."""
    return {"title": {"text": title}, "rangemode": "tozero", **more}


def log_axis(title: str, *, steps: Sequence[int] = (1, 2, 5)) -> dict[str, Any]:
    """Return a logarithmic axis with labels at these multiples of each power of ten."""
    ticks = [float(f"{step}e{power}") for power in range(-4, 8) for step in steps]
    labels = [f"{tick:,g}" for tick in ticks]
    return {"title": {"text": f"{title} (logarithmic)"}, "type": "log", "tickvals": ticks, "ticktext": labels}


def category_axis(title: str) -> dict[str, Any]:
    """Return an axis of names."""
    return {"title": {"text": title}, "type": "category", "showgrid": False, "ticklabelstandoff": 6}


def wrapped(name: str) -> str:
    """Return a name as an axis label in lines short enough for a phone."""
    return "<br>".join(literal(part) for part in textwrap.wrap(name, _LABEL_WIDTH)) or " "


def guide(axis: Literal["x", "y"], value: float, label: str = "", *, log: bool = False, dash: str = "dash") -> Trace:
    """Return the parts of a layout that draw a labelled line across the chart at a value of one axis."""
    along = "y" if axis == "x" else "x"
    line = {
        "type": "line", f"{axis}ref": axis, f"{axis}0": value, f"{axis}1": value,
        f"{along}ref": "paper", f"{along}0": 0, f"{along}1": 1, "line": {"dash": dash, "width": 1.5},
    }  # fmt: skip
    note = {
        f"{axis}ref": axis, axis: math.log10(value) if log else value, f"{along}ref": "paper", along: 1,
        "xanchor": "left" if axis == "x" else "right", "yanchor": "top" if axis == "x" else "bottom",
        "text": literal(label), "showarrow": False,
    }  # fmt: skip
    return {"shapes": [line], "annotations": [note] if label else []}
