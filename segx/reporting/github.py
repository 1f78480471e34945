"""Results for GitHub Actions: a job summary, and workflow commands that make failures annotations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from segx.analysis.decision import Constraints, Decision, decide
from segx.reporting import markdown
from segx.reporting.columns import Trouble, troubles
from segx.reporting.markdown_text import cell
from segx.reporting.prose import pick_sentences, sentences
from segx.results.types import Results, Status
from segx.system.files import output_errors
from segx.system.text import printable

# What GitHub takes for the summary of one step; more, and it shows none of it.
# https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands#step-isolation-and-limits
SUMMARY_LIMIT_BYTES = 2**20
# Annotations of each kind that GitHub shows for one step.
_MOST_ANNOTATIONS = 10

_SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
_CUT = "\n\n*The rest is left out: GitHub shows at most 1 MiB. It is whole in `results.json`, and in other formats.*\n"

# What a machine lacks is a warning; what went wrong is an error.
_WARNINGS: frozenset[Status] = frozenset({"unavailable", "out of memory"})


def summary(results: Results, constraints: Constraints | None = None, *, limit_bytes: int = SUMMARY_LIMIT_BYTES) -> str:
    """Markdown: what to deploy, all variants in one table, failures; then the tables of each, while there is room."""
    decided = decide(results, constraints)
    parts = [
        "# segx bench",
        _decision_line(results, decided),
        *markdown.overview_table(results),
        *markdown.failures(results),
        markdown.facts(results),
        "## Why",
        markdown.decision(results, constraints),
        *markdown.mask_part(results),
        *markdown.variant_tables(results),
        *markdown.notes_and_environment(results),
    ]
    return fitted(parts, limit_bytes)


def _decision_line(results: Results, decision: Decision) -> str:
    """What to ship, and how many cells did what, on one line."""
    said = [pick_sentences(pick, decision)[0] for pick in decision.picks] or sentences(decision)[:1]
    counts = Counter(each.status for each in results.cells)
    done = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
    cut = "" if results.complete else ", not complete"
    return f"**{cell(' '.join(said))}** Cells: {done}{cut}."


def fitted(parts: Sequence[str], limit_bytes: int = SUMMARY_LIMIT_BYTES) -> str:
    """Parts one below the other, the last ones left out where all would be more than GitHub shows, and it says so.

    The first part that does not fit keeps as many of its lines as do, unless there is code in it or it is folded: such
    cannot be cut.
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
    """A workflow command per kind of failure: ``::error`` for what went wrong, ``::warning`` for what is missing here.

    Args:
        results: of a bench.
        label: of the run, where there are several.
    """
    commands = []
    found = troubles(results)
    for command in ("error", "warning"):
        wanted = [trouble for trouble in found if (trouble.status in _WARNINGS) == (command == "warning")]
        told = list(_told(wanted))
        if len(told) > _MOST_ANNOTATIONS:
            left = len(told) - _MOST_ANNOTATIONS + 1
            told = [*told[: _MOST_ANNOTATIONS - 1], ("segx", f"{left} more; the job summary has them all")]
        before = f"{label}: " if label else ""
        commands += [workflow_command(command, message, title=before + title) for title, message in told]
    return commands


def _told(found: Sequence[Trouble]) -> Iterator[tuple[str, str]]:
    for trouble in found:
        yield f"{trouble.status}: {trouble.where}", f"{trouble.reason}\n{trouble.remedy}"


def workflow_command(command: str, message: str, *, title: str) -> str:
    """A line that GitHub's runner acts on; nothing in its texts can end it or begin another.

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
    """Where GitHub wants the job summary; None outside of GitHub Actions."""
    path = (os.environ if environment is None else environment).get(_SUMMARY_VARIABLE)
    return Path(path) if path else None


def room_in(path: Path | None) -> int:
    """Bytes that a job summary can still take: commands of the same step may have written to it."""
    taken = path.stat().st_size if path and path.is_file() else 0
    return max(len(_CUT.encode()) + 1, SUMMARY_LIMIT_BYTES - taken - 2)


def append(path: Path, text: str) -> None:
    """Add to the job summary, to which the steps' commands before this one may have written.

    Raises:
        OutputError: the file cannot be written.
    """
    with output_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(text if stream.tell() == 0 else f"\n\n{text}")
