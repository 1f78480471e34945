"""Documents as text for a terminal, a pipe or a file."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO, assert_never

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from segx.reporting.document import (
    BLANK,
    Block,
    Bullets,
    Card,
    Chart,
    Command,
    Datum,
    Document,
    Facts,
    Paragraph,
    Section,
    Style,
    Table,
)
from segx.system.text import printable, written_in

_COLUMNS = 80
_FEWEST_COLUMNS = 40
_STYLES: dict[Style, str] = {
    "": "",
    "strong": "bold",
    "good": "green",
    "warning": "yellow",
    "bad": "red",
    "muted": "dim",
}
_GAP = 2
# Columns that a column of words needs at least, in which they are wrapped.
_NARROWEST = 12


def to_text(document: Document, *, columns: int = _COLUMNS, encoding: str = "utf-8", color: bool = False) -> str:
    """Render a document; the leading section comes last, where the eye is after a long run.

    Args:
        document: what to show; sections of details are left out.
        columns: width of the terminal. Only a word of a command, which must stay whole, may exceed it.
        encoding: characters that it lacks are replaced.
        color: whether to style the text with ANSI codes; ``NO_COLOR`` still turns colours off.
    """
    page = _Page(columns, encoding, color)
    parts = [page.rendered(Facts(document.facts))] if document.facts else []
    shown = [section for section in document.sections if not section.detail]
    body, lead = (
        [part for section in shown if section.lead == first for part in page.section(section)]
        for first in (False, True)
    )
    return "\n\n".join(part for part in [*parts, *body, "\n".join(lead)] if part) + "\n"


def to_stream(document: Document, stream: TextIO) -> str:
    """Render a document for a stream: as wide as the terminal or ``COLUMNS`` says, styled only on a terminal."""
    columns = max(_FEWEST_COLUMNS, shutil.get_terminal_size((_COLUMNS, 24)).columns)
    return to_text(document, columns=columns, encoding=stream.encoding or "ascii", color=stream.isatty())


@dataclass(frozen=True)
class _Page:
    columns: int
    encoding: str
    color: bool

    def section(self, section: Section) -> list[str]:
        """Return the blocks of a section as text; the heading stands above the first."""
        first, *rest = [self.rendered(block) for block in section.blocks] or [""]
        head = self._lines(self._text(section.title, "bold")) if section.title else ""
        return ["\n".join(filter(None, (head, first))), *rest]

    def rendered(self, block: Block) -> str:  # noqa: PLR0911  # one form per kind
        """Return a block as lines without trailing blanks."""
        match block:
            case Table():
                return self._table(block)
            case Command():
                return "\n".join(split_command(self._safe(block.text), self.columns))
            case Card():
                return self._card(block)
            case Facts():
                grid = self._grid((True, False))
                for label, value in block.pairs:
                    grid.add_row(self._text(label), self._text(value))
                return self._lines(Group(self._text(block.title, "bold"), grid) if block.title else grid)
            case Bullets():
                grid = self._grid((True, False), gap=1)
                for item in block.items:
                    grid.add_row("-", self._text(item))
                return self._lines(Group(self._text(block.lead), grid) if block.lead else grid)
            case Paragraph():
                mark = "! " if block.style == "warning" else ""
                return self._lines(self._text(mark + block.text, _STYLES[block.style]))
            case Chart():
                return ""  # only a page shows charts
            case _:
                assert_never(block)

    def _card(self, card: Card) -> str:
        use = Text.assemble(
            (self._safe(f"Use {card.variant}, {card.batch}"), "bold green"),
            self._safe(f": {', '.join(card.figures)}. {card.gain}."),
            overflow="fold",
        )
        facts = [Padding(self._text(f"{label}: {told}"), (0, 0, 0, 2)) for label, told in card.facts]
        options = self._grid((True, False))
        for option in card.options:
            told = f"{option.variant}, {option.batch}: {', '.join(option.figures[:2])}"
            options.add_row(self._text(f"For {option.purpose}"), self._text(told))
        parts = [self._lines(Group(use, *facts, Padding(options, (0, 0, 0, 2))))]
        return "\n".join([*parts, *([self.rendered(Command(card.command))] if card.command else [])])

    def _table(self, table: Table) -> str:
        parts = [self._lines(self._text(table.caption, "bold"))] if table.caption else []
        parts += [self._grid_of(table, places) for places in self._split(table, self._fitting(table))]
        return "\n".join([*parts, *(self._lines(self._text(note)) for note in table.notes if note)])

    def _fitting(self, table: Table) -> list[int]:
        """Return the columns to show: without the most optional ones as long as they are too wide together."""
        kept = list(range(len(table.columns)))
        for optional in sorted({column.optional for column in table.columns} - {0}, reverse=True):
            if self._width(table, kept) <= self.columns:
                break
            kept = [place for place in kept if table.columns[place].optional != optional]
        return kept

    def _split(self, table: Table, places: list[int]) -> list[list[int]]:
        """Return the columns of each part: a table still too wide becomes several with the same first column."""
        if any(not column.numeric for column in table.columns[1:]) and not (table.groups or table.messages):
            numeric = [place for place in places if table.columns[place].numeric]
            if self._width(table, numeric) + _NARROWEST * (len(places) - len(numeric)) <= self.columns:
                return [places]
        parts = [[places[0]]]
        for place in places[1:]:
            if len(parts[-1]) > 1 and self._width(table, [*parts[-1], place]) > self.columns:
                parts.append([places[0]])
            parts[-1].append(place)
        return parts

    def _width(self, table: Table, places: Sequence[int]) -> int:
        console = self._console()
        return Measurement.get(console, console.options.update(width=10_000), self._figures(table, places)).maximum

    def _grid_of(self, table: Table, places: Sequence[int]) -> str:
        grid = self._figures(table, places)
        if not table.groups and not table.messages:
            return self._lines(grid)
        for column in grid.columns:
            column.no_wrap = True
        head, *rows = self._lines(grid, keep=True).split("\n")
        lines = [head.rstrip()]
        for place, row in enumerate(rows):
            if place in table.groups:
                lines.append(self._lines(self._heading(table.groups[place])))
            message = f"  {self._lines(self._text(table.messages[place], 'red'))}" if place in table.messages else ""
            lines.append(row.rstrip() + message)
        return "\n".join(lines)

    def _heading(self, parts: Sequence[Datum]) -> Text:
        return Text(written_in(" · ", self.encoding)).join(map(self._datum, parts))

    def _figures(self, table: Table, places: Sequence[int]) -> Grid:
        """Return the columns in these places; a row with a message ends before its first blank."""
        grid = self._grid([not table.columns[place].numeric for place in places], header=True)
        for column, place in zip(grid.columns, places, strict=True):
            column.header = self._text(table.columns[place].title)
            column.no_wrap = table.columns[place].numeric
        if grid.columns and not table.columns[places[0]].numeric:  # names are broken only if there is no room
            words = (word for row in table.rows for word in row[places[0]].text.split())
            grid.columns[0].min_width = min(max(map(len, words), default=0), self.columns // 2)
        for index, row in enumerate(table.rows):
            grid.add_row(
                *(
                    Text() if index in table.messages and datum.text == BLANK else self._datum(datum)
                    for datum in (row[place] for place in places)
                )
            )
        return grid

    def _datum(self, datum: Datum) -> Text:
        return self._text(datum.text, _STYLES[datum.style])

    @staticmethod
    def _grid(left: Sequence[bool], *, gap: int = _GAP, header: bool = False) -> Grid:
        grid = Grid(
            box=None,
            show_header=header,
            header_style="bold" if header else "",
            padding=(0, gap, 0, 0),
            pad_edge=False,
            collapse_padding=True,
        )
        for flush_left in left:
            grid.add_column(justify="left" if flush_left or not header else "right", overflow="fold")
        return grid

    def _text(self, words: str, style: str = "") -> Text:
        return Text(self._safe(words), style=style, overflow="fold")

    def _safe(self, words: str) -> str:
        return written_in(printable(words), self.encoding)

    def _console(self) -> Console:
        return Console(
            file=io.StringIO(),
            width=self.columns,
            force_terminal=self.color,
            color_system="auto" if self.color else None,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
        )

    def _lines(self, content: RenderableType, *, keep: bool = False) -> str:
        console = self._console()
        with console.capture() as captured:
            console.print(content)
        lines = captured.get().rstrip("\n").split("\n")
        return "\n".join(lines if keep else map(str.rstrip, lines))


def split_command(command: str, columns: int, *, indent: str = "  ") -> list[str]:
    r"""Return a shell command as lines that can be pasted: broken at spaces with a backslash.

    A word that is longer than a line stays whole: cut, it would be another one.
    """
    words = re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", command)  # as shlex.quote quotes them
    lines: list[str] = []
    line = indent
    for word in words:
        if line.strip() and len(line) + 1 + len(word) > columns - 2:
            lines.append(f"{line} \\")
            line = f"{indent}  "
        line = f"{line} {word}" if line.strip() else line + word
    return [*lines, line]
