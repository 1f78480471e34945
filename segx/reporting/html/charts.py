"""The parts that charts are made of: traces and layouts as plain data, in the words of plotly.js.

Plain dictionaries instead of ``plotly.graph_objects``, whose import and validation would cost more than the whole page;
a test has that library validate each of them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segx.reporting.columns import literal
from segx.reporting.html.theme import Style, styles
from segx.results.types import Cell, Results
from segx.runtimes import Variant

Trace = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """The cells that have times, by variant and in the order of batch sizes, and how each variant is drawn."""

    cells: Mapping[Variant, tuple[Cell, ...]]
    style: Mapping[Variant, Style]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """All that were measured, ascending."""
        return tuple(sorted({cell.batch_size or 0 for cells in self.cells.values() for cell in cells}))


def measured(results: Results) -> Measured:
    """Sort the measured cells of a bench; variants in the order in which they were asked for."""
    order = results.options.runtimes
    by_variant: dict[Variant, list[Cell]] = {}
    for cell in sorted(results.cells, key=lambda cell: (order.index(cell.runtime), cell.batch_size or 0)):
        if cell.measured:
            by_variant.setdefault(cell.variant, []).append(cell)
    return Measured({variant: tuple(cells) for variant, cells in by_variant.items()}, styles(by_variant))


def line(
    variant: Variant,
    style: Style,
    *,
    x: Sequence[float],
    y: Sequence[float],
    hover: Sequence[str],
    bars: Sequence[tuple[float, float] | None] = (),
    sideways: Sequence[tuple[float, float] | None] = (),
) -> Trace:
    """Markers joined by a line, with intervals as error bars.

    Args:
        variant: whose it is.
        style: how it is drawn.
        x: of the markers.
        y: of the markers.
        hover: what is told about each; text, not markup, but for ``<br>``.
        bars: (low, high) of each y; None where there is none.
        sideways: the same of each x.
    """
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": literal(str(variant)),
        "legendgroup": str(variant),
        "x": list(x),
        "y": list(y),
        "hovertext": list(hover),
        "hoverinfo": "text",
        "line": {"color": style.color, "dash": style.dash, "width": 2},
        "marker": {"color": style.color, "symbol": style.symbol, "size": 9},
    }
    if bars:
        trace["error_y"] = _error_bars(y, bars)
    if sideways:
        trace["error_x"] = _error_bars(x, sideways)
    return trace


def marks(variant: Variant, style: Style, *, x: Sequence[float], y: Sequence[float], hover: Sequence[str]) -> Trace:
    """Markers alone, larger than those of lines."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": literal(str(variant)),
        "legendgroup": str(variant),
        "x": list(x),
        "y": list(y),
        "hovertext": list(hover),
        "hoverinfo": "text",
        "marker": {"color": style.color, "symbol": style.symbol, "size": 9},
    }


def curve(variant: Variant, style: Style, *, x: Sequence[float], y: Sequence[float]) -> Trace:
    """A fitted line: thin, without markers, and silent."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": literal(str(variant)),
        "legendgroup": str(variant),
        "x": list(x),
        "y": list(y),
        "hoverinfo": "skip",
        "line": {"color": style.color, "dash": style.dash, "width": 1.5},
    }


def _error_bars(values: Sequence[float], reach: Sequence[tuple[float, float] | None]) -> dict[str, Any]:
    ends = [(value, value) if bar is None else bar for value, bar in zip(values, reach, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [round_off(high - value) for value, (_, high) in zip(values, ends, strict=True)],
        "arrayminus": [round_off(value - low) for value, (low, _) in zip(values, ends, strict=True)],
        "thickness": 1.4,
        "width": 5,
    }


def round_off(value: float, count: int = 5) -> float:
    """A number with as many significant digits as can be seen: the page stays small."""
    if value == 0 or not math.isfinite(value):
        return 0.0
    return round(value, count - 1 - math.floor(math.log10(abs(value))))


def layout(x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Two axes, and room for their titles."""
    return {
        "xaxis": {"automargin": "bottom", **x},
        "yaxis": {"automargin": "left", **y},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "showlegend": False,
        "hovermode": "closest",
        **more,
    }


def batch_axis(sizes: Iterable[int]) -> dict[str, Any]:
    """Batch sizes, as far apart as their ratio."""
    ticks = list(sizes)
    while len(ticks) > _MOST_TICKS:
        ticks = ticks[::2]
    return {
        "title": {"text": "batch size (images per call)"},
        "type": "log",
        "tickvals": ticks,
        "ticktext": [str(size) for size in ticks],
    }


_MOST_TICKS = 12


def even_batch_axis(sizes: Iterable[int]) -> dict[str, Any]:
    """Batch sizes from 0 on, as far apart as their difference: straight lines are straight."""
    largest = max(sizes)
    ticks = [size for size in sorted(sizes) if size * _MOST_TICKS >= largest]
    return {"title": {"text": "batch size (images per call)"}, "rangemode": "tozero", "tickvals": [0, *ticks]}


def from_zero(title: str) -> dict[str, Any]:
    """An axis that shows its zero."""
    return {"title": {"text": title}, "rangemode": "tozero"}


def log_axis(title: str, *, steps: Sequence[int] = (1, 2, 5)) -> dict[str, Any]:
    """An axis of figures that differ by factors, labelled at these steps of each power of ten."""
    ticks = [float(f"{step}e{power}") for power in range(-4, 8) for step in steps]
    return {"title": {"text": title}, "type": "log", "tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}


def categories(title: str) -> dict[str, Any]:
    """An axis of names, one bar or box each."""
    return {"title": {"text": title}, "type": "category", "showgrid": False, "ticklabelstandoff": 6}


def wrapped(name: str) -> str:
    """A name for an axis, in lines that leave room for the chart on a phone."""
    return "<br>".join(literal(part) for part in textwrap.wrap(name, _NAME_WIDTH)) or " "


_NAME_WIDTH = 18


def limit_line(value: float, words: str) -> dict[str, Any]:
    """Parts of a layout: a level that must not be exceeded, on a logarithmic y axis."""
    return {
        "shapes": [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": value, "y1": value,
                "line": {"dash": "dash", "width": 1.5},
            }
        ],
        "annotations": [
            {
                "xref": "paper", "x": 1, "xanchor": "right", "yref": "y", "y": math.log10(value), "yanchor": "bottom",
                "text": literal(words), "showarrow": False,
            }
        ],
    }  # fmt: skip
