"""One cell in progress: its worker, its rounds and its record, which a failure gives too."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from segx.analysis.stats import SETTLED, Interval
from segx.bench.environment import RoundConditions
from segx.bench.pipeline import PipelineWorker
from segx.bench.plan import CellTask
from segx.bench.sampling import StopReason, StopRule, half_width_of
from segx.bench.worker import CellProcess, CellWorkers
from segx.errors import OutOfMemory, RuntimeUnavailable, SegxError
from segx.masks.agreement import ParityLimits, breaches
from segx.results.types import MEASURED, Cell, DeviceMemory, HostMemory, Parity, Round, Status
from segx.runtimes import Variant, runtime_info
from segx.system.memory import DeviceMemoryMeter
from segx.system.nvml import Nvml
from segx.system.processes import WorkerDied, WorkerHung

logger = logging.getLogger(__name__)

Memory = TypeVar("Memory", HostMemory, DeviceMemory)

# A turn of a cell that is done and goes on only for its ratios to others.
_SHORT_SLICE_S = 0.1
# With a budget left, tied cells are sampled until their medians are known this well.
_TIED_WITHIN = SETTLED / 4

_NO_HOST_MEMORY = "the system has no /proc/self/smaps_rollup"
_NO_DEVICE_MEMORY = {
    "cpu": "computes on the CPU",
    "cuda": "NVML does not report the memory of this GPU",
    "gpu": "the browser does not report the memory of the GPU",
}

# What to do about masks that miss a limit.
_REMEDY = "do not deploy this variant before you know why"
_REMEDIES = {"int8": "calibrate int8 on more images like these with --calibration, or use another precision"}
_STATUS_OF: tuple[tuple[type[SegxError], Status], ...] = (
    (RuntimeUnavailable, "unavailable"),
    (OutOfMemory, "out of memory"),
    (WorkerHung, "timed out"),
    (WorkerDied, "crashed"),
    (SegxError, "failed"),
)


def _larger(one: Memory | None, other: Memory | None) -> Memory | None:
    """Return the reading with the higher peak, of two processes."""
    return max(filter(None, (one, other)), key=lambda reading: reading.peak_bytes, default=None)


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
    """A cell from the start of its first worker to its record. A worker is stopped between its rounds."""

    def __init__(
        self,
        task: CellTask,
        rules: Sequence[StopRule],
        limits: ParityLimits,
        *,
        gpu: Nvml | None,
        when_sampled: Callable[[float, float], None],
    ) -> None:
        """Start nothing yet.

        ``rules`` has the rule of each of the worker processes that the cell runs in, one after the other.
        ``when_sampled`` is called after each round with the progress, 0 to 1, and the seconds of its calls.
        """
        self.cell = new_cell(task.variant, task.batch_size)
        self.task = task
        self._rules = rules
        self._process = -1
        self._limits = limits
        self._gpu = gpu
        self._when_sampled = when_sampled
        self._device_memory = DeviceMemoryMeter(gpu)
        self._worker: CellProcess | PipelineWorker | None = None
        self._samples_s: list[float] = []
        self._rounds: list[Round] = []
        self._stops: list[StopReason] = []
        # Number and seconds of the calls of each round in the present process.
        self.turns: list[tuple[int, list[float]]] = []
        self._stopped: StopReason | None = None
        self._tied = False
        self._is_asked = False  # also after an interrupt, since the answer is still to come

    def start(self, workers: CellWorkers, *, warmup: int, timeout_s: float) -> bool:
        """Start the next worker, load the model and warm up; return whether that succeeded."""
        self._process += 1
        self.turns, self._stopped, self._tied = [], None, False
        # The masks are judged on the outputs of the first process.
        judged = self._process == 0 or self.cell.scope == "pipeline"
        task = self.task if judged else dataclasses.replace(self.task, outputs=Path(os.devnull))
        with self._failures_recorded(), self._device_memory.watching():
            self._worker = (
                PipelineWorker(workers, self.task, timeout_s=timeout_s)
                if self.cell.scope == "pipeline"
                else workers.cell(task, timeout_s=timeout_s)
            )
            loaded = self._worker.load()
            self._worker.warm_up(warmup)
            self._worker.pause()
            if self._process == 0:
                self.cell = dataclasses.replace(
                    self.cell,
                    import_s=loaded.import_s,
                    load_s=loaded.load_s,
                    first_s=loaded.first_s,
                    facts=loaded.facts,
                )
        return not self.failed

    @property
    def failed(self) -> bool:
        """Return whether the cell has no figures."""
        return self.cell.status not in MEASURED

    @property
    def done(self) -> bool:
        """Return whether the cell was sampled enough in the present process, and can be finished."""
        return self._stopped is not None and self._worker is not None and not self._is_asked

    @property
    def time_is_spent(self) -> bool:
        """Return whether the calls of the present process took the most time that they may."""
        return sum(sum(seconds) for _, seconds in self.turns) >= self._rule.max_time_s

    @property
    def interval(self) -> Interval | None:
        """Return the interval of the median seconds per image; None with too few rounds, or after a failure."""
        rounds = self._turns_s
        width = None if self.failed else half_width_of(rounds)
        if width is None:
            return None
        middle = statistics.median(itertools.chain(*rounds)) / self.task.images_per_run
        return Interval(middle / (1 + width), middle * (1 + width))

    def sample_round(self, number: int, *, short: bool = False) -> float:
        """Make the timed calls of one round; return the seconds they took."""
        worker = self._running
        seconds: list[float] = []
        with self._failures_recorded(), self._device_memory.watching():
            conditions = RoundConditions(self._gpu, own_load=self.cell.scope == "pipeline")
            worker.resume()
            slice_s = self._rule.slice_s
            seconds = worker.sample(min(slice_s, _SHORT_SLICE_S) if short else slice_s)
            worker.pause()
            self._samples_s += seconds
            self.turns.append((number, seconds))
            self._rounds.append(conditions.record(number, len(seconds), self._process))
            done = self._rule.fraction_done(self._turns_s)
            self._when_sampled((self._process + done) / len(self._rules), sum(seconds))
        return sum(seconds)

    def is_done(self, others: Sequence[Interval | None] = ()) -> bool:
        """Return whether the cell failed or was sampled enough; a tied one goes on after it is settled.

        Ties are looked for once, when the cell settles: looking again after every round, and stopping when two cells
        come apart, would make them come apart.
        """
        if self.failed:
            return True
        if self._stopped is None:
            self._stopped = self._rule.reason_to_stop(self._turns_s)
            ours = self.interval
            # A cell without an interval yet may turn out to be tied.
            self._tied = any(not (ours and theirs) or ours.overlaps(theirs) for theirs in others)
        if self._stopped == "settled" and self._tied:
            return self._rule.settled(self._turns_s, within=_TIED_WITHIN)
        return self._stopped is not None

    def stop_for_budget(self) -> None:
        """Note that no budget is left; a cell that was settled stays settled."""
        self._stopped = self._stopped or "budget spent"

    def finish(self, judge: Callable[[CellTask], Parity]) -> None:
        """Read the memory and end the worker; judge the outputs of the timed calls of the first one."""
        worker = self._running
        with self._failures_recorded():
            worker.resume()
            finished = worker.finish()
            worker.close()
            self._worker = None
            if self._process == 0:
                self._judge(judge(self.task))
            self._stops.append(self._stopped or "not settled")
            host_memory = _larger(self.cell.host_memory, finished.memory)
            device_memory = _larger(self.cell.device_memory, self._read_device_memory(finished.device_memory))
            no_host_memory = "measured in the other scopes" if self.cell.scope == "pipeline" else _NO_HOST_MEMORY
            no_device_memory = _NO_DEVICE_MEMORY[runtime_info(self.cell.runtime).device]
            self.cell = dataclasses.replace(
                self.cell,
                samples_s=self._recorded_s,
                rounds=tuple(self._rounds),
                stopped=next((reason for reason in self._stops if reason != "settled"), "settled"),
                host_memory=host_memory,
                host_memory_missing="" if host_memory else no_host_memory,
                device_memory=device_memory,
                device_memory_missing="" if device_memory else no_device_memory,
                stages=finished.stages,
            )

    def _judge(self, parity: Parity) -> None:
        broken = breaches(parity, self._limits)
        self.cell = dataclasses.replace(
            self.cell,
            status="parity broken" if broken else "ok",
            reason="; ".join(broken),
            remedy=_REMEDIES.get(self.cell.precision, _REMEDY) if broken else "",
            parity=parity,
        )

    def interrupted(self) -> Cell | None:
        """Return the record of what was sampled so far; None without samples, or with the record of a whole process."""
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
    def _rule(self) -> StopRule:
        return self._rules[self._process]

    @property
    def _turns_s(self) -> list[list[float]]:
        return [seconds for _, seconds in self.turns]

    @property
    def _running(self) -> CellProcess | PipelineWorker:
        assert self._worker  # started, and not finished
        return self._worker

    @contextlib.contextmanager
    def _failures_recorded(self) -> Iterator[None]:
        self._is_asked = True
        try:
            yield
        except SegxError as error:
            logger.debug("%s", "\n".join(getattr(error, "__notes__", [error.message])))
            self.cell = failed_cell(self.cell, error)
            self.abandon()
        self._is_asked = False
