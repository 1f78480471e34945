"""Threads that do one kind of work together; how many there are can change meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

from segx.predict.batching import Stopped


class Crew:
    """So many threads that call one function until it says that there is no more work."""

    def __init__(
        self,
        name: str,
        step: Callable[[], bool],
        *,
        when_over: Callable[[], None],
        when_failed: Callable[[BaseException], None],
    ) -> None:
        """Nothing starts before ``resize``.

        Args:
            name: of its threads.
            step: does one piece of work; False where there is none left.
            when_over: called once, by the last thread, when no work is left.
            when_failed: told what a step raised.
        """
        self._name = name
        self._step = step
        self._when_over = when_over
        self._when_failed = when_failed
        self._wanted = 0
        self._threads: set[threading.Thread] = set()
        self._over = False
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """How many threads are wanted."""
        return self._wanted

    def resize(self, wanted: int) -> None:
        """From now on so many threads, at least one; those too many leave after their step."""
        with self._lock:
            self._wanted = wanted
            if self._over:
                return
            for _ in range(wanted - len(self._threads)):
                thread = threading.Thread(target=self._main, name=self._name, daemon=True)
                self._threads.add(thread)
                thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for each thread that is there, so long at most."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout_s)

    def _main(self) -> None:
        try:
            while self._needed():
                if not self._step():
                    self._over = True
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - a thread's border: the one who started the job raises it
            self._when_failed(error)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                last = self._over and not self._threads
            if last:
                self._when_over()

    def _needed(self) -> bool:
        """Whether this thread shall do another step; one that is not is struck off the list at once."""
        with self._lock:
            if self._over:
                return False
            if len(self._threads) > self._wanted:
                self._threads.discard(threading.current_thread())
                return False
            return True
