"""One cell in progress: its worker, its rounds and its record, which a failure gives too."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from segx.analysis.stats import SETTLED, Interval, median_interval
from segx.bench.environment import RoundConditions
from segx.bench.pipeline import PipelineWorker
from segx.bench.plan import CellTask
from segx.bench.sampling import StopReason, StopRule
from segx.bench.worker import CellProcess, CellWorkers
from segx.errors import OutOfMemory, RuntimeUnavailable, SegxError
from segx.masks.agreement import ParityLimits, breaches
from segx.results.types import Cell, DeviceMemory, Parity, Round, Status
from segx.runtimes import Variant, runtime_info
from segx.system.memory import DeviceMemoryMeter
from segx.system.nvml import Nvml
from segx.system.processes import WorkerDied, WorkerHung

logger = logging.getLogger(__name__)

_LONGEST_SLICE_S = 0.5
# With a budget left, tied cells are sampled until their medians are known this well.
_TIED_WITHIN = SETTLED / 4

_NO_HOST_MEMORY = "the system has no /proc/self/smaps_rollup"
_NO_DEVICE_MEMORY = {"cpu": "computes on the CPU", "cuda": "NVML does not report the memory of this GPU"}

_STATUS_OF: tuple[tuple[type[SegxError], Status], ...] = (
    (RuntimeUnavailable, "unavailable"),
    (OutOfMemory, "out of memory"),
    (WorkerHung, "timed out"),
    (WorkerDied, "crashed"),
    (SegxError, "failed"),
)


def new_cell(variant: Variant, batch_size: int | None) -> Cell:
    """Return the record of a cell before it is measured."""
    return Cell(**dataclasses.asdict(variant), batch_size=batch_size, status="ok")


def failed_cell(cell: Cell, error: SegxError) -> Cell:
    """Return the record of a cell that could not be measured."""
    status = next(status for kind, status in _STATUS_OF if isinstance(error, kind))
    # What is missing is missing at every batch size: one row for the runtime.
    batch_size = None if status == "unavailable" else cell.batch_size
    return dataclasses.replace(cell, batch_size=batch_size, status=status, reason=error.message, remedy=error.hint)


class CellRun:
    """A cell from the start of its worker to its record. The worker is stopped between its rounds."""

    def __init__(
        self,
        task: CellTask,
        rule: StopRule,
        limits: ParityLimits,
        *,
        gpu: Nvml | None,
        when_sampled: Callable[[float], None],
    ) -> None:
        """Start nothing yet; ``when_sampled`` is called after each round with the progress, 0 to 1."""
        self.cell = new_cell(task.variant, task.batch_size)
        self.task = task
        self.loading_s = 0.0
        self._rule = rule
        # At least ten rounds in the shortest sampling: the intervals of ratios come from rounds.
        self._slice_s = min(_LONGEST_SLICE_S, rule.min_time_s / 10)
        self._limits = limits
        self._gpu = gpu
        self._when_sampled = when_sampled
        self._device_memory = DeviceMemoryMeter(gpu)
        self._worker: CellProcess | PipelineWorker | None = None
        self._samples_s: list[float] = []
        self._rounds: list[Round] = []
        self._stopped: StopReason | None = None
        self._tied = False

    def start(self, workers: CellWorkers, *, warmup: int, timeout_s: float) -> bool:
        """Start the worker, load the model and warm up; return whether that succeeded."""
        started = time.perf_counter()
        with self._failures_recorded(), self._device_memory.watching():
            self._worker = (
                PipelineWorker(workers, self.task, timeout_s=timeout_s)
                if self.cell.scope == "pipeline"
                else workers.cell(self.task, timeout_s=timeout_s)
            )
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
        self.loading_s = time.perf_counter() - started
        return not self.failed

    @property
    def sampled_s(self) -> float:
        """Return the seconds of timed calls so far."""
        return sum(self._samples_s)

    @property
    def failed(self) -> bool:
        """Return whether the cell has failed."""
        return self.cell.status != "ok"

    @property
    def interval(self) -> Interval | None:
        """Return the interval of the median seconds per image; None with too few calls, or after a failure."""
        if self.failed:
            return None
        interval = median_interval(self._samples_s)
        size = self.task.images_per_run
        return Interval(interval.low / size, interval.high / size) if interval else None

    def sample_round(self, number: int) -> float:
        """Make the timed calls of one round; return the seconds they took."""
        worker = self._running
        seconds: list[float] = []
        with self._failures_recorded(), self._device_memory.watching():
            conditions = RoundConditions(self._gpu, own_load=self.cell.scope == "pipeline")
            worker.resume()
            seconds = worker.sample(self._slice_s)
            worker.pause()
            self._samples_s += seconds
            self._rounds.append(conditions.record(number, len(seconds)))
            self._when_sampled(self._rule.fraction_done(self._samples_s))
        return sum(seconds)

    def is_done(self, others: Sequence[Interval | None]) -> bool:
        """Return whether the cell failed or was sampled enough; a tied one goes on after it is settled.

        Ties are looked for once, when the cell settles: looking again after every round, and stopping when two cells
        come apart, would make them come apart.
        """
        if self.failed:
            return True
        if self._stopped is None:
            self._stopped = self._rule.reason_to_stop(self._samples_s)
            ours = self.interval
            # A cell without an interval yet may turn out to be tied.
            self._tied = any(not (ours and theirs) or ours.overlaps(theirs) for theirs in others)
        if self._stopped == "settled" and self._tied:
            return self._rule.settled(self._samples_s, within=_TIED_WITHIN)
        return self._stopped is not None

    def stop_for_budget(self) -> None:
        """Note that no budget is left; a cell that was settled stays settled."""
        self._stopped = self._stopped or "budget spent"

    def finish(self, judge: Callable[[CellTask], Parity]) -> None:
        """Read the memory, end the worker, and judge the outputs of the timed calls."""
        worker = self._running
        with self._failures_recorded():
            worker.resume()
            finished = worker.finish()
            worker.close()
            self._worker = None
            parity = judge(self.task)
            broken = breaches(parity, self._limits)
            device_memory = self._read_device_memory(finished.device_memory)
            no_host_memory = "measured in the other scopes" if self.cell.scope == "pipeline" else _NO_HOST_MEMORY
            no_device_memory = _NO_DEVICE_MEMORY[runtime_info(self.cell.runtime).device]
            self.cell = dataclasses.replace(
                self.cell,
                status="parity broken" if broken else "ok",
                reason="; ".join(broken),
                remedy="do not deploy this variant before you know why" if broken else "",
                samples_s=self._recorded_s,
                rounds=tuple(self._rounds),
                stopped=self._stopped or "",
                host_memory=finished.memory,
                host_memory_missing="" if finished.memory else no_host_memory,
                device_memory=device_memory,
                device_memory_missing="" if device_memory else no_device_memory,
                parity=parity,
                stages=finished.stages,
            )

    def interrupted(self) -> Cell | None:
        """Return the record of what was sampled so far; None if nothing was, or the cell is finished."""
        if not self._rounds or self.cell.samples_s or self.failed:
            return None
        rounds = tuple(self._rounds)
        return dataclasses.replace(self.cell, samples_s=self._recorded_s, rounds=rounds, stopped="interrupted")

    def abandon(self) -> None:
        """End the worker at once, if it is still there."""
        if self._worker:
            self._worker.kill()
            self._worker = None

    @property
    def _recorded_s(self) -> tuple[float, ...]:
        """Return the seconds of each run, per batch."""
        share = self.task.batch_size / self.task.images_per_run
        return tuple(seconds * share for seconds in self._samples_s)

    def _read_device_memory(self, counted: tuple[int, str] | None) -> DeviceMemory | None:
        counter_bytes, counter = counted or (None, "")
        if not (reading := self._device_memory.read()):
            return None
        return DeviceMemory(**reading._asdict(), counter_bytes=counter_bytes, counter=counter)

    @property
    def _running(self) -> CellProcess | PipelineWorker:
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
