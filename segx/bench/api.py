"""``segx.benchmark``: check the options, prepare the images, run the session."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

from segx.bench.inputs import Inputs, prepare_inputs, set_aside, unlike
from segx.bench.plan import variants_of
from segx.bench.session import Session, WallClock
from segx.bench.worker import CellWorkers
from segx.errors import NotComparable, OutputError, SegxError, UsageError
from segx.export.int8 import calibration_images
from segx.export.variants import ModelFiles, resolve_model, write_calibration_list
from segx.masks.folders import images_of
from segx.masks.preprocess import FIRST_IMAGES, doubt_of_pixels
from segx.model.spec import ModelSpec
from segx.model.synthetic import TRAINED_ON_SCENES
from segx.results.provenance import changed, was_written_for
from segx.results.settings import differences
from segx.results.store import load_results, recordable, remember_bench, to_json
from segx.results.types import BenchOptions, Required, Results
from segx.runtimes import RUNTIMES, MemoryProfile, Precision, Scope, precision_support, resolve_names, runtime_info
from segx.system import machine
from segx.system.files import (
    LOCK_NAME,
    folder_for_results,
    lock_folder,
    named_path,
    temporary_folder,
    unlock_folder,
    write_text,
)
from segx.system.progress import Progress


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The images of a bench.

    Attributes:
        images: folder of images; None generates scenes, whose ground truth is known.
        masks: folder of ground truth masks under the images' names; None if there are none.
        calibration: other images to quantise on, a folder or a ``.txt`` list of paths; None sets some of ``images``
            aside, which are then not measured, or generates scenes if there are no ``images``.
        num_images: use at most this many.
    """

    images: Path | str | None = None
    masks: Path | str | None = None
    calibration: Path | str | None = None
    num_images: int = 64


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How long each cell is sampled.

    Attributes:
        warmup: untimed calls before sampling.
        min_time_s: least seconds of timed calls per cell.
        min_runs: least number of timed calls per cell; in the pipeline scope always 3 passes.
        max_time_s: seconds of timed calls per cell after which to stop although the median is not settled.
        seed: of the random order of cells in each round.
        processes: worker processes of each cell, one after the other, among which the times are divided: memory layout
            and placement of threads differ from process to process.
        budget_s: seconds of timed calls in all, after which cells stop early; None for no limit.
    """

    warmup: int = 2
    min_time_s: float = 5.0
    min_runs: int = 10
    max_time_s: float = 20.0
    seed: int = 0
    processes: int = 2
    budget_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the runtimes are set up.

    Attributes:
        threads: of every runtime; None uses all usable processors.
        memory_profile: ``low`` makes ONNX Runtime take less memory at some cost in speed.
        settings: of single engines: ``cudnn_conv_algo_search``, ``prefer_nhwc``, ``cuda_graph``.
    """

    threads: int | None = None
    memory_profile: MemoryProfile = "default"
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a worker is stopped.

    Attributes:
        timeout_s: seconds without an answer.
        memory_limit_bytes: private memory that a CPU worker may take for model and inference; None for the free memory.
            The pipeline scope has no limit.
    """

    timeout_s: float = 600.0
    memory_limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How far masks may differ from the reference's; None for the limits of the precision, and for no requirement.

    Attributes:
        min_iou: lowest IoU of an image's mask.
        max_flips: highest share of pixels that flip.
        max_loss: loss of IoU with the ground truth up to which masks count as no worse.
        require: recommend only what has ``identical`` masks, or masks that differ by ``noise`` or along ``edges`` only.
    """

    min_iou: float | None = None
    max_flips: float | None = None
    max_loss: float = 1e-3
    require: Required | None = None


@dataclass(frozen=True, kw_only=True)
class BenchOutput:
    """Where the results of a bench go.

    Attributes:
        folder: for ``results.json`` and ``pictures``; None writes no results.
        resume: continue the bench whose results are in the folder, and retry its failed cells. All options must
            be the same, except timeout, memory limit, budget and ``require``. A bench without results starts over.
        command: how to repeat the bench, kept in the results.
        progress: shows the steps.
        on_results: called with the results after every cell, once they are saved.
    """

    folder: Path | str | None = None
    resume: bool = False
    command: str = ""
    progress: Progress = field(default_factory=Progress)
    on_results: Callable[[Results], None] = lambda _: None


# Precisions that depend on the machine, and how long int8 may take to prepare, per engine, if nobody asked for it.
_BY_MACHINE = {"native", "auto"}
_AUTO_INT8_S = 60.0
_LARGEST_BATCH = 2**20  # no machine has the memory for such batches, and listing their images takes long


def benchmark(
    checkpoint: Path | str | None = None,
    *,
    model: Path | str | None = None,
    spec: ModelSpec | None = None,
    runtimes: Sequence[str] = ("all",),
    precisions: Sequence[Precision | Literal["all", "native", "auto"]] = ("auto",),
    scopes: Sequence[Scope] = ("forward",),
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    data: DataOptions = DataOptions(),
    sampling: SamplingOptions = SamplingOptions(),
    engine: EngineOptions = EngineOptions(),
    limits: Limits = Limits(),
    gate: Gate = Gate(),
    output: BenchOutput | Path | str | None = None,
) -> Results:
    """Compare runtimes on identical batches: speed, memory, and whether the masks are still the same.

    Workers are processes: a script that calls this must guard its main part with ``if __name__ == "__main__":``, as
    ``multiprocessing`` requires.

    Args:
        checkpoint: trained weights, exported first if a runtime needs that; see ``load_model``.
        model: ONNX file to use instead of exporting; a copy of one that segx did not export is made as ``spec`` says.
            At least one of the two must be given.
        spec: the model's description; None reads it from the files.
        runtimes: names as on the command line (``resolve_names``), or ``all``; one with a precision, as in
            ``openvino-cpu:int8``, is measured in that alone.
        precisions: those that each runtime supports are measured, or ``all``; fp32 is strict, without TF32. ``native``
            is fp32 and the lower ones that this machine has instructions for and that need no calibration; ``auto`` is
            these and int8 on the CPU if the model was trained on scenes like the generated ones, or ``images`` or
            ``calibration`` is given, for engines for which it can be prepared within a minute.
        scopes: ``forward`` from host array to host array; ``device`` with the data left on the device; ``pipeline``
            from image file to mask file, each timed run a pass over all images.
        batch_sizes: images per call.
        data: the images.
        sampling: how long each cell is sampled.
        engine: how the runtimes are set up.
        limits: when a worker is stopped.
        gate: how far masks may differ.
        output: where the results go; a path means its folder.

    Returns:
        All results. A cell that failed is a record among them.

    Raises:
        UsageError: an option is invalid.
        CheckpointError, ArtifactError, ExportError, ImageError: the model or the images cannot be used.
        OutputError: the results cannot be written.
        ResultsError, NotComparable: there is nothing to resume, or weights, inputs, options or the environment differ.
        KeyboardInterrupt: interrupted; what was measured is saved.
    """
    wall = WallClock()
    if not isinstance(output, BenchOutput):
        output = BenchOutput(folder=output)
    folder = _path(output.folder)
    runtimes, precisions, scopes, batch_sizes = map(_listed, (runtimes, precisions, scopes, batch_sizes))
    if wrong := next((each for each in precisions if each not in (*get_args(Precision), *_BY_MACHINE, "all")), None):
        hint = f"use {', '.join(get_args(Precision))}, native, auto or all"
        raise UsageError(f"unknown precision {wrong}", hint=hint)
    int8_asked_for = bool({"int8", "all"} & {*precisions}) or any(":int8" in name for name in runtimes)
    options = BenchOptions(
        **_resolve_variants(runtimes, precisions, with_int8=True),
        scopes=tuple(dict.fromkeys(scopes)),
        batch_sizes=tuple(dict.fromkeys(batch_sizes)),
        **dataclasses.asdict(sampling),
        **dataclasses.asdict(limits),
        **dataclasses.asdict(gate),
        threads=engine.threads or machine.usable_cores(),
        memory_profile=engine.memory_profile,
        engine_options=dict(engine.settings),
        calibration=str(Path(data.calibration).absolute()) if data.calibration else None,
    )
    _check_options(options, data)
    options = recordable(options)
    _check_variants(options)
    _check_require(options)
    _check_calibration(_path(data.calibration), options, precisions, output.progress.warn)
    files = resolve_model(_path(checkpoint), _path(model), spec, progress=output.progress)
    untrusted = files.weights_sha256 not in TRAINED_ON_SCENES
    without_images = _resolve_variants(runtimes, precisions, with_int8=False) if untrusted else {}
    options, aside = _calibrated(options, data, without_images, warn=output.progress.warn)
    on_results = output.on_results

    def save(results: Results) -> None:
        if folder:
            write_text(folder / "results.json", to_json(results))
        on_results(results)

    with (
        _reserved(folder, resume=output.resume, warn=output.progress.warn)
        if folder
        else contextlib.nullcontext() as before,
        temporary_folder() as scratch,
    ):
        if folder:
            remember_bench(folder)
        workers = CellWorkers(threads=options.threads)
        if files.checkpoint and any(runtime_info(name).torch for name in options.runtimes):
            workers.prepare(torch=True)  # importing it takes longer than to read the images
        output.progress.say("reading images")
        inputs = prepare_inputs(
            scratch / "inputs.f32",
            files.spec,
            folder=_path(data.images),
            count=data.num_images,
            masks=_path(data.masks),
            without=frozenset(aside),
            warn=output.progress.warn,
        )
        inputs = _doubted(inputs, files, output.progress.warn)
        if data.calibration and "int8" in options.precisions:
            with contextlib.suppress(SegxError):  # told where int8 is made
                calibration, _ = calibration_images(files.spec, Path(data.calibration))
                if difference := unlike(calibration, inputs.read(0, min(len(calibration), len(inputs.names)))):
                    output.progress.warn(
                        f"the images in {data.calibration} are unlike those measured ({difference}): calibrate int8 on "
                        "images like those to be segmented"
                    )
        session = Session(
            options,
            files,
            inputs,
            workers,
            scratch=scratch,
            pictures=folder,
            save=save,
            progress=output.progress,
            wall=wall,
            int8_within_s=None if int8_asked_for else _AUTO_INT8_S,
        )
        results = session.new_results(output.command)
        if before:
            results = _resumed(before, results)
        return session.run(results)


def _calibrated(
    options: BenchOptions, data: DataOptions, without_images: Mapping[str, Any], *, warn: Callable[[str], None]
) -> tuple[BenchOptions, list[Path]]:
    """Set images aside to calibrate int8 on, if that is measured; return the options and the images.

    If there are none, int8 is calibrated on generated scenes, where the options ``without_images`` still have it.
    """
    if data.calibration or "int8" not in options.precisions:
        return options, []
    if data.images and (aside := set_aside(Path(data.images), data.num_images)):
        return dataclasses.replace(options, calibration=str(write_calibration_list(aside).absolute())), aside
    options = dataclasses.replace(options, **without_images)
    if data.images and "int8" in options.precisions:
        warn(f"{data.images} has too few images to set some aside: int8 is calibrated on generated scenes")
    return options, []


def _doubted(inputs: Inputs, files: ModelFiles, warn: Callable[[str], None]) -> Inputs:
    """Record why images may be prepared otherwise than in training; generated scenes are not compared."""
    first = inputs.read(0, min(FIRST_IMAGES, len(inputs.names)))
    doubt = doubt_of_pixels(first, files.spec, files.checkpoint if inputs.folder else None)
    if doubt:
        warn(doubt)
    return dataclasses.replace(inputs, doubt=doubt)


# What a bench and its command write.
_WRITTEN = ("results.json", "table.md", "table.csv", "report.html", "pictures")


@contextlib.contextmanager
def _reserved(folder: Path, *, resume: bool, warn: Callable[[str], None]) -> Iterator[Results | None]:
    """Create and lock the folder of a bench; give the results to go on with, None if none were saved.

    Raises:
        ResultsError: there is nothing to resume.
        OutputError: it cannot be written, another run uses it, or it holds files that would be replaced.
    """
    # A bench that is killed before its first cell is measured leaves only its lock.
    begun = (folder / LOCK_NAME).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if resume and not begun:
        load_results(folder)
    with folder_for_results(folder), contextlib.ExitStack() as at_exit:
        at_exit.callback(unlock_folder, folder, lock_folder(folder))
        standing = [folder / name for name in _WRITTEN if os.path.lexists(folder / name)]
        saved = bool(standing) and standing[0].name == _WRITTEN[0]
        if saved and not resume:
            hint = f"continue it with --resume {folder}, or choose another folder"
            raise OutputError(f"{folder} already holds a bench", hint=hint)
        before = load_results(folder) if saved else None
        if foreign := next((path for path in standing[saved:] if not (before and was_written_for(path, before))), None):
            hint = "move it away, or choose another folder"
            raise OutputError(f"{foreign} already exists, and a bench writes a file of that name", hint=hint)
        if resume and not before:
            warn(f"{folder} has no results yet: the bench starts over")
        yield before


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else named_path(given)


def _resolve_variants(runtimes: Sequence[str], precisions: Sequence[str], *, with_int8: bool) -> dict[str, Any]:
    """Return the options that say which variants are measured."""
    asked = [name.partition(":") for name in resolve_names(runtimes)]
    named = get_args(Precision) if "all" in precisions else [each for each in precisions if each not in _BY_MACHINE]
    by_machine = _BY_MACHINE & {*precisions}
    if not by_machine and not any(precision for _, _, precision in asked):
        return {"runtimes": tuple(name for name, _, _ in asked), "precisions": tuple(dict.fromkeys(named))}

    def chosen(name: str) -> list[str]:
        info = runtime_info(name)
        support = precision_support(info)
        native = [each for each, found in support.items() if by_machine and found == "native" and each != "int8"]
        with_int8_too = with_int8 and "auto" in precisions and info.device == "cpu" and support["int8"] == "native"
        offered = [each for each in named if each in info.precisions or [each] == [*precisions]]
        return [*dict.fromkeys([*offered, *native, *(["int8"] if with_int8_too else [])])]

    variants = [(name, each) for name, _, single in asked for each in ([single] if single else chosen(name))]
    return {
        "runtimes": tuple(dict.fromkeys(name for name, _, _ in asked)),
        "precisions": tuple(dict.fromkeys(precision for _, precision in variants)),
        "variants": tuple(dict.fromkeys(f"{name}:{precision}" for name, precision in variants)),
    }


def _check_options(options: BenchOptions, data: DataOptions) -> None:
    for name, chosen, known in (
        ("precision", options.precisions, get_args(Precision)),
        ("scope", options.scopes, get_args(Scope)),
        ("memory profile", (options.memory_profile,), get_args(MemoryProfile)),
        ("requirement", (options.require or "edges",), get_args(Required)),
    ):
        wrong = ", ".join(str(value) for value in chosen if value not in known)
        if wrong or not chosen:
            raise UsageError(f"unknown {name} {wrong}" if wrong else f"no {name} given", hint=f"use {', '.join(known)}")
    settings = "; ".join(f"{name} has {', '.join(info.settings)}" for name, info in RUNTIMES.items() if info.settings)
    for name, setting in options.engine_options.items():
        offered = next((s[name] for r in options.runtimes if name in (s := runtime_info(r).settings)), None)
        if offered is None:
            raise UsageError(f"none of the runtimes has a setting {name!r}", hint=settings)
        if setting not in offered:
            raise UsageError(f"{name} cannot be {setting!r}", hint=f"use {', '.join(offered)}")
    for name, value, least in (
        ("batch size", min(options.batch_sizes, default=0), 1),
        ("number of images", data.num_images, 1),
        ("warmup", options.warmup, 0),
        ("processes", options.processes, 1),
        ("min-runs", options.min_runs, 1),
        ("min-time", options.min_time_s, 0),
        ("threads", options.threads, 1),
        ("max-time", options.max_time_s, 0),
        ("timeout", options.timeout_s, 1),
        ("memory limit", 1 if options.memory_limit_bytes is None else options.memory_limit_bytes, 1),
        ("budget", 1 if options.budget_s is None else options.budget_s, 0),
    ):
        if value < least:
            raise UsageError(f"{name} {value:g} is too small", hint=f"use at least {least}")
    if (largest := max(options.batch_sizes)) > _LARGEST_BATCH:
        raise UsageError(f"batch size {largest:,} is too large", hint=f"use at most {_LARGEST_BATCH:,}")
    if data.masks and not data.images:
        raise UsageError("true masks are given without images", hint="give the images they belong to with --images DIR")


def _listed(values: Any) -> tuple[Any, ...]:
    """Return what an iterable has, or the single value that is none."""
    return (values,) if isinstance(values, (str, Integral)) else tuple(values)


def _check_variants(options: BenchOptions) -> None:
    if not variants_of(options):
        infos = map(runtime_info, options.runtimes)
        offered = "; ".join(f"{info.name} has {', '.join(info.precisions)}" for info in infos)
        raise UsageError(f"none of the runtimes computes in {' or '.join(options.precisions)}", hint=offered)


def _check_require(options: BenchOptions) -> None:
    if options.require and "forward" not in options.scopes:
        hint = "measure the forward scope too, or leave --require out"
        raise UsageError("--require applies to the recommendation, which needs the forward scope", hint=hint)


def _check_calibration(
    images: Path | None, options: BenchOptions, precisions: Sequence[str], warn: Callable[[str], None]
) -> None:
    """Refuse calibration images that are missing or have no effect; warn if that depends on the machine.

    Raises:
        ImageError: there are no images.
        UsageError: no int8 was asked for.
    """
    if images is None or (images_of(images) and "int8" in options.precisions):
        return
    if "auto" not in precisions:
        hint = "add --precision int8, or leave --calibration out"
        raise UsageError("calibration images are given, but int8 is not measured", hint=hint)
    warn("--calibration has no effect: int8 is not measured here without --precision int8")


# They decide whether a cell is measured or recommended, not what is measured.
MAY_CHANGE = ("timeout_s", "memory_limit_bytes", "budget_s", "require")
# Of the environment: neither is part of what runs.
_OUTSIDE = ("git commit", "governor")


def _resumed(before: Results, now: Results) -> Results:
    """Return the results of a bench to go on with: those of the cells that were measured to the end.

    Raises:
        NotComparable: the bench was a different one, or in another environment; names what differs and both values.
    """
    found: dict[str, tuple[Any, ...]] = {**differences(before, now)}
    for name, old in vars(before.options).items():
        if old != (new := getattr(now.options, name)) and name not in MAY_CHANGE:
            found.setdefault(name, (old, new))
    found |= {name: values for name, values in changed(before, now).items() if name not in _OUTSIDE}
    if found:
        name, values = next(iter(found.items()))
        raise NotComparable(
            f"the bench to resume had a different {name}: {'; now '.join(map(_in_words, values))}",
            hint="keep what it started with, or start a new bench",
        )
    cut_short = {"interrupted"}
    if before.options.budget_s != now.options.budget_s:
        cut_short.add("budget spent")
    kept = tuple(
        cell
        for cell in before.cells
        if cell.measured and cell.stopped not in cut_short
        # A cell is saved after each of its processes.
        if len({turn.process for turn in cell.rounds}) == now.options.processes
    )
    return dataclasses.replace(before, options=now.options, cells=kept)


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        value = tuple(f"{name}={each}" for name, each in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)
