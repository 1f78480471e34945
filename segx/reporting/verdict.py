"""The decision as the page shows it: a card per wish, then what was given and what it excludes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from segx.analysis.decision import Constraints, Decision, Pick, Wish
from segx.analysis.figures import needed_bytes
from segx.reporting.prose import exclusion_sentences, pick_sentences, sentences
from segx.reporting.units import digits, memory, seconds
from segx.results.types import Cell

_TITLES: dict[Wish, str] = {"throughput": "Throughput", "latency": "Latency of one image", "memory": "Memory"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What to ship for one wish.

    Attributes:
        key: its id on the page.
        wish: in words.
        figure: what it reaches, and the unit.
        interval: how sure that is.
        variant: what to ship.
        batch: at which batch size.
        reasons: sentences: what it gains and costs, and its rivals.
        changes: sentences: what would change the answer.
        command: makes the file that it runs; empty where it runs the checkpoint itself.
    """

    key: str
    wish: str
    figure: tuple[str, str]
    interval: str
    variant: str
    batch: str
    reasons: tuple[str, ...]
    changes: tuple[str, ...]
    command: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The top of the page.

    Attributes:
        cards: one per wish that something is fit for.
        limits: constraints that were given, in words.
        remarks: what the limits exclude; why nothing can be chosen.
    """

    cards: tuple[Card, ...]
    limits: tuple[str, ...]
    remarks: tuple[str, ...]


def verdict(decision: Decision) -> Verdict:
    """Sort the sentences of a decision."""
    return Verdict(
        cards=tuple(_card(pick, decision) for pick in decision.picks),
        limits=_limits(decision.constraints),
        remarks=tuple(map(_joined, exclusion_sentences(decision) if decision.picks else sentences(decision))),
    )


def _card(pick: Pick, decision: Decision) -> Card:
    # What would change the answer is what is said beyond the answer without that.
    settled = dataclasses.replace(pick, changes=(), without_limits=None, uncertain_limit=False)
    _, *reasons = pick_sentences(settled, decision)
    _, *everything = pick_sentences(pick, decision)
    return Card(
        key=f"ship-{pick.wish}",
        wish=_TITLES[pick.wish],
        figure=_figure(pick.wish, pick.cell),
        interval=_interval(pick),
        variant=str(pick.cell.variant),
        batch=f"batch {pick.cell.batch_size}",
        reasons=tuple(map(_joined, reasons)),
        changes=tuple(_joined(line) for line in everything if line not in reasons),
        command=pick.command,
    )


def _joined(line: str) -> str:
    """No line may break between a number and its percent sign."""
    return line.replace(" %", "\u00a0%")


def _figure(wish: Wish, cell: Cell) -> tuple[str, str]:
    if wish == "throughput":
        return digits(1 / cell.seconds_per_image), "images/s"
    value, unit = (seconds(cell.median_s) if wish == "latency" else memory(needed_bytes(cell) or 0)).split()
    return value, unit


def _interval(pick: Pick) -> str:
    interval = pick.interval
    if pick.wish == "memory":
        return "at the peak, measured once"
    if interval is None:
        return "too few calls for an interval"
    if pick.wish == "throughput":
        return f"95 % interval {digits(1 / interval.high)} to {digits(1 / interval.low)}"
    return f"95 % interval {seconds(interval.low)} to {seconds(interval.high)}"


def _limits(constraints: Constraints) -> tuple[str, ...]:
    limits = []
    if constraints.max_latency_s is not None:
        limits.append(f"a call takes at most {seconds(constraints.max_latency_s)}")
    if constraints.max_memory_bytes is not None:
        limits.append(f"memory at most {memory(constraints.max_memory_bytes)}")
    if constraints.min_iou is not None:
        limits.append(f"IoU of the worst image at least {constraints.min_iou:g}")
    return tuple(limits)
