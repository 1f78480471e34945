"""GitHub-flavoured Markdown: text that stays text, and tables that are aligned in their source too."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from segx.system.text import padded, printable, width

# What begins a mark anywhere in a line: emphasis, code, links, HTML, cells, strikes, formulas. An underscore within a
# word is none, nor is an ampersand that begins no entity.
_MARKS = re.compile(r"[\\`*\[\]<|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])")
# Addresses become links by themselves; the place to break them is before what makes them one.
_ADDRESSES = re.compile(r"(?<=http):(?=/)|(?<=https):(?=/)|(?<=ftp):(?=/)|(?<=www)\.", re.IGNORECASE)
# What makes a line more than a line of text where it begins so: headings, quotes, lists, rules.
_FIRST = re.compile(r"(?:(?P<number>\d{1,9})(?=[.)](?: |$))|(?=[#>]|[-+=]+(?: |$)))")


def escaped(text: str) -> str:
    """Text for a line of its own, in which nothing is taken for Markdown, HTML or a link."""
    line = cell(text)
    first = _FIRST.match(line)
    return f"{line[: first.end()]}\\{line[first.end() :]}" if first else line


def cell(text: str) -> str:
    """Text for within a line or a table's cell, in which nothing is taken for Markdown, HTML or the end of the cell."""
    marked = _MARKS.sub(_behind_backslash, printable(text))
    return _ADDRESSES.sub(_behind_backslash, marked)


def _behind_backslash(mark: re.Match[str]) -> str:
    return f"\\{mark[0]}"


def code(text: str) -> str:
    """Text as code on a line of its own, fenced by more backticks than it holds."""
    line = printable(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", line)), default=0))
    return f"{fence}sh\n{line}\n{fence}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """A table whose columns are flush right, those in ``left`` flush left; cells are text, and are escaped."""
    cells = [[cell(text) for text in row] for row in (titles, *rows)]
    if any(len(row) != len(titles) for row in cells):
        raise ValueError(f"a row does not fit under {len(titles)} titles")
    widths = [max(3, *(width(row[i]) for row in cells)) for i in range(len(titles))]
    rule = [f"{'-' * (columns - (i not in left))}{'' if i in left else ':'}" for i, columns in enumerate(widths)]

    def line(row: Sequence[str]) -> str:
        return f"| {' | '.join(padded(text, widths[i], left=i in left) for i, text in enumerate(row))} |"

    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def details(summary: str, body: str) -> str:
    """A part that is folded until it is asked for; ``body`` is Markdown."""
    return f"<details>\n<summary>{escaped_html(summary)}</summary>\n\n{body}\n\n</details>"


def escaped_html(text: str) -> str:
    """Text on one line, for between HTML tags."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
