"""Where the time goes: seconds per stage, summed over threads, and the numbers of threads that follow from them."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

LOADING = ("read", "decode", "preprocess")
STORING = ("postprocess", "encode")

# So much more than what is needed on average: images differ, and the engine shall not wait for the slow ones.
_RESERVE = 1.25
# Python's own part of the work is done by one thread at a time.
_MOST_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Seconds spent in each stage; stages overlap, so that they may add up to more than the job took.

    Attributes:
        read: bytes from the disk.
        decode: bytes to pixels.
        preprocess: pixels to a model input.
        infer: model inputs to logits, in the engine.
        postprocess: logits to a mask of the wanted size.
        encode: mask to a file.
        wait: the engine had nothing to do, between its first call and its last.
    """

    read: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0
    infer: float = 0.0
    postprocess: float = 0.0
    encode: float = 0.0
    wait: float = 0.0


class StageClock:
    """Adds up what threads report."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(StageTimes.__dataclass_fields__, 0.0)
        self._cpu_s = {LOADING: 0.0, STORING: 0.0}
        self._counts = {LOADING: 0, STORING: 0, ("infer",): 0}
        self._lock = threading.Lock()

    def add(self, stages: tuple[str, ...], seconds: Mapping[str, float], *, cpu_s: float) -> None:
        """One image went through these stages, in so many seconds each, of which so many on a processor."""
        with self._lock:
            self._counts[stages] += 1
            self._cpu_s[stages] += cpu_s
            for stage, spent_s in seconds.items():
                self._seconds[stage] += spent_s

    def add_call(self, images: int, *, infer_s: float, waited_s: float) -> None:
        """The engine inferred a batch, after it had waited for it."""
        with self._lock:
            if self._counts["infer",]:
                self._seconds["wait"] += waited_s  # before its first call it waited for its start
            self._counts["infer",] += images
            self._seconds["infer"] += infer_s

    def times(self) -> StageTimes:
        """The sums so far."""
        with self._lock:
            return StageTimes(**self._seconds)

    def threads_for(self, stages: tuple[str, ...], cores: int) -> int | None:
        """How many threads keep up with the engine; None before anything is measured.

        By Little's law as many as images are in these stages at a time: their seconds per image over the engine's. Not
        more than can be on the processors: what computes gains nothing from more threads than those, what waits for a
        disk does.

        Source: Little 1961, "A Proof for the Queuing Formula L = λW".
        """
        with self._lock:
            images, inferred = self._counts[stages], self._counts["infer",]
            if not images or not inferred:
                return None
            seconds = sum(self._seconds[stage] for stage in stages)
            engine_s = self._seconds["infer"] / inferred
            needed = _RESERVE * seconds / images / max(engine_s, 1e-9)
            useful = round(cores * seconds / max(self._cpu_s[stages], 1e-9), 3)
        return max(1, min(math.ceil(needed), math.ceil(useful), _MOST_THREADS))
