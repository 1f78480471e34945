"""Figures as people read them: three significant digits, the unit that fits."""

from __future__ import annotations

import html
import math

from segx.analysis.stats import Interval

MIB = 2**20


def digits(value: float, count: int = 3) -> str:
    """A number with ``count`` significant digits, never in exponents between 0.0001 and a million.

    Large numbers keep all digits before the point: 1234.5 is 1234.
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 6:
        return f"{value:.{count - 1}e}"
    return f"{value:.{max(0, count - 1 - size)}f}"


def seconds(value: float) -> str:
    """A duration in the unit that fits it."""
    if value < 1e-3:
        return f"{digits(value * 1e6)} µs"
    return f"{digits(value * 1e3)} ms" if value < 1 else f"{digits(value)} s"


def memory(count: float) -> str:
    """An amount of memory in MiB or GiB."""
    return f"{digits(count / 2**30)} GiB" if count >= 2**30 else f"{digits(count / MIB)} MiB"


def between(interval: Interval | None, unit: float = 1.0) -> str:
    """An interval in multiples of 1/``unit``; says so where there is none."""
    if interval is None:
        return "too few runs for an interval"
    return f"{digits(interval.low * unit)} to {digits(interval.high * unit)}"


def share(value: float, places: int = 1) -> str:
    """A share as a percentage."""
    return f"{value * 100:.{places}f} %"


def literal(words: str) -> str:
    """Text for Plotly, which takes some tags in its texts for markup: shown as it is."""
    return html.escape(words, quote=False)
