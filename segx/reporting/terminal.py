"""Where text is shown: how wide it may be, and in which characters."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TextIO

from segx.reporting.text import aligned
from segx.system.text import printable, split_command, width, wrapped, written_in

_COLUMNS = 80
_FEWEST_COLUMNS = 40


@dataclass(frozen=True)
class Terminal:
    """Lays text out; what comes from outside cannot act on the terminal.

    Attributes:
        columns: no line is longer, but for a word of a command, which could not be copied in pieces.
        encoding: characters that it lacks are replaced.
    """

    columns: int = _COLUMNS
    encoding: str = "utf-8"

    @classmethod
    def of(cls, stream: TextIO) -> Terminal:
        """That of a stream: as wide as the terminal, or as COLUMNS says; 80 where it is a file or a pipe."""
        columns = shutil.get_terminal_size((_COLUMNS, 24)).columns
        return cls(max(_FEWEST_COLUMNS, columns), stream.encoding or "ascii")

    def shown(self, text: str) -> str:
        """One line that holds nothing but characters of the encoding."""
        return written_in(printable(text), self.encoding)

    def paragraph(self, text: str, *, hanging: str = "") -> str:
        """A line, wrapped."""
        return "\n".join(wrapped(self.shown(text), self.columns, hanging=hanging))

    def labelled(self, label: str, text: str) -> str:
        """A line whose first word stands apart, wrapped beside it."""
        return "\n".join(wrapped(self.shown(text), self.columns, indent=label, hanging=" " * len(label)))

    def bullet(self, text: str) -> str:
        """One of several lines under another."""
        return "\n".join(wrapped(self.shown(text), self.columns, indent="  ", hanging="    "))

    def command(self, text: str) -> str:
        """A shell command, which can be pasted."""
        return "\n".join(split_command(self.shown(text), self.columns))

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[str] = ()) -> str:
        """Aligned columns, those in ``left`` flush left; as several tables where one would be too wide."""
        places = [i for i, title in enumerate(titles) if title in left]
        shown = [[self.shown(text) for text in row] for row in (titles, *rows)]
        return aligned(shown[0], shown[1:], left=places, columns=self.columns)

    def one_table(
        self,
        titles: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        left: Collection[str] = (),
        spare: Sequence[str] = (),
    ) -> tuple[str, list[str]]:
        """Aligned columns; where they are too wide, without the first of ``spare``, the second, … until they fit.

        Returns:
            The table, and the titles it goes without.
        """
        kept = list(titles)
        widths = {title: max(width(self.shown(row[i])) for row in (titles, *rows)) for i, title in enumerate(titles)}
        for title in (name for name in spare if name in titles):
            if sum(widths[name] for name in kept) + 2 * (len(kept) - 1) <= self.columns:
                break
            kept.remove(title)
        chosen = [[row[titles.index(title)] for title in kept] for row in rows]
        return self.table(kept, chosen, left=left), [title for title in titles if title not in kept]
