"""Memory of this process and of a GPU, read from the kernel and from NVML, and a limit on allocations."""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from segx.errors import InferenceError
from segx.system.files import read_field, read_kibibytes
from segx.system.nvml import Nvml

_PROC = Path("/proc/self")
_RESET_PEAK = "5"
_INTERVAL_S = 0.01


class HostReading(NamedTuple):
    """Dirty memory in bytes; ``loaded_bytes`` is None if no model was loaded."""

    imported_bytes: int
    loaded_bytes: int | None
    steady_bytes: int
    peak_bytes: int
    method: str


class DeviceReading(NamedTuple):
    """Memory of a GPU taken by one worker, in bytes."""

    peak_bytes: int
    steady_bytes: int
    method: str


class HostMemoryMeter:
    """Measure the memory that this process, or others, write from the creation of the meter on. Linux only."""

    def __init__(self, processes: Sequence[Path] = (_PROC,)) -> None:
        """Start with folders of processes under /proc."""
        self._processes = processes
        self._imported = self._dirty()
        self._loaded: int | None = None
        can_reset = all(_reset_peak(process) for process in processes)
        self._sampler = None if can_reset else _Sampler(lambda: self._dirty() or 0)

    def model_is_loaded(self) -> None:
        """Record the memory held once the model is loaded."""
        self._loaded = self._dirty()

    def about_to_time(self) -> None:
        """Stop the sampling thread, if there is one: no other thread may run during timed calls."""
        if self._sampler:
            self._sampler.stop()

    def read(self) -> HostReading | None:
        """Return the figures so far; None where the kernel does not report them."""
        steady = self._dirty()
        if steady is None or self._imported is None:
            return None
        if self._sampler:
            peak, method = self._sampler.stop(), f"sampled every {_INTERVAL_S * 1e3:.0f} ms until the timed calls"
        else:
            # The kernel keeps a peak of resident memory only (VmHWM). File pages do not shrink while a model runs, so
            # the peak of dirty memory is VmHWM less the resident pages that are not dirty now. A file mapped at the
            # peak and unmapped since would count, so the figure can only be too high.
            peak, method = self._total("VmHWM") - (self._total("VmRSS") - steady), "VmHWM reset after import"
        others = "" if self._processes == (_PROC,) else f" of {len(self._processes)} processes"
        return HostReading(
            self._imported,
            self._loaded,
            steady,
            max(steady, self._loaded or 0, peak),  # a process may have ended since
            f"dirty pages (smaps_rollup){others}, peak: {method}",
        )

    def _dirty(self) -> int | None:
        found = [dirty for process in self._processes if (dirty := dirty_bytes(process)) is not None]
        return sum(found) if found else None

    def _total(self, key: str) -> int:
        return sum(_status_bytes(process, key) for process in self._processes)


class DeviceMemoryMeter:
    """Measure how much memory of a GPU one worker takes, while the other workers are stopped.

    Uses NVML's device-wide figure, so nothing else may use the GPU. Per-process figures do not work in containers,
    where NVML reports the host's process ids.
    """

    def __init__(self, gpu: Nvml | None) -> None:
        self._gpu = gpu
        self._own = 0
        self._peak = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Attribute every change of the device's used memory within the block to this worker."""
        if self._gpu is None:
            yield
            return
        gpu, others = self._gpu, self._gpu.used_bytes() - self._own
        sampler = _Sampler(lambda: gpu.used_bytes() - others)
        try:
            yield
        finally:
            sampler.stop(last_look=False)
            self._own = gpu.used_bytes() - others
            self._peak = max(self._peak, sampler.peak, self._own)

    def read(self) -> DeviceReading | None:
        """Return the figures so far; None without NVML."""
        if self._gpu is None:
            return None
        return DeviceReading(self._peak, self._own, f"NVML device-wide, every {_INTERVAL_S * 1000:.0f} ms")


class _Sampler:
    """Track the highest value of a reading from a thread."""

    def __init__(self, read: Callable[[], int]) -> None:
        self.peak = 0
        self._read = read
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        with contextlib.suppress(InferenceError):  # a lost GPU is reported by whoever leaves the watched block
            while not self._stop.wait(_INTERVAL_S):
                self.peak = max(self.peak, self._read())

    def stop(self, *, last_look: bool = True) -> int:
        """End the thread and return the peak."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            if last_look:
                self.peak = max(self.peak, self._read())
        return self.peak


def dirty_bytes(process: Path) -> int | None:
    """Return the memory a process has written, including swapped-out pages; None where it is not reported.

    Pages shared with the fork server count, so that writing to one of them changes nothing.
    """
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kibibytes = {
        key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines) if rest.endswith("kB")
    }
    return sum(kibibytes.get(key, 0) for key in ("Private_Dirty", "Shared_Dirty", "Swap")) * 1024


def _status_bytes(process: Path, key: str) -> int:
    return read_kibibytes(process / "status", key)


def _reset_peak(process: Path) -> bool:
    """Restart VmHWM from the current resident memory; return False if the container denies it."""
    try:
        (process / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def limit_this_process(limit_bytes: int) -> None:
    """Make allocations fail beyond ``limit_bytes`` on top of what this process has now, before the OOM killer acts.

    Limits private writable mappings (RLIMIT_DATA), not address space: CUDA reserves far more of that than it uses.
    No effect outside Linux, where that limit does not cover mappings.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = _status_bytes(_PROC, "VmData") + limit_bytes
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def prefer_for_oom_kill() -> None:
    """Ask the kernel to kill this process before its parent when memory runs out."""
    with contextlib.suppress(OSError):  # not Linux, or denied: the limit above still holds
        (_PROC / "oom_score_adj").write_text("1000")


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since boot; 0 where it is not reported."""
    return int(read_field(Path("/proc/vmstat"), "oom_kill") or 0)
