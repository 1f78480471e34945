"""Results as CSV: one line per cell, numbers in base units (seconds, bytes), empty where there is none."""

from __future__ import annotations

import csv
import io
from typing import Any

from segx.bench import stats
from segx.bench.results import Cell, Results
from segx.bench.speedup import versus_batch_1, versus_previous, versus_pytorch


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
    names = ("runtime", "precision", "scope", "batch_size", "status", "reason")
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
        "host_private_peak_bytes": cell.host_memory and cell.host_memory.needed_bytes,
        "device_peak_bytes": cell.device_memory and cell.device_memory.peak_bytes,
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
    for name in ("images", "flipped_pixels", "worst_iou", "worst_image", "max_abs_diff"):
        key = "images_compared" if name == "images" else name
        figures[key] = cell.parity and getattr(cell.parity, name)
    return figures
