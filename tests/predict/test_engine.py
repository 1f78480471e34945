"""The engine's process: starts before it knows its model, answers in order, and can be started again."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from segx.errors import CheckpointError, InferenceError, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.predict.engine import Engine, EngineTask, Rows, SharedBuffers
from segx.runtimes import RuntimeOptions
from segx.system.processes import WorkerDied, Workers

SPEC = ModelSpec(height=8, width=8)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(Workers(threads=1), "fake")
    yield engine
    engine.close()


def load(engine: Engine) -> SharedBuffers:
    options = RuntimeOptions(threads=1)
    return engine.load(EngineTask(model=Path("none"), spec=SPEC, options=options, batch_size=4))


def test_calls_sent_ahead_are_answered_in_order_and_write_their_own_rows(engine: Engine) -> None:
    buffers = load(engine)
    assert engine.wait_until_ready() == {"threads": "1"}
    for number in range(2):
        buffers.inputs[number][...] = np.arange(4, dtype=np.float32)[:, None, None, None] / 10 + number / 2
        buffers.outputs[number][...] = -99
    engine.send(Rows(0, 0, 4))
    engine.send(Rows(1, 1, 3))
    assert engine.receive().infer_s > 0
    assert engine.receive().waited_s >= 0
    np.testing.assert_allclose(buffers.outputs[0], (buffers.inputs[0] - 0.5) * 20, rtol=1e-6)
    np.testing.assert_allclose(buffers.outputs[1][1:3], (buffers.inputs[1][1:3] - 0.5) * 20, rtol=1e-6)
    assert (buffers.outputs[1][[0, 3]] == -99).all()


def test_a_call_that_fails_leaves_the_process_alive(engine: Engine, script: Callable[..., None]) -> None:
    script(fails_above=0.9)
    engine.close()
    engine = Engine(Workers(threads=1), "fake")
    buffers = load(engine)
    engine.wait_until_ready()
    buffers.inputs[0][0], buffers.inputs[0][1] = 1.0, 0.25
    engine.send(Rows(0, 0, 1))
    with pytest.raises(InferenceError, match="fails on an image"):
        engine.receive()
    assert engine.alive
    engine.send(Rows(0, 1, 2))
    engine.receive()
    assert (buffers.outputs[0][1] == -5.0).all()
    engine.close()


def test_a_killed_process_is_told_by_its_signal_and_starts_again_with_the_same_memory(engine: Engine) -> None:
    buffers = load(engine)
    engine.wait_until_ready()
    buffers.inputs[1][...] = 0.75
    first = engine._worker.pid
    os.kill(first, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        engine.receive()
    assert not engine.alive
    engine.restart()
    assert engine._worker.pid != first
    engine.send(Rows(1, 0, 4))
    engine.receive()
    assert (buffers.outputs[1] == 5.0).all()


def test_a_runtime_that_cannot_work_says_so_when_its_model_is_loaded(script: Callable[..., None]) -> None:
    script(unavailable="no such device")
    engine = Engine(Workers(threads=1), "fake")
    load(engine)
    with pytest.raises(RuntimeUnavailable, match="no such device"):
        engine.wait_until_ready()
    engine.close()


def test_the_process_is_gone_after_closing_also_in_the_middle_of_a_call(script: Callable[..., None]) -> None:
    script(hangs_from=4)
    engine = Engine(Workers(threads=1), "fake")
    load(engine)
    engine.wait_until_ready()
    engine.send(Rows(0, 0, 4))
    pid = engine._worker.pid
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_model_that_is_replaced_meanwhile_is_not_loaded(engine: Engine, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"one")
    task = EngineTask(
        model=model,
        spec=SPEC,
        options=RuntimeOptions(threads=1),
        batch_size=4,
        sha256=hashlib.sha256(b"one").hexdigest(),
    )
    engine.load(task)
    engine.wait_until_ready()
    model.write_bytes(b"two")
    with pytest.raises(CheckpointError, match="has changed since this run began"):
        engine.restart()


_RESTART_TWICE = """
from pathlib import Path
from segx.model.spec import ModelSpec
from segx.predict.engine import Engine, EngineTask
from segx.runtimes import RuntimeOptions
from segx.system.processes import Workers

def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))

if __name__ == "__main__":
    spec = ModelSpec(height=8, width=8)
    options = RuntimeOptions(threads=1)
    task = EngineTask(model=Path("none"), spec=spec, options=options, batch_size=4)
    workers = Workers(threads=1)
    counts = []
    for _ in range(3):
        engine = Engine(workers, "fake")
        engine.load(task)
        engine.wait_until_ready()
        engine.restart()
        engine.close()
        counts.append(descriptors())  # the first process of all opens some for good
    assert len(set(counts)) == 1, counts
"""


def test_closing_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """In a process of its own: here, garbage of other tests may close descriptors meanwhile."""
    script = tmp_path / "restart_twice.py"
    script.write_text(_RESTART_TWICE)
    subprocess.run([sys.executable, script], check=True)
