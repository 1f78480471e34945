"""Chart of how near each variant comes to what the machine can do at best."""

from __future__ import annotations

from segx.analysis.roofline import Ceiling, ceiling_of, why_no_ceiling
from segx.reporting.columns import digits, literal, seconds, share
from segx.reporting.document import BLANK, Chart, Column, Datum, Table, number, text
from segx.reporting.html.charts import Measured, Trace, categories, layout, round_off, wrapped
from segx.reporting.html.theme import Style
from segx.results.types import Cell, Results

_PATTERNS = {"arithmetic": "", "memory": "/"}


def ceiling(found: Measured, results: Results) -> Chart | None:
    """Share of the ceiling at each variant's best batch size; None where no cell has a ceiling."""
    known = [
        (cell, reached)
        for cells in found.cells.values()
        for cell in cells
        if (reached := ceiling_of(cell, results)) is not None
    ]
    if not known:
        return None
    best: dict[str, tuple[Cell, Ceiling]] = {}
    for cell, reached in known:
        name = str(cell.variant)
        if name not in best or reached.share > best[name][1].share:
            best[name] = (cell, reached)
    top = max(best.values(), key=lambda pair: pair[1].share)
    rows = [_row(cell, results) for cells in found.cells.values() for cell in cells]
    full = {
        "type": "line", "x0": 100, "x1": 100, "yref": "paper", "y0": 0, "y1": 1,
        "line": {"dash": "dash", "width": 1.5},
    }  # fmt: skip
    return Chart(
        key="ceiling",
        title="Share of the ceiling",
        alt=(
            f"Bars of the share of this machine's ceiling that each variant reaches. The most is {top[0].variant} at "
            f"batch {top[0].batch_size} with {share(top[1].share, 0)}."
        ),
        reading=(
            "100 % is the least time that the measured peak arithmetic (plain bars) or copy rate (hatched) leaves the "
            "network's own operations and bytes. Above it, an engine needs fewer operations than counted."
        ),
        data=[_bar(*pair, found.style[pair[0].variant]) for pair in reversed(best.values())],
        layout=layout(
            {"title": {"text": "share of the ceiling (%)"}, "rangemode": "tozero", "ticksuffix": " %"},
            categories("variant, at its best batch size"),
            shapes=[full],
        ),
        table=Table("Share of the ceiling", _COLUMNS, tuple(rows)),
        height=110 + 38 * len(best),
    )


def _bar(cell: Cell, reached: Ceiling, style: Style) -> Trace:
    told = (
        f"<b>{literal(str(cell.variant))}</b>, batch {cell.batch_size}<br>{share(reached.share)} of the ceiling, "
        f"bound by {reached.bound_by}<br>{seconds(cell.median_s)} per call, at best {seconds(reached.seconds)}"
    )
    return {
        "type": "bar",
        "orientation": "h",
        "name": literal(str(cell.variant)),
        "legendgroup": str(cell.variant),
        "y": [wrapped(str(cell.variant))],
        "x": [round_off(reached.share * 100)],
        "marker": {
            "color": style.color,
            "line": {"color": style.color, "width": 1},
            "pattern": {"shape": _PATTERNS[reached.bound_by], "fillmode": "replace", "size": 7, "solidity": 0.4},
        },
        "hovertext": [told],
        "hoverinfo": "text",
    }


_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("share %"),
    Column("ms/call", about="median"),
    Column("at best ms", about="by the roofline"),
    Column("bound by", numeric=False),
    Column("GOPS", about="of the operations counted: multiplications and additions"),
    Column("remark", numeric=False),
)


def _row(cell: Cell, results: Results) -> tuple[Datum, ...]:
    reached = ceiling_of(cell, results)
    call = number(cell.median_s * 1e3, digits(cell.median_s * 1e3, 4))
    what = (text(str(cell.variant)), number(cell.batch_size, "{}"))
    if reached is None:
        blank = Datum(BLANK, None)
        return (*what, blank, call, blank, blank, blank, text(why_no_ceiling(cell, results)))
    return (
        *what,
        number(reached.share * 100, digits(reached.share * 100)),
        call,
        number(reached.seconds * 1e3, digits(reached.seconds * 1e3, 4)),
        text(reached.bound_by),
        number(reached.operations_per_s / 1e9, digits(reached.operations_per_s / 1e9)),
        text(""),
    )
