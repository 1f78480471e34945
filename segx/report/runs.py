"""What a page shows of several runs: a history over time, or runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segx.bench.history import Change, Group, History, Series
from segx.bench.history_forms import circumstances_of, notes_on, told
from segx.bench.origin import changed, host_of
from segx.bench.results import Cell
from segx.bench.side_by_side import Run, SideBySide
from segx.bench.side_by_side_forms import MEANING, letters
from segx.bench.speedup import Speedup
from segx.report.plots import batch_axis, from_zero, layout, round_off
from segx.report.speed import images_per_s
from segx.report.theme import Style, styles
from segx.report.units import MIB, between, digits, literal
from segx.report.view import BLANK, Chart, Column, Datum, Section, Table, number, text
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
    sections = [_group_section(number, group, style) for number, group in enumerate(history.groups, start=1)]
    notes = Table("Notes", (Column("note", numeric=False),), tuple((text(note),) for note in notes_on(history)))
    named = {str(variant): one for variant, one in style.items()}
    return [*sections, Section(key="notes", title="Notes", tables=(notes,))], named


def _group_section(place: int, group: Group, style: Mapping[Variant, Style]) -> Section:
    what = dict(circumstances_of(group))
    return Section(
        key=f"group-{place}",
        title=f"{what['machine']}: {len(group.runs)} runs",
        intro=f"{what['model']}; {what['inputs']}.",
        charts=(_history_chart(place, group, style),),
        tables=(_changes_table(group), _runs_table(group)),
    )


def _history_chart(place: int, group: Group, style: Mapping[Variant, Style]) -> Chart:
    frames: dict[str, list[Mapping[str, Any]]] = {}
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
            "Higher is better. Bars are 95 % intervals of the median call. Large open marks are changes beyond noise: a "
            "triangle up is faster, down is slower, a cross is lost, a circle back, a square other masks."
        ),
        layout=layout({"title": {"text": "when the run began (UTC)"}, "type": "date"}, from_zero("images per second")),
        frames=frames,
        frame_label="Batch size",
        table=_history_table(group),
    )


def _series_traces(series: Series, group: Group, style: Style) -> list[Mapping[str, Any]]:
    found = [(place, cell) for place, cell in enumerate(series.cells) if cell and cell.measured]
    runs = [group.runs[place] for place, _ in found]
    rates = [round_off(1 / cell.seconds_per_image) for _, cell in found]
    ends = [images_per_s(cell) or (rate, rate) for (_, cell), rate in zip(found, rates, strict=True)]
    name = str(series.variant)
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": literal(name),
        "legendgroup": name,
        "x": [run.results.created for run in runs],
        "y": rates,
        "hovertext": [_hover(series, cell, group.runs[place], place) for place, cell in found],
        "hoverinfo": "text",
        "line": {"color": style.color, "dash": style.dash, "width": 2},
        "marker": {"color": style.color, "symbol": style.symbol, "size": 8},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [round_off(high - rate) for rate, (_, high) in zip(rates, ends, strict=True)],
            "arrayminus": [round_off(rate - low) for rate, (low, _) in zip(rates, ends, strict=True)],
            "thickness": 1.4,
            "width": 4,
        },
    }
    return [line, *_marks(series, group, style)]


def _marks(series: Series, group: Group, style: Style) -> list[Mapping[str, Any]]:
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
    reach = images_per_s(cell)
    interval = f"{digits(reach[0])} to {digits(reach[1])}" if reach else "too few runs for an interval"
    return (
        f"<b>{literal(str(series.variant))}</b>, batch {cell.batch_size}<br>"
        f"{digits(1 / cell.seconds_per_image)} images/s ({interval})<br>"
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
    caption = "Changes that are more than noise" if rows else "No change is more than noise"
    return Table(caption, columns, tuple(rows))


def _runs_table(group: Group) -> Table:
    rows = tuple(_run_row(str(place), run) for place, run in enumerate(group.runs, start=1))
    return Table("Runs", _RUN_COLUMNS, rows)


_RUN_COLUMNS = (
    Column("run", numeric=False),
    Column("name", numeric=False),
    Column("began", numeric=False),
    Column("segx", numeric=False),
    Column("commit", numeric=False),
    Column("machine", numeric=False),
    Column("complete", numeric=False),
)


def _run_row(name: str, run: Run) -> tuple[Datum, ...]:
    results = run.results
    values = (
        name,
        run.label,
        results.created,
        results.segx,
        results.machine.git_commit[:12] or BLANK,
        host_of(results),
        "yes" if results.complete else "no",
    )
    return tuple(map(text, values))


def side_by_side_sections(compared: SideBySide) -> tuple[list[Section], Mapping[str, Style]]:
    """Runs, what differs, and speed and memory, and how each run is drawn."""
    names = letters(len(compared.runs))
    style = dict(zip(names, styles(Variant(name) for name in names).values(), strict=True))
    runs = Table("Runs", _RUN_COLUMNS, tuple(_run_row(*pair) for pair in zip(names, compared.runs, strict=True)))
    columns = tuple(Column(title, numeric=False) for title in ("what", *names))
    rows = tuple(
        (text(name), *(text(value or BLANK) for value in values)) for name, values in compared.differences.items()
    )
    differ = (Table("What differs", columns, rows),) if rows else ()
    charts = (_speed_chart(compared, style),) if any(_measured(row.cells) for row in compared.rows) else ()
    return [
        Section(key="runs", title="Runs", intro=" ".join(map(_sentence, compared.warnings)), tables=(runs, *differ)),
        Section(key="speed", title="Speed", intro=MEANING, charts=charts, tables=(_speed_table(compared),)),
        Section(key="memory", title="Memory", tables=(_memory_table(compared),)),
    ], style


def _sentence(warning: str) -> str:
    return f"Note: {warning}."


def _measured(cells: Sequence[Cell | None]) -> bool:
    return any(cell and cell.measured for cell in cells)


def _speed_chart(compared: SideBySide, style: Mapping[str, Style]) -> Chart:
    frames: dict[str, list[Mapping[str, Any]]] = {}
    for variant in dict.fromkeys(row.variant for row in compared.rows):
        traces = []
        for place, (name, run) in enumerate(zip(style, compared.runs, strict=True)):
            cells = [row.cells[place] for row in compared.rows if row.variant == variant]
            measured = [cell for cell in cells if cell and cell.measured]
            if measured:
                traces.append(_run_trace(name, run, style[name], measured))
        if traces:
            frames[str(variant)] = traces
    sizes = sorted({row.batch_size for row in compared.rows if row.batch_size})
    return Chart(
        key="side-by-side",
        title="Throughput over batch size",
        alt=f"Lines of images per second over the batch size, one for each of {len(compared.runs)} runs.",
        reading="Higher is better. Bars are 95 % intervals of the median call.",
        layout=layout(batch_axis(sizes), from_zero("images per second")),
        frames=frames,
        frame_label="Variant",
        table=_speed_table(compared),
    )


def _run_trace(name: str, run: Run, style: Style, cells: Sequence[Cell]) -> Mapping[str, Any]:
    rates = [round_off(1 / cell.seconds_per_image) for cell in cells]
    ends = [images_per_s(cell) or (rate, rate) for cell, rate in zip(cells, rates, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": literal(f"{name}: {run.label}"),
        "legendgroup": name,
        "x": [cell.batch_size for cell in cells],
        "y": rates,
        "hovertext": [
            f"<b>{name}: {literal(run.label)}</b>, batch {cell.batch_size}<br>{digits(rate)} images/s<br>"
            f"{digits(low)} to {digits(high)}"
            for cell, rate, (low, high) in zip(cells, rates, ends, strict=True)
        ],
        "hoverinfo": "text",
        "line": {"color": style.color, "dash": style.dash, "width": 2},
        "marker": {"color": style.color, "symbol": style.symbol, "size": 9},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [round_off(high - rate) for rate, (_, high) in zip(rates, ends, strict=True)],
            "arrayminus": [round_off(rate - low) for rate, (low, _) in zip(rates, ends, strict=True)],
            "thickness": 1.4,
            "width": 5,
        },
    }


def _speed_table(compared: SideBySide) -> Table:
    first, *others = letters(len(compared.runs))
    columns = [Column("variant", numeric=False), Column("batch"), Column(f"{first} images/s")]
    for name in others:
        columns += [Column(f"{name} images/s"), Column(f"{name} / {first}"), Column("95 % interval", numeric=False)]
    rows = []
    for row in compared.rows:
        data = [text(str(row.variant)), number(row.batch_size, "{}"), _rate(row.cells[0])]
        for cell, ratio in zip(row.cells[1:], row.ratios[1:], strict=True):
            data += [_rate(cell), *_ratio(ratio)]
        rows.append(tuple(data))
    return Table("Images per second", tuple(columns), tuple(rows))


def _rate(cell: Cell | None) -> Datum:
    if cell is None or not cell.measured:
        return Datum(cell.status if cell else BLANK, None)
    rate = 1 / cell.seconds_per_image
    return number(rate, digits(rate, 4))


def _ratio(ratio: Speedup | None) -> tuple[Datum, Datum]:
    if ratio is None:
        return Datum(BLANK, None), Datum(BLANK, None)
    return Datum("tied" if ratio.tied else f"{ratio.ratio:.2f}", ratio.ratio), text(between(ratio.interval))


def _memory_table(compared: SideBySide) -> Table:
    names = letters(len(compared.runs))
    rows = tuple(
        (text(str(row.variant)), number(row.batch_size, "{}"), *(_mebibytes(cell) for cell in row.cells))
        for row in compared.rows
    )
    columns = (Column("variant", numeric=False), Column("batch"), *(Column(f"{name} MiB") for name in names))
    return Table("Memory at the peak, of model and inference", columns, rows)


def _mebibytes(cell: Cell | None) -> Datum:
    needed = cell.needed_bytes if cell and cell.measured else None
    return number(None if needed is None else needed / MIB, "{:.0f}")
