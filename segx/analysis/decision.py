"""The decision: what to deploy under the user's constraints, how sure that is, and what would change it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from segx.analysis.figures import needed_bytes, verdict_of
from segx.analysis.ratios import Speedup, pytorch_variant, versus
from segx.analysis.recommend import Choice, interval_per_image, recommend
from segx.analysis.stats import Interval, median_interval
from segx.analysis.what_if import Change, changes
from segx.masks.agreement import Verdict
from segx.results.types import Cell, Results

Wish = Literal["throughput", "latency", "memory"]
Limit = Literal["parity", "unfinished", "latency", "memory", "masks"]

_WISHES: Mapping[str, Wish] = {"throughput": "throughput", "latency at batch 1": "latency", "memory": "memory"}

# What is minimised.
COSTS: Mapping[Wish, Callable[[Cell], float]] = {
    "throughput": lambda cell: cell.seconds_per_image,
    "latency": lambda cell: cell.median_s,
    "memory": lambda cell: float(needed_bytes(cell) or 0),
}


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What must hold of whatever is deployed; None sets no limit.

    Attributes:
        max_latency_s: median seconds of one call, whatever its batch.
        max_memory_bytes: peak memory of model and inference (``needed_bytes(Cell)``).
        min_iou: lowest IoU of an image's mask against the reference's. It comes on top of the bench's own gate: what
            broke that stays out.
    """

    max_latency_s: float | None = None
    max_memory_bytes: int | None = None
    min_iou: float | None = None


@dataclass(frozen=True)
class Exclusion:
    """A measured cell that cannot be chosen.

    Attributes:
        cell: the one.
        limit: what it misses; ``parity`` is the bench's own gate, ``unfinished`` was interrupted before it came to it.
        found: its figure: seconds, bytes or IoU; None where it is not known.
    """

    cell: Cell
    limit: Limit
    found: float | None


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The cell to deploy for one wish.

    Attributes:
        wish: what it is best in.
        cell: the one.
        interval: 95 % interval of its seconds per image (throughput) or per call (latency); None for memory, which is
            measured once, and with too few calls.
        baseline: the cell of PyTorch eager that it is set against: at its own best batch size for throughput, at the
            same one else; None where that was not measured.
        gain: images per second against the baseline; None where there is none or this is it.
        memory_ratio: its memory by the baseline's; None where one is not known or this is the baseline.
        verdict: on its masks.
        ties: others that may well be as good.
        runner_up: the best cell of another variant; None where there is none.
        behind: by what share the runner-up's cost is higher.
        without_limits: what would be chosen without constraints; None where that is this cell.
        changes: what would change the choice.
        command: makes the file that it runs; empty where it runs the checkpoint itself.
        uncertain_limit: its latency interval reaches beyond the limit.
    """

    wish: Wish
    cell: Cell
    interval: Interval | None
    baseline: Cell | None
    gain: Speedup | None
    memory_ratio: float | None
    verdict: Verdict | None
    ties: tuple[Cell, ...]
    runner_up: Cell | None
    behind: float | None
    without_limits: Cell | None
    changes: tuple[Change, ...]
    command: str
    uncertain_limit: bool


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to deploy.

    Attributes:
        constraints: that were given.
        picks: for throughput, latency and memory, as far as something is fit; empty where nothing is.
        excluded: measured cells that cannot be chosen, one entry per limit that each misses.
        candidates: how many cells were fit.
        images: of a full pass.
    """

    constraints: Constraints
    picks: tuple[Pick, ...]
    excluded: tuple[Exclusion, ...]
    candidates: int
    images: int

    def pick(self, wish: Wish) -> Pick | None:
        """The pick for a wish; None where nothing is fit for it."""
        return next((pick for pick in self.picks if pick.wish == wish), None)


def decide(results: Results, constraints: Constraints | None = None) -> Decision:
    """Choose among the cells of the forward scope whose masks met the gate and that meet the constraints.

    Args:
        results: of a bench, complete or not.
        constraints: None for no limits.
    """
    constraints = constraints or Constraints()
    measured = [cell for cell in results.cells if cell.measured and cell.scope == "forward"]
    excluded = [exclusion for cell in measured for exclusion in _exclusions(cell, constraints)]
    out = {id(exclusion.cell) for exclusion in excluded}
    fit = [cell for cell in measured if id(cell) not in out]
    unlimited = {_WISHES[choice.wish]: choice.cell for choice in recommend(results)}
    limited = recommend(dataclasses.replace(results, cells=tuple(fit)))
    picks = tuple(_pick(choice, fit, unlimited[_WISHES[choice.wish]], results, constraints) for choice in limited)
    return Decision(
        constraints=constraints,
        picks=picks,
        excluded=tuple(excluded),
        candidates=len(fit),
        images=results.images,
    )


def _exclusions(cell: Cell, constraints: Constraints) -> list[Exclusion]:
    """What is not known does not meet a limit."""
    found = []
    iou = cell.parity.worst_iou if cell.parity else None
    if cell.status != "ok":
        found.append(Exclusion(cell, "parity", iou))
    elif cell.stopped == "interrupted":
        found.append(Exclusion(cell, "unfinished", None))
    if (latency := constraints.max_latency_s) is not None and cell.median_s > latency:
        found.append(Exclusion(cell, "latency", cell.median_s))
    needed, most = needed_bytes(cell), constraints.max_memory_bytes
    if most is not None and (needed is None or needed > most):
        found.append(Exclusion(cell, "memory", needed))
    if (least := constraints.min_iou) is not None and (iou is None or iou < least):
        found.append(Exclusion(cell, "masks", iou))
    return found


def _pick(choice: Choice, fit: list[Cell], unlimited: Cell, results: Results, constraints: Constraints) -> Pick:
    wish, cell = _WISHES[choice.wish], choice.cell
    cost = COSTS[wish]
    candidates = [other for other in fit if wish != "latency" or other.batch_size == 1]
    if wish == "memory":
        candidates = [other for other in candidates if needed_bytes(other) is not None]
    rivals = [other for other in candidates if other.variant != cell.variant]
    runner_up = min(rivals, key=cost, default=None)
    baseline = _baseline(wish, cell, results)
    interval = {"throughput": interval_per_image(cell), "latency": median_interval(cell.samples_s), "memory": None}[
        wish
    ]
    of_call = median_interval(cell.samples_s)
    most = constraints.max_latency_s
    return Pick(
        wish=wish,
        cell=cell,
        interval=interval,
        baseline=baseline,
        gain=versus(baseline, cell),
        memory_ratio=_memory_ratio(cell, baseline),
        verdict=verdict_of(results, cell),
        ties=choice.ties,
        runner_up=runner_up,
        behind=cost(runner_up) / cost(cell) - 1 if runner_up and cost(cell) else None,
        without_limits=None if unlimited is cell else unlimited,
        changes=changes(cell, candidates, cost, cold_start=wish != "memory"),
        command=choice.command,
        uncertain_limit=most is not None and of_call is not None and of_call.high > most,
    )


def _baseline(wish: Wish, cell: Cell, results: Results) -> Cell | None:
    """PyTorch may be at its best where throughput is compared: at another batch size than the choice."""
    if wish != "throughput":
        return results.cell(pytorch_variant(cell), cell.batch_size or 0)
    eager = [other for other in results.cells if other.measured and other.variant == pytorch_variant(cell)]
    return min(eager, key=lambda other: other.seconds_per_image, default=None)


def _memory_ratio(cell: Cell, baseline: Cell | None) -> float | None:
    if baseline is None or baseline is cell:
        return None
    needed, base = needed_bytes(cell), needed_bytes(baseline)
    return needed / base if needed is not None and base else None
