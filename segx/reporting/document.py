"""The document model: what a report shows, as plain data without markup.

Each output form has a renderer of its own in ``renderers/``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

BLANK = "–"

Style = Literal["", "strong", "good", "warning", "bad", "muted"]


@dataclass(frozen=True)
class Datum:
    """One value of a table as displayed, and what its column is sorted by; None sorts last."""

    text: str
    value: float | str | None
    style: Style = ""

    @property
    def key(self) -> str | None:
        """Return the sort key, or None if the text itself is the key."""
        if self.value is None:
            return None if self.text == BLANK else ""
        if isinstance(self.value, str):
            return None if self.value == self.text else self.value
        try:
            float(self.text)
        except ValueError:
            return f"{self.value:.6g}"
        return None


NONE = Datum(BLANK, None, "muted")


def text(value: str, style: Style = "") -> Datum:
    """Return a value that consists of words."""
    return Datum(value, value or None, style)


def number(value: float | None, shown: str, style: Style = "") -> Datum:
    """Return a number formatted by ``shown``, or a dash for None."""
    return NONE if value is None else Datum(shown.format(value), float(value), style)


@dataclass(frozen=True)
class Column:
    """One column of a table; numbers are flush right and sorted as such, ``about`` explains them."""

    title: str
    numeric: bool = True
    about: str = ""
    # On a page, a bar behind each number shows its share of the largest.
    bar: bool = False
    # If a terminal is too narrow, the columns with the highest number are left out first; those with 0 never.
    optional: int = 0


@dataclass(frozen=True)
class Table:
    """A table, with notes below it on what the figures mean.

    Attributes:
        groups: row index -> heading above that row, which holds until the next: the variant, and what is said of it.
        messages: row index -> free text for a row without figures (a failed cell keeps its row).
        opens: row index -> table that the row opens on a page.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Datum, ...], ...]
    groups: Mapping[int, tuple[Datum, ...]] = field(default_factory=dict)
    messages: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    opens: Mapping[int, Table] = field(default_factory=dict)

    def of_group(self, name: str) -> Table | None:
        """Return the rows below the heading that starts with a name, as a table without headings."""
        starts = sorted(self.groups)
        start = next((start for start in starts if self.groups[start][0].text == name), None)
        if start is None:
            return None
        end = next((later for later in starts if later > start), len(self.rows))
        messages = {place - start: told for place, told in self.messages.items() if start <= place < end}
        return dataclasses.replace(self, rows=self.rows[start:end], groups={}, messages=messages)

    def narrowed(self, most: int) -> Table:
        """Return the table without the columns whose ``optional`` is higher."""
        kept = [place for place, column in enumerate(self.columns) if column.optional <= most]
        rows = tuple(tuple(row[place] for place in kept) for row in self.rows)
        return dataclasses.replace(self, columns=tuple(self.columns[place] for place in kept), rows=rows)

    def share(self, place: int, datum: Datum) -> float:
        """Return a number as a share of the largest in its column, for columns with bars; else 0."""
        if not self.columns[place].bar or not isinstance(datum.value, float):
            return 0.0
        largest = max(value for row in self.rows if isinstance(value := row[place].value, float))
        return round(datum.value / largest, 3) if largest else 0.0

    def flat(self) -> Table:
        """Return the table with its groups as a first column, and each message in its row's first blank."""
        group, rows = NONE, []
        for place, row in enumerate(self.rows):
            group = self.groups.get(place, (group,))[0]
            values = list(row)
            if (message := self.messages.get(place)) and NONE in values:
                values[values.index(NONE)] = text(message)
            rows.append((group, *values) if self.groups else tuple(values))
        columns = (Column("variant", numeric=False), *self.columns) if self.groups else self.columns
        return Table(self.caption, columns, tuple(rows), notes=self.notes, opens=self.opens)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with a text alternative; only HTML shows charts.

    Attributes:
        alt: one sentence for readers who cannot see it.
        layout: Plotly layout, without fonts and text colours, which follow the reader's theme.
        data: Plotly traces; empty if there are ``frames``: name -> traces, of which the reader chooses one, by a
            control that ``frame_label`` names or that stands elsewhere.
        height: in CSS pixels.
    """

    key: str
    title: str
    alt: str
    reading: str
    layout: Mapping[str, Any]
    table: Table
    data: Sequence[Mapping[str, Any]] = ()
    frames: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    frame_label: str = ""
    height: int = 400


@dataclass(frozen=True)
class Facts:
    """Values as pairs of label and text."""

    pairs: tuple[tuple[str, str], ...]
    title: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A line of prose; a warning casts doubt on the figures."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class Bullets:
    """A list of lines, with an optional line that introduces it."""

    items: tuple[str, ...]
    lead: str = ""


@dataclass(frozen=True)
class Command:
    """A shell command to copy."""

    text: str


@dataclass(frozen=True)
class Option:
    """What serves a purpose better than what is recommended; the first two ``figures`` are those that speak for it."""

    purpose: str
    variant: str
    batch: str
    figures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A recommendation.

    Attributes:
        figures: time, images per second and memory.
        gain: how much faster it is than PyTorch, or why that is not known.
        facts: label and text of what must be known before it is followed.
        more: likewise, for forms with room.
        command: makes the model file; empty if the variant runs the checkpoint itself.
    """

    variant: str
    batch: str
    figures: tuple[str, ...]
    gain: Datum
    facts: tuple[tuple[str, str], ...] = ()
    more: tuple[tuple[str, str], ...] = ()
    options: tuple[Option, ...] = ()
    command: str = ""


Block = Table | Chart | Facts | Paragraph | Bullets | Command | Card


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a document.

    Attributes:
        key: stable name, the id on a page.
        lead: the answer that the reader looks for: first on a page, last on a terminal.
        detail: folded on a page and in Markdown, left out on a terminal.
    """

    key: str
    title: str = ""
    blocks: tuple[Block, ...] = ()
    lead: bool = False
    detail: bool = False

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Return the charts among the blocks."""
        return tuple(block for block in self.blocks if isinstance(block, Chart))


@dataclass(frozen=True)
class Document:
    """A report, such as on a bench; ``facts`` say what was measured, and the most important section comes first."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    sections: tuple[Section, ...] = ()

    @classmethod
    def of(cls, title: str, facts: Sequence[tuple[str, str]], sections: Iterable[Section]) -> Document:
        """Return a document of those sections that have blocks."""
        return cls(title, tuple(facts), tuple(section for section in sections if section.blocks))

    def section(self, key: str) -> Section | None:
        """Return the section with this key, or None."""
        return next((section for section in self.sections if section.key == key), None)

    def renamed(self, names: Mapping[str, str]) -> Document:
        """Return the document with other names for some things, wherever they stand in its texts."""
        return cast("Document", _replaced(self, names))

    def blocks(self, *keys: str) -> tuple[Block, ...]:
        """Return the blocks of the sections with these keys, in the order of the keys."""
        return tuple(block for key in keys if (section := self.section(key)) for block in section.blocks)

    def without(self, *keys: str) -> Document:
        """Return the document without some sections."""
        kept = tuple(section for section in self.sections if section.key not in keys)
        return dataclasses.replace(self, sections=kept)


def _replaced(part: Any, names: Mapping[str, str]) -> Any:
    if isinstance(part, str):
        return functools.reduce(lambda text, name: text.replace(name, names[name]), names, part)
    if isinstance(part, tuple):
        return tuple(_replaced(each, names) for each in part)
    if isinstance(part, dict):
        return {key: _replaced(value, names) for key, value in part.items()}
    if isinstance(part, Datum | Table | Facts | Paragraph | Bullets | Card | Option | Section | Document):
        return type(part)(
            **{each.name: _replaced(getattr(part, each.name), names) for each in dataclasses.fields(part)}
        )
    return part
