"""Chart of the margins of one image: how far its pixels are from flipping, with those that did."""

from __future__ import annotations

import math

from segx.masks.margins import MARGIN_EDGES
from segx.reporting.columns import digits
from segx.reporting.document import Chart, Column, Table, number
from segx.reporting.html.charts import Trace, layout
from segx.reporting.html.theme import BENIGN, REAL
from segx.results.pictures import ParityPicture

_GRAY = "#87909b"
_KINDS = {
    "pixels": ("all pixels", _GRAY, ""),
    "benign": ("benign flips", BENIGN, "/"),
    "real": ("real flips", REAL, "x"),
}


def margins(key: str, picture: ParityPicture) -> Chart:
    """Pixels over their margin, both in logarithmic steps; flips as hatched bars before those of all pixels."""
    histogram = picture.histogram
    filled = [i for i, count in enumerate(histogram.pixels) if count]
    first, last = min(filled, default=0), max(filled, default=0)
    bins = range(first, last + 1)
    rows = []
    for i in bins:
        low, high = MARGIN_EDGES[i], MARGIN_EDGES[i + 1]
        counts = (histogram.pixels[i], histogram.benign[i], histogram.real[i])
        if any(counts):
            rows.append((number(low, digits(low)), number(high, digits(high)), *(number(n, "{:,}") for n in counts)))
    band = _position(picture.noise_band)
    shown = range(max(1, min(first, math.floor(band))), last + 2)
    powers = [i for i in shown if math.isclose(math.log10(MARGIN_EDGES[i]) % 1, 0, abs_tol=1e-9)]
    x = {
        "title": {"text": "margin in logits (logarithmic)"},
        "tickvals": powers,
        "ticktext": [digits(MARGIN_EDGES[i], 1) for i in powers],
        "range": [min(first, band) - 0.5, last + 1.5],
    }
    y = {"title": {"text": "pixels (logarithmic)"}, "type": "log", "exponentformat": "none", "dtick": 1}
    marked = {
        "shapes": [{
            "type": "line", "x0": band, "x1": band, "yref": "paper", "y0": 0, "y1": 1,
            "line": {"dash": "dot", "width": 1.5},
        }],
        "annotations": [{
            "x": band, "xanchor": "left", "yref": "paper", "y": 1, "yanchor": "top", "text": " noise band",
            "showarrow": False,
        }],
    }  # fmt: skip
    return Chart(
        key=key,
        title="Margins of its pixels",
        alt=f"Pixels over the distance of the reference's logit from the cut: {picture.flipped_pixels} flipped.",
        reading=(
            "Margin: how far the reference's logit lies from the cut. Gray: all pixels. Hatched: benign flips, inside "
            "the noise band. Crossed: real flips."
        ),
        data=[_bars(picture, kind, bins) for kind in _KINDS],
        layout=layout(x, y, barmode="overlay", bargap=0.05, **marked),
        table=Table(f"Margins of {picture.name}", _COLUMNS, tuple(rows)),
        height=260,
    )


def _bars(picture: ParityPicture, kind: str, bins: range) -> Trace:
    name, color, pattern = _KINDS[kind]
    counts = [getattr(picture.histogram, kind)[i] for i in bins]
    return {
        "type": "bar",
        "name": name,
        "x": [i + 0.5 for i in bins],
        "y": counts,
        "marker": {
            "color": color,
            "opacity": 0.45 if kind == "pixels" else 1,
            "pattern": {"shape": pattern, "size": 6, "solidity": 0.5, "fillmode": "replace"},
        },
        "hovertext": [
            f"margin {digits(MARGIN_EDGES[i])} to {digits(MARGIN_EDGES[i + 1])}<br>{count:,} {name}"
            for i, count in zip(bins, counts, strict=True)
        ],
        "hoverinfo": "text",
    }


def _position(margin: float) -> float:
    """Where a margin stands among the bins."""
    if margin < MARGIN_EDGES[1]:
        return margin / MARGIN_EDGES[1]
    per_power = 1 / math.log10(MARGIN_EDGES[2] / MARGIN_EDGES[1])
    return 1 + math.log10(margin / MARGIN_EDGES[1]) * per_power


_COLUMNS = (Column("margin from"), Column("to"), Column("pixels"), Column("benign flips"), Column("real flips"))
