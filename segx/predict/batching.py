"""Collect images from many threads into batches, keep the engine busy with them, and measure where the time goes."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from segx.errors import InferenceError, OutOfMemory, SegxError
from segx.predict.engine import Engine, Rows, SharedBuffers
from segx.results.types import STAGES
from segx.runtimes.base import FloatArray
from segx.system.processes import WorkerDied

T = TypeVar("T")

LOADING = ("read", "decode", "preprocess")
STORING = ("postprocess", "encode")

# Calls sent before the answer to the first: the engine never waits for a round trip.
_CALLS_AHEAD = 2
# An idle engine gets a batch that is not full after this time, because the source may be slow.
_FILL_TIMEOUT_S = 0.2
_MAX_CONSECUTIVE_FAILURES = 10
# How often in a row the engine is started, if it dies meanwhile.
_MAX_STARTS = 3
# More threads than needed on average: images differ, and the engine must not wait for the slow ones.
_RESERVE = 1.25
# Python code runs in one thread at a time, so more threads than this do not help.
MAX_THREADS = 16


class Stopped(Exception):
    """Raised in the threads of a run that ends early."""


@dataclass
class Batch(Generic[T]):
    """The images in one buffer, and how many rows have been written and how many are still to be read."""

    buffer: int
    tickets: list[T]
    filled: int = 0
    unread: int = 0


class Batcher(Generic[T]):
    """Assigns rows to images, hands out full batches, and reuses a buffer once all its logits have been read.

    Threads wait while no buffer is free, which bounds the memory of a run.
    """

    def __init__(self, buffers: SharedBuffers, batch_size: int) -> None:
        self._buffers = buffers
        self._size = batch_size
        self._free = deque(range(len(buffers.inputs)))
        self._open: Batch[T] | None = None
        self._ready: deque[Batch[T]] = deque()
        self._finished = self._stopped = False
        self._changed = threading.Condition()

    def place(self, image: FloatArray, ticket: T) -> None:
        """Copy an image into the next row, waiting for a free buffer; raise Stopped if the run ends early."""
        with self._changed:
            self._wait_for(lambda: self._open is not None or self._free)
            if self._open is None:
                self._open = Batch(self._free.popleft(), [])
            batch, row = self._open, len(self._open.tickets)
            batch.tickets.append(ticket)
            if len(batch.tickets) == self._size:
                self._open = None  # the next image starts another batch
        self._buffers.inputs[batch.buffer][row] = image
        with self._changed:
            batch.filled += 1
            if batch.filled == self._size:
                self._ready.append(batch)
            self._changed.notify_all()

    def finish(self) -> None:
        """Declare that there are no more images."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def take(self, *, fill_timeout_s: float | None) -> Batch[T] | None:
        """Return the next batch to run, or None if there are no more.

        After ``fill_timeout_s`` without a full batch, any batch will do, and the first one is waited for. With None,
        return only a batch that is ready now.

        Raises:
            Stopped: the run ends early.
        """
        with self._changed:
            if fill_timeout_s is not None:
                self._wait_for(lambda: self._ready or self._finished, timeout_s=fill_timeout_s)
                self._wait_for(lambda: self._ready or self._finished or self._has_partial())
            self.check()
            if self._ready:
                return self._ready.popleft()
            if (self._finished or fill_timeout_s is not None) and self._has_partial():
                batch, self._open = self._open, None
                return batch
            return None

    def release(self, batch: Batch[T]) -> None:
        """Mark one row's logits as read; the last row frees the buffer."""
        with self._changed:
            batch.unread -= 1
            if batch.unread == 0:
                self._free.append(batch.buffer)
                self._changed.notify_all()

    def stop(self) -> None:
        """Make all waiting and later calls raise ``Stopped``."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def check(self) -> None:
        """Raise ``Stopped`` if the run ends early."""
        if self._stopped:
            raise Stopped

    def _has_partial(self) -> bool:
        """Return whether there is a batch that is not full and whose rows are all written."""
        return self._open is not None and self._open.filled == len(self._open.tickets)

    def _wait_for(self, condition: Callable[[], object], *, timeout_s: float | None = None) -> None:
        self._changed.wait_for(lambda: self._stopped or condition(), timeout=timeout_s)
        self.check()


class StageClock:
    """Sums up the times that threads report."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._cpu_s = {LOADING: 0.0, STORING: 0.0}
        self._counts = {LOADING: 0, STORING: 0, ("infer",): 0}
        self._lock = threading.Lock()

    def add(self, stages: tuple[str, ...], marks: Sequence[float], *, cpu_s: float) -> None:
        """Add one image: the times at which these stages began and the last one ended, and its processor time."""
        with self._lock:
            self._counts[stages] += 1
            self._cpu_s[stages] += cpu_s
            for stage, (begun, ended) in zip(stages, pairwise(marks), strict=True):
                self._seconds[stage] += ended - begun

    def add_call(self, images: int, *, infer_s: float, waited_s: float) -> None:
        """Add one call of the engine."""
        with self._lock:
            if self._counts["infer",]:
                self._seconds["wait"] += waited_s  # before its first call, the engine waited for its start
            self._counts["infer",] += images
            self._seconds["infer"] += infer_s

    def times(self) -> dict[str, float]:
        """Return the seconds in each of ``STAGES`` so far."""
        with self._lock:
            return dict(self._seconds)

    def threads_for(self, stages: tuple[str, ...], cores: int) -> int | None:
        """Return how many threads keep up with the engine, or None before anything has been measured.

        By Little's law, the mean number of images in these stages is their seconds per image divided by the engine's.
        Threads that compute are limited to the cores; threads that wait for a disk are not.

        Source: Little 1961, "A Proof for the Queuing Formula L = λW".
        """
        with self._lock:
            images, inferred = self._counts[stages], self._counts["infer",]
            if not images or not inferred:
                return None
            seconds = sum(self._seconds[stage] for stage in stages)
            engine_s = self._seconds["infer"] / inferred
            needed = _RESERVE * seconds / images / max(engine_s, 1e-9)
            useful = round(cores * seconds / max(self._cpu_s[stages], 1e-9), 3)
        return max(1, min(math.ceil(needed), math.ceil(useful), MAX_THREADS))


@dataclass(eq=False)
class Dispatcher(Generic[T]):
    """Sends batches to the engine and passes on their logits; runs in a thread of its own.

    The images of a call that fails are inferred one by one, in a new process if the old one died. An image that fails
    on its own is given up, and so are those of a call after which no process can be started. The others get their
    masks.

    Attributes:
        facts: see ``Runtime.facts``; empty until the engine is ready.
        ready_at: ``time.perf_counter()`` at which the engine was ready; None before.
    """

    engine: Engine
    batcher: Batcher[T]
    clock: StageClock
    deliver: Callable[[Batch[T], range, float], None]
    give_up: Callable[[Batch[T], int, SegxError], None]
    retry: bool = True

    def __post_init__(self) -> None:
        self.facts: Mapping[str, str] = {}
        self.ready_at: float | None = None
        self.restarts = 0
        self._failures = 0
        self._waiting: deque[tuple[Batch[T], Rows]] = deque()
        self._sent: deque[tuple[Batch[T], Rows]] = deque()

    def run(self) -> None:
        """Run until there are no more batches.

        Raises:
            SegxError: the engine cannot be started, or fails on many calls in a row; without ``retry``, the error of
                the first call that fails.
            Stopped: the run ends early.
        """
        self._start()
        self.ready_at = time.perf_counter()
        while True:
            self._send_ahead()
            if not self._sent:
                return
            try:
                times = self.engine.receive()
            except SegxError as error:
                if not self.retry:
                    raise
                self._recover(error)
                continue
            batch, rows = self._sent.popleft()
            self._failures = 0
            self.clock.add_call(rows.images, infer_s=times.infer_s, waited_s=times.waited_s)
            self.deliver(batch, range(rows.first, rows.end), times.infer_s)

    def _start(self) -> None:
        """Wait until the engine is ready, and start it again if it died."""
        for left in reversed(range(_MAX_STARTS)):
            self.batcher.check()
            try:
                if not self.engine.alive:
                    self.restarts += 1
                    self.engine.restart()
                self.facts = self.engine.wait_until_ready()
                return
            except (WorkerDied, OutOfMemory):
                if self.engine.alive or not (left and self.retry):
                    raise

    def _send_ahead(self) -> None:
        while len(self._sent) < _CALLS_AHEAD:
            if not self._waiting:
                batch = self.batcher.take(fill_timeout_s=None if self._sent else _FILL_TIMEOUT_S)
                if batch is None:
                    return
                batch.unread = len(batch.tickets)
                self._waiting.append((batch, Rows(batch.buffer, 0, batch.unread)))
            call = self._waiting.popleft()
            self._sent.append(call)
            try:
                self.engine.send(call[1])
            except SegxError:
                return  # the process is gone, which receive reports

    def _recover(self, error: SegxError) -> None:
        """Handle the failure of the oldest call; the others are lost only if the process is gone."""
        batch, rows = self._sent.popleft()
        numbers = range(rows.first, rows.end)
        if not self.engine.alive:
            self._waiting.extendleft(reversed(self._sent))
            self._sent.clear()
            try:
                self._start()
            except (WorkerDied, OutOfMemory) as died:
                error = died
        if rows.images > 1 and self.engine.alive:
            self._waiting.extendleft((batch, Rows(rows.buffer, row, row + 1)) for row in reversed(numbers))
            return
        self._failures += 1
        for row in numbers:
            self.give_up(batch, row, error)
        if self._failures == _MAX_CONSECUTIVE_FAILURES:
            raise InferenceError(
                f"{self.engine.runtime} failed {self._failures} times in a row; the last error: {error.message}",
                hint=error.hint,
            )
