"""What the bench needs of a runtime, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a runtime runs; the same for every runtime of a comparison.

    Attributes:
        threads: processors that one inference may use, at least 1.
        tf32: allow 10-bit mantissas in CUDA convolutions and matrix products; no effect on the CPU.
        device_index: which CUDA device.
    """

    threads: int
    tf32: bool = False
    device_index: int = 0


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
