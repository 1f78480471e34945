"""Chart of memory over the batch size, with its slope."""

from __future__ import annotations

from segx.analysis.figures import needed_bytes
from segx.analysis.scaling import MemoryLine, memory_points, memory_slope
from segx.reporting.columns import MIB, digits
from segx.reporting.document import Chart, Column, Table, number, text
from segx.reporting.html.charts import Measured, curve, even_batch_axis, from_zero, layout, marks, round_off
from segx.results.types import Cell
from segx.runtimes import runtime_info


def memory(found: Measured) -> Chart | None:
    """Peak memory over the batch size; None where none was measured."""
    weighed = {
        variant: [(cell, needed / MIB) for cell in cells if (needed := needed_bytes(cell)) is not None]
        for variant, cells in found.cells.items()
    }
    traces, rows = [], []
    for variant, points in weighed.items():
        if not points:
            continue
        sizes, mib = [cell.batch_size or 0 for cell, _ in points], [needed for _, needed in points]
        slope = memory_slope(memory_points([cell for cell, _ in points]))
        where = "GPU" if runtime_info(variant.runtime).device == "cuda" else "host"
        style = found.style[variant]
        if slope:
            ends = (0, sizes[-1])
            fitted = [round_off((slope.base_bytes + slope.per_image_bytes * size) / MIB) for size in ends]
            traces.append(curve(variant, style, x=ends, y=fitted))
        hover = [
            f"<b>{variant}</b>, batch {cell.batch_size}<br>{digits(needed)} MiB ({where}){_slope(slope)}"
            for cell, needed in points
        ]
        traces.append(marks(variant, style, x=sizes, y=[round_off(needed) for needed in mib], hover=hover))
        rows += [
            (
                text(str(variant)),
                number(cell.batch_size, "{}"),
                number(needed, digits(needed)),
                text(where),
                number(slope.per_image_bytes / MIB if slope else None, "{:.1f}"),
                number(slope.base_bytes / MIB if slope else None, "{:.0f}"),
                text(_method(cell)),
            )
            for cell, needed in points
        ]
    if not rows:
        return None
    least = min((pair for points in weighed.values() for pair in points), key=lambda pair: pair[1])
    return Chart(
        key="memory",
        title="Memory over batch size",
        alt=(
            f"Peak memory in MiB over the batch size, with a straight line through the points of each variant. The "
            f"least is {least[0].variant} at batch {least[0].batch_size} with {digits(least[1])} MiB."
        ),
        reading=(
            "Peak private memory of model and inference, above the imported libraries; on a GPU, of the device. The "
            "slopes of the lines, in MiB per image, are in the table."
        ),
        data=traces,
        layout=layout(even_batch_axis(found.batch_sizes), from_zero("peak memory (MiB)")),
        table=Table("Memory", _COLUMNS, tuple(rows)),
    )


_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("peak MiB"),
    Column("of", numeric=False),
    Column("MiB/image", about="slope of the straight line through the batch sizes"),
    Column("MiB beside", about="where that line starts: what does not depend on the batch"),
    Column("source", numeric=False),
)


def _slope(line: MemoryLine | None) -> str:
    if line is None:
        return ""
    return f"<br>{digits(line.per_image_bytes / MIB)} MiB per image, beside {digits(line.base_bytes / MIB)} MiB"


def _method(cell: Cell) -> str:
    source = cell.device_memory if runtime_info(cell.runtime).device == "cuda" else cell.host_memory
    return source.method if source else ""
