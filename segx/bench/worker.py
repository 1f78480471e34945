"""The child's side of a cell: a fresh process that loads one runtime and answers its parent's requests."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from segx.bench.inputs import BatchFiles, Inputs
from segx.bench.sampling import TimedCall, by_clock, timed_runs
from segx.errors import InferenceError
from segx.model.spec import ModelSpec
from segx.results.types import HostMemory
from segx.runtimes import RuntimeOptions, open_runtime, runtime_info
from segx.runtimes.base import CountsDeviceMemory, DeviceTimed
from segx.system.memory import HostMemoryMeter, limit_this_process, offer_to_oom_killer
from segx.system.processes import answer, leave_fate_to_parent

if TYPE_CHECKING:
    from segx.predict.item import Item


@dataclass(frozen=True, kw_only=True)
class CellTask:
    """What a worker measures.

    Attributes:
        runtime: its name.
        model: the file that runtime takes.
        spec: the model's description.
        options: threads, precision and scope.
        batch_size: images per call.
        inputs: the images.
        outputs: file for the outputs of the timed runs; in the pipeline scope the folder for the masks of a pass.
        memory_limit_bytes: private memory the worker may take; None for no limit.
        items: the images as files, in the same order, in the pipeline scope; empty in the others.
    """

    runtime: str
    model: Path
    spec: ModelSpec
    options: RuntimeOptions
    batch_size: int
    inputs: Inputs
    outputs: Path
    memory_limit_bytes: int | None
    items: tuple[Item, ...] = ()

    @property
    def images_per_run(self) -> int:
        """How many images a timed run takes: a batch, and in the pipeline scope all of them."""
        return len(self.items) or self.batch_size


@dataclass(frozen=True)
class Loaded:
    """What loading took and gave; None for what cannot be told apart.

    Attributes:
        import_s: importing the engine; for a worker that was forked with it, what the import took in the first process.
        load_s: reading the model, building the engine and one proving inference.
        first_s: the first inference at this batch size.
        facts: what is really in force; see ``Runtime.facts``.
    """

    import_s: float | None
    load_s: float | None
    first_s: float | None
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Finished:
    """What a worker knows at the end.

    Attributes:
        memory: see ``HostMemory``; None where the system does not tell.
        device_memory: highest bytes by the framework's own counter, and its name; None where it has none.
        kept: outputs of timed runs on file.
        stages: seconds per image in each stage of the pipeline scope; empty in the others.
    """

    memory: HostMemory | None
    device_memory: tuple[int, str] | None
    kept: int
    stages: Mapping[str, float] = field(default_factory=dict)


class CellSession:
    """One cell, from import to finish; each public method answers one request of the parent."""

    def __init__(self, task: CellTask) -> None:
        self._task = task
        self._batches = BatchFiles(task.inputs, task.batch_size, task.outputs)
        self._runs = 0

    def load(self) -> Loaded:
        """Import, build, run once."""
        task = self._task
        offer_to_oom_killer()
        if task.options.precision != "tf32":
            # Holds for every CUDA library, whatever options reach it; read when CUDA starts in this process.
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        start = time.perf_counter()
        importlib.import_module(runtime_info(task.runtime).target.partition(":")[0])
        imported = time.perf_counter()
        if task.memory_limit_bytes:
            limit_this_process(task.memory_limit_bytes)
        self._memory = HostMemoryMeter()
        self._runtime = open_runtime(task.runtime, task.model, spec=task.spec, options=task.options)
        loaded = time.perf_counter()
        self._memory.model_is_loaded()
        self._timed = self._timed_call()
        batch = self._batches.take(0)
        before = time.perf_counter()
        logits = self._runtime.infer(batch)
        first_s = time.perf_counter() - before
        if logits.shape != (wanted := (task.batch_size, *task.spec.output_shape)):
            raise InferenceError(
                f"{task.runtime} gave outputs of shape {logits.shape}, not {wanted}",
                hint="export the model again; its spec does not fit the weights",
            )
        preloaded = sys.modules.get("segx.bench.preload")
        import_s = imported - start + (preloaded.IMPORT_S if preloaded else 0.0)
        return Loaded(import_s, loaded - imported, first_s, dict(self._runtime.facts))

    def warm_up(self, runs: int) -> None:
        """Run without keeping times."""
        for run in range(runs):
            self._timed(self._batches.take(run))
        self._memory.about_to_time()

    def sample(self, slice_s: float) -> list[float]:
        """Timed runs for about ``slice_s`` seconds, at least one; gives the seconds of each."""
        seconds = timed_runs(self._timed, self._batches, first_run=self._runs, slice_s=slice_s)
        self._runs += len(seconds)
        return seconds

    def finish(self) -> Finished:
        """Read the memory meter and release the engine."""
        memory = self._memory.read()
        counted = self._runtime.peak_device_bytes() if isinstance(self._runtime, CountsDeviceMemory) else None
        self._runtime.close()
        return Finished(memory, counted, self._batches.kept)

    def _timed_call(self) -> TimedCall:
        """One inference in the scope that is asked for."""
        if self._task.options.scope == "forward":
            return by_clock(self._runtime.infer)
        assert isinstance(self._runtime, DeviceTimed)  # the table of runtimes says so
        return self._runtime.infer_on_device


def serve_cell(connection: Connection, task: CellTask) -> None:
    """Main of a cell's worker: requests are (method, arguments), answers (ok, result or error)."""
    leave_fate_to_parent()
    session = CellSession(task)
    # The parent ends the worker by closing its end of the line; when it is killed, the kernel does.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            method, arguments = connection.recv()
            connection.send(answer(getattr(session, method), arguments))
