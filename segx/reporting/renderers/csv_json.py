"""Results for programs, as CSV and JSON: numbers in base units (seconds, bytes), empty or null if there is none."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from segx.analysis import stats
from segx.analysis.compare import Run, SideBySide
from segx.analysis.figures import (
    Speedup,
    interval_of,
    interval_per_image,
    needed_bytes,
    pytorch_base,
    quality_of,
    seconds_for,
    verdict_of,
    versus,
    versus_batch_1,
    versus_previous,
)
from segx.analysis.history import Group, History, Series
from segx.results.provenance import bench_id, machine_id, spec_id
from segx.results.settings import host_of
from segx.results.types import STAGES, Cell, Results
from segx.system.text import printable

_HOST_MEMORY = ("imported_bytes", "loaded_bytes", "steady_bytes", "peak_bytes", "needed_bytes")
_DEVICE_MEMORY = ("steady_bytes", "peak_bytes", "counter_bytes")
_PARITY = (
    "pixels", "flipped_pixels", "benign_flips", "mean_iou", "worst_iou", "worst_image", "mean_dice", "max_abs_diff",
    "mean_abs_diff", "logit_range", "noise_band", "flip_distance_px",
)  # fmt: skip
_TRUTH = ("iou", "dice", "reference_iou", "reference_dice", "loss", "loss_low", "loss_high")
_VARIANT = ("runtime", "precision", "scope")

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
    "p50_low_s": lambda cell, _: _median_end(cell, "low"),
    "p50_high_s": lambda cell, _: _median_end(cell, "high"),
    "p90_s": lambda cell, _: stats.percentile(cell.samples_s, 90),
    "p95_s": lambda cell, _: stats.percentile(cell.samples_s, 95),
    "p99_s": lambda cell, _: stats.percentile(cell.samples_s, 99),
}

# A spreadsheet takes a text that starts with one of these for a formula.
_FORMULA = ("=", "+", "-", "@")


def to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, under the columns of all of them.

    Each row is one line: control characters are replaced by their codes. A text that a spreadsheet would take for a
    formula gets an apostrophe before it.
    """
    columns = list(dict.fromkeys(name for line in lines for name in line))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in line.items()} for line in lines)
    return stream.getvalue()


def to_json(data: Any) -> str:
    """Return plain data as JSON."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.startswith(_FORMULA) else text
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def bench_rows(results: Results) -> list[dict[str, Any]]:
    """Return a row per cell: column -> value; the columns are the same for all results."""
    run = {
        "bench": bench_id(results),
        **_named(results, "created", "segx"),
        "machine_id": machine_id(results),
        "cpu": results.machine.cpu,
        "cores": results.machine.cores_usable,
        "gpus": "; ".join(gpu.name for gpu in results.machine.gpus),
        "spec_id": spec_id(results),
        "weights_sha256": results.model.weights_sha256,
        "inputs_sha256": results.inputs.sha256,
        "reference": results.reference,
        "threads": results.options.threads,
        "load_before": results.machine.load_average_1min,
    }
    return [
        {
            **run,
            "variant": str(cell.variant),
            **_named(cell, *_VARIANT, "batch_size", "status", "reason", "remedy"),
            **_timed(cell, results),
            **_named(cell, "import_s", "load_s", "first_s"),
            **_ratio("vs_batch_1", versus_batch_1(cell, results) if cell.measured else None),
            **_ratio("vs_previous", versus_previous(cell, results) if cell.measured else None),
            **_versus_pytorch(cell, results),
            **{f"{stage}_s_per_image": cell.stages.get(stage) for stage in STAGES},
            **_memory(cell),
            **_masks(cell, results),
            "facts": json.dumps(dict(cell.facts)) if cell.facts else "",
        }
        for cell in results.cells
    ]


def _named(record: object, *names: str, before: str = "") -> dict[str, Any]:
    """Return these fields of a record, each None without a record; ``before`` is put before their names."""
    return {f"{before}{name}": getattr(record, name) if record else None for name in names}


def _ratio(name: str, against: Speedup | None) -> dict[str, Any]:
    """Return a ratio and both ends of its interval."""
    interval = against.interval if against else None
    return {name: against.ratio if against else None, **_named(interval, "low", "high", before=f"{name}_")}


def _versus_pytorch(cell: Cell, results: Results) -> dict[str, Any]:
    """Return the ratio to PyTorch, and which cell that is."""
    base = pytorch_base(cell, results) if cell.measured else None
    found = _ratio("vs_pytorch", versus(base, cell))
    return {**found, "vs_pytorch_base": f"{base.variant} batch {base.batch_size}" if base else None}


def _median_end(cell: Cell, which: Literal["low", "high"]) -> float | None:
    """Return an end of the interval of the median call; None for too few calls."""
    interval = interval_of(cell)
    return getattr(interval, which) if interval else None


def _timed(cell: Cell, results: Results, names: Iterable[str] = ()) -> dict[str, Any]:
    """Return these figures of a cell, or all, each None if it was not measured."""
    return {name: _TIMES[name](cell, results) if cell.measured else None for name in names or _TIMES}


def _memory(cell: Cell) -> dict[str, Any]:
    host, device = cell.host_memory, cell.device_memory
    return {
        "memory_bytes": needed_bytes(cell),
        **_named(host, *_HOST_MEMORY, before="host_"),
        "host_memory_method": host.method if host else cell.host_memory_missing,
        **_named(device, *_DEVICE_MEMORY, before="device_"),
        "device_memory_method": device.method if device else cell.device_memory_missing,
    }


def _masks(cell: Cell, results: Results) -> dict[str, Any]:
    parity = cell.parity
    return {
        "masks": verdict_of(results, cell),
        "quality": quality_of(results, cell),
        "images_compared": parity.images if parity else None,
        **_named(parity, *_PARITY),
        **_named(parity.truth if parity else None, *_TRUTH, before="truth_"),
    }


def side_by_side_rows(compared: SideBySide) -> list[dict[str, Any]]:
    """Return a row per run and cell, as for one bench, with the run's label and the ratio to the first run."""
    lines = []
    for place, run in enumerate(compared.runs):
        ratios = {(row.variant, row.batch_size): row.ratios[place] for row in compared.rows}
        for cell, line in zip(run.results.cells, bench_rows(run.results), strict=True):
            against = ratios.get((cell.variant, cell.batch_size))
            lines.append({"run": run.label, **line, **_ratio("vs_first", against)})
    return lines


def side_by_side_data(compared: SideBySide) -> dict[str, Any]:
    """Return runs, differences and rows; raw samples stay in each run's own file."""
    return {
        "runs": [
            {
                "label": run.label,
                **_named(run.results, "created", "segx"),
                "host": host_of(run.results),
                "machine_id": machine_id(run.results),
                "complete": run.results.complete,
            }
            for run in compared.runs
        ],
        "differences": {name: list(values) for name, values in compared.differences.items()},
        "warnings": list(compared.warnings),
        "masks_compare": compared.same_masks,
        "rows": [
            {
                **_named(row.variant, *_VARIANT),
                "batch_size": row.batch_size,
                "cells": [
                    _cell_data(run, cell, ratio)
                    for run, cell, ratio in zip(compared.runs, row.cells, row.ratios, strict=True)
                ],
            }
            for row in compared.rows
        ],
    }


def _cell_data(run: Run, cell: Cell | None, ratio: Speedup | None) -> dict[str, Any] | None:
    """Return None if the run did not have the cell."""
    if cell is None:
        return None
    return {
        **_named(cell, "status", "reason", "remedy"),
        **_timed(cell, run.results, ("s_per_image", "p50_s", "p50_low_s", "p50_high_s")),
        "needed_bytes": needed_bytes(cell) if cell.measured else None,
        "masks": verdict_of(run.results, cell),
        **_ratio("vs_first", ratio),
    }


def history_data(history: History) -> dict[str, Any]:
    """Return groups, series and changes; indices of runs count from 0 within their group."""
    return {
        "folder": str(history.folder),
        "least_change": history.least_change,
        "groups": [_group_data(group) for group in history.groups],
        "skipped": [{"path": str(path), "reason": reason} for path, reason in history.skipped],
    }


def _group_data(group: Group) -> dict[str, Any]:
    first = group.runs[0].results
    return {
        "host": host_of(first),
        **_named(first.options, "threads", "memory_profile"),
        "weights_sha256": first.model.weights_sha256,
        "inputs_sha256": first.inputs.sha256,
        "model": str(first.model.spec),
        "untested": group.untested,
        "runs": [
            {
                "label": run.label,
                **_named(run.results, "created", "segx"),
                "git_commit": run.results.machine.git_commit,
                "complete": run.results.complete,
            }
            for run in group.runs
        ],
        "series": [_series_data(series, group) for series in group.series],
    }


def _series_data(series: Series, group: Group) -> dict[str, Any]:
    return {
        "variant": str(series.variant),
        **_named(series.variant, *_VARIANT),
        "batch_size": series.batch_size,
        "points": [
            {"run": place, **_history_point(cell, run)}
            for place, (cell, run) in enumerate(zip(series.cells, group.runs, strict=True))
            if cell
        ],
        "changes": [
            {
                **_named(change, "before", "after", "kind"),
                "told": change.description,
                "p_value": change.p_value,
                **_ratio("ratio", change.speedup),
            }
            for change in series.changes
        ],
    }


def _history_point(cell: Cell, run: Run) -> dict[str, Any]:
    interval = interval_per_image(cell) if cell.measured else None
    return {
        **_named(cell, "status", "reason"),
        **_timed(cell, run.results, ("s_per_image",)),
        "s_per_image_low": interval.low if interval else None,
        "s_per_image_high": interval.high if interval else None,
        "rounds": len(cell.rounds),
        "needed_bytes": needed_bytes(cell) if cell.measured else None,
        "masks": verdict_of(run.results, cell),
    }


def history_rows(history: History) -> list[dict[str, Any]]:
    """Return a row per run, variant and batch size, by group, series and time, with the changes into that run."""
    return [
        _history_row(number, series, place, cell, run)
        for number, group in enumerate(history.groups, start=1)
        for series in group.series
        for place, (cell, run) in enumerate(zip(series.cells, group.runs, strict=True))
        if cell
    ]


def _history_row(number: int, series: Series, place: int, cell: Cell, run: Run) -> dict[str, Any]:
    into = [change for change in series.changes if change.after == place]
    tested = next((change for change in into if change.speedup), None)
    return {
        "group": number,
        "run": run.label,
        **_named(run.results, "created", "segx"),
        "git_commit": run.results.machine.git_commit,
        **_named(series.variant, *_VARIANT),
        "batch_size": series.batch_size,
        **_history_point(cell, run),
        "changes": "; ".join(change.kind for change in into),
        "p_value": tested.p_value if tested else None,
        **_ratio("ratio", tested.speedup if tested else None),
    }
