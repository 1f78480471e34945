"""Charts of speed: images per second over the batch size, and the time of a call against them."""

from __future__ import annotations

from collections.abc import Mapping

from segx.analysis import stats
from segx.analysis.ratios import versus_pytorch
from segx.reporting.columns import between, digits, seconds
from segx.reporting.document import Chart, Column, Table, number, text
from segx.reporting.html.charts import Measured, batch_axis, from_zero, layout, limit_line, line, log_axis, round_off
from segx.results.types import Cell, Results
from segx.runtimes import Variant


def speed(found: Measured, results: Results, max_latency_s: float | None) -> tuple[Chart, Chart]:
    """Images per second over the batch size, and the time of a call over images per second.

    Args:
        found: the measured cells; at least one.
        results: that they are of.
        max_latency_s: a limit to draw; None for none.
    """
    told = {variant: [_hover(cell, results) for cell in cells] for variant, cells in found.cells.items()}
    table = _table(found, results)
    return _throughput(found, told, table), _latency(found, told, table, max_latency_s)


def _throughput(found: Measured, told: Mapping[Variant, list[str]], table: Table) -> Chart:
    traces = [
        line(
            variant,
            found.style[variant],
            x=[cell.batch_size or 0 for cell in cells],
            y=[round_off(1 / cell.seconds_per_image) for cell in cells],
            bars=[images_per_s(cell) for cell in cells],
            hover=told[variant],
        )
        for variant, cells in found.cells.items()
    ]
    best = max(_all(found), key=lambda cell: 1 / cell.seconds_per_image)
    return Chart(
        key="throughput",
        title="Throughput over batch size",
        alt=(
            f"Lines of images per second over the batch size for {len(traces)} variants. The highest is {best.variant} "
            f"at batch {best.batch_size} with {digits(1 / best.seconds_per_image)} images per second."
        ),
        reading="Higher is better. Bars are 95 % intervals of the median call.",
        data=traces,
        layout=layout(batch_axis(found.batch_sizes), from_zero("images per second")),
        table=table,
    )


def _latency(found: Measured, told: Mapping[Variant, list[str]], table: Table, max_latency_s: float | None) -> Chart:
    traces = []
    for variant, cells in found.cells.items():
        trace = line(
            variant,
            found.style[variant],
            x=[round_off(1 / cell.seconds_per_image) for cell in cells],
            y=[round_off(cell.median_s * 1e3) for cell in cells],
            bars=[_milliseconds(cell) for cell in cells],
            sideways=[images_per_s(cell) for cell in cells],
            hover=told[variant],
        )
        if len(_all(found)) <= _MOST_LABELS:
            trace = {
                **trace,
                "mode": "lines+markers+text",
                "text": [str(cell.batch_size) for cell in cells],
                "textposition": "top right",
                "textfont": {"size": 11},
            }
        traces.append(trace)
    single = [cell for cell in _all(found) if cell.batch_size == 1]
    fastest = min(single or _all(found), key=lambda cell: cell.median_s)
    limit = {} if max_latency_s is None else limit_line(max_latency_s * 1e3, f"limit {seconds(max_latency_s)}")
    return Chart(
        key="latency",
        title="Latency over throughput",
        alt=(
            f"Each variant as a line through its batch sizes: milliseconds of a call over images per second. The "
            f"shortest call is {fastest.variant} at batch {fastest.batch_size} with {seconds(fastest.median_s)}."
        ),
        reading=(
            "Lower and further right is better. Markers are batch sizes, joined in their order; a line that only rises "
            "gains nothing from batching."
        ),
        data=traces,
        layout=layout(from_zero("images per second"), log_axis("milliseconds per call (logarithmic)"), **limit),
        table=table,
    )


_MOST_LABELS = 40


def images_per_s(cell: Cell) -> tuple[float, float] | None:
    """The 95 % interval of images per second; None with too few calls."""
    interval, size = stats.median_interval(cell.samples_s), cell.batch_size or 1
    return (size / interval.high, size / interval.low) if interval and interval.low > 0 else None


def _milliseconds(cell: Cell) -> tuple[float, float] | None:
    interval = stats.median_interval(cell.samples_s)
    return (interval.low * 1e3, interval.high * 1e3) if interval else None


def _all(found: Measured) -> list[Cell]:
    return [cell for cells in found.cells.values() for cell in cells]


def _hover(cell: Cell, results: Results) -> str:
    interval = stats.median_interval(cell.samples_s)
    against = versus_pytorch(cell, results)
    ratio = f"<br>{digits(against.ratio)}x PyTorch ({between(against.interval)})" if against else ""
    return (
        f"<b>{cell.variant}</b>, batch {cell.batch_size}<br>{digits(1 / cell.seconds_per_image)} images/s"
        f"<br>{digits(cell.median_s * 1e3)} ms per call ({between(interval, 1e3)})"
        f"<br>{len(cell.samples_s)} calls{ratio}"
    )


def _table(found: Measured, results: Results) -> Table:
    columns = (
        Column("variant", numeric=False),
        Column("batch"),
        Column("images/s"),
        Column("low", about="of the 95 % interval"),
        Column("high", about="of the 95 % interval"),
        Column("ms/call", about="median"),
        Column("low", about="of the 95 % interval"),
        Column("high", about="of the 95 % interval"),
        Column("calls"),
        Column("× PyTorch", about="images per second, relative to PyTorch eager on the same device"),
    )
    rows = []
    for cell in _all(found):
        rate, call = images_per_s(cell) or (None, None), _milliseconds(cell) or (None, None)
        against = versus_pytorch(cell, results)
        figures = (1 / cell.seconds_per_image, *rate, cell.median_s * 1e3, *call)
        rows.append(
            (
                text(str(cell.variant)),
                number(cell.batch_size, "{}"),
                *(number(figure, "" if figure is None else digits(figure, 4)) for figure in figures),
                number(len(cell.samples_s), "{}"),
                number(against.ratio if against else None, "{:.2f}"),
            )
        )
    return Table("Throughput and latency", columns, tuple(rows))
