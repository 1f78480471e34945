"""The page of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segx.analysis.figures import needed_bytes
from segx.analysis.ratios import Speedup
from segx.analysis.side_by_side import Run, SideBySide
from segx.reporting.bench_document import troubles
from segx.reporting.columns import MIB, between, digits, literal
from segx.reporting.compare_document import letters, measured_rows
from segx.reporting.document import BLANK, Chart, Column, Datum, Section, Table, number, text
from segx.reporting.html.charts import Trace, batch_axis, from_zero, layout
from segx.reporting.html.runs import page_of, rate_text, run_line, runs_table
from segx.reporting.html.theme import Style, styles
from segx.results.types import Cell
from segx.runtimes import Variant

_MEANING = (
    "Ratios are of images per second, to A; tied where their 95 % interval spans 1. The interval holds the noise "
    "within a run, not what a machine does from one run to the next."
)
_MOST_NAMES = 4


def side_by_side_sections(compared: SideBySide) -> tuple[list[Section], Mapping[str, Style]]:
    """Runs, what differs, and speed and memory, and how each run is drawn."""
    names = letters(len(compared.runs))
    style = dict(zip(names, styles(Variant(name) for name in names).values(), strict=True))
    columns = tuple(Column(title, numeric=False) for title in ("what", *names))
    rows = tuple(
        (text(name), *(text(value or BLANK) for value in values)) for name, values in compared.differences.items()
    )
    differ = (Table("What differs", columns, rows),) if rows else ()
    failed = _troubles_table(compared)
    charts = (_speed_chart(compared, style),) if any(_measured(row.cells) for row in compared.rows) else ()
    return [
        Section(
            key="runs",
            title="Runs",
            intro=" ".join(f"Note: {warning}." for warning in compared.warnings),
            blocks=(runs_table(names, compared.runs), *differ),
        ),
        Section(key="speed", title="Speed", intro=_MEANING, blocks=(*charts, _speed_table(compared))),
        Section(key="memory", title="Memory", blocks=(_memory_table(compared),)),
        *([Section(key="troubles", title="Failures and skips", blocks=(failed,))] if failed.rows else []),
    ], style


def _measured(cells: Sequence[Cell | None]) -> bool:
    return any(cell and cell.measured for cell in cells)


def _speed_chart(compared: SideBySide, style: Mapping[str, Style]) -> Chart:
    frames: dict[str, list[Trace]] = {}
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


def _run_trace(name: str, run: Run, style: Style, cells: Sequence[Cell]) -> Trace:
    label = f"{name}: {run.label}"
    hover = [f"<b>{literal(label)}</b>, batch {cell.batch_size}<br>{rate_text(cell)}" for cell in cells]
    return run_line(
        name=label, group=name, style=style, x=[cell.batch_size for cell in cells], cells=cells, hover=hover
    )


def _speed_table(compared: SideBySide) -> Table:
    first, *others = letters(len(compared.runs))
    columns = [Column("variant", numeric=False), Column("batch"), Column(f"{first} images/s")]
    for name in others:
        columns += [Column(f"{name} images/s"), Column(f"{name} / {first}"), Column("95 % interval", numeric=False)]
    rows = []
    for row in measured_rows(compared):
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
        for row in measured_rows(compared)
    )
    columns = (Column("variant", numeric=False), Column("batch"), *(Column(f"{name} MiB") for name in names))
    return Table("Memory at the peak, of model and inference", columns, rows)


def _mebibytes(cell: Cell | None) -> Datum:
    needed = needed_bytes(cell) if cell and cell.measured else None
    return number(None if needed is None else needed / MIB, "{:.0f}")


def _troubles_table(compared: SideBySide) -> Table:
    columns = tuple(Column(title, numeric=False) for title in ("run", "where", "status", "reason", "remedy"))
    rows = [
        (text(name), text(trouble.where), text(trouble.status), text(trouble.reason), text(trouble.remedy))
        for name, run in zip(letters(len(compared.runs)), compared.runs, strict=True)
        for trouble in troubles(run.results)
    ]
    return Table("What failed or was skipped, and what to do", columns, tuple(rows))


def render(compared: SideBySide) -> str:
    """The page as HTML."""
    sections, styles_of = side_by_side_sections(compared)
    title = " / ".join(run.label for run in compared.runs[:_MOST_NAMES])
    more = len(compared.runs) - _MOST_NAMES
    title += f" and {more} more" if more > 0 else ""
    return page_of(title, "segx bench, side by side", sections, styles_of)
