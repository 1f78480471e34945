"""Worker processes from both sides: start, ask and give up on; answer, and die with the parent. Imports no engine."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from segx.errors import InferenceError, OutOfMemory, SegxError
from segx.system.memory import oom_kills

# Imported once by the server that torch workers are forked from. Importing starts no thread and no CUDA, which a fork
# could not take along.
_PRELOAD = ["segx.bench.preload"]

_GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_DEBUG_HINT = "run again with --debug to see the traceback"


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

    def call(self, function: Callable[..., Any], arguments: Mapping[str, Any], *, torch: bool, timeout_s: float) -> Any:
        """Run one function in a worker of its own.

        Raises:
            SegxError: what the function raised, or that the worker died or hung.
        """
        process, connection = self.start(torch, serve_call, (function, arguments))
        with Worker(process, connection, timeout_s=timeout_s) as worker:
            return worker.receive()

    def start(
        self, torch: bool, main: Callable[..., None], arguments: tuple[Any, ...]
    ) -> tuple[BaseProcess, Connection]:
        """Start a process that runs ``main(connection, *arguments)``; gives it and our end of the line to it."""
        context = self._fork if torch else self._spawn
        ours, theirs = context.Pipe()
        process = context.Process(target=main, args=(theirs, *arguments), daemon=True)
        with _environment(self._environment), _interrupts_held_back():
            process.start()
        theirs.close()
        return process, ours


class Worker:
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

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return not self._connection.closed and self._process.is_alive()

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
        assert isinstance(result, SegxError)  # see answer
        raise result

    def ask(self, method: str, *arguments: Any) -> Any:
        """Send a request and wait for its answer; raises as ``receive``."""
        self.send((method, arguments))
        return self.receive()

    def send(self, message: object) -> None:
        """Send a request, and do not wait for its answer.

        Raises:
            WorkerDied, OutOfMemory: it is gone.
        """
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

    def send_descriptor(self, descriptor: int) -> None:
        """Let it have an open file too; raises as ``send``."""
        try:
            reduction.send_handle(self._connection, descriptor, self.pid)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

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
        self._release()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        if self._connection.closed:
            return
        self._connection.close()
        self._release()

    def _release(self) -> None:
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


def serve_call(connection: Connection, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Main of a worker that runs one function and answers with its result."""
    leave_fate_to_parent()
    connection.send(answer(function, (), arguments))


def leave_fate_to_parent() -> None:
    """Ignore Ctrl-C, which reaches the whole process group; die with the parent, even in the middle of a call."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def answer(
    function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any] | None = None
) -> tuple[bool, Any]:
    """Call a function; gives True and its result, or False and the error that it raised, as what the parent expects."""
    try:
        return True, function(*arguments, **(keywords or {}))
    except Exception as error:  # noqa: BLE001 - a process border: whatever it was becomes a record in the parent
        failure = _as_segx_error(error)
        failure.add_note(f"in the worker: {traceback.format_exc()}")
        return False, failure


def _as_segx_error(error: Exception) -> SegxError:
    if isinstance(error, SegxError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("the worker ran out of memory", hint="use a smaller batch size")
    return InferenceError(f"{type(error).__name__}: {error}", hint=_DEBUG_HINT)
