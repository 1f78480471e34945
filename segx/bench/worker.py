"""The worker of a cell from both sides: a process that loads one runtime, and the parent's handle on it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from multiprocessing.connection import Connection

from segx.bench.inputs import BatchFiles
from segx.bench.plan import CellTask, Finished, Loaded
from segx.bench.sampling import TimedCall, by_clock, timed_runs
from segx.errors import InferenceError
from segx.results.types import HostMemory
from segx.runtimes import check_runtime, open_runtime, runtime_info
from segx.runtimes.base import CountsDeviceMemory, RunsElsewhere, TimesItself
from segx.system import machine
from segx.system.memory import HostMemoryMeter, limit_this_process
from segx.system.processes import Worker, Workers, answer

# The share of the free memory that a cell may take; the rest is for its parent and the system.
_SHARE_OF_FREE_MEMORY = 0.9


class CellServer:
    """Run one cell, from import to finish; each public method answers one request of the parent."""

    def __init__(self, task: CellTask) -> None:
        self._task = task
        self._batches = BatchFiles(task.inputs, task.batch_size, task.outputs)
        self._runs = 0

    def load(self, *, keep_first: bool = False) -> Loaded:
        """Import the engine, load the model and run it once; ``keep_first`` keeps the output as that of a timed run."""
        task = self._task
        if task.options.precision != "tf32":
            # In force for every CUDA library, whatever options reach it; read when CUDA starts in this process.
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        start = time.perf_counter()
        check_runtime(task.runtime, task.options)  # imports the engine
        imported = time.perf_counter()
        info = runtime_info(task.runtime)
        # CUDA and browsers reserve address space far beyond what they use.
        if info.device == "cpu" and not info.in_browser:
            most = int(machine.memory_available_bytes() * _SHARE_OF_FREE_MEMORY)
            if limit := task.memory_limit_bytes or most:
                limit_this_process(limit)
        self._memory = HostMemoryMeter()
        options = dataclasses.replace(task.options, memory_limit_bytes=task.memory_limit_bytes)
        self._runtime = open_runtime(task.runtime, task.model, spec=task.spec, options=options)
        loaded = time.perf_counter()
        forward: TimedCall = by_clock(self._runtime.infer)
        if isinstance(self._runtime, RunsElsewhere):
            self._memory, forward = self._runtime.memory, self._runtime.infer_timed
        self._memory.model_is_loaded()
        self._timed = forward
        if task.options.scope == "device":
            assert isinstance(self._runtime, TimesItself)  # see unsupported
            self._timed = self._runtime.infer_timed
        logits, first_s = forward(self._batches.take(0))
        if logits.shape != (expected := (task.batch_size, *task.spec.output_shape)):
            raise InferenceError(
                f"{task.runtime} returned outputs of shape {logits.shape}, expected {expected}",
                hint="export the model again; its spec does not fit the weights",
            )
        if keep_first:
            self._batches.keep(0, logits)
            self._runs = 1
        preloaded = sys.modules.get("segx.bench.preload")
        import_s = imported - start + (preloaded.IMPORT_S if preloaded else 0.0)
        return Loaded(import_s, loaded - imported, first_s, dict(self._runtime.facts))

    def warm_up(self, runs: int) -> None:
        """Run without recording times."""
        for run in range(runs):
            self._timed(self._batches.take(run))
        self._memory.about_to_time()

    def sample(self, slice_s: float) -> list[float]:
        """Run for about ``slice_s`` seconds, at least once; return the seconds of each run."""
        seconds = timed_runs(self._timed, self._batches, first_run=self._runs, slice_s=slice_s)
        self._runs += len(seconds)
        return seconds

    def finish(self) -> Finished:
        """Read the memory meter and release the engine."""
        reading = self._memory.read()
        counted = self._runtime.peak_device_bytes() if isinstance(self._runtime, CountsDeviceMemory) else None
        self._runtime.close()
        return Finished(HostMemory(**reading._asdict()) if reading else None, counted)


def serve_cell(connection: Connection, task: CellTask) -> None:
    """Answer the parent's requests: each is (method, arguments), each answer (ok, result or error)."""
    server = CellServer(task)
    # The parent ends the worker by closing its end of the connection; if it is killed, the kernel does.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            method, arguments = connection.recv()
            connection.send(answer(getattr(server, method), arguments))


class CellWorkers(Workers):
    """Start workers, those of cells among them."""

    def cell(self, task: CellTask, *, timeout_s: float) -> CellProcess:
        """Start the worker process of a cell; it is given up on after ``timeout_s`` seconds without an answer."""
        info = runtime_info(task.runtime)
        process, connection = self.start(info.torch, serve_cell, (task,))
        limited = task.memory_limit_bytes is not None and info.device == "cpu"
        return CellProcess(process, connection, timeout_s=timeout_s, memory_limited=limited)


class CellProcess(Worker):
    """The parent's handle on the worker process of a cell; see ``CellServer`` for the requests."""

    def pause(self) -> None:
        """Stop all threads of the process (SIGSTOP), including those that spin while they wait for work."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it died meanwhile; the next request says so
            os.kill(self.pid, number)

    def close(self) -> None:
        """Let the process end by itself, even if it is paused; kill it if it does not."""
        self.resume()
        super().close()

    def load(self) -> Loaded:
        """Request ``CellServer.load``."""
        loaded: Loaded = self.ask("load")
        return loaded

    def warm_up(self, runs: int) -> None:
        """Request ``CellServer.warm_up``."""
        self.ask("warm_up", runs)

    def sample(self, slice_s: float) -> list[float]:
        """Request ``CellServer.sample``."""
        seconds: list[float] = self.ask("sample", slice_s)
        return seconds

    def finish(self) -> Finished:
        """Request ``CellServer.finish``."""
        finished: Finished = self.ask("finish")
        return finished
