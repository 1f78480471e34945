"""Charts of the cold start, and of the number of images after which a faster variant breaks even."""

from __future__ import annotations

import math
from collections.abc import Sequence

from segx.analysis.figures import pytorch_variant
from segx.analysis.recommend import break_even, cold_start_s
from segx.reporting.columns import BATCH, VARIANT, Field, figures, literal, seconds, table_of, words
from segx.reporting.document import Chart
from segx.reporting.renderers.html import charts
from segx.reporting.renderers.html.charts import Series, Trace
from segx.results.types import Cell, Results

# Part of the cold start -> (field of the cell, fill pattern of its bar).
_PARTS = {"import": ("import_s", "x"), "load": ("load_s", "/"), "first call": ("first_s", "")}
_IMAGES = [10 ** (step / 8) for step in range(41)]


def startup_charts(series: Sequence[Series], results: Results) -> list[Chart]:
    """Return the charts of the cold start and of the break-even, at the smallest batch size with a known cold start."""
    starts = []
    for one in series:
        cell = next((cell for cell in one.cells if cold_start_s(cell) is not None), None)
        if cell:
            starts.append((one, cell))
    return [_cold_start(starts), _break_even(starts, results)] if starts else []


def _cold_start(starts: Sequence[tuple[Series, Cell]]) -> Chart:
    fastest = min((cell for _, cell in starts), key=_cold_s)
    bars = [
        charts.bar(
            one.name,
            one.style,
            getattr(cell, field),
            f"<b>{literal(one.name)}</b><br>{part}: {seconds(getattr(cell, field))} of {seconds(_cold_s(cell))}",
            pattern,
        )
        for part, (field, pattern) in _PARTS.items()
        for one, cell in reversed(starts)
    ]
    fields: list[Field[Cell]] = [
        VARIANT,
        BATCH,
        figures("import s", lambda cell: cell.import_s, "the engine's libraries"),
        figures("load s", lambda cell: cell.load_s, "the model, with one inference as a test"),
        figures("first call s", lambda cell: cell.first_s),
        figures("total s", _cold_s),
    ]
    return Chart(
        key="cold",
        title="Time to the first mask",
        alt=(
            f"Stacked bars of seconds to import, load and call once, for {len(starts)} variants. The shortest is "
            f"{fastest.variant} with {seconds(_cold_s(fastest))}."
        ),
        reading="Seconds from a fresh process to the first mask. Crossed: import; hatched: load; plain: first call.",
        data=bars,
        layout=charts.layout(charts.linear_axis("seconds"), charts.category_axis("variant"), barmode="stack"),
        table=table_of("Time to the first mask", [cell for _, cell in starts], fields),
        height=110 + 38 * len(starts),
    )


def _break_even(starts: Sequence[tuple[Series, Cell]], results: Results) -> Chart:
    traces: list[Trace] = []
    rows: list[tuple[Cell, Cell | None]] = []
    for one, cell in starts:
        base = results.cell(pytorch_variant(cell), cell.batch_size or 0)
        base = None if base is cell else base
        found = break_even(cell, base) if base else None
        rows.append((cell, base))
        spent = [_cold_s(cell) + images * cell.seconds_per_image for images in _IMAGES]
        name = f"<b>{literal(one.name)}</b>"
        labels = [
            f"{name}, batch {cell.batch_size}<br>{n:,.0f} images in {seconds(s)}"
            for n, s in zip(_IMAGES, spent, strict=True)
        ]
        line = {"color": one.style.color, "dash": one.style.dash, "width": 2}
        traces.append(charts.points(one.name, one.style, _IMAGES, spent, labels, mode="lines", line=line))
        if base and found and math.isfinite(found):
            images = max(1.0, found)
            label = f"{name}<br>ahead of {literal(str(base.variant))} from image {math.ceil(images):,} on"
            level = _cold_s(cell) + images * cell.seconds_per_image
            traces.append(charts.points(one.name, one.style, [images], [level], [label], mode="markers"))
    fields: list[Field[tuple[Cell, Cell | None]]] = [
        words("variant", lambda row: str(row[0].variant)),
        figures("batch", lambda row: row[0].batch_size, form="{}"),
        figures("start-up s", lambda row: _cold_s(row[0])),
        figures("ms/image", lambda row: row[0].seconds_per_image * 1e3),
        words("baseline", lambda row: str(row[1].variant) if row[1] else ""),
        words("ahead", lambda row: _ahead(*row)),
    ]
    return Chart(
        key="break-even",
        title="Total time for a number of images, start-up included",
        alt="Seconds from a fresh process until a number of images is processed, for each variant.",
        reading=(
            "From a fresh process; lower is better. From its marker on, a variant that starts later than PyTorch is "
            "ahead of it."
        ),
        data=traces,
        layout=charts.layout(charts.log_axis("images", steps=[1]), charts.log_axis("seconds", steps=[1]), named=True),
        table=table_of("Break-even", rows, fields),
    )


def _cold_s(cell: Cell) -> float:
    return cold_start_s(cell) or 0.0


def _ahead(cell: Cell, base: Cell | None) -> str:
    """Return at which images a cell is done sooner than the baseline."""
    found = break_even(cell, base) if base else None
    if base is None or found is None:
        return ""
    if math.isfinite(found):
        return f"from image {max(1, math.ceil(found)):,} on"
    until = break_even(base, cell)
    return f"before image {math.ceil(until):,}" if until else "never"
