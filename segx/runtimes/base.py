"""What the bench needs of a runtime, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# fp32 is strict (TF32 off everywhere); tf32 is fp32 with 10-bit mantissas in CUDA convolutions and matrix products.
Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
# What a time includes. forward: host array in, host array out, copies included. device: input and output stay there.
# pipeline: image file in, mask file out.
Scope = Literal["forward", "device", "pipeline"]
# low: less memory for some speed, in engines that offer that choice.
MemoryProfile = Literal["default", "low"]


@dataclass(frozen=True)
class Variant:
    """What is compared: a runtime, how it computes, and what its times include."""

    runtime: str
    precision: Precision = "fp32"
    scope: Scope = "forward"

    def __str__(self) -> str:
        """``onnxruntime-cuda:tf32``; a scope other than ``forward`` is named too."""
        return f"{self.runtime}:{self.precision}" + ("" if self.scope == "forward" else f" ({self.scope})")


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a runtime runs; the same for every runtime of a comparison.

    Attributes:
        threads: processors that one inference may use, at least 1.
        precision: how it computes; one of those that the table of runtimes names for it.
        scope: what it will be timed by; ``device`` runtimes offer ``DeviceTimed``.
        device_index: which CUDA device.
        memory_profile: ``low`` trades speed for memory in ONNX Runtime; the other engines have no such choice.
        engine_options: settings of single engines, by their names there; those of other engines are passed over.
    """

    threads: int
    precision: Precision = "fp32"
    scope: Scope = "forward"
    device_index: int = 0
    memory_profile: MemoryProfile = "default"
    engine_options: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """An engine on a device, loaded with one model.

    A Protocol and not a base class: the engines share no code, only this shape. Building one does all the heavy work
    and proves itself with one real inference, so that what is missing shows at once and not in a timed call.
    """

    @property
    def name(self) -> str:
        """As on the command line, ``onnxruntime-cpu``."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """What is really in force, read back from the engine: version, threads, provider, precision."""
        ...

    def infer(self, batch: FloatArray) -> FloatArray:
        """Run one batch; synchronous.

        Args:
            batch: (N, C, H, W) float32, preprocessed images, C-contiguous.

        Returns:
            (N, K, H, W) float32 logits on the host, not overwritten by later calls.

        Raises:
            OutOfMemory: host or device memory ran out.
            InferenceError: the engine failed in any other way.
        """
        ...

    def close(self) -> None:
        """Release the engine; the runtime cannot be used afterwards."""
        ...


@runtime_checkable
class DeviceTimed(Protocol):
    """What a runtime offers beside ``Runtime`` to be timed in the ``device`` scope."""

    def infer_on_device(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """Copy a batch to the device, run it there, copy the result back; only the run is timed.

        Args:
            batch: as for ``Runtime.infer``.

        Returns:
            Logits as ``Runtime.infer`` gives them, and the seconds between two events that were recorded before and
            after the run on the stream that did the work.

        Raises:
            OutOfMemory, InferenceError: as ``Runtime.infer``.
        """
        ...


@runtime_checkable
class CountsDeviceMemory(Protocol):
    """What a runtime offers beside ``Runtime`` whose framework counts the device memory it takes."""

    def peak_device_bytes(self) -> tuple[int, str]:
        """Highest number of bytes so far, and the name of the counter."""
        ...
