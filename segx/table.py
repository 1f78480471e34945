"""Aligned columns of plain text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: frozenset[int] = frozenset()) -> str:
    """A table with a rule under its titles; columns flush right, those in ``left`` flush left."""
    widths = [max(len(line[i]) for line in (titles, *rows)) for i in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(titles), line(["-" * width for width in widths]), *map(line, rows)])
