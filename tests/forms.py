"""Reports of a bench in each form, as the commands make them."""

from __future__ import annotations

from segx.analysis.recommend import Constraints
from segx.reporting.bench_document import bench_document, terminal_document
from segx.reporting.renderers import csv_json, markdown, text
from segx.results.types import Results


def to_text(
    results: Results,
    columns: int = 80,
    constraints: Constraints | None = None,
    *,
    details: bool = False,
) -> str:
    document = terminal_document(results, constraints, details=details)
    return text.to_text(document, columns=columns)


def with_details(results: Results) -> str:
    return to_text(results, details=True)


def to_markdown(results: Results, constraints: Constraints | None = None) -> str:
    return markdown.to_markdown(bench_document(results, constraints).without("all"))


def to_csv(results: Results) -> str:
    return csv_json.to_csv(csv_json.bench_rows(results))
