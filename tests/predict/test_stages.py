"""Times add up, and the numbers of threads follow from them."""

from __future__ import annotations

import dataclasses

import pytest

from segx.predict.stages import LOADING, STORING, StageClock


def clock_with(*, load_s: float, load_cpu_s: float, infer_s: float, images: int = 10) -> StageClock:
    clock = StageClock()
    for _ in range(images):
        clock.add(LOADING, dict.fromkeys(LOADING, load_s / 3), cpu_s=load_cpu_s)
        clock.add_call(1, infer_s=infer_s, waited_s=0.0)
    return clock


def test_times_of_all_images_are_added_stage_by_stage() -> None:
    clock = StageClock()
    for _ in range(3):
        clock.add(LOADING, {"read": 0.1, "decode": 0.2, "preprocess": 0.3}, cpu_s=0.5)
        clock.add(STORING, {"postprocess": 0.4, "encode": 0.5}, cpu_s=0.5)
    clock.add_call(2, infer_s=1.0, waited_s=9.0)
    clock.add_call(1, infer_s=0.5, waited_s=0.25)
    times = dataclasses.asdict(clock.times())
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
    clock.add(LOADING, dict.fromkeys(LOADING, 0.3), cpu_s=0.9)
    assert clock.threads_for(LOADING, cores=2) is None
    clock.add_call(1, infer_s=1.0, waited_s=0.0)
    assert clock.threads_for(LOADING, cores=2) == 2
    assert clock.threads_for(STORING, cores=2) is None
