"""``cuda.bindings.runtime`` for tests: device memory is host memory, work runs when enqueued, the clock is real."""

# ruff: noqa: ARG002, N802, N815 - names and arguments are those of cuda-bindings

from __future__ import annotations

import ctypes
import enum
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any


class cudaError_t(enum.IntEnum):  # noqa: N801
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorLaunchFailure = 719


class cudaMemcpyKind(enum.IntEnum):  # noqa: N801
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):  # noqa: N801
    cudaStreamCaptureModeThreadLocal = 1


class FakeCudart(ModuleType):
    """The module; functions named in ``failures`` return that status, and allocations above ``limit`` fail."""

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode = cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode
    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.failures: dict[str, int] = {}
        self.limit = 2**62
        self.capturing = False
        self.held: dict[int, Any] = {}
        self.recorded: list[Callable[[], None]] = []
        self._next = 1

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("cuda") and name in super().__getattribute__("failures"):
            status = cudaError_t(self.failures[name])
            if name == "cudaStreamEndCapture":
                self.capturing = False
            return lambda *_: (status, None)
        return found

    def _new(self, value: Any) -> tuple[cudaError_t, int]:
        handle = self._next
        self._next += 1
        self.held[handle] = value
        return cudaError_t.cudaSuccess, handle

    def _free(self, handle: int) -> tuple[cudaError_t]:
        del self.held[int(handle)]
        return (cudaError_t.cudaSuccess,)

    def _allocate(self, size: int) -> tuple[cudaError_t, int | None]:
        if size > self.limit:
            return cudaError_t.cudaErrorMemoryAllocation, None
        memory = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN, if it is read before it is written
        address = ctypes.addressof(memory)
        self.held[address] = memory
        return cudaError_t.cudaSuccess, address

    def cudaGetErrorString(self, error: int) -> tuple[cudaError_t, bytes]:
        return cudaError_t.cudaSuccess, b"out of memory" if error == 2 else b"the fake fails"

    def cudaGetDeviceCount(self) -> tuple[cudaError_t, int]:
        return cudaError_t.cudaSuccess, 1

    def cudaSetDevice(self, device: int) -> tuple[cudaError_t]:
        return (cudaError_t.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[cudaError_t, Any]:
        return cudaError_t.cudaSuccess, SimpleNamespace(name=b"Fake GPU", major=9, minor=0)

    def cudaRuntimeGetVersion(self) -> tuple[cudaError_t, int]:
        return cudaError_t.cudaSuccess, 13020

    def cudaDriverGetVersion(self) -> tuple[cudaError_t, int]:
        return cudaError_t.cudaSuccess, 13010

    def cudaMalloc(self, size: int) -> tuple[cudaError_t, int | None]:
        return self._allocate(size)

    def cudaMallocHost(self, size: int) -> tuple[cudaError_t, int | None]:
        return self._allocate(size)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[cudaError_t]:
        assert isinstance(kind, cudaMemcpyKind)
        ctypes.memmove(dst, src, count)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[cudaError_t, int]:
        assert flags == self.cudaStreamNonBlocking
        return self._new("stream")

    def cudaStreamSynchronize(self, stream: int) -> tuple[cudaError_t]:
        return (cudaError_t.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[cudaError_t, int]:
        return self._new(0.0)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[cudaError_t]:
        self.held[event] = time.perf_counter()
        return (cudaError_t.cudaSuccess,)

    def cudaEventSynchronize(self, event: int) -> tuple[cudaError_t]:
        return (cudaError_t.cudaSuccess,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[cudaError_t, float]:
        return cudaError_t.cudaSuccess, (self.held[end] - self.held[start]) * 1e3

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[cudaError_t]:
        self.capturing, self.recorded = True, []
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[cudaError_t, int]:
        self.capturing = False
        return self._new(self.recorded)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[cudaError_t, int]:
        return self._new(self.held[graph])

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[cudaError_t]:  # noqa: N803
        for work in self.held[graphExec]:
            work()
        return (cudaError_t.cudaSuccess,)

    cudaFree = cudaFreeHost = cudaStreamDestroy = cudaEventDestroy = cudaGraphExecDestroy = cudaGraphDestroy = _free
