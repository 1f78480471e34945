"""Aligned columns of plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from segx.system.text import clipped, padded, width, wrapped

_GAP = "  "


def aligned(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (), columns: int | None = None
) -> str:
    """A table with a rule under its titles; columns flush right, those in ``left`` flush left.

    A row with fewer cells than there are titles ends in free text, which widens no column; a row of nothing else is a
    heading for the rows below.

    Args:
        titles: of the columns.
        rows: their cells.
        left: places of the columns that are flush left.
        columns: of the terminal. A wider table is broken into several, one below the other, each of which begins with
            the first column; free text is wrapped, and a cell that no line has room for is clipped. None for no limit.
    """
    if columns is not None:
        room = columns - len(_GAP) - max((width(row[0]) for row in (titles, *rows)), default=0)
        first = columns // 2 if room < columns // 2 - len(_GAP) else columns
        rest = max(room, columns - len(_GAP) - first)
        rows = [_clipped(row, len(titles), first, rest) for row in rows]
    for row in rows:
        if len(row) > len(titles):
            raise ValueError(f"{len(row)} cells under {len(titles)} titles")
    whole = [titles, *(row for row in rows if len(row) == len(titles))]
    widths = [max(width(row[i]) for row in whole) for i in range(len(titles))]
    blocks = _blocks(widths, columns)
    return "\n".join("\n".join(_block(block, titles, rows, widths, left, columns)) for block in blocks)


def _clipped(row: Sequence[str], titles: int, first: int, rest: int) -> list[str]:
    free = len(row) - 1 if len(row) < titles else len(row)
    return [text if i == free else clipped(text, rest if i else first) for i, text in enumerate(row)]


def _blocks(widths: Sequence[int], columns: int | None) -> list[list[int]]:
    """Which columns stand in which block: as few blocks as possible, and those as equally wide as possible."""
    if columns is None:
        return [list(range(len(widths)))]
    fewest = len(_packed(widths, columns))
    return next(
        blocks for limit in range(1, columns + 1) if len(blocks := _packed(widths, limit)) == fewest or limit == columns
    )


def _packed(widths: Sequence[int], limit: int) -> list[list[int]]:
    """Each column into the block of the one before it, as long as that stays within the limit."""
    blocks = [[0]]
    taken = widths[0]
    for i in range(1, len(widths)):
        taken += len(_GAP) + widths[i]
        if taken > limit and len(blocks[-1]) > 1:
            blocks.append([0])
            taken = widths[0] + len(_GAP) + widths[i]
        blocks[-1].append(i)
    return blocks


def _block(
    block: Sequence[int],
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    left: Collection[int],
    columns: int | None,
) -> list[str]:
    """The lines of some columns; free text stands in the first block alone."""

    def line(cells: Sequence[str]) -> str:
        return _GAP.join(padded(cells[i], widths[i], left=i in left) for i in block).rstrip()

    lines = [line(titles), line(["-" * columns_of for columns_of in widths])]
    for row in rows:
        if len(row) == len(titles):
            lines.append(line(row))
        elif len(row) == 1 or block[-1] == len(block) - 1:  # a heading, or the block of the first columns
            *known, free = row
            start = "".join(f"{padded(text, widths[i], left=i in left)}{_GAP}" for i, text in enumerate(known))
            lines += (
                [start + free] if columns is None else wrapped(free, columns, indent=start, hanging=" " * len(start))
            )
    return lines
