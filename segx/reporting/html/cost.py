"""Chart of what a batch costs: latency = a + b · batch, its knee and its cliffs."""

from __future__ import annotations

from segx.analysis.scaling import CostCurve, CostPoint, cost_points, fit_cost, why_no_curve
from segx.reporting.columns import digits, literal, share
from segx.reporting.document import BLANK, Chart, Column, Datum, Table, number, text
from segx.reporting.html.charts import Measured, Trace, batch_axis, curve, layout, line, log_axis, round_off
from segx.reporting.html.theme import Style
from segx.runtimes import Variant


def cost_curve(found: Measured) -> Chart:
    """Milliseconds of a call over its batch size, with the line that fits them."""
    traces: list[Trace] = []
    rows = []
    told = []
    for variant, cells in found.cells.items():
        style, points = found.style[variant], cost_points(cells)
        fitted = fit_cost(points)
        traces += _traces(variant, style, points, fitted)
        rows.append(_row(variant, fitted, why_no_curve(points)))
        if fitted:
            told.append(f"{variant}: {_equation(fitted)}")
    return Chart(
        key="cost",
        title="Cost of a batch",
        alt=f"Milliseconds of a call over the batch size, with a fitted line for each variant. {'; '.join(told)}.",
        reading=(
            "Lines: latency = a + b · batch, fitted to relative errors. Ring: the knee, from which batching gains less "
            "than 5 % throughput. Square: a cliff, clearly longer than smaller batches lead to expect, and not in the "
            "line."
        ),
        data=traces,
        layout=layout(batch_axis(found.batch_sizes), log_axis("milliseconds per call (logarithmic)")),
        table=Table("Cost of a batch", _COLUMNS, tuple(rows)),
    )


def _traces(variant: Variant, style: Style, points: list[CostPoint], fitted: CostCurve | None) -> list[Trace]:
    sizes = [point.batch_size for point in points]
    hover = [
        f"<b>{literal(str(variant))}</b>, batch {p.batch_size}<br>{digits(p.seconds * 1e3)} ms per call"
        f" ({digits(p.low * 1e3)} to {digits(p.high * 1e3)})" + (f"<br>{_equation(fitted)}" if fitted else "")
        for p in points
    ]
    measured = line(
        variant,
        style,
        x=sizes,
        y=[round_off(p.seconds * 1e3) for p in points],
        bars=[(p.low * 1e3, p.high * 1e3) for p in points],
        hover=hover,
    )
    if fitted is None:
        return [{**measured, "mode": "markers"}]
    steps = [sizes[0] * (sizes[-1] / sizes[0]) ** (i / 32) for i in range(33)]
    fit = curve(
        variant,
        style,
        x=[round_off(size) for size in steps],
        y=[round_off(fitted.seconds(size) * 1e3) for size in steps],
    )
    traces: list[Trace] = [fit, {**measured, "mode": "markers"}]
    by_size = {p.batch_size: p for p in points}
    special = [(fitted.knee, "circle-open", "knee"), *((size, "square-open", "cliff") for size in fitted.cliffs)]
    for size, symbol, name in special:
        if size is not None:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers+text",
                    "legendgroup": str(variant),
                    "x": [size],
                    "y": [round_off(by_size[size].seconds * 1e3)],
                    "text": [name],
                    "textposition": "bottom right",
                    "textfont": {"size": 11},
                    "hoverinfo": "skip",
                    "marker": {"symbol": symbol, "size": 18, "color": style.color, "line": {"width": 2}},
                }
            )
    return traces


def _equation(fitted: CostCurve) -> str:
    return f"{digits(fitted.fixed_s * 1e3)} ms + {digits(fitted.per_image_s * 1e3)} ms · batch"


_COLUMNS = (
    Column("variant", numeric=False),
    Column("a ms", about="what a call costs whatever its batch"),
    Column("b ms/image", about="what each image adds"),
    Column("knee", about="batch size from which throughput gains under 5 %"),
    Column("cliffs", numeric=False, about="batch sizes that take clearly longer than smaller ones lead to expect"),
    Column("misfit %", about="how far the line passes a figure at most"),
    Column("remark", numeric=False),
)


def _row(variant: Variant, fitted: CostCurve | None, reason: str) -> tuple[Datum, ...]:
    blank = Datum(BLANK, None)
    if fitted is None:
        return (text(str(variant)), *[blank] * 5, text(reason))
    return (
        text(str(variant)),
        number(fitted.fixed_s, digits(fitted.fixed_s * 1e3)),
        number(fitted.per_image_s, digits(fitted.per_image_s * 1e3)),
        number(fitted.knee, "{}"),
        text(", ".join(map(str, fitted.cliffs))),
        Datum(share(fitted.misfit).removesuffix(" %"), fitted.misfit),
        text("" if fitted.knee else "throughput may go on rising beyond the largest batch"),
    )
