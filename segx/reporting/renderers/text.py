"""Documents as text for a terminal, a pipe or a file."""

from __future__ import annotations

import io
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO, assert_never

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
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
from segx.system.text import printable, width

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


def to_text(document: Document, *, columns: int = _COLUMNS, color: bool = False) -> str:
    """Render a document; the leading section comes last, where the eye is after a long run.

    Args:
        document: what to show; sections of details are left out.
        columns: width of the terminal. Only a word of a command, which must stay whole, may exceed it.
        color: whether to style the text with ANSI codes; ``NO_COLOR`` still turns colours off.
    """
    page = _Page(columns, color)
    parts = [page.rendered(Facts(document.facts))] if document.facts else []
    shown = [section for section in document.sections if not section.detail]
    body, lead = (
        [part for section in shown if section.lead == first for part in page.section(section)]
        for first in (False, True)
    )
    return "\n\n".join(part for part in [*parts, *body, "\n".join(lead)] if part) + "\n"


def to_stream(document: Document, stream: TextIO) -> str:
    """Render a document for a stream: as wide as the terminal or ``COLUMNS`` says.

    It is styled on a terminal, and elsewhere if ``FORCE_COLOR`` is set.
    """
    columns = max(_FEWEST_COLUMNS, shutil.get_terminal_size((_COLUMNS, 24)).columns)
    return to_text(document, columns=columns, color=Console(file=stream).is_terminal)


@dataclass(frozen=True)
class _Page:
    columns: int
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
                return split_command(printable(block.text), self.columns)
            case Card():
                return self._card(block)
            case Facts():
                title = [self._lines(self._text(block.title, "bold"))] if block.title else []
                return "\n".join([*title, *self._pairs(block.pairs)])
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

    def _pairs(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Return labels with their values beside them, below them where that would break a word."""
        labels = [width(printable(label)) for label, _ in pairs]
        widest = max((found for found in labels if found <= self.columns // 2), default=0)
        lines = []
        for found, (label, value) in zip(labels, pairs, strict=True):
            longest = max((width(word) for word in printable(value).split()), default=0)
            if found > widest or longest > self.columns - widest - _GAP:
                lines += [self._lines(self._text(label)), self._lines(Padding(self._text(value), (0, 0, 0, _GAP)))]
                continue
            grid = self._grid((True, True))
            grid.columns[0].width = widest
            grid.add_row(self._text(label), self._text(value))
            lines.append(self._lines(grid))
        return lines

    def _card(self, card: Card) -> str:
        use = Text.assemble(
            (printable(f"Use {card.variant}, {card.batch}"), "bold green"),
            printable(f": {', '.join(card.figures)}. {card.gain.text}."),
            overflow="fold",
        )
        facts = [Padding(self._text(f"{label}: {told}"), (0, 0, 0, _GAP)) for label, told in card.facts]
        options = self._grid((True, False))
        for option in card.options:
            told = f"{option.variant}, {option.batch}: {', '.join(option.figures[:2])}"
            options.add_row(self._text(f"For {option.purpose}"), self._text(told))
        parts = [self._lines(Group(use, *facts, Padding(options, (0, 0, 0, _GAP))))]
        return "\n".join([*parts, *([self.rendered(Command(card.command))] if card.command else [])])

    def _table(self, table: Table) -> str:
        parts = [self._lines(self._text(table.caption, "bold"))] if table.caption else []
        places = list(range(len(table.columns)))
        for optional in sorted({column.optional for column in table.columns} - {0}, reverse=True):
            if self._widths(table, places, whole=True):
                break
            places = [place for place in places if table.columns[place].optional != optional]
        widths = self._widths(table, places, whole=bool(table.groups or table.messages))
        parts.append(self._grid_of(table, dict(zip(places, widths, strict=True))) if widths else self._records(table))
        return "\n".join([*parts, *(self._lines(self._text(note)) for note in table.notes if note)])

    def _widths(self, table: Table, places: Sequence[int], *, whole: bool) -> list[int]:
        """Return the width of each column, with words wrapped unless ``whole``; empty if there is too little room."""
        least, most = [], []
        for place in places:
            column = table.columns[place]
            texts = [printable(text) for text in (column.title, *(row[place].text for row in table.rows))]
            most.append(max(map(width, texts)))
            words = (width(word) for text in texts for word in text.split())
            least.append(most[-1] if whole or column.numeric else max(words, default=0))
        spare = self.columns - sum(least) - _GAP * (len(places) - 1)
        if spare < 0:
            return []
        widths = list(least)
        by_need = sorted(range(len(places)), key=lambda i: most[i] - least[i])
        for left, i in zip(range(len(places), 0, -1), by_need, strict=True):
            widths[i] += min(most[i] - least[i], spare // left)
            spare -= widths[i] - least[i]
        return widths

    def _records(self, table: Table) -> str:
        """Return each row of a table that is too wide as its name, and its values below with their titles."""
        named = not table.groups
        lines = [self._lines(self._text(table.columns[0].title, "bold"))] if named else []
        for index, row in enumerate(table.rows):
            if index in table.groups:
                lines.append(self._lines(self._heading(table.groups[index])))
            elif named:
                lines.append(self._lines(self._datum(row[0])))
            pairs = [
                f"{column.title}: {datum.text}"
                for column, datum in zip(table.columns[named:], row[named:], strict=True)
                if datum.text not in ("", BLANK)
            ]
            items = [*pairs, *filter(None, [table.messages.get(index)])]
            listed = Columns(map(self._text, items), padding=(0, _GAP))
            lines.append(self._lines(Padding(listed, (0, 0, 0, _GAP))))
        return "\n".join(lines)

    def _grid_of(self, table: Table, widths: Mapping[int, int]) -> str:
        grid = self._figures(table, widths)
        if not table.groups and not table.messages:
            return self._lines(grid)
        head, *rows = self._lines(grid, keep=True).split("\n")
        lines = [head.rstrip()]
        for place, row in enumerate(rows):
            if place in table.groups:
                lines.append(self._lines(self._heading(table.groups[place])))
            message = f"  {self._lines(self._text(table.messages[place], 'red'))}" if place in table.messages else ""
            lines.append(row.rstrip() + message)
        return "\n".join(lines)

    def _heading(self, parts: Sequence[Datum]) -> Text:
        return Text(" · ").join(map(self._datum, parts))

    def _figures(self, table: Table, widths: Mapping[int, int]) -> Grid:
        """Return columns of these widths; a row with a message ends before its first blank."""
        grid = self._grid([not table.columns[place].numeric for place in widths], header=True)
        for column, (place, columns) in zip(grid.columns, widths.items(), strict=True):
            column.header = self._text(table.columns[place].title)
            column.width = columns
        for index, row in enumerate(table.rows):
            grid.add_row(
                *(
                    Text() if index in table.messages and datum.text == BLANK else self._datum(datum)
                    for datum in (row[place] for place in widths)
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
        return Text(printable(words), style=style, overflow="fold")

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


def split_command(command: str, columns: int) -> str:
    r"""Return a shell command indented, on lines that can be pasted: broken at spaces with a backslash.

    A word that is longer than a line stays whole: cut, it would be another one.
    """
    quoted = re.sub(r"'[^']*'|\"[^\"]*\"", lambda found: found[0].replace(" ", "\0"), command)  # as shlex.quote does
    lines = textwrap.wrap(
        quoted,
        columns - len(" \\"),
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(lines).replace("\0", " ")
