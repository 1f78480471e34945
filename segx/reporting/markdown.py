"""Documents as GitHub-flavoured Markdown, in which all foreign text is escaped."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from segx.reporting.document import Block, Bullets, Card, Command, Document, Facts, Paragraph, Section, Table
from segx.system.text import padded, printable, width

# What begins a mark anywhere in a line: emphasis, code, links, HTML, cells, strikes, formulas. An underscore within a
# word is none, nor is an ampersand that begins no entity.
_MARKS = re.compile(r"[\\`*\[\]<|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])")
# Addresses become links by themselves; the place to break them is before what makes them one.
_ADDRESSES = re.compile(r"(?<=http):(?=/)|(?<=https):(?=/)|(?<=ftp):(?=/)|(?<=www)\.", re.IGNORECASE)
# What makes a line more than a line of text if it begins so: headings, quotes, lists, rules.
_FIRST = re.compile(r"(?:(?P<number>\d{1,9})(?=[.)](?: |$))|(?=[#>]|[-+=]+(?: |$)))")


def to_markdown(document: Document) -> str:
    """Render a document; sections of details are folded."""
    return joined(parts(document))


def parts(document: Document) -> list[str]:
    """Return the blocks of a document, the most important first."""
    head = [f"# {escaped(document.title)}"]
    sections = [part for section in document.sections for part in section_parts(section)]
    facts = [_block(Facts(document.facts))] if document.facts else []
    lead = sum(len(section_parts(section)) for section in document.sections if section.lead)
    return [*head, *sections[:lead], *facts, *sections[lead:]]


def joined(blocks: Sequence[str]) -> str:
    """Join blocks of Markdown with empty lines."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def section_parts(section: Section) -> list[str]:
    """Return the blocks of a section, below its heading; folded into one if they are details."""
    blocks = [_block(block) for block in section.blocks]
    if section.detail:
        return [details(section.title, "\n\n".join(blocks))]
    return [f"## {escaped(section.title)}", *blocks] if section.title else blocks


def _block(block: Block) -> str:  # noqa: PLR0911  # one form per kind
    match block:
        case Table():
            return _table(block)
        case Command():
            return code(block.text)
        case Card():
            body = f"- **{escaped(block.lead)}** {escaped(' '.join((*block.reasons, *block.changes)))}"
            command = [f"  {line}" for line in code(block.command).splitlines()] if block.command else []
            return "\n".join([body, *([""] if command else []), *command])
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
        case _:
            return ""  # charts are for pages


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
    marked = _MARKS.sub(_behind_backslash, printable(text))
    return _ADDRESSES.sub(_behind_backslash, marked)


def _behind_backslash(mark: re.Match[str]) -> str:
    return f"\\{mark[0]}"


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
    title = printable(summary).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"
