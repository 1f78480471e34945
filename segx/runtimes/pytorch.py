"""PyTorch eager, on the CPU and on CUDA: what people run today, and the baseline of every ratio."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from segx import machine
from segx.errors import InferenceError, OutOfMemory, RuntimeUnavailable
from segx.model import load_model
from segx.precision import set_tf32, tf32_in_force
from segx.runtimes.base import FloatArray, RuntimeOptions
from segx.spec import ModelSpec

_SMALLER = "use a smaller batch size"


class _PyTorch:
    """Shared by both devices: the module and the call."""

    def __init__(self, name: str, device: torch.device, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        torch.set_num_threads(options.threads)
        set_tf32(options.precision == "tf32")
        self.name = name
        self._device = device
        with _mapped_errors():
            self._module = load_model(path, spec).to(device)
        self.facts: Mapping[str, str] = {
            **_versions(),
            "threads": str(torch.get_num_threads()),
            "interop threads": str(torch.get_num_interop_threads()),
            "tf32": "on" if tf32_in_force() else "off",
            "onednn": "on" if torch.backends.mkldnn.enabled else "off",
            "cudnn benchmark": "on" if torch.backends.cudnn.benchmark else "off",
        }
        self.infer(np.zeros((1, *spec.input_shape), dtype=np.float32))

    def infer(self, batch: FloatArray) -> FloatArray:
        with _mapped_errors(), torch.inference_mode():
            logits: FloatArray = self._module(torch.from_numpy(batch).to(self._device)).cpu().numpy()
        return logits

    def close(self) -> None:
        del self._module


class PyTorchCpu(_PyTorch):
    """PyTorch eager on the CPU."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("pytorch-cpu", torch.device("cpu"), path, spec, options)

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Always ready; gives the versions."""
        return _versions()


class PyTorchCuda(_PyTorch):
    """PyTorch eager on one CUDA device; a call includes the copies there and back. Untested on a GPU so far."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        self.check(options)
        super().__init__("pytorch-cuda", torch.device("cuda", options.device_index), path, spec, options)

    def infer_on_device(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """As ``DeviceTimed.infer_on_device``; the stream is the current one, where PyTorch puts its work."""
        with _mapped_errors(), torch.inference_mode():
            images = torch.from_numpy(batch).to(self._device)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            stream = torch.cuda.current_stream(self._device)
            stream.synchronize()
            start.record(stream)
            logits = self._module(images)
            end.record(stream)
            end.synchronize()
            result: FloatArray = logits.cpu().numpy()
        return result, start.elapsed_time(end) / 1e3

    def peak_device_bytes(self) -> tuple[int, str]:
        """What PyTorch's allocator held at most; the CUDA context and libraries are not in it."""
        return torch.cuda.max_memory_reserved(self._device), "torch.cuda.max_memory_reserved"

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Ask the driver, then torch.

        Raises:
            RuntimeUnavailable: no driver, no GPU, no such GPU, or a build of torch without CUDA.
        """
        if problem := machine.cuda_problem():
            raise RuntimeUnavailable(problem, hint="run on a machine with an NVIDIA GPU and its driver")
        if torch.version.cuda is None:
            raise RuntimeUnavailable(
                f"torch {torch.__version__} is a build without CUDA", hint="install the CUDA build of torch"
            )
        if not torch.cuda.is_available():
            raise RuntimeUnavailable(
                f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the GPU",
                hint="update the NVIDIA driver, or install a torch built for its CUDA version",
            )
        if options.device_index >= torch.cuda.device_count():
            raise RuntimeUnavailable(
                f"no CUDA device {options.device_index}; there are {torch.cuda.device_count()}",
                hint="choose a lower index",
            )
        return {**_versions(), "device": torch.cuda.get_device_name(options.device_index)}


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "cuda": torch.version.cuda or "none"}


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory("PyTorch could not allocate memory", hint=_SMALLER) from error
    except RuntimeError as error:
        # The CPU allocator has no exception class of its own.
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise OutOfMemory("PyTorch could not allocate memory", hint=_SMALLER) from error
        raise InferenceError(
            f"PyTorch failed: {_first_line(error)}", hint="run with --debug to see the traceback"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
