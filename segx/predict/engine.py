"""Run a runtime in a process of its own that may crash, with images and logits in buffers shared between processes."""

from __future__ import annotations

import contextlib
import importlib
import math
import mmap
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segx.errors import InferenceError, OutOfMemory, first_line
from segx.masks.preprocess import in_batches
from segx.model.checkpoint import refuse_changed
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, open_runtime, runtime_info
from segx.runtimes.base import FloatArray
from segx.system.processes import Worker, WorkerDied, Workers, answer

_FLOAT_BYTES = 4
# One batch is inferred while the next is filled and the last is read.
_MIN_BUFFERS, _MIN_ROWS = 4, 8


@dataclass(frozen=True, kw_only=True)
class EngineTask:
    """What an engine runs, in shared buffers of ``batch_size`` images; ``model`` is the file that its runtime takes.

    ``fills_batches`` is for a file that takes no smaller batches: they are filled up with their last image. The
    model must have the digest ``sha256``, if there is one, whenever it is loaded.
    """

    model: Path
    spec: ModelSpec
    options: RuntimeOptions
    batch_size: int
    fills_batches: bool = False
    sha256: str = ""

    @property
    def buffers(self) -> int:
        """Number of buffers."""
        return max(_MIN_BUFFERS, -(-_MIN_ROWS // self.batch_size))

    @property
    def input_bytes(self) -> int:
        """Size of all images, rounded up to whole pages."""
        size = self.buffers * self.batch_size * math.prod(self.spec.input_shape) * _FLOAT_BYTES
        return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def total_bytes(self) -> int:
        """Size of all images and logits."""
        return self.input_bytes + self.buffers * self.batch_size * math.prod(self.spec.output_shape) * _FLOAT_BYTES


class SharedBuffers:
    """Arrays in memory that all processes with the same descriptor share.

    Attributes:
        inputs: (buffers, batch_size, C, H, W) float32.
        outputs: (buffers, batch_size, K, H, W) float32.

    Raises:
        OutOfMemory: the memory cannot be mapped.
    """

    def __init__(self, task: EngineTask, descriptor: int) -> None:
        with _allocating(task.total_bytes):
            memory = mmap.mmap(descriptor, task.total_bytes)  # unmapped with the last array on it
        rows = task.buffers, task.batch_size
        self.inputs: FloatArray = np.ndarray((*rows, *task.spec.input_shape), np.float32, memory)
        self.outputs: FloatArray = np.ndarray((*rows, *task.spec.output_shape), np.float32, memory, task.input_bytes)


def create_shared_memory(size: int) -> int:
    """Return the descriptor of ``size`` bytes without a name, of which nothing is left however the processes end.

    Not ``multiprocessing.shared_memory``: its files are in /dev/shm, which has 64 MiB in a container by default.

    Raises:
        OutOfMemory: no file can be so large.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("segx-batches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        with _allocating(size):
            os.ftruncate(descriptor, size)
    except OutOfMemory:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _allocating(size: int) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError) as error:
        problem = f"cannot allocate {size // 2**20} MiB for batches: {first_line(error)}"
        raise OutOfMemory(problem, hint="use a smaller batch size") from error


class Rows(NamedTuple):
    """Rows ``first`` to ``end`` (exclusive) of a buffer, which are inferred in one call."""

    buffer: int
    first: int
    end: int

    @property
    def images(self) -> int:
        """How many rows."""
        return self.end - self.first


class CallTimes(NamedTuple):
    """Seconds of one call: inference, and waiting for the call before it."""

    infer_s: float
    waited_s: float


class Engine:
    """A runtime in its own process, which is started at once, gets its model later and can be restarted after a crash.

    Calls may be sent before earlier ones are answered; answers come in the order of the calls.
    """

    def __init__(self, workers: Workers, runtime: str, *, timeout_s: float = 600.0) -> None:
        self.runtime = runtime
        self._workers = workers
        self._timeout_s = timeout_s
        self._task: EngineTask | None = None
        self._buffers: SharedBuffers | None = None
        self._facts: Mapping[str, str] | None = None
        self._descriptor = -1
        self._worker = self._start()

    def load(self, task: EngineTask) -> SharedBuffers:
        """Start loading the model, without waiting for it, and return this process's view of the buffers.

        A second call with the same task returns the same buffers.

        Raises:
            OutOfMemory: the buffers cannot be allocated.
        """
        if self._buffers is not None:
            assert task == self._task  # an engine serves one model
            return self._buffers
        self._task = task
        self._descriptor = create_shared_memory(task.total_bytes)
        self._buffers = SharedBuffers(task, self._descriptor)
        with contextlib.suppress(WorkerDied, OutOfMemory):  # as wait_until_ready reports
            self._send_task()
        return self._buffers

    def wait_until_ready(self) -> Mapping[str, str]:
        """Wait until the model is loaded, and return ``Runtime.facts``.

        Raises:
            SegxError: the model cannot be loaded, or loading it killed the process.
        """
        if self._facts is None:
            self._facts = self._worker.receive()
        facts: Mapping[str, str] = self._facts
        return facts

    def send(self, rows: Rows) -> None:
        """Request a call; raises the same errors as ``receive``."""
        self._worker.send(rows)

    def receive(self) -> CallTimes:
        """Wait for the answer to the oldest call.

        Raises:
            WorkerDied, WorkerHung, OutOfMemory: the process is gone; call ``restart`` before the next call.
            SegxError: the call failed; later ones are still answered.
        """
        times: CallTimes = self._worker.receive()
        return times

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._worker.alive

    def restart(self) -> None:
        """Start a new process with the same model and buffers; raises the same errors as ``wait_until_ready``."""
        worker = self._start()
        self._worker.kill()
        self._worker, self._facts = worker, None
        self._send_task()
        self.wait_until_ready()

    def interrupt(self) -> None:
        """Kill the process, which ends the wait of another thread for its answer."""
        with contextlib.suppress(ProcessLookupError, ValueError):  # already gone
            os.kill(self._worker.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process, killing it if a call is running."""
        self._worker.kill()
        self._buffers = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _start(self) -> Worker:
        torch = runtime_info(self.runtime).torch
        process, connection = self._workers.start(torch, serve_engine, (self.runtime,))
        return Worker(process, connection, timeout_s=self._timeout_s)

    def _send_task(self) -> None:
        self._worker.send(self._task)
        self._worker.send_descriptor(self._descriptor)


def serve_engine(connection: Connection, runtime: str) -> None:
    """Import the engine while the parent decides what to run, then load the model and answer calls."""
    with contextlib.suppress(ImportError):  # reported when the runtime is opened
        importlib.import_module(runtime_info(runtime).target.partition(":")[0])
    # The parent ends this by closing its end of the connection; if it is killed, the kernel does.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        session = _Session()
        connection.send(answer(session.load, (runtime, connection.recv(), reduction.recv_handle(connection))))
        while True:
            asked = time.perf_counter()
            rows = connection.recv()
            connection.send(answer(session.run, (rows, time.perf_counter() - asked)))


class _Session:
    """The runtime and the buffers of ``serve_engine``."""

    def load(self, name: str, task: EngineTask, descriptor: int) -> Mapping[str, str]:
        self._task = task
        self._buffers = SharedBuffers(task, descriptor)
        os.close(descriptor)
        if task.options.precision != "tf32":
            # Applies to every CUDA library regardless of options; read when CUDA starts in this process.
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        if task.sha256:
            refuse_changed(task.model, task.sha256)
        self._runtime = open_runtime(name, task.model, spec=task.spec, options=task.options)
        return dict(self._runtime.facts)

    def run(self, rows: Rows, waited_s: float) -> CallTimes:
        selected = slice(rows.first, rows.end)
        begun = time.perf_counter()
        images = self._buffers.inputs[rows.buffer][selected]
        if self._task.fills_batches:
            images = next(in_batches(images, self._task.batch_size))
        logits = self._runtime.infer(images)
        infer_s = time.perf_counter() - begun
        if logits.shape != (wanted := (len(images), *self._task.spec.output_shape)):
            raise InferenceError(
                f"{self._runtime.name} returned outputs of shape {logits.shape}, not {wanted}",
                hint="export the model again; its spec does not fit the weights",
            )
        self._buffers.outputs[rows.buffer][selected] = logits[: rows.images]
        return CallTimes(infer_s, waited_s)
