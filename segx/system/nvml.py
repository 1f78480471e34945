"""Memory, clocks and throttling of one NVIDIA GPU, read through NVML without a CUDA context."""

from __future__ import annotations

from typing import Any

from segx.errors import InferenceError
from segx.system import machine

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
        """Return CUDA's device ``index``; None if there is none, or NVML does not report its memory.

        CUDA counts only the visible devices, by default the fastest first; NVML counts all, by their place on the bus.
        So the device is found by its PCI bus id, which both know.
        """
        import pynvml

        if not (bus_id := machine.cuda_bus_id(index)):
            return None
        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)
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
