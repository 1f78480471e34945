"""What the page shows, as plain data: tables, charts, legends. No markup and no colours of text here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BLANK = "–"


@dataclass(frozen=True)
class Datum:
    """One value of a table.

    Attributes:
        text: as it is read.
        value: what the column is sorted by; None sorts last.
    """

    text: str
    value: float | str | None

    @property
    def key(self) -> str | None:
        """What it is sorted by where its text will not do; None where it will."""
        if self.value is None:
            return None if self.text == BLANK else ""
        if isinstance(self.value, str):
            return None if self.value == self.text else self.value
        try:
            float(self.text)
        except ValueError:
            return f"{self.value:.6g}"
        return None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: with the unit, where there is one.
        numeric: aligned on the right, and sorted as numbers.
        about: what the figures are, in a few words.
    """

    title: str
    numeric: bool = True
    about: str = ""


@dataclass(frozen=True)
class Table:
    """A table that sorts and copies.

    Attributes:
        caption: what it holds.
        columns: in order.
        rows: each as long as ``columns``.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Datum, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, and the same in words and numbers.

    Attributes:
        key: its id on the page.
        title: what it shows.
        alt: what it shows, for those who do not see it; a sentence.
        reading: how it is read, and what cannot be seen.
        data: Plotly's traces; where there are ``frames``, none.
        layout: Plotly's layout, without fonts and colours of text, which follow the reader's theme.
        frames: name -> traces, of which the reader chooses one.
        frame_label: what is chosen.
        table: the data behind it.
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
        """Those that are drawn, in order."""
        traces = [*self.data, *(trace for frame in self.frames.values() for trace in frame)]
        return list(dict.fromkeys(trace["legendgroup"] for trace in traces if "legendgroup" in trace))


def text(value: str) -> Datum:
    """A value that is words."""
    return Datum(value, value or None)


def number(value: float | None, shown: str) -> Datum:
    """A value that is a number, shown in its unit; a dash where there is none."""
    return Datum(BLANK, None) if value is None else Datum(shown.format(value), float(value))


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        key: its id on the page.
        title: its heading.
        intro: what it is about, where the title does not say it.
        charts: side by side where there is room.
        tables: below them.
    """

    key: str
    title: str
    intro: str = ""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
