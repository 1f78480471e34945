"""Results as text and Markdown: pure functions, results in, text out. The only place where units are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segx.bench import stats
from segx.bench.results import Cell, Results
from segx.bench.speedup import Speedup, versus_batch_1, versus_previous, versus_pytorch
from segx.bench.timing import SETTLED
from segx.runtimes import runtime_info
from segx.table import aligned

_BLANK = "–"

_UNSETTLED = {
    "not settled": f"the median did not settle to ±{SETTLED:.0%}: give more --max-time, or a quieter machine",
    "budget spent": "give more --budget",
    "interrupted": "go on with --resume",
}


# Heading -> how a measured cell fills the column.
_COLUMNS: dict[str, Callable[[Cell, Results], str]] = {
    "batch": lambda cell, _: str(cell.batch_size),
    "time": lambda cell, results: _seconds(*cell.seconds_for(results.images)),
    "ms/image": lambda cell, _: f"{cell.seconds_per_image * 1e3:.1f}",
    "±": lambda cell, _: _share(stats.relative_half_width(cell.samples_s)),
    "FPS": lambda cell, _: f"{1 / cell.seconds_per_image:.2f}",
    "p50 ms": lambda cell, _: f"{cell.median_s * 1e3:.1f}",
    "p95 ms": lambda cell, _: _milliseconds(stats.percentile(cell.samples_s, 95)),
    "memory": lambda cell, _: _mebibytes(_memory_bytes(cell)),
    "vs batch 1": lambda cell, results: _ratio(versus_batch_1(cell, results)),
    "vs previous": lambda cell, results: _ratio(versus_previous(cell, results)),
    "vs PyTorch": lambda cell, results: _ratio(versus_pytorch(cell, results)),
    "flipped px": lambda cell, _: _BLANK if cell.parity is None else str(cell.parity.flipped_pixels),
    "worst IoU": lambda cell, _: _BLANK if cell.parity is None else _iou(cell.parity.worst_iou),
}


def to_text(results: Results) -> str:
    """Aligned tables for a terminal, one per runtime."""
    parts = [_heading(results)]
    for runtime, cells in _by_runtime(results):
        parts.append(f"{_title(runtime, cells)}\n{aligned(_titles(results, runtime), _rows(results, cells))}")
        parts[-1] += "".join(f"\n{line}" for line in _cold_start(cells))
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
        filled = ([text.replace("|", "\\|") for text in [*line, *[""] * (len(titles) - len(line))]] for line in lines)
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in filled))
        parts += _cold_start(cells)
    parts.append("\n".join(f"- {line}" for line in _notes(results)))
    return "\n\n".join(part for part in parts if part) + "\n"


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


def _cold_start(cells: Sequence[Cell]) -> list[str]:
    """One line: what comes before the first result. Import and load do not depend on the batch; the first call does."""
    measured = [cell for cell in cells if cell.measured and cell.load_s is not None]
    if not measured:
        return []
    parts = (stats.median([getattr(cell, name) or 0.0 for cell in measured]) for name in ("import_s", "load_s"))
    first = ", ".join(f"{cell.first_s or 0.0:.2f} s (batch {cell.batch_size})" for cell in measured)
    imported, loaded = parts
    return [f"cold start: import {imported:.1f} s, load {loaded:.1f} s, first call {first}"]


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
        "±: 95 % interval of the median call. Ratios are of images per second; tied where their 95 % interval spans 1.",
        "memory: peak private memory of model and inference, above the imported libraries.",
    ]
    if any(not cell.seconds_for(results.images)[1] for cell in measured):
        notes.append(f"≈ projected from fewer than {results.images} images.")
    if any("±?" in _ratio(versus(cell, results)) for cell in measured for versus in (versus_previous, versus_pytorch)):
        notes.append("±?: under 6 rounds, too few for an interval.")
    needed = stats.RUNS_FOR_PERCENTILE[95]
    if any(len(cell.samples_s) < needed for cell in measured):
        notes.append(f"p95 needs {needed} runs (99 % confidence): --min-runs {needed}.")
    load, cores = results.machine.load_average_1min, results.machine.cores_usable
    if load > cores:
        notes.append(f"load was {load:.1f} on {cores} cores when this began: other programs were running.")
    for reason, advice in _UNSETTLED.items():
        cells = [f"{cell.runtime} batch {cell.batch_size}" for cell in measured if cell.stopped == reason]
        if cells:
            notes.append(f"{reason}: {', '.join(cells)}; {advice}.")
    return notes


def _seconds(seconds: float, measured: bool) -> str:
    return f"{'' if measured else '≈'}{seconds:.3g} s"


def _memory_bytes(cell: Cell) -> int | None:
    if runtime_info(cell.runtime).device == "cuda":
        return cell.device_memory.peak_bytes if cell.device_memory else None
    return cell.host_memory.needed_bytes if cell.host_memory else None


def _mebibytes(count: int | None) -> str:
    return _BLANK if count is None else f"{count / 2**20:.0f} MiB"


def _ratio(against: Speedup | None) -> str:
    if against is None:
        return _BLANK
    if against.interval is None:
        return f"{against.ratio:.2f}x ±?"
    if against.tied:
        return "tied"
    reach = max(against.interval.high - against.ratio, against.ratio - against.interval.low)
    return f"{against.ratio:.2f}x ±{reach:.2f}"


def _share(value: float | None) -> str:
    return _BLANK if value is None else f"{value * 100:.1f}%"


def _milliseconds(seconds: float | None) -> str:
    return _BLANK if seconds is None else f"{seconds * 1e3:.1f}"


def _iou(value: float) -> str:
    """Four places, rounded down: 1.0000 shall mean that nothing differs."""
    return f"{int(value * 10_000) / 10_000:.4f}"
