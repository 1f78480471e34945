"""Charts of waiting time, images per second, memory, batch cost and the peaks of the machine."""

from __future__ import annotations

from collections.abc import Sequence

from segx.analysis.figures import interval_of, needed_bytes, versus_pytorch
from segx.analysis.roofline import Ceiling, ceiling_of, why_no_ceiling
from segx.analysis.scaling import CostCurve, CostPoint, cost_points, fit_cost, memory_line, why_no_curve
from segx.reporting.columns import (
    BATCH,
    MIB,
    VARIANT,
    Field,
    between,
    digits,
    figures,
    literal,
    milliseconds,
    seconds,
    share,
    table_of,
    vs_pytorch,
    words,
)
from segx.reporting.document import BLANK, Chart, Table
from segx.reporting.renderers.html import charts
from segx.reporting.renderers.html.charts import Interval, Series, Trace, cells_of
from segx.results.types import Cell, Results
from segx.runtimes import runtime_info

# What limits a cell -> fill pattern of its bar.
_PATTERNS = {"arithmetic": "", "memory": "/"}
_OF_INTERVAL = "of the 95% interval"


def throughput_chart(series: Sequence[Series], results: Results) -> Chart | None:
    """Return the chart of images per second by batch size; None for a single batch size."""
    cells, sizes = cells_of(series), charts.batch_sizes(series)
    if len(sizes) < 2:
        return None
    best = max(cells, key=lambda cell: 1 / cell.seconds_per_image)
    return Chart(
        key="throughput",
        title="Images per second by batch size",
        alt=(
            f"Lines of images per second over the batch size for {len(series)} variants. The highest is {best.variant} "
            f"at batch {best.batch_size} with {digits(1 / best.seconds_per_image)} images per second."
        ),
        reading="Higher is better. Bars are 95% intervals of the median call.",
        data=[
            charts.throughput(
                one.name, one.style, _sizes(one), one.cells, [_label(cell, results) for cell in one.cells]
            )
            for one in series
        ],
        layout=charts.layout(charts.batch_axis(sizes), charts.log_axis("images per second"), named=True),
        table=_speed_table(cells, results),
    )


def waiting_chart(series: Sequence[Series], results: Results, max_latency_s: float | None) -> Chart | None:
    """Return the chart of the time of a call against images per second, with the limit on it if there is one.

    None for a single batch size, which would give points on one line.
    """
    cells = cells_of(series)
    if len(charts.batch_sizes(series)) < 2:
        return None
    traces = [
        charts.points(
            one.name,
            one.style,
            [1 / cell.seconds_per_image for cell in one.cells],
            [cell.median_s * 1e3 for cell in one.cells],
            [_label(cell, results) for cell in one.cells],
            x_intervals=list(map(charts.rate_interval, one.cells)),
            y_intervals=list(map(_call_interval_ms, one.cells)),
            text=list(map(str, _sizes(one))),
        )
        for one in series
    ]
    fastest = min([cell for cell in cells if cell.batch_size == 1] or cells, key=lambda cell: cell.median_s)
    limit = {}
    if max_latency_s is not None:
        limit = charts.guide("y", max_latency_s * 1e3, f"limit {seconds(max_latency_s)}", log=True)
    return Chart(
        key="waiting",
        title="Waiting time against images per second",
        alt=(
            "Milliseconds per call over images per second: a line through the batch sizes of each variant. The "
            f"shortest call is {fastest.variant} at batch {fastest.batch_size} with {seconds(fastest.median_s)}."
        ),
        reading=(
            "Down and right is better. A line joins the batch sizes of a variant, which stand at its points. If it "
            "goes straight up, larger batches only take longer."
        ),
        data=traces,
        layout=charts.layout(
            charts.log_axis("images per second"), charts.log_axis("milliseconds per call"), named=True, **limit
        ),
        table=_speed_table(cells, results),
        height=430,
    )


def _sizes(series: Series) -> list[int]:
    return [cell.batch_size or 0 for cell in series.cells]


def _call_interval_ms(cell: Cell) -> Interval | None:
    interval = interval_of(cell)
    return (interval.low * 1e3, interval.high * 1e3) if interval else None


def _label(cell: Cell, results: Results) -> str:
    ratio = versus_pytorch(cell, results)
    return (
        f"<b>{cell.variant}</b>, batch {cell.batch_size}<br>{digits(1 / cell.seconds_per_image)} images/s"
        f"<br>{digits(cell.median_s * 1e3)} ms per call ({between(interval_of(cell), 1e3)})"
        f"<br>{len(cell.samples_s)} calls"
        + (f"<br>{digits(ratio.ratio)}x PyTorch ({between(ratio.interval)})" if ratio else "")
    )


def _speed_table(cells: Sequence[Cell], results: Results) -> Table:
    rate = {id(cell): charts.rate_interval(cell) or (None, None) for cell in cells}
    call = {id(cell): _call_interval_ms(cell) or (None, None) for cell in cells}
    fields: list[Field[Cell]] = [
        VARIANT,
        BATCH,
        figures("images/s", lambda cell: 1 / cell.seconds_per_image, count=4),
        figures("low", lambda cell: rate[id(cell)][0], _OF_INTERVAL, count=4),
        figures("high", lambda cell: rate[id(cell)][1], _OF_INTERVAL, count=4),
        milliseconds("ms/call", lambda cell: cell.median_s, "median"),
        figures("low", lambda cell: call[id(cell)][0], _OF_INTERVAL, count=4),
        figures("high", lambda cell: call[id(cell)][1], _OF_INTERVAL, count=4),
        figures("calls", lambda cell: len(cell.samples_s), form="{}"),
        *vs_pytorch(results),
    ]
    return table_of("Images per second and time per call", cells, fields)


def roofline_chart(series: Sequence[Series], results: Results) -> Chart | None:
    """Return the chart of each variant's best share of the roofline; None if no cell has a roofline."""
    rows = [(cell, ceiling_of(cell, results)) for cell in cells_of(series)]
    best: dict[str, tuple[Cell, Ceiling]] = {}
    for cell, found in rows:
        name = str(cell.variant)
        if found and (name not in best or found.share > best[name][1].share):
            best[name] = cell, found
    if not best:
        return None
    styles = {one.name: one.style for one in series}
    bars = [
        charts.bar(
            name,
            styles[name],
            found.share * 100,
            f"<b>{literal(name)}</b>, batch {cell.batch_size}<br>{share(found.share)} of the peak, bound by "
            f"{found.bound_by}<br>{seconds(cell.median_s)} per call, at best {seconds(found.seconds)}",
            _PATTERNS[found.bound_by],
        )
        for name, (cell, found) in reversed(best.items())
    ]
    top, top_found = max(best.values(), key=lambda pair: pair[1].share)
    fields: list[Field[tuple[Cell, Ceiling | None]]] = [
        words("variant", lambda row: str(row[0].variant)),
        figures("batch", lambda row: row[0].batch_size, form="{}"),
        figures("share %", lambda row: row[1].share * 100 if row[1] else None),
        milliseconds("ms/call", lambda row: row[0].median_s, "median"),
        milliseconds("at best ms", lambda row: row[1].seconds if row[1] else None, "at the machine's peak"),
        words("bound by", lambda row: row[1].bound_by if row[1] else BLANK),
        figures(
            "GOPS",
            lambda row: row[1].operations_per_s / 1e9 if row[1] else None,
            "counted operations per second: multiplications and additions",
        ),
        words("remark", lambda row: why_no_ceiling(row[0], results)),
    ]
    return Chart(
        key="roofline",
        title="Speed against this machine's measured peak",
        alt=(
            "Bars of the share of this machine's measured peak that each variant reaches. The highest is "
            f"{top.variant} at batch {top.batch_size} with {share(top_found.share, 0)}."
        ),
        reading=(
            "100% is the least time that the measured peak arithmetic (plain bars) or copy rate (hatched) allows for "
            "the network's operations and bytes. Above 100%, an engine needs fewer operations than counted."
        ),
        data=bars,
        layout=charts.layout(
            charts.linear_axis("share of the peak (%)", ticksuffix="%"),
            charts.category_axis("variant, at its best batch size"),
            **charts.guide("x", 100),
        ),
        table=table_of("Share of the machine's peak", rows, fields),
        height=110 + 38 * len(best),
    )


def cost_chart(series: Sequence[Series]) -> Chart | None:
    """Return the chart of the time of a call by batch size, with fitted lines; None below three batch sizes."""
    if len(charts.batch_sizes(series)) < 3:
        return None
    costs = [(one, found, fit_cost(found)) for one in series for found in [cost_points(one.cells)]]
    told = "; ".join(f"{one.name}: {_equation(fit)}" for one, _, fit in costs if fit)
    fields: list[Field[tuple[Series, list[CostPoint], CostCurve | None]]] = [
        words("variant", lambda cost: cost[0].name),
        figures("a ms", lambda cost: cost[2].fixed_s * 1e3 if cost[2] else None, "fixed cost of a call"),
        figures("b ms/image", lambda cost: cost[2].per_image_s * 1e3 if cost[2] else None, "cost of each image"),
        figures(
            "knee",
            lambda cost: cost[2].knee if cost[2] else None,
            "batch size from which images per second gain less than 5%",
            form="{}",
        ),
        words(
            "cliffs",
            lambda cost: ", ".join(map(str, cost[2].cliffs)) if cost[2] else BLANK,
            "batch sizes that take clearly longer than the smaller ones predict",
        ),
        figures(
            "misfit %",
            lambda cost: cost[2].misfit * 100 if cost[2] else None,
            "largest relative error of the line",
            form="{:.1f}",
        ),
        words("remark", lambda cost: _cost_remark(cost[1], cost[2])),
    ]
    return Chart(
        key="cost",
        title="Cost of a batch",
        alt=f"Milliseconds per call over the batch size, with a fitted line for each variant. {told}.",
        reading=(
            "Lines: time of a call = a + b · batch, fitted to relative errors. Ring: the knee, from which a larger "
            "batch gains less than 5% images per second. Square: a cliff, clearly slower than the smaller batches "
            "predict, and not in the fit."
        ),
        data=[trace for one, found, fit in costs for trace in _cost_traces(one, found, fit)],
        layout=charts.layout(
            charts.batch_axis(charts.batch_sizes(series)), charts.log_axis("milliseconds per call"), named=True
        ),
        table=table_of("Cost of a batch", costs, fields),
    )


def _cost_traces(series: Series, found: Sequence[CostPoint], fit: CostCurve | None) -> list[Trace]:
    name, style = series.name, series.style
    equation = f"<br>{_equation(fit)}" if fit else ""
    labels = [
        f"<b>{literal(name)}</b>, batch {point.batch_size}<br>{digits(point.seconds * 1e3)} ms per call"
        f" ({digits(point.low * 1e3)} to {digits(point.high * 1e3)}){equation}"
        for point in found
    ]
    sizes = [point.batch_size for point in found]
    intervals = [(point.low * 1e3, point.high * 1e3) for point in found]
    times = [point.seconds * 1e3 for point in found]
    measured = charts.points(name, style, sizes, times, labels, mode="markers", y_intervals=intervals)
    if fit is None:
        return [measured]
    steps = [sizes[0] * (sizes[-1] / sizes[0]) ** (i / 32) for i in range(33)]
    traces = [charts.points(name, style, steps, [fit.seconds(size) * 1e3 for size in steps], mode="lines"), measured]
    for size, symbol, label in [(fit.knee, "circle-open", "knee"), *((s, "square-open", "cliff") for s in fit.cliffs)]:
        if size is not None:
            marker = {"symbol": symbol, "size": 18, "color": style.color, "line": {"width": 2}}
            ring = charts.points(name, style, [size], [times[sizes.index(size)]], mode="markers+text", marker=marker)
            traces.append({**ring, "text": [label], "textposition": "bottom right", "textfont": {"size": 11}})
    return traces


def _equation(fit: CostCurve) -> str:
    return f"{digits(fit.fixed_s * 1e3)} ms + {digits(fit.per_image_s * 1e3)} ms · batch"


def _cost_remark(found: Sequence[CostPoint], fit: CostCurve | None) -> str:
    if fit is None:
        return why_no_curve(found)
    return "" if fit.knee else "images per second may go on rising beyond the largest batch"


def memory_chart(series: Sequence[Series]) -> Chart | None:
    """Return the chart of peak memory by batch size, with its slope; None for a single size or without memory."""
    lines = {one.name: memory_line(one.cells) for one in series}
    cells = [cell for cell in cells_of(series) if needed_bytes(cell) is not None]
    if not cells or len(charts.batch_sizes(series)) < 2:
        return None
    traces: list[Trace] = []
    for one in series:
        known = [cell for cell in one.cells if needed_bytes(cell) is not None]
        equation = ""
        if slope := lines[one.name]:
            ends = [0, known[-1].batch_size or 0]
            fitted = [(slope.base_bytes + slope.per_image_bytes * size) / MIB for size in ends]
            traces.append(charts.points(one.name, one.style, ends, fitted, mode="lines"))
            equation = f"<br>{digits(slope.base_bytes / MIB)} MiB + {digits(slope.per_image_bytes / MIB)} MiB per image"
        head = f"<b>{literal(one.name)}</b>, batch"
        labels = [f"{head} {cell.batch_size}<br>{digits(_mib(cell))} MiB ({_place(cell)}){equation}" for cell in known]
        if known:
            sizes = [cell.batch_size for cell in known]
            traces.append(charts.points(one.name, one.style, sizes, list(map(_mib, known)), labels, mode="markers"))
    least = min(cells, key=_mib)
    fields: list[Field[Cell]] = [
        VARIANT,
        BATCH,
        figures("peak MiB", _mib),
        words("of", _place),
        figures(
            "MiB/image",
            lambda cell: line.per_image_bytes / MIB if (line := lines[str(cell.variant)]) else None,
            "slope of the straight line through the batch sizes",
            form="{:.1f}",
        ),
        figures(
            "base MiB",
            lambda cell: line.base_bytes / MIB if (line := lines[str(cell.variant)]) else None,
            "intercept of that line: memory that does not depend on the batch size",
            form="{:.0f}",
        ),
        words("source", _memory_method),
    ]
    return Chart(
        key="memory",
        title="Memory by batch size",
        alt=(
            "Peak memory in MiB over the batch size, with a straight line through the points of each variant. The "
            f"lowest is {least.variant} at batch {least.batch_size} with {digits(_mib(least))} MiB."
        ),
        reading=(
            "Peak private memory of model and inference, without the imported libraries; on a GPU, device memory. The "
            "table has the slopes in MiB per image."
        ),
        data=traces,
        layout=charts.layout(
            charts.linear_batch_axis(charts.batch_sizes(series)), charts.linear_axis("peak memory (MiB)"), named=True
        ),
        table=table_of("Memory", cells, fields),
    )


def _mib(cell: Cell) -> float:
    return (needed_bytes(cell) or 0) / MIB


def _place(cell: Cell) -> str:
    return "GPU" if runtime_info(cell.runtime).device == "cuda" else "host"


def _memory_method(cell: Cell) -> str:
    source = cell.device_memory if _place(cell) == "GPU" else cell.host_memory
    return source.method if source else ""
