"""Charts of the cold start: what comes before the first mask, and how many images it takes to make up for it."""

from __future__ import annotations

from segx.analysis.payoff import Payoff, cold_start_s, payoff
from segx.reporting.columns import digits, literal, seconds
from segx.reporting.document import Chart, Column, Datum, Table, number, text
from segx.reporting.html.charts import (
    Measured,
    Trace,
    categories,
    curve,
    from_zero,
    layout,
    log_axis,
    marks,
    round_off,
    wrapped,
)
from segx.reporting.html.theme import Style
from segx.results.types import Cell, Results
from segx.runtimes import Variant, runtime_info

# Part -> (field of the cell, pattern of its bar).
_PARTS = {"import": ("import_s", "x"), "load": ("load_s", "/"), "first call": ("first_s", "")}
_IMAGES = [10 ** (step / 8) for step in range(41)]


def cold_start(found: Measured) -> Chart | None:
    """Seconds from a fresh process to the first mask, at the smallest batch size; None where that is not known."""
    cells = _starts(found)
    if not cells:
        return None
    fastest = min(cells, key=_cold)
    return Chart(
        key="cold",
        title="Cold start",
        alt=(
            f"Stacked bars of seconds to import, load and call once, for {len(cells)} variants. The shortest is "
            f"{fastest.variant} with {seconds(_cold(fastest))}."
        ),
        reading="Seconds from a fresh process to the first mask. Crossed: import; hatched: load; plain: first call.",
        data=[_bar(cell, found.style[cell.variant], part) for part in _PARTS for cell in reversed(cells)],
        layout=layout(from_zero("seconds"), categories("variant"), barmode="stack"),
        table=Table("Cold start", _COLD_COLUMNS, tuple(_cold_row(cell) for cell in cells)),
        height=110 + 38 * len(cells),
    )


def paid_for(found: Measured, results: Results) -> Chart | None:
    """Seconds until so many images are done, cold start included; None where no cold start is known."""
    cells = _starts(found)
    if not cells:
        return None
    traces: list[Trace] = []
    rows = []
    for cell in cells:
        style = found.style[cell.variant]
        spent = [_cold(cell) + images * cell.seconds_per_image for images in _IMAGES]
        trace = curve(cell.variant, style, x=[round_off(n) for n in _IMAGES], y=[round_off(s) for s in spent])
        name = literal(str(cell.variant))
        hover = [
            f"<b>{name}</b>, batch {cell.batch_size}<br>{n:,.0f} images in {seconds(s)}"
            for n, s in zip(_IMAGES, spent, strict=True)
        ]
        traces.append({**trace, "hovertext": hover, "hoverinfo": "text", "line": {**trace["line"], "width": 2}})
        base = _baseline(cell, results)
        found_payoff = payoff(cell, base) if base else None
        if found_payoff and found_payoff.images and found_payoff.relation == "after":
            after = max(1.0, found_payoff.images)
            level = round_off(_cold(cell) + after * cell.seconds_per_image)
            told = f"<b>{name}</b><br>ahead of {base.variant if base else ''} from image {after:,.0f} on"
            traces.append(marks(cell.variant, style, x=[round_off(after)], y=[level], hover=[told]))
        rows.append(_payoff_row(cell, base, found_payoff))
    return Chart(
        key="payoff",
        title="Time to so many images",
        alt="Seconds until a number of images is done, from a fresh process on, for each variant.",
        reading=(
            "From a fresh process on; lower is better. A marker is where a variant with the longer cold start has made "
            "up for it against PyTorch."
        ),
        data=traces,
        layout=layout(log_axis("images (logarithmic)", steps=[1]), log_axis("seconds (logarithmic)", steps=[1])),
        table=Table("Cold start paid for", _PAYOFF_COLUMNS, tuple(rows)),
        height=400,
    )


def _starts(found: Measured) -> list[Cell]:
    """The cell with the smallest batch of each variant, of those whose cold start is known."""
    first = [next((cell for cell in cells if cold_start_s(cell) is not None), None) for cells in found.cells.values()]
    return [cell for cell in first if cell]


def _cold(cell: Cell) -> float:
    return cold_start_s(cell) or 0.0


def _baseline(cell: Cell, results: Results) -> Cell | None:
    base = results.cell(Variant(runtime_info(cell.runtime).baseline, "fp32", cell.scope), cell.batch_size or 0)
    return None if base is cell else base


def _bar(cell: Cell, style: Style, part: str) -> Trace:
    name, pattern = _PARTS[part]
    value = getattr(cell, name) or 0.0
    return {
        "type": "bar",
        "orientation": "h",
        "name": literal(str(cell.variant)),
        "legendgroup": str(cell.variant),
        "y": [wrapped(str(cell.variant))],
        "x": [round_off(value)],
        "marker": {
            "color": style.color,
            "line": {"color": style.color, "width": 1},
            "pattern": {"shape": pattern, "fillmode": "replace", "size": 7, "solidity": 0.4},
        },
        "hovertext": [f"<b>{literal(str(cell.variant))}</b><br>{part}: {seconds(value)} of {seconds(_cold(cell))}"],
        "hoverinfo": "text",
    }


_COLD_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("import s", about="the engine's libraries"),
    Column("load s", about="the model, with one proving inference"),
    Column("first call s"),
    Column("together s"),
)
_PAYOFF_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("cold start s"),
    Column("ms/image"),
    Column("against", numeric=False),
    Column("images to break even", about="after so many it is ahead for good"),
    Column("in words", numeric=False),
)


def _cold_row(cell: Cell) -> tuple[Datum, ...]:
    figures = [getattr(cell, name) or 0.0 for name, _ in _PARTS.values()]
    return (
        text(str(cell.variant)),
        number(cell.batch_size, "{}"),
        *(number(value, digits(value)) for value in [*figures, sum(figures)]),
    )


def _payoff_row(cell: Cell, base: Cell | None, found: Payoff | None) -> tuple[Datum, ...]:
    images = found.images if found else None
    words = {
        "always": "ahead from the first image on",
        "after": f"ahead after {images or 0:,.0f} images",
        "until": f"ahead only for the first {images or 0:,.0f} images",
        "never": "never ahead",
        "unknown": "",
    }
    return (
        text(str(cell.variant)),
        number(cell.batch_size, "{}"),
        number(_cold(cell), digits(_cold(cell))),
        number(cell.seconds_per_image * 1e3, digits(cell.seconds_per_image * 1e3)),
        text(str(base.variant) if base else ""),
        number(images if found and found.relation == "after" else None, "{:,.0f}"),
        text(words[found.relation] if found else "what the others are compared with"),
    )
