"""A bench while it runs: export and reference first, then batch size by batch size, saved after each cell."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import segx
from segx.analysis.figures import limits_for
from segx.bench.ceiling_run import measure_ceiling
from segx.bench.cell import CellRun, failed_cell
from segx.bench.inputs import Inputs, collect_outputs
from segx.bench.mask_files import judge_masks
from segx.bench.pictures import save_pictures
from segx.bench.pipeline import FEWEST_PASSES, image_files
from segx.bench.plan import unsuited, variants_of
from segx.bench.processes import Workers
from segx.bench.reference import run_reference
from segx.bench.rounds import run_rounds
from segx.bench.sampling import StopRule
from segx.bench.stopwatch import Stopwatch
from segx.bench.worker import CellTask
from segx.errors import ArtifactError, RuntimeUnavailable, SegxError
from segx.export.variants import Form, ModelFiles, form_of, with_form
from segx.masks.agreement import compare_logits
from segx.predict.item import Item
from segx.reporting.data import to_csv
from segx.reporting.markdown import to_markdown
from segx.results.store import to_json
from segx.results.types import BenchOptions, Cell, InputFacts, Parity, Results
from segx.runtimes import RuntimeOptions, Variant, runtime_info
from segx.system import machine
from segx.system.files import write_text
from segx.system.nvml import Nvml
from segx.system.progress import Progress, Work

# Of the memory that is free when a cell begins; the rest is for this process and the system.
_SHARE_OF_FREE_MEMORY = 0.9
# How many images the reference is compared with itself on.
_NOISE_IMAGES = 8


class Job:
    """One bench while it runs: what every cell needs, and the workers."""

    def __init__(
        self,
        options: BenchOptions,
        subject: ModelFiles,
        inputs: Inputs,
        scratch: Path,
        output: Path | None,
        progress: Progress,
        clock: Stopwatch,
    ) -> None:
        self._options = options
        self._subject = subject
        self._inputs = inputs
        self._truth = inputs.true_masks()
        self._scratch = scratch
        self._output = output
        self._progress = progress
        self._device_index = 0
        self._variants = variants_of(options)
        # What is measured side by side: a batch size, and whether it is in the pipeline scope.
        whole_path = sorted({variant.scope == "pipeline" for variant in self._variants})
        self._contests = list(itertools.product(options.batch_sizes, whole_path))
        self._items: tuple[Item, ...] = ()
        self._workers = Workers(threads=options.threads)
        self._gpu = self._nvml()
        self._work = Work(progress)
        self._clock = clock
        self._underivable: dict[Form, RuntimeUnavailable] = {}

    def prepare(self, before: Results) -> None:
        """Export where a runtime needs it, and run the reference: all that must succeed before anything is measured.

        Args:
            before: what is measured already.
        """
        with self._clock.timing("export"):
            self._make_files()
        images, options = len(self._inputs.names), self._options
        self._work.expect("reference", images + 2 * self._noise_images)
        done = {(cell.variant, cell.batch_size) for cell in before.cells}
        for variant in self._variants:
            for size in options.batch_sizes:
                if not (unsuited(variant) or (variant, size) in done):
                    runs = max(options.min_runs, math.ceil(images / size)) * size
                    passes = FEWEST_PASSES * images
                    self._work.expect((variant, size), passes if variant.scope == "pipeline" else runs)
        if any(variant.scope == "pipeline" for variant in self._variants):
            self._items = image_files(self._inputs, self._subject.spec, self._scratch / "images")
        with self._clock.timing("reference"):
            self._reference = run_reference(
                self._workers,
                self._task(Variant(self._reference_runtime()), self._subject.batch_size or 1),
                spec=self._subject.spec,
                noise_images=self._noise_images,
                any_batch=self._subject.batch_size is None,
                timeout_s=options.timeout_s,
                progress=self._progress,
                when_run=lambda fraction: self._work.reach("reference", fraction),
            )
        with self._clock.timing("peaks"):
            self._measure_ceiling()

    def _measure_ceiling(self) -> None:
        self._progress.say("measuring what this machine can do at best")
        work, self._peaks = measure_ceiling(
            self._workers,
            self._subject.onnx,
            torch=self._subject.checkpoint is not None,  # then the reference is PyTorch
            gpu=self._device_index if self._gpu else None,
            threads=self._options.threads,
            timeout_s=self._options.timeout_s,
        )
        self._subject = dataclasses.replace(self._subject, work=work)

    @property
    def _noise_images(self) -> int:
        return min(_NOISE_IMAGES, len(self._inputs.names))

    def _nvml(self) -> Nvml | None:
        on_cuda = any(runtime_info(variant.runtime).device == "cuda" for variant in self._variants)
        return Nvml.of_cuda_device(self._device_index) if on_cuda else None

    def _make_files(self) -> None:
        """Provide every form that a variant takes; one that cannot be derived ends only the variants that take it."""
        if any(runtime_info(variant.runtime).takes == "onnx" for variant in self._variants):
            self._provide("onnx")
        for form in dict.fromkeys(form_of(variant) for variant in self._variants if not unsuited(variant)):
            try:
                self._provide(form)
            except SegxError as error:
                self._underivable[form] = RuntimeUnavailable(error.message, hint=error.hint)

    def _provide(self, form: Form) -> None:
        self._subject = with_form(
            self._workers,
            self._subject,
            form,
            calibration=self._options.calibration,
            min_iou=self._options.min_iou,
            threads=self._options.threads,
            tell=self._progress.say,
        )

    def _reference_runtime(self) -> str:
        """PyTorch on the CPU, the trained model itself; without a checkpoint, a CPU runtime of the exported file."""
        if self._subject.checkpoint:
            return "pytorch-cpu"
        infos = (runtime_info(name) for name in self._options.runtimes)
        return next((i.name for i in infos if i.takes == "onnx" and i.device == "cpu"), "onnxruntime-cpu")

    def empty_results(self, command: str) -> Results:
        """What is known before anything is measured."""
        inputs = self._inputs
        return Results(
            created=machine.now(),
            segx=segx.__version__,
            command=command,
            options=self._options,
            model=self._subject.facts(),
            inputs=InputFacts(
                source=inputs.source, sha256=inputs.digest, names=inputs.names, truth=inputs.truth_source
            ),
            reference=str(Variant(self._reference_runtime())),
            machine=machine.describe(),
            complete=False,
            cells=(),
        )

    def measure_all(self, results: Results) -> Results:
        """Batch size by batch size, the variants of each side by side; cells that ``results`` has are left out."""
        self._results = dataclasses.replace(
            results, model=self._subject.facts(), noise=self._reference.noise, peaks=self._peaks
        )
        for variant in self._variants:
            if (reason := unsuited(variant)) and not any(cell.variant == variant for cell in results.cells):
                self._record(failed_cell(_new_cell(variant, None), reason))
        for size, whole_path in self._contests:
            self._measure_together(size, whole_path=whole_path)
        self._keep(
            dataclasses.replace(
                self._results, complete=True, load_after=machine.load_average(), wall=self._clock.read()
            )
        )
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
        sizes = (None, *self._options.batch_sizes)
        cells = [*self._results.cells, cell]
        cells.sort(key=lambda other: (sizes.index(other.batch_size), self._variants.index(other.variant)))
        self._keep(dataclasses.replace(self._results, cells=tuple(cells)))

    def _measure_together(self, size: int, *, whole_path: bool) -> None:
        """All cells of one batch size, of the pipeline scope or the others; one short of memory once more alone."""
        done = {cell.variant for cell in self._results.cells if cell.batch_size in (None, size)}
        for variant in done:
            self._work.reach((variant, size), 1.0)
        variants = [v for v in self._variants if v not in done and (v.scope == "pipeline") == whole_path]
        short_of_memory = self._run_group(variants, size, final=len(variants) == 1)
        for variant in short_of_memory:
            self._progress.say(f"batch {size}: {variant} once more, alone, since memory was short")
            self._run_group([variant], size, final=True)

    def _run_group(self, variants: Sequence[Variant], size: int, *, final: bool) -> list[Variant]:
        """Measure some variants side by side; gives those that ran out of memory, unless that is final."""
        short_of_memory: list[Variant] = []

        def done(run: CellRun) -> None:
            if run.cell.status == "ok":
                run.finish(self._judge)
            if run.cell.status == "out of memory" and not final:
                short_of_memory.append(run.cell.variant)
            else:
                self._record(self._placed(run.cell, size))
                self._work.reach((run.cell.variant, size), 1.0)
            self._clock.add("sampling", run.sampled_s)
            self._progress.say(f"batch {size}: {run.cell.variant} {run.cell.stopped or run.cell.status}")

        runs = [run for variant in variants if (run := self._cell_run(variant, size))]
        try:
            loaded = []
            for run in runs:
                self._progress.say(f"batch {size}: loading {run.cell.variant}")
                if run.start(self._workers, warmup=self._options.warmup, timeout_s=self._options.timeout_s):
                    loaded.append(run)
                else:
                    done(run)
                self._clock.add("loading", run.loading_s)
            names = ", ".join(str(run.cell.variant) for run in loaded)
            self._progress.say(f"batch {size}: sampling {names or 'nothing'}")
            shuffle = random.Random(f"{self._options.seed}-{size}")
            run_rounds(
                loaded,
                shuffle=shuffle,
                when_done=done,
                budget_s=self._budget_for(size, whole_path=any(run.cell.scope == "pipeline" for run in loaded)),
                first_number=self._next_round(),
            )
        except KeyboardInterrupt:
            for cell in filter(None, (run.interrupted() for run in runs)):
                self._record(cell)
            raise
        finally:
            for run in runs:
                run.abandon()
        return short_of_memory

    def _next_round(self) -> int:
        """The first number that no round has had."""
        return 1 + max((turn.number for cell in self._results.cells for turn in cell.rounds), default=-1)

    def _placed(self, cell: Cell, size: int) -> Cell:
        """A variant that disappears after it was measured keeps its rows, and has one that says so from here on."""
        measured_before = any(other.variant == cell.variant and other.measured for other in self._results.cells)
        return dataclasses.replace(cell, batch_size=size) if cell.batch_size is None and measured_before else cell

    def _cell_run(self, variant: Variant, size: int) -> CellRun | None:
        """A cell that is about to run; None where its variant has no file to run, which is recorded."""
        options = self._options
        cell = _new_cell(variant, size)
        try:
            task = self._task(variant, size)
        except (RuntimeUnavailable, ArtifactError) as error:
            self._record(failed_cell(cell, error))
            return None
        whole_path = variant.scope == "pipeline"
        rule = StopRule(
            min_time_s=options.min_time_s,
            min_runs=FEWEST_PASSES if whole_path else options.min_runs,
            full_pass=1 if whole_path else math.ceil(len(self._inputs.names) / size),
            max_time_s=options.max_time_s,
        )
        return CellRun(
            cell,
            task,
            rule,
            limits_for(variant.precision, options),
            gpu=self._gpu if runtime_info(variant.runtime).device == "cuda" else None,
            when_sampled=lambda fraction: self._work.reach((variant, size), fraction),
        )

    def _budget_for(self, size: int, *, whole_path: bool) -> float | None:
        """An equal share of what is left, over the contests that are left."""
        if self._options.budget_s is None:
            return None
        spent_s = sum(sum(self._results.spent_s(cell)) for cell in self._results.cells)
        left = len(self._contests) - self._contests.index((size, whole_path))
        return max(0.0, self._options.budget_s - spent_s) / left

    def _judge(self, task: CellTask) -> Parity:
        """Compare the outputs of the timed runs with the reference, image by image."""
        if task.items:
            return judge_masks(task, self._reference.logits, self._reference.noise_band)
        names = self._inputs.names
        # Those that filled up a last batch are there once already.
        outputs = collect_outputs(task.outputs, self._subject.spec)[: len(names)]
        reference = self._reference.logits[: len(outputs)]
        parity = compare_logits(
            reference,
            outputs,
            self._subject.spec,
            names[: len(outputs)],
            noise_band=self._reference.noise_band,
            truth=None if self._truth is None else self._truth[: len(outputs)],
        )
        if self._output:
            save_pictures(self._output, task, reference, outputs, parity, run=self._results.created)
        return parity

    def _task(self, variant: Variant, size: int) -> CellTask:
        info = runtime_info(variant.runtime)
        if form_of(variant) in self._underivable:
            raise self._underivable[form_of(variant)]
        model = self._subject.file_for(variant)
        if info.takes == "onnx" and self._subject.batch_size not in (None, size):
            raise ArtifactError(
                f"{model.name} takes batches of {self._subject.batch_size} alone",
                hint=f"give --batch-size {self._subject.batch_size}, or export it with a symbolic batch axis",
            )
        return CellTask(
            runtime=info.name,
            model=model,
            spec=self._subject.spec,
            options=RuntimeOptions(
                threads=self._options.threads,
                precision=variant.precision,
                scope=variant.scope,
                device_index=self._device_index,
                memory_profile=self._options.memory_profile,
                engine_options=self._options.engine_options,
            ),
            batch_size=size,
            inputs=self._inputs,
            outputs=self._scratch / f"{info.name}-{variant.precision}-{variant.scope}-{size}.f32",
            memory_limit_bytes=self._memory_limit(info.device),
            items=self._items if variant.scope == "pipeline" else (),
        )

    def _memory_limit(self, device: str) -> int | None:
        """Only for the CPU: CUDA reserves address space far beyond what it uses."""
        if device != "cpu":
            return None
        if self._options.memory_limit_bytes is not None:
            return self._options.memory_limit_bytes
        return int(machine.memory_available_bytes() * _SHARE_OF_FREE_MEMORY) or None


def _new_cell(variant: Variant, size: int | None) -> Cell:
    return Cell(runtime=variant.runtime, precision=variant.precision, scope=variant.scope, batch_size=size, status="ok")
