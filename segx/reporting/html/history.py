"""The page of a history: each series over time, with its changes marked."""

from __future__ import annotations

from collections.abc import Mapping

from segx.analysis.history import Change, Group, History, Series
from segx.analysis.side_by_side import Run
from segx.reporting.columns import digits, literal
from segx.reporting.document import BLANK, Chart, Column, Section, Table, number, text
from segx.reporting.history_document import circumstances_of, notes_on, told
from segx.reporting.html.charts import Trace, from_zero, layout, round_off
from segx.reporting.html.runs import page_of, rate_text, run_line, runs_table
from segx.reporting.html.speed import images_per_s
from segx.reporting.html.theme import Style, styles
from segx.results.provenance import changed
from segx.results.types import Cell
from segx.runtimes import Variant

# How changes are marked: shapes that say it without their colour.
_MARKS = {
    "faster": "triangle-up-open",
    "slower": "triangle-down-open",
    "lost": "x-open",
    "back": "circle-open",
    "masks": "square-open",
}


def history_sections(history: History) -> tuple[list[Section], Mapping[str, Style]]:
    """A section per group of runs that compare, and how each variant is drawn in all of them."""
    variants = [series.variant for group in history.groups for series in group.series]
    style = styles(variants)
    several = len(history.groups) > 1
    sections = [
        _group_section(number, group, style, before=f"{number}. " if several else "")
        for number, group in enumerate(history.groups, start=1)
    ]
    named = {str(variant): one for variant, one in style.items()}
    return sections, named


def _group_section(place: int, group: Group, style: Mapping[Variant, Style], *, before: str) -> Section:
    what = dict(circumstances_of(group))
    changes = _changes_table(group)
    runs = runs_table([str(number) for number in range(1, 1 + len(group.runs))], group.runs)
    return Section(
        key=f"group-{place}",
        title=f"{before}{what['machine']}: {len(group.runs)} run{'s' * (len(group.runs) != 1)}",
        intro=f"{what['model']}; {what['inputs']}." + ("" if changes.rows else " No change is more than noise."),
        blocks=(
            *((_history_chart(place, group, style),) if len(group.runs) > 1 else ()),
            *((changes, runs) if changes.rows else (runs,)),
        ),
    )


def _history_chart(place: int, group: Group, style: Mapping[Variant, Style]) -> Chart:
    frames: dict[str, list[Trace]] = {}
    for series in group.series:
        if any(cell and cell.measured for cell in series.cells):
            traces = frames.setdefault(f"batch {series.batch_size}", [])
            traces += _series_traces(series, group, style[series.variant])
    changes = sum(len(series.changes) for series in group.series)
    return Chart(
        key=f"history-{place}",
        title="Throughput over time",
        alt=f"Lines of images per second over {len(group.runs)} runs, one per variant, with {changes} changes marked.",
        reading=(
            "Higher is better. Bars are 95 % intervals of the median call. Large open marks are changes beyond noise: "
            "a triangle up is faster, down is slower, a cross is lost, a circle back, a square other masks."
        ),
        layout=layout({"title": {"text": "when the run began (UTC)"}, "type": "date"}, from_zero("images per second")),
        frames=frames,
        frame_label="Batch size",
        table=_history_table(group),
    )


def _series_traces(series: Series, group: Group, style: Style) -> list[Trace]:
    found = [(place, cell) for place, cell in enumerate(series.cells) if cell and cell.measured]
    runs = [group.runs[place] for place, _ in found]
    name = str(series.variant)
    line = run_line(
        name=name,
        group=name,
        style=style,
        x=[run.results.created for run in runs],
        cells=[cell for _, cell in found],
        hover=[_hover(series, cell, group.runs[place], place) for place, cell in found],
    )
    return [line, *_marks(series, group, style)]


def _marks(series: Series, group: Group, style: Style) -> list[Trace]:
    """One trace for all changes of a series; what was lost is marked where it last stood."""
    placed = [(change, _height(change, series)) for change in series.changes]
    known = [(change, rate) for change, rate in placed if rate is not None]
    if not known:
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": literal(str(series.variant)),
            "legendgroup": str(series.variant),
            "x": [group.runs[change.after].results.created for change, _ in known],
            "y": [round_off(rate) for _, rate in known],
            "hovertext": [
                f"<b>{literal(str(series.variant))}</b>, batch {series.batch_size}<br>{literal(told(change, series))}"
                for change, _ in known
            ],
            "hoverinfo": "text",
            "marker": {
                "color": style.color,
                "symbol": [_MARKS[change.kind] for change, _ in known],
                "size": 17,
                "line": {"width": 2.5},
            },
        }
    ]


def _height(change: Change, series: Series) -> float | None:
    cells = (series.cells[change.after], series.cells[change.before])
    return next((1 / cell.seconds_per_image for cell in cells if cell and cell.measured), None)


def _hover(series: Series, cell: Cell, run: Run, place: int) -> str:
    return (
        f"<b>{literal(str(series.variant))}</b>, batch {cell.batch_size}<br>"
        f"{rate_text(cell)}<br>"
        f"run {place + 1}: {literal(run.label)}<br>{literal(run.results.created)}"
    )


def _history_table(group: Group) -> Table:
    columns = (
        Column("variant", numeric=False),
        Column("batch"),
        Column("run"),
        Column("images/s"),
        Column("low", about="of the 95 % interval"),
        Column("high", about="of the 95 % interval"),
        Column("status", numeric=False),
    )
    rows = []
    for series in group.series:
        for place, cell in enumerate(series.cells):
            if cell:
                rate = 1 / cell.seconds_per_image if cell.measured else None
                reach = (images_per_s(cell) if cell.measured else None) or (None, None)
                figures = (number(each, "" if each is None else digits(each, 4)) for each in (rate, *reach))
                what = text(str(series.variant)), number(series.batch_size, "{}"), number(place + 1, "{}")
                rows.append((*what, *figures, text(cell.status)))
    return Table("Images per second, run by run", columns, tuple(rows))


def _changes_table(group: Group) -> Table:
    columns = (
        Column("run"),
        Column("variant", numeric=False),
        Column("batch"),
        Column("change", numeric=False),
        Column("what else differs", numeric=False, about="from the run before"),
    )
    rows = []
    for series in group.series:
        for change in series.changes:
            differences = changed(group.runs[change.before].results, group.runs[change.after].results)
            what = ", ".join(f"{name} {old or BLANK} → {new or BLANK}" for name, (old, new) in differences.items())
            rows.append(
                (
                    number(change.after + 1, "{}"),
                    text(str(series.variant)),
                    number(series.batch_size, "{}"),
                    text(told(change, series)),
                    text(what or BLANK),
                )
            )
    rows.sort(key=lambda row: float(row[0].value or 0))
    return Table("Changes that are more than noise", columns, tuple(rows))


def render(history: History) -> str:
    """The page as HTML."""
    sections, styles_of = history_sections(history)
    title = f"Speed over time: {history.folder.name or history.folder}"
    return page_of(title, "segx history", sections, styles_of, list(notes_on(history)))
