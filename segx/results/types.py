"""Everything that a bench records, as immutable data; raw samples are kept and statistics are derived elsewhere."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from segx.model.spec import ModelSpec
from segx.runtimes.base import MemoryProfile, Precision, Scope, Variant

Status = Literal["ok", "parity broken", "unavailable", "out of memory", "crashed", "timed out", "failed"]
MEASURED: tuple[Status, ...] = ("ok", "parity broken")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it; what the driver does not tell is empty.

    Attributes:
        name: as the driver has it.
        memory_bytes: of the device; 0 where it shares the host's.
        driver: version.
        compute_capability: as 9.0.
        power_state: P0 (fastest) to P12, when asked.
        clock_mhz: of the multiprocessors, when asked.
        max_clock_mhz: highest they reach.
        power_limit_w: watts.
        temperature_c: when asked.
    """

    name: str
    memory_bytes: int
    driver: str
    compute_capability: str = ""
    power_state: str = ""
    clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True)
class Machine:
    """What a measurement depends on and cannot choose.

    Attributes:
        cpu: model name.
        cpu_flags: the instruction sets that decide speed, of those present.
        cores_total: logical processors of the host.
        cores_usable: what affinity and the cgroup quota leave this process; the default number of threads.
        cores_affinity: what affinity alone leaves it.
        cpu_quota: processors' worth of time that the cgroup allows; None for no limit.
        frequency_mhz: of the processors, mean when asked; None where the system does not tell.
        frequency_max_mhz: highest they reach; likewise.
        governor: of the processors' frequency; empty where the system does not tell (most virtual machines).
        memory_total_bytes: physical memory, or the cgroup's limit where that is lower.
        memory_available_bytes: of that, what was free when asked.
        memory_limit_bytes: of the cgroup; None for no limit.
        gpus: NVIDIA GPUs; empty without a driver.
        load_average_1min: running tasks, averaged over the last minute.
        system: kernel and architecture.
        python: version.
        versions: package -> installed version, of those that matter here.
        variables: environment variables that engines read, of those that are set.
        git_commit: of the folder in which the command ran, with ``+`` where it has changes; empty outside a repository.
    """

    cpu: str
    cpu_flags: tuple[str, ...]
    cores_total: int
    cores_usable: int
    memory_total_bytes: int
    memory_available_bytes: int
    gpus: tuple[Gpu, ...]
    load_average_1min: float
    system: str
    python: str
    versions: dict[str, str]
    cores_affinity: int | None = None
    cpu_quota: float | None = None
    frequency_mhz: float | None = None
    frequency_max_mhz: float | None = None
    governor: str = ""
    memory_limit_bytes: int | None = None
    variables: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a network has to do, counted from its exported file in fp32.

    Attributes:
        operations: multiplications and additions of convolutions and matrix products, for one image.
        weight_bytes: all weights, read once per call.
        activation_bytes: inputs and outputs of these operators, each read or written once, for one image.
        operators: how many of them there are.
    """

    operations: int
    weight_bytes: int
    activation_bytes: int
    operators: int


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What one device was seen to do at best.

    Attributes:
        device: ``cpu`` or ``cuda``.
        operations_per_s: precision -> multiplications and additions per second in the fastest matrix product.
        copy_bytes_per_s: bytes read plus bytes written per second by copying a large array within its memory.
        method: how it was measured.
        missing: precision -> why there is no figure.
    """

    device: Literal["cpu", "cuda"]
    operations_per_s: Mapping[str, float]
    copy_bytes_per_s: float
    method: str
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One turn of a cell.

    Attributes:
        number: of the round, from 0; cells that took turns in the same round have the same number.
        runs: timed calls in it.
        load: running tasks of the machine, averaged over the last minute; None where the system does not tell.
        throttled_s: seconds for which the cgroup's CPU quota held processes up meanwhile, over all processors.
        stolen_s: processor seconds that a hypervisor gave to others meanwhile, over all processors.
        gpu_mhz: clock of the GPU's multiprocessors after it.
        gpu_slowed: what held that clock down, in words; empty for nothing.
    """

    number: int
    runs: int
    load: float | None = None
    throttled_s: float = 0.0
    stolen_s: float = 0.0
    gpu_mhz: int | None = None
    gpu_slowed: str = ""


@dataclass(frozen=True)
class HostMemory:
    """Memory of one worker process, in bytes.

    Counts pages that were written, not library code or files mapped for reading, so that a worker forked from a process
    that had its libraries loaded and one started afresh compare.

    Attributes:
        imported_bytes: memory once the engine's libraries were imported.
        steady_bytes: memory after the last timed call.
        peak_bytes: highest memory from the import to the end.
        method: where the figures come from.
        loaded_bytes: memory once the model was loaded and had proved itself; None in older results.
    """

    imported_bytes: int
    steady_bytes: int
    peak_bytes: int
    method: str
    loaded_bytes: int | None = None

    @property
    def needed_bytes(self) -> int:
        """What the model and its inference needed at the peak, above the imported libraries."""
        return max(0, self.peak_bytes - self.imported_bytes)


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Memory of the GPU that one cell took, in bytes.

    Attributes:
        peak_bytes: highest figure while the worker had its turns; whatever it allocated, by whichever library.
        steady_bytes: after its last turn.
        method: where the two come from.
        counter_bytes: highest figure by the framework's own counter, which knows only its own allocations; None where
            it has none.
        counter: name of that counter; empty where there is none.
    """

    peak_bytes: int
    steady_bytes: int | None
    method: str
    counter_bytes: int | None = None
    counter: str = ""


@dataclass(frozen=True, kw_only=True)
class TruthScore:
    """Masks against the true ones, means over images, beside what the reference reaches.

    Attributes:
        iou: of this run.
        dice: of this run.
        reference_iou: of the reference.
        reference_dice: of the reference.
        loss: reference's IoU less this run's, mean over images; negative where this run is nearer to the truth.
        loss_low: lower end of its 95 % interval (bootstrap over images); -1 with under 6 images, which tell too little.
        loss_high: upper end; likewise 1.
    """

    iou: float
    dice: float
    reference_iou: float
    reference_dice: float
    loss: float
    loss_low: float
    loss_high: float

    @property
    def lossless(self) -> bool:
        """Whether no loss of quality can be told: the interval holds 0, or lies below."""
        return self.loss_low <= 0.0


@dataclass(frozen=True, kw_only=True)
class ClassParity:
    """One class of a model with several, over the images where either mask holds it.

    Attributes:
        index: of the class.
        iou: mean over those images; None where there are none.
        worst_iou: lowest of them.
        worst_image: name of the image it belongs to.
    """

    index: int
    iou: float | None
    worst_iou: float | None
    worst_image: str


@dataclass(frozen=True, kw_only=True)
class ImageParity:
    """One image: its mask and logits against the reference's.

    Attributes:
        name: of the image.
        flipped_pixels: mask pixels that differ.
        benign_flips: of those, how many lie inside the noise band: the reference's logit there is no further from the
            cut than the reference differs from itself.
        iou: intersection over union of the two masks; several classes count by their worst.
        dice: twice the intersection over the sum of both areas; several classes count by their worst.
        max_diff: largest |difference of logits|, in units of the reference's logit range; infinite where not finite.
        mean_diff: mean |difference of logits|, likewise.
        flip_distance_px: how far the farthest flip lies from the boundary of the reference's mask: 1 is the pixel
            beside it. None without flips, or where that mask has no boundary.
        truth_iou: this run's mask against the true one, mean of the classes that either holds; None without a true one.
        truth_dice: likewise.
    """

    name: str
    flipped_pixels: int
    benign_flips: int
    iou: float
    dice: float
    max_diff: float
    mean_diff: float
    flip_distance_px: float | None = None
    truth_iou: float | None = None
    truth_dice: float | None = None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How one run's logits and masks differ from the reference's, over a set of images.

    Attributes:
        images: how many images were compared.
        pixels: how many mask pixels, over all images.
        flipped_pixels: of those, how many differ.
        benign_flips: of those, how many lie inside the noise band.
        mean_iou: of the two masks of one image, mean over images.
        worst_iou: the lowest; several classes count by their worst.
        worst_image: name of that image (the first, where several tie).
        mean_dice: like ``mean_iou``.
        max_abs_diff: largest |difference of logits|; infinite where the run's logits are not finite.
        mean_abs_diff: mean |difference of logits|, likewise.
        logit_range: reference's largest logit minus its smallest.
        noise_band: how far the reference's logits differ from its own, and so the half-width of the band about the cut
            in which a flip is benign.
        flip_distance_px: the farthest over all images; see ``ImageParity``.
        classes: one entry per class where there are several.
        truth: None where there are no true masks.
        per_image: one entry per image compared.
    """

    images: int
    pixels: int
    flipped_pixels: int
    benign_flips: int
    mean_iou: float
    worst_iou: float
    worst_image: str
    mean_dice: float
    max_abs_diff: float
    mean_abs_diff: float
    logit_range: float
    noise_band: float
    flip_distance_px: float | None = None
    classes: tuple[ClassParity, ...] = ()
    truth: TruthScore | None = None
    per_image: tuple[ImageParity, ...] = ()

    @property
    def relative_diff(self) -> float:
        """``max_abs_diff`` in units of the logit range, which is taken as 1 where it is smaller."""
        return self.max_abs_diff / max(1.0, self.logit_range)

    @property
    def flipped_share(self) -> float:
        """Flipped pixels of all pixels, 0 to 1."""
        return self.flipped_pixels / self.pixels

    @property
    def real_flips(self) -> int:
        """Flips outside the noise band: the reference does not waver there."""
        return self.flipped_pixels - self.benign_flips

    @property
    def worst_class(self) -> ClassParity | None:
        """The class with the lowest mean IoU; None for a model of one class."""
        present = [entry for entry in self.classes if entry.iou is not None]
        return min(present, key=lambda entry: entry.iou or 0.0, default=None)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What was asked for.

    Attributes:
        runtimes: their names.
        precisions: which of those that each runtime has.
        scopes: likewise.
        batch_sizes: images per call.
        warmup: untimed calls before sampling.
        min_time_s: seconds of timed calls per cell, at least.
        min_runs: timed calls per cell, at least.
        max_time_s: seconds of timed calls per cell after which to give up on a settled median.
        seed: of the orders in which cells take turns.
        threads: processors of every runtime.
        memory_profile: see ``RuntimeOptions``.
        budget_s: seconds of timed calls in all, after which cells stop early; None for no limit.
        timeout_s: seconds after which a silent worker is given up on.
        memory_limit_bytes: private memory a CPU worker may take; None for what the machine has free.
        min_iou: lowest IoU an image's mask may have against the reference's; None for what the precision allows.
        max_flips: share of pixels that may flip; None for what the precision allows.
        calibration: folder of images to quantise on; None for generated scenes.
        engine_options: see ``RuntimeOptions``.
    """

    runtimes: tuple[str, ...]
    precisions: tuple[Precision, ...]
    scopes: tuple[Scope, ...]
    batch_sizes: tuple[int, ...]
    warmup: int
    min_time_s: float
    min_runs: int
    max_time_s: float
    seed: int
    threads: int
    memory_profile: MemoryProfile
    budget_s: float | None
    timeout_s: float
    memory_limit_bytes: int | None
    min_iou: float | None = None
    max_flips: float | None = None
    calibration: str | None = None
    engine_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Which model it was; file names without their folders, digests SHA-256.

    Attributes:
        spec: its description.
        weights_sha256: of the checkpoint.
        checkpoint: its name; None where only an exported file was given.
        onnx: name of the exported file; None where none was needed.
        onnx_sha256: its digest.
        derived: name -> digest of the files that were made of it, for a precision or an engine.
        float_layers: name -> layers that stayed float, of those in 8 bits where not all are.
        work: what the network has to compute and to move; None where it was not counted.
    """

    spec: ModelSpec
    weights_sha256: str
    checkpoint: str | None
    onnx: str | None
    onnx_sha256: str | None
    derived: Mapping[str, str] = field(default_factory=dict)
    float_layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    work: Work | None = None


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """Which images they were.

    Attributes:
        source: where from.
        sha256: digest of the preprocessed arrays.
        names: in order.
        truth: where their true masks are from; empty where there are none.
    """

    source: str
    sha256: str
    names: tuple[str, ...]
    truth: str = ""


@dataclass(frozen=True, kw_only=True)
class NoiseProbe:
    """The reference against itself, run in another way.

    Attributes:
        change: what was different.
        images: how many were compared.
        max_abs_diff: largest |difference of logits|.
        flipped_pixels: mask pixels that differ.
    """

    change: str
    images: int
    max_abs_diff: float
    flipped_pixels: int


@dataclass(frozen=True, kw_only=True)
class Wall:
    """Where the time went, in seconds of wall clock.

    Attributes:
        total: from the first step to the end.
        sampling: timed calls.
        loading: workers: start, import, load, first call, warm-up.
        export: making the exported file.
        reference: the reference's masks and its noise floor.
        peaks: what the devices can do at best.
    """

    total: float
    sampling: float
    loading: float
    export: float
    reference: float
    peaks: float = 0.0

    @property
    def overhead(self) -> float:
        """Share of the total that was none of these."""
        return max(0.0, 1 - (self.sampling + self.loading + self.export + self.reference + self.peaks) / self.total)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One runtime at one batch size.

    Attributes:
        runtime: its name.
        precision: see ``Precision``.
        batch_size: images per call; None where the runtime as a whole is unavailable.
        status: ``ok``, or what went wrong.
        reason: what went wrong, in one line.
        remedy: what to do about it, in one line.
        scope: what a time includes; see ``Scope``.
        samples_s: seconds of every timed call, in order; in the pipeline scope those of a pass over all images, for so
            many of them as a batch has.
        rounds: the turns in which they were made; empty where cells were not sampled in rounds.
        stopped: ``settled``, or why sampling stopped before the median was.
        import_s: see ``Loaded``.
        load_s: see ``Loaded``.
        first_s: see ``Loaded``.
        facts: what was really in force; see ``Runtime.facts``.
        host_memory: see ``HostMemory``.
        host_memory_missing: why there is none; empty where there is.
        device_memory: see ``DeviceMemory``.
        device_memory_missing: likewise.
        parity: outputs of the timed runs against the reference.
        stages: in the pipeline scope, seconds per image in each stage, by the names of ``StageTimes``; they overlap.
    """

    runtime: str
    precision: Precision
    batch_size: int | None
    status: Status
    reason: str = ""
    remedy: str = ""
    scope: Scope = "forward"
    samples_s: tuple[float, ...] = ()
    rounds: tuple[Round, ...] = ()
    stopped: str = ""
    import_s: float | None = None
    load_s: float | None = None
    first_s: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    host_memory: HostMemory | None = None
    host_memory_missing: str = ""
    device_memory: DeviceMemory | None = None
    device_memory_missing: str = ""
    parity: Parity | None = None
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def variant(self) -> Variant:
        """What was compared."""
        return Variant(self.runtime, self.precision, self.scope)

    @property
    def measured(self) -> bool:
        """Whether there are times."""
        return self.status in MEASURED and bool(self.samples_s)

    @property
    def median_s(self) -> float:
        """Median seconds of one call."""
        return statistics.median(self.samples_s)

    @property
    def round_medians_s(self) -> tuple[float, ...]:
        """Median seconds of one call, round by round; call by call where there were no rounds."""
        if not self.rounds:
            return self.samples_s
        starts = itertools.accumulate((turn.runs for turn in self.rounds), initial=0)
        return tuple(
            statistics.median(self.samples_s[start : start + turn.runs])
            for start, turn in zip(starts, self.rounds, strict=False)
        )

    @property
    def seconds_per_image(self) -> float:
        """Median seconds of a call, per image of the batch."""
        assert self.batch_size  # measured cells have one
        return self.median_s / self.batch_size


@dataclass(frozen=True, kw_only=True)
class Results:
    """A whole bench.

    Attributes:
        created: when it began, ISO 8601 in UTC.
        segx: version.
        command: how to repeat it.
        options: see ``BenchOptions``.
        model: see ``ModelFacts``.
        inputs: see ``InputFacts``.
        reference: the variant that masks were judged against.
        machine: see ``Machine``; as it was before.
        complete: False where the bench was cut off.
        cells: by batch size, then variant; variants that are unavailable come first.
        noise: the reference against itself; empty where it was not asked.
        load_after: running tasks when it ended, averaged over a minute.
        wall: where the time went; None until complete, and in older results.
        peaks: what the devices were seen to do at best, one entry per device; empty where it was not measured.
    """

    created: str
    segx: str
    command: str
    options: BenchOptions
    model: ModelFacts
    inputs: InputFacts
    reference: str
    machine: Machine
    complete: bool
    cells: tuple[Cell, ...]
    noise: tuple[NoiseProbe, ...] = ()
    load_after: float | None = None
    wall: Wall | None = None
    peaks: tuple[Peaks, ...] = ()

    @property
    def images(self) -> int:
        """How many images a full pass has."""
        return len(self.inputs.names)

    def cell(self, variant: Variant, batch_size: int) -> Cell | None:
        """The measured cell of a variant at a batch size, if there is one."""
        return self._measured.get((variant, batch_size))

    def spent_s(self, cell: Cell) -> tuple[float, ...]:
        """Seconds by the clock of each timed run of a cell: a call, or in the pipeline scope a pass."""
        if cell.scope != "pipeline" or not cell.batch_size:
            return cell.samples_s
        return tuple(seconds * self.images / cell.batch_size for seconds in cell.samples_s)

    def peaks_of(self, device: str) -> Peaks | None:
        """What a device (``cpu``, ``cuda``) was seen to do at best; None where it was not measured."""
        return next((peaks for peaks in self.peaks if peaks.device == device), None)

    @cached_property
    def _measured(self) -> dict[tuple[Variant, int], Cell]:
        return {(cell.variant, cell.batch_size or 0): cell for cell in self.cells if cell.measured}
