"""GPU memory seen from outside the worker: the device-wide used bytes by NVML, sampled while the worker lives."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any, Self

from segx.bench.results import DeviceMemory

_INTERVAL_S = 0.01


class DeviceMemorySampler:
    """Watches one GPU between entering and leaving.

    Device-wide, less what was used on entering, so nothing else may use the GPU meanwhile. Figures by process are no
    way out: in containers NVML knows only the host's process ids.
    """

    def __init__(self, device_index: int) -> None:
        self._device_index = device_index
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._before = 0
        self._peak = 0

    def __enter__(self) -> Self:
        handle = _nvml_handle(self._device_index)
        if handle is not None:
            self._before = self._peak = _used_bytes(handle)
            self._thread = threading.Thread(target=self._watch, args=(handle,), daemon=True)
            self._thread.start()
        return self

    def _watch(self, handle: Any) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._peak = max(self._peak, _used_bytes(handle))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def read(self) -> DeviceMemory | None:
        """The peak so far above what was used before; None without NVML."""
        if self._thread is None:
            return None
        return DeviceMemory(self._peak - self._before, f"NVML device-wide, every {_INTERVAL_S * 1000:.0f} ms")


def _nvml_handle(device_index: int) -> Any | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name.strip() for name in visible.split(",") if name.strip()]
        # CUDA counts only the visible devices, NVML all of them.
        chosen = names[device_index] if device_index < len(names) else str(device_index)
        if chosen.isdigit():
            return pynvml.nvmlDeviceGetHandleByIndex(int(chosen))
        return pynvml.nvmlDeviceGetHandleByUUID(chosen)
    except pynvml.NVMLError:
        return None


def _used_bytes(handle: Any) -> int:
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
