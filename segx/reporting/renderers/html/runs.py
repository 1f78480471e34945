"""Charts of several runs: images per second side by side, and over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segx.analysis.compare import SideBySide
from segx.analysis.history import Change, Group, History, Series
from segx.reporting.columns import Field, digits, figures, literal, table_of, words
from segx.reporting.document import Chart, Table
from segx.reporting.renderers.html import charts
from segx.reporting.renderers.html.charts import Trace
from segx.reporting.renderers.html.theme import LineStyle, line_styles
from segx.reporting.runs_document import letters, told
from segx.results.types import Cell

# Kind of a change -> marker, a shape that needs no colour.
_MARKERS = {
    "faster": "triangle-up-open",
    "drift": "diamond-open",
    "slower": "triangle-down-open",
    "lost": "x-open",
    "back": "circle-open",
    "masks": "square-open",
}
_READING = "Higher is better. Bars are 95% intervals of the median call."


def compare_styles(compared: SideBySide) -> dict[str, LineStyle]:
    """Return the style of each run, by its letter."""
    return line_styles(letters(len(compared.runs)))


def compare_chart(compared: SideBySide) -> Chart | None:
    """Return the chart of images per second over the batch size, a line per run; None if nothing was measured."""
    styles = compare_styles(compared)
    frames: dict[str, list[Trace]] = {}
    rows: list[tuple[str, Cell]] = []
    for variant in dict.fromkeys(row.variant for row in compared.rows):
        for place, (letter, style) in enumerate(styles.items()):
            of_run = [row.cells[place] for row in compared.rows if row.variant == variant]
            cells = [cell for cell in of_run if cell and cell.measured]
            if cells:
                name = f"{letter}: {compared.runs[place].label}"
                labels = [f"<b>{literal(name)}</b>, batch {cell.batch_size}<br>{_rate(cell)}" for cell in cells]
                line = charts.throughput(letter, style, [cell.batch_size for cell in cells], cells, labels)
                frames.setdefault(str(variant), []).append({**line, "name": literal(name)})
                rows += [(letter, cell) for cell in cells]
    if not frames:
        return None
    return Chart(
        key="side-by-side",
        title="Images per second by batch size",
        alt=f"Lines of images per second over the batch size, one for each of {len(compared.runs)} runs.",
        reading=_READING,
        layout=charts.layout(
            charts.batch_axis({row.batch_size for row in compared.rows if row.batch_size}),
            charts.linear_axis("images per second"),
            named=True,
        ),
        frames=frames,
        frame_label="Variant",
        table=_rates_table(rows),
    )


def history_styles(history: History) -> dict[str, LineStyle]:
    """Return the style of each variant in all groups."""
    return line_styles(str(series.variant) for group in history.groups for series in group.series)


def history_chart(place: int, group: Group, styles: Mapping[str, LineStyle]) -> Chart | None:
    """Return the chart of a group's images per second over time, with changes marked; None for a single run."""
    frames: dict[str, list[Trace]] = {}
    for series in group.series:
        if any(cell and cell.measured for cell in series.cells):
            traces = frames.setdefault(str(series.batch_size), [])
            traces += _series_traces(series, group, styles[str(series.variant)])
    if len(group.runs) < 2 or not frames:
        return None
    changes = sum(len(series.changes) for series in group.series)
    rows = [(str(place + 1), cell) for series in group.series for place, cell in enumerate(series.cells) if cell]
    return Chart(
        key=f"history-{place}",
        title="Images per second over time",
        alt=f"Lines of images per second over {len(group.runs)} runs, one per variant, with {changes} changes marked.",
        reading=(
            f"{_READING} Large open markers are changes beyond noise: triangle up: faster; triangle down: slower; "
            "cross: no longer measured; circle: measured again; square: different masks."
        ),
        layout=charts.layout(
            {"title": {"text": "start of the run (UTC)"}, "type": "date"},
            charts.linear_axis("images per second"),
            named=True,
        ),
        frames=frames,
        frame_label="Batch size",
        table=_rates_table(rows),
    )


def _series_traces(series: Series, group: Group, style: LineStyle) -> list[Trace]:
    name = str(series.variant)
    head = f"<b>{literal(name)}</b>, batch {series.batch_size}"
    found = [(place, cell) for place, cell in enumerate(series.cells) if cell and cell.measured]
    labels = [
        f"{head}<br>{_rate(cell)}<br>run {place + 1}: {literal(group.runs[place].label)}"
        f"<br>{literal(group.runs[place].results.created)}"
        for place, cell in found
    ]
    dates = [group.runs[place].results.created for place, _ in found]
    traces = [charts.throughput(name, style, dates, [cell for _, cell in found], labels)]
    marked = [(change, level) for change in series.changes if (level := _level(change, series)) is not None]
    if marked:
        marker = {
            "color": style.color,
            "symbol": [_MARKERS[change.kind] for change, _ in marked],
            "size": 17,
            "line": {"width": 2.5},
        }
        traces.append(
            charts.points(
                name,
                style,
                [group.runs[change.after].results.created for change, _ in marked],
                [level for _, level in marked],
                [f"{head}<br>{literal(told(change, series))}" for change, _ in marked],
                mode="markers",
                marker=marker,
            )
        )
    return traces


def _level(change: Change, series: Series) -> float | None:
    """Return the images per second at which a change is marked: after it or, if not measured there, before it."""
    cells = (series.cells[change.after], series.cells[change.before])
    return next((1 / cell.seconds_per_image for cell in cells if cell and cell.measured), None)


def _rate(cell: Cell) -> str:
    interval = charts.rate_interval(cell)
    ends = f"{digits(interval[0])} to {digits(interval[1])}" if interval else "too few calls for an interval"
    return f"{digits(1 / cell.seconds_per_image)} images/s ({ends})"


def _rates_table(rows: Sequence[tuple[str, Cell]]) -> Table:
    def end(cell: Cell, index: int) -> float | None:
        interval = charts.rate_interval(cell) if cell.measured else None
        return interval[index] if interval else None

    fields: list[Field[tuple[str, Cell]]] = [
        words("variant", lambda row: str(row[1].variant)),
        figures("batch", lambda row: row[1].batch_size, form="{}"),
        words("run", lambda row: row[0]),
        figures("images/s", lambda row: 1 / row[1].seconds_per_image if row[1].measured else None, count=4),
        figures("low", lambda row: end(row[1], 0), "of the 95% interval", count=4),
        figures("high", lambda row: end(row[1], 1), "of the 95% interval", count=4),
        words("status", lambda row: row[1].status),
    ]
    return table_of("Images per second by run", rows, fields)
