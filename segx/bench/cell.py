"""One cell while it runs: its worker, its rounds, and the record that comes of it, whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from segx.analysis.stats import Interval, median_interval
from segx.bench.environment import Surroundings
from segx.bench.processes import Workers
from segx.bench.sampling import SETTLED, StopReason, StopRule
from segx.bench.worker import CellTask, Finished, Loaded
from segx.errors import OutOfMemory, RuntimeUnavailable, SegxError
from segx.masks.agreement import ParityLimits, breaches
from segx.results.types import Cell, Parity, Round, Status
from segx.runtimes import runtime_info
from segx.system.device_memory import DeviceMemorySampler
from segx.system.nvml import Nvml
from segx.system.processes import WorkerDied, WorkerHung

logger = logging.getLogger(__name__)

_LONGEST_SLICE_S = 0.5
# With a budget left, cells too close to tell apart are sampled until their medians are known this well.
_CLOSE_CONTEST = SETTLED / 4

_STATUS_OF: tuple[tuple[type[SegxError], Status], ...] = (
    (RuntimeUnavailable, "unavailable"),
    (OutOfMemory, "out of memory"),
    (WorkerHung, "timed out"),
    (WorkerDied, "crashed"),
    (SegxError, "failed"),
)


class Worker(Protocol):
    """What does the work of a cell; see ``CellSession`` for what each request does."""

    def load(self) -> Loaded:
        """Import, build, run once."""
        ...

    def warm_up(self, runs: int) -> None:
        """Run without keeping times."""
        ...

    def pause(self) -> None:
        """Use no processor until ``resume``."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...

    def sample(self, slice_s: float) -> list[float]:
        """Timed runs for about ``slice_s`` seconds, at least one."""
        ...

    def finish(self) -> Finished:
        """What it knows at the end."""
        ...

    def close(self) -> None:
        """End it."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


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
        gpu: Nvml | None,
        when_sampled: Callable[[float], None],
    ) -> None:
        """Nothing is started yet.

        Args:
            cell: the record so far: variant, batch size.
            task: what its worker shall do.
            rule: when it has been sampled enough.
            limits: how far its masks may differ from the reference's.
            gpu: the one it runs on; None on the CPU, or where nothing can be asked of it.
            when_sampled: told after each turn how far towards the end it is, 0 to 1.
        """
        self.cell = cell
        self.task = task
        self.loading_s = 0.0
        self._rule = rule
        # Some ten rounds within the shortest sampling: the intervals of ratios come from rounds.
        self._slice_s = min(_LONGEST_SLICE_S, rule.min_time_s / 10)
        self._limits = limits
        self._gpu = gpu
        self._when_sampled = when_sampled
        self._device = DeviceMemorySampler(gpu)
        self._worker: Worker | None = None
        self._samples_s: list[float] = []
        self._rounds: list[Round] = []
        self._stopped: StopReason | None = None
        self._close_contest = False

    def start(self, workers: Workers, *, warmup: int, timeout_s: float) -> bool:
        """Start the worker, load, warm up; whether that went well."""
        begun = time.perf_counter()
        with self._failures_recorded(), self._device.watching():
            open_worker = workers.pipeline if self.cell.scope == "pipeline" else workers.cell
            self._worker = open_worker(self.task, timeout_s=timeout_s)
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
        self.loading_s = time.perf_counter() - begun
        return self.cell.status == "ok"

    @property
    def sampled_s(self) -> float:
        """Seconds of timed calls so far, whatever became of them."""
        return sum(self._samples_s)

    @property
    def _recorded_s(self) -> tuple[float, ...]:
        """Those of each, for a batch."""
        share = self.task.batch_size / self.task.images_per_run
        return tuple(seconds * share for seconds in self._samples_s)

    @property
    def failed(self) -> bool:
        """Whether its worker did."""
        return self.cell.status != "ok"

    @property
    def standing(self) -> Interval | None:
        """Where the median of its seconds per image surely lies; None with too few calls, or after a failure."""
        if self.failed:
            return None
        interval = median_interval(self._samples_s)
        size = self.task.images_per_run
        return Interval(interval.low / size, interval.high / size) if interval else None

    def sample_round(self, number: int) -> float:
        """One turn; gives the seconds of its timed calls."""
        worker = self._running
        seconds: list[float] = []
        with self._failures_recorded(), self._device.watching():
            surroundings = Surroundings(self._gpu)
            worker.resume()
            seconds = worker.sample(self._slice_s)
            worker.pause()
            self._samples_s += seconds
            self._rounds.append(surroundings.round(number, len(seconds)))
            self._when_sampled(self._rule.fraction_done(self._samples_s))
        return sum(seconds)

    def is_done(self, rivals: Sequence[Interval | None]) -> bool:
        """Whether it failed, or was sampled enough; one in a close contest goes on after it is settled.

        Whether the contest is close is looked at once, when it settles: looking again after every turn, and stopping
        when the two come apart, would make them come apart.
        """
        if self.failed:
            return True
        if self._stopped is None:
            self._stopped = self._rule.reason_to_stop(self._samples_s)
            ours = self.standing
            # A rival that stands nowhere yet may turn out to be close.
            self._close_contest = any(not (ours and theirs) or ours.overlaps(theirs) for theirs in rivals)
        if self._stopped == "settled" and self._close_contest:
            return self._rule.settled(self._samples_s, within=_CLOSE_CONTEST)
        return self._stopped is not None

    def out_of_budget(self) -> None:
        """No turns are left; one that was settled already stays so."""
        self._stopped = self._stopped or "budget spent"

    def finish(self, judge: Callable[[CellTask], Parity]) -> None:
        """Read the memory, end the worker, judge the outputs of the timed calls."""
        worker = self._running
        with self._failures_recorded():
            worker.resume()
            finished = worker.finish()
            worker.close()
            self._worker = None
            parity = judge(self.task)
            broken = breaches(parity, self._limits)
            device_memory = self._device.read(finished.device_memory)
            self.cell = dataclasses.replace(
                self.cell,
                status="parity broken" if broken else "ok",
                reason="; ".join(broken),
                remedy="do not deploy this variant before you know why" if broken else "",
                samples_s=self._recorded_s,
                rounds=tuple(self._rounds),
                stopped=self._stopped or "",
                host_memory=finished.memory,
                host_memory_missing="" if finished.memory else self._no_host_memory(),
                device_memory=device_memory,
                device_memory_missing="" if device_memory else self._no_device_memory(),
                parity=parity,
                stages=finished.stages,
            )

    def _no_host_memory(self) -> str:
        whole_path = self.cell.scope == "pipeline"
        return "weighed in the other scopes" if whole_path else "the system has no /proc/self/smaps_rollup"

    def _no_device_memory(self) -> str:
        on_cpu = runtime_info(self.cell.runtime).device == "cpu"
        return "computes on the CPU" if on_cpu else "NVML does not tell the memory of this GPU"

    def interrupted(self) -> Cell | None:
        """The record of what was sampled so far; None where nothing was."""
        if not self._rounds or self.cell.samples_s or self.cell.status != "ok":  # nothing, or recorded already
            return None
        rounds = tuple(self._rounds)
        return dataclasses.replace(self.cell, samples_s=self._recorded_s, rounds=rounds, stopped="interrupted")

    def abandon(self) -> None:
        """End the worker at once, if there still is one."""
        if self._worker:
            self._worker.kill()
            self._worker = None

    @property
    def _running(self) -> Worker:
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
