"""A bench while it runs: export and reference first, then batch size by batch size, saved after each cell."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segx
from segx import machine
from segx.bench.batches import Inputs, collect_outputs
from segx.bench.cell_run import CellRun, failed_cell
from segx.bench.csv_report import to_csv
from segx.bench.processes import Workers
from segx.bench.progress import Progress
from segx.bench.report import to_markdown
from segx.bench.results import BenchOptions, Cell, InputFacts, Results, to_json
from segx.bench.rounds import run_rounds
from segx.bench.subject import Subject
from segx.bench.timing import StopRule
from segx.bench.worker import CellTask
from segx.errors import RuntimeUnavailable
from segx.export import default_output, export_onnx
from segx.files import write_text
from segx.parity import LIMITS, Parity, compare_logits
from segx.runtimes import RuntimeInfo, RuntimeOptions, runtime_info
from segx.runtimes.base import FloatArray

_EXPORT_TIMEOUT_S = 1800.0
# Of the memory that is free when a cell begins; the rest is for this process and the system.
_SHARE_OF_FREE_MEMORY = 0.9


class Job:
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
        self._reference_logits = self._run_reference(self._reference_runtime())

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

    def empty_results(self, command: str) -> Results:
        """What is known before anything is measured."""
        return Results(
            created=machine.now(),
            segx=segx.__version__,
            command=command,
            options=self._options,
            model=self._subject.facts(),
            inputs=InputFacts(source=self._inputs.source, sha256=self._inputs.digest, names=self._inputs.names),
            reference=f"{self._reference_runtime()}:fp32",
            machine=machine.describe(),
            complete=False,
            cells=(),
        )

    def measure_all(self, results: Results) -> Results:
        """Batch size by batch size, the runtimes of each side by side; cells that ``results`` has are left out."""
        options = self._options
        self._keep(dataclasses.replace(results, model=self._subject.facts()))
        self._progress.expect(sum(map(self._images_to_run, options.batch_sizes)) * len(options.runtimes))
        for size in options.batch_sizes:
            self._measure_together(size)
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

    def _measure_together(self, size: int) -> None:
        """All cells of one batch size; one that memory was too short for beside the others, once more alone."""
        done = {cell.runtime for cell in self._results.cells if cell.batch_size in (None, size)}
        names = [name for name in self._options.runtimes if name not in done]
        short_of_memory = self._run_group(names, size, final=len(names) == 1)
        for name in short_of_memory:
            self._progress.say(f"batch {size}: {name} once more, alone, since memory was short")
            self._run_group([name], size, final=True)

    def _run_group(self, names: Sequence[str], size: int, *, final: bool) -> list[str]:
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

        runs = [run for name in names if (run := self._cell_run(name, size, len(names)))]
        try:
            loaded = []
            for run in runs:
                self._progress.say(f"batch {size}: loading {run.cell.runtime}")
                if run.start(self._workers, warmup=self._options.warmup, timeout_s=self._options.timeout_s):
                    loaded.append(run)
                else:
                    done(run)
            self._progress.say(f"batch {size}: sampling {', '.join(run.cell.runtime for run in loaded) or 'nothing'}")
            run_rounds(loaded, shuffle=random.Random(f"{self._options.seed}-{size}"), when_done=done)
        except KeyboardInterrupt:
            for cell in filter(None, (run.interrupted() for run in runs)):
                self._record(cell)
            raise
        finally:
            for run in runs:
                run.abandon()
        return short_of_memory

    def _cell_run(self, runtime: str, size: int, group: int) -> CellRun | None:
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
            LIMITS[precision].with_gates(min_iou=options.min_iou, max_flips=options.max_flips),
            device_index=self._runtime_options.device_index,
            when_sampled=lambda fraction: self._advance(runtime, size, fraction),
        )

    def _budget_for_a_cell(self, size: int, group: int) -> float | None:
        """An equal share of what is left, over the batch sizes that are left and the runtimes that take part."""
        if self._options.budget_s is None:
            return None
        spent_s = sum(sum(cell.samples_s) for cell in self._results.cells)
        sizes = self._options.batch_sizes
        return max(0.0, self._options.budget_s - spent_s) / (len(sizes) - sizes.index(size)) / group

    def _advance(self, runtime: str, size: int, fraction: float) -> None:
        self._fractions[runtime, size] = fraction
        self._progress.reach(sum(self._images_to_run(size) * done for (_, size), done in self._fractions.items()))

    def _images_to_run(self, size: int) -> int:
        """By the minima, as a measure of how long a cell takes."""
        return max(self._options.min_runs, math.ceil(len(self._inputs.names) / size)) * size

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
        if self._options.memory_limit_bytes is not None:
            return self._options.memory_limit_bytes
        return int(machine.memory_available_bytes() * _SHARE_OF_FREE_MEMORY) or None


def _export_in_worker(**arguments: Any) -> None:
    export_onnx(**arguments)
