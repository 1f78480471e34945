"""Charts of the raw samples: how the calls of a cell are spread, and how they drift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segx.analysis import stats
from segx.analysis.outliers import find_outliers
from segx.reporting.columns import digits, literal
from segx.reporting.document import Chart, Column, Datum, Table, number, text
from segx.reporting.html.charts import Measured, Trace, categories, layout, log_axis, round_off, wrapped
from segx.reporting.html.theme import Style
from segx.results.types import Cell, Results

# Points on the page, over all cells: more cannot be told apart, and would make it large.
_POINTS = 40_000
_POINTS_PER_CELL = 1500


def distribution(found: Measured, results: Results) -> Chart:
    """The calls of each cell as points beside a box, one batch size at a time."""
    most = _points_per_cell(found)
    frames = {
        str(size): [
            _box(cell, found.style[cell.variant], most)
            for cells in list(found.cells.values())[::-1]
            for cell in cells
            if cell.batch_size == size
        ]
        for size in found.batch_sizes
    }
    rows = [_row(cell, results) for cells in found.cells.values() for cell in cells]
    return Chart(
        key="distribution",
        title="Latency of single calls",
        alt="Every timed call as a point beside a box of its variant, for one batch size at a time.",
        reading=(
            "Box: quartiles and median; whiskers: fastest and slowest call; points: the calls"
            + (
                f" (of cells with over {most}, evenly spaced ones and the slowest)."
                if _thinned(found, most)
                else ", all."
            )
        ),
        frames=frames,
        frame_label="Batch size",
        layout=layout(log_axis("milliseconds per call (logarithmic)"), categories("variant")),
        table=Table("Latency of single calls", _COLUMNS, tuple(rows)),
        height=110 + 56 * max(len(traces) for traces in frames.values()),
    )


def drift(found: Measured, results: Results) -> Chart:
    """The calls in the order in which they were made, as deviation from their cell's median."""
    most = _points_per_cell(found)
    frames = {}
    for size in found.batch_sizes:
        alike = [cell for cells in found.cells.values() for cell in cells if cell.batch_size == size]
        first = min((cell.rounds[0].number for cell in alike if cell.rounds), default=0)
        frames[str(size)] = [_over_time(cell, found.style[cell.variant], most, first) for cell in alike]
    return Chart(
        key="drift",
        title="Latency over time",
        alt="Every timed call as its deviation from its cell's median, in the order of the rounds.",
        reading=(
            "Variants take turns, so a round is the same stretch of time for all: what slows every line in one round "
            "was the machine, what slows one was that variant. A slope is drift."
        ),
        frames=frames,
        frame_label="Batch size",
        layout=layout(
            {"title": {"text": "round (calls one after the other within it)"}},
            {"title": {"text": "deviation from the median (%)"}, "zeroline": True, "ticksuffix": " %"},
        ),
        table=Table(
            "Drift: first against last third of the calls",
            _DRIFT_COLUMNS,
            tuple(_drift_row(cell, results) for cells in found.cells.values() for cell in cells),
        ),
    )


def _points_per_cell(found: Measured) -> int:
    cells = sum(len(cells) for cells in found.cells.values())
    return max(100, min(_POINTS_PER_CELL, _POINTS // max(1, cells)))


def _thinned(found: Measured, most: int) -> bool:
    return any(len(cell.samples_s) > most for cells in found.cells.values() for cell in cells)


def shown(samples: Sequence[float], most: int) -> list[int]:
    """Which samples to draw, in order: all, or evenly spaced ones with the slowest tenth of that number among them."""
    if len(samples) <= most:
        return list(range(len(samples)))
    slowest = np.argsort(samples)[-max(1, most // 10) :]
    even = np.linspace(0, len(samples) - 1, most - len(slowest)).astype(int)
    return sorted({*even.tolist(), *slowest.tolist()})


def _box(cell: Cell, style: Style, most: int) -> Trace:
    milliseconds = np.asarray(cell.samples_s) * 1e3
    low, first, middle, third, high = (round_off(float(v)) for v in np.quantile(milliseconds, [0, 0.25, 0.5, 0.75, 1]))
    return {
        "type": "box",
        "name": literal(str(cell.variant)),
        "legendgroup": str(cell.variant),
        "orientation": "h",
        "y": [wrapped(str(cell.variant))],
        "q1": [first],
        "median": [middle],
        "q3": [third],
        "lowerfence": [low],
        "upperfence": [high],
        "x": [[round_off(float(milliseconds[i]), 4) for i in shown(cell.samples_s, most)]],
        "boxpoints": "all",
        "jitter": 0.6,
        "pointpos": -1.6,
        "marker": {"color": style.color, "symbol": style.symbol, "size": 4, "opacity": 0.55},
        "line": {"color": style.color, "width": 2},
        "hoveron": "boxes+points",
    }


def _over_time(cell: Cell, style: Style, most: int, first: int) -> Trace:
    places, chosen = _places(cell, first), shown(cell.samples_s, most)
    middle = cell.median_s or 1.0  # calls too short for the clock take 0
    off = [(cell.samples_s[i] / middle - 1) * 100 for i in chosen]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": literal(str(cell.variant)),
        "legendgroup": str(cell.variant),
        "x": [round(places[i], 2) for i in chosen],
        "y": [round(value, 1) for value in off],
        "hovertemplate": f"<b>{literal(str(cell.variant))}</b>, batch {cell.batch_size}<br>round %{{x:.0f}}"
        "<br>%{y:+.1f} % of the median<extra></extra>",
        "line": {"color": style.color, "dash": style.dash, "width": 1},
        "marker": {"color": style.color, "symbol": style.symbol, "size": 5},
    }


def _places(cell: Cell, first: int) -> list[float]:
    """Where each call stands: its round, counted from ``first`` as 1, and how far into it."""
    if not cell.rounds:
        return [float(i + 1) for i in range(len(cell.samples_s))]
    places = [
        turn.number - first + 1 + (i / turn.runs - 0.5 + 0.5 / turn.runs) * 0.8
        for turn in cell.rounds
        for i in range(turn.runs)
    ]
    # Older results may have calls beyond their rounds.
    return [*places, *(places[-1] + 1 + i for i in range(len(cell.samples_s) - len(places)))]


_PERCENTILES = (90, 95, 99)
_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("calls"),
    Column("fastest ms"),
    Column("median ms"),
    Column("p90 ms", about="shown from 64 calls on"),
    Column("p95 ms", about="shown from 130 calls on"),
    Column("p99 ms", about="shown from 662 calls on"),
    Column("slowest ms"),
    Column("± %", about="how far the 95 % interval of the median reaches"),
    Column("outliers", about="calls 10 standard deviations and 10 % above the median"),
    Column("sampling", numeric=False),
)


def _row(cell: Cell, results: Results) -> tuple[Datum, ...]:
    high = [stats.percentile(cell.samples_s, percent) for percent in _PERCENTILES]
    figures = [min(cell.samples_s), cell.median_s, *high, max(cell.samples_s)]
    reach = stats.relative_half_width(cell.samples_s)
    outliers = find_outliers(cell.samples_s, cell.rounds, cores=results.machine.cores_usable)
    return (
        text(str(cell.variant)),
        number(cell.batch_size, "{}"),
        number(len(cell.samples_s), "{}"),
        *(number(value, "" if value is None else digits(value * 1e3, 4)) for value in figures),
        number(None if reach is None else reach * 100, "{:.1f}"),
        number(len(outliers.indices) if outliers else 0, "{}"),
        text(cell.stopped),
    )


_DRIFT_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("first third ms", about="median"),
    Column("last third ms", about="median"),
    Column("change %"),
    Column("what was seen", numeric=False, about="at the slow calls: told, never left out"),
)


def _drift_row(cell: Cell, results: Results) -> tuple[Datum, ...]:
    third = max(1, len(cell.samples_s) // 3)
    early, late = stats.median(cell.samples_s[:third]), stats.median(cell.samples_s[-third:])
    outliers = find_outliers(cell.samples_s, cell.rounds, cores=results.machine.cores_usable)
    return (
        text(str(cell.variant)),
        number(cell.batch_size, "{}"),
        number(early * 1e3, digits(early * 1e3, 4)),
        number(late * 1e3, digits(late * 1e3, 4)),
        number((late / early - 1) * 100 if early else None, "{:+.1f}"),
        text(", ".join(outliers.causes) if outliers else ""),
    )
