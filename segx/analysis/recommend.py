"""Recommend what to deploy under the user's limits, how certain that is, and what would change it."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segx.analysis.figures import (
    Speedup,
    interval_of,
    interval_per_image,
    needed_bytes,
    pytorch_variant,
    quality_of,
    verdict_of,
    versus,
)
from segx.analysis.stats import Interval
from segx.masks.agreement import Quality, Required, Verdict, meets
from segx.results.types import Cell, Results
from segx.runtimes import runtime_info

Goal = Literal["throughput", "latency", "memory"]
Limit = Literal["parity", "unfinished", "quality", "latency", "memory", "masks", "required"]
Condition = Literal["latency below", "memory below", "masks above", "images below"]
Relation = Literal["always", "after", "until", "never", "unknown"]

# What each goal minimises; infinite for cells that are no candidates. Latency is that of batch 1.
COSTS: Mapping[Goal, Callable[[Cell], float]] = {
    "throughput": lambda cell: cell.seconds_per_image,
    "latency": lambda cell: cell.median_s if cell.batch_size == 1 else math.inf,
    "memory": lambda cell: math.inf if (needed := needed_bytes(cell)) is None else float(needed),
}


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Limits on what is deployed; None sets no limit.

    Attributes:
        max_latency_s: median seconds of one call, at any batch size.
        max_memory_bytes: peak memory of model and inference (``needed_bytes``).
        min_iou: lowest IoU of an image's mask with the reference's, in addition to the bench's own gate.
        require: the masks are ``identical``, differ by ``noise`` only, or along ``edges`` only.
    """

    max_latency_s: float | None = None
    max_memory_bytes: int | None = None
    min_iou: float | None = None
    require: Required | None = None


@dataclass(frozen=True)
class Exclusion:
    """A measured cell that misses a limit.

    Attributes:
        limit: ``parity`` is the bench's own gate, ``unfinished`` was interrupted before its masks were judged,
            ``quality`` has worse masks by the ground truth.
        found: its seconds, bytes or IoU; None if unknown.
    """

    cell: Cell
    limit: Limit
    found: float | None


@dataclass(frozen=True)
class Change:
    """A condition under which another cell is recommended.

    Attributes:
        condition: ``latency below``, ``memory below``, ``masks above``: a limit tighter than ``threshold`` excludes the
            present pick. ``images below``: for fewer images than that, cold start included, the other is done sooner.
        threshold: seconds of one call, bytes, IoU of the worst image, or a number of images.
        cell: the cell recommended then; None if none is left.
    """

    condition: Condition
    threshold: float
    cell: Cell | None


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The cell to deploy for one goal.

    Attributes:
        interval: 95 % interval of its seconds per image (throughput) or per call (latency); None for memory, which is
            measured once, and for too few calls.
        baseline: PyTorch eager at its best batch size (throughput) or at the same one; ``gain`` and ``memory_ratio``
            are relative to it.
        identical: best cell whose masks are identical, unless this is one; None if there is none.
        ties: other cells whose intervals overlap with this one's.
        runner_up: best cell of another variant; its cost is higher by the share ``behind``.
        without_limits: the pick without constraints; None if that is this cell.
        command: command that makes the file it runs; empty if the user has it already.
        uncertain_limit: whether its latency interval reaches beyond the limit.
    """

    goal: Goal
    cell: Cell
    interval: Interval | None
    baseline: Cell | None
    gain: Speedup | None
    memory_ratio: float | None
    verdict: Verdict | None
    quality: Quality | None
    identical: Cell | None
    ties: tuple[Cell, ...]
    runner_up: Cell | None
    behind: float | None
    without_limits: Cell | None
    changes: tuple[Change, ...]
    command: str
    uncertain_limit: bool


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to deploy for each goal, as far as a cell meets the limits; every limit a cell misses is an exclusion."""

    constraints: Constraints
    picks: tuple[Pick, ...]
    excluded: tuple[Exclusion, ...]

    def pick(self, goal: Goal) -> Pick | None:
        """Return the pick for a goal, if there is one."""
        return next((pick for pick in self.picks if pick.goal == goal), None)


def decide(results: Results, constraints: Constraints | None = None) -> Decision:
    """Choose among the cells of the forward scope whose masks passed the gate and that meet the constraints.

    Only the forward scope counts, because a deployment brings its images in and its masks out. The bench may be
    incomplete.
    """
    constraints = constraints or Constraints()
    excluded = [exclusion for cell in _measured(results) for exclusion in _exclusions(cell, results, constraints)]
    fit = fit_cells(results, constraints)
    picks = (_pick(goal, fit, results, constraints) for goal in COSTS)
    return Decision(constraints=constraints, picks=tuple(pick for pick in picks if pick), excluded=tuple(excluded))


def fit_cells(results: Results, constraints: Constraints = Constraints()) -> list[Cell]:
    """Return the cells that can be recommended: measured in the forward scope, with masks that passed the gate.

    Interrupted cells are left out: their masks were never judged.
    """
    return [cell for cell in _measured(results) if not _exclusions(cell, results, constraints)]


def _measured(results: Results) -> list[Cell]:
    return [cell for cell in results.cells if cell.measured and cell.scope == "forward"]


def _exclusions(cell: Cell, results: Results, constraints: Constraints) -> list[Exclusion]:
    """Return the limits a cell misses. An unknown figure misses every limit."""
    found = []
    iou = cell.parity.worst_iou if cell.parity else None
    if cell.status != "ok":
        found.append(Exclusion(cell, "parity", iou))
    elif cell.stopped == "interrupted":
        found.append(Exclusion(cell, "unfinished", None))
    elif quality_of(results, cell) == "worse":
        found.append(Exclusion(cell, "quality", None))
    if (latency := constraints.max_latency_s) is not None and cell.median_s > latency:
        found.append(Exclusion(cell, "latency", cell.median_s))
    needed, most = needed_bytes(cell), constraints.max_memory_bytes
    if most is not None and (needed is None or needed > most):
        found.append(Exclusion(cell, "memory", needed))
    if (least := constraints.min_iou) is not None and (iou is None or iou < least):
        found.append(Exclusion(cell, "masks", iou))
    if cell.status == "ok" and not meets(verdict_of(results, cell), constraints.require):
        found.append(Exclusion(cell, "required", None))
    return found


def _pick(goal: Goal, fit: Sequence[Cell], results: Results, constraints: Constraints) -> Pick | None:
    cost = COSTS[goal]
    candidates = [cell for cell in fit if math.isfinite(cost(cell))]
    if not candidates:
        return None
    ranked = sorted(candidates, key=cost)
    cell, unlimited = ranked[0], min(fit_cells(results), key=cost)
    runner_up = next((other for other in ranked if other.variant != cell.variant), None)
    identical = next((other for other in ranked if verdict_of(results, other) == "identical"), None)
    baseline = _baseline(goal, cell, results)
    needed = needed_bytes(cell)
    base = needed_bytes(baseline) if baseline and baseline is not cell else None
    of_call, per_image = interval_of(cell), interval_per_image(cell)
    ties = [other for other in candidates if (against := versus(cell, other)) and against.tied]
    most = constraints.max_latency_s
    return Pick(
        goal=goal,
        cell=cell,
        interval={"throughput": per_image, "latency": of_call, "memory": None}[goal],
        baseline=baseline,
        gain=versus(baseline, cell),
        memory_ratio=needed / base if needed is not None and base else None,
        verdict=verdict_of(results, cell),
        quality=quality_of(results, cell),
        identical=None if verdict_of(results, cell) == "identical" else identical,
        ties=tuple(ties) if goal != "memory" else (),
        runner_up=runner_up,
        behind=cost(runner_up) / cost(cell) - 1 if runner_up and cost(cell) else None,
        without_limits=None if unlimited is cell else unlimited,
        changes=tuple(_changes(goal, ranked)),
        command=export_command(cell, results),
        uncertain_limit=most is not None and of_call is not None and of_call.high > most,
    )


def _baseline(goal: Goal, cell: Cell, results: Results) -> Cell | None:
    """Return PyTorch eager to compare with: for throughput at its own best batch size."""
    if goal != "throughput":
        return results.cell(pytorch_variant(cell), cell.batch_size or 0)
    eager = [other for other in results.cells if other.measured and other.variant == pytorch_variant(cell)]
    return min(eager, key=lambda other: other.seconds_per_image, default=None)


def export_command(cell: Cell, results: Results) -> str:
    """Return the command that makes the file a cell runs, as it was measured; empty if the user has it already."""
    info, model, options = runtime_info(cell.runtime), results.model, results.options
    exported = cell.precision not in {"int8", "fp16"} and info.engine != "openvino"  # runs the exported file as it is
    if info.takes == "checkpoint" or (exported and model.arguments[:1] == ("--model",)):
        return ""
    words = list(model.arguments)
    if cell.runtime == "tensorrt":
        words += ["--format", "tensorrt", "--precision", cell.precision, "--batch-size", str(cell.batch_size)]
    elif cell.precision in {"int8", "fp16"}:
        words += ["--precision", cell.precision]
    if cell.precision == "int8":
        words += [] if cell.runtime == "tensorrt" else ["--engine", info.engine or "onnxruntime"]
        words += ["--calibration", options.calibration] if options.calibration else []
        words += [] if options.min_iou is None else ["--min-iou", str(options.min_iou)]
    elif cell.precision != "fp16" and info.engine == "openvino":
        words += ["--engine", "openvino"]
    return shlex.join(["segx", "export", *map(_from_here, words)])


def _from_here(word: str) -> str:
    """Return a path below the working directory relative to it, and any other word as it is."""
    with contextlib.suppress(ValueError):
        return str(Path(word).relative_to(Path.cwd()))
    return word


def _changes(goal: Goal, candidates: Sequence[Cell]) -> list[Change]:
    """Return what would change the choice of the first of the candidates, which are in order of cost.

    A tighter limit on the cost itself leaves nothing, and is no change.
    """
    chosen, *others = candidates
    left: dict[tuple[Condition, float], list[Cell]] = {
        ("latency below", chosen.median_s): [c for c in others if c.median_s < chosen.median_s]
    }
    if (needed := needed_bytes(chosen)) is not None:
        smaller = [c for c in others if (other := needed_bytes(c)) is not None and other < needed]
        left["memory below", needed] = smaller
    if chosen.parity and (iou := chosen.parity.worst_iou) < 1.0:
        left["masks above", iou] = [c for c in others if c.parity and c.parity.worst_iou > iou]
    least = COSTS[goal](chosen)
    changes = [Change(*limit, next(iter(cells), None)) for limit, cells in left.items() if limit[1] != least]
    if goal != "memory":  # an earlier first result needs no less memory
        sooner = [(found.images, other) for other in others if (found := break_even(chosen, other)).relation == "after"]
        images, ahead_longest = max(sooner, key=lambda pair: pair[0] or 0.0, default=(None, None))
        if images is not None and images > 1:
            changes.append(Change("images below", images, ahead_longest))
    return changes


@dataclass(frozen=True)
class BreakEven:
    """From how many images on one cell is done sooner than another, both from a cold start.

    Attributes:
        relation: ``always``: starts no later and is no slower. ``after``: starts later and is faster. ``until``: starts
            sooner and is slower. ``never``: neither sooner nor faster. ``unknown``: a cold start was not measured.
        images: images at which the two are even, for ``after`` and ``until``; else None.
    """

    relation: Relation
    images: float | None


def cold_start_s(cell: Cell) -> float | None:
    """Return the seconds to the first result (import, load, first call); None if one was not measured."""
    if cell.import_s is None or cell.load_s is None or cell.first_s is None:
        return None
    return cell.import_s + cell.load_s + cell.first_s


def break_even(cell: Cell, baseline: Cell) -> BreakEven:
    """Compare two measured cells by the time to their n-th image: cold start plus n times the seconds per image."""
    ours, theirs = cold_start_s(cell), cold_start_s(baseline)
    if ours is None or theirs is None:
        return BreakEven("unknown", None)
    later = ours - theirs
    saved = baseline.seconds_per_image - cell.seconds_per_image
    if later <= 0 and saved >= 0:
        return BreakEven("always", None)
    if later >= 0 and saved <= 0:
        return BreakEven("never", None)
    images = later / saved
    if not math.isfinite(images):  # equally fast except for rounding
        return BreakEven("never" if later > 0 else "always", None)
    return BreakEven("after" if later > 0 else "until", images)
