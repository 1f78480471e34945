"""Everything a bench records, as immutable data: raw samples, from which the statistics are derived elsewhere.

The ``Attributes`` of these docstrings are also the documentation of ``results.json``: after a change,
``uv run python docs/results_schema.py`` writes the schema and its page in ``docs/`` anew. A unit that a field's name
does not end with stands in brackets.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from segx.model.spec import ModelSpec
from segx.runtimes.base import MemoryProfile, Precision, Scope, Variant

Status = Literal["ok", "parity broken", "unavailable", "out of memory", "crashed", "timed out", "failed"]
MEASURED: tuple[Status, ...] = ("ok", "parity broken")
Required = Literal["identical", "noise", "edges"]

# Of the path from image file to mask file, in order. preprocess: pixels to a model input; infer: inference in the
# engine; postprocess: logits to a mask of the requested size; encode: mask to a file; wait: the engine waiting for its
# next call, after the first one.
STAGES = ("read", "decode", "preprocess", "infer", "postprocess", "encode", "wait")

# What a field may hold; results of other values are refused when they are loaded.
Count = Annotated[int, Meta(ge=0, le=2**62)]
Size = Annotated[int, Meta(ge=1, le=2**62)]
Amount = Annotated[float, Meta(ge=0, le=1e60)]
Seconds = Annotated[float, Meta(gt=1e-12, le=1e12)]
Share = Annotated[float, Meta(ge=0, le=1)]

# A number that may be infinite. JSON has no infinity: it is written as null, and null is read as infinity.
if TYPE_CHECKING:
    import pandas as pd

    Unbounded = float
else:
    Unbounded = Amount | None


class _WithUnbounded:
    """Turns None in ``Unbounded`` fields into infinity."""

    def __post_init__(self) -> None:
        record: Any = self
        for each in fields(record):
            if each.type == "Unbounded" and getattr(self, each.name) is None:
                object.__setattr__(self, each.name, math.inf)


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it; text is empty and numbers are None where the driver does not say.

    Attributes:
        name: product name.
        memory_bytes: memory of the device; 0 if it shares the host's.
        driver: driver version.
        compute_capability: CUDA compute capability, such as 9.0.
        power_state: P0 (fastest) to P12, at the time of the query.
        clock_mhz: clock of the multiprocessors, at the time of the query.
        max_clock_mhz: highest clock of the multiprocessors.
        power_limit_w: power limit.
        temperature_c: temperature, at the time of the query.
    """

    name: str
    memory_bytes: Count
    driver: str
    compute_capability: str = ""
    power_state: str = ""
    clock_mhz: Amount | None = None
    max_clock_mhz: Amount | None = None
    power_limit_w: Amount | None = None
    temperature_c: float | None = None


@dataclass(frozen=True)
class Machine:
    """The machine and its environment.

    Attributes:
        cpu: model name of the processor.
        cpu_flags: instruction sets that decide speed, of those present.
        cores_total: logical processors of the host.
        cores_usable: logical processors that affinity and CPU quota leave this process; the default number of threads.
        memory_total_bytes: physical memory, or the cgroup's limit if that is lower.
        memory_available_bytes: memory available when the bench started.
        gpus: NVIDIA GPUs; empty without a driver.
        load_average_1min (tasks): load average over the last minute; None if unknown.
        system: kernel and architecture.
        python: Python version.
        versions: package -> installed version, of the packages that affect speed or masks.
        cores_affinity: logical processors in the CPU affinity of this process.
        cpu_quota (processors): CPU quota of the cgroup; None for no limit.
        frequency_mhz: mean clock of the processors; None if the system does not report it.
        frequency_max_mhz: highest clock of the processors; None if the system does not report it.
        governor: CPU frequency governor; empty if the system does not report it, as in most virtual machines.
        memory_limit_bytes: memory limit of the cgroup; None for no limit.
        variables: environment variables that engines read, of those that are set.
        git_commit: commit of the working directory, with ``+`` if files were changed; empty outside a repository.
    """

    cpu: str
    cpu_flags: tuple[str, ...]
    cores_total: Size
    cores_usable: Size
    memory_total_bytes: Count
    memory_available_bytes: Count
    gpus: tuple[Gpu, ...]
    load_average_1min: Amount | None
    system: str
    python: str
    versions: dict[str, str]
    cores_affinity: Size | None = None
    cpu_quota: Amount | None = None
    frequency_mhz: Amount | None = None
    frequency_max_mhz: Amount | None = None
    governor: str = ""
    memory_limit_bytes: Count | None = None
    variables: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Arithmetic and memory traffic of the network, counted in the exported fp32 file.

    Attributes:
        operations: multiplications and additions in convolutions and matrix products, per image.
        weight_bytes: size of all weights, which are read once per call.
        activation_bytes: inputs and outputs of these operators, each read or written once, per image.
        operators: number of these operators.
    """

    operations: Count
    weight_bytes: Count
    activation_bytes: Count
    operators: Count


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Measured peak arithmetic and memory throughput of one device.

    Attributes:
        device: ``cpu`` or ``cuda``.
        operations_per_s: precision -> multiplications and additions per second of the fastest matrix product
            or convolution.
        copy_bytes_per_s: bytes read plus bytes written per second when copying a large array within the device.
        method: how the peaks were measured.
        missing: precision -> why there is no peak.
    """

    device: Literal["cpu", "cuda"]
    operations_per_s: Mapping[str, Amount]
    copy_bytes_per_s: Amount
    method: str
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One turn of a cell.

    Attributes:
        number: number of the round, from 0; cells that took turns in one round share it.
        runs: timed calls.
        process: number of the worker process, from 0.
        load (tasks): load average over the last minute; None where the cell itself causes it.
        throttled_s: time for which the cgroup's CPU quota throttled processes, summed over processors.
        stolen_s: time that the hypervisor gave to other guests (steal), summed over processors.
        gpu_mhz: clock of the GPU's multiprocessors after the round.
        gpu_slowed: why that clock was limited; empty if it was not.
    """

    number: Count
    runs: Size
    process: Count = 0
    load: Amount | None = None
    throttled_s: Amount = 0.0
    stolen_s: Amount = 0.0
    gpu_mhz: Count | None = None
    gpu_slowed: str = ""


@dataclass(frozen=True)
class HostMemory:
    """Memory of one worker process: the pages that were written.

    Library code and files mapped for reading do not count.

    Attributes:
        imported_bytes: memory after the engine's libraries were imported.
        steady_bytes: memory after the last timed call.
        peak_bytes: highest memory after the import.
        method: how the figures were measured.
        loaded_bytes: memory after the model was loaded and had run once; None if not measured.
    """

    imported_bytes: Count
    steady_bytes: Count
    peak_bytes: Count
    method: str
    loaded_bytes: Count | None = None

    @property
    def needed_bytes(self) -> int:
        """Peak memory of model and inference, above the imported libraries."""
        return max(0, self.peak_bytes - self.imported_bytes)


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """GPU memory that one cell took.

    Attributes:
        peak_bytes: highest memory while the worker had its turns, whichever library allocated it.
        steady_bytes: memory after the last turn; None if not measured.
        method: how these two were measured.
        counter_bytes: highest memory by the framework's counter of its own allocations; None without a counter.
        counter: name of that counter; empty without one.
    """

    peak_bytes: Count
    steady_bytes: Count | None
    method: str
    counter_bytes: Count | None = None
    counter: str = ""


@dataclass(frozen=True, kw_only=True)
class TruthScore:
    """Masks against ground truth, means over images, with the reference's scores.

    Attributes:
        iou: IoU of this cell's masks with the ground truth.
        dice: Dice of this cell's masks with the ground truth.
        reference_iou: IoU of the reference's masks with the ground truth.
        reference_dice: Dice of the reference's masks with the ground truth.
        loss (IoU): IoU of the reference minus IoU of this cell, mean over images; negative if this cell is better.
        loss_low (IoU): lower end of its 95% interval (Student's or bootstrap over images); -1 for fewer than 6 images.
        loss_high (IoU): upper end of that interval; 1 for fewer than 6 images.
    """

    iou: Share
    dice: Share
    reference_iou: Share
    reference_dice: Share
    loss: float
    loss_low: float
    loss_high: float


@dataclass(frozen=True, kw_only=True)
class ClassParity:
    """One class of a multi-class model, over the images in which either mask contains it.

    Attributes:
        index: index of the class.
        iou: mean IoU with the reference; None if no image contains the class.
        worst_iou: lowest IoU with the reference; None likewise.
        worst_image: name of the image with the lowest IoU.
    """

    index: Count
    iou: Share | None
    worst_iou: Share | None
    worst_image: str


@dataclass(frozen=True, kw_only=True)
class ImageParity(_WithUnbounded):
    """Mask and logits of one image against the reference. IoU and Dice of several classes are those of the worst.

    Attributes:
        name: name of the image.
        pixels: mask pixels.
        flipped_pixels: mask pixels that differ.
        benign_flips: flipped pixels within the noise band.
        stray_pixels: real flips to a class that the reference's mask does not have.
        iou: IoU of the two masks where only real flips differ, of the classes in the reference's mask; 1 without one.
        dice: Dice of the two masks, likewise.
        max_diff (share of logit_range): largest |difference of logits|; infinite (null in JSON) for non-finite logits.
        mean_diff (share of logit_range): mean |difference of logits|; infinite likewise.
        flip_distance_px: largest distance of a real flip from a boundary of the reference's mask, 1 for the adjacent
            pixel; None without real flips or without a boundary.
        truth_iou: IoU with the ground truth, mean over the classes in either mask; None without ground truth.
        truth_dice: Dice with the ground truth; likewise.
    """

    name: str
    pixels: Size
    flipped_pixels: Count
    benign_flips: Count
    stray_pixels: Count
    iou: Share
    dice: Share
    max_diff: Unbounded
    mean_diff: Unbounded
    flip_distance_px: Amount | None = None
    truth_iou: Share | None = None
    truth_dice: Share | None = None

    @property
    def real_flips(self) -> int:
        """Flipped pixels outside the noise band."""
        return self.flipped_pixels - self.benign_flips


@dataclass(frozen=True, kw_only=True)
class Parity(_WithUnbounded):
    """Logits and masks of one cell against the reference. IoU and Dice of several classes are those of the worst.

    Attributes:
        images: images compared.
        pixels: mask pixels of all images.
        flipped_pixels: mask pixels that differ.
        benign_flips: flipped pixels within the noise band.
        mean_iou: ``ImageParity.iou``, mean over images.
        blank_images: images for which the reference's mask has one value only, so that no outline is compared.
        worst_iou: lowest IoU of an image.
        worst_image: name of that image, the first if several tie.
        mean_dice: Dice of the two masks, mean over images.
        max_abs_diff (logits): largest |difference of logits|; infinite (null in JSON) for non-finite logits.
        mean_abs_diff (logits): mean |difference of logits|; infinite likewise.
        logit_range (logits): largest logit of the reference minus its smallest.
        noise_band (logits): largest difference of the reference from itself, at least that of float32 rounding. A flip
            where the reference's logit is no further than this from the threshold is within noise: benign, else real.
        flip_distance_px: largest ``ImageParity.flip_distance_px``.
        classes: one entry per class of a multi-class model; else empty.
        truth: scores against ground truth; None without ground truth.
        per_image: one entry per image.
    """

    images: Size
    pixels: Size
    flipped_pixels: Count
    benign_flips: Count
    mean_iou: Share
    worst_iou: Share
    worst_image: str
    mean_dice: Share
    max_abs_diff: Unbounded
    mean_abs_diff: Unbounded
    logit_range: Unbounded
    noise_band: Unbounded
    blank_images: Count = 0
    flip_distance_px: Amount | None = None
    classes: tuple[ClassParity, ...] = ()
    truth: TruthScore | None = None
    per_image: tuple[ImageParity, ...] = field(default=(), repr=False)

    @property
    def relative_diff(self) -> float:
        """``max_abs_diff`` as a share of the logit range, which counts as at least 1."""
        return self.max_abs_diff / max(1.0, self.logit_range)

    @property
    def flipped_share(self) -> float:
        """Share of mask pixels that differ, in [0, 1]."""
        return self.flipped_pixels / self.pixels

    @property
    def real_flips(self) -> int:
        """Flipped pixels outside the noise band."""
        return self.flipped_pixels - self.benign_flips

    @property
    def judged(self) -> bool:
        """Whether the reference's masks show anything by which others could be judged."""
        return self.blank_images < self.images

    @property
    def worst_class(self) -> ClassParity | None:
        """The class with the lowest mean IoU; None for binary models."""
        present = [entry for entry in self.classes if entry.iou is not None]
        return min(present, key=lambda entry: entry.iou or 0.0, default=None)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options of the bench.

    Attributes:
        runtimes: names of the runtimes.
        precisions: precisions, of those that each runtime supports.
        variants: those requested of these runtimes and precisions, as ``runtime:precision``; empty for all.
        scopes: scopes, of those that each runtime supports.
        batch_sizes: images per call.
        warmup: untimed calls before sampling.
        min_time_s: least time of timed calls per cell.
        min_runs: least number of timed calls per cell.
        max_time_s: time of timed calls per cell after which sampling stops, settled or not.
        seed: seed of the random order within rounds.
        processes: worker processes of each cell, one after the other.
        threads: threads of every runtime.
        memory_profile: ``low`` trades speed for memory in runtimes that offer it.
        budget_s: time of all timed calls together after which sampling stops; None for no limit.
        timeout_s: time after which a worker that does not answer is stopped.
        memory_limit_bytes: private memory that a CPU worker may take; None for the available memory.
        min_iou: lowest IoU of an image's mask with the reference's; None for the gate of the precision.
        max_flips (share of pixels): highest share of flipped pixels; None for the gate of the precision.
        max_loss (IoU): loss of IoU with the ground truth up to which masks count as no worse.
        require: what is recommended has masks ``identical`` to the reference's, or that differ within its ``noise``
            or along ``edges`` only; None for no such limit.
        calibration: folder or list of the calibration images for int8; None for generated scenes.
        engine_options: settings of single engines, name -> value.
    """

    runtimes: tuple[str, ...]
    precisions: tuple[Precision, ...]
    scopes: tuple[Scope, ...]
    batch_sizes: tuple[Size, ...]
    warmup: Count
    min_time_s: Amount
    min_runs: Count
    max_time_s: Amount
    seed: int
    processes: Size
    threads: Size
    memory_profile: MemoryProfile
    budget_s: Amount | None
    timeout_s: Amount
    memory_limit_bytes: Count | None
    min_iou: Share | None = None
    max_flips: Share | None = None
    max_loss: Amount = 1e-3
    require: Required | None = None
    calibration: str | None = None
    engine_options: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DerivedFile:
    """A file derived from the exported one.

    Attributes:
        path: absolute path.
        sha256: SHA-256 of the file.
        float_layers: layers of an int8 file that stayed in float.
        calibration_images: on which an int8 file was calibrated; None for other files.
        held_out_images: held-out images that decided which layers stay in float, not counting mirror images; None for
            other files.
        has_margin: whether the masks of the held-out images meet the limits by a margin; None for other files, or if it
            was not recorded.
    """

    path: str
    sha256: str
    float_layers: tuple[str, ...] = ()
    calibration_images: Count | None = None
    held_out_images: Count | None = None
    has_margin: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The model. Paths are absolute; digests are SHA-256.

    Attributes:
        spec: the model spec.
        weights_sha256: digest of the checkpoint.
        checkpoint: path of the checkpoint; None if only an exported file was given.
        onnx: path of the exported file; None if no runtime needed one.
        onnx_sha256: digest of the exported file.
        derived: form -> file derived from the exported one for a precision or an engine.
        work: arithmetic and memory traffic of the network; None if not counted.
        arguments: options of the command line that give this model: its file, and what the file does not say.
        other_pixels: what earlier exports of the same weights do to pixels, where that is something else.
    """

    spec: ModelSpec
    weights_sha256: str
    checkpoint: str | None
    onnx: str | None
    onnx_sha256: str | None
    derived: Mapping[str, DerivedFile] = field(default_factory=dict)
    work: Work | None = None
    arguments: tuple[str, ...] = ()
    other_pixels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the checkpoint, or else of the exported file."""
        return Path(self.checkpoint or self.onnx or "").name


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """The input images.

    Attributes:
        source: where the images come from.
        sha256: SHA-256 of the preprocessed arrays.
        names: names of the images, in order.
        truth: where the ground truth comes from; empty without ground truth.
        doubt: why they may be prepared differently than in the model's training, and what to try; empty if there is no
            sign of it.
    """

    source: str
    sha256: str
    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    truth: str = ""
    doubt: str = ""


@dataclass(frozen=True, kw_only=True)
class NoiseProbe(_WithUnbounded):
    """The reference against itself, run in another way.

    Attributes:
        change: what was changed.
        images: images compared.
        max_abs_diff (logits): largest |difference of logits|; infinite (null in JSON) for non-finite logits.
        flipped_pixels: mask pixels that differ.
    """

    change: str
    images: Size
    max_abs_diff: Unbounded
    flipped_pixels: Count


@dataclass(frozen=True, kw_only=True)
class ReferenceMasks:
    """What the masks of the reference are like.

    Attributes:
        images: number of masks.
        empty (images): masks in which every pixel is background: 0, or class 0.
        full (images): masks in which every pixel has one other value.
        truth_iou: IoU with the ground truth, mean over images; None without ground truth.
    """

    images: Size
    empty: Count
    full: Count
    truth_iou: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Wall:
    """Wall-clock time of the bench by phase, summed over the sessions of a bench that was resumed.

    Attributes:
        total (s): the whole bench, as far as it went.
        sampling (s): timed calls.
        loading (s): workers: start, import, load, first call, warm-up.
        export (s): making exported and derived files.
        reference (s): the reference's masks, as far as they were not computed during the export, and its noise.
        peaks (s): measuring the peaks of the devices.
    """

    total: Seconds
    sampling: Amount
    loading: Amount
    export: Amount
    reference: Amount
    peaks: Amount = 0.0

    @property
    def overhead(self) -> float:
        """Share of the total that falls into none of the phases."""
        return max(0.0, 1 - (self.sampling + self.loading + self.export + self.reference + self.peaks) / self.total)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant at one batch size.

    Attributes:
        runtime: name of the runtime.
        precision: how it computes.
        batch_size: images per call; None if the whole variant is unavailable.
        status: ``ok``, or what went wrong.
        reason: what went wrong, in one line.
        remedy: what to do about it, in one line.
        scope: what a time includes.
        samples_s: every timed call, in order. In the pipeline scope each is the time of one pass over all images,
            scaled to one batch.
        rounds: the rounds in which the calls were made; empty if the cell was not sampled in rounds.
        stopped: ``settled``, or why sampling stopped before the median settled.
        import_s: time to import the engine.
        load_s: time to load the model.
        first_s: time of the first call.
        facts: settings in force, read back from the engine.
        host_memory: memory of the worker process; None if not measured.
        host_memory_missing: why host memory was not measured; else empty.
        device_memory: GPU memory; None if not measured.
        device_memory_missing: why GPU memory was not measured; else empty.
        parity: outputs of the timed calls against the reference; None if not judged.
        stages (s per image): in the pipeline scope, time in each stage; stages overlap.
        process_sd (log of s): standard deviation between processes of the logarithm of the time of a call, pooled over
            the cells of the bench; None if no cell had several processes.
    """

    runtime: str
    precision: Precision
    batch_size: Size | None
    status: Status
    reason: str = ""
    remedy: str = ""
    scope: Scope = "forward"
    samples_s: tuple[Seconds, ...] = field(default=(), repr=False)
    rounds: tuple[Round, ...] = field(default=(), repr=False)
    stopped: str = ""
    import_s: Amount | None = None
    load_s: Amount | None = None
    first_s: Amount | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    host_memory: HostMemory | None = None
    host_memory_missing: str = ""
    device_memory: DeviceMemory | None = None
    device_memory_missing: str = ""
    parity: Parity | None = None
    stages: Mapping[str, Amount] = field(default_factory=dict)
    process_sd: Amount | None = None

    @property
    def variant(self) -> Variant:
        """Runtime, precision and scope."""
        return Variant(self.runtime, self.precision, self.scope)

    @property
    def measured(self) -> bool:
        """Whether the cell has timed calls to report."""
        return self.status in MEASURED and bool(self.samples_s)

    @property
    def median_s(self) -> float:
        """Median time of a call, in seconds."""
        return statistics.median(self.samples_s)

    @property
    def round_medians_s(self) -> tuple[float, ...]:
        """Median time of a call in each round, in seconds; the samples themselves if there were no rounds."""
        if not self.rounds:
            return self.samples_s
        starts = itertools.accumulate((turn.runs for turn in self.rounds), initial=0)
        return tuple(
            statistics.median(self.samples_s[start : start + turn.runs])
            for start, turn in zip(starts, self.rounds, strict=False)
        )

    @property
    def seconds_per_image(self) -> float:
        """Median time of a call divided by the batch size."""
        assert self.batch_size  # measured cells have one
        return self.median_s / self.batch_size


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one bench.

    Attributes:
        created: start of the bench, ISO 8601 in UTC.
        segx: version of segx.
        command: command line that repeats the bench.
        working_folder: absolute path of the folder from which the command names paths; empty if unknown.
        options: options of the bench.
        model: the model.
        inputs: the input images.
        reference: variant that masks are judged against.
        machine: the machine, at the start.
        complete: False if the bench did not finish.
        cells: unavailable variants first, then by batch size and variant.
        noise: the reference against itself; empty if not measured.
        reference_masks: what the masks of the reference are like; None if it was not run.
        load_after (tasks): load average over the last minute, at the end; None if unknown.
        wall: wall-clock time by phase; None until a cell is recorded.
        peaks: peaks of each device; empty if not measured.
    """

    created: str
    segx: str
    command: str
    working_folder: str = ""
    options: BenchOptions
    model: ModelFacts
    inputs: InputFacts
    reference: str
    machine: Machine
    complete: bool
    cells: tuple[Cell, ...] = field(repr=False)
    noise: tuple[NoiseProbe, ...] = ()
    reference_masks: ReferenceMasks | None = None
    load_after: Amount | None = None
    wall: Wall | None = None
    peaks: tuple[Peaks, ...] = ()

    @property
    def images(self) -> int:
        """Number of input images."""
        return len(self.inputs.names)

    def place_of(self, runtime: str) -> int:
        """Return the place of a runtime in the order in which they were requested; the last for others."""
        names = self.options.runtimes
        return names.index(runtime) if runtime in names else len(names)

    def cell(self, variant: Variant, batch_size: int) -> Cell | None:
        """Return the measured cell of a variant at a batch size, if there is one."""
        return self._measured.get((variant, batch_size))

    def spent_s(self, cell: Cell) -> tuple[float, ...]:
        """Return the seconds each timed run of a cell took: a call, or a whole pass in the pipeline scope."""
        if cell.scope != "pipeline" or not cell.batch_size:
            return cell.samples_s
        return tuple(seconds * self.images / cell.batch_size for seconds in cell.samples_s)

    def peaks_of(self, device: str) -> Peaks | None:
        """Return the measured peaks of a device (``cpu``, ``cuda``), if there are any."""
        return next((peaks for peaks in self.peaks if peaks.device == device), None)

    def best(self, **limits: Any) -> Cell | None:
        """Return the cell to deploy under limits (``segx.analysis.recommend.Constraints``), or None.

        The limits are ``max_latency_s``, ``max_memory_bytes``, ``min_iou`` and ``require``, by default that of the
        bench. Cells whose masks failed their gate or are worse by the ground truth are never returned.
        """
        from segx.analysis.recommend import Constraints, decide  # noqa: PLC0415 - analysis imports this module

        pick = decide(self, Constraints(**limits)).pick
        return pick.cell if pick else None

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row per cell with the columns of ``table.csv``; requires pandas."""
        import pandas as pd  # noqa: PLC0415 - optional

        from segx.reporting.renderers.csv_json import bench_rows  # noqa: PLC0415 - reporting imports this module

        return pd.DataFrame(bench_rows(self))

    @cached_property
    def _measured(self) -> dict[tuple[Variant, int], Cell]:
        return {(cell.variant, cell.batch_size or 0): cell for cell in self.cells if cell.measured}
