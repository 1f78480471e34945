"""A short look at how fast variants are here, for want of a bench."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segx.analysis.stats import median
from segx.errors import RuntimeUnavailable, SegxError
from segx.model.spec import ModelSpec
from segx.predict.engine import Engine, EngineTask, Part
from segx.predict.slots import Layout
from segx.runtimes import RUNTIMES, Precision, RuntimeOptions, Variant
from segx.system import machine
from segx.system.processes import Workers

# Their engines are built for minutes; a bench has the time.
_SLOW_TO_BUILD = ("tensorrt", "onnxruntime-tensorrt")
_LEAST_CALLS, _LEAST_S = 3, 0.5


@dataclass(frozen=True)
class Probed:
    """How fast a variant is at a batch size, in images per second."""

    variant: Variant
    batch_size: int
    images_per_s: float


def candidates(precision: Precision) -> list[Variant]:
    """Runtimes without PyTorch that compute in a precision: those on the GPU where there is one, else on the CPU."""
    device = "cpu" if machine.cuda_problem() else "cuda"
    return [
        Variant(info.name, precision)
        for info in RUNTIMES.values()
        if info.device == device and not info.torch and precision in info.precisions
        if info.name not in _SLOW_TO_BUILD
    ]


def probe(
    workers: Workers,
    variants: Sequence[Variant],
    batch_sizes: Sequence[int],
    *,
    spec: ModelSpec,
    file_for: Callable[[Variant], Path],
    threads: int,
    tell: Callable[[str], None],
) -> list[Probed]:
    """Run each variant for about half a second at each batch size; those that do not work here are left out.

    Raises:
        RuntimeUnavailable: none works; gives the first one's reason.
    """
    found: list[Probed] = []
    reasons: list[SegxError] = []
    for variant in variants:
        tell(f"trying {variant}")
        engine = Engine(workers, variant.runtime)
        try:
            layout = Layout(
                slots=1, batch_size=max(batch_sizes), input_shape=spec.input_shape, output_shape=spec.output_shape
            )
            options = RuntimeOptions(threads=threads, precision=variant.precision)
            slots = engine.open(EngineTask(model=file_for(variant), spec=spec, options=options, layout=layout))
            slots.inputs[0][...] = 0.5
            engine.wait_until_ready()
            found.extend(Probed(variant, size, size / _seconds_per_call(engine, size)) for size in batch_sizes)
        except SegxError as error:
            reasons.append(error)
            tell(f"{variant}: {error.message}")
        finally:
            engine.close()
    if not found:
        first = reasons[0] if reasons else RuntimeUnavailable("there is none", hint="choose one with --runtime")
        raise RuntimeUnavailable(f"no runtime works here: {first.message}", hint=first.hint)
    return found


def _seconds_per_call(engine: Engine, batch_size: int) -> float:
    part = Part(0, 0, batch_size)
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) <= _LEAST_CALLS or time.perf_counter() - begun < _LEAST_S:
        engine.send(part)
        seconds.append(engine.receive().infer_s)
    return median(seconds[1:])  # the first call of a size allocates, and chooses kernels
