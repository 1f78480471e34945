"""What the machine took from a cell while it was sampled: throttling, stolen time, clocks."""

from __future__ import annotations

import os
from pathlib import Path

from segx.results.types import Round
from segx.system import machine
from segx.system.files import read_field
from segx.system.nvml import Nvml

_STAT = Path("/proc/stat")


class RoundConditions:
    """Read counters when a round begins, and record what happened since."""

    def __init__(self, gpu: Nvml | None, *, own_load: bool = False) -> None:
        """Read the counters; with ``own_load``, the load is the cell's own and tells nothing about the machine."""
        self._gpu = gpu
        self._own_load = own_load
        self._throttled_s, self._stolen_s = throttled_s(), stolen_s()

    def record(self, number: int, runs: int, process: int = 0) -> Round:
        """Return the record of the round that ends now."""
        return Round(
            number=number,
            runs=runs,
            process=process,
            load=None if self._own_load else os.getloadavg()[0],
            throttled_s=throttled_s() - self._throttled_s,
            stolen_s=stolen_s() - self._stolen_s,
            gpu_mhz=self._gpu.clock_mhz() if self._gpu else None,
            gpu_slowed=", ".join(self._gpu.slowed_by()) if self._gpu else "",
        )


def throttled_s(root: Path | None = None) -> float:
    """Return the seconds for which quotas have stopped processes so far, of the cgroup that was stopped the longest."""
    readings = (
        (read_field(folder / "cpu.stat", key), unit)
        for folder in machine.cgroups("cpu", root)
        for key, unit in (("throttled_usec", 1e-6), ("throttled_time", 1e-9))
    )
    return max((int(value) * unit for value, unit in readings if value), default=0.0)


def stolen_s(stat: Path = _STAT) -> float:
    """Return the processor seconds that the hypervisor has given to other guests so far; 0 if not reported."""
    fields = (read_field(stat, "cpu") or "").split()
    return int(fields[7]) / os.sysconf("SC_CLK_TCK") if len(fields) > 7 else 0.0
