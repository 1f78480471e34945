"""Figures of one cell that need more than its own fields."""

from __future__ import annotations

import math

from segx.masks.agreement import LIMITS, ParityLimits, Quality, Verdict, quality, verdict
from segx.results.types import BenchOptions, Cell, Results
from segx.runtimes import Precision, runtime_info


def needed_bytes(cell: Cell) -> int | None:
    """Return the peak memory of model and inference where the cell computes, in bytes.

    The device's memory on CUDA, else the host's above the imported libraries. None if it was not measured.
    """
    if runtime_info(cell.runtime).device == "cuda":
        return cell.device_memory.peak_bytes if cell.device_memory else None
    return cell.host_memory.needed_bytes if cell.host_memory else None


def seconds_for(cell: Cell, images: int) -> tuple[float, bool]:
    """Return the seconds to run ``images`` images, and whether that was measured.

    Measured where the timed calls took at least that many images through: the mean of the complete passes. Else
    projected from the median. The last call of a pass counts whole, as it does in use. In the pipeline scope every
    sample is of a whole pass.
    """
    assert cell.batch_size  # measured cells have one
    if cell.scope == "pipeline":
        return sum(cell.samples_s) / len(cell.samples_s) / cell.batch_size * images, True
    calls = math.ceil(images / cell.batch_size)
    passes = len(cell.samples_s) // calls
    if passes:
        return sum(cell.samples_s[: passes * calls]) / passes, True
    return calls * cell.median_s, False


def limits_for(precision: Precision, options: BenchOptions) -> ParityLimits:
    """Return how far masks may differ: the user's own gates, else what the precision allows."""
    return LIMITS[precision].with_gates(min_iou=options.min_iou, max_flips=options.max_flips)


def verdict_of(results: Results, cell: Cell) -> Verdict | None:
    """Return what the differences of a cell's masks amount to; None if its masks were not judged."""
    return verdict(cell.parity, limits_for(cell.precision, results.options)) if cell.parity else None


def quality_of(results: Results, cell: Cell) -> Quality | None:
    """Return whether a cell's masks are as good as the reference's; None without ground truth."""
    return quality(cell.parity, results.options.max_loss) if cell.parity else None
