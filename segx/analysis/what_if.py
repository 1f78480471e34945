"""What would have to be otherwise for another cell to be the one to deploy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from segx.analysis.figures import needed_bytes
from segx.analysis.payoff import cold_start_s, payoff
from segx.results.types import Cell

Condition = Literal["latency below", "memory below", "masks above", "images below"]


@dataclass(frozen=True)
class Change:
    """Under a condition, another cell is the choice.

    Attributes:
        condition: ``latency below``, ``memory below``, ``masks above``: a limit that is tighter than ``threshold``
            excludes the present choice. ``images below``: with fewer images than that in all, cold start included, the
            other is done sooner.
        threshold: seconds of one call, bytes, IoU of the worst image, or a number of images.
        cell: the choice then; None where nothing would be left.
    """

    condition: Condition
    threshold: float
    cell: Cell | None


def changes(
    chosen: Cell, candidates: Sequence[Cell], cost: Callable[[Cell], float], *, cold_start: bool
) -> tuple[Change, ...]:
    """What would change a choice.

    Args:
        chosen: the cell of least cost among the candidates.
        candidates: all cells that were fit to be chosen.
        cost: what was minimised; a tighter limit on that itself leaves nothing, and is no change.
        cold_start: whether it matters to the wish that another starts sooner.
    """
    found = [_tighter("latency below", chosen.median_s, [c for c in candidates if c.median_s < chosen.median_s], cost)]
    if (needed := needed_bytes(chosen)) is not None:
        smaller = [c for c in candidates if (other := needed_bytes(c)) is not None and other < needed]
        found.append(_tighter("memory below", needed, smaller, cost))
    if chosen.parity and (iou := chosen.parity.worst_iou) < 1.0:
        better = [c for c in candidates if c.parity and c.parity.worst_iou > iou]
        found.append(_tighter("masks above", iou, better, cost))
    least = cost(chosen)
    tighter = [change for change in found if change.threshold != least]
    return (*tighter, *(_few_images(chosen, candidates) if cold_start else ()))


def _tighter(condition: Condition, threshold: float, left: Sequence[Cell], cost: Callable[[Cell], float]) -> Change:
    return Change(condition, threshold, min(left, key=cost, default=None))


def _few_images(chosen: Cell, candidates: Sequence[Cell]) -> list[Change]:
    """The cell that stays ahead of the choice the longest by starting sooner."""
    sooner = [
        Change("images below", found.images, other)
        for other in candidates
        if other is not chosen
        and cold_start_s(other) is not None
        and (found := payoff(chosen, other)).relation == "after"
        and found.images is not None
        and found.images > 1
    ]
    return [max(sooner, key=lambda change: change.threshold)] if sooner else []
