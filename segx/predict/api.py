"""Segment images with one function: start the engine, choose what it runs, and run it over all images."""

# ruff: noqa: PLC0415 - the engine's process is started before anything heavy is imported here

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from segx.errors import UsageError
from segx.model.spec import ModelSpec
from segx.predict.options import AUTO, OutputOptions, RuntimeRequest
from segx.runtimes import RuntimeOptions, Variant
from segx.system import machine
from segx.system.files import is_url, named_path
from segx.system.processes import Workers
from segx.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from segx.export.variants import ModelFiles
    from segx.masks.image_io import Remarks
    from segx.predict.choose import Choice
    from segx.predict.engine import EngineTask
    from segx.predict.pipeline import PipelineReport
    from segx.predict.sources import Source

_BENCHMARKS = Path("artifacts")
_DEFAULTS = OutputOptions()
# Options that a resumed run may change.
_WITHOUT_EFFECT_ON_MASKS = ("resume", "fsync", "on_error")


@dataclass(frozen=True, kw_only=True)
class PredictReport:
    """What a prediction did.

    Attributes:
        choice: the variant and batch size that ran, and why.
        spec: of the model.
        source: name of the input.
        output: folder or URL of the masks.
        before: number of images that an earlier run into the folder had finished.
        notes: what to know about the images, one fact a line.
        pipeline: what became of the images, and where the time went.
    """

    choice: Choice
    spec: ModelSpec
    source: str
    output: Path | str
    before: int
    notes: tuple[str, ...]
    pipeline: PipelineReport


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a prediction runs, and its ``settings``, which decide what the masks look like."""

    choice: Choice
    files: ModelFiles
    spec: ModelSpec
    task: EngineTask
    settings: dict[str, Any]

    def report(
        self,
        images: Source,
        output: Path | str,
        before: int,
        remarks: Remarks,
        pipeline: PipelineReport,
        progress: Progress,
    ) -> PredictReport:
        """Tell what to know about the images, and return what was done."""
        notes = tuple(filter(None, (images.passed_over.line, *remarks.lines())))
        for note in notes:
            progress.warn(note)
        return PredictReport(
            choice=self.choice,
            spec=self.spec,
            source=images.name,
            output=output,
            before=before,
            notes=notes,
            pipeline=pipeline,
        )


def segment(
    source: Path | str,
    output: Path | str,
    *,
    checkpoint: Path | str | None = None,
    model: Path | str | None = None,
    spec: ModelSpec | None = None,
    runtime: RuntimeRequest | str = AUTO,
    threshold: float | None = None,
    options: OutputOptions = _DEFAULTS,
    stdin: BinaryIO | None = None,
    progress: Progress = SILENT,
) -> PredictReport:
    """Segment images and write their masks, at the speed of the runtime.

    The runtime is a separate process: a script that calls this must guard its main part with
    ``if __name__ == "__main__":``, as ``multiprocessing`` requires.

    Args:
        source: a folder, a glob, a file that lists paths, a video, an image, or ``-``; see ``open_source``.
        output: folder for the masks, ``manifest.jsonl`` and ``segx-predict.json``.
        checkpoint: exported first if the runtime needs that and no export exists yet.
        model: an ONNX file to use instead; a copy of one that segx did not export is made as ``spec`` says. One of the
            two must be given.
        spec: the model's description; None for the one in the files.
        runtime: a name as on the command line (``openvino``, ``ort``, ``openvino-cpu:int8``), ``auto`` for the fastest,
            or a request with a batch size, threads and what ``auto`` chooses by.
        threshold: probability from which a pixel is in the mask; None for the model's own. Not for exclusive classes.
        options: what to write, whether to resume, and what to do about an image that fails. A resumed run with
            ``auto`` continues with the variant it started with.
        stdin: stream that ``-`` reads its list from; None for the process's own.
        progress: shows the steps.

    Raises:
        UsageError: an option is not allowed, or the source does not exist.
        ImageError, InferenceError: with ``on_error="stop"``, the first image that cannot be segmented.
        CheckpointError, ArtifactError, ExportError, RuntimeUnavailable: the model cannot be run.
        OutputError: the folder is in use, holds another run's masks, or cannot be written.
        NotComparable: the run to resume was started with other settings.
        KeyboardInterrupt: interrupted; every file is complete, and the run can be resumed.
    """
    if is_url(str(output)):
        raise UsageError(f"{output} is a URL", hint="give a folder, or write there with --engine ray")
    output = named_path(output)
    request = RuntimeRequest.of(runtime)
    threads = request.threads or machine.usable_cores()
    workers = Workers(threads=threads)
    from segx.predict.engine import Engine

    engine = Engine(workers, request.runtime) if request.runtime != AUTO else None

    def start(choice: Choice) -> None:
        nonlocal engine
        engine = engine or Engine(workers, choice.variant.runtime)

    try:
        from segx.masks.image_io import Remarks
        from segx.predict.manifest import Manifest, refuse_earlier_run, stored_settings
        from segx.predict.output import OutputFolder, legend, pending, write_legend
        from segx.predict.pipeline import Pipeline
        from segx.predict.sources import open_source

        # Unbuffered: a thread that waits in a buffered stdin would keep Python from exiting.
        own_stdin = io.FileIO(0, closefd=False) if str(source) == "-" and stdin is None else stdin
        images = open_source(str(source), stdin=own_stdin, exclude=output)
        if not options.resume:
            refuse_earlier_run(output)
        job = prepare(
            request,
            source=str(source),
            checkpoint=checkpoint,
            model=model,
            spec=spec,
            threshold=threshold,
            options=options,
            before=stored_settings(output) if options.resume else None,
            workers=workers,
            threads=threads,
            on_choice=start,
            progress=progress,
        )
        assert engine  # started for this choice at the latest
        spec = job.spec
        classes = legend(options.class_names, spec) if options.class_names else None
        remarks = Remarks(spec.white_level)
        with (
            OutputFolder(output, fsync=options.fsync) as folder,
            Manifest.open(folder, job.settings, resume=options.resume) as manifest,
        ):
            if classes:
                write_legend(folder, classes, resume=options.resume)
            pipeline = Pipeline(
                items=pending(images, manifest.masks, options, spec),
                together=folder.together,
                append=manifest.append,
                engine=engine,
                task=job.task,
                outputs=options,
                checkpoint=job.files.checkpoint,
                remarks=remarks,
                warn=progress.warn,
            )
            report = pipeline.run(status_teller(progress, images, len(manifest.masks)))
        return job.report(images, output, len(manifest.masks), remarks, report, progress)
    finally:
        if engine is not None:
            engine.close()


def prepare(
    request: RuntimeRequest,
    *,
    source: str,
    checkpoint: Path | str | None,
    model: Path | str | None,
    spec: ModelSpec | None,
    threshold: float | None,
    options: OutputOptions,
    before: Mapping[str, Any] | None,
    workers: Workers,
    threads: int,
    on_choice: Callable[[Choice], None] = lambda _: None,
    progress: Progress,
) -> Job:
    """Choose what to run, and provide its file; see ``segment``.

    ``before`` are the settings of the run to resume, if any. ``on_choice`` is called before the file is made.
    """
    from segx.export.variants import form_of, resolve_model, with_form
    from segx.model.checkpoint import checkpoint_digest
    from segx.predict.choose import choose, probe_variants
    from segx.predict.engine import EngineTask

    origin = "as requested"
    if request.runtime == AUTO and before:
        # Another variant would make other masks.
        request = replace(
            request,
            runtime=before.get("runtime", AUTO),
            precision=request.precision or before.get("precision"),
            device=None,
        )
        origin = "as in the run that is resumed"
    files = resolve_model(
        Path(checkpoint) if checkpoint else None, Path(model) if model else None, spec, progress=progress
    )
    options.check_model(files.spec)
    spec = files.spec.cut_at(threshold)

    def file_for(variant: Variant) -> Path:
        form = form_of(variant)
        made = with_form(workers, files, form, threads=threads, any_int8=True, progress=progress)
        return made.file_for(variant)

    probe = partial(probe_variants, workers, spec=files.spec, file_for=file_for, threads=threads, progress=progress)
    choice = choose(request, files, folder=_BENCHMARKS, threads=threads, probe=probe, origin=origin, warn=progress.warn)
    variant = choice.variant
    progress.say(f"{variant} at batch {choice.batch_size}: {choice.reason}")
    on_choice(choice)
    file = choice.file or file_for(variant)
    settings: dict[str, Any] = {
        # A glob is not a path.
        "inputs": source if source == "-" or is_url(source) else os.path.abspath(source),  # noqa: PTH100
        "weights": files.weights_sha256,
        "runtime": variant.runtime,
        "precision": variant.precision,
        **asdict(spec),
        "model": checkpoint_digest(file),
        **{name: value for name, value in asdict(options).items() if name not in _WITHOUT_EFFECT_ON_MASKS},
    }
    task = EngineTask(
        model=file,
        spec=spec,
        options=RuntimeOptions(threads=threads, precision=variant.precision),
        batch_size=choice.batch_size,
        fills_batches=files.batch_size is not None,
        sha256=settings["model"],
    )
    return Job(choice=choice, files=files, spec=spec, task=task, settings=settings)


def status_teller(progress: Progress, images: Source, before: int) -> Callable[[PipelineReport], None]:
    """Return a function that reports how far a run is, whose number of images may become known only meanwhile.

    One that is too small, because images that were finished ``before`` are gone, is not told.
    """
    expected = False

    def tell(report: PipelineReport) -> None:
        nonlocal expected
        if not report.ready_s:
            return
        done = report.images + report.failed
        left = images.count - before if images.count is not None and images.count - before >= done else None
        if not expected and left is not None:
            expected = True
            progress.expect(left)
        total = f"{done:,} of {left:,}" if left is not None else f"{done:,} done"
        rate = f", {report.images_per_s:.3g} images/s" if report.images else ""
        failed = f", {report.failed:,} failed" if report.failed else ""
        progress.reach(done, f"{total}{rate}{failed}")

    return tell
