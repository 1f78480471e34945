"""Images become batches without loss or mix-up, and thread counts follow from measured times."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.errors import OutOfMemory
from segx.model.spec import ModelSpec
from segx.predict.batching import LOADING, STORING, Batch, Batcher, StageClock, Stopped
from segx.predict.engine import EngineTask, SharedBuffers, create_shared_memory
from segx.runtimes import RuntimeOptions

SPEC = ModelSpec(height=1, width=2)


def task_for(spec: ModelSpec, batch_size: int) -> EngineTask:
    return EngineTask(model=Path("none"), spec=spec, options=RuntimeOptions(threads=1), batch_size=batch_size)


def buffers_for(count: int, batch_size: int) -> SharedBuffers:
    task = task_for(SPEC, batch_size)
    descriptor = create_shared_memory(task.total_bytes)
    try:
        buffers = SharedBuffers(task, descriptor)
    finally:
        os.close(descriptor)
    buffers.inputs, buffers.outputs = buffers.inputs[:count], buffers.outputs[:count]
    return buffers


def image(value: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.full(SPEC.input_shape, value, dtype=np.float32)


def read(batcher: Batcher[int], buffers: SharedBuffers, batch: Batch[int]) -> Iterator[tuple[int, float]]:
    """Each ticket with the pixel that lies in its row; the buffer is free afterwards."""
    batch.unread = len(batch.tickets)
    for row, ticket in enumerate(batch.tickets):
        yield ticket, float(buffers.inputs[batch.buffer][row].flat[0])
        batcher.release(batch)


def test_mappings_of_one_descriptor_share_their_memory() -> None:
    task = task_for(ModelSpec(height=4, width=5, classes=2), 3)
    descriptor = create_shared_memory(task.total_bytes)
    ours, theirs = SharedBuffers(task, descriptor), SharedBuffers(task, descriptor)
    os.close(descriptor)
    for number in range(2):
        ours.inputs[number][...] = number + 1
        theirs.outputs[number][...] = number + 10
    for number in range(2):
        assert theirs.inputs[number].shape == (3, 1, 4, 5)
        assert (theirs.inputs[number] == number + 1).all()
        assert ours.outputs[number].shape == (3, 2, 4, 5)
        assert (ours.outputs[number] == number + 10).all()


@given(images=st.integers(0, 40), batch_size=st.integers(1, 5), loaders=st.integers(1, 4), buffers=st.integers(1, 3))
def test_every_image_arrives_once_in_its_own_row(images: int, batch_size: int, loaders: int, buffers: int) -> None:
    memory = buffers_for(buffers, batch_size)
    batcher: Batcher[int] = Batcher(memory, batch_size)
    numbers = iter(range(images))
    lock = threading.Lock()
    left = [loaders]

    def load() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            batcher.place(image(number), number)
        with lock:
            left[0] -= 1
            last = left[0] == 0
        if last:
            batcher.finish()

    threads = [threading.Thread(target=load) for _ in range(loaders)]
    for thread in threads:
        thread.start()
    sizes, arrived = [], []
    while batch := batcher.take(fill_timeout_s=10.0):
        sizes.append(len(batch.tickets))
        for ticket, pixel in read(batcher, memory, batch):
            assert pixel == ticket
            arrived.append(ticket)
    for thread in threads:
        thread.join()
    assert sorted(arrived) == list(range(images))
    assert sizes == [batch_size] * (images // batch_size) + [images % batch_size] * bool(images % batch_size)


def test_an_idle_engine_gets_partial_batches_and_a_busy_one_only_full_ones() -> None:
    memory = buffers_for(2, 4)
    batcher: Batcher[int] = Batcher(memory, 4)
    batcher.place(image(7), 7)
    assert batcher.take(fill_timeout_s=None) is None
    batch = batcher.take(fill_timeout_s=0.01)
    assert batch is not None
    assert list(read(batcher, memory, batch)) == [(7, 7.0)]
    batcher.place(image(8), 8)  # begins a batch of its own
    batcher.finish()
    last = batcher.take(fill_timeout_s=None)
    assert last is not None
    assert last.tickets == [8]
    assert batcher.take(fill_timeout_s=None) is None


def test_placing_an_image_waits_until_all_logits_of_a_buffer_have_been_read() -> None:
    memory = buffers_for(1, 2)
    batcher: Batcher[int] = Batcher(memory, 2)
    batcher.place(image(0), 0)
    batcher.place(image(1), 1)
    placed = threading.Event()
    waiting = threading.Thread(target=lambda: (batcher.place(image(2), 2), placed.set()))
    waiting.start()
    batch = batcher.take(fill_timeout_s=None)
    assert batch is not None
    batch.unread = 2
    batcher.release(batch)
    assert not placed.wait(0.05)
    batcher.release(batch)
    assert placed.wait(10)
    waiting.join()


def test_stop_ends_all_waiting_calls() -> None:
    batcher: Batcher[int] = Batcher(buffers_for(1, 1), 1)
    batcher.place(image(0), 0)
    left: list[str] = []

    def until_stopped(name: str, wait: object) -> None:
        assert callable(wait)
        try:
            wait()
        except Stopped:
            left.append(name)

    assert batcher.take(fill_timeout_s=None)
    threads = [
        threading.Thread(target=until_stopped, args=("place", lambda: batcher.place(image(1), 1))),
        threading.Thread(target=until_stopped, args=("take", lambda: batcher.take(fill_timeout_s=0.01))),
    ]
    for thread in threads:
        thread.start()
    batcher.stop()
    for thread in threads:
        thread.join(10)
    assert sorted(left) == ["place", "take"]
    with pytest.raises(Stopped):
        batcher.check()


def test_too_much_memory_is_an_error_with_a_remedy() -> None:
    with pytest.raises(OutOfMemory) as caught:
        buffers_for(4, 10**13)
    assert "batch size" in caught.value.hint


def clock_with(*, load_s: float, load_cpu_s: float, infer_s: float, images: int = 10) -> StageClock:
    clock = StageClock()
    for _ in range(images):
        clock.add(LOADING, np.linspace(0, load_s, 4).tolist(), cpu_s=load_cpu_s)
        clock.add_call(1, infer_s=infer_s, waited_s=0.0)
    return clock


def test_times_of_all_images_are_added_stage_by_stage() -> None:
    clock = StageClock()
    for _ in range(3):
        clock.add(LOADING, [5.0, 5.1, 5.3, 5.6], cpu_s=0.5)
        clock.add(STORING, [5.0, 5.4, 5.9], cpu_s=0.5)
    clock.add_call(2, infer_s=1.0, waited_s=9.0)
    clock.add_call(1, infer_s=0.5, waited_s=0.25)
    times = clock.times()
    assert times == pytest.approx(
        {"read": 0.3, "decode": 0.6, "preprocess": 0.9, "infer": 1.5, "postprocess": 1.2, "encode": 1.5, "wait": 0.25}
    )  # the wait for the first batch is the engine's start


@pytest.mark.parametrize(
    ("load_s", "load_cpu_s", "infer_s", "threads"),
    [
        (0.010, 0.010, 0.100, 1),  # the engine is ten times slower
        (0.100, 0.010, 0.100, 2),  # as slow: one thread would just not do
        (0.400, 0.010, 0.100, 5),  # waits for a disk: more threads wait at a time
        (0.400, 0.400, 0.100, 2),  # computes: no more threads than processors
        (9.000, 0.010, 0.001, 16),  # a limit
    ],
)
def test_threads_keep_up_with_the_engine(load_s: float, load_cpu_s: float, infer_s: float, threads: int) -> None:
    clock = clock_with(load_s=load_s, load_cpu_s=load_cpu_s, infer_s=infer_s)
    assert clock.threads_for(LOADING, cores=2) == threads


def test_nothing_is_decided_before_anything_was_measured() -> None:
    clock = StageClock()
    assert clock.threads_for(LOADING, cores=2) is None
    clock.add(LOADING, [0.0, 0.3, 0.6, 0.9], cpu_s=0.9)
    assert clock.threads_for(LOADING, cores=2) is None
    clock.add_call(1, infer_s=1.0, waited_s=0.0)
    assert clock.threads_for(LOADING, cores=2) == 2
    assert clock.threads_for(STORING, cores=2) is None
