"""Sampling side by side: cells take turns in rounds of random order, so that drift falls on all alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Contestant(Protocol):
    """A loaded cell."""

    def sample_round(self) -> bool:
        """Make the timed calls of one round while all others stand still; whether more rounds are wanted."""
        ...


C = TypeVar("C", bound=Contestant)


def run_rounds(contestants: Sequence[C], *, shuffle: random.Random, when_done: Callable[[C], None]) -> None:
    """Sample in rounds until no contestant wants more.

    Each round takes those still in it in a new random order. The rounds of one that is done early are the first ones of
    those that go on, so figures of the same round can be paired.

    Args:
        contestants: loaded cells.
        shuffle: source of the orders; seeded, so that they can be repeated.
        when_done: called once for each.
    """
    active = list(contestants)
    while active:
        shuffle.shuffle(active)
        for contestant in list(active):
            if not contestant.sample_round():
                active.remove(contestant)
                when_done(contestant)
