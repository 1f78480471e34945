"""The parent's side of the workers of cells. The parent itself imports no engine."""

from __future__ import annotations

import contextlib
import os
import signal

from segx.bench.pipeline import PipelineWorker
from segx.bench.worker import CellTask, Finished, Loaded, serve_cell
from segx.runtimes import runtime_info
from segx.system import processes
from segx.system.processes import Worker


class Workers(processes.Workers):
    """Those of ``segx.system.processes``, and the workers of cells."""

    def cell(self, task: CellTask, *, timeout_s: float) -> CellWorker:
        """Start the worker of a cell."""
        process, connection = self.start(runtime_info(task.runtime).torch, serve_cell, (task,))
        return CellWorker(process, connection, timeout_s=timeout_s)

    def pipeline(self, task: CellTask, *, timeout_s: float) -> PipelineWorker:
        """Start the engine of a cell in the pipeline scope; the other stages run here."""
        return PipelineWorker(self, task, timeout_s=timeout_s)


class CellWorker(Worker):
    """The worker of one cell; see ``CellSession`` for what each request does."""

    def pause(self) -> None:
        """Stop it where it stands (SIGSTOP): also threads that spin while they wait for work."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it died meanwhile; the next request says so
            os.kill(self.pid, number)

    def close(self) -> None:
        """Let it end by itself, also where it is paused, or else kill it."""
        self.resume()
        super().close()

    def load(self) -> Loaded:
        """Import, build, run once."""
        loaded: Loaded = self.ask("load")
        return loaded

    def warm_up(self, runs: int) -> None:
        """Run without keeping times."""
        self.ask("warm_up", runs)

    def sample(self, slice_s: float) -> list[float]:
        """Timed runs for about ``slice_s`` seconds."""
        seconds: list[float] = self.ask("sample", slice_s)
        return seconds

    def finish(self) -> Finished:
        """Memory, and how many outputs are on file."""
        finished: Finished = self.ask("finish")
        return finished
