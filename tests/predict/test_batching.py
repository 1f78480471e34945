"""Rows become batches, and no image is lost or mixed up on the way, whoever comes when."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.errors import OutOfMemory
from segx.predict.batching import Batch, Batcher, Stopped
from segx.predict.slots import Layout, Slots, anonymous_file

_SHAPE = (1, 1, 2)


def slots_for(count: int, batch_size: int) -> Slots:
    layout = Layout(slots=count, batch_size=batch_size, input_shape=_SHAPE, output_shape=_SHAPE)
    descriptor = anonymous_file(layout.total_bytes)
    try:
        return Slots(layout, descriptor)
    finally:
        os.close(descriptor)


def image(value: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.full(_SHAPE, value, dtype=np.float32)


def read(batcher: Batcher[int], slots: Slots, batch: Batch[int]) -> Iterator[tuple[int, float]]:
    """Each ticket with the pixel that lies in its row; the slot is free afterwards."""
    batch.unread = len(batch.tickets)
    for row, ticket in enumerate(batch.tickets):
        yield ticket, float(slots.inputs[batch.slot][row].flat[0])
        batcher.release(batch)


def test_a_slot_is_seen_by_all_who_map_the_same_file() -> None:
    layout = Layout(slots=2, batch_size=3, input_shape=(1, 4, 5), output_shape=(2, 4, 5))
    descriptor = anonymous_file(layout.total_bytes)
    ours, theirs = Slots(layout, descriptor), Slots(layout, descriptor)
    os.close(descriptor)
    for number in range(2):
        ours.inputs[number][...] = number + 1
        theirs.outputs[number][...] = number + 10
    for number in range(2):
        assert theirs.inputs[number].shape == (3, 1, 4, 5)
        assert (theirs.inputs[number] == number + 1).all()
        assert ours.outputs[number].shape == (3, 2, 4, 5)
        assert (ours.outputs[number] == number + 10).all()


@given(images=st.integers(0, 40), batch_size=st.integers(1, 5), loaders=st.integers(1, 4), slots=st.integers(1, 3))
def test_every_image_arrives_once_in_its_own_row(images: int, batch_size: int, loaders: int, slots: int) -> None:
    memory = slots_for(slots, batch_size)
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
    while batch := batcher.take(patience_s=10.0):
        sizes.append(len(batch.tickets))
        for ticket, pixel in read(batcher, memory, batch):
            assert pixel == ticket
            arrived.append(ticket)
    for thread in threads:
        thread.join()
    assert sorted(arrived) == list(range(images))
    assert sizes == [batch_size] * (images // batch_size) + [images % batch_size] * bool(images % batch_size)


def test_an_idle_engine_gets_what_there_is_and_a_busy_one_only_full_batches() -> None:
    memory = slots_for(2, 4)
    batcher: Batcher[int] = Batcher(memory, 4)
    batcher.place(image(7), 7)
    assert batcher.take(patience_s=None) is None
    batch = batcher.take(patience_s=0.01)
    assert batch is not None
    assert list(read(batcher, memory, batch)) == [(7, 7.0)]
    batcher.place(image(8), 8)  # begins a batch of its own
    batcher.finish()
    last = batcher.take(patience_s=None)
    assert last is not None
    assert last.tickets == [8]
    assert batcher.take(patience_s=None) is None


def test_who_has_no_free_slot_waits_until_the_logits_of_one_were_read() -> None:
    memory = slots_for(1, 2)
    batcher: Batcher[int] = Batcher(memory, 2)
    batcher.place(image(0), 0)
    batcher.place(image(1), 1)
    placed = threading.Event()
    waiting = threading.Thread(target=lambda: (batcher.place(image(2), 2), placed.set()))
    waiting.start()
    batch = batcher.take(patience_s=None)
    assert batch is not None
    batch.unread = 2
    batcher.release(batch)
    assert not placed.wait(0.05)
    batcher.release(batch)
    assert placed.wait(10)
    waiting.join()


def test_stopping_sends_everybody_away() -> None:
    batcher: Batcher[int] = Batcher(slots_for(1, 1), 1)
    batcher.place(image(0), 0)
    left: list[str] = []

    def until_stopped(name: str, wait: object) -> None:
        assert callable(wait)
        try:
            wait()
        except Stopped:
            left.append(name)

    assert batcher.take(patience_s=None)
    threads = [
        threading.Thread(target=until_stopped, args=("place", lambda: batcher.place(image(1), 1))),
        threading.Thread(target=until_stopped, args=("take", lambda: batcher.take(patience_s=0.01))),
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
        slots_for(4, 10**13)
    assert "batch size" in caught.value.hint
