"""The bench: plan cells, measure each in a fresh process, judge its outputs, save after each."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import segx
from segx import machine
from segx.bench.batches import Inputs, collect_outputs, prepare_inputs
from segx.bench.cell_run import CellRun, failed_cell
from segx.bench.csv_report import to_csv
from segx.bench.processes import Workers
from segx.bench.progress import Progress, Silent
from segx.bench.report import to_markdown
from segx.bench.results import BenchOptions, Cell, InputFacts, Results, to_json
from segx.bench.rounds import run_rounds
from segx.bench.subject import Subject, resolve_subject
from segx.bench.timing import StopRule
from segx.bench.worker import CellTask
from segx.errors import RuntimeUnavailable, UsageError
from segx.export import default_output, export_onnx
from segx.files import folder_for_results, write_text
from segx.parity import Parity, compare_logits
from segx.runtimes import RuntimeInfo, RuntimeOptions, resolve_names, runtime_info
from segx.runtimes.base import FloatArray
from segx.spec import ModelSpec

_EXPORT_TIMEOUT_S = 1800.0
# Of the memory that is free when a cell begins; the rest is for this process and the system.
_SHARE_OF_FREE_MEMORY = 0.9


def bench(
    checkpoint: Path | str | None = None,
    *,
    model: Path | str | None = None,
    spec: ModelSpec | None = None,
    runtimes: Sequence[str] = ("all",),
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    images: Path | str | None = None,
    num_images: int = 64,
    warmup: int = 2,
    min_time_s: float = 5.0,
    min_runs: int = 10,
    max_time_s: float = 20.0,
    seed: int = 0,
    threads: int | None = None,
    tf32: bool = False,
    budget_s: float | None = None,
    timeout_s: float = 600.0,
    memory_limit_bytes: int | None = None,
    output: Path | str | None = None,
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
        batch_sizes: images per call, each at least 1.
        images: folder of images; None generates scenes.
        num_images: how many images, at most; fewer where the folder holds fewer.
        warmup: untimed calls before sampling.
        min_time_s: seconds of timed calls per cell, at least.
        min_runs: timed calls per cell, at least.
        max_time_s: seconds of timed calls per cell after which to give up on a settled median.
        seed: of the orders in which cells take turns.
        threads: processors of every runtime; None means all that are usable.
        tf32: allow 10-bit mantissas on CUDA.
        budget_s: seconds of timed calls in all; cells stop early to keep it.
        timeout_s: seconds after which a silent worker is given up on.
        memory_limit_bytes: private memory that a CPU worker may take for model and inference; None for what is free.
        output: folder for ``results.json``, ``table.md`` and ``table.csv``; None writes nothing.
        command: how to repeat this bench, kept in the results.
        progress: told what is being done.

    Returns:
        All results; a cell that failed is a record among them.

    Raises:
        UsageError: an option makes no sense.
        CheckpointError, ArtifactError, ExportError, ImageError: the model or the images cannot be used.
        OutputError: results cannot be written.
        KeyboardInterrupt: interrupted; what was measured is saved.
    """
    options = BenchOptions(
        runtimes=tuple(resolve_names(runtimes)),
        batch_sizes=tuple(dict.fromkeys(batch_sizes)),
        warmup=warmup,
        min_time_s=min_time_s,
        min_runs=min_runs,
        max_time_s=max_time_s,
        seed=seed,
        threads=threads or machine.usable_cores(),
        tf32=tf32,
        budget_s=budget_s,
        timeout_s=timeout_s,
        memory_limit_bytes=memory_limit_bytes,
    )
    _check_options(options, num_images)
    progress = progress or Silent()
    folder = Path(output) if output else None
    subject = resolve_subject(Path(checkpoint) if checkpoint else None, Path(model) if model else None, spec)
    with (
        folder_for_results(folder) if folder else contextlib.nullcontext(),
        tempfile.TemporaryDirectory(prefix="segx-") as scratch,
    ):
        progress.say("reading images")
        inputs = prepare_inputs(
            Path(scratch) / "inputs.f32", subject.spec, folder=Path(images) if images else None, count=num_images
        )
        job = _Job(options, subject, inputs, Path(scratch), folder, progress)
        job.prepare()
        return job.measure_all(command)


def _check_options(options: BenchOptions, num_images: int) -> None:
    for name, value, least in (
        ("batch size", min(options.batch_sizes, default=0), 1),
        ("number of images", num_images, 1),
        ("warmup", options.warmup, 0),
        ("min-runs", options.min_runs, 1),
        ("min-time", options.min_time_s, 0),
        ("threads", options.threads, 1),
        ("budget", 1 if options.budget_s is None else options.budget_s, 0),
    ):
        if value < least:
            raise UsageError(f"{name} {value:g} is too small", hint=f"give at least {least}")


class _Job:
    """One bench while it runs: what every cell needs, and the workers."""

    def __init__(
        self,
        options: BenchOptions,
        subject: Subject,
        inputs: Inputs,
        scratch: Path,
        output: Path | None,
        progress: Progress,
    ) -> None:
        self._options = options
        self._subject = subject
        self._inputs = inputs
        self._scratch = scratch
        self._output = output
        self._progress = progress
        self._runtime_options = RuntimeOptions(threads=options.threads, tf32=options.tf32)
        self._workers = Workers(self._runtime_options)
        self._fractions: dict[tuple[str, int], float] = {}

    def prepare(self) -> None:
        """Export where a runtime needs it, and run the reference: all that must succeed before anything is measured."""
        if self._subject.onnx is None and any(info.takes == "onnx" for info in self._infos()):
            self._subject = dataclasses.replace(self._subject, onnx=self._export())
        self._reference = self._reference_runtime()
        self._reference_logits = self._run_reference(self._reference)

    def _infos(self) -> list[RuntimeInfo]:
        return [runtime_info(name) for name in self._options.runtimes]

    def _export(self) -> Path:
        checkpoint = self._subject.checkpoint
        assert checkpoint  # a subject has one of the two
        path = default_output(checkpoint, "logits")
        self._progress.say(f"exporting {checkpoint.name} to {path}, unless it is there already")
        arguments = {
            "checkpoint": checkpoint,
            "spec": self._subject.spec,
            "output": path,
            "threads": self._options.threads,
        }
        self._workers.call(_export_in_worker, arguments, torch=True, timeout_s=_EXPORT_TIMEOUT_S)
        return path

    def _reference_runtime(self) -> str:
        """PyTorch on the CPU, the trained model itself; without a checkpoint, a CPU runtime of the exported file."""
        if self._subject.checkpoint:
            return "pytorch-cpu"
        return next((i.name for i in self._infos() if i.takes == "onnx" and i.device == "cpu"), "onnxruntime-cpu")

    def _run_reference(self, runtime: str) -> FloatArray:
        """Logits of all images, one by one."""
        self._progress.say(f"computing the reference masks with {runtime}")
        task = self._task(runtime, 1)
        with self._workers.cell(task, timeout_s=self._options.timeout_s) as worker:
            worker.load()
            for _ in self._inputs.names:
                worker.sample(0.0)
        return collect_outputs(task.outputs, self._subject.spec)

    def measure_all(self, command: str) -> Results:
        """Batch size by batch size, the runtimes of each side by side."""
        options = self._options
        results = Results(
            created=machine.now(),
            segx=segx.__version__,
            command=command,
            options=options,
            model=self._subject.facts(),
            inputs=InputFacts(source=self._inputs.source, sha256=self._inputs.digest, names=self._inputs.names),
            reference=f"{self._reference}:fp32",
            machine=machine.describe(),
            complete=False,
            cells=(),
        )
        self._keep(results)
        weights = {
            (runtime, size): max(options.min_runs, math.ceil(len(self._inputs.names) / size)) * size
            for size in options.batch_sizes
            for runtime in options.runtimes
        }
        self._progress.expect(sum(weights.values()))
        for size in options.batch_sizes:
            self._measure_together(size, weights)
        self._keep(dataclasses.replace(self._results, complete=True))
        return self._results

    def _keep(self, results: Results) -> None:
        """Make these the results so far, and save them once there is something."""
        self._results = results
        if self._output and results.cells:
            for name, text in (
                ("results.json", to_json(results)),
                ("table.md", to_markdown(results)),
                ("table.csv", to_csv(results)),
            ):
                write_text(self._output / name, text)

    def _record(self, cell: Cell) -> None:
        """Add a cell; cells stand in the order of the options, in whichever order they finish."""
        sizes, runtimes = (None, *self._options.batch_sizes), self._options.runtimes
        cells = [*self._results.cells, cell]
        cells.sort(key=lambda other: (sizes.index(other.batch_size), runtimes.index(other.runtime)))
        self._keep(dataclasses.replace(self._results, cells=tuple(cells)))

    def _measure_together(self, size: int, weights: Mapping[tuple[str, int], int]) -> None:
        """All cells of one batch size; one that memory was too short for beside the others, once more alone."""
        unavailable = {cell.runtime for cell in self._results.cells if cell.status == "unavailable"}
        names = [name for name in self._options.runtimes if name not in unavailable]
        short_of_memory = self._run_group(names, size, weights, final=len(names) == 1)
        for name in short_of_memory:
            self._progress.say(f"batch {size}: {name} once more, alone, since memory was short")
            self._run_group([name], size, weights, final=True)

    def _run_group(
        self, names: Sequence[str], size: int, weights: Mapping[tuple[str, int], int], *, final: bool
    ) -> list[str]:
        """Measure some runtimes side by side; gives those that ran out of memory, unless that is final."""
        short_of_memory: list[str] = []

        def done(run: CellRun) -> None:
            if run.cell.status == "ok":
                run.finish(self._judge)
            if run.cell.status == "out of memory" and not final:
                short_of_memory.append(run.cell.runtime)
            else:
                self._record(run.cell)
            self._progress.say(f"batch {size}: {run.cell.runtime} {run.cell.stopped or run.cell.status}")

        runs: list[CellRun] = []
        try:
            for name in names:
                self._progress.say(f"batch {size}: loading {name}")
                run = self._cell_run(name, size, len(names), weights)
                if run is None:
                    continue
                runs.append(run)
                if not run.start(self._workers, warmup=self._options.warmup, timeout_s=self._options.timeout_s):
                    runs.remove(run)
                    done(run)
            if runs:
                self._progress.say(f"batch {size}: sampling {', '.join(run.cell.runtime for run in runs)}")
            run_rounds(runs, shuffle=random.Random(f"{self._options.seed}-{size}"), when_done=done)
        finally:
            for run in runs:
                run.abandon()
        return short_of_memory

    def _cell_run(self, runtime: str, size: int, group: int, weights: Mapping[tuple[str, int], int]) -> CellRun | None:
        """A cell that is about to run; None where its runtime has no file to run, which is recorded."""
        options, info = self._options, runtime_info(runtime)
        precision = "tf32" if options.tf32 and info.device == "cuda" else info.precision
        cell = Cell(runtime=runtime, precision=precision, batch_size=size, status="ok")
        try:
            task = self._task(runtime, size)
        except RuntimeUnavailable as error:
            self._record(failed_cell(cell, error))
            return None
        rule = StopRule(
            min_time_s=options.min_time_s,
            min_runs=options.min_runs,
            full_pass=math.ceil(len(self._inputs.names) / size),
            max_time_s=options.max_time_s,
            budget_s=self._budget_for_a_cell(size, group),
        )
        return CellRun(
            cell,
            task,
            rule,
            device_index=self._runtime_options.device_index,
            when_sampled=lambda fraction: self._advance(runtime, size, fraction, weights),
        )

    def _budget_for_a_cell(self, size: int, group: int) -> float | None:
        """An equal share of what is left, over the batch sizes that are left and the runtimes that take part."""
        if self._options.budget_s is None:
            return None
        spent_s = sum(sum(cell.samples_s) for cell in self._results.cells)
        sizes = self._options.batch_sizes
        return max(0.0, self._options.budget_s - spent_s) / (len(sizes) - sizes.index(size)) / group

    def _advance(self, runtime: str, size: int, fraction: float, weights: Mapping[tuple[str, int], int]) -> None:
        self._fractions[runtime, size] = fraction
        self._progress.reach(sum(weights[key] * done for key, done in self._fractions.items()))

    def _judge(self, task: CellTask) -> Parity:
        """Compare the outputs of the timed runs with the reference, image by image."""
        outputs = collect_outputs(task.outputs, self._subject.spec)
        names = self._inputs.names
        rows = [i % len(names) for i in range(len(outputs))]
        return compare_logits(self._reference_logits[rows], outputs, self._subject.spec, [names[row] for row in rows])

    def _task(self, runtime: str, size: int) -> CellTask:
        info = runtime_info(runtime)
        model = self._subject.file_for(info)
        if model is None:
            raise RuntimeUnavailable(
                f"{runtime} runs a checkpoint, and only an exported file was given",
                hint="pass the checkpoint with --weights",
            )
        return CellTask(
            runtime=runtime,
            model=model,
            spec=self._subject.spec,
            options=self._runtime_options,
            batch_size=size,
            inputs=self._inputs,
            outputs=self._scratch / f"{runtime}-{size}.f32",
            memory_limit_bytes=self._memory_limit(info.device),
        )

    def _memory_limit(self, device: str) -> int | None:
        """Only for the CPU: CUDA reserves address space far beyond what it uses."""
        if device != "cpu":
            return None
        return self._options.memory_limit_bytes or int(machine.memory_available_bytes() * _SHARE_OF_FREE_MEMORY) or None


def _export_in_worker(**arguments: Any) -> None:
    export_onnx(**arguments)
