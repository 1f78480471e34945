"""Keeps the engine busy, and finds the image that makes it fail."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from segx.errors import InferenceError, SegxError
from segx.predict.batching import Batch, Batcher
from segx.predict.engine import Engine, Part
from segx.predict.stages import StageClock

T = TypeVar("T")

# The next call lies in the engine's line already when one ends.
_AHEAD = 2
# An engine with nothing to do takes a batch that is not full after this: the source may be slow.
_PATIENCE_S = 0.2
_MOST_FAILURES_IN_A_ROW = 10


class Dispatcher(Generic[T]):
    """Sends batches to the engine and hands out their logits; runs in a thread of its own.

    A call that fails is repeated image by image, in a new process where the old one died of it: the image that cannot
    be inferred alone is given up, the others get their masks.

    Attributes:
        facts: see ``Runtime.facts``; empty until the engine is ready.
        ready_at: when it was (``time.perf_counter``), None before.
        restarts: how often its process was started again.
    """

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher[T],
        clock: StageClock,
        *,
        deliver: Callable[[Batch[T], range, float], None],
        give_up: Callable[[Batch[T], int, SegxError], None],
        retry: bool = True,
    ) -> None:
        self.facts: Mapping[str, str] = {}
        self.ready_at: float | None = None
        self.restarts = 0
        self._engine = engine
        self._batcher = batcher
        self._clock = clock
        self._deliver = deliver
        self._give_up = give_up
        self._retry = retry
        self._failures = 0
        self._waiting: deque[tuple[Batch[T], Part]] = deque()
        self._sent: deque[tuple[Batch[T], Part]] = deque()

    def run(self) -> None:
        """Until no batch is left.

        Raises:
            SegxError: the engine cannot be started, or fails on one image after the other; without ``retry``, the first
                call that fails.
            Stopped: the job ends early.
        """
        self.facts = self._engine.wait_until_ready()
        self.ready_at = time.perf_counter()
        while True:
            self._send_ahead()
            if not self._sent:
                return
            try:
                infer_s, waited_s = self._engine.receive()
            except SegxError as error:
                if not self._retry:
                    raise
                self._recover(error)
                continue
            batch, part = self._sent.popleft()
            self._failures = 0
            self._clock.add_call(part.images, infer_s=infer_s, waited_s=waited_s)
            self._deliver(batch, range(part.first, part.end), infer_s)

    def _send_ahead(self) -> None:
        while len(self._sent) < _AHEAD:
            if not self._waiting:
                batch = self._batcher.take(patience_s=None if self._sent else _PATIENCE_S)
                if batch is None:
                    return
                batch.unread = len(batch.tickets)
                self._waiting.append((batch, Part(batch.slot, 0, batch.unread)))
            work = self._waiting.popleft()
            self._sent.append(work)
            try:
                self._engine.send(work[1])
            except SegxError:
                return  # its process is gone; waiting for the answer says so

    def _recover(self, error: SegxError) -> None:
        """The oldest call failed; the others are lost only where the process is gone."""
        batch, part = self._sent.popleft()
        if not self._engine.alive:
            self._waiting.extendleft(reversed(self._sent))
            self._sent.clear()
            self._batcher.check()
            self._engine.restart()
            self.restarts += 1
        if part.images > 1:
            rows = range(part.first, part.end)
            self._waiting.extendleft((batch, Part(part.slot, row, row + 1)) for row in reversed(rows))
            return
        self._failures += 1
        self._give_up(batch, part.first, error)
        if self._failures == _MOST_FAILURES_IN_A_ROW:
            raise InferenceError(
                f"{self._engine.runtime} failed on {self._failures} images in a row, at last: {error.message}",
                hint=error.hint,
            )
