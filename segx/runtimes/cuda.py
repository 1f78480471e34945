"""CUDA through its runtime library alone: streams, events, buffers, copies, graphs. No framework, no compiler."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segx.errors import InferenceError, OutOfMemory, RuntimeUnavailable

# driver_types.h; the same in CUDA 12 and 13 (tests/test_cuda.py compares them with the header).
_MEMORY_ALLOCATION, _INSUFFICIENT_DRIVER, _NO_DEVICE = 2, 35, 100
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_STREAM_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
# cudaDeviceProp differs between CUDA 12 and 13; in both the name comes first, and 4 KiB hold all of it.
_NAME_BYTES, _PROPERTIES_BYTES = 256, 4096

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_INSTALL = "pip install nvidia-cuda-runtime"

_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_INT_OUT, _POINTER_OUT = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_void_p)
# Only functions whose name and arguments are the same in CUDA 12 and 13.
_FUNCTIONS: dict[str, list[Any]] = {
    "cudaGetDeviceCount": [_INT_OUT],
    "cudaSetDevice": [_INT],
    "cudaGetDeviceProperties": [_POINTER, _INT],
    "cudaDeviceGetAttribute": [_INT_OUT, _INT, _INT],
    "cudaRuntimeGetVersion": [_INT_OUT],
    "cudaDriverGetVersion": [_INT_OUT],
    "cudaMalloc": [_POINTER_OUT, _SIZE],
    "cudaFree": [_POINTER],
    "cudaMallocHost": [_POINTER_OUT, _SIZE],
    "cudaFreeHost": [_POINTER],
    "cudaMemcpyAsync": [_POINTER, _POINTER, _SIZE, _INT, _POINTER],
    "cudaStreamCreateWithFlags": [_POINTER_OUT, ctypes.c_uint],
    "cudaStreamSynchronize": [_POINTER],
    "cudaStreamDestroy": [_POINTER],
    "cudaEventCreate": [_POINTER_OUT],
    "cudaEventRecord": [_POINTER, _POINTER],
    "cudaEventSynchronize": [_POINTER],
    "cudaEventElapsedTime": [ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER],
    "cudaEventDestroy": [_POINTER],
    "cudaStreamBeginCapture": [_POINTER, _INT],
    "cudaStreamEndCapture": [_POINTER, _POINTER_OUT],
    "cudaGraphInstantiateWithFlags": [_POINTER_OUT, _POINTER, ctypes.c_ulonglong],
    "cudaGraphLaunch": [_POINTER, _POINTER],
    "cudaGraphExecDestroy": [_POINTER],
    "cudaGraphDestroy": [_POINTER],
    "cudaGetLastError": [],
}


@dataclass(frozen=True)
class Device:
    """What tells one kind of GPU from another.

    Attributes:
        name: as the driver has it, ``NVIDIA H200``.
        compute_capability: of its architecture, ``9.0``.
    """

    name: str
    compute_capability: str


@functools.cache
def cuda() -> Cuda:
    """CUDA's runtime library, loaded once: that of pip's packages, newest first, else the system's.

    Raises:
        RuntimeUnavailable: there is none, or it cannot be loaded.
    """
    reasons = []
    for library in _candidates():
        try:
            return Cuda(library)
        except RuntimeUnavailable as error:
            reasons.append(error.message)
    raise RuntimeUnavailable(f"no CUDA runtime library: {reasons[0]}", hint=_INSTALL)


def _candidates() -> Iterator[str]:
    # A namespace without code: looking it up imports nothing.
    nvidia = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (nvidia.submodule_search_locations or [])] if nvidia else []
    patterns = ("cu[0-9]*/lib/libcudart.so.*", "cuda_runtime/lib/libcudart.so.*")
    found = [path for folder in folders for pattern in patterns for path in folder.glob(pattern)]
    yield from map(str, sorted(found, key=lambda path: path.name, reverse=True))
    yield from _LIBRARIES


class Cuda:
    """The library with every status checked. Everything it gives is to be closed by who asked for it.

    Every method raises ``OutOfMemory`` where memory runs out, ``RuntimeUnavailable`` where there is no usable driver or
    GPU, and ``InferenceError`` with CUDA's own words for anything else.
    """

    def __init__(self, library: Path | str) -> None:
        """Load it.

        Raises:
            RuntimeUnavailable: it cannot be loaded, or lacks a function.
        """
        try:
            self._library = ctypes.CDLL(str(library))
            for name, types in _FUNCTIONS.items():
                function = getattr(self._library, name)
                function.argtypes, function.restype = types, _INT
            self._library.cudaGetErrorString.argtypes = [_INT]
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise RuntimeUnavailable(f"{library} cannot be used: {error}", hint=_INSTALL) from error

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library that gives a status."""
        if status := getattr(self._library, name)(*arguments):
            raise self._error(name, status)

    def call_quietly(self, name: str, *arguments: Any) -> None:
        """The same where a failure only repeats one that was raised before, as when things are given back."""
        if getattr(self._library, name)(*arguments):
            self._library.cudaGetLastError()

    def _error(self, name: str, status: int) -> InferenceError | RuntimeUnavailable:
        self._library.cudaGetLastError()  # forgets it, where it can be forgotten: the next call starts afresh
        text = f"{self._library.cudaGetErrorString(status).decode(errors='replace')} ({name}, status {status})"
        if status == _MEMORY_ALLOCATION:
            return OutOfMemory(f"CUDA could not allocate memory: {text}", hint="use a smaller batch size")
        if status in (_INSUFFICIENT_DRIVER, _NO_DEVICE):
            return RuntimeUnavailable(
                f"CUDA cannot be used: {text}", hint="run on a machine with an NVIDIA GPU and a driver of this CUDA"
            )
        return InferenceError(f"CUDA failed: {text}", hint="look for an Xid in the kernel's log (dmesg), and try again")

    def _number(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def _pointer(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_void_p()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def select(self, index: int) -> None:
        """Make a GPU the one that this thread's further calls, and libraries called from it, work on."""
        self.call("cudaSetDevice", index)

    def device(self, index: int) -> Device:
        """What a GPU is.

        Raises:
            RuntimeUnavailable: there is none of that index.
        """
        if index >= (count := self._number("cudaGetDeviceCount")):
            raise RuntimeUnavailable(f"no CUDA device {index}; there are {count}", hint="choose a lower index")
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self.call("cudaGetDeviceProperties", properties, index)
        name = properties.raw[:_NAME_BYTES].partition(b"\0")[0].decode(errors="replace")
        major, minor = (
            self._number("cudaDeviceGetAttribute", attribute, index)
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        return Device(name, f"{major}.{minor}")

    def runtime_version(self) -> str:
        """Version of this library, as 13.2."""
        return _version(self._number("cudaRuntimeGetVersion"))

    def driver_version(self) -> str:
        """Highest version of CUDA that the driver can run, as 13.2."""
        return _version(self._number("cudaDriverGetVersion"))

    def stream(self) -> Stream:
        """A new stream, which does not wait for the default one nor the default one for it."""
        return Stream(self, self._pointer("cudaStreamCreateWithFlags", _STREAM_NON_BLOCKING))

    def event(self) -> Event:
        """A new event that keeps the time."""
        return Event(self, self._pointer("cudaEventCreate"))

    def buffer(self, size_bytes: int) -> DeviceBuffer:
        """Memory on the selected GPU."""
        return DeviceBuffer(self, self._pointer("cudaMalloc", size_bytes), size_bytes)

    def pinned(self, shape: tuple[int, ...]) -> PinnedArray:
        """A float32 array in host memory that stays in place, so that copies run beside other work."""
        return PinnedArray(self, shape)


class _Held:
    """Something of the library's that must be given back."""

    _give_back: str

    def __init__(self, library: Cuda, handle: int) -> None:
        self._cuda = library
        self.handle = handle

    def close(self) -> None:
        """Give it back; nothing happens the second time."""
        handle, self.handle = self.handle, 0
        if handle:
            self._cuda.call_quietly(self._give_back, handle)


class DeviceBuffer(_Held):
    """Bytes on a GPU; ``handle`` is their address."""

    _give_back = "cudaFree"

    def __init__(self, library: Cuda, handle: int, size_bytes: int) -> None:
        super().__init__(library, handle)
        self.size_bytes = size_bytes


class PinnedArray(_Held):
    """A float32 array in page-locked host memory; ``array`` must not be used after ``close``."""

    _give_back = "cudaFreeHost"

    def __init__(self, library: Cuda, shape: tuple[int, ...]) -> None:
        handle = ctypes.c_void_p()
        count = math.prod(shape)
        library.call("cudaMallocHost", ctypes.byref(handle), count * ctypes.sizeof(ctypes.c_float))
        super().__init__(library, handle.value or 0)
        values = (ctypes.c_float * count).from_address(self.handle)
        self.array: npt.NDArray[np.float32] = np.ctypeslib.as_array(values).reshape(shape)


class Event(_Held):
    """A point in a stream's work that keeps the time at which it was reached."""

    _give_back = "cudaEventDestroy"

    def record(self, stream: Stream) -> None:
        """Put it behind what was given to the stream so far."""
        self._cuda.call("cudaEventRecord", self.handle, stream.handle)

    def seconds_since(self, start: Event) -> float:
        """Wait until it is reached; seconds from ``start`` to it."""
        self._cuda.call("cudaEventSynchronize", self.handle)
        milliseconds = ctypes.c_float()
        self._cuda.call("cudaEventElapsedTime", ctypes.byref(milliseconds), start.handle, self.handle)
        return milliseconds.value / 1000


class Graph(_Held):
    """Work recorded from a stream, ready to be started as one."""

    _give_back = "cudaGraphExecDestroy"

    def launch(self, stream: Stream) -> None:
        """Give the stream the recorded work."""
        self._cuda.call("cudaGraphLaunch", self.handle, stream.handle)


class Stream(_Held):
    """Work that a GPU does one piece after the other."""

    _give_back = "cudaStreamDestroy"

    def synchronize(self) -> None:
        """Wait until all of it is done."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def copy_to_device(self, target: DeviceBuffer, source: npt.NDArray[Any]) -> None:
        """Copy an array to the GPU behind the work so far; ``source`` must stay as it is until that is done."""
        _check_copy(source, target.size_bytes)
        self._copy(target.handle, source.ctypes.data, source.nbytes, _HOST_TO_DEVICE)

    def copy_to_host(self, target: npt.NDArray[Any], source: DeviceBuffer) -> None:
        """Copy from the GPU into an array behind the work so far; it holds the bytes once that is done."""
        _check_copy(target, source.size_bytes)
        self._copy(target.ctypes.data, source.handle, target.nbytes, _DEVICE_TO_HOST)

    def _copy(self, target: int, source: int, size_bytes: int, direction: int) -> None:
        self._cuda.call("cudaMemcpyAsync", target, source, size_bytes, direction, self.handle)

    def captured(self, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` gives to this stream, instead of running it."""
        graph = ctypes.c_void_p()
        self._cuda.call("cudaStreamBeginCapture", self.handle, _CAPTURE_THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            self._cuda.call_quietly("cudaStreamEndCapture", self.handle, ctypes.byref(graph))
            self._cuda.call_quietly("cudaGraphDestroy", graph)
            raise
        self._cuda.call("cudaStreamEndCapture", self.handle, ctypes.byref(graph))
        try:
            executable = ctypes.c_void_p()
            self._cuda.call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        finally:
            self._cuda.call_quietly("cudaGraphDestroy", graph)
        return Graph(self._cuda, executable.value or 0)


def _check_copy(array: npt.NDArray[Any], size_bytes: int) -> None:
    """CUDA would copy past the end of the smaller side, and through gaps between rows."""
    if not array.flags.c_contiguous or array.nbytes > size_bytes:
        raise InferenceError(
            f"an array of {array.nbytes} bytes cannot be copied to or from {size_bytes} bytes on the GPU",
            hint="give a C-contiguous array of the shape that the buffer was made for",
        )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
