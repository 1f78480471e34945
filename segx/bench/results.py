"""The results of a bench as data: immutable, versioned, raw samples kept; statistics are derived."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segx.bench import stats
from segx.bench.memory import HostMemory
from segx.errors import ResultsError, UsageError
from segx.machine import Gpu, Machine
from segx.parity import Parity
from segx.spec import ModelSpec

# 1: first version; cells one after the other.
# 2: cells of one batch size in rounds (rounds, max_time_s, seed); gates of the user (min_iou, max_flips).
SCHEMA_VERSION = 2

Status = Literal["ok", "parity broken", "unavailable", "out of memory", "crashed", "timed out", "failed"]
MEASURED: tuple[Status, ...] = ("ok", "parity broken")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What was asked for.

    Attributes:
        runtimes: their names.
        batch_sizes: images per call.
        warmup: untimed calls before sampling.
        min_time_s: seconds of timed calls per cell, at least.
        min_runs: timed calls per cell, at least.
        max_time_s: seconds of timed calls per cell after which to give up on a settled median.
        seed: of the orders in which cells take turns.
        threads: processors of every runtime.
        tf32: whether CUDA may use 10-bit mantissas.
        budget_s: seconds of timed calls in all, after which cells stop early; None for no limit.
        timeout_s: seconds after which a silent worker is given up on.
        memory_limit_bytes: private memory a CPU worker may take; None for what the machine has free.
        min_iou: lowest IoU an image's mask may have against the reference's; None for what the precision allows.
        max_flips: share of pixels that may flip; None for what the precision allows.
    """

    runtimes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    warmup: int
    min_time_s: float
    min_runs: int
    max_time_s: float
    seed: int
    threads: int
    tf32: bool
    budget_s: float | None
    timeout_s: float
    memory_limit_bytes: int | None
    min_iou: float | None = None
    max_flips: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Which model it was; file names without their folders, digests SHA-256."""

    spec: ModelSpec
    weights_sha256: str
    checkpoint: str | None
    onnx: str | None
    onnx_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """Which images they were: where from, digest of the preprocessed arrays, names in order."""

    source: str
    sha256: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of the GPU that one cell took, in bytes, with its source."""

    peak_bytes: int
    method: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One runtime at one batch size.

    Attributes:
        runtime: its name.
        precision: ``fp32`` (TF32 off) or ``tf32``.
        batch_size: images per call; None where the runtime as a whole is unavailable.
        status: ``ok``, or what went wrong.
        reason: what went wrong, in one line.
        remedy: what to do about it, in one line.
        scope: what a time includes; ``forward`` is host array in, host array out.
        samples_s: seconds of every timed call, in order.
        rounds: how many of them each round made; empty where cells were not sampled in rounds.
        stopped: ``settled``, or why sampling stopped before the median was.
        import_s: see ``Loaded``.
        load_s: see ``Loaded``.
        first_s: see ``Loaded``.
        facts: what was really in force; see ``Runtime.facts``.
        host_memory: see ``HostMemory``.
        device_memory: see ``DeviceMemory``.
        parity: outputs of the timed runs against the reference.
    """

    runtime: str
    precision: str
    batch_size: int | None
    status: Status
    reason: str = ""
    remedy: str = ""
    scope: str = "forward"
    samples_s: tuple[float, ...] = ()
    rounds: tuple[int, ...] = ()
    stopped: str = ""
    import_s: float | None = None
    load_s: float | None = None
    first_s: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    host_memory: HostMemory | None = None
    device_memory: DeviceMemory | None = None
    parity: Parity | None = None

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
        starts = itertools.accumulate(self.rounds, initial=0)
        return tuple(
            stats.median(self.samples_s[start : start + count])
            for start, count in zip(starts, self.rounds, strict=False)
        )

    @property
    def seconds_per_image(self) -> float:
        """Median seconds of a call, per image of the batch."""
        assert self.batch_size  # measured cells have one
        return self.median_s / self.batch_size

    def seconds_for(self, images: int) -> tuple[float, bool]:
        """Seconds to run ``images`` images, and whether that was measured.

        Measured where the timed calls took at least that many images through: the mean of the complete passes. Else
        projected from the median. The last call of a pass counts whole, as it does in use.
        """
        assert self.batch_size  # measured cells have one
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
        machine: see ``Machine``.
        complete: False where the bench was cut off.
        cells: by batch size, then runtime; runtimes that are unavailable come first.
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

    @property
    def images(self) -> int:
        """How many images a full pass has."""
        return len(self.inputs.names)

    def cell(self, runtime: str, batch_size: int) -> Cell | None:
        """The measured cell of a runtime at a batch size, if there is one."""
        return next((c for c in self.cells if c.runtime == runtime and c.batch_size == batch_size and c.measured), None)


def to_json(results: Results) -> str:
    """Results as JSON text, with their schema version first."""
    values = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(results)}
    # NaN and infinity are no JSON; a missing number is null.
    return json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def load_results(path: Path) -> Results:
    """Read results from a file, or from ``results.json`` in a folder.

    Raises:
        ResultsError: missing, no JSON, or of an unknown schema version.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version = values.pop("schema_version")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(
            f"{file} is missing or no segx results", hint="give a folder that `segx bench` wrote"
        ) from error
    if version not in range(1, SCHEMA_VERSION + 1):
        raise ResultsError(
            f"{file} has schema version {version}; this segx reads 1 to {SCHEMA_VERSION}",
            hint="use the segx that wrote it",
        )
    try:
        if version == 1:
            values = _from_version_1(values)
        return _results_from(values)
    except (TypeError, KeyError, UsageError) as error:
        raise ResultsError(f"{file} is damaged: {error}", hint="run the bench again") from error


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """Cells were sampled one after the other, until the minima were met."""
    options = {**values["options"], "max_time_s": values["options"]["min_time_s"], "seed": 0}
    return {**values, "options": options, "cells": [{**cell, "rounds": []} for cell in values["cells"]]}


def _results_from(values: dict[str, Any]) -> Results:
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["options"].items()}
    host = values["machine"]
    machine = {**host, "cpu_flags": tuple(host["cpu_flags"]), "gpus": tuple(Gpu(**gpu) for gpu in host["gpus"])}
    model, inputs = values["model"], values["inputs"]
    return Results(
        **{
            **values,
            "model": ModelFacts(**{**model, "spec": ModelSpec.from_dict(model["spec"])}),
            "inputs": InputFacts(**{**inputs, "names": tuple(inputs["names"])}),
            "options": BenchOptions(**options),
            "machine": Machine(**machine),
            "cells": tuple(_cell_from(cell) for cell in values["cells"]),
        }
    )


def _cell_from(values: dict[str, Any]) -> Cell:
    nested = {"host_memory": HostMemory, "device_memory": DeviceMemory, "parity": Parity}
    built = {name: kind(**values[name]) for name, kind in nested.items() if values[name] is not None}
    if "parity" in built and built["parity"].max_abs_diff is None:
        built["parity"] = dataclasses.replace(built["parity"], max_abs_diff=math.inf)
    return Cell(**{**values, "samples_s": tuple(values["samples_s"]), "rounds": tuple(values["rounds"]), **built})
