"""Cold start, and how many images it takes until a faster cell has made up for a longer one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from segx.results.types import Cell

Relation = Literal["always", "after", "until", "never", "unknown"]


@dataclass(frozen=True)
class Payoff:
    """When one cell has done a number of images sooner than another, each from its cold start on.

    Attributes:
        relation: ``always``: it starts no later and is no slower. ``after``: it starts later and is faster. ``until``:
            it starts sooner and is slower. ``never``: neither sooner nor faster. ``unknown``: a cold start is missing.
        images: where the two are level, for ``after`` and ``until``; else None.
    """

    relation: Relation
    images: float | None


def cold_start_s(cell: Cell) -> float | None:
    """Seconds from nothing to the first result: import of the engine, load, first call; None where one is missing."""
    if cell.import_s is None or cell.load_s is None or cell.first_s is None:
        return None
    return cell.import_s + cell.load_s + cell.first_s


def payoff(cell: Cell, baseline: Cell) -> Payoff:
    """Compare two measured cells by the time to their n-th image, cold start included.

    That time is the cold start plus n times the median seconds per image.
    """
    ours, theirs = cold_start_s(cell), cold_start_s(baseline)
    if ours is None or theirs is None:
        return Payoff("unknown", None)
    later = ours - theirs
    saved = baseline.seconds_per_image - cell.seconds_per_image
    if later <= 0 and saved >= 0:
        return Payoff("always", None)
    if later >= 0 and saved <= 0:
        return Payoff("never", None)
    images = later / saved
    if not math.isfinite(images):  # equally fast but for rounding
        return Payoff("never" if later > 0 else "always", None)
    return Payoff("after" if later > 0 else "until", images)
