"""The page: results in, one self-contained HTML file out. Owns Jinja2 and the plotting library."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from segx.analysis.decision import Constraints, decide
from segx.reporting.bench_document import bench_document
from segx.reporting.document import Block, Chart, Column, Document, Facts, Section, Table, text
from segx.reporting.html.ceiling import ceiling
from segx.reporting.html.charts import Measured, measured
from segx.reporting.html.cost import cost_curve
from segx.reporting.html.distribution import distribution, drift
from segx.reporting.html.memory import memory
from segx.reporting.html.pictures import gallery
from segx.reporting.html.speed import speed
from segx.reporting.html.startup import cold_start, paid_for
from segx.reporting.html.theme import BENIGN, DARK, LIGHT, REAL, REFERENCE, VARIANT
from segx.reporting.prose import cards, exclusions, limits, notes
from segx.results.pictures import ParityPicture
from segx.results.types import Results

_SCRIPTS = ("report.js", "pictures.js")


def render(results: Results, *, constraints: Constraints | None = None, pictures: Sequence[ParityPicture] = ()) -> str:
    """The page as HTML: it loads nothing from elsewhere, and runs no script but its own two, whose digests it names.

    Args:
        results: of a bench, complete or not.
        constraints: that the choice has to meet; None for none.
        pictures: of its masks; see ``segx.results.pictures.load_pictures``.
    """
    found = measured(results)
    document = bench_document(results, constraints)
    sections = _sections(results, document, found, constraints.max_latency_s if constraints else None)
    decision = decide(results, constraints)
    shown = gallery(pictures)
    charts = [chart for section in sections for chart in section.charts]
    charts += [view.chart for views in shown.views.values() for view in views]
    return filled(
        "page.html.jinja",
        charts,
        results=results,
        title=f"Deploying {results.model.checkpoint or results.model.onnx} on {results.machine.cpu}",
        facts=_facts(results),
        verdict={
            "cards": cards(decision),
            "limits": limits(decision.constraints),
            "remarks": exclusions(decision),
        },
        gallery=shown,
        sections=sections,
        notes=notes(results),
        styles={str(variant): style for variant, style in found.style.items()},
    )


def filled(template: str, charts: Iterable[Chart], **context: Any) -> str:
    """A template with what every page has: its style, its scripts and policy, and the data of its charts.

    Args:
        template: name of its file.
        charts: all that the page shows.
        **context: what else the template needs.
    """
    script = "\n".join(_file(name) for name in _SCRIPTS)
    return (
        _environment()
        .get_template(template)
        .render(
            data={"theme": {"light": LIGHT, "dark": DARK}, "charts": {chart.key: _drawn(chart) for chart in charts}},
            css=Markup(_css()),
            policy=_policy(get_plotlyjs(), script),
            plotly=_packed_plotly(),
            script=Markup(script),
            **context,
        )
    )


def _sections(results: Results, document: Document, found: Measured, max_latency_s: float | None) -> list[Section]:
    """The parts below the decision, but for those that nothing was measured for."""
    sections = []
    if found.cells:
        sections += [
            Section(
                key="speed",
                title="Speed",
                blocks=_present([*speed(found, results, max_latency_s), ceiling(found, results)]),
            ),
            Section(
                key="samples",
                title="Single calls",
                blocks=(distribution(found, results), drift(found, results)),
            ),
            Section(key="batching", title="Batching and memory", blocks=_present([cost_curve(found), memory(found)])),
            Section(key="start", title="Start", blocks=_present([cold_start(found), paid_for(found, results)])),
        ]
    every = document.section("all")
    cells, *judged = every.tables if every else ()
    if judged:
        sections.append(Section(key="masks", title="Masks", blocks=tuple(judged)))
    sections.append(Section(key="cells", title="All figures", blocks=(cells,)))
    if trouble := document.section("not-measured"):
        sections.append(Section(key="troubles", title="Failures and skips", blocks=trouble.blocks))
    environment = document.section("environment")
    blocks = tuple(map(_pairs, environment.blocks)) if environment else ()
    return [
        *sections,
        Section(key="environment", title="Environment", blocks=blocks),
        Section(key="repeat", title="Repeat it"),
    ]


def _pairs(block: Block) -> Block:
    """Return labelled values as a table."""
    if not isinstance(block, Facts):
        return block
    columns = (Column("what", numeric=False), Column("value", numeric=False))
    return Table(block.title, columns, tuple((text(name), text(value)) for name, value in block.pairs))


def _present(charts: Iterable[Chart | None]) -> tuple[Chart, ...]:
    return tuple(chart for chart in charts if chart)


def _facts(results: Results) -> list[tuple[str, str]]:
    host = results.machine
    devices = [f"{host.cores_usable} of {host.cores_total} processors", *(gpu.name for gpu in host.gpus)]
    return [
        ("Model", str(results.model.spec)),
        ("Machine", f"{host.cpu}, {', '.join(devices)}"),
        ("Images", results.inputs.source),
        ("Measured", f"{results.created.replace('T', ' ').replace('+00:00', ' UTC')}"),
    ]


def _drawn(chart: Chart) -> dict[str, Any]:
    return {"title": chart.title, "data": chart.data, "frames": chart.frames, "layout": chart.layout}


def _css() -> str:
    """The style sheet, with the colours of both themes; paper is light."""
    marks = f"--real: {REAL}; --benign: {BENIGN}; --reference: {REFERENCE}; --variant: {VARIANT};"
    light, dark = (" ".join(f"--{name}: {value};" for name, value in theme.items()) for theme in (LIGHT, DARK))
    themes = f":root {{ color-scheme: light dark; {marks} {light} }}\n"
    themes += f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    return themes + _file("report.css")


@cache
def _packed_plotly() -> str:
    """The plotting library as base64 of gzip: 2 MB instead of 5; the page unpacks it."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _policy(*scripts: str) -> str:
    """A content security policy: nothing from elsewhere, and no script but these."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
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
        keep_trailing_newline=True,
    )
    # By default keys are sorted; the frames of a chart have the order of its choices, and the first is shown first.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment
