"""The runtimes by name. Listing them imports no engine; each engine's file is imported when it is opened."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segx.errors import UsageError
from segx.model.spec import ModelSpec
from segx.runtimes.base import MemoryProfile, Precision, Runtime, RuntimeOptions, Scope, Variant

__all__ = [
    "ALL",
    "RUNTIMES",
    "MemoryProfile",
    "Precision",
    "Runtime",
    "RuntimeInfo",
    "RuntimeOptions",
    "Scope",
    "Variant",
    "check_runtime",
    "open_runtime",
    "resolve_names",
    "runtime_info",
]

ALL = "all"


@dataclass(frozen=True)
class RuntimeInfo:
    """One line of the table of runtimes.

    Attributes:
        name: as on the command line.
        target: ``module:Class``, imported when asked for.
        device: where it computes.
        takes: the file it is built from.
        torch: whether its process imports torch.
        baseline: the runtime of PyTorch eager on the same device, which speed-ups are given against.
        precisions: those it can compute in.
        scopes: what its times can include.
        engine: whose files it runs best, where files are made for an engine.
        compiles: whether it compiles the model for about a minute each time it is opened.
        settings: what ``RuntimeOptions.engine_options`` can set in it: name -> values.
    """

    name: str
    target: str
    device: Literal["cpu", "cuda"]
    takes: Literal["checkpoint", "onnx"]
    torch: bool
    baseline: str
    precisions: tuple[Precision, ...] = ("fp32",)
    scopes: tuple[Scope, ...] = ("forward", "pipeline")
    engine: Literal["onnxruntime", "openvino", "tensorrt"] | None = None
    compiles: bool = False
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_COMPILE, _CHANNELS_LAST = "segx.runtimes.torch_compile", "segx.runtimes.pytorch_channels_last"
_PYTORCH, _ORT, _OPENVINO = "segx.runtimes.pytorch", "segx.runtimes.onnxruntime", "segx.runtimes.openvino"
_ON_CUDA: dict[str, Any] = {
    "device": "cuda",
    "baseline": "pytorch-cuda",
    "scopes": ("forward", "device", "pipeline"),
}
_ONNX_ON_CUDA: dict[str, Any] = {**_ON_CUDA, "takes": "onnx", "torch": False, "precisions": ("fp32", "tf32", "fp16")}
_TENSORRT: dict[str, Any] = {**_ONNX_ON_CUDA, "precisions": ("fp32", "tf32", "fp16", "int8"), "engine": "tensorrt"}
_ON_CPU: dict[str, Any] = {"device": "cpu", "baseline": "pytorch-cpu"}
_ONNX_ON_CPU: dict[str, Any] = {**_ON_CPU, "takes": "onnx", "torch": False, "precisions": ("fp32", "int8")}
_TORCH: dict[str, Any] = {"takes": "checkpoint", "torch": True}
_TORCH_ON_CPU: dict[str, Any] = {**_ON_CPU, **_TORCH, "precisions": ("fp32", "bf16")}
_TORCH_ON_CUDA: dict[str, Any] = {**_ON_CUDA, **_TORCH, "precisions": ("fp32", "tf32", "fp16", "bf16")}
_CUDA_GRAPH = {"cuda_graph": ("0", "1")}
_CUDA_PROVIDER = {
    "cudnn_conv_algo_search": ("HEURISTIC", "EXHAUSTIVE", "DEFAULT"),
    "prefer_nhwc": ("0", "1"),
    **_CUDA_GRAPH,
}
_TABLE = (
    RuntimeInfo("pytorch-cpu", f"{_PYTORCH}:PyTorchCpu", **_TORCH_ON_CPU),
    RuntimeInfo("pytorch-cuda", f"{_PYTORCH}:PyTorchCuda", **_TORCH_ON_CUDA),
    RuntimeInfo("pytorch-cpu-channels-last", f"{_CHANNELS_LAST}:PyTorchCpuChannelsLast", **_TORCH_ON_CPU),
    RuntimeInfo("pytorch-cuda-channels-last", f"{_CHANNELS_LAST}:PyTorchCudaChannelsLast", **_TORCH_ON_CUDA),
    RuntimeInfo("torch-compile-cpu", f"{_COMPILE}:TorchCompileCpu", **_TORCH_ON_CPU, compiles=True),
    RuntimeInfo("torch-compile-cuda", f"{_COMPILE}:TorchCompileCuda", **_TORCH_ON_CUDA, compiles=True),
    RuntimeInfo("onnxruntime-cpu", f"{_ORT}:OnnxRuntimeCpu", **_ONNX_ON_CPU, engine="onnxruntime"),
    RuntimeInfo("onnxruntime-cuda", f"{_ORT}:OnnxRuntimeCuda", **_ONNX_ON_CUDA, settings=_CUDA_PROVIDER),
    RuntimeInfo("openvino-cpu", f"{_OPENVINO}:OpenVinoCpu", **_ONNX_ON_CPU, engine="openvino"),
    RuntimeInfo("openvino-cpu-throughput", f"{_OPENVINO}:OpenVinoCpuThroughput", **_ONNX_ON_CPU, engine="openvino"),
    RuntimeInfo(
        "onnxruntime-tensorrt",
        f"{_ORT}_tensorrt:OnnxRuntimeTensorRt",
        **{**_TENSORRT, "scopes": ("forward", "pipeline")},
    ),
    RuntimeInfo("tensorrt", "segx.runtimes.tensorrt:TensorRt", **_TENSORRT, settings=_CUDA_GRAPH),
)
RUNTIMES = {info.name: info for info in _TABLE}

# Scripted, for tests: can be asked for by name and is no part of `all`.
_FAKE = RuntimeInfo(
    "fake",
    "segx.runtimes.fake:FakeRuntime",
    "cpu",
    "onnx",
    torch=False,
    baseline="fake",
    precisions=("fp32", "int8"),
    scopes=("forward", "device", "pipeline"),
)


def runtime_info(name: str) -> RuntimeInfo:
    """Look a runtime up.

    Raises:
        UsageError: no runtime has that name; the message lists those there are, the hint the nearest.
    """
    if name == _FAKE.name:
        return _FAKE
    if name in RUNTIMES:
        return RUNTIMES[name]
    near = difflib.get_close_matches(name, [*RUNTIMES, ALL], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"give one of them, or {ALL}"
    raise UsageError(f"no runtime {name!r}; there are {', '.join(RUNTIMES)}", hint=hint)


def resolve_names(requested: Sequence[str]) -> list[str]:
    """Turn what the user gave (names, comma-separated or repeated, or ``all``) into a list of names without doubles.

    Raises:
        UsageError: a name is unknown, or none was given.
    """
    words = [word.strip() for text in requested for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("no runtime given", hint=f"give {', '.join(RUNTIMES)} or {ALL}")
    names = [name for word in words for name in (RUNTIMES if word == ALL else [runtime_info(word).name])]
    return list(dict.fromkeys(names))


def _class_of(name: str) -> Any:
    module, _, attribute = runtime_info(name).target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def check_runtime(name: str, options: RuntimeOptions) -> dict[str, str]:
    """Find out without a model whether a runtime can work here.

    Returns:
        Facts about it: versions, devices.

    Raises:
        RuntimeUnavailable: a package, device or library is missing.
        UsageError: no runtime has that name.
    """
    facts: dict[str, str] = _class_of(name).check(options)
    return facts


def open_runtime(name: str, path: Path | str, *, spec: ModelSpec, options: RuntimeOptions) -> Runtime:
    """Load a model into a runtime.

    Args:
        name: one of ``RUNTIMES``.
        path: the file the runtime takes: a checkpoint for PyTorch, an ONNX file for ONNX Runtime.
        spec: the model's description; gives the shape of the proving inference.
        options: threads and precision.

    Raises:
        RuntimeUnavailable: a package, device or library is missing.
        UsageError: no runtime has that name, or it has not that precision.
        CheckpointError, ArtifactError: the file cannot be used.
        InferenceError: the proving inference failed.
    """
    info = runtime_info(name)
    if options.precision not in info.precisions:
        raise UsageError(f"{name} does not compute in {options.precision}", hint=f"it has {', '.join(info.precisions)}")
    runtime: Runtime = _class_of(name)(Path(path), spec, options)
    return runtime
