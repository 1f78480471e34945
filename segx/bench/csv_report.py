"""Results as CSV: one line per cell, numbers in base units (seconds, bytes), empty where there is none."""

from __future__ import annotations

import csv
import io
from typing import Any

from segx.bench import stats
from segx.bench.results import Cell, Results
from segx.bench.speedup import versus_batch_1, versus_previous, versus_pytorch

_HOST_MEMORY = ("imported_bytes", "loaded_bytes", "steady_bytes", "peak_bytes", "needed_bytes")
_DEVICE_MEMORY = ("steady_bytes", "peak_bytes", "counter_bytes")
_PARITY = (
    "images", "flipped_pixels", "benign_flips", "mean_iou", "worst_iou", "worst_image", "mean_dice", "max_abs_diff",
    "mean_abs_diff", "logit_range", "noise_band", "flip_distance_px",
)  # fmt: skip
_TRUTH = ("iou", "dice", "reference_iou", "reference_dice", "loss", "loss_low", "loss_high")


def to_csv(results: Results) -> str:
    """All cells; what failed has its status and reason, and no numbers."""
    rows = [{**_what(cell), **(_figures(cell, results) if cell.measured else {})} for cell in results.cells]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value is None else value for name, value in row.items()})
    return stream.getvalue()


def _what(cell: Cell) -> dict[str, Any]:
    names = ("runtime", "precision", "scope", "batch_size", "status", "reason", "remedy")
    return {name: getattr(cell, name) for name in names}


def _figures(cell: Cell, results: Results) -> dict[str, Any]:
    seconds, measured = cell.seconds_for(results.images)
    interval = stats.median_interval(cell.samples_s)
    figures: dict[str, Any] = {
        "runs": len(cell.samples_s),
        "rounds": len(cell.rounds),
        "stopped": cell.stopped,
        "images": results.images,
        "images_s": seconds,
        "images_s_measured": measured,
        "s_per_image": cell.seconds_per_image,
        "images_per_s": 1 / cell.seconds_per_image,
        "p50_s": cell.median_s,
        "p50_low_s": interval and interval.low,
        "p50_high_s": interval and interval.high,
        **{f"p{percent}_s": stats.percentile(cell.samples_s, percent) for percent in stats.RUNS_FOR_PERCENTILE},
        "import_s": cell.import_s,
        "load_s": cell.load_s,
        "first_s": cell.first_s,
        **{f"{stage}_s_per_image": seconds for stage, seconds in cell.stages.items()},
        **{f"host_{name}": cell.host_memory and getattr(cell.host_memory, name) for name in _HOST_MEMORY},
        "host_memory_method": cell.host_memory.method if cell.host_memory else cell.host_memory_missing,
        **{f"device_{name}": cell.device_memory and getattr(cell.device_memory, name) for name in _DEVICE_MEMORY},
        "device_memory_method": cell.device_memory.method if cell.device_memory else cell.device_memory_missing,
    }
    for name, versus in (
        ("vs_batch_1", versus_batch_1),
        ("vs_previous", versus_previous),
        ("vs_pytorch", versus_pytorch),
    ):
        against = versus(cell, results)
        figures[name] = against and against.ratio
        figures[f"{name}_low"] = against and against.interval and against.interval.low
        figures[f"{name}_high"] = against and against.interval and against.interval.high
    figures["masks"] = results.verdict(cell)
    for name in _PARITY:
        key = "images_compared" if name == "images" else name
        figures[key] = cell.parity and getattr(cell.parity, name)
    for name in _TRUTH:
        figures[f"truth_{name}"] = cell.parity and cell.parity.truth and getattr(cell.parity.truth, name)
    return figures
