"""How much memory this process holds for itself, by the kernel's own accounting. Linux; blank elsewhere."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

from segx.results.types import HostMemory

_PROC = Path("/proc/self")
_RESET_PEAK = "5"
_INTERVAL_S = 0.01


class HostMemoryMeter:
    """Measures from its creation on, for the life of the process."""

    def __init__(self) -> None:
        self._imported = private_bytes()
        self._loaded: int | None = None
        self._sampler = None if _reset_peak() else _PeakSampler()

    def model_is_loaded(self) -> None:
        """Keep what the model takes by itself."""
        self._loaded = private_bytes()

    def about_to_time(self) -> None:
        """Nothing may run beside timed calls: where the peak has to be sampled, it is that of loading and warm-up."""
        if self._sampler:
            self._sampler.stop()

    def read(self) -> HostMemory | None:
        """The figures so far; None where the system does not tell."""
        steady = private_bytes()
        if steady is None or self._imported is None:
            return None
        if self._sampler:
            peak, method = self._sampler.stop(), f"sampled every {_INTERVAL_S * 1e3:.0f} ms until the timed calls"
        else:
            peak, method = _private_peak(steady), "VmHWM reset after import"
        return HostMemory(
            imported_bytes=self._imported,
            loaded_bytes=self._loaded,
            steady_bytes=steady,
            peak_bytes=max(steady, peak),
            method=f"private dirty pages (smaps_rollup), peak: {method}",
        )


def _private_peak(private: int) -> int:
    """Highest private memory since the peak was reset.

    The kernel keeps a peak for resident memory alone (VmHWM). While a model runs its file pages do not shrink, so the
    private peak is that less the resident pages that are not private now. (A file that was mapped at the very peak and
    unmapped since would count: the figure errs upwards, if at all.)
    """
    return _status_bytes("VmHWM") - (_status_bytes("VmRSS") - private)


class _PeakSampler:
    """Looks at private memory from a thread, where the kernel's own peak cannot be reset."""

    def __init__(self) -> None:
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._peak = max(self._peak, private_bytes() or 0)

    def stop(self) -> int:
        """End the thread; gives the peak it saw."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._peak = max(self._peak, private_bytes() or 0)
        return self._peak


def private_bytes() -> int | None:
    """Private dirty memory of this process, swapped-out pages included; None where the system does not tell."""
    try:
        lines = (_PROC / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kibibytes = {
        key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines) if rest.endswith("kB")
    }
    return (kibibytes.get("Private_Dirty", 0) + kibibytes.get("Swap", 0)) * 1024


def _status_bytes(key: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> bool:
    """Restart VmHWM from the current resident memory; some containers deny it."""
    try:
        (_PROC / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def limit_this_process(limit_bytes: int) -> None:
    """Make allocations of ``limit_bytes`` beyond what this process has now fail, rather than wake the OOM killer.

    Limits data (RLIMIT_DATA: private writable mappings), not address space, of which CUDA reserves far more than it
    uses. No effect outside Linux, where that limit does not cover mappings.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = _status_bytes("VmData") + limit_bytes
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def offer_to_oom_killer() -> None:
    """Ask the kernel to kill this process before its parent when memory runs out altogether."""
    try:
        (_PROC / "oom_score_adj").write_text("1000")
    except OSError:
        return  # not Linux, or denied: the limit above still holds


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory since boot; 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
