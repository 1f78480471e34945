"""A bench in progress: export, run the reference, then measure group by group; saved after every cell."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import segx
from segx.analysis.figures import limits_for, log_rounds
from segx.analysis.stats import pooled_process_sd
from segx.bench.cell import CellRun, failed_cell, new_cell
from segx.bench.inputs import Inputs
from segx.bench.pipeline import image_files, judge_mask_files
from segx.bench.plan import MIN_PASSES, CellTask, Group, groups_of, unsupported, variants_of
from segx.bench.reference import ReferenceRun, judge_outputs
from segx.bench.roofline_probe import measure_roofline
from segx.bench.sampling import StopRule, run_rounds
from segx.bench.worker import CellWorkers
from segx.errors import ArtifactError, CheckpointError, RuntimeUnavailable, SegxError
from segx.export.variants import Form, ModelFiles, form_of, with_form
from segx.model.checkpoint import checkpoint_digest, refuse_changed
from segx.results.provenance import describe_machine
from segx.results.types import BenchOptions, Cell, InputFacts, Parity, Results, Wall
from segx.runtimes import RuntimeOptions, Variant, runtime_info
from segx.system import machine
from segx.system.nvml import Nvml
from segx.system.progress import Progress, Work

# Number of images on which the reference is compared with itself: half of them, within these limits.
_NOISE_IMAGES, _FEW = 8, 4
# How long a worker takes to start and load a model, roughly; for the progress bar.
_LOADING_S = 3.0
_DEVICE_INDEX = 0


class Session:
    """One bench in progress."""

    def __init__(
        self,
        options: BenchOptions,
        files: ModelFiles,
        inputs: Inputs,
        workers: CellWorkers,
        *,
        scratch: Path,
        pictures: Path | None,
        save: Callable[[Results], None],
        progress: Progress,
        wall: WallClock,
        int8_within_s: float | None = None,
    ) -> None:
        """Start no worker yet.

        ``scratch`` is a folder for temporary files, ``pictures`` the folder of results in which to save pictures of
        masks, if any. ``save`` is called with the results after every cell. An int8 file that takes longer to make than
        ``int8_within_s`` is given up.
        """
        self._options = options
        self._files = files
        self._inputs = inputs
        self._scratch = scratch
        self._pictures = pictures
        self._save = save
        self._progress = progress
        self._wall = wall
        self._int8_within_s = int8_within_s
        self._work = Work(progress)
        self._variants = variants_of(options)
        self._unsupported = {v: reason for v in self._variants if (reason := unsupported(v, options.batch_sizes))}
        self._groups = groups_of(options)
        self._workers = workers
        on_cuda = any(runtime_info(variant.runtime).device == "cuda" for variant in self._variants)
        self._gpu = Nvml.of_cuda_device(_DEVICE_INDEX) if on_cuda else None
        self._digests: dict[Path, str] = {}
        self._no_file: dict[Form, RuntimeUnavailable] = {}
        has_pipeline = any(variant.scope == "pipeline" for variant in self._variants)
        self._items = image_files(inputs, files.spec, scratch / "images") if has_pipeline else ()

    def new_results(self, command: str) -> Results:
        """Return what is known before anything is measured."""
        inputs = self._inputs
        return Results(
            created=machine.now(),
            segx=segx.__version__,
            command=command,
            working_folder=str(Path.cwd()),
            options=self._options,
            model=self._files.facts(),
            inputs=InputFacts(
                source=inputs.source,
                sha256=inputs.digest,
                names=inputs.names,
                truth=inputs.truth_source,
                doubt=inputs.doubt,
            ),
            reference=str(self._reference_variant()),
            machine=describe_machine(),
            complete=False,
            cells=(),
        )

    def run(self, results: Results) -> Results:
        """Measure the cells that ``results`` lacks and return the complete results."""
        self._results = results
        if results.wall:
            self._wall.go_on_from(results.wall)
        with self._wall.timing("export"):
            self._provide(form_of(self._reference_variant()))
        with self._wall.timing("reference"):
            started = self._start_reference()
        with started:
            self._export()  # mostly on one processor, while the reference runs
            with self._wall.timing("reference"):
                self._reference = started.result()
        self._derive_files()
        self._measure_roofline()
        self._record_unsupported()
        self._announce_work()
        for group in self._groups:
            for variant in self._measure(group, self._missing(group)):
                self._progress.say(f"batch {group.batch_size}: {variant} again, alone, since memory was short")
                self._measure(group, [variant])
            self._announce_work()
        wall, load = self._wall.read(), os.getloadavg()[0]
        self._results = dataclasses.replace(self._results, complete=True, load_after=load, wall=wall)
        self._save(self._results)
        return self._results

    def _export(self) -> None:
        if any(runtime_info(variant.runtime).takes == "onnx" for variant in self._variants):
            with self._wall.timing("export"):
                self._provide("onnx")

    def _derive_files(self) -> None:
        """Derive every other file that a variant runs; one that cannot be made ends only the variants that run it."""
        with self._wall.timing("export"):
            supported = [variant for variant in self._variants if variant not in self._unsupported]
            for form in dict.fromkeys(map(form_of, supported)):
                try:
                    self._provide(form)
                except SegxError as error:
                    self._no_file[form] = RuntimeUnavailable(error.message, hint=error.hint)

    def _provide(self, form: Form) -> None:
        self._files = with_form(
            self._workers,
            self._files,
            form,
            calibration=self._options.calibration,
            min_iou=self._options.min_iou,
            threads=self._options.threads,
            within_s=self._int8_within_s if form.startswith("int8") else None,
            progress=self._progress,
        )

    def _announce_work(self) -> None:
        """Tell the progress bar how many seconds each part will take.

        The estimate uses the variant's time per image at smaller batch sizes, or else the reference's.
        """
        images, options = len(self._inputs.names), self._options
        image_s = self._reference.seconds_per_image
        known_s = {cell.variant: cell.seconds_per_image for cell in self._results.cells if cell.measured}
        for group in self._groups:
            for variant in self._missing(group):
                size = group.batch_size
                runs = max(options.min_runs, math.ceil(images / size)) * size
                on_cpu = runtime_info(variant.runtime).device == "cpu"
                least_s = known_s.get(variant, image_s * on_cpu)
                least_s *= MIN_PASSES * images if variant.scope == "pipeline" else runs
                self._work.expect((variant, size), max(options.min_time_s, least_s))
                self._work.expect(("loading", variant, size), options.processes * _LOADING_S)

    def _start_reference(self) -> ReferenceRun:
        images = len(self._inputs.names)
        task = self._task(self._reference_variant(), self._files.batch_size or 1)
        return ReferenceRun(
            self._workers,
            dataclasses.replace(task, memory_limit_bytes=None),
            noise_images=min(images, max(_FEW, min(_NOISE_IMAGES, images // 2))),
            any_batch=self._files.batch_size is None,
            timeout_s=self._options.timeout_s,
            progress=self._progress,
        )

    def _reference_variant(self) -> Variant:
        """Return PyTorch on the CPU; without a checkpoint, a CPU runtime of the exported file."""
        if self._files.checkpoint:
            return Variant("pytorch-cpu")
        infos = (runtime_info(name) for name in self._options.runtimes)
        infos = (info for info in infos if info.takes == "onnx" and info.device == "cpu" and not info.in_browser)
        fit = (info.name for info in infos if info.least_batch == 1)
        return Variant(next(fit, "onnxruntime-cpu"))

    def _measure_roofline(self) -> None:
        self._progress.say("measuring the peaks of this machine")
        with self._wall.timing("peaks"):
            work, peaks = measure_roofline(
                self._workers,
                self._files.onnx,
                gpu=_DEVICE_INDEX if self._gpu else None,
                threads=self._options.threads,
                timeout_s=self._options.timeout_s,
            )
        self._files = dataclasses.replace(self._files, work=work)
        self._results = dataclasses.replace(
            self._results,
            model=self._files.facts(),
            noise=self._reference.noise,
            reference_masks=self._reference.masks,
            peaks=peaks,
        )

    def _record_unsupported(self) -> None:
        for variant, reason in self._unsupported.items():
            if not any(cell.variant == variant for cell in self._results.cells):
                self._record(failed_cell(new_cell(variant, None), reason))

    def _missing(self, group: Group) -> list[Variant]:
        """Return the variants of a group that have no record yet."""
        done = {cell.variant for cell in self._results.cells if cell.batch_size in (None, group.batch_size)}
        return [variant for variant in group.variants if variant not in done]

    def _measure(self, group: Group, variants: Sequence[Variant]) -> list[Variant]:
        """Measure variants side by side; return those that ran out of memory, if they were not alone."""
        size, processes = group.batch_size, self._options.processes
        budget_s = self._budget_for(group)
        short_of_memory: list[Variant] = []

        def finish(run: CellRun) -> None:
            if not run.failed:
                run.finish(self._judge)
            # A limit that the user gave is each worker's own, so that it is no higher alone.
            on_cpu = runtime_info(run.cell.runtime).device == "cpu"
            limited = on_cpu and self._options.memory_limit_bytes is not None
            if run.cell.status == "out of memory" and len(variants) > 1 and not limited:
                short_of_memory.append(run.cell.variant)
            else:
                self._record(self._placed(run.cell, size))
            self._progress.say(f"batch {size}: {run.cell.variant} {run.cell.stopped or run.cell.status}")

        with self._cell_runs(variants, size, finish) as runs:
            left = runs
            for process in range(processes):
                loaded = []
                for run in left:
                    self._progress.say(f"batch {size}: loading {run.cell.variant}")
                    with self._wall.timing("loading"):
                        started = run.start(
                            self._workers, warmup=self._options.warmup, timeout_s=self._options.timeout_s
                        )
                    if started:
                        loaded.append(run)
                    else:
                        finish(run)
                    self._work.reach(("loading", run.cell.variant, size), (process + 1) / processes)
                names = (
                    f"{len(loaded)} variants" if len(loaded) > 1 else str(loaded[0].cell.variant) if loaded else "none"
                )
                which = f" in process {process + 1} of {processes}" if processes > 1 else ""
                self._progress.say(f"batch {size}: sampling {names}{which}")
                run_rounds(
                    loaded,
                    shuffle=random.Random(f"{self._options.seed}-{size}-{process}"),
                    when_done=finish,
                    budget_s=None if budget_s is None else budget_s / processes,
                    first_number=1 + max((r.number for cell in self._results.cells for r in cell.rounds), default=-1),
                )
                left = [run for run in loaded if not run.failed]
            for run in runs:
                self._work.reach((run.cell.variant, size), 1.0)
        return short_of_memory

    @contextlib.contextmanager
    def _cell_runs(
        self, variants: Sequence[Variant], size: int, finish: Callable[[CellRun], None]
    ) -> Iterator[list[CellRun]]:
        """Give the cells of variants that have a file to run; record what was sampled if they are interrupted."""
        runs = [run for variant in variants if (run := self._cell_run(variant, size))]
        try:
            yield runs
        except KeyboardInterrupt:
            done = [run for run in runs if run.done]
            cut_short = [run for run in runs if not run.done]
            for run in cut_short:
                run.abandon()
            if cells := list(filter(None, (run.interrupted() for run in cut_short))):
                self._record(*cells)
            for run in done:
                finish(run)
            raise
        finally:
            for run in runs:
                run.abandon()

    def _cell_run(self, variant: Variant, size: int) -> CellRun | None:
        options, pipeline = self._options, variant.scope == "pipeline"
        try:
            task = self._task(variant, size)
        except (RuntimeUnavailable, ArtifactError, CheckpointError) as error:
            self._record(failed_cell(new_cell(variant, size), error))
            return None
        # A pass takes seconds, and so does a call in a browser: more of them only until the time is spent.
        few = pipeline or runtime_info(variant.runtime).in_browser
        rules = [
            StopRule(
                min_time_s=options.min_time_s / options.processes,
                min_runs=MIN_PASSES if few else math.ceil(options.min_runs / options.processes),
                # The masks are judged on the calls of the first process.
                full_pass=1 if pipeline or process else math.ceil(len(self._inputs.names) / size),
                max_time_s=options.max_time_s / options.processes,
            )
            for process in range(options.processes)
        ]

        def note(fraction: float, seconds: float) -> None:
            self._work.reach((variant, size), fraction)
            self._wall.add("sampling", seconds)

        return CellRun(
            task,
            rules,
            limits_for(variant.precision, options),
            gpu=self._gpu if runtime_info(variant.runtime).device == "cuda" else None,
            when_sampled=note,
        )

    def _task(self, variant: Variant, size: int) -> CellTask:
        info = runtime_info(variant.runtime)
        if form_of(variant) in self._no_file:
            raise self._no_file[form_of(variant)]
        model = self._files.file_for(variant)
        if model in self._digests:
            refuse_changed(model, self._digests[model])
        else:
            self._digests[model] = checkpoint_digest(model)
        if info.takes == "onnx" and self._files.batch_size not in (None, size):
            raise ArtifactError(
                f"{model.name} takes only batches of {self._files.batch_size}",
                hint=f"give --batch-size {self._files.batch_size}, or export it with a symbolic batch axis",
            )
        return CellTask(
            runtime=info.name,
            model=model,
            spec=self._files.spec,
            options=RuntimeOptions(
                threads=self._options.threads,
                precision=variant.precision,
                scope=variant.scope,
                device_index=_DEVICE_INDEX,
                memory_profile=self._options.memory_profile,
                engine_options=self._options.engine_options,
            ),
            batch_size=size,
            inputs=self._inputs,
            outputs=self._scratch / f"{info.name}-{variant.precision}-{variant.scope}-{size}.f32",
            memory_limit_bytes=self._options.memory_limit_bytes,
            items=self._items if variant.scope == "pipeline" else (),
            fills_batches=self._files.batch_size is not None,
        )

    def _budget_for(self, group: Group) -> float | None:
        """Return an equal share of the budget that is left, over the groups that are left."""
        if self._options.budget_s is None:
            return None
        spent_s = sum(sum(self._results.spent_s(cell)) for cell in self._results.cells)
        return max(0.0, self._options.budget_s - spent_s) / (len(self._groups) - self._groups.index(group))

    def _judge(self, task: CellTask) -> Parity:
        if task.items:
            return judge_mask_files(task, self._reference.logits, self._reference.noise_band)
        return judge_outputs(task, self._reference, pictures=self._pictures, run=self._results.created)

    def _placed(self, cell: Cell, size: int) -> Cell:
        """Give a variant that becomes unavailable after it was measured a row of its own at this batch size."""
        measured_before = any(other.variant == cell.variant and other.measured for other in self._results.cells)
        return dataclasses.replace(cell, batch_size=size) if cell.batch_size is None and measured_before else cell

    def _record(self, *new: Cell) -> None:
        """Add or replace cells in the order of the options, whichever order cells finish in, and save."""
        sizes = (None, *self._options.batch_sizes)
        for cell in new:
            if not cell.measured:
                for size in [cell.batch_size] if cell.batch_size else self._options.batch_sizes:
                    for part in ((cell.variant, size), ("loading", cell.variant, size)):
                        self._work.expect(part, 0.0)
        keys = {(cell.variant, cell.batch_size) for cell in new}
        cells = [*(other for other in self._results.cells if (other.variant, other.batch_size) not in keys), *new]
        process_sd = pooled_process_sd([log_rounds(other) for other in cells if other.measured])
        cells = [dataclasses.replace(other, process_sd=process_sd if other.measured else None) for other in cells]
        cells.sort(key=lambda other: (sizes.index(other.batch_size), self._variants.index(other.variant)))
        self._results = dataclasses.replace(self._results, cells=tuple(cells), wall=self._wall.read())
        self._save(self._results)


class WallClock:
    """Account for the time since its creation, and in earlier sessions, by the fields of ``Wall``."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._spent: defaultdict[str, float] = defaultdict(float)

    def go_on_from(self, earlier: Wall) -> None:
        """Count the time of earlier sessions too."""
        for part, seconds in vars(earlier).items():
            self.add(part, seconds)

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count the time of the block as ``part``, also if it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - started)

    def add(self, part: str, seconds: float) -> None:
        """Count some seconds as ``part``."""
        self._spent[part] += seconds

    def read(self) -> Wall:
        """Return the parts so far."""
        parts = {part: self._spent[part] for part in ("sampling", "loading", "export", "reference", "peaks")}
        return Wall(total=self._spent["total"] + time.perf_counter() - self._started, **parts)
