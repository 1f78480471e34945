"""PyTorch eager on the CPU and on CUDA, in the default and in the channels-last layout; how torch computes float32."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from segx.errors import RuntimeUnavailable
from segx.model.smp import load_model
from segx.model.spec import ModelSpec
from segx.runtimes import cuda
from segx.runtimes.base import FloatArray, RuntimeOptions, engine_errors
from segx.system import machine

mapped_errors = functools.partial(engine_errors, "PyTorch", hint="run with --debug to see the traceback")

_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# A line that oneDNN prints for a convolution, and the instruction sets that compute in 16 bits.
_CONVOLUTION = re.compile(rb"onednn_verbose,.*?exec,cpu,convolution,([^,]+),")
_NARROW = re.compile("bf16|amx|avx10")

# Torch's initial values; the only mixture that can also be read through the legacy `allow_tf32` flags.
_DEFAULT_PRECISIONS = ("none", "none", "tf32", "tf32", "none")


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in all convolutions, matrix products and recurrences on CUDA.

    Every backend is set explicitly, since a group's value does not reach a backend that was set before. The legacy
    ``allow_tf32`` flags are not used: they leave convolutions at 'inherit', which a later global setting re-enables.
    """
    _write_precisions(["tf32" if allowed else "ieee"] * len(_DEFAULT_PRECISIONS))


def tf32_enabled() -> bool:
    """Return whether a convolution on CUDA would use TF32."""
    backends: Any = torch.backends
    return bool(backends.cudnn.conv.fp32_precision == "tf32")


@contextlib.contextmanager
def default_fp32_precision() -> Iterator[None]:
    """Restore torch's initial float32 settings, for code that reads the legacy flags, such as ``torch.export``.

    Reading them raises an error once the new settings were written.
    """
    before = [backend.fp32_precision for backend in _backends()]
    _write_precisions(_DEFAULT_PRECISIONS)
    try:
        yield
    finally:
        _write_precisions(before)


def _backends() -> tuple[Any, ...]:
    # Typed as plain modules, which torch replaces with objects that have `fp32_precision`.
    backends: Any = torch.backends
    return backends, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul


def _write_precisions(values: Sequence[str]) -> None:
    for backend, value in zip(_backends(), values, strict=True):
        backend.fp32_precision = value


class PrecisionWrapper(torch.nn.Module):
    """Compute in another dtype and memory format, with contiguous float32 input and output.

    The casts and the layout change are part of the run, as in an ONNX file that keeps float32 inputs and outputs.
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


class _PyTorch:
    """Loading, precision, layout and inference, shared by all runtimes that run the module itself."""

    name: ClassVar[str]
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format

    def __init__(self, device: torch.device, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        torch.set_num_threads(options.threads)
        set_tf32(options.precision == "tf32")
        self._device = device
        with mapped_errors():
            module = load_model(path, spec).to(device)
            self._module: Any = PrecisionWrapper(module, _DTYPES[options.precision], self.memory_format).eval()
        # What a call runs: (N, C, H, W) float32 on the device -> (N, K, H, W) float32 on the device.
        self._run: Any = self._module
        self.facts: Mapping[str, str] = {
            **versions(),
            "threads": str(torch.get_num_threads()),
            "interop threads": str(torch.get_num_interop_threads()),
            "weights": str(next(self._module.parameters()).dtype).removeprefix("torch."),
            "memory format": str(self.memory_format).removeprefix("torch."),
            "tf32": "on" if tf32_enabled() else "off",
            "onednn": "on" if torch.backends.mkldnn.enabled else "off",
            "cudnn benchmark": "on" if torch.backends.cudnn.benchmark else "off",
        }
        self._prove(np.zeros((1, *spec.input_shape), dtype=np.float32))

    def _prove(self, batch: FloatArray) -> None:
        """Run the loaded module once."""
        self.infer(batch)

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``."""
        with mapped_errors(), torch.inference_mode():
            logits: FloatArray = self._run(torch.from_numpy(batch).to(self._device)).cpu().numpy()
        return logits

    def close(self) -> None:
        """See ``Runtime.close``."""
        self._module = self._run = None


class PyTorchCpu(_PyTorch):
    """PyTorch eager on the CPU."""

    name = "pytorch-cpu"

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        self.check(options)
        super().__init__(torch.device("cpu"), path, spec, options)

    def _prove(self, batch: FloatArray) -> None:
        """Run the loaded module once, and prove a low precision by the kernels that compute its convolutions.

        Raises:
            RuntimeUnavailable: they compute in fp32.
        """
        if self._module.dtype == torch.float32:
            self.infer(batch)
            return
        kernels = Counter(_convolution_kernels(lambda: self.infer(batch)))
        if kernels and not any(_NARROW.search(kernel) for kernel in kernels):
            dtype = str(self._module.dtype).removeprefix("torch.")
            reason = f"PyTorch emulates {dtype} here: its convolutions run as {', '.join(kernels)}"
            raise RuntimeUnavailable(reason, hint="use fp32")
        counted = (f"{count} {kernel}" for kernel, count in kernels.most_common())
        self.facts = {**self.facts, "convolutions": ", ".join(counted) or "not by oneDNN"}

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Return the versions.

        Raises:
            RuntimeUnavailable: the CPU would emulate the precision.
        """
        if lacking := machine.cpu_lacks(options.precision):
            raise RuntimeUnavailable(
                f"this CPU has no {lacking}", hint=f"use fp32: {options.precision} would be emulated, which is slower"
            )
        return versions()


class PyTorchCuda(_PyTorch):
    """PyTorch eager on one CUDA device; a call includes the copies to and from it."""

    name = "pytorch-cuda"

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        self.check(options)
        super().__init__(torch.device("cuda", options.device_index), path, spec, options)

    def infer_timed(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """See ``TimesItself.infer_timed``; events go to the current stream, where PyTorch enqueues its work."""
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
        """Return the peak of PyTorch's allocator, without the CUDA context and libraries."""
        return torch.cuda.max_memory_reserved(self._device), "torch.cuda.max_memory_reserved"

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Return the versions and the device name.

        Raises:
            RuntimeUnavailable: there is no driver, no GPU or no GPU of that index, the GPU lacks the precision, or
                torch was built without CUDA.
        """
        cuda.check_driver()
        if torch.version.cuda is None:
            raise RuntimeUnavailable(
                f"torch {torch.__version__} was built without CUDA", hint="install a CUDA build of torch"
            )
        if not torch.cuda.is_available():
            raise RuntimeUnavailable(
                f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the GPU",
                hint="update the NVIDIA driver, or install a torch built for its CUDA version",
            )
        if options.device_index >= torch.cuda.device_count():
            raise RuntimeUnavailable(
                f"no CUDA device {options.device_index}; there are {torch.cuda.device_count()}",
                hint="use a lower index",
            )
        found = torch.cuda.get_device_capability(options.device_index)
        if lacking := machine.gpu_lacks(options.precision, found):
            raise RuntimeUnavailable(
                f"{options.precision} needs {lacking}; the GPU has {found[0]}.{found[1]}", hint="use fp32 on this GPU"
            )
        return {**versions(), "device": torch.cuda.get_device_name(options.device_index)}


class PyTorchCpuChannelsLast(PyTorchCpu):
    """PyTorch eager on the CPU, with weights and images in channels-last layout; converting images is timed."""

    name = "pytorch-cpu-channels-last"
    memory_format = torch.channels_last


class PyTorchCudaChannelsLast(PyTorchCuda):
    """PyTorch eager on CUDA, with weights and images in channels-last layout; converting images is timed."""

    name = "pytorch-cuda-channels-last"
    memory_format = torch.channels_last


def _convolution_kernels(run: Callable[[], object]) -> list[str]:
    """Return the kernel of each convolution of a run, such as brg_conv_fwd:avx512_core_amx.

    oneDNN prints them to descriptor 1, so that goes into a file meanwhile; what else arrives there is passed on.
    """
    onednn: Any = torch.backends.mkldnn
    flush = ctypes.CDLL(None).fflush
    with tempfile.TemporaryFile() as printed:
        flush(None)
        stdout = os.dup(1)
        os.dup2(printed.fileno(), 1)
        try:
            with onednn.verbose(onednn.VERBOSE_ON):
                run()
        finally:
            flush(None)
            os.dup2(stdout, 1)
            os.close(stdout)
        printed.seek(0)
        lines = printed.readlines()
    os.write(1, b"".join(line for line in lines if not line.startswith(b"onednn_verbose,")))
    return [found[1].decode() for line in lines if (found := _CONVOLUTION.match(line))]


def versions() -> dict[str, str]:
    """Return the versions of torch and of the CUDA it was built for."""
    return {"torch": str(torch.__version__), "cuda": torch.version.cuda or "none"}
