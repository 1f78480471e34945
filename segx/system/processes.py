"""Worker processes from both sides: start them, ask, give up on them; answer, and die with the parent."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver, reduction, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from segx.errors import InferenceError, OutOfMemory, SegxError, UsageError, first_line, lacks_memory
from segx.system.files import temporary_folder
from segx.system.memory import oom_kills, prefer_for_oom_kill
from segx.system.progress import SILENT, Progress, Told
from segx.system.silence import replace_outputs

_GRACE_S = 5.0
_LONGEST_WAIT_S = 2e6  # poll counts milliseconds in 32 bits
_MAX_STARTS, _RESTART_PAUSE_S = 3, 0.1
_CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV)
_DEBUG_HINT = "run again with --debug to see the traceback"

# multiprocessing keeps one fork server per program. Two are needed: no other engine may share a process with torch.
_SERVERS = {True: forkserver.ForkServer(), False: forkserver.ForkServer()}
_SERVERS[True].set_forkserver_preload([__name__, "segx.bench.preload"])
_SERVERS[False].set_forkserver_preload([__name__, "segx.bench.worker"])
_SERVER_SWITCH = threading.Lock()
_FORK = multiprocessing.get_context("forkserver")


class WorkerDied(InferenceError):
    """A worker ended without an answer; the message names the signal."""


class WorkerHung(InferenceError):
    """A worker did not answer in time and was killed."""


class Workers:
    """Start worker processes, forked from a server that has imported torch, or what the other engines share."""

    def __init__(self, *, threads: int) -> None:
        main: Any = sys.modules["__main__"]
        if getattr(main, "__file__", None) == "<stdin>":
            del main.__file__  # workers would look for that file
        _keep_sockets(os.getpid())
        self._environment = {**worker_environment(threads), _PARENT: _pipe_of(os.getpid())}
        # OpenBLAS starts its threads while it is imported: a fork server must have none.
        self._server_environment = {**self._environment, **_SAFE_PATH, "OPENBLAS_NUM_THREADS": "1"}
        # Starting the tracker undoes the signal mask under which workers are started, so start it first. It would warn
        # of what libraries in a killed worker left to it.
        with _environment({**_SAFE_PATH, "PYTHONWARNINGS": "ignore:::multiprocessing.resource_tracker"}):
            resource_tracker.ensure_running()

    def prepare(self, *, torch: bool) -> None:
        """Start the server from which workers are forked, without waiting until it has imported what they need."""
        with contextlib.suppress(OSError):  # starting a worker tries again, and says why it fails
            self._start_server(torch)

    def call(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        torch: bool,
        timeout_s: float,
        progress: Progress | None = None,
    ) -> Any:
        """Run one function in a worker of its own and return its result.

        The worker is forked from the server that has imported torch, or from the one that has not. With ``progress``,
        the function gets an argument of that name, and what it says there arrives here; ``timeout_s`` is that of a
        silent worker.

        Raises:
            SegxError: whatever the function raised, or the worker died or hung.
        """
        tells = progress is not None
        with self.begin(function, arguments, torch=torch, timeout_s=timeout_s, tells=tells) as call:
            return call.result(progress or SILENT)

    def begin(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        torch: bool,
        timeout_s: float,
        tells: bool = False,
    ) -> Call:
        """Start a function as ``call`` does, without waiting for its result; ``tells`` if it takes ``progress``."""
        process, connection = self.start(torch, serve_call, (function, arguments, tells))
        return Call(process, connection, timeout_s=timeout_s)

    def start(
        self, torch: bool, main: Callable[..., None], arguments: tuple[Any, ...]
    ) -> tuple[BaseProcess, Connection]:
        """Start a process that runs ``main(connection, *arguments)``; return it and this side's connection.

        Raises:
            WorkerDied: it cannot be started, or the server that it is forked from is killed again and again.
            UsageError: this process may not start others.
        """
        if multiprocessing.current_process().daemon:
            raise UsageError(
                "a process of multiprocessing.Pool cannot start workers",
                hint="call segx from the main process, or from concurrent.futures.ProcessPoolExecutor",
            )
        ours, theirs = _FORK.Pipe()
        environment = {**os.environ, **self._environment}
        process = _FORK.Process(target=_run_worker, args=(theirs, environment, main, arguments), daemon=True)
        for left in reversed(range(_MAX_STARTS)):
            try:
                self._start_server(torch)
                with _environment(self._server_environment), _forked_from(_SERVERS[torch]):
                    process.start()  # waits until the server has imported torch, and Ctrl-C ends that wait
                break
            except (OSError, EOFError) as error:
                if not left:
                    reason = f"a worker cannot be started: {first_line(error)}"
                    hint = "see whether something kills processes (dmesg) or limits them (ulimit -u)"
                    raise WorkerDied(reason, hint=hint) from error
                time.sleep(_RESTART_PAUSE_S)  # until a server that was killed is seen to be gone
        theirs.close()
        # What is left at exit is terminated and waited for, but workers ignore SIGTERM.
        process._popen.terminate = process._popen.kill  # type: ignore[attr-defined]  # noqa: SLF001
        return process, ours

    def _start_server(self, torch: bool) -> None:
        with _environment(self._server_environment), _interrupts_held_back():
            _SERVERS[torch].ensure_running()


class Worker:
    """A running worker process and the connection to it.

    With ``memory_limited``, a crash is reported as out of memory.
    """

    def __init__(
        self, process: BaseProcess, connection: Connection, *, timeout_s: float, memory_limited: bool = False
    ) -> None:
        self._process = process
        self._connection = connection
        self._timeout_s = timeout_s
        self._memory_limited = memory_limited
        self._oom_kills = oom_kills()

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._process.pid is not None  # started before it was passed in
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Return whether the process is running."""
        return not self._connection.closed and self._process.is_alive()

    def receive(self) -> Any:
        """Wait for an answer.

        Raises:
            SegxError: whatever the worker raised, or it died or hung.
        """
        if not self._connection.poll(min(self._timeout_s, _LONGEST_WAIT_S)):
            self._kill()
            raise WorkerHung(
                f"the worker did not answer within {self._timeout_s:g} s and was killed",
                hint="raise --timeout if it may be slow, otherwise leave out this batch size",
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
        """Send a request and wait for its answer; raise as ``receive``."""
        self.send((method, arguments))
        return self.receive()

    def send(self, message: object) -> None:
        """Send a request without waiting for its answer.

        Raises:
            WorkerDied, OutOfMemory: the worker has ended.
        """
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

    def send_descriptor(self, descriptor: int) -> None:
        """Share an open file with the worker; raise as ``send``."""
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
                hint="see its last output above; a script that calls segx must guard its main part with "
                '`if __name__ == "__main__":`',
            )
        name = signal.Signals(-code).name
        if oom_kills() > self._oom_kills:
            return OutOfMemory(
                f"the kernel killed the worker ({name}) for lack of memory", hint="use a smaller batch size"
            )
        if self._memory_limited and -code in _CRASHES:
            return OutOfMemory(
                f"the worker was killed by {name}, as engines are when an allocation fails",
                hint="raise or leave out --memory-limit",
            )
        return WorkerDied(f"the worker was killed by {name}", hint="look in the kernel's log (dmesg) for the cause")

    def _kill(self) -> None:
        self._process.kill()
        self._process.join(_GRACE_S)

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Let the process end by itself; kill it if it does not."""
        self._connection.close()  # the worker's signal to end
        self._process.join(_GRACE_S)
        self._release()

    def kill(self) -> None:
        """End the process at once."""
        if not self._connection.closed:
            self._connection.close()
            self._release()

    def _release(self) -> None:
        if self._process.is_alive():
            self._kill()
        if self._process.is_alive():
            # It hangs in a driver, where no signal reaches it. Nothing may wait for it, even when the program ends.
            multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]  # noqa: SLF001
        else:
            self._process.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()


class Call(Worker):
    """A function that runs in a worker of its own."""

    def result(self, progress: Progress = SILENT) -> Any:
        """Wait for its result, and pass on what it says meanwhile; raise as ``receive``."""
        while isinstance(result := self.receive(), _Said):
            progress.say(result.text)
        return result


def worker_environment(threads: int) -> dict[str, str]:
    """Return the variables that libraries read while they load, to be set before a worker starts."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))


# Where a process that is started by another finds a pipe that closes when the other ends.
_PARENT = "SEGX_PARENT_PIPE"


@functools.cache
def _pipe_of(pid: int) -> str:
    """Return the path by which workers of this process, whose id is ``pid``, open a pipe that it never closes."""
    reading, _ = os.pipe()
    return f"/proc/{pid}/fd/{reading}"


# Of the path of a socket, which has 103 bytes on some systems; the name that Python gives it takes 18.
_LONGEST_FOLDER = 85


@functools.cache
def _keep_sockets(_pid: int) -> None:
    """Have this process keep the sockets of its fork servers where they are removed even if it is killed."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
    if config.get("tempdir") is None:
        folder = contextlib.ExitStack()
        path = folder.enter_context(temporary_folder())
        if len(os.fsencode(path)) > _LONGEST_FOLDER:
            with contextlib.suppress(OSError):
                path = folder.enter_context(temporary_folder(Path("/tmp")))
        config["tempdir"] = str(path)
        atexit.register(folder.close)


# Without it, Python would import modules from the folder in which the user happens to be.
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}


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
    """Block SIGINT: a process started now inherits the mask, so Ctrl-C cannot reach it while it is still importing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def _forked_from(server: forkserver.ForkServer) -> Iterator[None]:
    """Have multiprocessing fork from this server."""
    with _SERVER_SWITCH:
        usual = forkserver.connect_to_new_process
        setattr(forkserver, "connect_to_new_process", server.connect_to_new_process)  # noqa: B010 - a function to mypy
        try:
            yield
        finally:
            setattr(forkserver, "connect_to_new_process", usual)  # noqa: B010


def _run_worker(
    connection: Connection, environment: Mapping[str, str], main: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """Run a worker's main function in the parent's environment: a forked worker has that of its server.

    It ends with the parent, and before it when memory runs out.
    What libraries print, in C too, goes to stderr: stdout is for the result of a command.
    """
    with contextlib.suppress(OSError):  # there is no stderr
        os.dup2(2, 1)
    replace_outputs()
    os.environ.clear()
    os.environ.update(environment)
    _die_with_parent()
    prefer_for_oom_kill()
    main(connection, *arguments)


@dataclass(frozen=True)
class _Said:
    """What a function in a worker says of its progress."""

    text: str


def serve_call(
    connection: Connection, function: Callable[..., Any], arguments: Mapping[str, Any], tells: bool = False
) -> None:
    """Run one function in a worker and answer with its result; with ``tells``, also with what it says meanwhile."""
    saying = {"progress": Told(lambda text: connection.send((True, _Said(text))))} if tells else {}
    connection.send(answer(function, (), {**arguments, **saying}))


def _die_with_parent() -> None:
    """Die with the parent, even in a call; ignore signals to end, which reach the whole process group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "linux" or _PARENT not in os.environ:
        return
    try:
        pipe = os.open(os.environ[_PARENT], os.O_RDONLY)
    except OSError:
        if Path("/proc/self").exists():  # else this is a system without /proc
            os._exit(1)  # the parent is gone
        return
    # The kernel kills this process, stopped or not, when the parent's end of the pipe closes. PR_SET_PDEATHSIG would
    # not do: it is about the thread that started this process, or the fork server.
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([pipe], [], [], 0)[0]:
        os.kill(os.getpid(), signal.SIGKILL)


if _PARENT in os.environ:  # in a fork server, which imports this first
    _die_with_parent()


def answer(
    function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any] | None = None
) -> tuple[bool, Any]:
    """Call a function; return True and its result, or False and a ``SegxError``, as ``Worker.receive`` expects."""
    try:
        return True, function(*arguments, **(keywords or {}))
    except Exception as error:  # noqa: BLE001 - a process border: every error becomes a record in the parent
        failure = _as_segx_error(error)
        failure.add_note(f"in the worker: {traceback.format_exc()}")
        return False, failure


def _as_segx_error(error: Exception) -> SegxError:
    if lacks_memory(error) and not isinstance(error, OutOfMemory):
        return OutOfMemory("the worker ran out of memory", hint="use a smaller batch size")
    if isinstance(error, SegxError):
        return error
    return InferenceError(f"{type(error).__name__}: {first_line(error)}", hint=_DEBUG_HINT)
