"""Aligned columns of plain text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: frozenset[int] = frozenset()) -> str:
    """A table with a rule under its titles; columns flush right, those in ``left`` flush left.

    A row with fewer cells than there are titles ends in free text, which widens no column.
    """
    whole = [titles, *(row for row in rows if len(row) == len(titles))]
    widths = [max(len(row[i]) for row in whole) for i in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        if len(cells) > len(titles):
            raise ValueError(f"{len(cells)} cells under {len(titles)} titles")
        free = len(cells) - 1 if len(cells) < len(titles) else len(cells)
        padded = (
            text if i == free else text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(cells, widths, strict=False))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(titles), line(["-" * width for width in widths]), *map(line, rows)])
