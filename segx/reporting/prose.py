"""The decision in plain sentences, for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from segx.analysis.decision import Constraints, Decision, Exclusion, Limit, Pick, Wish
from segx.analysis.figures import needed_bytes
from segx.analysis.what_if import Change
from segx.results.types import Cell
from segx.runtimes import Variant

_TITLES: Mapping[Wish, str] = {
    "throughput": "For throughput",
    "latency": "For latency of a single image",
    "memory": "For memory",
}
_WORSE: Mapping[Wish, str] = {"throughput": "longer", "latency": "longer", "memory": "more memory"}


def sentences(decision: Decision) -> list[str]:
    """The whole decision: what to ship for each wish, what it rests on, what would change it, what is excluded."""
    lines = [line for pick in decision.picks for line in pick_sentences(pick, decision)]
    if not decision.picks:
        lines.append(_nothing_fits(decision))
    return [*lines, *exclusion_sentences(decision)]


def pick_sentences(pick: Pick, decision: Decision) -> list[str]:
    """One wish: the choice, its gain, its masks, its rivals, and what would change it."""
    lines = [
        f"{_TITLES[pick.wish]}: {_named(pick.cell)}, {_figure(pick)}.",
        _gain(pick),
        _masks(pick),
        *_rivals(pick),
        *(_change(change, pick) for change in pick.changes),
    ]
    if pick.uncertain_limit and (limit := decision.constraints.max_latency_s) is not None:
        lines.append(f"It may miss the limit of {_time(limit)}: the interval of its latency reaches beyond.")
    if pick.without_limits:
        lines.append(
            f"Without the limits it would be {_named(pick.without_limits)}, {_value(pick.wish, pick.without_limits)}."
        )
    return [line for line in lines if line]


def exclusion_sentences(decision: Decision) -> list[str]:
    """What each limit excludes."""
    lines = []
    for limit, words in _LIMITS.items():
        if found := [exclusion for exclusion in decision.excluded if exclusion.limit == limit]:
            lines.append(f"{words(decision.constraints)} excludes {_listed([e.cell for e in found])}{_nearest(found)}.")
    return lines


_LIMITS: Mapping[Limit, Callable[[Constraints], str]] = {
    "parity": lambda _: "The bench's own gate on masks",
    "unfinished": lambda _: "Having been interrupted before its masks were judged",
    "latency": lambda limits: f"The limit of {_time(limits.max_latency_s or 0.0)} a call",
    "memory": lambda limits: f"The limit of {_memory(limits.max_memory_bytes or 0)} of memory",
    "masks": lambda limits: f"The limit of {limits.min_iou or 0.0:g} on the IoU of the worst image",
}


def _nothing_fits(decision: Decision) -> str:
    if not decision.excluded:
        return "Nothing can be recommended: no cell was measured."
    alone = {
        limit: {id(exclusion.cell) for exclusion in decision.excluded if exclusion.limit == limit} for limit in _LIMITS
    }
    every = {id(exclusion.cell) for exclusion in decision.excluded}
    culprits = [limit for limit, cells in alone.items() if cells == every]
    why = f"; {' and '.join(culprits)} alone would exclude them all" if culprits else ""
    return f"Nothing fits: all {len(every)} measured cells miss a limit{why}."


def _nearest(found: Sequence[Exclusion]) -> str:
    """How near the best of them came, for limits that are numbers."""
    limit = found[0].limit
    values = [exclusion.found for exclusion in found if exclusion.found is not None]
    if not values or limit not in ("latency", "memory", "masks"):
        return ""
    text = {
        "latency": lambda: _time(min(values)),
        "memory": lambda: _memory(min(values)),
        "masks": lambda: f"{_iou(max(values))}",
    }[limit]()
    return f" (the nearest has {text})"


def _figure(pick: Pick) -> str:
    value, interval = _value(pick.wish, pick.cell), pick.interval
    if pick.wish == "memory":
        return f"{value} at the peak"
    if interval is None:
        return f"{value} (too few calls for an interval)"
    if pick.wish == "throughput":
        return f"{value} (95 % interval {1 / interval.high:.2f} to {1 / interval.low:.2f})"
    return f"{value} (95 % interval {_time(interval.low)} to {_time(interval.high)})"


def _gain(pick: Pick) -> str:
    if pick.baseline is pick.cell:
        return "That is PyTorch eager itself."
    if pick.baseline is None:
        return "PyTorch eager was not measured beside it, so its gain is not known."
    at = f"PyTorch eager at batch {pick.baseline.batch_size}"
    parts = []
    if gain := pick.gain:
        if gain.interval is None:
            parts.append(f"{gain.ratio:.2f} times the images per second of {at} (too few rounds for an interval)")
        elif gain.tied:
            parts.append(f"as fast as {at}, as far as can be told")
        else:
            interval = f"95 % interval {gain.interval.low:.2f} to {gain.interval.high:.2f}"
            parts.append(f"{gain.ratio:.2f} times the images per second of {at} ({interval})")
    if pick.memory_ratio is not None:
        parts.append(f"{pick.memory_ratio:.2f} times its memory")
    return f"Against PyTorch: {', '.join(parts)}."


def _masks(pick: Pick) -> str:
    parity = pick.cell.parity
    if parity is None:
        return "Its masks were not judged."
    if not parity.flipped_pixels:
        return f"It costs nothing in masks: all {parity.pixels} pixels of {parity.images} images are the same."
    real = f"{parity.real_flips} of them beyond what the reference itself wavers by"
    return (
        f"Its masks are {pick.verdict}: {parity.flipped_pixels} of {parity.pixels} pixels differ, {real}; "
        f"IoU {_iou(parity.mean_iou)} on average, {_iou(parity.worst_iou)} on the worst image ({parity.worst_image})."
    )


def _rivals(pick: Pick) -> list[str]:
    lines = []
    if pick.wish != "memory" and pick.interval is None:
        lines.append("Too few calls to tell whether others are as good.")
    if pick.ties:
        lines.append(f"{_listed(pick.ties)} may well be as good: the intervals overlap.")
    if pick.runner_up and pick.runner_up not in pick.ties and pick.behind is not None:
        share = f"{pick.behind:.0%}" if pick.behind >= 0.01 else "under 1%"
        lines.append(f"The next variant, {_named(pick.runner_up)}, takes {share} {_WORSE[pick.wish]}.")
    if pick.runner_up is None:
        lines.append("No other variant was fit to be chosen.")
    return lines


def _change(change: Change, pick: Pick) -> str:
    if change.condition == "images below":
        assert change.cell  # it is about one
        return (
            f"With fewer than {math.ceil(change.threshold)} images in all, {_named(change.cell)} is done sooner: "
            "it starts sooner."
        )
    condition = {
        "latency below": lambda: f"a call has to take less than {_time(change.threshold)}",
        "memory below": lambda: f"memory has to stay below {_memory(change.threshold)}",
        "masks above": lambda: f"the worst image has to have an IoU above {_iou(change.threshold)}",
    }[change.condition]()
    if change.cell is None:
        return f"Where {condition}, nothing that was measured is left."
    return f"Where {condition}, it is {_named(change.cell)}, {_value(pick.wish, change.cell)}."


def _value(wish: Wish, cell: Cell) -> str:
    if wish == "throughput":
        return f"{1 / cell.seconds_per_image:.2f} images/s"
    return _time(cell.median_s) if wish == "latency" else _memory(needed_bytes(cell) or 0)


def _named(cell: Cell) -> str:
    return f"{cell.variant} at batch {cell.batch_size}"


def _listed(cells: Sequence[Cell]) -> str:
    sizes: dict[Variant, list[str]] = {}
    for cell in cells:
        sizes.setdefault(cell.variant, []).append(str(cell.batch_size))
    return "; ".join(f"{variant} at batch {', '.join(listed)}" for variant, listed in sizes.items())


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _memory(count: float) -> str:
    return f"{count / 2**20:.0f} MiB"


def _iou(value: float) -> str:
    """Four places, rounded down: 1.0000 shall mean that nothing differs."""
    return f"{int(value * 10_000) / 10_000:.4f}"
