"""A series as one word: a bar of eight heights per figure."""

from __future__ import annotations

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-~=+*#"
_MISSING, _ASCII_MISSING = "×", "x"


def sparkline(values: Sequence[float | None], *, encoding: str = "utf-8") -> str:
    """Bars from zero to the largest value, so that their heights can be compared; a missing value is a cross.

    Args:
        values: not negative.
        encoding: of where it is shown; one that has no bars gets ``_.-~=+*#``, low to high.
    """
    try:
        f"{_BARS}{_MISSING}".encode(encoding)
        bars, missing = _BARS, _MISSING
    except UnicodeEncodeError:
        bars, missing = _ASCII_BARS, _ASCII_MISSING
    highest = max((value for value in values if value is not None), default=0.0)
    return "".join(missing if value is None else bars[_height(value, highest)] for value in values)


def _height(value: float, highest: float) -> int:
    return min(len(_BARS) - 1, int(len(_BARS) * value / highest)) if highest > 0 else 0
