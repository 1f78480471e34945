"""Roofline of a network on a device: the least time its arithmetic and memory traffic take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from segx.results.types import Cell, Peaks, Results, Work
from segx.runtimes import Precision, runtime_info

Bound = Literal["arithmetic", "memory"]

# Bytes per number; files and the counted work are fp32.
_BYTES: Mapping[str, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Ceiling:
    """How close a cell comes to the roofline of its device.

    Attributes:
        seconds: least seconds of a call.
        share: ``seconds`` divided by the measured median. Above 1 if the engine needs fewer operations than counted
            (Winograd convolution) or the measured peak is too low.
        operations_per_s: counted operations per second that the cell achieved.
    """

    seconds: float
    share: float
    bound_by: Bound
    operations_per_s: float


def ceiling_seconds(work: Work, peaks: Peaks, batch: int, precision: Precision = "fp32") -> float | None:
    """Return the least seconds of one call; None if the device's peak in this precision is unknown.

    Arithmetic and memory traffic overlap completely at best, so the longer of the two counts. The precision gives the
    bytes per number.

    Source: Williams, Waterman & Patterson 2009, "Roofline: an Insightful Visual Performance Model".
    """
    parts = _parts(work, peaks, batch, precision)
    return max(parts.values()) if parts else None


def ceiling_of(cell: Cell, results: Results) -> Ceiling | None:
    """Return how close a measured cell comes to its roofline; None if ``why_no_ceiling`` gives a reason."""
    work, size = results.model.work, cell.batch_size
    peaks = results.peaks_of(runtime_info(cell.runtime).device)
    if why_no_ceiling(cell, results) or not (work and peaks and size):
        return None
    parts = _parts(work, peaks, size, cell.precision)
    bound_by = max(parts, key=lambda part: parts[part])
    seconds = parts[bound_by]
    return Ceiling(seconds, seconds / cell.median_s, bound_by, work.operations * size / cell.median_s)


def why_no_ceiling(cell: Cell, results: Results) -> str:
    """Return why a cell has no roofline; empty if it has one."""
    if not cell.measured:
        return "it was not measured"
    if results.model.work is None:
        return "the network's operations were not counted"
    peaks = results.peaks_of(runtime_info(cell.runtime).device)
    if peaks is None:
        return "the device's peaks were not measured"
    if cell.precision not in peaks.operations_per_s:
        return peaks.missing.get(cell.precision, f"the device's peak in {cell.precision} was not measured")
    return ""


def _parts(work: Work, peaks: Peaks, batch: int, precision: Precision) -> dict[Bound, float]:
    """Return the seconds of arithmetic and of memory traffic; empty if a peak is missing."""
    if not (peak := peaks.operations_per_s.get(precision)):
        return {}
    moved = (work.weight_bytes + batch * work.activation_bytes) * _BYTES[precision] / _BYTES["fp32"]
    return {"arithmetic": batch * work.operations / peak, "memory": moved / peaks.copy_bytes_per_s}
