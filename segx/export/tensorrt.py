"""Export an ONNX file as a TensorRT engine with one profile per batch size, and give the same ``trtexec`` command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segx.errors import OutputError, UsageError
from segx.model.spec import ModelSpec
from segx.runtimes import cuda
from segx.runtimes.base import Precision
from segx.runtimes.tensorrt import (
    CACHE_FOLDER,
    EngineManifest,
    Recipe,
    build_engine,
    environment_here,
    fresh_engine,
    timing_cache_path,
    version,
)
from segx.system import machine

_INPUT = "image"  # as named by segx export


@dataclass(frozen=True)
class ExportedEngine:
    """An engine with its manifest beside it, the equivalent command, and whether it had to be built."""

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
    on_progress: Callable[[str], None] = lambda _: None,
) -> ExportedEngine:
    """Build an engine for this machine's GPU, unless an up-to-date one exists.

    Args:
        onnx: the model, exported with logits; the engine computes in its types.
        spec: spec of the model.
        batch_sizes: each gets a profile that allows only this size, with kernels tuned for it.
        precision: precision of the file; ``tf32`` takes a float32 file.
        output: path of the engine; None means ``NAME.engine`` beside the ONNX file.
        workspace_bytes: device memory that one layer may use besides its tensors; None for no limit.
        timing_cache: TensorRT timing cache, which makes builds faster and repeatable; None means one for this GPU and
            version under ``artifacts/tensorrt-cache``.
        force: build even if nothing changed.
        threads: CPU threads of the builder; None means all that are usable.
        device_index: index of the CUDA device.
        on_progress: called with a line of text for each step.

    Raises:
        UsageError: there is no batch size, or one is below 1.
        RuntimeUnavailable: there is no driver, GPU or TensorRT.
        ArtifactError: the ONNX file is missing, or its output is not float32 logits.
        ExportError: TensorRT cannot build it, or it has another precision; no file is written.
        OutOfMemory: memory ran out.
        OutputError: a file cannot be written.
    """
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1:
        raise UsageError(f"batch sizes {list(batch_sizes)} make no engine", hint="use one or more, each at least 1")
    path = output or onnx.with_suffix(".engine")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder", hint="use a file name such as model.engine")
    cuda.check_driver()
    here = environment_here(device_index, version())
    recipe = Recipe.of(onnx, spec, precision, sizes, workspace_bytes)
    timings = timing_cache or timing_cache_path(CACHE_FOLDER, here)
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
    on_progress(f"building a TensorRT engine for batch sizes {', '.join(map(str, sizes))}: this takes minutes")
    cuda.select(device_index)
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
    """Return the ``trtexec`` command that builds the same engine, for a POSIX shell, with one option per line.

    Arguments are those of ``export_tensorrt``; ``tensorrt`` is the version of ``trtexec``, None if unknown.
    """
    lines = [[f"--onnx={onnx}"], [f"--saveEngine={output}"]]
    # Optional from version 11 on, which has no other typing.
    if tensorrt is None or int(tensorrt.partition(".")[0]) < 11:
        lines.append(["--stronglyTyped"])
    if precision != "tf32":
        lines.append(["--noTF32"])
    if workspace_bytes is not None:
        mebibytes, rest = divmod(workspace_bytes, 2**20)
        limit = f"{workspace_bytes}B" if rest else f"{mebibytes}M"
        lines.append([f"--memPoolSize=workspace:{limit}"])
    if timing_cache is not None:
        lines.append([f"--timingCacheFile={timing_cache}"])
    for index, size in enumerate(batch_sizes):
        shape = "x".join(map(str, (size, *spec.input_shape)))
        # These three must directly follow their --profile.
        profile = (f"--{which}Shapes={_INPUT}:{shape}" for which in ("min", "opt", "max"))
        lines.append([f"--profile={index}", *profile])
    lines.append(["--skipInference"])
    return " \\\n    ".join(["trtexec", *map(shlex.join, lines)])
