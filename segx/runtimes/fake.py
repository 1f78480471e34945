"""A scripted runtime for tests: known speed, known masks, failures on demand. No engine, no model file."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from segx.errors import OutOfMemory, RuntimeUnavailable
from segx.runtimes.base import FloatArray, RuntimeOptions
from segx.spec import ModelSpec

SCRIPT_VARIABLE = "SEGX_FAKE_SCRIPT"

_LOGIT_SCALE = 20.0


@dataclass(frozen=True, kw_only=True)
class FakeScript:
    """What the fake runtime shall do; JSON of these fields in the environment variable ``SEGX_FAKE_SCRIPT``.

    Attributes:
        seconds_per_call: slept in each call.
        seconds_per_image: slept in each call, for each image.
        bytes_per_image: really allocated and touched in each call, for each image.
        unavailable: reason why the runtime cannot be opened, or empty.
        out_of_memory_from: batch size from which memory runs out; 0 for never.
        killed_from: batch size from which the process kills itself with SIGKILL; 0 for never.
        hangs_from: batch size from which a call never returns; 0 for never.
        flipped_pixels: so many pixels of each image's mask are wrong, from ``flips_from`` on.
        flips_from: batch size from which pixels flip.
    """

    seconds_per_call: float = 0.0
    seconds_per_image: float = 0.0
    bytes_per_image: int = 0
    unavailable: str = ""
    out_of_memory_from: int = 0
    killed_from: int = 0
    hangs_from: int = 0
    flipped_pixels: int = 0
    flips_from: int = 1

    @classmethod
    def from_environment(cls) -> FakeScript:
        """Read the script; the default script where there is none."""
        values = json.loads(os.environ.get(SCRIPT_VARIABLE, "{}"))
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


class FakeRuntime:
    """Does as its script says. Logits are the image's brightness about one half, scaled."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        self.check(options)
        self.name = "fake"
        self.facts: Mapping[str, str] = {"threads": str(options.threads)}
        self._script = FakeScript.from_environment()
        self._spec = spec
        self.infer(np.zeros((1, *spec.input_shape), dtype=np.float32))

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Ready unless the script says otherwise.

        Raises:
            RuntimeUnavailable: with the script's reason.
        """
        if reason := FakeScript.from_environment().unavailable:
            raise RuntimeUnavailable(reason, hint="change the script")
        return {}

    def infer(self, batch: FloatArray) -> FloatArray:
        """As ``Runtime.infer``, and as the script says."""
        script, size = self._script, len(batch)

        def reached(limit: int) -> bool:
            return 0 < limit <= size

        if reached(script.killed_from):
            os.kill(os.getpid(), signal.SIGKILL)
        if reached(script.hangs_from):
            time.sleep(3600)
        if reached(script.out_of_memory_from):
            raise OutOfMemory(f"the script has no memory for {size} images", hint="use a smaller batch size")
        held = np.ones(script.bytes_per_image * size, dtype=np.uint8)
        time.sleep(script.seconds_per_call + script.seconds_per_image * size)
        del held
        logits = np.repeat((batch.mean(axis=1, keepdims=True) - 0.5) * _LOGIT_SCALE, self._spec.classes, axis=1)
        if reached(script.flips_from):
            logits.reshape(size, -1)[:, : script.flipped_pixels] *= -1.0
        return logits.astype(np.float32)

    def close(self) -> None:
        """Nothing to release."""
