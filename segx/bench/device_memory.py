"""GPU memory seen from outside the worker: the device-wide used bytes by NVML, sampled while the worker lives."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from segx.bench.results import DeviceMemory

_INTERVAL_S = 0.01


class DeviceMemorySampler:
    """Watches one GPU while one worker is active; the others stand still meanwhile, with the memory they hold.

    Device-wide, so nothing but these workers may use the GPU. Figures by process are no way out: in containers NVML
    knows only the host's process ids.
    """

    def __init__(self, device_index: int) -> None:
        self._handle = _nvml_handle(device_index)
        self._own = 0
        self._peak = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Charge what the device's used memory gains or loses within the block to this worker."""
        if self._handle is None:
            yield
            return
        others = _used_bytes(self._handle) - self._own
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(others, stop), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            self._own = _used_bytes(self._handle) - others
            self._peak = max(self._peak, self._own)

    def _watch(self, others: int, stop: threading.Event) -> None:
        while not stop.wait(_INTERVAL_S):
            self._peak = max(self._peak, _used_bytes(self._handle) - others)

    def read(self) -> DeviceMemory | None:
        """The peak so far; None without NVML."""
        if self._handle is None:
            return None
        return DeviceMemory(self._peak, f"NVML device-wide, every {_INTERVAL_S * 1000:.0f} ms")


def _nvml_handle(device_index: int) -> Any | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name.strip() for name in visible.split(",") if name.strip()]
        # CUDA counts only the visible devices, NVML all of them.
        chosen = names[device_index] if device_index < len(names) else str(device_index)
        if chosen.isdigit():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(chosen))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(chosen)
        pynvml.nvmlDeviceGetMemoryInfo(handle)  # not every device tells
        return handle
    except pynvml.NVMLError:
        return None


def _used_bytes(handle: Any) -> int:
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
