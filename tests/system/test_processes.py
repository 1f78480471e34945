"""Worker processes: what they start with, and what becomes of their errors."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import cv2
import pytest

from segx.errors import CheckpointError, InferenceError, OutOfMemory, RuntimeUnavailable, SegxError, UsageError
from segx.system import processes
from segx.system.processes import Worker, WorkerDied, WorkerHung, Workers, serve_call
from segx.system.progress import Told
from tests.benching import count_to, fail, fail_because, hang, loaded_modules, serve_sums

Call = Callable[..., Any]


@pytest.fixture
def call() -> Call:
    """Return a call of a function in a worker."""

    def run(function: Callable[..., Any], *, timeout_s: float = 60.0, **arguments: Any) -> Any:
        return Workers(threads=3).call(function, arguments, torch=False, timeout_s=timeout_s)

    return run


def run_program(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python file in a process of its own that can import the tests."""
    script = folder / "script.py"
    script.write_text(code)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)


def test_a_script_may_come_from_stdin() -> None:
    code = (
        "import os\nfrom segx.system.processes import Workers\n"
        "if __name__ == '__main__':\n"
        "    print(Workers(threads=1).call(os.getenv, {'key': 'OMP_NUM_THREADS'}, torch=False, timeout_s=60))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_worker_has_the_environment_of_its_parent(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("one", "two"):  # a fork server keeps that of its own start
        monkeypatch.setenv("SEGX_TEST", value)
        assert call(os.getenv, key="SEGX_TEST") == value
    monkeypatch.delenv("SEGX_TEST")
    assert call(os.getenv, key="SEGX_TEST") is None
    assert call(os.getenv, key="OMP_NUM_THREADS") == "3"


def test_a_forked_worker_has_numpy_and_opencv_and_no_engine(call: Call) -> None:
    modules = set(call(loaded_modules))
    assert modules >= {"numpy", "cv2", "segx.bench.worker"}
    assert not modules & {"torch", "onnx", "onnxruntime", "openvino", "tensorrt"}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_a_fork_server_has_a_single_thread(call: Call) -> None:
    server = call(os.getppid)
    assert server != os.getpid()
    assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="reads /proc")
def test_a_worker_is_killed_before_its_parent_when_memory_runs_out(call: Call) -> None:
    assert call(Path.read_text, self=Path("/proc/self/oom_score_adj")) == "1000\n"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeUnavailable("no driver", hint="get one"), RuntimeUnavailable, "no driver"),
        (MemoryError(), OutOfMemory, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 4 bytes"), OutOfMemory, "out of memory"),
        (RuntimeError("Exception from src/core.cpp:92:\nstd::bad_alloc"), OutOfMemory, "out of memory"),
        (cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) in 'fastMalloc'"), OutOfMemory, "out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OutOfMemory, "out of memory"),
        (FileNotFoundError(errno.ENOENT, "No such file", "out of memory.png"), InferenceError, "FileNotFoundError"),
        (CheckpointError("no architecture in out of memory.pt", hint="name it"), CheckpointError, "out of memory.pt"),
        (ValueError("no good"), InferenceError, "ValueError: no good"),
    ],
)
def test_an_error_in_a_worker_is_one_of_segx(call: Call, error: Exception, kind: type[SegxError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        call(fail, error=error)
    assert "Traceback" in caught.value.__notes__[0]


@pytest.mark.parametrize("cause", [MemoryError(), RuntimeError("unable to mmap 57 bytes: Cannot allocate memory (12)")])
def test_an_error_that_lack_of_memory_led_to_is_lack_of_memory(call: Call, cause: Exception) -> None:
    with pytest.raises(OutOfMemory):
        call(fail_because, cause=cause)


def test_a_crash_with_limited_memory_is_lack_of_memory() -> None:
    """OpenVINO's threads crash when they cannot allocate."""
    process, connection = Workers(threads=1).start(torch=False, main=serve_call, arguments=(os.abort, {}))
    with (
        Worker(process, connection, timeout_s=60.0, memory_limited=True) as worker,
        pytest.raises(OutOfMemory) as caught,
    ):
        worker.receive()
    assert "SIGABRT" in caught.value.message
    assert "--memory-limit" in caught.value.hint


def test_what_a_function_says_of_its_progress_arrives() -> None:
    said: list[str] = []
    arguments = {"number": 3}
    counted = Workers(threads=1).call(count_to, arguments, torch=False, timeout_s=60.0, progress=Told(said.append))
    assert counted == 3
    assert said == ["step 0", "step 1", "step 2"]


def test_a_worker_that_ends_is_an_error(call: Call) -> None:
    with pytest.raises(WorkerDied, match="exit code 7"):
        call(os._exit, status=7)


def test_a_silent_worker_is_killed(call: Call) -> None:
    with pytest.raises(WorkerHung, match=r"within 0\.5 s"):
        call(hang, timeout_s=0.5)


def test_a_time_limit_may_be_long(call: Call) -> None:
    assert call(loaded_modules, timeout_s=3.6e6)


def test_a_server_that_was_prepared_serves_the_workers(tmp_path: Path) -> None:
    """In a process of its own, since the servers of this one run already."""
    code = (
        "from segx.system.processes import _SERVERS, Workers\nfrom tests.benching import loaded_modules\n"
        "if __name__ == '__main__':\n"
        "    workers = Workers(threads=1)\n"
        "    workers.prepare(torch=False)\n"
        "    server = _SERVERS[False]._forkserver_pid\n"
        "    assert server\n"
        "    assert workers.call(loaded_modules, {}, torch=False, timeout_s=60)\n"
        "    assert _SERVERS[False]._forkserver_pid == server\n"
        "    assert _SERVERS[True]._forkserver_pid is None\n"
    )
    run_program(code, tmp_path)


def test_preparing_a_server_does_not_wait_for_its_imports(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = tmp_path / "go_on"
    (tmp_path / "slowly_imported.py").write_text(
        "import pathlib, time\n"
        "for _ in range(1000):\n"
        f"    if pathlib.Path({str(go_on)!r}).exists():\n"
        "        break\n"
        "    time.sleep(0.01)\n"
        "else:\n"
        "    raise ImportError\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    server = forkserver.ForkServer()
    server.set_forkserver_preload(["slowly_imported"])
    monkeypatch.setattr(processes, "_SERVERS", {False: server})
    Workers(threads=1).prepare(torch=False)
    go_on.touch()  # too late, if it waited
    assert "slowly_imported" in call(loaded_modules)
    server._stop()  # type: ignore[attr-defined]


def test_a_worker_outlives_the_thread_that_started_it() -> None:
    """It dies with the parent's process, which a signal on the death of the parent's thread would confuse."""
    started: list[Worker] = []

    def start() -> None:
        process, connection = Workers(threads=1).start(torch=False, main=serve_sums, arguments=())
        started.append(Worker(process, connection, timeout_s=60.0))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with started[0] as worker:
        worker.send((1, 2))
        assert worker.receive() == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_leaves_a_worker_to_its_parent(number: signal.Signals) -> None:
    workers = Workers(threads=1)
    process, connection = workers.start(torch=False, main=serve_sums, arguments=())
    server = processes._SERVERS[False]._forkserver_pid  # type: ignore[attr-defined]
    with Worker(process, connection, timeout_s=60.0) as worker:
        for summands in ((1, 2), (3, 4)):
            worker.send(summands)
            assert worker.receive() == sum(summands)
            for pid in (worker.pid, server):
                os.kill(pid, number)
    assert workers.call(loaded_modules, {}, torch=False, timeout_s=60.0)
    assert processes._SERVERS[False]._forkserver_pid == server  # type: ignore[attr-defined]


def test_a_program_ends_although_a_worker_is_left(tmp_path: Path) -> None:
    code = (
        "from segx.system.processes import Workers\nfrom tests.benching import serve_sums\n"
        "if __name__ == '__main__':\n"
        "    left = Workers(threads=1).start(torch=False, main=serve_sums, arguments=())\n"
        "    left[1].send((1, 2))\n"
        "    assert left[1].recv() == (True, 3)\n"
    )
    run_program(code, tmp_path)


def test_a_process_of_a_pool_cannot_start_workers(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    with pytest.raises(UsageError, match=r"multiprocessing\.Pool") as caught:
        call(os.getpid)
    assert "ProcessPoolExecutor" in caught.value.hint


def test_a_system_without_proc_does_not_mean_that_the_parent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(_: int) -> None:
        raise AssertionError

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv(processes._PARENT, "/nowhere/self/fd/3")
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(AssertionError):
        processes._die_with_parent()
    monkeypatch.setattr(Path, "exists", lambda _: False)
    processes._die_with_parent()


def test_workers_start_although_the_path_of_temporary_files_is_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("t" * 100)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    code = (
        "from segx.system.processes import Workers\nfrom tests.benching import loaded_modules\n"
        "if __name__ == '__main__':\n"
        "    assert Workers(threads=1).call(loaded_modules, {}, torch=False, timeout_s=60)\n"
    )
    run_program(code, tmp_path)
    assert not any(folder.iterdir())


def test_nothing_that_a_worker_prints_reaches_stdout(tmp_path: Path) -> None:
    """Neither by Python nor by a library in C: stdout is for the result of a command."""
    code = (
        "from segx.system.processes import Workers\nfrom tests.benching import print_in_every_way\n"
        "if __name__ == '__main__':\n"
        "    Workers(threads=1).call(print_in_every_way, {}, torch=False, timeout_s=60)\n"
        "    print('result')\n"
    )
    done = run_program(code, tmp_path)
    assert done.stdout == "result\n"
    assert done.stderr.count("from Python") == done.stderr.count("from C") == 1


def test_a_process_that_survives_the_kill_is_left_behind() -> None:
    """As one does that hangs in a driver: it ends neither its bench nor keeps the program from ending."""

    class Stuck:
        pid = 1
        killed = closed = 0

        def is_alive(self) -> bool:
            return True

        def kill(self) -> None:
            self.killed += 1

        def join(self, timeout: float) -> None:
            assert timeout < 60

        def close(self) -> None:
            raise ValueError("Cannot close a process while it is still running")

    process = Stuck()
    multiprocessing.process._children.add(process)  # type: ignore[attr-defined]
    ours, _ = multiprocessing.Pipe()
    with pytest.raises(WorkerHung), Worker(process, ours, timeout_s=0.01) as worker:  # type: ignore[arg-type]
        worker.receive()
    assert process.killed
    assert process not in multiprocessing.process._children  # type: ignore[attr-defined]
