"""The results of a bench as data: immutable, versioned, raw samples kept; statistics are derived."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from segx.analysis import stats
from segx.analysis.roofline import Peaks, Work
from segx.bench.environment import Round
from segx.masks.agreement import LIMITS, Parity, ParityLimits, Verdict
from segx.model.spec import ModelSpec
from segx.runtimes import MemoryProfile, Precision, Scope, Variant, runtime_info
from segx.system.device_memory import DeviceMemory
from segx.system.machine import Machine
from segx.system.memory import HostMemory

Status = Literal["ok", "parity broken", "unavailable", "out of memory", "crashed", "timed out", "failed"]
MEASURED: tuple[Status, ...] = ("ok", "parity broken")


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
        return stats.median(self.samples_s)

    @property
    def round_medians_s(self) -> tuple[float, ...]:
        """Median seconds of one call, round by round; call by call where there were no rounds."""
        if not self.rounds:
            return self.samples_s
        starts = itertools.accumulate((turn.runs for turn in self.rounds), initial=0)
        return tuple(
            stats.median(self.samples_s[start : start + turn.runs])
            for start, turn in zip(starts, self.rounds, strict=False)
        )

    @property
    def needed_bytes(self) -> int | None:
        """Peak memory of model and inference where it computes: the device's, or the host's above the libraries."""
        if runtime_info(self.runtime).device == "cuda":
            return self.device_memory.peak_bytes if self.device_memory else None
        return self.host_memory.needed_bytes if self.host_memory else None

    @property
    def seconds_per_image(self) -> float:
        """Median seconds of a call, per image of the batch."""
        assert self.batch_size  # measured cells have one
        return self.median_s / self.batch_size

    def seconds_for(self, images: int) -> tuple[float, bool]:
        """Seconds to run ``images`` images, and whether that was measured.

        Measured where the timed calls took at least that many images through: the mean of the complete passes. Else
        projected from the median. The last call of a pass counts whole, as it does in use. In the pipeline scope every
        sample is of a whole pass.
        """
        assert self.batch_size  # measured cells have one
        if self.scope == "pipeline":
            return sum(self.samples_s) / len(self.samples_s) / self.batch_size * images, True
        calls = math.ceil(images / self.batch_size)
        passes = len(self.samples_s) // calls
        if passes:
            return sum(self.samples_s[: passes * calls]) / passes, True
        return calls * self.median_s, False


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

    def verdict(self, cell: Cell) -> Verdict | None:
        """What the differences of a cell's masks amount to; None where it has none."""
        return cell.parity.verdict(limits_for(cell.precision, self.options)) if cell.parity else None


def limits_for(precision: Precision, options: BenchOptions) -> ParityLimits:
    """How far masks may differ: the user's gates, else what the precision allows."""
    return LIMITS[precision].with_gates(min_iou=options.min_iou, max_flips=options.max_flips)
