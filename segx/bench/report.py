"""Results as text, Markdown and CSV: pure functions, results in, text out. The only place where units are chosen."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence

from segx.bench.results import RUNS_FOR_P95, Cell, Results
from segx.runtimes import runtime_info
from segx.table import aligned

_BLANK = "–"


# Heading -> how a measured cell fills the column.
_COLUMNS: dict[str, Callable[[Cell, Results], str]] = {
    "batch": lambda cell, _: str(cell.batch_size),
    "time": lambda cell, results: _seconds(*cell.seconds_for(results.images)),
    "ms/image": lambda cell, _: f"{cell.seconds_per_image * 1e3:.1f}",
    "FPS": lambda cell, _: f"{1 / cell.seconds_per_image:.2f}",
    "p50 ms": lambda cell, _: f"{cell.median_s * 1e3:.1f}",
    "p95 ms": lambda cell, _: _BLANK if cell.p95_s is None else f"{cell.p95_s * 1e3:.1f}",
    "memory": lambda cell, _: _mebibytes(_memory_bytes(cell)),
    "vs batch 1": lambda cell, results: _ratio(results.cell(cell.runtime, 1), cell),
    "vs previous": lambda cell, results: _ratio(_previous(cell, results), cell),
    "vs PyTorch": lambda cell, results: _ratio(_baseline(cell, results), cell),
    "flipped px": lambda cell, _: _BLANK if cell.parity is None else str(cell.parity.flipped_pixels),
    "worst IoU": lambda cell, _: _BLANK if cell.parity is None else _iou(cell.parity.worst_iou),
}


def to_text(results: Results) -> str:
    """Aligned tables for a terminal, one per runtime."""
    parts = [_heading(results)]
    for runtime, cells in _by_runtime(results):
        parts.append(f"{_title(runtime, cells)}\n{aligned(_titles(results, runtime), _rows(results, cells))}")
        if (missing := cells[0]).batch_size is None:
            parts[-1] = f"{runtime}  {missing.status}: {missing.reason}\n  try: {missing.remedy}"
    parts.append("\n".join(_notes(results)))
    return "\n\n".join(part for part in parts if part) + "\n"


def to_markdown(results: Results) -> str:
    """The same tables as GitHub-flavoured Markdown."""
    parts = [_heading(results).replace("\n", "  \n")]
    for runtime, cells in _by_runtime(results):
        parts.append(f"### {_title(runtime, cells)}")
        if (missing := cells[0]).batch_size is None:
            parts.append(f"{missing.status}: {missing.reason}; {missing.remedy}")
            continue
        titles = _titles(results, runtime)
        lines = [titles, ["---:"] * len(titles), *_rows(results, cells)]
        filled = ([*line, *[""] * (len(titles) - len(line))] for line in lines)
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in filled))
    parts.append("\n".join(f"- {line}" for line in _notes(results)))
    return "\n\n".join(part for part in parts if part) + "\n"


def to_csv(results: Results) -> str:
    """One line per cell, numbers in base units (seconds, bytes); empty where there is none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ("runtime", "precision", "scope", "batch_size", "status", "reason", "runs", "stopped", "images", "images_s",
         "images_s_measured", "s_per_image", "images_per_s", "p50_s", "p95_s", "import_s", "load_s", "first_s",
         "host_private_peak_bytes", "device_peak_bytes", "vs_batch_1", "vs_previous", "vs_pytorch", "images_compared",
         "flipped_pixels", "worst_iou", "worst_image", "max_abs_logit_diff")
    )  # fmt: skip
    for cell in results.cells:
        writer.writerow(["" if value is None else value for value in _csv_values(cell, results)])
    return stream.getvalue()


def _csv_values(cell: Cell, results: Results) -> Iterable[object]:
    start = (cell.runtime, cell.precision, cell.scope, cell.batch_size, cell.status, cell.reason, len(cell.samples_s))
    if not cell.measured:
        return start
    seconds, measured = cell.seconds_for(results.images)
    host, device, parity = cell.host_memory, cell.device_memory, cell.parity
    return (
        *start, cell.stopped, results.images, seconds, measured, cell.seconds_per_image, 1 / cell.seconds_per_image,
        cell.median_s, cell.p95_s, cell.import_s, cell.load_s, cell.first_s, host and host.needed_bytes,
        device and device.peak_bytes, _speedup(results.cell(cell.runtime, 1), cell),
        _speedup(_previous(cell, results), cell),
        _speedup(_baseline(cell, results), cell), parity and parity.images, parity and parity.flipped_pixels,
        parity and parity.worst_iou, parity and parity.worst_image, parity and parity.max_abs_diff,
    )  # fmt: skip


def _heading(results: Results) -> str:
    host, model = results.machine, results.model
    weights = f"{model.checkpoint or model.onnx} {model.weights_sha256[:12]}"
    gpus = ", ".join(gpu.name for gpu in host.gpus)
    lines = (
        f"segx {results.segx}  {results.created}" + ("" if results.complete else "  (not complete)"),
        f"model    {model.spec}, weights {weights}",
        f"inputs   {results.inputs.source}, sha256 {results.inputs.sha256[:12]}",
        f"machine  {host.cpu}, {host.cores_usable} of {host.cores_total} cores" + (f", {gpus}" if gpus else ""),
    )
    return "\n".join(lines)


def _by_runtime(results: Results) -> list[tuple[str, list[Cell]]]:
    names = dict.fromkeys(cell.runtime for cell in results.cells)
    ordered = [name for name in results.options.runtimes if name in names]
    return [(name, [cell for cell in results.cells if cell.runtime == name]) for name in ordered]


def _title(runtime: str, cells: Sequence[Cell]) -> str:
    first = next((cell for cell in cells if cell.measured), None)
    if first is None:
        return runtime
    threads = first.facts.get("threads", "?")
    tf32 = f", TF32 {first.facts['tf32']}" if "tf32" in first.facts else ""
    return f"{runtime}  {first.precision}{tf32}, {threads} thread{'s' * (threads != '1')}, scope {first.scope}"


def _titles(results: Results, runtime: str) -> list[str]:
    fuller = {"time": f"{results.images} images"}
    if runtime_info(runtime).device == "cuda":
        fuller["memory"] = "GPU memory"
    return [fuller.get(title, title) for title in _COLUMNS]


def _rows(results: Results, cells: Sequence[Cell]) -> list[list[str]]:
    """A row per cell; one that failed has its batch size and what went wrong."""
    rows = []
    for cell in cells:
        row = [value(cell, results) for value in _COLUMNS.values()] if cell.measured else [str(cell.batch_size)]
        if cell.status != "ok":
            trouble = f"{cell.status}: {cell.reason}; {cell.remedy}"
            if cell.measured:
                rows.append(row)
                row = [""]
            row.append(trouble)
        rows.append(row)
    return rows


def _notes(results: Results) -> list[str]:
    measured = [cell for cell in results.cells if cell.measured]
    if not measured:
        return []
    notes = [
        f"forward: host array in, host array out. Masks against {results.reference}, on the outputs of the timed runs.",
        "memory: peak private memory of model and inference, above the imported libraries.",
    ]
    if any(not cell.seconds_for(results.images)[1] for cell in measured):
        notes.append(f"≈ projected from fewer than {results.images} images.")
    if any(cell.p95_s is None for cell in measured):
        notes.append(f"p95 needs {RUNS_FOR_P95} runs (99 % confidence): --min-runs {RUNS_FOR_P95}.")
    if any(cell.stopped == "budget spent" for cell in measured):
        notes.append("some cells stopped early because the budget was spent.")
    return notes


def _seconds(seconds: float, measured: bool) -> str:
    return f"{'' if measured else '≈'}{seconds:.3g} s"


def _memory_bytes(cell: Cell) -> int | None:
    if runtime_info(cell.runtime).device == "cuda":
        return cell.device_memory.peak_bytes if cell.device_memory else None
    return cell.host_memory.needed_bytes if cell.host_memory else None


def _mebibytes(count: int | None) -> str:
    return _BLANK if count is None else f"{count / 2**20:.0f} MiB"


def _previous(cell: Cell, results: Results) -> Cell | None:
    """The measured cell of the same runtime in the row above."""
    sizes = results.options.batch_sizes
    above = [results.cell(cell.runtime, size) for size in sizes[: sizes.index(cell.batch_size or 0)]]
    return next((other for other in reversed(above) if other), None)


def _baseline(cell: Cell, results: Results) -> Cell | None:
    """PyTorch eager on the same device at the same batch size."""
    return results.cell(runtime_info(cell.runtime).baseline, cell.batch_size or 0)


def _speedup(base: Cell | None, cell: Cell) -> float | None:
    """How many times the base's images per second."""
    return base.seconds_per_image / cell.seconds_per_image if base else None


def _ratio(base: Cell | None, cell: Cell) -> str:
    speedup = _speedup(base, cell)
    return _BLANK if speedup is None else f"{speedup:.2f}x"


def _iou(value: float) -> str:
    """Four places, rounded down: 1.0000 shall mean that nothing differs."""
    return f"{int(value * 10_000) / 10_000:.4f}"
