"""The table of runtimes, and functions to look one up, check it and open it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from segx.errors import ArtifactError, UsageError
from segx.model.spec import ModelSpec
from segx.runtimes.base import Precision, Runtime, RuntimeOptions, Scope
from segx.system import machine

ALL = "all"
# What people call an engine -> its name here.
_SHORT = {"ort": "onnxruntime", "onnx": "onnxruntime", "trt": "tensorrt", "torch": "pytorch"}

# gpu: whatever the browser offers.
Device = Literal["cpu", "cuda", "gpu"]
Engine = Literal["onnxruntime", "openvino", "tensorrt"]
# native: by instructions for such numbers. emulated: by those for others, which takes longer.
Support = Literal["native", "emulated", "no"]


@dataclass(frozen=True)
class RuntimeInfo:
    """What is known about a runtime before its engine is imported."""

    name: str
    target: str  # ``module:Class`` under ``segx.runtimes``
    device: Device
    precisions: tuple[Precision, ...]
    _: KW_ONLY
    torch: bool = False  # runs the checkpoint in torch, other runtimes run an ONNX file
    device_scope: bool = False  # implements ``TimesItself``
    engine: Engine | None = None  # whose derived files it runs, for engines that have their own
    compiles: bool = False  # each process compiles the model again, which takes about a minute
    builds_engine: bool = False  # the first process builds an engine for minutes
    least_batch: int = 1  # with fewer images it does what another runtime does
    in_browser: bool = False  # measures what a page would get: no way to run a model from Python
    scripted: bool = False  # reads no file, and is its own baseline
    # Names and values allowed in ``RuntimeOptions.engine_options``.
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Name of the module that owns the engine."""
        return f"segx.runtimes.{self.target.partition(':')[0]}"

    @property
    def takes(self) -> Literal["checkpoint", "onnx"]:
        """The kind of file that it runs."""
        return "checkpoint" if self.torch else "onnx"

    @property
    def baseline(self) -> str:
        """PyTorch eager on the same device; speed-ups are relative to it."""
        if self.scripted:
            return self.name
        return "pytorch-cpu" if self.device == "cpu" else "pytorch-cuda"

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The scopes that it can be timed in."""
        return ("forward", "device", "pipeline") if self.device_scope else ("forward", "pipeline")


_TORCH_CPU: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
_TORCH_CUDA: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
_CPU: tuple[Precision, ...] = ("fp32", "int8")
_OPENVINO: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
_TENSORRT: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "int8")
_CUDA_GRAPH = {"cuda_graph": ("0", "1")}
_CUDA_PROVIDER = {
    "cudnn_conv_algo_search": ("HEURISTIC", "EXHAUSTIVE", "DEFAULT"),
    "prefer_nhwc": ("0", "1"),
    **_CUDA_GRAPH,
}

RUNTIMES: Mapping[str, RuntimeInfo] = {
    info.name: info
    for info in (
        RuntimeInfo("pytorch-cpu", "pytorch:PyTorchCpu", "cpu", _TORCH_CPU, torch=True),
        RuntimeInfo("pytorch-cuda", "pytorch:PyTorchCuda", "cuda", _TORCH_CUDA, torch=True, device_scope=True),
        RuntimeInfo("pytorch-cpu-channels-last", "pytorch:PyTorchCpuChannelsLast", "cpu", _TORCH_CPU, torch=True),
        RuntimeInfo(
            "pytorch-cuda-channels-last",
            "pytorch:PyTorchCudaChannelsLast",
            "cuda",
            _TORCH_CUDA,
            torch=True,
            device_scope=True,
        ),
        RuntimeInfo("torch-compile-cpu", "torch_compile:TorchCompileCpu", "cpu", _TORCH_CPU, torch=True, compiles=True),
        RuntimeInfo(
            "torch-compile-cuda",
            "torch_compile:TorchCompileCuda",
            "cuda",
            _TORCH_CUDA,
            torch=True,
            device_scope=True,
            compiles=True,
        ),
        RuntimeInfo("onnxruntime-cpu", "onnxruntime:OnnxRuntimeCpu", "cpu", _CPU, engine="onnxruntime"),
        RuntimeInfo(
            "onnxruntime-cuda",
            "onnxruntime:OnnxRuntimeCuda",
            "cuda",
            ("fp32", "tf32", "fp16"),
            device_scope=True,
            settings=_CUDA_PROVIDER,
        ),
        RuntimeInfo("openvino-cpu", "openvino:OpenVinoCpu", "cpu", _OPENVINO, engine="openvino"),
        RuntimeInfo(
            "openvino-cpu-throughput",
            "openvino:OpenVinoCpuThroughput",
            "cpu",
            _OPENVINO,
            engine="openvino",
            least_batch=2,
        ),
        RuntimeInfo(
            "onnxruntime-tensorrt",
            "onnxruntime_tensorrt:OnnxRuntimeTensorRt",
            "cuda",
            _TENSORRT,
            engine="tensorrt",
            builds_engine=True,
        ),
        RuntimeInfo(
            "tensorrt",
            "tensorrt:TensorRt",
            "cuda",
            _TENSORRT,
            device_scope=True,
            engine="tensorrt",
            builds_engine=True,
            settings=_CUDA_GRAPH,
        ),
        RuntimeInfo(
            "onnxruntime-web", "onnxruntime_web:OnnxRuntimeWeb", "cpu", _CPU, engine="onnxruntime", in_browser=True
        ),
        RuntimeInfo("onnxruntime-webgpu", "onnxruntime_web:OnnxRuntimeWebGpu", "gpu", ("fp32",), in_browser=True),
    )
}

# For tests: can be requested by name and is not part of `all`.
_FAKE = RuntimeInfo("fake", "fake:FakeRuntime", "cpu", _CPU, device_scope=True, scripted=True)


def runtime_info(name: str) -> RuntimeInfo:
    """Look up a runtime by name.

    Raises:
        UsageError: the name is unknown; the message lists the valid ones and the hint names the closest.
    """
    if name == _FAKE.name:
        return _FAKE
    if name in RUNTIMES:
        return RUNTIMES[name]
    near = difflib.get_close_matches(name, RUNTIMES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "use one of them"
    raise UsageError(f"no runtime {name!r}; there are {', '.join(RUNTIMES)}", hint=hint)


def resolve_names(requested: Sequence[str], device: Device | None = None) -> list[str]:
    """Expand what the user asked for (comma-separated, repeated, or ``all``) into a list without duplicates.

    A name may be a short one (``ort``, ``torch``) or lack the device (``openvino``): it means the runtimes on all
    devices, or on ``device``. A precision after a colon is kept: ``openvino:int8`` is ``openvino-cpu:int8``.

    Raises:
        UsageError: a name or precision is unknown, or there is none; there is no such runtime on ``device``.
    """
    texts = [requested] if isinstance(requested, str) else requested
    words = [word.strip() for text in texts for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("no runtime given", hint=f"use {', '.join(RUNTIMES)} or {ALL}")
    return list(dict.fromkeys(name for word in words for name in _meant(word, device)))


def resolve_name(requested: str, device: Device | None = None, *, hint: str = "give one") -> str:
    """Return the full name of the one runtime that the user asked for, on the CPU unless ``device`` is given.

    Raises:
        UsageError: as ``resolve_names``; or there are several, with this ``hint``.
    """
    if "," in requested or requested.partition(":")[0] == ALL:
        raise UsageError(f"{requested} is several runtimes", hint=hint)
    return resolve_names([requested], device)[0]


def _meant(word: str, device: Device | None) -> list[str]:
    name, colon, precision = word.partition(":")
    if colon and precision not in get_args(Precision):
        raise UsageError(f"no precision {precision!r} in {word!r}", hint=f"give {', '.join(get_args(Precision))}")
    infos = [*RUNTIMES.values(), _FAKE] if name != ALL else [*RUNTIMES.values()]
    head, dash, rest = name.partition("-")
    called = {name, f"{_SHORT.get(head, head)}{dash}{rest}"}
    found = [info for info in infos if name == ALL or {info.name, info.name.replace(f"-{info.device}", "", 1)} & called]
    if not found:
        found = [runtime_info(name)]
    here = [info for info in found if device in (None, info.device)]
    if not here:
        raise UsageError(f"{word} does not run on {device}", hint="leave --device out, or choose another --runtime")
    return [f"{info.name}{colon}{precision}" for info in here]


def precision_support(info: RuntimeInfo) -> dict[Precision, Support]:
    """Return how a runtime computes in each precision on this machine, by its processor or its first GPU.

    Of what a CPU emulates, runtimes offer int8 alone.
    """

    def support(precision: Precision) -> Support:
        if precision not in info.precisions:
            return "no"
        if info.in_browser:  # WebAssembly has no instructions for int8
            return "emulated" if precision == "int8" else "native"
        if info.device == "cpu":
            return "emulated" if machine.cpu_lacks(precision) else "native"
        return "no" if machine.gpu_lacks(precision, machine.compute_capability()) else "native"

    return {precision: support(precision) for precision in get_args(Precision)}


def check_runtime(name: str, options: RuntimeOptions) -> dict[str, str]:
    """Check whether a runtime works on this machine, without loading a model.

    Returns:
        Facts about the engine, such as versions and the device name.

    Raises:
        RuntimeUnavailable: a package, device or library is missing.
        UsageError: the name is unknown.
    """
    facts: dict[str, str] = _class_of(name).check(options)
    return facts


def open_runtime(name: str, path: Path | str, *, spec: ModelSpec, options: RuntimeOptions) -> Runtime:
    """Load a model into a runtime and run one inference with it.

    Args:
        name: one of ``RUNTIMES``.
        path: the kind of file the runtime takes: a checkpoint or an ONNX file.
        spec: spec of the model.
        options: threads, precision and device.

    Raises:
        RuntimeUnavailable: a package, device or library is missing.
        UsageError: the name is unknown, or the runtime does not support the precision.
        CheckpointError, ArtifactError: the file cannot be used.
        InferenceError: the inference failed.
    """
    info = runtime_info(name)
    if options.precision not in info.precisions:
        raise UsageError(f"{name} does not compute in {options.precision}", hint=f"use {', '.join(info.precisions)}")
    if info.takes == "onnx" and not info.scripted and not Path(path).is_file():
        raise ArtifactError(f"no ONNX file at {path}", hint="make it with `segx export`")
    runtime: Runtime = _class_of(name)(Path(path), spec, options)
    return runtime


def _class_of(name: str) -> Any:
    info = runtime_info(name)
    return getattr(importlib.import_module(info.module), info.target.partition(":")[2])
