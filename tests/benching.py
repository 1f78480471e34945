"""A bench for tests: flat options, a moment's sampling, and cells that run in the test's own process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

import segx
from segx.bench import api, worker
from segx.bench.plan import CellTask, Finished, Loaded
from segx.errors import CheckpointError
from segx.results.types import Results
from segx.system import memory
from segx.system.files import read_kibibytes
from segx.system.processes import answer
from segx.system.progress import SILENT, Progress

_GROUPS = {
    "data": segx.DataOptions,
    "sampling": segx.SamplingOptions,
    "engine": segx.EngineOptions,
    "limits": segx.Limits,
    "gate": segx.Gate,
    "output": segx.BenchOutput,
}
QUICK: Mapping[str, Any] = {
    "precisions": ("fp32",),  # the default depends on the machine
    "num_images": 4,
    "processes": 1,
    "warmup": 0,
    "min_time_s": 0.0,
    "min_runs": 1,
    "max_time_s": 0.0,
}


def quick_bench(checkpoint: Any = None, **options: Any) -> Results:
    """Call ``segx.benchmark`` with the fields of its option groups as keyword arguments, and little sampling."""
    flat = {**QUICK, **options}
    flat["folder"] = flat.pop("output", None)
    grouped = {
        name: kind(**{field.name: flat.pop(field.name) for field in dataclasses.fields(kind) if field.name in flat})
        for name, kind in _GROUPS.items()
    }
    results: Results = segx.benchmark(checkpoint, **flat, **grouped)
    return results


class InProcessCell:
    """Answer as the worker process of a cell does, without one."""

    def __init__(self, task: CellTask) -> None:
        self._server = worker.CellServer(task)

    def _ask(self, method: str, *arguments: Any) -> Any:
        return _result(answer(getattr(self._server, method), arguments))

    def load(self) -> Any:
        return self._ask("load")

    def warm_up(self, runs: int) -> None:
        self._ask("warm_up", runs)

    def sample(self, slice_s: float) -> Any:
        return self._ask("sample", slice_s)

    def finish(self) -> Any:
        return self._ask("finish")

    def pause(self) -> None:
        pass

    resume = close = kill = pause

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class InProcessCall:
    """Run a function when its result is asked for."""

    def __init__(self, function: Any, arguments: Mapping[str, Any]) -> None:
        self._function, self._arguments = function, arguments

    def result(self, progress: Progress = SILENT) -> Any:  # noqa: ARG002
        return _result(answer(self._function, (), self._arguments))

    def kill(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class InProcessWorkers(worker.CellWorkers):
    """Run cells and functions in this process; only engines of the pipeline scope have processes of their own."""

    def prepare(self, *, torch: bool) -> None:
        pass

    def cell(self, task: CellTask, *, timeout_s: float) -> Any:  # noqa: ARG002
        return InProcessCell(task)

    def begin(self, function: Any, arguments: Mapping[str, Any], *, tells: bool = False, **_: Any) -> Any:
        return InProcessCall(function, {**arguments, **({"progress": SILENT} if tells else {})})

    def call(self, function: Any, arguments: Mapping[str, Any], **_: Any) -> Any:
        return InProcessCall(function, arguments).result()


def _result(answered: tuple[bool, Any]) -> Any:
    ok, result = answered
    if not ok:
        raise result
    return result


def run_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have benches run their cells in this process until the test ends."""
    monkeypatch.setattr(api, "CellWorkers", InProcessWorkers)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # a worker sets it
    monkeypatch.setattr(worker, "limit_this_process", lambda _: None)
    # For a process as large as this one the kernel takes 7 ms to count its dirty pages.
    monkeypatch.setattr(memory, "dirty_bytes", lambda process: read_kibibytes(process / "status", "VmRSS"))


def loaded_modules() -> list[str]:
    """Return the modules of the process that calls this."""
    return list(sys.modules)


def fail(error: Exception) -> None:
    """Raise an error."""
    raise error


def fail_because(cause: Exception) -> None:
    """Raise an error of segx that another one led to."""
    try:
        raise cause
    except Exception as error:
        raise CheckpointError("m.pt cannot be read", hint="save it again") from error


def count_to(number: int, progress: Progress) -> int:
    """Say each step."""
    for step in range(number):
        progress.say(f"step {step}")
    return number


def hang() -> None:
    """Wait for a minute."""
    time.sleep(60.0)


def measured_with_allocation(task: CellTask, allocated: int) -> tuple[Loaded, Finished]:
    """Run a cell in this process, with a runtime that takes ``allocated`` more bytes in each call."""
    opened = worker.open_runtime

    def open_runtime(*arguments: Any, **keywords: Any) -> Any:
        runtime = opened(*arguments, **keywords)
        infer = runtime.infer

        def infer_with_allocation(batch: Any) -> Any:
            held = np.ones(allocated, np.uint8)
            logits = infer(batch)
            del held
            return logits

        runtime.infer = infer_with_allocation
        return runtime

    worker.open_runtime = open_runtime
    server = worker.CellServer(task)
    loaded = server.load()
    server.warm_up(1)
    server.sample(0.0)
    return loaded, server.finish()


def import_all(path: Path, variants: Sequence[bytes], copy: Path) -> list[str]:
    """Import variants of a foreign ONNX file in a worker; return the message of each that fails."""
    from segx.export.foreign import convert

    failures = []
    for variant in variants:
        path.write_bytes(variant)
        ok, error = answer(convert, (path, {"height": 16, "width": 24}, copy, "0" * 64))
        failures += [] if ok else [error.message]
    return failures


def serve_sums(connection: Connection) -> None:
    """Answer pairs of numbers with their sums, until the parent closes the connection."""
    with contextlib.suppress(EOFError):
        while True:
            connection.send((True, sum(connection.recv())))


def print_in_every_way() -> None:
    """Print by Python and, as libraries in C do, to file descriptor 1."""
    print("from Python", flush=True)  # noqa: T201
    os.write(1, b"from C\n")
