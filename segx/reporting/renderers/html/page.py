"""Render documents, charts and pictures as one self-contained HTML file."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from segx import __version__
from segx.analysis.capacity import CapacityPlan
from segx.analysis.compare import SideBySide
from segx.analysis.history import History
from segx.analysis.recommend import Constraints
from segx.errors import ResultsError
from segx.reporting.bench_document import bench_document
from segx.reporting.capacity_document import plan_section
from segx.reporting.columns import machine_name
from segx.reporting.document import Block, Card, Chart, Document, Paragraph, Section, Table
from segx.reporting.prose import caution
from segx.reporting.renderers.html.charts import Series, measured_series
from segx.reporting.renderers.html.distribution import distribution_charts
from segx.reporting.renderers.html.pictures import Gallery, gallery
from segx.reporting.renderers.html.runs import compare_chart, compare_styles, history_chart, history_styles
from segx.reporting.renderers.html.speed import (
    cost_chart,
    memory_chart,
    roofline_chart,
    throughput_chart,
    waiting_chart,
)
from segx.reporting.renderers.html.startup import startup_charts
from segx.reporting.renderers.html.theme import DARK, LIGHT, OVERLAYS, LineStyle
from segx.reporting.runs_document import history_document, side_by_side_document
from segx.results.pictures import ParityPicture, load_pictures
from segx.results.types import Results
from segx.system.files import write_text
from segx.system.text import printable

logger = logging.getLogger(__name__)

NAME = "report.html"

_SCRIPTS = ("report.js", "pictures.js")
_PLOTLY = "plotly-basic.min.js"  # as published: scatter, bar and pie
_MOST_LABELS = 4
# Columns of the masks with a higher number do not fit.
_MOST_OPTIONAL = 4


def write_bench_page(results: Results, folder: Path, output: Path, *, constraints: Constraints | None = None) -> None:
    """Write the page of a bench whose pictures are in ``folder``.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(output, bench_page(results, constraints=constraints, pictures=pictures_in(folder)))


def pictures_in(folder: Path) -> Sequence[ParityPicture]:
    """Return the pictures of a bench; none, and a warning, if they are damaged."""
    try:
        return load_pictures(folder)
    except ResultsError as error:
        logger.warning("no pictures in the report: %s; %s", error.message, error.hint)
        return ()


def bench_page(
    results: Results,
    *,
    constraints: Constraints | None = None,
    pictures: Sequence[ParityPicture] = (),
    plan: CapacityPlan | None = None,
) -> str:
    """Return the page of a bench, complete or not, as HTML; with a ``plan`` made of it, if there is one."""
    document = bench_document(results, constraints)
    series, said = measured_series(results), document.blocks("decision")
    doubts = [block for block in said if isinstance(block, Paragraph) and block.style == "warning"]
    card = [block for block in said if isinstance(block, Card)]
    shown = gallery(pictures, card[0].variant if card else "")
    details = _details(series, results)
    sections = (
        Section(
            key="decision",
            title="Recommendation",
            blocks=(*card, *(block for block in said if block not in (*doubts, *card))),
        ),
        *([plan_section(plan, results)] if plan else []),
        Section(key="variants", title="All variants", blocks=_variants(document)),
        *_sections(waiting_chart(series, results, constraints.max_latency_s if constraints else None)),
        Section(key="pipeline", title="From image file to mask file", blocks=document.blocks("pipeline")),
        Section(key="masks", title="Masks", blocks=_masks(document, results, shown)),
        *details,
        Section(key="all", title="All results", blocks=document.blocks("all"), detail=True),
        Section(
            key="reproduce",
            title="Reproduce",
            blocks=document.blocks("reproduce", "environment", "notes"),
            detail=True,
        ),
    )
    disturbed = next((section for section in details if section.key == "drift"), None)
    notices = [(block.text, disturbed if block.text == caution(results) else None) for block in doubts]
    if not results.complete:
        notices.insert(0, ("Not complete: this page shows what was measured before the bench was interrupted.", None))
    return _page(
        Document.of(document.title, document.facts, sections),
        title=f"What to deploy for {Path(results.model.name).stem} on {machine_name(results)}",
        styles={one.name: one.style for one in series},
        notices=notices,
        pictures=shown,
    )


def _variants(document: Document) -> tuple[Block, ...]:
    """Return a row per variant, which opens its batch sizes, and below what was not measured."""
    sizes = next((block for block in document.blocks("variants") if isinstance(block, Table)), None)
    rows = [
        dataclasses.replace(
            block, opens={i: of_row for i, row in enumerate(block.rows) if (of_row := sizes.of_group(row[0].text))}
        )
        for block in document.blocks("overview")
        if isinstance(block, Table) and sizes
    ]
    failed = document.section("not-measured")
    for block in failed.blocks if failed else ():
        rows += [dataclasses.replace(block, caption=failed.title)] if failed and isinstance(block, Table) else []
    return tuple(rows)


def _masks(document: Document, results: Results, pictures: Gallery) -> tuple[Block, ...]:
    """Return a row per variant, with as many columns as fit; the others are in all results."""
    tables = [block.narrowed(_MOST_OPTIONAL) for block in document.blocks("masks") if isinstance(block, Table)]
    judged = [cell.parity for cell in results.cells if cell.parity]
    if any(parity.flipped_pixels for parity in judged):
        told = "" if pictures.views else "This bench kept no pictures of its masks."
    else:
        told = f"All masks are identical to those of {results.reference}." if judged else "No masks were judged."
    return (*tables, *([Paragraph(told)] if told else []))


def _details(series: Sequence[Series], results: Results) -> list[Section]:
    if not series:
        return []
    start = Section(key="start", title="Start-up", blocks=tuple(startup_charts(series, results)), detail=True)
    return [
        *_sections(throughput_chart(series, results), memory_chart(series), cost_chart(series), detail=True),
        *([start] if start.blocks else []),
        *_sections(*distribution_charts(series, results), roofline_chart(series, results), detail=True),
    ]


def _sections(*charts: Chart | None, detail: bool = False) -> list[Section]:
    return [Section(key=chart.key, title=chart.title, blocks=(chart,), detail=detail) for chart in charts if chart]


def compare_page(compared: SideBySide) -> str:
    """Return the page of several runs side by side as HTML."""
    labels = " / ".join(run.label for run in compared.runs[:_MOST_LABELS])
    more = len(compared.runs) - _MOST_LABELS
    document = _with_charts(side_by_side_document(compared), {"speed": compare_chart(compared)})
    return _page(document, title=f"{labels} and {more} more" if more > 0 else labels, styles=compare_styles(compared))


def history_page(history: History) -> str:
    """Return the page of a history as HTML."""
    styles = history_styles(history)
    charts = {
        f"group-{place}": history_chart(place, group, styles) for place, group in enumerate(history.groups, start=1)
    }
    document = _with_charts(history_document(history), charts)
    return _page(document, title=f"Speed over time: {history.name}", styles=styles)


def _with_charts(document: Document, charts: Mapping[str, Chart | None]) -> Document:
    """Put charts at the top of the sections with these keys."""
    sections = tuple(
        dataclasses.replace(section, blocks=(chart, *section.blocks)) if (chart := charts.get(section.key)) else section
        for section in document.sections
    )
    return dataclasses.replace(document, sections=sections)


def _page(
    document: Document,
    *,
    title: str,
    styles: Mapping[str, LineStyle],
    notices: Sequence[tuple[str, Section | None]] = (),
    pictures: Gallery | None = None,
) -> str:
    """Render a document; the page loads nothing, and its policy allows its own two scripts only.

    The ``notices`` cast doubt on the figures, each with the section that shows more, if there is one.
    """
    open_charts = [chart for section in document.sections if not section.detail for chart in section.charts]
    charts = [chart for section in document.sections for chart in section.charts]
    charts += [pictures.margins] if pictures and pictures.margins else []
    script = "\n".join(map(_file, _SCRIPTS))
    data = {
        chart.key: {"title": chart.title, "data": chart.data, "frames": chart.frames, "layout": chart.layout}
        for chart in charts
    }
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            css=Markup(_css()),
            data={"theme": {"light": LIGHT, "dark": DARK}, "charts": data},
            document=document,
            legend=open_charts[0].key if open_charts else "",
            notices=notices,
            pictures=pictures,
            plotly=_packed_plotly(),
            policy=_policy(_file(_PLOTLY), script),
            script=Markup(script),
            styles=styles,
            title=title,
            version=__version__,
        )
    )


def _css() -> str:
    """Return the style sheet with the colours of both themes; print is light."""
    overlays, light, dark = (
        " ".join(f"--{name}: {value};" for name, value in theme.items()) for theme in (OVERLAYS, LIGHT, DARK)
    )
    themes = f":root {{ color-scheme: light dark; {overlays} {light} }}\n"
    themes += f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    return themes + _file("report.css")


@cache
def _packed_plotly() -> str:
    """Return Plotly as base64 of gzip, 0.5 MB instead of 1.2; the page unpacks it."""
    return base64.b64encode(gzip.compress(_file(_PLOTLY).encode(), mtime=0)).decode()


def _policy(*scripts: str) -> str:
    """Return a content security policy that allows these scripts and loads nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _file(name: str) -> str:
    return (resources.files("segx.reporting.renderers.html") / "templates" / name).read_text(encoding="utf-8")


def _printable(value: Any) -> Any:
    """Return a text as the other forms print it, or data with such texts; spaces at their ends stay."""
    match value:
        case Markup():
            return value
        case str() if not (value.isascii() and value.isprintable()):
            inner = value.strip(" ")
            return value.replace(inner, printable(inner))
        case dict():
            return {_printable(key): _printable(each) for key, each in value.items()}
        case list() | tuple():
            return [_printable(each) for each in value]
    return value


def _to_json(data: Any, **options: Any) -> str:
    return json.dumps(_printable(data), **options)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.policies["json.dumps_function"] = _to_json
    # The frames of a chart are shown in their order, not in that of the alphabet.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment
