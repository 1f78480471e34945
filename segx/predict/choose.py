"""Choose variant and batch size: the fastest that a benchmark measured on this machine, or that a short probe finds."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from segx.analysis.recommend import Constraints, fit_cells
from segx.errors import ResultsError, RuntimeUnavailable, SegxError, UsageError
from segx.export.variants import ModelFiles
from segx.masks.agreement import Required
from segx.model.spec import ModelSpec
from segx.predict.engine import Engine, Rows
from segx.predict.pipeline import engine_task
from segx.results.store import load_results
from segx.results.types import Results
from segx.runtimes import RUNTIMES, Precision, RuntimeOptions, Variant, runtime_info
from segx.system import machine
from segx.system.processes import Workers

AUTO = "auto"

# A single image leaves most of a GPU idle, but keeps every thread of a CPU busy.
_CUDA_BATCH_SIZES = (1, 4, 16)
# Building their engines takes minutes, which only a benchmark can afford.
_SLOW_TO_BUILD = ("tensorrt", "onnxruntime-tensorrt")
_MIN_PROBE_CALLS, _MIN_PROBE_S = 3, 0.5


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    A precision of None is fp32 with a named runtime, and the fastest with ``auto``. ``require`` is about the masks of
    what ``auto`` chooses.
    """

    runtime: str = AUTO
    precision: Precision | None = None
    batch_size: int | None = None
    require: Required | None = None

    @property
    def variant(self) -> Variant:
        """The variant of a named runtime.

        Raises:
            UsageError: there is no such runtime, or it does not support the precision.
        """
        info = runtime_info(self.runtime)
        if self.precision not in (None, *info.precisions):
            supported = f"it supports {', '.join(info.precisions)}"
            raise UsageError(f"{info.name} does not support {self.precision}", hint=supported)
        return Variant(info.name, self.precision or "fp32")


@dataclass(frozen=True)
class Choice:
    """A variant and batch size, and why they were chosen or how fast they were in a probe."""

    variant: Variant
    batch_size: int
    reason: str = "as requested"
    images_per_s: float = 0.0


def choose(
    request: Request,
    model: ModelFiles,
    *,
    folder: Path,
    threads: int,
    probe: Callable[[Sequence[Variant], Sequence[int]], list[Choice]],
) -> Choice:
    """Choose the variant and batch size to run, from the results ``bench-DATE/results.json`` in ``folder`` or a probe.

    A fixed batch size of the model limits the choice; benchmarks with another number of threads do not count.

    Raises:
        UsageError: the runtime does not support the precision, or the model the batch size; nothing that was measured
            meets ``require``.
        RuntimeUnavailable: nothing was measured, and nothing works on this machine.
    """
    request = dataclasses.replace(request, batch_size=_supported_batch_size(request, model))
    if request.runtime != AUTO and request.batch_size is not None:
        return Choice(request.variant, request.batch_size)
    if measured := fastest_measured(request, model, folder=folder, threads=threads):
        return measured
    if request.require:
        raise UsageError(
            "no benchmark of these weights on this machine has a variant that meets --require",
            hint=f"compare the masks first: segx bench, with results in {folder}",
        )
    variants = [request.variant] if request.runtime != AUTO else candidates(request.precision or "fp32")
    on_cuda = any(runtime_info(variant.runtime).device == "cuda" for variant in variants)
    sizes = (request.batch_size,) if request.batch_size else _CUDA_BATCH_SIZES if on_cuda else (1,)
    if len(variants) == 1 and len(sizes) == 1:
        return Choice(variants[0], sizes[0])
    if not variants:
        raise RuntimeUnavailable(
            f"no runtime without PyTorch supports {request.precision} on this machine", hint="choose one with --runtime"
        )
    fastest = max(probe(variants, sizes), key=lambda choice: choice.images_per_s)
    reason = f"the fastest of a short probe, {fastest.images_per_s:.3g} images/s; `segx bench` compares all"
    return dataclasses.replace(fastest, reason=reason)


def _supported_batch_size(request: Request, model: ModelFiles) -> int | None:
    """Check the batch size against that of the file: the last batch may be smaller, so the only fixed size is 1."""
    if model.batch_size is None:
        return request.batch_size
    if model.batch_size != 1 or request.batch_size not in (None, 1):
        raise UsageError(
            f"{model.onnx} only takes batches of {model.batch_size}",
            hint="leave --batch-size out" if model.batch_size == 1 else "export it with a symbolic batch axis",
        )
    return 1


def fastest_measured(request: Request, model: ModelFiles, *, folder: Path, threads: int) -> Choice | None:
    """Return the fastest that passed its gate in the newest benchmark of these weights on this machine, if any fits."""
    try:
        files = sorted(folder.glob("bench-*/results.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    except OSError:  # one was removed meanwhile
        return None
    takes = {"onnx"} if model.checkpoint is None else {"onnx", "checkpoint"}
    any_precision = get_args(Precision) if request.runtime == AUTO else ("fp32",)
    precisions = any_precision if request.precision is None else (request.precision,)
    constraints = Constraints(require=request.require)
    for file in files:
        try:
            results = load_results(file)
        except ResultsError:
            continue
        if not _comparable(results, model, threads):
            continue
        cells = [cell for cell in fit_cells(results, constraints) if runtime_info(cell.runtime).takes in takes]
        fit = (
            cell
            for cell in cells
            if request.runtime in (AUTO, cell.runtime)
            if cell.precision in precisions
            if request.batch_size in (None, cell.batch_size)
        )
        if best := min(fit, key=lambda cell: cell.seconds_per_image, default=None):
            assert best.batch_size  # every measured cell has one
            rate = f"{1 / best.seconds_per_image:.3g} images/s at batch {best.batch_size}"
            return Choice(best.variant, best.batch_size, f"the fastest in {file.parent.name}, {rate}")
        if cells:
            return None
    return None


def _comparable(results: Results, model: ModelFiles, threads: int) -> bool:
    """Return whether results apply to this model and machine; the threshold does not affect speed."""
    host = results.machine
    here = (machine.cpu_name(), machine.usable_cores(), tuple(gpu.name for gpu in machine.gpus()))
    there = (host.cpu, host.cores_usable, tuple(gpu.name for gpu in host.gpus))
    same_model = results.model.weights_sha256 == model.weights_sha256 and (
        dataclasses.replace(results.model.spec, threshold=0.5) == dataclasses.replace(model.spec, threshold=0.5)
    )
    return same_model and here == there and results.options.threads == threads


def candidates(precision: Precision) -> list[Variant]:
    """Return the variants without PyTorch in a precision: on the GPU if there is one, else on the CPU."""
    device = "cpu" if machine.cuda_problem() else "cuda"
    return [
        Variant(info.name, precision)
        for info in RUNTIMES.values()
        if info.device == device and not info.torch and precision in info.precisions
        if info.name not in _SLOW_TO_BUILD
    ]


def probe_variants(
    workers: Workers,
    variants: Sequence[Variant],
    batch_sizes: Sequence[int],
    *,
    spec: ModelSpec,
    file_for: Callable[[Variant], Path],
    threads: int,
    on_progress: Callable[[str], None],
) -> list[Choice]:
    """Run each variant for about half a second at each batch size, skipping those that do not work.

    Raises:
        RuntimeUnavailable: none works; gives the first one's reason.
    """
    results: list[Choice] = []
    errors: list[SegxError] = []
    for variant in variants:
        on_progress(f"trying {variant}")
        engine = Engine(workers, variant.runtime)
        try:
            options = RuntimeOptions(threads=threads, precision=variant.precision)
            buffers = engine.load(engine_task(file_for(variant), spec, options, max(batch_sizes)))
            buffers.inputs[0][...] = 0.5
            engine.wait_until_ready()
            for size in batch_sizes:
                rate = size / _seconds_per_call(engine, size)
                results.append(Choice(variant, size, images_per_s=rate))
        except SegxError as error:
            errors.append(error)
            on_progress(f"{variant}: {error.message}")
        finally:
            engine.close()
    if not results:
        first = errors[0] if errors else RuntimeUnavailable("there is none", hint="choose one with --runtime")
        raise RuntimeUnavailable(f"no runtime works on this machine: {first.message}", hint=first.hint)
    return results


def _seconds_per_call(engine: Engine, batch_size: int) -> float:
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) <= _MIN_PROBE_CALLS or time.perf_counter() - begun < _MIN_PROBE_S:
        engine.send(Rows(0, 0, batch_size))
        seconds.append(engine.receive().infer_s)
    return statistics.median(seconds[1:])  # the first call of a batch size allocates memory and selects kernels
