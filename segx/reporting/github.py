"""Results for GitHub Actions: a job summary, and workflow commands that turn failures into annotations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from segx.analysis.recommend import Constraints
from segx.reporting import markdown
from segx.reporting.bench_document import bench_document, troubles
from segx.reporting.document import Card, Paragraph
from segx.results.types import Results, Status
from segx.system.files import output_errors
from segx.system.text import printable

# GitHub shows nothing of a longer summary of one step.
# https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands#step-isolation-and-limits
SUMMARY_LIMIT_BYTES = 2**20
# Annotations of each kind that GitHub shows for one step.
_MOST_ANNOTATIONS = 10

_SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
_CUT = "\n\n*The rest is left out: GitHub shows at most 1 MiB. All of it is in `results.json`, and other formats.*\n"

# What a machine lacks is a warning; what went wrong is an error.
_WARNINGS: frozenset[Status] = frozenset({"unavailable", "out of memory"})


def summary(results: Results, constraints: Constraints | None = None, *, limit_bytes: int = SUMMARY_LIMIT_BYTES) -> str:
    """Return a job summary: what to deploy, all variants, failures, then the details as far as there is room."""
    document = bench_document(results, constraints).without("all")
    decision = next(section for section in document.sections if section.lead)
    leads = [block.lead for block in decision.blocks if isinstance(block, Card)]
    leads += [block.text for block in decision.blocks if isinstance(block, Paragraph)]
    counts = Counter(each.status for each in results.cells)
    done = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
    cut = "" if results.complete else ", not complete"
    first = f"**{markdown.cell(' '.join(leads))}** Cells: {done}{cut}."
    head, *rest = markdown.parts(document.without("decision", "overview", "not-measured"))
    top = (section for key in ("overview", "not-measured") if (section := document.section(key)))
    shown = [part for section in top for part in markdown.section_parts(section)]
    return fitted([head, first, *shown, *markdown.section_parts(decision), *rest], limit_bytes)


def fitted(parts: Sequence[str], limit_bytes: int = SUMMARY_LIMIT_BYTES) -> str:
    """Join blocks of Markdown, without the last ones if all would exceed the limit; the text then says so.

    The first block that does not fit keeps as many of its lines as do, unless it holds code or is folded.
    """
    whole = markdown.joined(parts)
    if len(whole.encode()) <= limit_bytes:
        return whole
    room = limit_bytes - len(_CUT.encode())
    kept: list[str] = []
    for part in parts:
        taken = len("\n\n".join([*kept, part]).encode()) + 1
        if taken > room:
            kept.append(_first_lines(part, room - (taken - len(part.encode()))))
            break
        kept.append(part)
    return "\n\n".join(part for part in kept if part) + _CUT


def _first_lines(part: str, room: int) -> str:
    if part.startswith("<") or "```" in part:
        return ""
    lines: list[str] = []
    for line in part.splitlines():
        room -= len(line.encode()) + 1
        if room < 0:
            break
        lines.append(line)
    return "\n".join(lines)


def workflow_commands(results: Results, label: str = "") -> list[str]:
    """Return a command per kind of failure: ``::error`` for what went wrong, ``::warning`` for what is missing here."""
    commands = []
    found = troubles(results)
    before = f"{label}: " if label else ""
    for command in ("error", "warning"):
        wanted = [trouble for trouble in found if (trouble.status in _WARNINGS) == (command == "warning")]
        shown = [(f"{each.status}: {each.where}", f"{each.reason}\n{each.remedy}") for each in wanted]
        if len(shown) > _MOST_ANNOTATIONS:
            left = len(shown) - _MOST_ANNOTATIONS + 1
            shown = [*shown[: _MOST_ANNOTATIONS - 1], ("segx", f"{left} more; the job summary has them all")]
        commands += [workflow_command(command, message, title=before + title) for title, message in shown]
    return commands


def workflow_command(command: str, message: str, *, title: str) -> str:
    """Return a line that GitHub's runner acts on; nothing in its texts can end it or begin another.

    Source: https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands, and the runner's
    ``ActionCommand.cs``: % and line ends are escaped everywhere, colons and commas in properties too.
    """
    lines = "\n".join(printable(line) for line in message.split("\n"))
    return f"::{command} title={_escaped(printable(title), ':,')}::{_escaped(lines)}"


def _escaped(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def summary_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the file for the job summary; None outside of GitHub Actions."""
    path = (os.environ if environment is None else environment).get(_SUMMARY_VARIABLE)
    return Path(path) if path else None


def room_in(path: Path | None) -> int:
    """Return the bytes that a job summary can still take: earlier commands of the step may have written to it."""
    taken = path.stat().st_size if path and path.is_file() else 0
    return max(len(_CUT.encode()) + 1, SUMMARY_LIMIT_BYTES - taken - 2)


def append(path: Path, text: str) -> None:
    """Add to the job summary, below what earlier commands of the step wrote.

    Raises:
        OutputError: the file cannot be written.
    """
    with output_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(text if stream.tell() == 0 else f"\n\n{text}")
