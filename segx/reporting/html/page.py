"""Render documents, charts and pictures as one self-contained HTML file."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from segx import __version__
from segx.analysis.compare import SideBySide
from segx.analysis.history import History
from segx.analysis.recommend import Constraints
from segx.errors import ResultsError
from segx.reporting.bench_document import bench_document
from segx.reporting.document import Block, Chart, Document, Section
from segx.reporting.html.charts import measured_series
from segx.reporting.html.distribution import distribution_charts
from segx.reporting.html.pictures import Gallery, gallery
from segx.reporting.html.runs import compare_chart, compare_styles, history_chart, history_styles
from segx.reporting.html.speed import cost_chart, latency_chart, memory_chart, roofline_chart, throughput_chart
from segx.reporting.html.startup import startup_charts
from segx.reporting.html.theme import DARK, LIGHT, OVERLAYS, LineStyle
from segx.reporting.runs_document import history_document, side_by_side_document
from segx.results.pictures import ParityPicture, load_pictures
from segx.results.types import Results
from segx.system.files import write_text

logger = logging.getLogger(__name__)

NAME = "report.html"

_SCRIPTS = ("report.js", "pictures.js")
_MOST_LABELS = 4
# The page shows the overview as charts and the tables per variant as one that sorts.
_OMITTED = ("overview", "variants")


def write_bench_page(results: Results, folder: Path, output: Path, *, constraints: Constraints | None = None) -> None:
    """Write the page of a bench whose pictures are in ``folder``, with a warning instead of pictures if damaged.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        pictures = load_pictures(folder)
    except ResultsError as error:
        logger.warning("no pictures in the report: %s; %s", error.message, error.hint)
        pictures = ()
    write_text(output, bench_page(results, constraints=constraints, pictures=pictures))


def bench_page(
    results: Results, *, constraints: Constraints | None = None, pictures: Sequence[ParityPicture] = ()
) -> str:
    """Return the page of a bench, complete or not, as HTML."""
    document = bench_document(results, constraints).without(*_OMITTED)
    decision, others = document.sections[:1], document.sections[1:]
    if not document.section("masks"):
        others = (Section(key="masks", title="Masks"), *others)
    sections = (*decision, *_chart_sections(results, constraints), *others)
    return _page(
        dataclasses.replace(document, sections=sections),
        title=f"Deploying {results.model.name} on {results.machine.cpu}",
        styles={one.name: one.style for one in measured_series(results)},
        notice="" if results.complete else "The bench was interrupted; this page shows what was measured until then.",
        pictures=gallery(pictures),
    )


def _chart_sections(results: Results, constraints: Constraints | None) -> list[Section]:
    series = measured_series(results)
    if not series:
        return []
    limit = constraints.max_latency_s if constraints else None
    charts: dict[tuple[str, str], Sequence[Chart | None]] = {
        ("speed", "Speed"): (
            throughput_chart(series, results),
            latency_chart(series, results, limit),
            roofline_chart(series, results),
        ),
        ("calls", "Single calls"): distribution_charts(series, results),
        ("batching", "Batching and memory"): (cost_chart(series), memory_chart(series)),
        ("startup", "Startup"): startup_charts(series, results),
    }
    sections = [
        Section(key=key, title=title, blocks=tuple(filter(None, found))) for (key, title), found in charts.items()
    ]
    return [section for section in sections if section.blocks]


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
    return _page(document, title=f"Speed over time: {history.folder.name or history.folder}", styles=styles)


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
    notice: str = "",
    pictures: Gallery | None = None,
) -> str:
    """Render a document; the page loads nothing, and its policy allows its own two scripts only."""
    charts = [chart for section in document.sections for chart in section.charts]
    charts += pictures.charts if pictures else []
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
            notice=notice,
            pictures=pictures,
            plotly=_packed_plotly(),
            policy=_policy(get_plotlyjs(), script),
            script=Markup(script),
            styles=styles,
            title=title,
            version=__version__,
        )
    )


def _by_kind(blocks: Sequence[Block]) -> list[tuple[str, list[Block]]]:
    """Return consecutive blocks of the same type together, with its name."""
    return [(kind.__name__, list(found)) for kind, found in itertools.groupby(blocks, type)]


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
    """Return Plotly as base64 of gzip, 2 MB instead of 5; the page unpacks it."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _policy(*scripts: str) -> str:
    """Return a content security policy that allows these scripts and loads nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _file(name: str) -> str:
    return (resources.files("segx.reporting.html") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["by_kind"] = _by_kind
    # The frames of a chart are shown in their order, not in that of the alphabet.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment
