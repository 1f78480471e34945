"""PyTorch eager with weights and images in channels-last order: the layout that convolution kernels prefer.

Runtimes of their own, so that ``pytorch-cpu`` and ``pytorch-cuda`` stay what people run who do nothing special. The
images arrive in the usual order, as for every runtime; bringing them into the other one is part of the call.
"""

from __future__ import annotations

from pathlib import Path

import torch

from segx.model.spec import ModelSpec
from segx.runtimes.base import RuntimeOptions
from segx.runtimes.pytorch import PyTorchOnCpu, PyTorchOnCuda


class PyTorchCpuChannelsLast(PyTorchOnCpu):
    """PyTorch eager on the CPU, channels last."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("pytorch-cpu-channels-last", path, spec, options, memory_format=torch.channels_last)


class PyTorchCudaChannelsLast(PyTorchOnCuda):
    """PyTorch eager on one CUDA device, channels last; a call includes the copies there and back."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("pytorch-cuda-channels-last", path, spec, options, memory_format=torch.channels_last)
