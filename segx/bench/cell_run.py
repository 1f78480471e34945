"""One cell while it runs: its worker, its rounds, and the record that comes of it, whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator

from segx.bench.device_memory import DeviceMemorySampler
from segx.bench.processes import CellWorker, WorkerDied, WorkerHung, Workers
from segx.bench.results import Cell, Status
from segx.bench.timing import StopReason, StopRule
from segx.bench.worker import CellTask
from segx.errors import OutOfMemory, RuntimeUnavailable, SegxError
from segx.parity import Parity, ParityLimits
from segx.runtimes import runtime_info

logger = logging.getLogger(__name__)

_LONGEST_SLICE_S = 0.5

_STATUS_OF: tuple[tuple[type[SegxError], Status], ...] = (
    (RuntimeUnavailable, "unavailable"),
    (OutOfMemory, "out of memory"),
    (WorkerHung, "timed out"),
    (WorkerDied, "crashed"),
    (SegxError, "failed"),
)


def failed_cell(cell: Cell, error: SegxError) -> Cell:
    """The record of a cell that could not be measured."""
    status = next(status for kind, status in _STATUS_OF if isinstance(error, kind))
    # What is missing is missing at every batch size: one row for the runtime.
    concerned = None if status == "unavailable" else cell.batch_size
    return dataclasses.replace(cell, batch_size=concerned, status=status, reason=error.message, remedy=error.hint)


class CellRun:
    """A cell from the start of its worker to its record. Between its turns the worker stands still."""

    def __init__(
        self,
        cell: Cell,
        task: CellTask,
        rule: StopRule,
        limits: ParityLimits,
        *,
        device_index: int,
        when_sampled: Callable[[float], None],
    ) -> None:
        """Nothing is started yet.

        Args:
            cell: the record so far: runtime, precision, batch size.
            task: what its worker shall do.
            rule: when it has been sampled enough.
            limits: how far its masks may differ from the reference's.
            device_index: the CUDA device it runs on, if it does.
            when_sampled: told after each turn how far towards the end it is, 0 to 1.
        """
        self.cell = cell
        self.task = task
        self._rule = rule
        # Some ten rounds within the shortest sampling: the intervals of ratios come from rounds.
        self._slice_s = min(_LONGEST_SLICE_S, rule.min_time_s / 10)
        self._limits = limits
        self._when_sampled = when_sampled
        on_gpu = runtime_info(cell.runtime).device == "cuda"
        self._device = DeviceMemorySampler(device_index) if on_gpu else None
        self._worker: CellWorker | None = None
        self._samples_s: list[float] = []
        self._rounds: list[int] = []
        self._stopped: StopReason | None = None

    def start(self, workers: Workers, *, warmup: int, timeout_s: float) -> bool:
        """Start the worker, load, warm up; whether that went well."""
        with self._failures_recorded(), self._watching():
            self._worker = workers.cell(self.task, timeout_s=timeout_s)
            loaded = self._worker.load()
            self._worker.warm_up(warmup)
            self._worker.pause()
            self.cell = dataclasses.replace(
                self.cell,
                import_s=loaded.import_s,
                load_s=loaded.load_s,
                first_s=loaded.first_s,
                facts=loaded.facts,
            )
        return self.cell.status == "ok"

    def sample_round(self) -> bool:
        """One turn; whether more are wanted."""
        worker = self._running
        with self._failures_recorded(), self._watching():
            worker.resume()
            seconds = worker.sample(self._slice_s)
            worker.pause()
            self._samples_s += seconds
            self._rounds.append(len(seconds))
            self._stopped = self._rule.reason_to_stop(self._samples_s)
            self._when_sampled(self._rule.fraction_done(len(self._samples_s), sum(self._samples_s)))
        return self.cell.status == "ok" and self._stopped is None

    def finish(self, judge: Callable[[CellTask], Parity]) -> None:
        """Read the memory, end the worker, judge the outputs of the timed calls."""
        worker = self._running
        with self._failures_recorded():
            worker.resume()
            finished = worker.finish()
            worker.close()
            self._worker = None
            parity = judge(self.task)
            broken = parity.breaches(self._limits)
            self.cell = dataclasses.replace(
                self.cell,
                status="parity broken" if broken else "ok",
                reason="; ".join(broken),
                remedy="do not deploy this variant before you know why" if broken else "",
                samples_s=tuple(self._samples_s),
                rounds=tuple(self._rounds),
                stopped=self._stopped or "",
                host_memory=finished.memory,
                device_memory=self._device.read() if self._device else None,
                parity=parity,
            )

    def interrupted(self) -> Cell | None:
        """The record of what was sampled so far; None where nothing was."""
        if not self._rounds or self.cell.samples_s or self.cell.status != "ok":  # nothing, or recorded already
            return None
        samples = tuple(self._samples_s)
        return dataclasses.replace(self.cell, samples_s=samples, rounds=tuple(self._rounds), stopped="interrupted")

    def abandon(self) -> None:
        """End the worker at once, if there still is one."""
        if self._worker:
            self._worker.kill()
            self._worker = None

    @property
    def _running(self) -> CellWorker:
        assert self._worker  # started, and not finished
        return self._worker

    @contextlib.contextmanager
    def _failures_recorded(self) -> Iterator[None]:
        try:
            yield
        except SegxError as error:
            logger.debug("%s", "\n".join(getattr(error, "__notes__", [error.message])))
            self.cell = failed_cell(self.cell, error)
            self.abandon()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        with self._device.watching() if self._device else contextlib.nullcontext():
            yield
