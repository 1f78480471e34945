"""Chart of the cold start: what comes before the first mask, part by part."""

from __future__ import annotations

from segx.bench.results import Cell
from segx.report.plots import Measured, Trace, from_zero, layout, round_off
from segx.report.theme import Style
from segx.report.units import digits, literal, seconds
from segx.report.view import Chart, Column, Datum, Table, number, text

# Part -> (field of the cell, pattern of its bar).
_PARTS = {"import": ("import_s", "x"), "load": ("load_s", "/"), "first call": ("first_s", "")}


def cold_start(found: Measured) -> Chart | None:
    """Seconds from a fresh process to the first mask, at the smallest batch size; None where that is not known."""
    first = {
        variant: next((cell for cell in cells if cell.load_s is not None), None)
        for variant, cells in found.cells.items()
    }
    cells = [cell for cell in first.values() if cell]
    if not cells:
        return None
    fastest = min(cells, key=cold_s)
    return Chart(
        key="cold",
        title="Cold start",
        alt=(
            f"Stacked bars of seconds to import, load and call once, for {len(cells)} variants. The shortest is "
            f"{fastest.variant} with {seconds(cold_s(fastest))}."
        ),
        reading="Seconds from a fresh process to the first mask. Crossed: import; hatched: load; plain: first call.",
        data=[_bar(cell, found.style[cell.variant], part) for part in _PARTS for cell in reversed(cells)],
        layout=layout(from_zero("seconds"), {"title": {"text": "variant"}, "type": "category"}, barmode="stack"),
        table=Table("Cold start", _COLUMNS, tuple(_row(cell) for cell in cells)),
        height=120 + 34 * len(cells),
    )


def cold_s(cell: Cell) -> float:
    """Seconds from a fresh process to the first result."""
    return (cell.import_s or 0.0) + (cell.load_s or 0.0) + (cell.first_s or 0.0)


def _bar(cell: Cell, style: Style, part: str) -> Trace:
    name, pattern = _PARTS[part]
    value = getattr(cell, name) or 0.0
    return {
        "type": "bar",
        "orientation": "h",
        "name": literal(str(cell.variant)),
        "legendgroup": str(cell.variant),
        "y": [literal(str(cell.variant))],
        "x": [round_off(value)],
        "marker": {
            "color": style.color,
            "line": {"color": style.color, "width": 1},
            "pattern": {"shape": pattern, "fillmode": "replace", "size": 7, "solidity": 0.4},
        },
        "hovertext": [f"<b>{literal(str(cell.variant))}</b><br>{part}: {seconds(value)} of {seconds(cold_s(cell))}"],
        "hoverinfo": "text",
    }


_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("import s", about="the engine's libraries"),
    Column("load s", about="the model, with one proving inference"),
    Column("first call s"),
    Column("together s"),
)


def _row(cell: Cell) -> tuple[Datum, ...]:
    figures = [getattr(cell, name) or 0.0 for name, _ in _PARTS.values()]
    return (
        text(str(cell.variant)),
        number(cell.batch_size, "{}"),
        *(number(value, digits(value)) for value in [*figures, sum(figures)]),
    )
