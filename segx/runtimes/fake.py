"""A scripted runtime for tests with known speed, known masks and failures on demand; needs no engine or model."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from segx.errors import InferenceError, OutOfMemory, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes.base import SMALLER, FloatArray, RuntimeOptions

SCRIPT_VARIABLE = "SEGX_FAKE_SCRIPT"

_LOGIT_SCALE = 20.0
_SPIN_S = 0.002


@dataclass(frozen=True, kw_only=True)
class FakeScript:
    """Behaviour of the fake runtime, set as JSON in the environment variable ``SEGX_FAKE_SCRIPT``.

    The ``*_from`` fields are the smallest batch size at which something happens (0: never); the ``*_above`` fields are
    the mean brightness of an image, 0 to 1, above which it happens.
    """

    seconds_per_call: float = 0.0
    seconds_per_image: float = 0.0
    spread: float = 0.0  # standard deviation of the logarithm of that time; the median is unchanged
    slow_first: float = 1.0  # factor on the first call of a process
    slow_every: int = 0  # every so many calls, one is slow; 0 for never
    slow_factor: float = 1.0
    log_file: str = ""  # each call appends the seconds it took
    device_seconds_per_image: float = 0.0  # reported by ``infer_timed``, not actually spent
    bytes_per_image: int = 0  # memory allocated and written in each call
    unavailable: str = ""  # reason why the runtime cannot be opened
    disappears_from: int = 0
    out_of_memory_from: int = 0
    killed_from: int = 0  # by SIGKILL, as with ``killed_above``
    hangs_from: int = 0
    killed_above: float = 2.0
    fails_above: float = 2.0
    not_finite_above: float = 2.0  # the image's logits are NaN
    flipped_pixels: int = 0  # number of wrong pixels in each image's mask
    flips_from: int = 1

    @classmethod
    def from_environment(cls) -> FakeScript:
        """Read the script, or return the default one if the variable is unset."""
        values = json.loads(os.environ.get(SCRIPT_VARIABLE, "{}"))
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


class FakeRuntime:
    """A runtime that follows its script; logits are the brightness minus one half, scaled."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        self.check(options)
        self.name = "fake"
        self.facts: Mapping[str, str] = {"threads": str(options.threads)}
        self._script = FakeScript.from_environment()
        self._spec = spec
        self._calls = 0
        self._random = random.Random(0)
        self.infer(np.zeros((1, *spec.input_shape), dtype=np.float32))

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Return no facts.

        Raises:
            RuntimeUnavailable: the script gives a reason.
        """
        if reason := FakeScript.from_environment().unavailable:
            raise RuntimeUnavailable(reason, hint="change the script")
        return {}

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``."""
        begun = time.perf_counter()
        logits = self._compute(batch, begun + self._next_duration_s(len(batch)))
        if self._script.log_file:
            with Path(self._script.log_file).open("a", encoding="utf-8") as log_file:
                log_file.write(f"{time.perf_counter() - begun}\n")
        return logits

    def _compute(self, batch: FloatArray, end: float) -> FloatArray:
        script, size = self._script, len(batch)

        def reached(limit: int) -> bool:
            return 0 < limit <= size

        if reached(script.killed_from):
            os.kill(os.getpid(), signal.SIGKILL)
        brightness = batch.mean(axis=(1, 2, 3))
        if (brightness > script.killed_above).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (brightness > script.fails_above).any():
            raise InferenceError("the script fails on an image", hint="change the script")
        if reached(script.hangs_from):
            time.sleep(3600)
        if reached(script.out_of_memory_from):
            raise OutOfMemory(f"the script has no memory for {size} images", hint=SMALLER)
        if reached(script.disappears_from):
            raise RuntimeUnavailable(f"the script takes the runtime away at {size} images", hint="change the script")
        held = np.ones(script.bytes_per_image * size, dtype=np.uint8)
        _wait_until(end)
        del held
        logits = np.repeat((batch.mean(axis=1, keepdims=True) - 0.5) * _LOGIT_SCALE, self._spec.classes, axis=1)
        if reached(script.flips_from):
            logits.reshape(size, -1)[:, : script.flipped_pixels] *= -1.0
        if (spoiled := brightness > script.not_finite_above).any():
            logits[spoiled] = np.nan
        return logits.astype(np.float32)

    def infer_timed(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """See ``TimesItself.infer_timed``; the time is the one in the script."""
        return self.infer(batch), self._script.device_seconds_per_image * len(batch)

    def _next_duration_s(self, size: int) -> float:
        script = self._script
        seconds = script.seconds_per_call + script.seconds_per_image * size
        seconds *= math.exp(self._random.gauss(0.0, script.spread))
        if self._calls == 0:
            seconds *= script.slow_first
        self._calls += 1
        if script.slow_every and self._calls % script.slow_every == 0:
            seconds *= script.slow_factor
        return seconds

    def close(self) -> None:
        """See ``Runtime.close``; there is nothing to release."""


def _wait_until(end: float) -> None:
    """Sleep, then spin: sleeping alone overshoots by 0.1 ms or more."""
    time.sleep(max(0.0, end - time.perf_counter() - _SPIN_S))
    while time.perf_counter() < end:
        pass
