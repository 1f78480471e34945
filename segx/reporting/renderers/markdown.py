"""Documents as GitHub-flavoured Markdown with all foreign text escaped, and as GitHub Actions shows them."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import assert_never

from segx.reporting.bench_document import troubles
from segx.reporting.document import Block, Bullets, Card, Chart, Command, Document, Facts, Paragraph, Section, Table
from segx.results.types import Results, Status
from segx.system.files import output_errors
from segx.system.text import padded, printable, width

# What begins a mark anywhere in a line: emphasis, code, links, HTML, cells, strikes, formulas. An underscore within a
# word is none, nor is an ampersand that begins no entity.
_MARKS = re.compile(r"[\\`*\[\]<|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])")
# Addresses become links by themselves; the place to break them is before what makes them one.
_ADDRESSES = re.compile(r"(?<=http):(?=/)|(?<=https):(?=/)|(?<=ftp):(?=/)|(?<=www)\.", re.IGNORECASE)
# What makes a line more than a line of text if it begins so: headings, quotes, lists, rules.
_FIRST = re.compile(r"(?:(?P<number>\d{1,9})(?=[.)](?: |$))|(?=[#>]|[-+=]+(?: |$)))")

# GitHub shows nothing of a longer summary of one step.
# https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands#step-isolation-and-limits
SUMMARY_LIMIT_BYTES = 2**20
# Annotations of each kind that GitHub shows for one step.
_MOST_ANNOTATIONS = 10

_SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"

# What a machine lacks is a warning; what went wrong is an error.
_WARNINGS: frozenset[Status] = frozenset({"unavailable", "out of memory"})


def to_markdown(document: Document) -> str:
    """Render a document, the most important first; sections of details are folded."""
    lead = [_section(section) for section in document.sections if section.lead]
    others = [_section(section) for section in document.sections if not section.lead]
    facts = _block(Facts(document.facts)) if document.facts else ""
    return "\n\n".join(filter(None, [f"# {escaped(document.title)}", *lead, facts, *others])) + "\n"


def _section(section: Section) -> str:
    """Return the blocks of a section below its heading; folded if they are details."""
    blocks = "\n\n".join(filter(None, map(_block, section.blocks)))
    if section.detail:
        return details(section.title, blocks)
    return f"## {escaped(section.title)}\n\n{blocks}" if section.title else blocks


def _block(block: Block) -> str:  # noqa: PLR0911  # one form per kind
    match block:
        case Table():
            return _table(block)
        case Command():
            return code(block.text)
        case Card():
            return _card(block)
        case Facts():
            lines = "\n".join(f"- **{cell(label)}**: {cell(value)}" for label, value in block.pairs)
            return f"{escaped(block.title)}:\n\n{lines}" if block.title else lines
        case Bullets():
            lines = "\n".join(f"- {escaped(item)}" for item in block.items)
            return f"{escaped(block.lead)}\n\n{lines}" if block.lead else lines
        case Paragraph():
            if block.style == "warning":
                return f"> **Warning**: {cell(block.text)}"
            return f"**{escaped(block.text)}**" if block.style == "strong" else escaped(block.text)
        case Chart():
            return ""  # only a page shows charts
        case _:
            assert_never(block)


def _card(card: Card) -> str:
    use = f"**Use {cell(card.variant)}, {card.batch}**: {cell(', '.join(card.figures))}. {cell(card.gain.text)}."
    facts, more = ([f"- {cell(label)}: {cell(told)}" for label, told in pairs] for pairs in (card.facts, card.more))
    options = [
        f"- For {cell(option.purpose)}: {cell(option.variant)}, {option.batch}: {cell(', '.join(option.figures[:2]))}"
        for option in card.options
    ]
    command = ["", code(card.command)] if card.command else []
    folded = ["", details("More about this choice", "\n".join(more))] if more else []
    return "\n".join([use, "", *facts, *options, *command, *folded])


def _table(block: Table) -> str:
    """Return a table with its caption and notes."""
    flat = block.flat()
    left = [place for place, column in enumerate(flat.columns) if not column.numeric]
    rows = [[datum.text for datum in row] for row in flat.rows]
    notes = "\n".join(f"- {escaped(note)}" for note in block.notes)
    shown = table([column.title for column in flat.columns], rows, left=left)
    return "\n\n".join(filter(None, (escaped(block.caption), shown, notes)))


def escaped(text: str) -> str:
    """Escape text for a line of its own, in which nothing may be taken for Markdown, HTML or a link."""
    line = cell(text)
    first = _FIRST.match(line)
    return f"{line[: first.end()]}\\{line[first.end() :]}" if first else line


def cell(text: str) -> str:
    """Escape text within a line or a cell, in which nothing may be taken for Markdown, HTML or the end of the cell."""
    return _ADDRESSES.sub(r"\\\g<0>", _MARKS.sub(r"\\\g<0>", printable(text)))


def code(text: str) -> str:
    """Return a fenced block of code, with more backticks than the text holds."""
    line = printable(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", line)), default=0))
    return f"{fence}sh\n{line}\n{fence}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """Return a table, aligned in the source too; cells are plain text, the columns in ``left`` are flush left."""
    cells = [[cell(text) for text in row] for row in (titles, *rows)]
    if any(len(row) != len(titles) for row in cells):
        raise ValueError(f"a row does not fit under {len(titles)} titles")
    widths = [max(3, *(width(row[i]) for row in cells)) for i in range(len(titles))]
    rule = [f"{'-' * (columns - (i not in left))}{'' if i in left else ':'}" for i, columns in enumerate(widths)]

    def line(row: Sequence[str]) -> str:
        return f"| {' | '.join(padded(text, widths[i], left=i in left) for i, text in enumerate(row))} |"

    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def details(summary: str, body: str) -> str:
    """Return Markdown that is folded until the reader opens it."""
    return f"<details>\n<summary>{html.escape(printable(summary), quote=False)}</summary>\n\n{body}\n\n</details>"


# GitHub Actions


def summary(document: Document, limit_bytes: int = SUMMARY_LIMIT_BYTES) -> str:
    """Render a document without its longest sections, as many as exceed the limit; the text then names them.

    The leading section is left out last, before it those without a title, such as warnings.
    """
    left_out: list[str] = []
    text = to_markdown(document)
    while len(text.encode()) > limit_bytes and document.sections:
        longest = max(
            document.sections, key=lambda each: (not each.lead, bool(each.title), len(_section(each).encode()))
        )
        document = document.without(longest.key)
        left_out += filter(None, [longest.title])
        text = to_markdown(document) + f"\n*Left out, as GitHub shows at most 1 MiB: {', '.join(left_out)}.*\n"
    return text


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
    return f"::{command} title={_percent_encoded(printable(title), ':,')}::{_percent_encoded(lines)}"


def _percent_encoded(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def summary_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the file for the job summary; None outside of GitHub Actions."""
    path = (os.environ if environment is None else environment).get(_SUMMARY_VARIABLE)
    return Path(path) if path else None


def append(path: Path, text: str) -> None:
    """Add to the job summary, below what earlier commands of the step wrote.

    Raises:
        OutputError: the file cannot be written.
    """
    with output_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(text if stream.tell() == 0 else f"\n\n{text}")
