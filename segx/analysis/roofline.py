"""Roofline of a network on a device: the least time its arithmetic and memory traffic take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from segx.results.types import Cell, Peaks, Results
from segx.runtimes import runtime_info

Bound = Literal["arithmetic", "memory"]

# Bytes per number; files and the counted work are fp32.
_BYTES: Mapping[str, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Ceiling:
    """How close a cell comes to the roofline of its device.

    Attributes:
        seconds: least seconds of a call.
        share: ``seconds`` divided by the measured median, at most 1.
        operations_per_s: counted operations per second that the cell achieved.
    """

    seconds: float
    share: float
    bound_by: Bound
    operations_per_s: float


def ceiling_of(cell: Cell, results: Results) -> Ceiling | None:
    """Return how close a measured cell comes to its roofline; None if ``why_no_ceiling`` gives a reason.

    Arithmetic and memory traffic overlap completely at best, so the longer of the two counts.

    Source: Williams, Waterman & Patterson 2009, "Roofline: an Insightful Visual Performance Model".
    """
    return None if why_no_ceiling(cell, results) else _ceiling(cell, results)


def _ceiling(cell: Cell, results: Results) -> Ceiling | None:
    work, size, peaks = results.model.work, cell.batch_size, _peaks(cell, results)
    if not (work and peaks and size):
        return None
    moved_bytes = (work.weight_bytes + size * work.activation_bytes) * _BYTES[cell.precision] / _BYTES["fp32"]
    parts: dict[Bound, float] = {
        "arithmetic": size * work.operations / peaks.operations_per_s[cell.precision],
        "memory": moved_bytes / peaks.copy_bytes_per_s,
    }
    bound_by = max(parts, key=lambda part: parts[part])
    seconds = parts[bound_by]
    return Ceiling(seconds, seconds / cell.median_s, bound_by, work.operations * size / cell.median_s)


def why_no_ceiling(cell: Cell, results: Results) -> str:
    """Return why a cell has no roofline; empty if it has one."""
    if not cell.measured:
        return "it was not measured"
    if results.model.work is None:
        return "the network's operations were not counted"
    if (peaks := _peaks(cell, results)) is None:
        return "the device's peaks were not measured"
    if cell.precision not in peaks.operations_per_s:
        return peaks.missing.get(cell.precision, f"the device's peak in {cell.precision} was not measured")
    # The engine has faster kernels than the probe, or needs fewer operations than counted (Winograd convolution).
    beaten = (found := _ceiling(cell, results)) is not None and found.share > 1
    return "peak not reached by the probe: the cell beats it" if beaten else ""


def _peaks(cell: Cell, results: Results) -> Peaks | None:
    return results.peaks_of(runtime_info(cell.runtime).device)
