"""ONNX file -> TensorRT engine with a profile for each batch size, and the ``trtexec`` command that builds the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segx.errors import OutputError, RuntimeUnavailable, UsageError
from segx.model.spec import ModelSpec
from segx.runtimes.base import Precision
from segx.runtimes.cuda import cuda
from segx.runtimes.tensorrt_api import version
from segx.runtimes.tensorrt_engine import (
    CACHE_FOLDER,
    EngineManifest,
    Recipe,
    build_engine,
    cached_timings,
    environment_here,
    fresh_engine,
)
from segx.system import machine

_INPUT = "image"  # as to_onnx names it


@dataclass(frozen=True)
class ExportedEngine:
    """What an export gave.

    Attributes:
        path: the engine; its manifest stands beside it.
        manifest: what it holds, and where it runs.
        trtexec: the command that builds the same from the same file.
        rebuilt: False where an engine of the same recipe was there already.
    """

    path: Path
    manifest: EngineManifest
    trtexec: str
    rebuilt: bool


def export_tensorrt(
    onnx: Path,
    spec: ModelSpec,
    batch_sizes: Sequence[int],
    *,
    precision: Precision = "fp32",
    output: Path | None = None,
    workspace_bytes: int | None = None,
    timing_cache: Path | None = None,
    force: bool = False,
    threads: int | None = None,
    device_index: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> ExportedEngine:
    """Build an engine for this machine's GPU. Nothing is done when the file fits the model, the options and the GPU.

    Args:
        onnx: the model, exported with logits; its types are those that the engine computes in.
        spec: the model's description.
        batch_sizes: each gets a profile that allows just this many images, and kernels tuned for it.
        precision: what the file is expected to compute in; ``tf32`` takes a float32 file.
        output: where to write; None means ``NAME.engine`` beside the ONNX file.
        workspace_bytes: device memory that one layer may use beside its tensors; None for as much as there is.
        timing_cache: file that keeps what builds measure, which makes them faster and repeatable; None means one for
            this GPU and version under ``artifacts/tensorrt-cache``.
        force: build again although nothing changed.
        threads: processors to build with; None means all that are usable.
        device_index: which CUDA device to build for.
        tell: called with one line per step.

    Raises:
        UsageError: no batch size, or one below 1.
        RuntimeUnavailable: no driver, no GPU, no TensorRT.
        ArtifactError: there is no such ONNX file, or it does not give float32 logits.
        ExportError: TensorRT cannot build it, or it is not of the precision; no file is left then.
        OutOfMemory: memory ran out while building.
        OutputError: a file cannot be written.
    """
    sizes = _checked(batch_sizes)
    path = output or onnx.with_suffix(".engine")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder", hint="give the name of a file, as model.engine")
    if problem := machine.cuda_problem():
        raise RuntimeUnavailable(problem, hint="run on a machine with an NVIDIA GPU and its driver")
    here = environment_here(device_index, version())
    recipe = Recipe.of(onnx, spec, precision, sizes, workspace_bytes)
    timings = timing_cache or cached_timings(CACHE_FOLDER, here)
    command = trtexec_command(
        onnx,
        spec,
        sizes,
        precision=precision,
        output=path,
        workspace_bytes=workspace_bytes,
        timing_cache=timings,
        tensorrt=here.tensorrt,
    )
    if not force and (manifest := fresh_engine(path, recipe, here)):
        return ExportedEngine(path, manifest, command, rebuilt=False)
    tell(f"building a TensorRT engine for batch sizes {', '.join(map(str, sizes))}: this takes minutes")
    cuda().select(device_index)
    threads = threads or machine.usable_cores()
    manifest = build_engine(onnx, recipe, here, output=path, timings=timings, threads=threads)
    return ExportedEngine(path, manifest, command, rebuilt=True)


def trtexec_command(
    onnx: Path,
    spec: ModelSpec,
    batch_sizes: Sequence[int],
    *,
    precision: Precision,
    output: Path,
    workspace_bytes: int | None,
    timing_cache: Path | None,
    tensorrt: str | None = None,
) -> str:
    """The ``trtexec`` command that builds the same engine, for a POSIX shell, a line for each option or profile.

    Args:
        onnx: the model.
        spec: the model's description.
        batch_sizes: one profile each.
        precision: all but ``tf32`` switch TF32 off; fp16, bf16 and int8 come from the file.
        output: where to write the engine.
        workspace_bytes: limit; None for none.
        timing_cache: file of measurements; None for none.
        tensorrt: version of ``trtexec``; None where it is not known.
    """
    lines = [[f"--onnx={onnx}"], [f"--saveEngine={output}"]]
    # 11 knows no other typing, and takes the option still.
    if tensorrt is None or int(tensorrt.partition(".")[0]) < 11:
        lines.append(["--stronglyTyped"])
    if precision != "tf32":
        lines.append(["--noTF32"])
    if workspace_bytes is not None:
        lines.append([f"--memPoolSize=workspace:{_size(workspace_bytes)}"])
    if timing_cache is not None:
        lines.append([f"--timingCacheFile={timing_cache}"])
    for index, size in enumerate(batch_sizes):
        shape = "x".join(map(str, (size, *spec.input_shape)))
        # The three must follow their --profile directly.
        profile = (f"--{which}Shapes={_INPUT}:{shape}" for which in ("min", "opt", "max"))
        lines.append([f"--profile={index}", *profile])
    lines.append(["--skipInference"])
    return " \\\n    ".join(["trtexec", *map(shlex.join, lines)])


def _size(size_bytes: int) -> str:
    mebibytes, rest = divmod(size_bytes, 2**20)
    return f"{size_bytes}B" if rest else f"{mebibytes}M"


def _checked(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """In rising order, each once."""
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1:
        raise UsageError(f"batch sizes {list(batch_sizes)} make no engine", hint="give one or more, each at least 1")
    return sizes
