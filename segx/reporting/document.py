"""The document model: what a report shows, as plain data without markup."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

BLANK = "–"

Style = Literal["", "strong", "good", "warning", "bad", "muted"]


@dataclass(frozen=True)
class Datum:
    """One value of a table.

    Attributes:
        text: the value as displayed.
        value: what the column is sorted by; None sorts last.
        style: emphasis, which never carries information of its own.
    """

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


def text(value: str, style: Style = "") -> Datum:
    """Return a value that consists of words."""
    return Datum(value, value or None, style)


def number(value: float | None, shown: str, style: Style = "") -> Datum:
    """Return a number formatted by ``shown``, or a dash for None."""
    return Datum(BLANK, None) if value is None else Datum(shown.format(value), float(value), style)


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: heading, with the unit if there is one.
        numeric: align right and sort as numbers.
        about: a short explanation of the figures.
        optional: 0 for a column that is always shown. If a terminal is too narrow, the columns with the highest
            number are left out first.
    """

    title: str
    numeric: bool = True
    about: str = ""
    optional: int = 0


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it holds.
        columns: in order.
        rows: each as long as ``columns``.
        groups: row index -> heading above that row, which holds until the next heading.
        group_title: what the groups are; the heading of the column that they become in a form without such headings.
        messages: row index -> free text for a row without figures (a failed cell keeps its row).
        notes: what the figures mean, shown below the table.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Datum, ...], ...]
    groups: Mapping[int, str] = field(default_factory=dict)
    group_title: str = "variant"
    messages: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with a text alternative; only HTML shows charts.

    Attributes:
        key: its id on the page.
        title: what it shows.
        alt: one sentence for readers who cannot see it.
        reading: how to read it.
        data: Plotly traces; empty if there are ``frames``.
        layout: Plotly layout, without fonts and text colours, which follow the reader's theme.
        frames: name -> traces, of which the reader chooses one.
        frame_label: what the reader chooses.
        table: the data behind the chart.
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

    @property
    def variants(self) -> list[str]:
        """Return the variants drawn, in order."""
        traces = [*self.data, *(trace for frame in self.frames.values() for trace in frame)]
        return list(dict.fromkeys(trace["legendgroup"] for trace in traces if "legendgroup" in trace))


@dataclass(frozen=True)
class Facts:
    """Labelled values.

    Attributes:
        pairs: label and text.
        title: what they describe.
    """

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
    """A shell command to copy, with what it does."""

    text: str
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One recommendation.

    Attributes:
        key: its id on the page.
        title: the goal that it serves.
        lead: the recommendation as one sentence.
        figure: what it achieves, and the unit.
        interval: how certain the figure is.
        variant: the variant recommended.
        batch: the batch size recommended.
        reasons: sentences on gain, masks and alternatives.
        changes: sentences on what would change the recommendation.
        command: makes the model file; empty if the variant runs the checkpoint itself.
    """

    key: str
    title: str
    lead: str
    figure: tuple[str, str]
    interval: str
    variant: str
    batch: str
    reasons: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    command: str = ""


Block = Table | Chart | Facts | Paragraph | Bullets | Command | Card


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a document.

    Attributes:
        key: stable name, the id on a page.
        title: heading; empty for none.
        intro: what the section shows, if the title does not say it.
        blocks: in order.
        lead: the answer that the reader looks for: first on a page, last on a terminal.
        detail: folded on a page, left out on a terminal.
    """

    key: str
    title: str = ""
    intro: str = ""
    blocks: tuple[Block, ...] = ()
    lead: bool = False
    detail: bool = False

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Return the charts among the blocks."""
        return tuple(block for block in self.blocks if isinstance(block, Chart))

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return the tables among the blocks."""
        return tuple(block for block in self.blocks if isinstance(block, Table))


@dataclass(frozen=True)
class Document:
    """A report on one subject, such as a bench, a comparison or a history.

    Attributes:
        title: one line.
        facts: what was measured, with what and where: label and text.
        sections: the most important first.
    """

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    sections: tuple[Section, ...] = ()

    def section(self, key: str) -> Section | None:
        """Return the section with this key, or None."""
        return next((section for section in self.sections if section.key == key), None)

    def without(self, *keys: str) -> Document:
        """Return the document without some sections."""
        kept = tuple(section for section in self.sections if section.key not in keys)
        return dataclasses.replace(self, sections=kept)
