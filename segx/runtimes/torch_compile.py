"""torch.compile with its default backend, Inductor, on the CPU and on CUDA; never silently eager.

Compiling takes seconds to minutes and is paid by the first call of each input shape, not by loading: it shows as cold
start. It always begins with an empty cache, as in a freshly deployed process; with Inductor's usual one, in the
temporary folder, the figure would depend on whether somebody had compiled the model before.

A worker that is killed while it compiles leaves no process behind for longer than one file takes to compile: Inductor's
compile workers watch their parent, and compilers end with their file. Its cache of a few MB stays in the temporary
folder then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
import tempfile
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
from segx.runtimes.base import RuntimeOptions
from segx.runtimes.pytorch import PyTorchOnCpu, PyTorchOnCuda
from segx.system.silence import quiet

# How many input shapes one process may compile for. With torch's own limit, 8, the next one would be refused; with
# older versions of torch, be run eagerly.
_MOST_SHAPES = 64

_OTHER_ENGINE = "leave torch-compile out for this model"
_SWITCH_ON = "unset TORCH_COMPILE_DISABLE and TORCHDYNAMO_DISABLE"


class CompiledModule:
    """A module that Inductor compiles at the first call of each input shape; it never runs any other way.

    Inductor is called through a backend of our own, which therefore knows what was compiled and when: a first call in
    which nothing was compiled and a later one in which something would be are both refused.
    """

    def __init__(self, module: torch.nn.Module, *, threads: int) -> None:
        """Nothing is compiled yet.

        Args:
            module: (N, C, H, W) -> (N, K, H, W), without anything that torch.compile cannot put into one graph.
            threads: how many kernels are compiled at a time.
        """
        self._threads = threads
        self._graphs = 0
        self._compiling = False
        self._known: set[torch.Size] = set()
        self._compiled = torch.compile(module, backend=self._compile_graph, fullgraph=True, dynamic=False)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Run; compile first where this shape is new.

        Raises:
            InferenceError: the module does not make one graph, it ran without being compiled, or torch wanted to
                compile it again for a shape that it was compiled for.
            RuntimeError: the compiler, or what it made, failed.
        """
        try:
            if images.shape not in self._known:
                return self._first_call(images)
            logits: torch.Tensor = self._compiled(images)
        except (Unsupported, FailOnRecompileLimitHit) as error:
            raise InferenceError(
                f"torch.compile cannot make one graph of the model: {first_line(error)}", hint=_OTHER_ENGINE
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
            limit = dynamo_config.patch(recompile_limit=_MOST_SHAPES)
            with quiet(), _empty_cache(), inductor_config.patch(compile_threads=self._threads), limit:
                logits: torch.Tensor = self._compiled(images)
        finally:
            self._compiling = False
        if self._graphs != before + 1:
            raise InferenceError("torch.compile ran the model without compiling it", hint=_SWITCH_ON)
        self._known.add(images.shape)
        return logits

    def _compile_graph(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        if not self._compiling:
            raise InferenceError("torch.compile wanted to compile the model again in a later call", hint=_OTHER_ENGINE)
        compiled: Callable[..., Any] = compile_by_inductor(graph, inputs)
        self._graphs += 1
        return compiled


class TorchCompileCpu(PyTorchOnCpu):
    """torch.compile on the CPU: kernels in C++, convolutions from oneDNN."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("torch-compile-cpu", path, spec, options)  # proves the module, eagerly
        self._run = CompiledModule(self._module, threads=options.threads)
        self.facts = {**self.facts, **_FACTS}

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Look for what Inductor needs to build its kernels.

        Raises:
            RuntimeUnavailable: torch.compile is switched off, or there is no C++ compiler, or no header of Python.
        """
        return {**PyTorchOnCpu.check(options), "compiler": _cpp_compiler()}


class TorchCompileCuda(PyTorchOnCuda):
    """torch.compile on one CUDA device: kernels in Triton, convolutions from cuDNN; a call includes the copies.

    Untested on a GPU so far.
    """

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("torch-compile-cuda", path, spec, options)  # proves the module, eagerly
        self._run = CompiledModule(self._module, threads=options.threads)
        self.facts = {**self.facts, **_FACTS}

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Ask the driver and torch for the device, then look for what Triton needs.

        Raises:
            RuntimeUnavailable: no usable GPU, no Triton, torch.compile is switched off, or there is no C compiler, or
                no header of Python.
        """
        facts = PyTorchOnCuda.check(options)
        if not has_triton():
            raise RuntimeUnavailable(
                "Triton is missing, or does not support this GPU",
                hint="pip install the triton that this torch names; the GPU must be a Volta or later",
            )
        return {**facts, "compiler": _c_compiler()}


_FACTS = {"compiled by": "inductor, one graph for each input shape", "compile cache": "empty at the first call"}


def _cpp_compiler() -> str:
    _need_compiling()
    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeUnavailable(
            "there is no C++ compiler, which Inductor needs",
            hint="install g++ (apt-get install g++), or name a compiler in the variable CXX",
        ) from error


def _c_compiler() -> str:
    _need_compiling()
    # As Triton looks for it: it builds a small module that talks to the driver.
    if not (found := os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise RuntimeUnavailable(
            "there is no C compiler, which Triton needs",
            hint="install gcc (apt-get install gcc), or name a compiler in the variable CC",
        )
    return found


def _need_compiling() -> None:
    if dynamo_config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise RuntimeUnavailable("torch.compile is switched off in the environment", hint=_SWITCH_ON)
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        raise RuntimeUnavailable(
            f"no Python.h in {folder}, which compiled kernels include",
            hint="install the headers of this Python (apt-get install python3-dev)",
        )


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
    """Let Inductor and Triton keep what they compile in a folder of this block alone.

    What was compiled is loaded within the block, so that nothing needs the folder afterwards.
    """
    folder = tempfile.TemporaryDirectory(prefix="segx-inductor-", ignore_cleanup_errors=True)
    # Precompiled headers are kept in the temporary folder, 160 MB outside of the cache, so that only the first process
    # on a machine would pay for them: 39 s to compile the shipped model, later ones 26 s. Without them, always 46 s.
    with folder, fresh_cache(dir=folder.name), inductor_config.patch(cpp_cache_precompile_headers=False):
        yield
