"""One NVIDIA GPU as its driver's management library (NVML) sees it: memory, clocks, why it is slow. No CUDA context."""

from __future__ import annotations

import os
from typing import Any

from segx.errors import InferenceError

# Why clocks are below what they could be, of NVML's reasons (nvml.h, nvmlClocksEventReason…); idling is none.
_SLOWED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class Nvml:
    """A handle on one GPU."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    @classmethod
    def of_cuda_device(cls, index: int) -> Nvml | None:
        """The GPU that CUDA counts as ``index``; None where there is none, or NVML does not tell its memory."""
        import pynvml

        try:
            pynvml.nvmlInit()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            names = [name.strip() for name in visible.split(",") if name.strip()]
            # CUDA counts only the visible devices, NVML all of them.
            if names and index >= len(names):
                return None
            chosen = names[index] if names else str(index)
            if chosen.isdigit():
                handle = pynvml.nvmlDeviceGetHandleByIndex(int(chosen))
            else:
                handle = pynvml.nvmlDeviceGetHandleByUUID(chosen)
            pynvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError:
            return None
        return cls(pynvml, handle)

    def used_bytes(self) -> int:
        """Memory in use on the whole device, by whomever.

        Raises:
            InferenceError: the device is gone.
        """
        try:
            return int(self._library.nvmlDeviceGetMemoryInfo(self._handle).used)
        except self._library.NVMLError as error:
            raise InferenceError(f"NVML lost the GPU: {error}", hint="look for an Xid in the kernel's log") from error

    def clock_mhz(self) -> int | None:
        """Clock of the multiprocessors now; None where the device does not tell."""
        try:
            return int(self._library.nvmlDeviceGetClockInfo(self._handle, self._library.NVML_CLOCK_SM))
        except self._library.NVMLError:
            return None

    def slowed_by(self) -> tuple[str, ...]:
        """What holds the clocks down now, in words; empty where nothing does, or the device does not tell."""
        try:
            reasons = int(self._library.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        except self._library.NVMLError:
            return ()
        return tuple(words for bit, words in _SLOWED.items() if reasons & bit)
