"""PyTorch eager, on the CPU and on CUDA: what people run today, and the baseline of every ratio."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from segx.errors import InferenceError, OutOfMemory, RuntimeUnavailable, UsageError, first_line
from segx.model.smp import load_model
from segx.model.spec import ModelSpec
from segx.runtimes.base import FloatArray, RuntimeOptions
from segx.runtimes.precision import set_tf32, tf32_in_force
from segx.system import machine

_SMALLER = "use a smaller batch size"


_COMPUTES_IN: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
# Any of these makes bf16 faster than fp32; without them it is emulated, and slower.
_BF16_FLAGS = ("avx512_bf16", "amx_bf16")
# From which compute capability on; on older GPUs TF32 is silently fp32, and bf16 is emulated.
_CAPABILITY = {"tf32": (8, 0), "bf16": (8, 0), "fp16": (5, 3)}


class Float32InAndOut(torch.nn.Module):
    """Takes and gives (N, C, H, W) float32, contiguous; computes in another precision and memory layout.

    The casts and the change of layout are part of the run, as they are in an ONNX file that keeps its inputs and
    outputs in float32. In float32 and the usual layout there are none.
    """

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.module = module.to(dtype).to(memory_format=memory_format)
        self.dtype = dtype
        self.memory_format = memory_format

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, K, H, W), both float32 and contiguous."""
        logits: torch.Tensor = self.module(images.to(self.dtype, memory_format=self.memory_format))
        return logits.to(torch.float32, memory_format=torch.contiguous_format)


class PyTorchRuntime:
    """Shared by all that run the module itself: loading, precision, layout, the call."""

    def __init__(
        self,
        name: str,
        device: torch.device,
        path: Path,
        spec: ModelSpec,
        options: RuntimeOptions,
        memory_format: torch.memory_format,
    ) -> None:
        if options.precision not in _COMPUTES_IN:
            raise UsageError(
                f"{name} does not compute in {options.precision}", hint=f"choose one of {', '.join(_COMPUTES_IN)}"
            )
        torch.set_num_threads(options.threads)
        set_tf32(options.precision == "tf32")
        self.name = name
        self._device = device
        with mapped_errors():
            module = load_model(path, spec).to(device)
            self._module = Float32InAndOut(module, _COMPUTES_IN[options.precision], memory_format).eval()
        # What a call runs: (N, C, H, W) float32 on the device -> (N, K, H, W) float32 on the device.
        self._run: Callable[[torch.Tensor], torch.Tensor] = self._module
        self.facts: Mapping[str, str] = {
            **versions(),
            "threads": str(torch.get_num_threads()),
            "interop threads": str(torch.get_num_interop_threads()),
            "weights": str(next(self._module.parameters()).dtype).removeprefix("torch."),
            "memory format": str(memory_format).removeprefix("torch."),
            "tf32": "on" if tf32_in_force() else "off",
            "onednn": "on" if torch.backends.mkldnn.enabled else "off",
            "cudnn benchmark": "on" if torch.backends.cudnn.benchmark else "off",
        }
        self.infer(np.zeros((1, *spec.input_shape), dtype=np.float32))

    def infer(self, batch: FloatArray) -> FloatArray:
        """As ``Runtime.infer``."""
        with mapped_errors(), torch.inference_mode():
            logits: FloatArray = self._run(torch.from_numpy(batch).to(self._device)).cpu().numpy()
        return logits

    def close(self) -> None:
        """Release the module."""
        del self._module, self._run


class PyTorchOnCpu(PyTorchRuntime):
    """What the CPU adds: whether its processor has the precision."""

    def __init__(
        self,
        name: str,
        path: Path,
        spec: ModelSpec,
        options: RuntimeOptions,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.check(options)
        super().__init__(name, torch.device("cpu"), path, spec, options, memory_format)

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Always ready in fp32; gives the versions.

        Raises:
            RuntimeUnavailable: the processor would emulate the precision.
        """
        if options.precision == "bf16" and not set(_BF16_FLAGS) & set(machine.cpu_flags()):
            raise RuntimeUnavailable(
                f"this processor has no bf16 arithmetic ({' or '.join(_BF16_FLAGS)})",
                hint="use fp32 here: bf16 would be emulated, and slower",
            )
        return versions()


class PyTorchOnCuda(PyTorchRuntime):
    """What CUDA adds: the device, and its own times and memory. Untested on a GPU so far."""

    def __init__(
        self,
        name: str,
        path: Path,
        spec: ModelSpec,
        options: RuntimeOptions,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.check(options)
        super().__init__(name, torch.device("cuda", options.device_index), path, spec, options, memory_format)

    def infer_on_device(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """As ``DeviceTimed.infer_on_device``; the stream is the current one, where PyTorch puts its work."""
        with mapped_errors(), torch.inference_mode():
            images = torch.from_numpy(batch).to(self._device)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            stream = torch.cuda.current_stream(self._device)
            stream.synchronize()
            start.record(stream)
            logits = self._run(images)
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
            RuntimeUnavailable: no driver, no GPU, no such GPU, one that lacks the precision, or a build of torch
                without CUDA.
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
        found = torch.cuda.get_device_capability(options.device_index)
        if found < (wanted := _CAPABILITY.get(options.precision, (0, 0))):
            raise RuntimeUnavailable(
                f"{options.precision} needs compute capability {wanted[0]}.{wanted[1]}; the GPU has "
                f"{found[0]}.{found[1]}",
                hint="use fp32 on this GPU",
            )
        return {**versions(), "device": torch.cuda.get_device_name(options.device_index)}


class PyTorchCpu(PyTorchOnCpu):
    """PyTorch eager on the CPU."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("pytorch-cpu", path, spec, options)


class PyTorchCuda(PyTorchOnCuda):
    """PyTorch eager on one CUDA device; a call includes the copies there and back."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("pytorch-cuda", path, spec, options)


def versions() -> dict[str, str]:
    """Of torch, and of the CUDA it was built for."""
    return {"torch": torch.__version__, "cuda": torch.version.cuda or "none"}


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn torch's own errors into ``OutOfMemory`` or ``InferenceError``."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory("PyTorch could not allocate memory", hint=_SMALLER) from error
    except RuntimeError as error:
        # The CPU allocator has no exception class of its own.
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise OutOfMemory("PyTorch could not allocate memory", hint=_SMALLER) from error
        raise InferenceError(
            f"PyTorch failed: {first_line(error)}", hint="run with --debug to see the traceback"
        ) from error
