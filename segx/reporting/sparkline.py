"""A series as one word: a bar of eight heights per figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Eight heights; then what failed, and what was not tried.
_BARS, _FAILED, _MISSING = "▁▂▃▄▅▆▇█", "×", "·"
_ASCII_BARS, _ASCII_FAILED, _ASCII_MISSING = "_.-~=+*#", "x", ":"


def sparkline(values: Sequence[float | None], *, encoding: str = "utf-8") -> str:
    """Bars from zero to the largest value, so that their heights can be compared.

    Args:
        values: not negative; NaN for what failed, shown as a cross, and None for what was not tried, shown as a dot.
        encoding: of where it is shown; one that has no bars gets ``_.-~=+*#``, low to high, ``x`` and ``:``.
    """
    bars, failed, missing = _BARS, _FAILED, _MISSING
    try:
        f"{bars}{failed}{missing}".encode(encoding)
    except UnicodeEncodeError:
        bars, failed, missing = _ASCII_BARS, _ASCII_FAILED, _ASCII_MISSING
    highest = max((value for value in values if value is not None and math.isfinite(value)), default=0.0)

    def shown(value: float | None) -> str:
        if value is None:
            return missing
        return failed if math.isnan(value) else bars[_height(value, highest)]

    return "".join(map(shown, values))


def _height(value: float, highest: float) -> int:
    if value >= highest:
        return len(_BARS) - 1 if highest > 0 else 0
    return int(len(_BARS) * value / highest)
