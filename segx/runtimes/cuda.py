"""CUDA runtime calls through cuda-bindings: devices, streams, events, buffers and graphs, with every status checked."""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segx.errors import InferenceError, OutOfMemory, RuntimeUnavailable
from segx.runtimes.base import SMALLER
from segx.system import machine


@dataclass(frozen=True)
class Device:
    """A GPU: its name as the driver reports it, and its compute capability, such as ``9.0``."""

    name: str
    compute_capability: str


def check_driver() -> None:
    """Check that there is a driver and a GPU, without loading CUDA.

    Raises:
        RuntimeUnavailable: there is none.
    """
    if problem := machine.cuda_problem():
        raise RuntimeUnavailable(problem, hint="run on a machine with an NVIDIA GPU and its driver")


@functools.cache
def bindings() -> Any:
    """Import ``cuda.bindings.runtime``; it contains the CUDA runtime and loads the driver with the first call.

    Raises:
        RuntimeUnavailable: the package is missing or cannot be loaded.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise RuntimeUnavailable(
            f"the package cuda-bindings cannot be loaded: {error}", hint="pip install cuda-bindings"
        ) from error


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime API and return its result.

    Raises:
        OutOfMemory: memory ran out.
        RuntimeUnavailable: there is no usable driver or GPU.
        InferenceError: the call failed for another reason.
    """
    status, *results = getattr(bindings(), name)(*arguments)
    if not status:
        return results[0] if results else None
    runtime = bindings()
    _, words = runtime.cudaGetErrorString(status)
    text = f"{words.decode(errors='replace')} ({name}, status {int(status)})"
    codes = runtime.cudaError_t
    if status == codes.cudaErrorMemoryAllocation:
        raise OutOfMemory(f"CUDA could not allocate memory: {text}", hint=SMALLER)
    if status in (codes.cudaErrorInsufficientDriver, codes.cudaErrorNoDevice):
        raise RuntimeUnavailable(
            f"CUDA cannot be used: {text}",
            hint="run on a machine with an NVIDIA GPU and a driver for this CUDA version",
        )
    raise InferenceError(f"CUDA failed: {text}", hint="look for an Xid in the kernel's log (dmesg), and try again")


def select(index: int) -> None:
    """Make a GPU current for this thread, including the libraries it calls."""
    call("cudaSetDevice", index)


def device(index: int) -> Device:
    """Describe a GPU.

    Raises:
        RuntimeUnavailable: there is no GPU of that index.
    """
    if index >= (count := call("cudaGetDeviceCount")):
        raise RuntimeUnavailable(f"no CUDA device {index}; there are {count}", hint="use a lower index")
    properties = call("cudaGetDeviceProperties", index)
    return Device(
        properties.name.partition(b"\0")[0].decode(errors="replace"), f"{properties.major}.{properties.minor}"
    )


def runtime_version() -> str:
    """Return the version of the CUDA runtime, such as 13.2."""
    return _version(call("cudaRuntimeGetVersion"))


def driver_version() -> str:
    """Return the highest CUDA version that the driver supports."""
    return _version(call("cudaDriverGetVersion"))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class _Resource:
    """A CUDA resource that must be released."""

    _release: str

    def __init__(self, handle: Any) -> None:
        self._object = handle
        self.handle = int(handle)

    def close(self) -> None:
        """Release the resource; a second call does nothing, and a failure only repeats an earlier one."""
        if self.handle:
            getattr(bindings(), self._release)(self._object)
        self.handle = 0


class Stream(_Resource):
    """A stream that does not synchronise with the default stream."""

    _release = "cudaStreamDestroy"

    def __init__(self) -> None:
        super().__init__(call("cudaStreamCreateWithFlags", bindings().cudaStreamNonBlocking))

    def synchronize(self) -> None:
        """Wait for all enqueued work."""
        call("cudaStreamSynchronize", self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record the work that ``enqueue`` gives to this stream into a graph, without running it."""
        call("cudaStreamBeginCapture", self.handle, bindings().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        except BaseException:
            _, graph = bindings().cudaStreamEndCapture(self.handle)
            if graph is not None:
                bindings().cudaGraphDestroy(graph)
            raise
        graph = call("cudaStreamEndCapture", self.handle)
        try:
            return Graph(call("cudaGraphInstantiate", graph, 0))
        finally:
            bindings().cudaGraphDestroy(graph)


class Event(_Resource):
    """A timestamp in a stream."""

    _release = "cudaEventDestroy"

    def __init__(self) -> None:
        super().__init__(call("cudaEventCreate"))

    def record(self, stream: Stream) -> None:
        """Enqueue the event."""
        call("cudaEventRecord", self.handle, stream.handle)

    def seconds_since(self, start: Event) -> float:
        """Wait for the event and return the seconds from ``start`` to it."""
        call("cudaEventSynchronize", self.handle)
        milliseconds: float = call("cudaEventElapsedTime", start.handle, self.handle)
        return milliseconds / 1000


class Graph(_Resource):
    """An executable graph of recorded work."""

    _release = "cudaGraphExecDestroy"

    def launch(self, stream: Stream) -> None:
        """Enqueue the recorded work."""
        call("cudaGraphLaunch", self.handle, stream.handle)


class PinnedArray(_Resource):
    """A float32 ``array`` in page-locked host memory, invalid after ``close``."""

    _release = "cudaFreeHost"

    def __init__(self, shape: tuple[int, ...]) -> None:
        count = math.prod(shape)
        super().__init__(call("cudaMallocHost", count * ctypes.sizeof(ctypes.c_float)))
        values = (ctypes.c_float * count).from_address(self.handle)
        self.array: npt.NDArray[np.float32] = np.ctypeslib.as_array(values).reshape(shape)


class DeviceBuffer(_Resource):
    """Memory on the current GPU."""

    _release = "cudaFree"

    def __init__(self, size_bytes: int) -> None:
        super().__init__(call("cudaMalloc", size_bytes))
        self.size_bytes = size_bytes

    def upload(self, source: npt.NDArray[np.float32], stream: Stream) -> None:
        """Enqueue a copy from the host; ``source`` must stay unchanged until it is done."""
        self._copy(self.handle, source.ctypes.data, source, "cudaMemcpyHostToDevice", stream)

    def download(self, target: npt.NDArray[np.float32], stream: Stream) -> None:
        """Enqueue a copy to the host."""
        self._copy(target.ctypes.data, self.handle, target, "cudaMemcpyDeviceToHost", stream)

    def _copy(self, to: int, source: int, array: npt.NDArray[np.float32], kind: str, stream: Stream) -> None:
        # CUDA would copy past the end of the smaller side, and through gaps between rows.
        if not array.flags.c_contiguous or array.nbytes > self.size_bytes:
            raise InferenceError(
                f"cannot copy an array of {array.nbytes} bytes to or from {self.size_bytes} bytes on the GPU",
                hint="use a C-contiguous array of the buffer's shape",
            )
        direction = getattr(bindings().cudaMemcpyKind, kind)
        call("cudaMemcpyAsync", to, source, array.nbytes, direction, stream.handle)
