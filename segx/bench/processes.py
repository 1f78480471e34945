"""The parent's side of workers: start, ask, give up on. The parent itself imports no engine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from segx.bench.memory import oom_kills
from segx.bench.worker import CellTask, Finished, Loaded, serve_call, serve_cell
from segx.errors import InferenceError, OutOfMemory, SegxError
from segx.runtimes import runtime_info

# Imported once by the server that torch workers are forked from. Importing starts no thread and no CUDA, which a fork
# could not take along.
_PRELOAD = ["segx.bench.preload"]

_GRACE_S = 5.0


class WorkerDied(InferenceError):
    """A worker ended without an answer; the message names the signal."""


class WorkerHung(InferenceError):
    """A worker did not answer in time and was killed."""


class Workers:
    """Starts worker processes: forked from a server that has torch loaded, or fresh ones for the other engines."""

    def __init__(self, *, threads: int) -> None:
        self._environment = worker_environment(threads)
        # Starting it undoes the signal mask under which workers are started (_interrupts_held_back): so before them.
        resource_tracker.ensure_running()
        self._spawn: SpawnContext = multiprocessing.get_context("spawn")
        self._fork: ForkServerContext = multiprocessing.get_context("forkserver")
        self._fork.set_forkserver_preload(_PRELOAD)

    def cell(self, task: CellTask, *, timeout_s: float) -> CellWorker:
        """Start the worker of a cell."""
        process, connection = self._start(runtime_info(task.runtime).torch, serve_cell, (task,))
        return CellWorker(process, connection, timeout_s=timeout_s)

    def call(self, function: Callable[..., Any], arguments: Mapping[str, Any], *, torch: bool, timeout_s: float) -> Any:
        """Run one function in a worker of its own.

        Raises:
            SegxError: what the function raised, or that the worker died or hung.
        """
        process, connection = self._start(torch, serve_call, (function, arguments))
        with _Worker(process, connection, timeout_s=timeout_s) as worker:
            return worker.receive()

    def _start(
        self, torch: bool, main: Callable[..., None], arguments: tuple[Any, ...]
    ) -> tuple[BaseProcess, Connection]:
        context = self._fork if torch else self._spawn
        ours, theirs = context.Pipe()
        process = context.Process(target=main, args=(theirs, *arguments), daemon=True)
        with _environment(self._environment), _interrupts_held_back():
            process.start()
        theirs.close()
        return process, ours


class _Worker:
    """A running worker process and the line to it."""

    def __init__(self, process: BaseProcess, connection: Connection, *, timeout_s: float) -> None:
        self._process = process
        self._connection = connection
        self._timeout_s = timeout_s
        self._oom_kills = oom_kills()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None  # started before it was given to us
        return self._process.pid

    def receive(self) -> Any:
        """Wait for an answer.

        Raises:
            SegxError: what the worker raised, or that it died or hung.
        """
        if not self._connection.poll(self._timeout_s):
            self._kill()
            raise WorkerHung(
                f"the worker gave no answer for {self._timeout_s:g} s and was killed",
                hint="raise --timeout if it may be slow, else leave this batch size out",
            )
        try:
            ok, result = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death() from error
        if ok:
            return result
        assert isinstance(result, SegxError)  # see worker._answer
        raise result

    def ask(self, method: str, *arguments: Any) -> Any:
        """Send a request and wait for its answer; raises as ``receive``."""
        try:
            self._connection.send((method, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error
        return self.receive()

    def _death(self) -> SegxError:
        self._process.join(_GRACE_S)
        code = self._process.exitcode
        if code is None or code >= 0:
            return WorkerDied(
                f"the worker ended with exit code {code}",
                hint="see its last words above; a script that calls segx must guard its main part with "
                '`if __name__ == "__main__":`',
            )
        name = signal.Signals(-code).name
        if oom_kills() > self._oom_kills:
            return OutOfMemory(
                f"the kernel killed the worker ({name}) for lack of memory", hint="use a smaller batch size"
            )
        return WorkerDied(
            f"the worker was killed by {name}", hint="see the kernel's log (dmesg) for who did it and why"
        )

    def _kill(self) -> None:
        self._process.kill()
        self._process.join(_GRACE_S)

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Let it end by itself, or else kill it."""
        self._connection.close()  # the worker's signal to end
        self._process.join(_GRACE_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._connection.close()
        if self._process.is_alive():
            self._kill()
        self._process.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()


class CellWorker(_Worker):
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


def worker_environment(threads: int) -> dict[str, str]:
    """Variables that libraries read while they load, and that therefore must be set before a worker starts."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach while it is still importing: the signal mask is inherited."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
