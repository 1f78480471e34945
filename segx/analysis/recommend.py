"""Recommend what to deploy under the user's limits, how certain that is, and what would change it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segx.analysis.figures import (
    EQUAL,
    Speedup,
    best_of,
    interval_of,
    needed_bytes,
    pytorch_base,
    quality_of,
    verdict_of,
    versus,
    versus_pytorch,
)
from segx.masks.agreement import Quality, Verdict, meets
from segx.results.types import Cell, Required, Results
from segx.runtimes import Scope, runtime_info
from segx.system.text import command_line

Limit = Literal["parity", "unfinished", "quality", "latency", "memory", "masks", "required"]
Purpose = Literal["identical", "memory", "latency", "throughput", "few images"]


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
class Alternative:
    """A cell that is better than the recommended one for a purpose.

    Attributes:
        purpose: ``identical``: the masks must be the reference's. ``memory``: it needs less. ``latency``: a call takes
            less time. ``throughput``: it is faster beyond noise, though not by much. ``few images``: it is done with
            fewer than ``images`` images sooner, cold start included.
    """

    purpose: Purpose
    cell: Cell
    images: int = 0


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The cell to deploy.

    Attributes:
        base: what its gain is relative to: ``pytorch_base``.
        ties: other cells of the same batch size or variant whose ratio to this one includes 1.
        runner_up: the best cell of another variant.
        without_limits: the pick without constraints; None if that is this cell.
        command: command that makes the file it runs; empty if the user has it already.
        uncertain_limit: whether its latency interval reaches beyond the limit.
    """

    cell: Cell
    base: Cell | None
    gain: Speedup | None
    verdict: Verdict | None
    quality: Quality | None
    alternatives: tuple[Alternative, ...]
    ties: tuple[Cell, ...]
    runner_up: Cell | None
    without_limits: Cell | None
    command: str
    uncertain_limit: bool


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to deploy, if a cell meets the limits; every limit a cell misses is an exclusion."""

    constraints: Constraints
    pick: Pick | None
    excluded: tuple[Exclusion, ...]


def decide(results: Results, constraints: Constraints | None = None) -> Decision:
    """Choose among the cells of the forward scope whose masks passed the gate and that meet the constraints.

    Only the forward scope counts, because a deployment brings its images in and its masks out. The bench may be
    incomplete. Without a requirement of masks, that of the bench holds.
    """
    constraints = constraints or Constraints()
    constraints = dataclasses.replace(constraints, require=constraints.require or results.options.require)
    excluded = [exclusion for cell in _measured(results) for exclusion in _exclusions(cell, results, constraints)]
    pick = _pick(fit_cells(results, constraints), results, constraints)
    return Decision(constraints=constraints, pick=pick, excluded=tuple(excluded))


def fit_cells(results: Results, constraints: Constraints = Constraints(), scope: Scope = "forward") -> list[Cell]:
    """Return the cells of a scope that can be recommended: measured, with masks that passed the gate.

    Interrupted cells are left out: their masks were never judged.
    """
    return [cell for cell in _measured(results, scope) if not _exclusions(cell, results, constraints)]


def _measured(results: Results, scope: Scope = "forward") -> list[Cell]:
    cells = [cell for cell in results.cells if cell.measured and cell.scope == scope]
    # Runtimes in a browser serve other users: they are recommended only if nothing else was measured.
    return [cell for cell in cells if not runtime_info(cell.runtime).in_browser] or cells


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


def _pick(fit: Sequence[Cell], results: Results, constraints: Constraints) -> Pick | None:
    cell = best_of(fit, results)
    if cell is None:
        return None
    others = [other for other in fit if other is not cell]
    unlimited = best_of(fit_cells(results), results)
    base, most, of_call = pytorch_base(cell, results), constraints.max_latency_s, interval_of(cell)
    return Pick(
        cell=cell,
        base=base,
        gain=versus_pytorch(cell, results),
        verdict=verdict_of(results, cell),
        quality=quality_of(results, cell),
        alternatives=_alternatives(cell, others, results),
        ties=tuple(other for other in others if (against := versus(cell, other)) and against.tied),
        runner_up=best_of((other for other in others if other.variant != cell.variant), results),
        without_limits=None if unlimited is cell else unlimited,
        command=export_command(cell, results),
        uncertain_limit=most is not None and of_call is not None and of_call.high > most,
    )


def _alternatives(cell: Cell, others: Sequence[Cell], results: Results) -> tuple[Alternative, ...]:
    """Return what serves each purpose better; for few images only what serves no other."""
    listed: list[Alternative] = []
    if verdict_of(results, cell) != "identical":
        identical = [other for other in others if verdict_of(results, other) == "identical"]
        if best := best_of(identical, results):
            listed.append(Alternative("identical", best))

    def memory(of: Cell) -> float:
        return math.inf if (needed := needed_bytes(of)) is None else needed

    least = min(others, key=memory, default=cell)
    if memory(least) < (1 - EQUAL) * memory(cell):
        listed.append(Alternative("memory", least))
    shortest = min(others, key=lambda other: other.median_s, default=cell)
    if shortest.median_s < (1 - EQUAL) * cell.median_s:
        listed.append(Alternative("latency", shortest))
    fastest = min(others, key=lambda other: other.seconds_per_image, default=cell)
    if (gain := versus(cell, fastest)) and gain.ratio > 1 and not gain.tied:
        listed.append(Alternative("throughput", fastest))
    sooner = [(images, other) for other in others if (images := break_even(cell, other)) and math.isfinite(images)]
    images, ahead_longest = max(sooner, key=lambda pair: pair[0], default=(0.0, cell))
    if images > 1 and not any(each.cell is ahead_longest for each in listed):
        listed.append(Alternative("few images", ahead_longest, math.ceil(images)))
    return tuple(listed)


def export_command(cell: Cell, results: Results) -> str:
    """Return the command that makes the file a cell runs, as it was measured; empty if the user has it already."""
    info, model, options = runtime_info(cell.runtime), results.model, results.options
    converted = cell.precision == "int8" or (cell.precision == "fp16" and info.engine != "openvino")
    exported = not converted and info.engine != "openvino"  # runs the exported file as it is
    if info.takes == "checkpoint" or (exported and model.arguments[:1] == ("--model",)):
        return ""
    words = list(model.arguments)
    if cell.runtime == "tensorrt":
        words += ["--format", "tensorrt", "--precision", cell.precision, "--batch-size", str(cell.batch_size)]
    elif converted:
        words += ["--precision", cell.precision]
    if cell.precision == "int8":
        words += [] if cell.runtime == "tensorrt" else ["--engine", info.engine or "onnxruntime"]
        words += ["--calibration", options.calibration] if options.calibration else []
        words += [] if options.min_iou is None else ["--min-iou", str(options.min_iou)]
    elif info.engine == "openvino":
        words += ["--engine", "openvino"]
    return command_line(["segx", "export", *words])


def cold_start_s(cell: Cell) -> float | None:
    """Return the seconds to the first result (import, load, first call); None if one was not measured."""
    if cell.import_s is None or cell.load_s is None or cell.first_s is None:
        return None
    return cell.import_s + cell.load_s + cell.first_s


def break_even(cell: Cell, baseline: Cell) -> float | None:
    """Return from how many images on a measured cell is done sooner than another, both from a cold start.

    The time to the n-th image is the cold start plus n times the seconds per image. Returns 0 if the cell starts no
    later and is no slower; infinity if it is not faster, also if it starts sooner and is overtaken; None if a cold
    start was not measured.
    """
    ours, theirs = cold_start_s(cell), cold_start_s(baseline)
    if ours is None or theirs is None:
        return None
    later = ours - theirs
    saved = baseline.seconds_per_image - cell.seconds_per_image
    if later <= 0 and saved >= 0:
        return 0.0
    return later / saved if saved > 0 else math.inf
