"""Charts of single calls: their distribution per cell, and their drift over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from segx.analysis import stats
from segx.analysis.figures import half_width
from segx.analysis.outliers import find_outliers
from segx.reporting.columns import BATCH, VARIANT, Field, digits, figures, literal, milliseconds, table_of, words
from segx.reporting.document import Chart
from segx.reporting.renderers.html import charts
from segx.reporting.renderers.html.charts import Series, Trace, cells_of
from segx.results.types import Cell, Results

# Points on the page over all cells: more cannot be told apart and make the file large.
_POINTS = 40_000
_POINTS_PER_CELL = 1500


def distribution_charts(series: Sequence[Series], results: Results) -> tuple[Chart, Chart]:
    """Return a chart of the calls beside a box per variant, and one of their deviation from the median over time."""
    cells = cells_of(series)
    most = max(100, min(_POINTS_PER_CELL, _POINTS // max(1, len(cells))))
    by_size = {
        str(size): [(one, cell) for one in series for cell in one.cells if cell.batch_size == size]
        for size in charts.batch_sizes(series)
    }
    row_of = {one.name: row for row, one in enumerate(reversed(series))}
    outliers = {
        id(cell): find_outliers(results.spent_s(cell), cell.rounds, cores=results.machine.cores_usable)
        for cell in cells
    }
    thinned = any(len(cell.samples_s) > most for cell in cells)
    spread: list[Field[Cell]] = [
        VARIANT,
        BATCH,
        figures("calls", lambda cell: len(cell.samples_s), form="{}"),
        milliseconds("fastest ms", lambda cell: min(cell.samples_s)),
        milliseconds("median ms", lambda cell: cell.median_s),
        milliseconds("p90 ms", lambda cell: stats.percentile(cell.samples_s, 90), "shown from 64 calls on"),
        milliseconds("p95 ms", lambda cell: stats.percentile(cell.samples_s, 95), "shown from 130 calls on"),
        milliseconds("p99 ms", lambda cell: stats.percentile(cell.samples_s, 99), "shown from 662 calls on"),
        milliseconds("slowest ms", lambda cell: max(cell.samples_s)),
        figures(
            "± %",
            lambda cell: None if (width := half_width(cell)) is None else width * 100,
            "half-width of the 95% interval of the median",
            form="{:.1f}",
        ),
        figures(
            "outliers",
            lambda cell: sum(len(found.indices) for found in outliers[id(cell)]),
            "calls 10 standard deviations and 10% above the median",
            form="{}",
        ),
        words("sampling", lambda cell: cell.stopped),
    ]
    drift: list[Field[Cell]] = [
        VARIANT,
        BATCH,
        milliseconds("first third ms", lambda cell: _thirds(cell)[0], "median"),
        milliseconds("last third ms", lambda cell: _thirds(cell)[1], "median"),
        figures("change %", _change_percent, form="{:+z.1f}"),
        words(
            "possible causes",
            lambda cell: "; ".join(f"{len(found.indices)}: {found.told}" for found in outliers[id(cell)]),
            "number of slow calls, which stay in all figures, and what was observed during them",
        ),
    ]
    return (
        Chart(
            key="distribution",
            title="Spread of calls",
            alt="Every timed call as a point beside a box of its variant, for one batch size at a time.",
            reading=(
                "Box: quartiles and median; whiskers: fastest and slowest call; points: "
                + (f"at most {most} calls per cell, evenly spaced, and the slowest" if thinned else "all calls")
                + ", the first at the top."
            ),
            frames={
                size: [drawn for one, cell in pairs for drawn in _calls(one, cell, row_of[one.name], most)]
                for size, pairs in by_size.items()
            },
            frame_label="Batch size",
            layout=charts.layout(
                charts.log_axis("milliseconds per call"),
                {
                    "title": {"text": "variant"},
                    "tickvals": list(row_of.values()),
                    "ticktext": list(map(charts.wrapped, row_of)),
                    "range": [-0.5, len(row_of) - 0.5],
                    "showgrid": False,
                    "zeroline": False,
                    "ticklabelstandoff": 6,
                },
            ),
            table=table_of("Spread of calls", cells, spread),
            height=110 + 56 * len(row_of),
        ),
        Chart(
            key="drift",
            title="Did the machine disturb the run?",
            alt="Every timed call as its deviation from its cell's median, in the order of the rounds.",
            reading=(
                "Variants take turns, so a round is the same stretch of time for all: if every line is slow in a "
                "round, it was the machine; if one is, it was that variant. A slope is drift."
            ),
            frames={
                size: [_over_time(one, cell, most, _first_round(pairs)) for one, cell in pairs]
                for size, pairs in by_size.items()
            },
            frame_label="Batch size",
            layout=charts.layout(
                {"title": {"text": "round (with the calls of a round in order)"}},
                {"title": {"text": "deviation from the median (%)"}, "zeroline": True, "ticksuffix": "%"},
            ),
            table=table_of("Drift: first and last third of the calls", cells, drift),
        ),
    )


def shown_samples(samples: Sequence[float], most: int) -> list[int]:
    """Return the indices of at most ``most`` samples, in order: evenly spaced ones, a tenth replaced by the slowest."""
    if len(samples) <= most:
        return list(range(len(samples)))
    slowest = np.argsort(samples)[-max(1, most // 10) :]
    even = np.linspace(0, len(samples) - 1, most - len(slowest)).astype(int)
    return sorted({*even.tolist(), *slowest.tolist()})


def _calls(series: Series, cell: Cell, row: int, most: int) -> list[Trace]:
    """Return a box of the calls around a row, and below it the calls, each lower than the one before."""
    name, style = series.name, series.style
    ms = np.asarray(cell.samples_s) * 1e3
    low, first, middle, third, high = np.quantile(ms, [0, 0.25, 0.5, 0.75, 1]).tolist()
    foot, centre, top = row + 0.03, row + 0.18, row + 0.33
    # One line around all parts, which encloses only the box.
    outline = [
        (low, centre), (low, foot + 0.08), (low, top - 0.08), (low, centre), (first, centre), (first, top),
        (middle, top), (middle, foot), (middle, top), (third, top), (third, centre), (high, centre),
        (high, top - 0.08), (high, foot + 0.08), (high, centre), (third, centre), (third, foot), (first, foot),
        (first, centre), (low, centre),
    ]  # fmt: skip
    head = f"<b>{literal(name)}</b>, batch {cell.batch_size}<br>"
    shown = shown_samples(cell.samples_s, most)
    return [
        charts.points(
            name,
            style,
            *zip(*outline, strict=True),
            mode="lines",
            line={"color": style.color, "width": 2},
            fill="toself",
            fillcolor=f"{style.color}55",
            hoverinfo="text",
            text=f"{head}median {digits(middle)} ms<br>quartiles {digits(first)} and {digits(third)} ms"
            f"<br>fastest {digits(low)} ms, slowest {digits(high)} ms",
        ),
        charts.trace(
            name,
            "scatter",
            mode="markers",
            x=[charts.round_off(float(ms[i]), 4) for i in shown],
            y0=row - 0.06,
            dy=-0.3 / len(shown),
            marker={"color": style.color, "symbol": style.symbol, "size": 4, "opacity": 0.55},
            hoverinfo="all",
            hovertemplate=f"{head}%{{x}} ms<extra></extra>",
        ),
    ]


def _over_time(series: Series, cell: Cell, most: int, first: int) -> Trace:
    positions, chosen = _positions(cell, first), shown_samples(cell.samples_s, most)
    middle = cell.median_s or 1.0  # 0 for calls shorter than a tick of the clock
    return charts.points(
        series.name,
        series.style,
        [round(positions[i], 2) for i in chosen],
        [round((cell.samples_s[i] / middle - 1) * 100, 1) for i in chosen],
        hoverinfo="all",
        hovertemplate=f"<b>{literal(series.name)}</b>, batch {cell.batch_size}<br>round %{{x:.0f}}"
        "<br>%{y:+.1f}% of the median<extra></extra>",
        line={"color": series.style.color, "dash": series.style.dash, "width": 1},
        marker={"color": series.style.color, "symbol": series.style.symbol, "size": 5},
    )


def _first_round(pairs: Sequence[tuple[Series, Cell]]) -> int:
    return min((cell.rounds[0].number for _, cell in pairs if cell.rounds), default=0)


def _positions(cell: Cell, first: int) -> list[float]:
    """Return the round of each call, with ``first`` as 1, plus how far into the round it was made."""
    if sum(turn.runs for turn in cell.rounds) != len(cell.samples_s):
        return [float(i + 1) for i in range(len(cell.samples_s))]
    return [
        turn.number - first + 1 + (i / turn.runs - 0.5 + 0.5 / turn.runs) * 0.8
        for turn in cell.rounds
        for i in range(turn.runs)
    ]


def _thirds(cell: Cell) -> tuple[float, float]:
    third = max(1, len(cell.samples_s) // 3)
    return statistics.median(cell.samples_s[:third]), statistics.median(cell.samples_s[-third:])


def _change_percent(cell: Cell) -> float | None:
    early, late = _thirds(cell)
    return (late / early - 1) * 100 if early else None
