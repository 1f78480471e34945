"""How many machines, how long and what price a number of images takes with each variant of a bench."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from segx.analysis.figures import interval_per_image, verdict_of
from segx.analysis.recommend import Constraints, cold_start_s, fit_cells
from segx.analysis.stats import Interval
from segx.masks.agreement import Verdict
from segx.results.types import Cell, Required, Results
from segx.runtimes import runtime_info

# measured: from image file to mask file. estimated: the forward time, and the most that files added to another variant.
# forward: without reading and writing images, which the bench did not measure.
Basis = Literal["measured", "estimated", "forward"]


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is to be done.

    Attributes:
        images: number of images.
        deadline_s: seconds in which all of them must have masks.
        price_per_hour: of one machine, in any currency; None if it does not matter.
        cores: usable cores of a machine; None for those of the machine that was measured.
        require: see ``Constraints``.
    """

    images: int
    deadline_s: float
    price_per_hour: float | None = None
    cores: int | None = None
    require: Required | None = None


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The machines that meet a demand with one variant.

    Attributes:
        cell: the cell whose time counts.
        seconds_per_image: of one machine.
        interval: 95% interval of that, within the bench; None for too few rounds.
        start_s: cold start of each machine; None if it was not measured, which counts as 0.
        machines: the fewest machines that are done in time; None if a cold start and one image take longer.
        machines_range: for both ends of the interval; None without it.
        hours: that the machines run, side by side.
        price: of all machines for these hours; None without a price.
    """

    cell: Cell
    basis: Basis
    verdict: Verdict | None
    seconds_per_image: float
    interval: Interval | None
    start_s: float | None
    machines: int | None
    machines_range: tuple[int, int] | None
    hours: float | None
    price: float | None


@dataclass(frozen=True, kw_only=True)
class CapacityPlan:
    """Fleets of all variants whose masks passed, the one that needs the fewest machines first.

    Attributes:
        files_s: the most seconds per image that reading and writing files added to a variant; None if not measured.
        scale: cores that were used over cores of the machines that are planned with.
    """

    demand: Demand
    fleets: tuple[Fleet, ...]
    files_s: float | None
    scale: float


def plan_capacity(results: Results, demand: Demand) -> CapacityPlan:
    """Turn the times of a bench into machines, hours and price.

    For each variant its fastest batch size counts: in the pipeline scope, from image file to mask file, where that was
    measured; else its forward time and the most that files added to another variant. Cells whose masks failed or got
    worse in either scope, and variants that failed in the pipeline scope, are left out. The images are split evenly:
    ``machines = ceil(images * seconds_per_image / (deadline - start))``. The time on a CPU is taken to be in inverse
    proportion to the cores. Without a requirement of masks, that of the bench holds.
    """
    demand = dataclasses.replace(demand, require=demand.require or results.options.require)
    forward, pipeline = _fastest(results, demand)
    added = [
        cell.seconds_per_image - forward[name].seconds_per_image for name, cell in pipeline.items() if name in forward
    ]
    files_s = max(0.0, *added) if added else None
    scale = 1.0 if demand.cores is None else min(results.options.threads, results.machine.cores_usable) / demand.cores
    fleets = []
    failed = {name_of(cell) for cell in results.cells if cell.scope == "pipeline"} - pipeline.keys()
    for name in dict.fromkeys((*pipeline, *(name for name in forward if name not in failed))):
        basis: Basis = "measured" if name in pipeline else "forward" if files_s is None else "estimated"
        start_s = cold_start_s(forward[name]) if name in forward else None
        fleets.append(
            _fleet(
                results,
                demand,
                pipeline.get(name) or forward[name],
                basis,
                added_s=files_s or 0.0 if basis == "estimated" else 0.0,
                start_s=start_s,
                scale=scale,
            )
        )
    fleets.sort(key=lambda fleet: (fleet.machines or math.inf, fleet.seconds_per_image))
    return CapacityPlan(demand=demand, fleets=tuple(fleets), files_s=files_s, scale=scale)


def _fastest(results: Results, demand: Demand) -> tuple[dict[str, Cell], dict[str, Cell]]:
    """Return the fastest cells in the forward and the pipeline scope of each variant, by ``runtime:precision``.

    Only the forward scope judges logits and the quality of masks, so a cell of the pipeline scope counts only if that
    of the forward scope passed too, where it was measured.
    """
    constraints = Constraints(require=demand.require)
    forward, pipeline = (fit_cells(results, constraints, scope) for scope in ("forward", "pipeline"))
    passed = {(name_of(cell), cell.batch_size) for cell in forward}
    judged = {(name_of(cell), cell.batch_size) for cell in results.cells if cell.measured and cell.scope == "forward"}
    trusted = [cell for cell in pipeline if (name_of(cell), cell.batch_size) not in judged - passed]
    return _fastest_of_each(forward), _fastest_of_each(trusted)


def _fastest_of_each(cells: Iterable[Cell]) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for cell in cells:
        found[name_of(cell)] = min(found.get(name_of(cell), cell), cell, key=lambda each: each.seconds_per_image)
    return found


def name_of(cell: Cell) -> str:
    """Return ``runtime:precision``, in any scope."""
    return f"{cell.runtime}:{cell.precision}"


def _fleet(
    results: Results, demand: Demand, cell: Cell, basis: Basis, *, added_s: float, start_s: float | None, scale: float
) -> Fleet:
    scale = scale if runtime_info(cell.runtime).device == "cpu" else 1.0
    per_image_s, within = (cell.seconds_per_image + added_s) * scale, interval_per_image(cell)
    interval = Interval(*((end + added_s) * scale for end in (within.low, within.high))) if within else None
    machines = _machines(demand, per_image_s, start_s or 0.0)
    ends = [_machines(demand, end, start_s or 0.0) for end in (interval.low, interval.high)] if interval else []
    hours = price = None
    if machines:
        hours = ((start_s or 0.0) + demand.images * per_image_s / machines) / 3600
        price = None if demand.price_per_hour is None else machines * hours * demand.price_per_hour
    return Fleet(
        cell=cell,
        basis=basis,
        verdict=verdict_of(results, cell),
        seconds_per_image=per_image_s,
        interval=interval,
        start_s=start_s,
        machines=machines,
        machines_range=(ends[0], ends[1]) if ends and ends[0] and ends[1] else None,
        hours=hours,
        price=price,
    )


def _machines(demand: Demand, per_image_s: float, start_s: float) -> int | None:
    left_s = demand.deadline_s - start_s
    return max(1, math.ceil(demand.images * per_image_s / left_s)) if left_s >= per_image_s else None
