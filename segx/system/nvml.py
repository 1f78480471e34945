"""Memory, clocks and throttling of one NVIDIA GPU, read through NVML without a CUDA context."""

from __future__ import annotations

import os
from typing import Any

from segx.errors import InferenceError

# NVML's reasons for reduced clocks (nvml.h, nvmlClocksEventReason…), except idling and clocks set by a user.
_SLOWED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class Nvml:
    """One GPU."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    @classmethod
    def of_cuda_device(cls, index: int) -> Nvml | None:
        """Return CUDA's device ``index``; None if there is none, or NVML does not report its memory."""
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
        """Return the memory in use on the whole device, by all processes.

        Raises:
            InferenceError: the device was lost.
        """
        try:
            return int(self._library.nvmlDeviceGetMemoryInfo(self._handle).used)
        except self._library.NVMLError as error:
            raise InferenceError(
                f"NVML lost the GPU: {error}", hint="look for an Xid error in the kernel's log"
            ) from error

    def clock_mhz(self) -> int | None:
        """Return the current clock of the multiprocessors; None if the device does not report it."""
        try:
            return int(self._library.nvmlDeviceGetClockInfo(self._handle, self._library.NVML_CLOCK_SM))
        except self._library.NVMLError:
            return None

    def slowed_by(self) -> tuple[str, ...]:
        """Return the current reasons for reduced clocks; empty if there are none, or they are not reported."""
        try:
            reasons = int(self._library.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        except self._library.NVMLError:
            return ()
        return tuple(words for bit, words in _SLOWED.items() if reasons & bit)
