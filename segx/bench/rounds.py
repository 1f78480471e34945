"""Sampling side by side: cells take turns in rounds of random order, so that drift falls on all alike."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from segx.analysis.stats import Interval

# With a budget, a cell that is surely this much slower than the best has a turn in every so many rounds only.
_DOMINATED = 1.1
_REST = 4


class Contestant(Protocol):
    """A loaded cell."""

    @property
    def failed(self) -> bool:
        """Whether it is out of the contest."""
        ...

    @property
    def standing(self) -> Interval | None:
        """Where the median of its seconds per image surely lies; None while that cannot be told."""
        ...

    def sample_round(self, number: int) -> float:
        """Make the timed calls of one turn while all others stand still; gives the seconds they took."""
        ...

    def is_done(self, rivals: Sequence[Interval | None]) -> bool:
        """Whether no more turns are wanted.

        Args:
            rivals: where each other one stands, if a budget is left that can be spent on telling a close contest.
        """
        ...

    def out_of_budget(self) -> None:
        """No turns are left."""
        ...


C = TypeVar("C", bound=Contestant)


def run_rounds(
    contestants: Sequence[C],
    *,
    shuffle: random.Random,
    when_done: Callable[[C], None],
    budget_s: float | None = None,
    first_number: int = 0,
) -> None:
    """Sample in rounds until no contestant wants more.

    Each round takes those still in it in a new random order. Figures of the same round can be paired.

    With a budget, turns go where they settle most: a clearly dominated contestant has a turn in every fourth round
    only, and one that is settled but too close to another to tell them apart goes on.

    Args:
        contestants: loaded cells.
        shuffle: source of the orders; seeded, so that they can be repeated.
        when_done: called once for each.
        budget_s: seconds of timed calls for all together; None for no limit. Each has one turn in any case.
        first_number: of the rounds, so that those of several contests can be told apart.
    """
    active, spent_s = list(contestants), 0.0
    for number in itertools.count(first_number):
        if not active:
            return
        everyone = budget_s is None or (number - first_number) % _REST == 0
        turns = [c for c in active if everyone or not _dominated(c, contestants)]
        shuffle.shuffle(turns)
        for contestant in turns:
            spent_s += contestant.sample_round(number)
            others = () if budget_s is None else (c for c in contestants if c is not contestant and not c.failed)
            rivals = [other.standing for other in others]
            if contestant.is_done(rivals):
                active.remove(contestant)
                when_done(contestant)
        if budget_s is not None and spent_s >= budget_s:
            for contestant in active:
                contestant.out_of_budget()
                when_done(contestant)
            return


def _dominated(contestant: C, contestants: Sequence[C]) -> bool:
    ours = contestant.standing
    standings = [standing for c in contestants if not c.failed and (standing := c.standing)]
    return ours is not None and any(ours.low > _DOMINATED * theirs.high for theirs in standings)
