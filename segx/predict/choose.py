"""Choose variant and batch size: the fastest that a benchmark measured on this machine, or that a short probe finds."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from segx.analysis.figures import best_of, displayed_rate, quality_of, verdict_of
from segx.analysis.recommend import Constraints, fit_cells
from segx.errors import ResultsError, RuntimeUnavailable, SegxError, UsageError
from segx.export.variants import ModelFiles, form_of
from segx.model.spec import ModelSpec
from segx.predict.engine import Engine, EngineTask, Rows
from segx.predict.options import AUTO, RuntimeRequest
from segx.results.store import load_results, recent_benches
from segx.results.types import Cell, Required, Results
from segx.runtimes import RUNTIMES, Device, Precision, RuntimeOptions, Variant, runtime_info
from segx.system import machine
from segx.system.files import sha256_of
from segx.system.processes import Workers
from segx.system.progress import Progress

# A single image leaves most of a GPU idle, but keeps every thread of a CPU busy.
_CUDA_BATCH_SIZES = (1, 4, 16)
_OTHER_IMAGES = "images prepared otherwise"
_MIN_PROBE_CALLS, _MIN_PROBE_S = 3, 0.5


@dataclass(frozen=True)
class Choice:
    """A variant and batch size, and why they were chosen or how fast they were in a probe.

    ``file`` is the one that was measured; None if nothing was.
    """

    variant: Variant
    batch_size: int
    reason: str = ""
    images_per_s: float = 0.0
    file: Path | None = None


def choose(
    request: RuntimeRequest,
    model: ModelFiles,
    *,
    folder: Path,
    threads: int,
    probe: Callable[[Sequence[Variant], Sequence[int]], list[Choice]],
    origin: str = "as requested",
    warn: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Choose the variant and batch size to run, from a benchmark or a probe.

    The benchmarks are those in ``folder`` and those that were started in this working directory, the newest first. A
    fixed batch size of the model limits the choice; benchmarks with another number of threads do not count. ``origin``
    says where a named runtime comes from. ``warn`` is called with what kept a benchmark from being used.

    Raises:
        UsageError: the runtime does not support the precision, or the model the batch size; nothing that was measured
            meets ``require``, or nothing in the benchmark that was asked for can be used.
        ResultsError: the benchmark that was asked for cannot be read.
        RuntimeUnavailable: nothing was measured, and nothing works on this machine.
    """
    if request.require not in (None, *get_args(Required)):
        raise UsageError(f"require {request.require!r} is not known", hint=f"give {', '.join(get_args(Required))}")
    reason = _reason(request, model, origin)
    request = dataclasses.replace(request, batch_size=_supported_batch_size(request, model))
    if request.runtime != AUTO and request.batch_size is not None and not request.bench:
        return Choice(request.variant, request.batch_size, reason)
    if measured := fastest_measured(request, model, folder=folder, threads=threads, warn=warn):
        return measured
    if request.bench:
        raise UsageError(
            f"nothing in {request.bench} fits this request", hint="leave --bench out, or bench this model again"
        )
    if request.require:
        raise UsageError(
            "no benchmark of these weights on this machine has a variant that meets --require",
            hint=f"compare the masks first: segx bench, with results in {folder}",
        )
    variants = [request.variant] if request.runtime != AUTO else candidates(request.precision or "fp32", request.device)
    on_cuda = any(runtime_info(variant.runtime).device == "cuda" for variant in variants)
    sizes = (request.batch_size,) if request.batch_size else _CUDA_BATCH_SIZES if on_cuda else (1,)
    if request.runtime == AUTO:
        variants = [each for each in variants if runtime_info(each.runtime).least_batch <= max(sizes)]
    if len(variants) == 1 and len(sizes) == 1:
        return Choice(variants[0], sizes[0], reason)
    if not variants:
        raise RuntimeUnavailable(
            f"no runtime without PyTorch supports {request.precision or 'fp32'} on this machine",
            hint="choose one with --runtime",
        )
    fastest = max(probe(variants, sizes), key=lambda choice: choice.images_per_s)
    reason = f"the fastest of a short probe, {fastest.images_per_s:.3g} images/s; `segx bench` compares all"
    return dataclasses.replace(fastest, reason=reason)


def _reason(request: RuntimeRequest, model: ModelFiles, origin: str) -> str:
    """Return why a variant and batch size are taken without a measurement."""
    reason = "the only one here without PyTorch" if request.runtime == AUTO else origin
    if request.batch_size is not None:
        return reason
    if model.batch_size is not None:
        return f"{reason}; the file takes only batches of {model.batch_size}"
    return f"{reason}; one image at a time, as no bench says what is faster"


def _supported_batch_size(request: RuntimeRequest, model: ModelFiles) -> int | None:
    """Check the batch size against that of the file."""
    if model.batch_size is None:
        return request.batch_size
    if request.batch_size not in (None, model.batch_size):
        raise UsageError(f"{model.onnx} only takes batches of {model.batch_size}", hint="leave --batch-size out")
    return model.batch_size


def fastest_measured(
    request: RuntimeRequest,
    model: ModelFiles,
    *,
    folder: Path,
    threads: int,
    warn: Callable[[str], None] = lambda _: None,
) -> Choice | None:
    """Return the fastest that passed its gate in the newest benchmark of this model on this machine, if any fits.

    It runs the very file that was measured; a variant whose file is gone or has changed is passed over.
    """
    takes = {"onnx"} if model.checkpoint is None else {"onnx", "checkpoint"}
    any_precision = get_args(Precision) if request.runtime == AUTO else ("fp32",)
    precisions = any_precision if request.precision is None else (request.precision,)
    told = {*model.other_pixels}
    for bench, results in _benches(request, folder):
        if obstacle := _obstacle(results, model, threads):
            if request.bench:
                raise UsageError(f"{bench} is of {obstacle}", hint="bench this model here, or leave --bench out")
            if obstacle.startswith(_OTHER_IMAGES) and (pixels := results.model.spec.pixels) not in told:
                told.add(pixels)
                warn(f"{bench} is of these weights with {obstacle}: is one of the two wrong?")
            continue
        # What the bench recommends is the same here; a runtime that is named may be another.
        require = request.require or (results.options.require if request.runtime == AUTO else None)
        cells = [
            cell
            for cell in fit_cells(results, Constraints(require=require))
            if (info := runtime_info(cell.runtime)).takes in takes and not info.in_browser
        ]
        fit = [
            cell
            for cell in cells
            if request.runtime in (AUTO, cell.runtime)
            if request.device in (None, runtime_info(cell.runtime).device)
            if cell.precision in precisions
            if request.batch_size in (None, cell.batch_size)
        ]
        while cell := best_of(fit, results):
            if file := _measured_file(cell.variant, results, model):
                assert cell.batch_size  # every measured cell has one
                rate = f"{displayed_rate(cell):g} images/s at batch {cell.batch_size}"
                reason = f"the fastest in {bench.name}, {rate}; masks: {_masks(results, cell)}"
                return Choice(cell.variant, cell.batch_size, reason, file=file)
            warn(f"{bench.name} measured {cell.variant} with a file that is gone or has changed: passed over")
            fit = [other for other in fit if other.variant != cell.variant]
        if cells:
            return None
    return None


def _benches(request: RuntimeRequest, folder: Path) -> Iterator[tuple[Path, Results]]:
    """Yield the benchmarks that may count, each with its folder, the newest first."""
    if request.bench:
        yield Path(request.bench), load_results(Path(request.bench))
        return
    stamps = {}
    for bench in {path.absolute() for path in (*folder.glob("*"), *recent_benches())}:
        with contextlib.suppress(OSError):
            stamps[bench] = (bench / "results.json").stat().st_mtime
    for bench in sorted(stamps, key=stamps.__getitem__, reverse=True):
        with contextlib.suppress(ResultsError):
            yield bench, load_results(bench)


def _obstacle(results: Results, model: ModelFiles, threads: int) -> str:
    """Return what keeps results from applying here, empty if nothing does; the threshold does not affect speed."""
    host, spec = results.machine, dataclasses.replace(results.model.spec, threshold=model.spec.threshold)
    here = (machine.cpu_name(), machine.cpu_flags(), machine.usable_cores(), [gpu.name for gpu in machine.gpus()])
    if results.model.weights_sha256 != model.weights_sha256:
        return "other weights"
    if spec.pixels != model.spec.pixels:
        return f"{_OTHER_IMAGES} ({spec.pixels}; now {model.spec.pixels})"
    if spec != model.spec:
        return f"another model ({spec}; now {model.spec})"
    if (host.cpu, host.cpu_flags, host.cores_usable, [gpu.name for gpu in host.gpus]) != here:
        return "another machine"
    return "" if results.options.threads == threads else f"{results.options.threads} threads, not {threads}"


def _measured_file(variant: Variant, results: Results, model: ModelFiles) -> Path | None:
    """Return the file that a variant was measured with, if it is still there."""
    form, facts = form_of(variant), results.model
    if form == "checkpoint":
        return model.checkpoint
    made = facts.derived.get(form)
    path, digest = (facts.onnx, facts.onnx_sha256) if form == "onnx" else (made and made.path, made and made.sha256)
    with contextlib.suppress(OSError):
        if path and sha256_of(Path(path)) == digest:
            return Path(path)
    return None


def _masks(results: Results, cell: Cell) -> str:
    """Return how a cell's masks compared with the reference's."""
    parts: list[str] = [verdict_of(results, cell) or "not judged"]
    if cell.parity and cell.parity.flipped_pixels:
        parts[0] += f" ({cell.parity.flipped_pixels} of {cell.parity.pixels} pixels)"
    if quality := quality_of(results, cell):
        parts.append(f"quality {quality}")
    return ", ".join(parts)


def candidates(precision: Precision, device: Device | None = None) -> list[Variant]:
    """Return the variants without PyTorch in a precision: on ``device``, else on the GPU if there is one."""
    device = device or ("cpu" if machine.cuda_problem() else "cuda")
    return [
        Variant(info.name, precision)
        for info in RUNTIMES.values()
        if info.device == device and not info.torch and precision in info.precisions
        if not info.in_browser and not info.builds_engine
    ]


def probe_variants(
    workers: Workers,
    variants: Sequence[Variant],
    batch_sizes: Sequence[int],
    *,
    spec: ModelSpec,
    file_for: Callable[[Variant], Path],
    threads: int,
    progress: Progress,
) -> list[Choice]:
    """Run each variant for about half a second at each batch size, skipping those that do not work.

    Raises:
        RuntimeUnavailable: none works; gives the first one's reason.
    """
    results: list[Choice] = []
    errors: list[SegxError] = []
    for variant in variants:
        progress.say(f"trying {variant}")
        engine = Engine(workers, variant.runtime)
        try:
            options = RuntimeOptions(threads=threads, precision=variant.precision)
            task = EngineTask(model=file_for(variant), spec=spec, options=options, batch_size=max(batch_sizes))
            buffers = engine.load(task)
            buffers.inputs[0][...] = 0.5
            engine.wait_until_ready()
            for size in batch_sizes:
                rate = size / _seconds_per_call(engine, size)
                results.append(Choice(variant, size, images_per_s=rate))
        except SegxError as error:
            errors.append(error)
            progress.say(f"{variant}: {error.message}")
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
