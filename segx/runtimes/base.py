"""The runtime interface, the options of a runtime, the name of a variant, and the errors of engines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from segx.errors import InferenceError, OutOfMemory, first_line, lacks_memory
from segx.system.memory import HostMemoryMeter

FloatArray = npt.NDArray[np.float32]

# fp32 is strict (TF32 off everywhere); tf32 is fp32 with 10-bit mantissas in CUDA convolutions and matrix products.
Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
# What a time includes. forward: host array to host array, copies included. device: input and output stay on the
# device. pipeline: image file to mask file.
Scope = Literal["forward", "device", "pipeline"]
# low: less memory at the cost of speed, for engines that offer the choice.
MemoryProfile = Literal["default", "low"]

SMALLER = "use a smaller batch size"


@dataclass(frozen=True)
class Variant:
    """A runtime at a precision, timed in a scope."""

    runtime: str
    precision: Precision = "fp32"
    scope: Scope = "forward"

    def __str__(self) -> str:
        """``onnxruntime-cuda:tf32``, with the scope appended unless it is ``forward``."""
        return f"{self.runtime}:{self.precision}" + ("" if self.scope == "forward" else f" ({self.scope})")


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a runtime runs; equal for all runtimes of a comparison.

    Attributes:
        threads: CPU threads for one inference, at least 1.
        precision: one of the runtime's ``RuntimeInfo.precisions``.
        scope: scope it will be timed in; with ``device``, the runtime implements ``TimesItself``.
        device_index: index of the CUDA device.
        memory_profile: ``low`` trades speed for memory; only ONNX Runtime has the choice.
        memory_limit_bytes: what an engine in another program may take; others are limited with their process.
        engine_options: engine-specific settings by name; each engine ignores those it does not know.
    """

    threads: int
    precision: Precision = "fp32"
    scope: Scope = "forward"
    device_index: int = 0
    memory_profile: MemoryProfile = "default"
    memory_limit_bytes: int | None = None
    engine_options: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """An engine on a device, loaded with one model.

    Construction does all the heavy work and runs one inference, so that anything missing is found before timing.
    Threads may share a runtime: their calls take turns where the engine cannot run them at the same time.
    """

    @property
    def name(self) -> str:
        """Name on the command line."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """Settings in force, read back from the engine: version, threads, provider, precision."""
        ...

    def infer(self, batch: FloatArray) -> FloatArray:
        """Run one batch and wait for the result.

        Args:
            batch: (N, C, H, W) float32, preprocessed images, C-contiguous.

        Returns:
            (N, K, H, W) float32 logits on the host; later calls do not overwrite them.

        Raises:
            OutOfMemory: host or device memory ran out.
            InferenceError: the engine failed for another reason.
        """
        ...

    def close(self) -> None:
        """Release the engine; the runtime cannot be used afterwards, only closed again."""
        ...


@runtime_checkable
class TimesItself(Protocol):
    """A runtime that measures its own times: in the ``device`` scope, or because its engine runs elsewhere."""

    def infer_timed(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """Run one batch as ``Runtime.infer`` does, timing only the run, not the copies there and back.

        Returns:
            Logits, and the seconds of the run: on a GPU between two events recorded before and after it on the stream
            that did the work, in another program by its own clock.

        Raises:
            OutOfMemory, InferenceError: see ``Runtime.infer``.
        """
        ...


@runtime_checkable
class RunsElsewhere(TimesItself, Protocol):
    """A runtime whose engine runs in another program, from and to which batches are carried."""

    @property
    def memory(self) -> HostMemoryMeter:
        """Return the meter of that program's memory, which began when the engine was loaded and the model was not."""
        ...


@runtime_checkable
class CountsDeviceMemory(Protocol):
    """A runtime whose framework counts the device memory it uses."""

    def peak_device_bytes(self) -> tuple[int, str]:
        """Return the peak number of bytes so far and the name of the counter."""
        ...


@contextlib.contextmanager
def engine_errors(
    engine: str,
    kinds: tuple[type[Exception], ...] = (MemoryError, RuntimeError),
    *,
    reason: Callable[[Exception], str] = first_line,
    hint: str = "export the model again; --debug shows the whole error",
) -> Iterator[None]:
    """Turn errors of an engine, which are of certain kinds, into ``OutOfMemory`` or ``InferenceError``."""
    try:
        yield
    except kinds as error:
        if lacks_memory(error):
            raise OutOfMemory(f"{engine} could not allocate memory", hint=SMALLER) from error
        if "exceeds int range" in str(error):  # ONNX Runtime's CUDA kernels count elements in 32 bits
            hint = SMALLER
        raise InferenceError(f"{engine} failed: {reason(error)}", hint=hint) from error
