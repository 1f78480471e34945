"""torch.compile with Inductor on the CPU and on CUDA; never silently eager.

Compiling takes seconds to minutes and happens in the first call of each input shape, not while loading, so it counts
as cold start. The compile cache is always empty at first, as in a freshly deployed process; with Inductor's default
cache the figure would depend on earlier runs.

When a worker is killed while compiling, Inductor's compile processes notice and end, and so does the compiler after
its current file; the cache is removed by the next process that needs one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, Unsupported
from torch._inductor import compile as compile_by_inductor
from torch._inductor import config as inductor_config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.utils import fresh_cache
from torch.utils._triton import has_triton

from segx.errors import InferenceError, RuntimeUnavailable, first_line
from segx.model.spec import ModelSpec
from segx.runtimes.base import FloatArray, RuntimeOptions
from segx.runtimes.pytorch import PyTorchCpu, PyTorchCuda
from segx.system.files import temporary_folder
from segx.system.silence import quiet

# Input shapes that one process may compile. Beyond torch's own limit of 8, older versions of torch run eagerly.
_MAX_SHAPES = 64

_OTHER_ENGINE = "leave out torch-compile for this model"
_ENABLE = "unset TORCH_COMPILE_DISABLE and TORCHDYNAMO_DISABLE"


class CompiledModule:
    """A module that Inductor compiles in the first call of each input shape, and that never runs uncompiled.

    A custom backend calls Inductor and counts what it compiles: a first call that compiles nothing and a later call
    that would compile again are both errors.
    """

    def __init__(self, module: torch.nn.Module, *, threads: int) -> None:
        """Wrap a module (N, C, H, W) -> (N, K, H, W) without graph breaks; ``threads`` kernels compile at a time."""
        self._threads = threads
        self._graphs = 0
        self._compiling = False
        self._turn = threading.Lock()
        self._known: set[torch.Size] = set()
        self._compiled = torch.compile(module, backend=self._compile_graph, fullgraph=True, dynamic=False)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Run the module, compiling it first for a new input shape.

        Raises:
            InferenceError: the module has graph breaks, it ran without being compiled, or torch wanted to compile it
                again for a known shape.
            RuntimeError: the compiler or the compiled code failed.
        """
        try:
            with self._turn:
                if images.shape not in self._known:
                    return self._first_call(images)
            logits: torch.Tensor = self._compiled(images)
        except (Unsupported, FailOnRecompileLimitHit) as error:
            raise InferenceError(
                f"torch.compile cannot compile the model as one graph: {first_line(error)}", hint=_OTHER_ENGINE
            ) from error
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, InferenceError):
                raise error.inner_exception from error
            raise
        return logits

    def _first_call(self, images: torch.Tensor) -> torch.Tensor:
        before = self._graphs
        self._compiling = True
        try:
            limit = dynamo_config.patch(recompile_limit=_MAX_SHAPES)
            with quiet(), _empty_cache(), inductor_config.patch(compile_threads=self._threads), limit:
                logits: torch.Tensor = self._compiled(images)
        finally:
            self._compiling = False
        if self._graphs != before + 1:
            raise InferenceError("torch.compile ran the model without compiling it", hint=_ENABLE)
        self._known.add(images.shape)
        return logits

    def _compile_graph(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        if not self._compiling:
            raise InferenceError("torch.compile wanted to recompile the model in a later call", hint=_OTHER_ENGINE)
        compiled: Callable[..., Any] = compile_by_inductor(graph, inputs)
        self._graphs += 1
        return compiled


class TorchCompileCpu(PyTorchCpu):
    """torch.compile on the CPU: kernels in C++, convolutions from oneDNN."""

    name = "torch-compile-cpu"

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__(path, spec, options)
        self._run = CompiledModule(self._module, threads=options.threads)
        self.facts = {**self.facts, **_FACTS}

    def _prove(self, batch: FloatArray) -> None:
        """Run the module once, eagerly: its kernels tell nothing of those that are compiled."""
        self.infer(batch)

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Return the versions and the compiler.

        Raises:
            RuntimeUnavailable: torch.compile is disabled, or the C++ compiler or Python's headers are missing.
        """
        return {**PyTorchCpu.check(options), "compiler": _cpp_compiler()}


class TorchCompileCuda(PyTorchCuda):
    """torch.compile on one CUDA device: kernels in Triton, convolutions from cuDNN; a call includes the copies."""

    name = "torch-compile-cuda"

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__(path, spec, options)  # runs the module once, eagerly
        self._run = CompiledModule(self._module, threads=options.threads)
        self.facts = {**self.facts, **_FACTS}

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Return the versions, the device name and the compiler.

        Raises:
            RuntimeUnavailable: there is no usable GPU, torch.compile is disabled, or Triton, the C compiler or
                Python's headers are missing.
        """
        facts = PyTorchCuda.check(options)
        if not has_triton():
            raise RuntimeUnavailable(
                "Triton is missing or does not support this GPU",
                hint="install the triton version that torch requires; the GPU must be Volta or newer",
            )
        return {**facts, "compiler": _c_compiler()}


_FACTS = {"compiled by": "inductor, one graph for each input shape", "compile cache": "empty at the first call"}


def _cpp_compiler() -> str:
    _check_toolchain()
    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeUnavailable(
            "no C++ compiler found, which Inductor needs",
            hint="install g++ (apt-get install g++), or set CXX to a compiler",
        ) from error


def _c_compiler() -> str:
    _check_toolchain()
    # The same search as in Triton, which builds a small module to call the driver.
    if not (found := os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise RuntimeUnavailable(
            "no C compiler found, which Triton needs",
            hint="install gcc (apt-get install gcc), or set CC to a compiler",
        )
    return found


def _check_toolchain() -> None:
    if dynamo_config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise RuntimeUnavailable("torch.compile is disabled in the environment", hint=_ENABLE)
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        raise RuntimeUnavailable(
            f"no Python.h in {folder}, which compiled kernels need",
            hint="install the Python headers (apt-get install python3-dev)",
        )


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
    """Give Inductor and Triton a temporary cache; compiled code is loaded before it is deleted."""
    # Precompiled headers go to the temporary directory, 160 MB outside the cache, so only a machine's first process
    # would pay for them: 39 s to compile the shipped model, later processes 26 s. Without them it always takes 46 s.
    no_headers = inductor_config.patch(cpp_cache_precompile_headers=False)
    with temporary_folder() as folder, fresh_cache(dir=str(folder)), no_headers:
        yield
