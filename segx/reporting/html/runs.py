"""What pages of several runs have in common: the runs themselves, and lines with an interval at each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segx import __version__
from segx.analysis.side_by_side import Run
from segx.reporting.columns import digits, literal
from segx.reporting.document import BLANK, Column, Datum, Section, Table, text
from segx.reporting.html.charts import Trace, round_off
from segx.reporting.html.page import filled
from segx.reporting.html.speed import images_per_s
from segx.reporting.html.theme import Style
from segx.results.provenance import host_of
from segx.results.types import Cell


def page_of(
    title: str, eyebrow: str, sections: Sequence[Section], styles: Mapping[str, Style], notes: Sequence[str] = ()
) -> str:
    """A page of sections as HTML, which loads nothing from elsewhere.

    Args:
        title: of the page.
        eyebrow: a few words above it.
        sections: at least one.
        styles: how each line is drawn, by the name that its legend has.
        notes: what stands below, a sentence or two each.
    """
    charts = [chart for section in sections for chart in section.charts]
    return filled(
        "runs.html.jinja",
        charts,
        title=title,
        eyebrow=eyebrow,
        version=__version__,
        sections=sections,
        styles=styles,
        notes=notes,
    )


def run_line(
    *, name: str, group: str, style: Style, x: Sequence[object], cells: Sequence[Cell], hover: Sequence[str]
) -> Trace:
    """Images per second of some cells as a line, with their 95 % intervals.

    Args:
        name: of the line.
        group: what hides and shows it.
        style: how it is drawn.
        x: where each cell stands.
        cells: measured ones.
        hover: what is told about each; text, not markup, but for ``<b>`` and ``<br>``.
    """
    rates = [round_off(1 / cell.seconds_per_image) for cell in cells]
    ends = [images_per_s(cell) or (rate, rate) for cell, rate in zip(cells, rates, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": literal(name),
        "legendgroup": group,
        "x": list(x),
        "y": rates,
        "hovertext": list(hover),
        "hoverinfo": "text",
        "line": {"color": style.color, "dash": style.dash, "width": 2},
        "marker": {"color": style.color, "symbol": style.symbol, "size": 9},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [round_off(high - rate) for rate, (_, high) in zip(rates, ends, strict=True)],
            "arrayminus": [round_off(rate - low) for rate, (low, _) in zip(rates, ends, strict=True)],
            "thickness": 1.4,
            "width": 5,
        },
    }


def rate_text(cell: Cell) -> str:
    """``5.88 images/s (5.71 to 6.02)``."""
    reach = images_per_s(cell)
    interval = f"{digits(reach[0])} to {digits(reach[1])}" if reach else "too few runs for an interval"
    return f"{digits(1 / cell.seconds_per_image)} images/s ({interval})"


def runs_table(names: Sequence[str], runs: Sequence[Run]) -> Table:
    """Which runs they are, under the names that the page has for them."""
    return Table("Runs", _RUN_COLUMNS, tuple(_run_row(*pair) for pair in zip(names, runs, strict=True)))


_RUN_COLUMNS = (
    Column("run", numeric=False),
    Column("name", numeric=False),
    Column("began", numeric=False),
    Column("segx", numeric=False),
    Column("commit", numeric=False),
    Column("machine", numeric=False),
    Column("complete", numeric=False),
)


def _run_row(name: str, run: Run) -> tuple[Datum, ...]:
    results = run.results
    values = (
        name,
        run.label,
        results.created,
        results.segx,
        results.machine.git_commit[:12] or BLANK,
        host_of(results),
        "yes" if results.complete else "no",
    )
    return tuple(map(text, values))
