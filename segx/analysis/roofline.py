"""The least time that a machine's arithmetic and memory leave a network: the roofline of its operations and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from segx.results.types import Peaks, Work
from segx.runtimes import Precision, runtime_info

if TYPE_CHECKING:
    from segx.results.types import Cell, Results  # which have these figures as fields

# Of a number that is computed with; files and the work below are fp32.
_BYTES: Mapping[str, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Ceiling:
    """How near a cell comes to what its device can do at best.

    Attributes:
        seconds: that a call takes at least, by the roofline.
        share: of the ceiling reached: ``seconds`` by the measured median. Above 1 where the engine needs fewer
            operations than counted (Winograd convolution) or the peak was measured too low.
        bound_by: what the ceiling is made of.
        operations_per_s: that the cell achieved, of those counted.
    """

    seconds: float
    share: float
    bound_by: Literal["arithmetic", "memory"]
    operations_per_s: float


def ceiling_seconds(work: Work, peaks: Peaks, batch: int, precision: Precision = "fp32") -> float | None:
    """The least seconds that one call may take; None where the device's peak in this precision is not known.

    Arithmetic and traffic at best overlap wholly, so the longer of the two counts.

    Args:
        work: of the network.
        peaks: of the device.
        batch: images per call.
        precision: in which it computes; narrower numbers are fewer bytes.

    Source: Williams, Waterman & Patterson 2009, "Roofline: an Insightful Visual Performance Model".
    """
    parts = _parts(work, peaks, batch, precision)
    return max(parts.values()) if parts else None


def ceiling_of(cell: Cell, results: Results) -> Ceiling | None:
    """How near a measured cell comes to its ceiling; None where work or peak are not known (see ``why_no_ceiling``)."""
    if why_no_ceiling(cell, results):
        return None
    work, size = results.model.work, cell.batch_size
    peaks = results.peaks_of(runtime_info(cell.runtime).device)
    assert work  # both, or there would be a reason
    assert peaks
    assert size
    seconds = ceiling_seconds(work, peaks, size, cell.precision)
    assert seconds
    arithmetic_s = _parts(work, peaks, size, cell.precision)["arithmetic"]
    bound_by: Literal["arithmetic", "memory"] = "arithmetic" if arithmetic_s == seconds else "memory"
    return Ceiling(seconds, seconds / cell.median_s, bound_by, work.operations * size / cell.median_s)


def why_no_ceiling(cell: Cell, results: Results) -> str:
    """Why a cell has none, in words; empty where it has one."""
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


def _parts(work: Work, peaks: Peaks, batch: int, precision: Precision) -> dict[str, float]:
    """Seconds by what they go to; empty where a peak is missing."""
    if not (peak := peaks.operations_per_s.get(precision)):
        return {}
    moved = (work.weight_bytes + batch * work.activation_bytes) * _BYTES[precision] / _BYTES["fp32"]
    return {"arithmetic": batch * work.operations / peak, "memory": moved / peaks.copy_bytes_per_s}
