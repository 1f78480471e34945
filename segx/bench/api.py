"""The bench as one function: check what was asked for, put it together, run it."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from segx.analysis.compare import differences
from segx.bench.inputs import prepare_inputs
from segx.bench.session import Job
from segx.bench.stopwatch import Stopwatch
from segx.errors import NotComparable, UsageError
from segx.export.variants import resolve_model
from segx.model.spec import ModelSpec
from segx.results.store import load_results
from segx.results.types import BenchOptions, Results
from segx.runtimes import RUNTIMES, MemoryProfile, Precision, Scope, resolve_names, runtime_info
from segx.system import machine
from segx.system.files import folder_for_results
from segx.system.progress import Progress, Silent


def benchmark(
    checkpoint: Path | str | None = None,
    *,
    model: Path | str | None = None,
    spec: ModelSpec | None = None,
    runtimes: Sequence[str] = ("all",),
    precisions: Sequence[Precision | Literal["all"]] = ("fp32",),
    scopes: Sequence[Scope] = ("forward",),
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    images: Path | str | None = None,
    masks: Path | str | None = None,
    calibration: Path | str | None = None,
    engine_options: Mapping[str, str] | None = None,
    num_images: int = 64,
    warmup: int = 2,
    min_time_s: float = 5.0,
    min_runs: int = 10,
    max_time_s: float = 20.0,
    seed: int = 0,
    threads: int | None = None,
    memory_profile: MemoryProfile = "default",
    budget_s: float | None = None,
    timeout_s: float = 600.0,
    memory_limit_bytes: int | None = None,
    min_iou: float | None = None,
    max_flips: float | None = None,
    output: Path | str | None = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Results:
    """Compare runtimes on identical batches: speed, memory, and whether the masks are still the same.

    Workers are processes of their own: a script that calls this must guard its main part with
    ``if __name__ == "__main__":``, as ``multiprocessing`` asks of every script.

    Args:
        checkpoint: trained weights; exported first where a runtime needs that. See ``load_model``.
        model: an exported ONNX file to use instead of exporting. One of the two must be given.
        spec: the model's description; None takes what the files say.
        runtimes: names, or ``all``.
        precisions: which of those that each runtime has, or ``all``; fp32 is strict, without TF32.
        scopes: ``forward`` is host array in, host array out; ``device`` leaves both on the device, where there is one;
            ``pipeline`` is image file in, mask file out, each timed run a pass over all images.
        batch_sizes: images per call, each at least 1.
        images: folder of images; None generates scenes, whose true masks are known.
        masks: folder of true masks under the images' names; None where there are none.
        calibration: folder of images to quantise on, other ones than those above; None generates scenes.
        engine_options: settings of single engines: ``cudnn_conv_algo_search``, ``prefer_nhwc``, ``cuda_graph``.
        num_images: how many images, at most; fewer where the folder holds fewer.
        warmup: untimed calls before sampling.
        min_time_s: seconds of timed calls per cell, at least.
        min_runs: timed calls per cell, at least; in the pipeline scope 3 passes, whatever this says.
        max_time_s: seconds of timed calls per cell after which to give up on a settled median.
        seed: of the orders in which cells take turns.
        threads: processors of every runtime; None means all that are usable.
        memory_profile: ``low`` has ONNX Runtime take less memory for some speed.
        budget_s: seconds of timed calls in all, spent where they settle most; cells stop early to keep it.
        timeout_s: seconds after which a silent worker is given up on.
        memory_limit_bytes: private memory that a CPU worker may take for model and inference; None for what is free.
            The pipeline scope has no limit.
        min_iou: lowest IoU an image's mask may have against the reference's; None for what the precision allows.
        max_flips: share of pixels that may flip; None for what the precision allows.
        output: folder for ``results.json``, ``table.md``, ``table.csv`` and ``pictures``; None writes nothing.
        resume: go on with the run whose results are in ``output``; the options must be the same as then.
        command: how to repeat this bench, kept in the results.
        progress: told what is being done.

    Returns:
        All results; a cell that failed is a record among them.

    Raises:
        UsageError: an option makes no sense.
        CheckpointError, ArtifactError, ExportError, ImageError: the model or the images cannot be used.
        OutputError: results cannot be written.
        ResultsError, NotComparable: there is nothing to resume, or weights, inputs, options or machine have changed.
        KeyboardInterrupt: interrupted; what was measured is saved.
    """
    options = BenchOptions(
        runtimes=tuple(resolve_names(runtimes)),
        precisions=_resolve_precisions(precisions),
        scopes=tuple(dict.fromkeys(scopes)),
        batch_sizes=tuple(dict.fromkeys(batch_sizes)),
        warmup=warmup,
        min_time_s=min_time_s,
        min_runs=min_runs,
        max_time_s=max_time_s,
        seed=seed,
        threads=threads or machine.usable_cores(),
        memory_profile=memory_profile,
        budget_s=budget_s,
        timeout_s=timeout_s,
        memory_limit_bytes=memory_limit_bytes,
        min_iou=min_iou,
        max_flips=max_flips,
        calibration=str(calibration) if calibration else None,
        engine_options=dict(engine_options or {}),
    )
    _check_options(options, num_images)
    if masks and not images:
        raise UsageError("true masks without images", hint="give the images they belong to, with --images DIR")
    progress, clock = progress or Silent(), Stopwatch()
    folder = Path(output) if output else None
    files = resolve_model(Path(checkpoint) if checkpoint else None, Path(model) if model else None, spec)
    with (
        folder_for_results(folder) if folder else contextlib.nullcontext(),
        tempfile.TemporaryDirectory(prefix="segx-") as scratch,
    ):
        progress.say("reading images")
        inputs = prepare_inputs(
            Path(scratch) / "inputs.f32",
            files.spec,
            folder=Path(images) if images else None,
            count=num_images,
            masks=Path(masks) if masks else None,
        )
        job = Job(options, files, inputs, Path(scratch), folder, progress, clock)
        results = job.empty_results(command)
        if resume:
            results = _resumed(load_results(folder or Path()), results)
        job.prepare(results)
        return job.measure_all(results)


def _resolve_precisions(asked: Sequence[Precision | Literal["all"]]) -> tuple[Precision, ...]:
    if "all" in asked:
        return get_args(Precision)
    return tuple(dict.fromkeys(precision for precision in asked if precision != "all"))


def _check_options(options: BenchOptions, num_images: int) -> None:
    for name, chosen, known in (
        ("precision", options.precisions, get_args(Precision)),
        ("scope", options.scopes, get_args(Scope)),
        ("memory profile", (options.memory_profile,), get_args(MemoryProfile)),
    ):
        if wrong := [value for value in chosen if value not in known] or not chosen:
            raise UsageError(f"no {name} {wrong}", hint=f"give {', '.join(known)}")
    for name, chosen_value in options.engine_options.items():
        offered = next((s[name] for r in options.runtimes if name in (s := runtime_info(r).settings)), None)
        if offered is None:
            raise UsageError(f"none of the runtimes has a setting {name!r}", hint=_settings_there_are())
        if chosen_value not in offered:
            raise UsageError(f"{name} cannot be {chosen_value!r}", hint=f"give {', '.join(offered)}")
    for name, value, least in (
        ("batch size", min(options.batch_sizes, default=0), 1),
        ("number of images", num_images, 1),
        ("warmup", options.warmup, 0),
        ("min-runs", options.min_runs, 1),
        ("min-time", options.min_time_s, 0),
        ("threads", options.threads, 1),
        ("max-time", options.max_time_s, 0),
        ("timeout", options.timeout_s, 1),
        ("memory limit", 1 if options.memory_limit_bytes is None else options.memory_limit_bytes, 1),
        ("budget", 1 if options.budget_s is None else options.budget_s, 0),
    ):
        if value < least:
            raise UsageError(f"{name} {value:g} is too small", hint=f"give at least {least}")


def _settings_there_are() -> str:
    return "; ".join(f"{name} has {', '.join(info.settings)}" for name, info in RUNTIMES.items() if info.settings)


def _resumed(before: Results, now: Results) -> Results:
    """The results of an interrupted run, to go on with.

    Raises:
        NotComparable: it was another run; names the field and both values.
    """
    changed = differences(before, now)
    for field in dataclasses.fields(BenchOptions):
        values = getattr(before.options, field.name), getattr(now.options, field.name)
        if values[0] != values[1]:
            changed.setdefault(field.name, (str(values[0]), str(values[1])))
    if changed:
        name, (old, new) = next(iter(changed.items()))
        raise NotComparable(
            f"the run to resume had another {name}: {old}, now {new}", hint="repeat it as it was, or start a new one"
        )
    return dataclasses.replace(before, cells=tuple(c for c in before.cells if c.stopped != "interrupted"))
