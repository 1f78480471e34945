"""GPU memory seen from outside the worker: the device-wide used bytes by NVML, sampled while the worker lives."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from segx.errors import InferenceError
from segx.results.types import DeviceMemory
from segx.system.nvml import Nvml

_INTERVAL_S = 0.01


class DeviceMemorySampler:
    """Watches one GPU while one worker is active; the others stand still meanwhile, with the memory they hold.

    Device-wide, so nothing but these workers may use the GPU. Figures by process are no way out: in containers NVML
    knows only the host's process ids.
    """

    def __init__(self, gpu: Nvml | None) -> None:
        self._gpu = gpu
        self._own = 0
        self._peak = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Charge what the device's used memory gains or loses within the block to this worker."""
        if self._gpu is None:
            yield
            return
        others = self._gpu.used_bytes() - self._own
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(self._gpu, others, stop), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            self._own = self._gpu.used_bytes() - others
            self._peak = max(self._peak, self._own)

    def _watch(self, gpu: Nvml, others: int, stop: threading.Event) -> None:
        with contextlib.suppress(InferenceError):  # a lost device is told by who leaves the block
            while not stop.wait(_INTERVAL_S):
                self._peak = max(self._peak, gpu.used_bytes() - others)

    def read(self, counted: tuple[int, str] | None = None) -> DeviceMemory | None:
        """The figures so far, beside what the framework counted itself; None without NVML."""
        if self._gpu is None:
            return None
        counter_bytes, counter = counted or (None, "")
        return DeviceMemory(
            peak_bytes=self._peak,
            steady_bytes=self._own,
            method=f"NVML device-wide, every {_INTERVAL_S * 1000:.0f} ms",
            counter_bytes=counter_bytes,
            counter=counter,
        )
