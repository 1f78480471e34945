"""Results as CSV: one line per cell, numbers in base units (seconds, bytes), empty where there is none."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from segx.analysis import stats
from segx.analysis.figures import seconds_for, verdict_of
from segx.analysis.ratios import Speedup, versus_batch_1, versus_previous, versus_pytorch
from segx.predict.batching import StageTimes
from segx.results.provenance import machine_id, spec_id
from segx.results.types import Cell, Results
from segx.system.text import printable

_HOST_MEMORY = ("imported_bytes", "loaded_bytes", "steady_bytes", "peak_bytes", "needed_bytes")
_DEVICE_MEMORY = ("steady_bytes", "peak_bytes", "counter_bytes")
# Column -> field.
_PARITY = {
    "images_compared": "images",
    **{
        name: name
        for name in (
            "pixels", "flipped_pixels", "benign_flips", "mean_iou", "worst_iou", "worst_image", "mean_dice",
            "max_abs_diff", "mean_abs_diff", "logit_range", "noise_band", "flip_distance_px",
        )
    },
}  # fmt: skip
_TRUTH = ("iou", "dice", "reference_iou", "reference_dice", "loss", "loss_low", "loss_high")


_TIMES: dict[str, Callable[[Cell, Results], Any]] = {
    "runs": lambda cell, _: len(cell.samples_s),
    "rounds": lambda cell, _: len(cell.rounds),
    "stopped": lambda cell, _: cell.stopped,
    "images": lambda _, results: results.images,
    "images_s": lambda cell, results: seconds_for(cell, results.images)[0],
    "images_s_measured": lambda cell, results: seconds_for(cell, results.images)[1],
    "s_per_image": lambda cell, _: cell.seconds_per_image,
    "images_per_s": lambda cell, _: 1 / cell.seconds_per_image,
    "p50_s": lambda cell, _: cell.median_s,
    "p50_low_s": lambda cell, _: _end(stats.median_interval(cell.samples_s), "low"),
    "p50_high_s": lambda cell, _: _end(stats.median_interval(cell.samples_s), "high"),
    "p90_s": lambda cell, _: stats.percentile(cell.samples_s, 90),
    "p95_s": lambda cell, _: stats.percentile(cell.samples_s, 95),
    "p99_s": lambda cell, _: stats.percentile(cell.samples_s, 99),
}
_RATIOS = {"vs_batch_1": versus_batch_1, "vs_previous": versus_previous, "vs_pytorch": versus_pytorch}
_STAGES = tuple(StageTimes.__dataclass_fields__)
_COLD_START = ("import_s", "load_s", "first_s")

# What a spreadsheet would take for a formula.
_FORMULA = ("=", "+", "-", "@")


def to_csv(results: Results) -> str:
    """All cells; what failed has its status and reason, and no numbers. The columns are the same for all results."""
    return written(rows(results))


def written(lines: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, under the columns of all of them.

    Each row is one line: control characters are shown by their codes. A text that a spreadsheet would take for a
    formula has an apostrophe before it.
    """
    columns = list(dict.fromkeys(name for line in lines for name in line))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in line.items()} for line in lines)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.startswith(_FORMULA) else text
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def rows(results: Results) -> list[dict[str, Any]]:
    """A row per cell: column -> value, None where there is none."""
    run = _run(results)
    return [
        {**run, **_what(cell), **_times(cell, results), **_stages(cell), **_memory(cell), **_masks(cell, results)}
        for cell in results.cells
    ]


def _run(results: Results) -> dict[str, Any]:
    """What is the same for all cells of a run."""
    return {
        "created": results.created,
        "segx": results.segx,
        "machine_id": machine_id(results),
        "cpu": results.machine.cpu,
        "cores": results.machine.cores_usable,
        "gpus": "; ".join(gpu.name for gpu in results.machine.gpus),
        "spec_id": spec_id(results),
        "weights_sha256": results.model.weights_sha256,
        "inputs_sha256": results.inputs.sha256,
        "reference": results.reference,
        "threads": results.options.threads,
    }


def _what(cell: Cell) -> dict[str, Any]:
    names = ("runtime", "precision", "scope", "batch_size", "status", "reason", "remedy")
    return {
        **{name: getattr(cell, name) for name in names},
        "facts": json.dumps(dict(cell.facts)) if cell.facts else "",
    }


def _times(cell: Cell, results: Results) -> dict[str, Any]:
    times = {name: figure(cell, results) if cell.measured else None for name, figure in _TIMES.items()}
    return {**times, **{name: getattr(cell, name) for name in _COLD_START}, **_ratios(cell, results)}


def _stages(cell: Cell) -> dict[str, Any]:
    """Of the pipeline scope, where the time of an image goes."""
    return {f"{stage}_s_per_image": cell.stages.get(stage) for stage in _STAGES}


def _ratios(cell: Cell, results: Results) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, versus in _RATIOS.items():
        found |= ratio_columns(name, versus(cell, results) if cell.measured else None)
    return found


def ratio_columns(name: str, against: Speedup | None) -> dict[str, Any]:
    """A ratio and both ends of its interval; None where there are none."""
    interval = against.interval if against else None
    ratio = against.ratio if against else None
    return {name: ratio, f"{name}_low": _end(interval, "low"), f"{name}_high": _end(interval, "high")}


def _end(interval: stats.Interval | None, which: Literal["low", "high"]) -> float | None:
    if interval is None:
        return None
    return interval.low if which == "low" else interval.high


def _memory(cell: Cell) -> dict[str, Any]:
    host, device = cell.host_memory, cell.device_memory
    return {
        **{f"host_{name}": getattr(host, name) if host else None for name in _HOST_MEMORY},
        "host_memory_method": host.method if host else cell.host_memory_missing,
        **{f"device_{name}": getattr(device, name) if device else None for name in _DEVICE_MEMORY},
        "device_memory_method": device.method if device else cell.device_memory_missing,
    }


def _masks(cell: Cell, results: Results) -> dict[str, Any]:
    parity = cell.parity
    truth = parity.truth if parity else None
    return {
        "masks": verdict_of(results, cell),
        **{name: getattr(parity, field) if parity else None for name, field in _PARITY.items()},
        **{f"truth_{name}": getattr(truth, name) if truth else None for name in _TRUTH},
    }
