"""Export an ONNX file as a TensorRT engine with one profile per batch size, and give the same ``trtexec`` command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segx.errors import ArtifactError, RuntimeUnavailable, UsageError
from segx.model.spec import ModelSpec
from segx.runtimes import cuda
from segx.runtimes.base import Precision
from segx.runtimes.tensorrt import (
    CACHE_FOLDER,
    EngineFacts,
    Recipe,
    environment_here,
    provide_engine,
    timing_cache_path,
    version,
)
from segx.system import machine
from segx.system.progress import SILENT, Progress

_INPUT = "image"  # as named by segx export


@dataclass(frozen=True)
class ExportedEngine:
    """An engine, what is known of it, the equivalent command, and whether it had to be built."""

    path: Path
    facts: EngineFacts
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
    force: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> ExportedEngine:
    """Build an engine for this machine's GPU from a file that returns logits, unless an up-to-date one exists.

    Each batch size gets a profile that allows only this size, with kernels tuned for it. The engine computes in the
    file's types: ``precision`` says which they are, and ``tf32`` takes a float32 file. ``workspace_bytes`` is the
    device memory that one layer may use besides its tensors. The default output is ``NAME.engine`` beside the file. A
    timing cache for this GPU and version under ``artifacts/tensorrt-cache`` makes builds faster and repeatable.

    Raises:
        UsageError: there is no batch size, or one is below 1.
        RuntimeUnavailable: there is no driver, GPU or TensorRT; the hint holds the ``trtexec`` command.
        ArtifactError: the ONNX file is missing, or its output is not float32 logits.
        ExportError: TensorRT cannot build it, or it has another precision; no file is written.
        OutOfMemory: memory ran out.
        OutputError: a file cannot be written.
    """
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1:
        raise UsageError(f"batch sizes {list(batch_sizes)} are not usable", hint="give one or more, each at least 1")
    if not onnx.is_file():
        raise ArtifactError(f"no ONNX file at {onnx}", hint="export one with `segx export`")
    path = output or onnx.with_suffix(".engine")
    recipe = Recipe.of(onnx, spec, precision, sizes, workspace_bytes)
    try:
        cuda.check_driver()
        here = environment_here(0, version())
        timings = timing_cache_path(CACHE_FOLDER, here)
        cuda.select(0)
        manifest, rebuilt = provide_engine(
            path,
            onnx,
            recipe,
            here,
            timings=timings,
            threads=threads or machine.usable_cores(),
            force=force,
            progress=progress,
        )
    except RuntimeUnavailable as error:
        command = trtexec_command(onnx, recipe, path)
        raise RuntimeUnavailable(error.message, hint=f"{error.hint}; there, this builds it: {command}") from error
    command = trtexec_command(onnx, recipe, path, timing_cache=timings, tensorrt=here.tensorrt)
    return ExportedEngine(path, manifest.proof, command, rebuilt)


def trtexec_command(
    onnx: Path, recipe: Recipe, output: Path, *, timing_cache: Path | None = None, tensorrt: str | None = None
) -> str:
    """Return the ``trtexec`` command that builds the same engine, for a POSIX shell.

    ``tensorrt`` is the version of ``trtexec``, None if unknown.
    """
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={output}"]
    # Optional from version 11 on, which has no other typing.
    if tensorrt is None or int(tensorrt.partition(".")[0]) < 11:
        words.append("--stronglyTyped")
    if recipe.precision != "tf32":
        words.append("--noTF32")
    if recipe.workspace_bytes is not None:
        mebibytes, rest = divmod(recipe.workspace_bytes, 2**20)
        limit = f"{recipe.workspace_bytes}B" if rest else f"{mebibytes}M"
        words.append(f"--memPoolSize=workspace:{limit}")
    if timing_cache is not None:
        words.append(f"--timingCacheFile={timing_cache}")
    for index, size in enumerate(recipe.batch_sizes):
        shape = "x".join(map(str, (size, *recipe.input_shape)))
        # These three must directly follow their --profile.
        profile = (f"--{which}Shapes={_INPUT}:{shape}" for which in ("min", "opt", "max"))
        words += [f"--profile={index}", *profile]
    return shlex.join([*words, "--skipInference"])
