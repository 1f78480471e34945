"""The runtime in a process of its own, which may crash: both sides of it. Arrays travel through shared memory."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from segx.errors import InferenceError
from segx.model.spec import ModelSpec
from segx.predict.slots import Layout, Slots, anonymous_file
from segx.runtimes import RuntimeOptions, open_runtime, runtime_info
from segx.system.memory import prefer_for_oom_kill
from segx.system.processes import Worker, Workers, answer, die_with_parent


@dataclass(frozen=True, kw_only=True)
class EngineTask:
    """What the engine runs.

    Attributes:
        model: the file that its runtime takes.
        spec: the model's description.
        options: threads and precision.
        layout: of the memory that it shares with us.
    """

    model: Path
    spec: ModelSpec
    options: RuntimeOptions
    layout: Layout


class Part(NamedTuple):
    """Rows of a slot that are inferred in one call: from ``first`` to before ``end``."""

    slot: int
    first: int
    end: int

    @property
    def images(self) -> int:
        """How many rows."""
        return self.end - self.first


class PartTimes(NamedTuple):
    """What a call took, in seconds."""

    infer_s: float
    waited_s: float


class Engine:
    """A runtime whose process is started at once and given its model later; started again after a crash.

    Calls may be sent ahead of their answers; they are answered in the order in which they were sent.
    """

    def __init__(self, workers: Workers, runtime: str, *, timeout_s: float = 600.0) -> None:
        self.runtime = runtime
        self._workers = workers
        self._timeout_s = timeout_s
        self._task: EngineTask | None = None
        self._slots: Slots | None = None
        self._facts: Mapping[str, str] | None = None
        self._descriptor = -1
        self._worker = self._start()

    def open(self, task: EngineTask) -> Slots:
        """Have the model loaded; does not wait for that. Gives our side of the shared memory.

        The same task once more finds the model loaded and the memory as it was left.

        Raises:
            OutOfMemory: there is no room for it.
            WorkerDied: the process is gone already.
        """
        if self._slots is not None:
            assert task == self._task  # an engine serves one model
            return self._slots
        self._task = task
        self._descriptor = anonymous_file(task.layout.total_bytes)
        self._slots = Slots(task.layout, self._descriptor)
        self._send_task()
        return self._slots

    def wait_until_ready(self) -> Mapping[str, str]:
        """Wait until the model is loaded; gives ``Runtime.facts``.

        Raises:
            SegxError: it cannot be, or the process died of it.
        """
        if self._facts is None:
            self._facts = self._worker.receive()
        facts: Mapping[str, str] = self._facts
        return facts

    def send(self, part: Part) -> None:
        """Ask for a call; raises as ``receive``."""
        self._worker.send(part)

    def receive(self) -> PartTimes:
        """Wait for the answer to the oldest call.

        Raises:
            WorkerDied, WorkerHung, OutOfMemory: the process is gone; ``restart`` before the next call.
            SegxError: the call failed; the next ones are still answered.
        """
        times: PartTimes = self._worker.receive()
        return times

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._worker.alive

    def restart(self) -> None:
        """Start again and load the same model; raises as ``wait_until_ready``."""
        self._worker.kill()
        self._worker = self._start()
        self._facts = None
        self._send_task()
        self.wait_until_ready()

    def interrupt(self) -> None:
        """Kill the process, so that another thread that waits for its answer sees that it is gone."""
        with contextlib.suppress(ProcessLookupError, ValueError):  # gone already
            os.kill(self._worker.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process end, or kill it where a call is still running."""
        self._worker.kill()
        self._slots = None
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
    """Main of the engine's process: import while the parent finds out what to run, load it, then answer calls."""
    die_with_parent()
    prefer_for_oom_kill()
    with contextlib.suppress(ImportError):  # said when the runtime is opened
        importlib.import_module(runtime_info(runtime).target.partition(":")[0])
    # The parent ends this by closing its end of the line; when it is killed, the kernel does.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        session = _Session(runtime, connection.recv(), reduction.recv_handle(connection))
        connection.send(answer(session.load, ()))
        while True:
            asked = time.perf_counter()
            part = connection.recv()
            connection.send(answer(session.run, (part, time.perf_counter() - asked)))


class _Session:
    def __init__(self, runtime: str, task: EngineTask, descriptor: int) -> None:
        self._name = runtime
        self._task = task
        self._descriptor = descriptor

    def load(self) -> Mapping[str, str]:
        task = self._task
        self._slots = Slots(task.layout, self._descriptor)
        os.close(self._descriptor)
        if task.options.precision != "tf32":
            # Holds for every CUDA library, whatever options reach it; read when CUDA starts in this process.
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        self._runtime = open_runtime(self._name, task.model, spec=task.spec, options=task.options)
        return dict(self._runtime.facts)

    def run(self, part: Part, waited_s: float) -> PartTimes:
        rows = slice(part.first, part.end)
        begun = time.perf_counter()
        logits = self._runtime.infer(self._slots.inputs[part.slot][rows])
        infer_s = time.perf_counter() - begun
        if logits.shape != (wanted := (part.images, *self._task.spec.output_shape)):
            raise InferenceError(
                f"{self._name} gave outputs of shape {logits.shape}, not {wanted}",
                hint="export the model again; its spec does not fit the weights",
            )
        self._slots.outputs[part.slot][rows] = logits
        return PartTimes(infer_s, waited_s)
