"""Prediction as one function: start the engine, find out what it shall run, and run it over all images."""

# ruff: noqa: PLC0415 - the engine's process is started before anything heavy is imported here

from __future__ import annotations

import dataclasses
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from segx.errors import UsageError
from segx.model.spec import ModelSpec
from segx.runtimes import Precision, RuntimeOptions, Variant, runtime_info
from segx.system import machine
from segx.system.processes import Workers
from segx.system.progress import Progress, Silent

if TYPE_CHECKING:
    from segx.export.variants import ModelFiles
    from segx.predict.choose import Choice, Wish
    from segx.predict.engine import Engine
    from segx.predict.outcome import PipelineReport, Standing
    from segx.predict.sources import Inputs

_BENCHES = Path("artifacts")
_AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class PredictReport:
    """What a run did.

    Attributes:
        choice: what ran, and why.
        source: where the images were from, in words.
        output: the folder of the masks.
        before: images that an earlier run into that folder had finished.
        pipeline: counts, times and where they went.
    """

    choice: Choice
    source: str
    output: Path
    before: int
    pipeline: PipelineReport


def segment(
    source: Path | str,
    output: Path | str,
    *,
    checkpoint: Path | str | None = None,
    model: Path | str | None = None,
    spec: ModelSpec | None = None,
    runtime: str = _AUTO,
    precision: Precision | None = None,
    batch_size: int | None = None,
    size: Literal["original"] | tuple[int, int] = "original",
    threshold: float | None = None,
    probabilities: bool = False,
    overlay: bool = False,
    resume: bool = False,
    on_error: Literal["skip", "stop"] = "skip",
    threads: int | None = None,
    stdin: BinaryIO | None = None,
    progress: Progress | None = None,
) -> PredictReport:
    """Segment images and write their masks, at the speed of the runtime.

    The runtime is a process of its own: a script that calls this must guard its main part with
    ``if __name__ == "__main__":``, as ``multiprocessing`` asks of every script.

    Args:
        source: a folder, a glob, a list of paths, a video, one image, or ``-``; see ``open_inputs``.
        output: folder for the masks, ``manifest.jsonl`` and ``segx-predict.json``.
        checkpoint: trained weights; exported first where the runtime needs that and it was not done before.
        model: an exported ONNX file to use instead. One of the two must be given.
        spec: the model's description; None takes what the files say.
        runtime: a name; ``auto`` takes the fastest that a bench of these weights on this machine measured, among those
            whose masks met their gate, or else of a short probe.
        precision: None means fp32 of a named runtime, and of ``auto`` whichever is fastest.
        batch_size: images per call; None means the fastest measured one, or else 1 on a CPU and the fastest of a short
            probe on a GPU.
        size: of the masks: the image's own, or (width, height) in pixels.
        threshold: probability from which a pixel is in the mask; None for the model's own.
        probabilities: write them too, as ``.npy``.
        overlay: write the pictures with the masks' outlines too.
        resume: go on with the run whose manifest is in ``output``; with ``auto`` by the variant that it ran.
        on_error: whether an image that cannot be segmented is passed over or ends the run.
        threads: processors of the runtime; None means all that are usable.
        stdin: where ``-`` reads its list; None means the process's own.
        progress: told what is being done.

    Raises:
        UsageError: an option makes no sense, or there is no such source.
        ImageError, InferenceError: with ``on_error="stop"``, the first image that cannot be segmented.
        CheckpointError, ArtifactError, ExportError, RuntimeUnavailable: the model cannot be run.
        OutputError: the folder is in use, holds another run's masks, or cannot be written any more.
        NotComparable: the run to go on with was made with other settings.
        KeyboardInterrupt: interrupted; what was written is whole, and a run with ``resume`` goes on from there.
    """
    progress = progress or Silent()
    threads = machine.usable_cores() if threads is None else threads
    _check(runtime, precision, batch_size, size, on_error, threads)
    workers = Workers(threads=threads)
    output = Path(output)
    first = None if runtime == _AUTO else _engine(workers, runtime)
    engines = [first] if first else []
    try:
        from segx.predict.choose import Wish
        from segx.predict.manifest import refuse_earlier_run
        from segx.predict.sources import open_inputs

        # Unbuffered: a thread that waits inside the buffered one keeps Python from ending.
        own = io.FileIO(0, closefd=False) if source == "-" and stdin is None else stdin
        inputs = open_inputs(str(source), stdin=own, leave_out=output)
        if not resume:
            refuse_earlier_run(output)
        files = _subject(checkpoint, model, spec)
        wish = Wish(runtime, precision, _possible(batch_size, files))
        choice = _choose(_as_before(wish, output) if resume else wish, files, workers, threads, progress)
        progress.say(f"{choice.variant} at batch {choice.batch_size}: {choice.reason}")
        engine = first or _engine(workers, choice.variant.runtime)
        engines = [engine]
        return _run(
            engine,
            choice,
            _file(workers, files, choice.variant, threads, progress),
            inputs=inputs,
            source=str(source),
            output=output,
            files=files,
            wishes={"size": size, "probabilities": probabilities, "overlay": overlay},
            threshold=threshold,
            resume=resume,
            on_error=on_error,
            options=RuntimeOptions(threads=threads, precision=choice.variant.precision),
            progress=progress,
        )
    finally:
        for engine in engines:
            engine.close()


def _check(
    runtime: str,
    precision: Precision | None,
    batch_size: int | None,
    size: Literal["original"] | tuple[int, int],
    on_error: str,
    threads: int,
) -> None:
    if runtime != _AUTO and precision not in (None, *(info := runtime_info(runtime)).precisions):
        raise UsageError(f"{info.name} does not compute in {precision}", hint=f"it has {', '.join(info.precisions)}")
    if precision not in (None, *get_args(Precision)):
        raise UsageError(f"no precision {precision!r}", hint=f"give {', '.join(get_args(Precision))}")
    if on_error not in ("skip", "stop"):
        raise UsageError(f"on_error is {on_error!r}", hint="give skip or stop")
    if size != "original" and min(size) < 1:
        raise UsageError(f"size {size[0]}x{size[1]} is not positive", hint="give pixels, as 640x480")
    for name, value in (("batch size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value} is too small", hint="give at least 1")


def _engine(workers: Workers, runtime: str) -> Engine:
    from segx.predict.engine import Engine

    return Engine(workers, runtime)


def _subject(checkpoint: Path | str | None, model: Path | str | None, spec: ModelSpec | None) -> ModelFiles:
    from segx.export.variants import resolve_model

    return resolve_model(Path(checkpoint) if checkpoint else None, Path(model) if model else None, spec)


def _possible(batch_size: int | None, files: ModelFiles) -> int | None:
    """The batch size, where the file takes one alone. The last call has what is left, so that one must be 1."""
    if files.batch_size is None:
        return batch_size
    if files.batch_size != 1 or batch_size not in (None, 1):
        raise UsageError(
            f"{files.onnx} takes batches of {files.batch_size} alone",
            hint="leave --batch-size out" if files.batch_size == 1 else "export it with a symbolic batch axis",
        )
    return 1


def _as_before(wish: Wish, output: Path) -> Wish:
    """An ``auto`` that goes on with a run means the variant of that run: another would make other masks."""
    from segx.predict.manifest import stored_settings

    if wish.runtime != _AUTO or (settings := stored_settings(output)) is None:
        return wish
    return dataclasses.replace(
        wish, runtime=settings.get("runtime", _AUTO), precision=wish.precision or settings.get("precision")
    )


def _choose(wish: Wish, files: ModelFiles, workers: Workers, threads: int, progress: Progress) -> Choice:
    from segx.predict.choose import choose
    from segx.predict.probe import probe

    return choose(
        wish,
        files,
        folder=_BENCHES,
        threads=threads,
        probe=lambda variants, sizes: probe(
            workers,
            variants,
            sizes,
            spec=files.spec,
            file_for=lambda variant: _file(workers, files, variant, threads, progress),
            threads=threads,
            tell=progress.say,
        ),
    )


def _file(workers: Workers, files: ModelFiles, variant: Variant, threads: int, progress: Progress) -> Path:
    from segx.predict.model_files import model_file

    return model_file(workers, files, variant, threads=threads, tell=progress.say)


def _run(
    engine: Engine,
    choice: Choice,
    file: Path,
    *,
    inputs: Inputs,
    source: str,
    output: Path,
    files: ModelFiles,
    wishes: dict[str, Any],
    threshold: float | None,
    resume: bool,
    on_error: Literal["skip", "stop"],
    options: RuntimeOptions,
    progress: Progress,
) -> PredictReport:
    from segx.predict.manifest import Ledger
    from segx.predict.output import OutputFolder
    from segx.predict.outputs import Wishes
    from segx.predict.pipeline import Destination, run_pipeline
    from segx.system.files import sha256_of

    spec = files.spec if threshold is None else dataclasses.replace(files.spec, threshold=threshold)
    settings = {
        "inputs": source if source == "-" else os.path.abspath(source),  # noqa: PTH100 - a glob is no path
        "weights": files.weights_sha256,
        "model": sha256_of(file),
        "runtime": choice.variant.runtime,
        "precision": choice.variant.precision,
        "threshold": spec.threshold,
        **wishes,
    }
    with OutputFolder(output) as folder, Ledger.open(folder, settings, resume=resume) as ledger:
        report = run_pipeline(
            inputs,
            Destination(folder=folder, ledger=ledger, wishes=Wishes(**wishes)),
            engine=engine,
            model=file,
            spec=spec,
            options=options,
            batch_size=choice.batch_size,
            on_error=on_error,
            tell=_Teller(progress, inputs, len(ledger.done)),
            warn=progress.warn,
        )
        return PredictReport(
            choice=choice, source=inputs.source, output=output, before=len(ledger.done), pipeline=report
        )


class _Teller:
    """Says how far a run is; how many images there are may become known meanwhile."""

    def __init__(self, progress: Progress, inputs: Inputs, before: int) -> None:
        self._progress = progress
        self._inputs = inputs
        self._before = before
        self._expected = False

    def __call__(self, standing: Standing) -> None:
        if not standing.seconds:
            return
        if not self._expected and (count := self._inputs.count) is not None:
            self._expected = True
            self._progress.expect(max(0, count - self._before))
        done = standing.done + standing.failed
        rate = f", {standing.done / standing.seconds:.3g} images/s" if standing.done else ""
        failed = f", {standing.failed} failed" if standing.failed else ""
        self._progress.reach(done, f"{done} done{rate}{failed}")
