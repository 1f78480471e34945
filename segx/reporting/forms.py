"""One bench, or several side by side, in a form that is asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from segx.analysis.decision import Constraints
from segx.analysis.side_by_side import labelled, side_by_side
from segx.reporting import compare_document, github
from segx.reporting.bench_document import to_text
from segx.reporting.data import to_csv
from segx.reporting.markdown import to_markdown
from segx.reporting.terminal import Terminal
from segx.results.store import to_json
from segx.results.types import Results

Form = Literal["text", "markdown", "csv", "json"]


def written(
    loaded: Sequence[tuple[Path, Results]], form: Form, terminal: Terminal, constraints: Constraints | None = None
) -> str:
    """Results as text of a form.

    Args:
        loaded: folder or file, and what was in it; several stand side by side.
        form: which.
        terminal: that text is for.
        constraints: that the choice has to meet; of one bench, as text and Markdown.
    """
    if len(loaded) > 1:
        compared = side_by_side(labelled(loaded))
        if form == "text":
            return compare_document.to_text(compared, terminal)
        forms = compare_document
        return {"markdown": forms.to_markdown, "csv": forms.to_csv, "json": forms.to_json}[form](compared)
    ((_, results),) = loaded
    if form == "text":
        return to_text(results, terminal, constraints)
    if form == "markdown":
        return to_markdown(results, constraints)
    return to_csv(results) if form == "csv" else to_json(results)


def job_summary(
    loaded: Sequence[tuple[Path, Results]], constraints: Constraints | None = None, *, limit_bytes: int
) -> tuple[str, list[str]]:
    """Markdown for GitHub's job summary, and the workflow commands that make annotations."""
    if len(loaded) > 1:
        runs = labelled(loaded)
        text = github.fitted(compare_document.markdown_parts(side_by_side(runs)), limit_bytes)
        return text, [command for run in runs for command in github.workflow_commands(run.results, run.label)]
    ((_, results),) = loaded
    text = github.summary(results, constraints, limit_bytes=limit_bytes)
    return text, github.workflow_commands(results)
