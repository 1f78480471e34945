"""Images from many threads become batches for one engine, in a fixed number of slots."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from segx.predict.slots import Slots
from segx.runtimes.base import FloatArray

T = TypeVar("T")


class Stopped(Exception):
    """The job ends early; whoever waits shall go."""


@dataclass
class Batch(Generic[T]):
    """Rows of one slot.

    Attributes:
        slot: which.
        tickets: who each row belongs to; as many as there are rows in use.
        filled: of those, how many have been written.
        unread: of those, how many have logits that nobody has taken yet.
    """

    slot: int
    tickets: list[T]
    filled: int = 0
    unread: int = 0


class Batcher(Generic[T]):
    """Hands out rows to fill, full batches to run, and slots again once all their logits were read.

    Those who have no slot to fill wait: that is what bounds the memory of a job.
    """

    def __init__(self, slots: Slots, batch_size: int) -> None:
        self._slots = slots
        self._size = batch_size
        self._free = deque(range(len(slots.inputs)))
        self._open: Batch[T] | None = None
        self._ready: deque[Batch[T]] = deque()
        self._over = self._stopped = False
        self._changed = threading.Condition()

    def place(self, image: FloatArray, ticket: T) -> None:
        """Copy an image into the next row; waits for a free slot.

        Raises:
            Stopped: the job ends early.
        """
        with self._changed:
            self._wait_for(lambda: self._open is not None or self._free)
            if self._open is None:
                self._open = Batch(self._free.popleft(), [])
            batch, row = self._open, len(self._open.tickets)
            batch.tickets.append(ticket)
            if len(batch.tickets) == self._size:
                self._open = None  # the next image begins another one
        self._slots.inputs[batch.slot][row] = image
        with self._changed:
            batch.filled += 1
            if batch.filled == self._size:
                self._ready.append(batch)
            self._changed.notify_all()

    def finish(self) -> None:
        """No more images come; what is there is the last batch."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def take(self, *, patience_s: float | None) -> Batch[T] | None:
        """The next batch to run.

        Args:
            patience_s: how long to wait for a full one before one with fewer images is taken; then a full or a partial
                one is waited for. None for no waiting at all.

        Returns:
            None where no more come, or where there is none yet and nobody shall wait.

        Raises:
            Stopped: the job ends early.
        """
        with self._changed:
            if patience_s is not None:
                self._wait_for(lambda: self._ready or self._over, timeout_s=patience_s)
                self._wait_for(lambda: self._ready or self._over or self._takeable())
            if self._stopped:
                raise Stopped
            if self._ready:
                return self._ready.popleft()
            if (self._over or patience_s is not None) and self._takeable():
                batch, self._open = self._open, None
                return batch
            return None

    def check(self) -> None:
        """Whoever works for long asks now and then.

        Raises:
            Stopped: the job ends early.
        """
        if self._stopped:
            raise Stopped

    def release(self, batch: Batch[T]) -> None:
        """One more row's logits have been read; with the last one the slot is free again."""
        with self._changed:
            batch.unread -= 1
            if batch.unread == 0:
                self._free.append(batch.slot)
                self._changed.notify_all()

    def stop(self) -> None:
        """Send all who wait away."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _takeable(self) -> bool:
        """Whether there is a batch that is not full, all of whose rows are written."""
        return self._open is not None and self._open.filled == len(self._open.tickets)

    def _wait_for(self, condition: Callable[[], object], *, timeout_s: float | None = None) -> None:
        self._changed.wait_for(lambda: self._stopped or condition(), timeout=timeout_s)
        if self._stopped:
            raise Stopped
