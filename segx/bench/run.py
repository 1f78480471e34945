"""The bench: plan cells, measure each in a fresh process, judge its outputs, save after each."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segx
from segx import machine
from segx.bench.batches import Inputs, collect_outputs, prepare_inputs
from segx.bench.device_memory import DeviceMemorySampler
from segx.bench.processes import WorkerDied, WorkerHung, Workers
from segx.bench.progress import Progress, Silent
from segx.bench.report import to_csv, to_markdown
from segx.bench.results import BenchOptions, Cell, InputFacts, Results, Status, to_json
from segx.bench.subject import Subject, resolve_subject
from segx.bench.timing import StopRule
from segx.bench.worker import CellTask
from segx.errors import OutOfMemory, RuntimeUnavailable, SegxError, UsageError
from segx.export import default_output, export_onnx
from segx.files import folder_for_results, write_text
from segx.parity import LIMITS, Parity, compare_logits
from segx.runtimes import RuntimeInfo, RuntimeOptions, resolve_names, runtime_info
from segx.runtimes.base import FloatArray
from segx.spec import ModelSpec

_SLICE_S = 0.5
_EXPORT_TIMEOUT_S = 1800.0
# Of the memory that is free when a cell begins; the rest is for this process and the system.
_SHARE_OF_FREE_MEMORY = 0.9

_STATUS_OF: tuple[tuple[type[SegxError], Status], ...] = (
    (RuntimeUnavailable, "unavailable"),
    (OutOfMemory, "out of memory"),
    (WorkerHung, "timed out"),
    (WorkerDied, "crashed"),
    (SegxError, "failed"),
)


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
        """Every cell in turn: batch sizes outside, runtimes inside, so that what is compared is measured close by."""
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
        todo = [(runtime, size) for size in options.batch_sizes for runtime in options.runtimes]
        weights = [max(options.min_runs, math.ceil(len(self._inputs.names) / size)) * size for _, size in todo]
        self._progress.expect(sum(weights))
        for number, (runtime, size) in enumerate(todo):
            done = sum(weights[:number])
            self._progress.reach(done)
            if any(cell.runtime == runtime and cell.status == "unavailable" for cell in results.cells):
                continue
            spent_s = sum(sum(cell.samples_s) for cell in results.cells)
            left = None if options.budget_s is None else max(0.0, options.budget_s - spent_s) / (len(todo) - number)
            self._progress.say(f"{number + 1}/{len(todo)}  {runtime}  batch {size}")
            cell = self._measure(runtime, size, left, done, weights[number])
            results = dataclasses.replace(results, cells=(*results.cells, cell))
            self._save(results)
        results = dataclasses.replace(results, complete=True)
        self._save(results)
        return results

    def _measure(self, runtime: str, size: int, budget_s: float | None, done: float, weight: float) -> Cell:
        """One cell; whatever goes wrong with it is a record."""
        info = runtime_info(runtime)
        precision = "tf32" if self._options.tf32 and info.device == "cuda" else info.precision
        cell = Cell(runtime=runtime, precision=precision, batch_size=size, status="ok")
        try:
            return self._sampled(cell, self._task(runtime, size), budget_s, done, weight)
        except SegxError as error:
            status = next(status for kind, status in _STATUS_OF if isinstance(error, kind))
            # What is missing is missing at every batch size: one row for the runtime.
            concerned = None if status == "unavailable" else size
            return dataclasses.replace(
                cell, batch_size=concerned, status=status, reason=error.message, remedy=error.hint
            )

    def _sampled(self, cell: Cell, task: CellTask, budget_s: float | None, done: float, weight: float) -> Cell:
        options = self._options
        rule = StopRule(
            min_time_s=options.min_time_s,
            min_runs=options.min_runs,
            full_pass=math.ceil(len(self._inputs.names) / task.batch_size),
            budget_s=budget_s,
        )
        samples: list[float] = []
        on_device = runtime_info(task.runtime).device == "cuda"
        with DeviceMemorySampler(0) as sampler, self._workers.cell(task, timeout_s=options.timeout_s) as worker:
            loaded = worker.load()
            worker.warm_up(options.warmup)
            while not (stopped := rule.reason_to_stop(len(samples), sum(samples))):
                samples += worker.sample(_SLICE_S)
                self._progress.reach(done + weight * rule.fraction_done(len(samples), sum(samples)))
            finished = worker.finish()
            device_memory = sampler.read() if on_device else None
        parity = self._judge(task)
        broken = parity.breaches(LIMITS[cell.precision])
        return dataclasses.replace(
            cell,
            status="parity broken" if broken else "ok",
            reason="; ".join(broken),
            remedy="do not deploy this variant before you know why" if broken else "",
            samples_s=tuple(samples),
            stopped=stopped,
            import_s=loaded.import_s,
            load_s=loaded.load_s,
            first_s=loaded.first_s,
            facts=loaded.facts,
            host_memory=finished.memory,
            device_memory=device_memory,
            parity=parity,
        )

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

    def _save(self, results: Results) -> None:
        if self._output is None:
            return
        for name, text in (
            ("results.json", to_json(results)),
            ("table.md", to_markdown(results)),
            ("table.csv", to_csv(results)),
        ):
            write_text(self._output / name, text)


def _export_in_worker(**arguments: Any) -> None:
    export_onnx(**arguments)
