"""Results as text and Markdown: pure functions, results in, text out. The only place where units are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segx.bench import stats
from segx.bench.notes import notes
from segx.bench.pipeline_report import LEGEND, TITLE, TITLES, apart, pipeline_lines, pipeline_rows
from segx.bench.recommend import recommend
from segx.bench.recommend import to_text as recommendations
from segx.bench.results import Cell, Results
from segx.bench.speedup import ratio_text, versus_batch_1, versus_previous, versus_pytorch
from segx.parity import ClassParity, Parity
from segx.runtimes import Variant, runtime_info
from segx.table import aligned
from segx.truth import TruthScore

_BLANK = "–"

# Heading -> how a measured cell fills the column.
_COLUMNS: dict[str, Callable[[Cell, Results], str]] = {
    "batch": lambda cell, _: str(cell.batch_size),
    "time": lambda cell, results: _seconds(*cell.seconds_for(results.images)),
    "ms/image": lambda cell, _: f"{cell.seconds_per_image * 1e3:.1f}",
    "±": lambda cell, _: _share(stats.relative_half_width(cell.samples_s)),
    "FPS": lambda cell, _: f"{1 / cell.seconds_per_image:.2f}",
    "p50 ms": lambda cell, _: f"{cell.median_s * 1e3:.1f}",
    "p90 ms": lambda cell, _: _milliseconds(stats.percentile(cell.samples_s, 90)),
    "p95 ms": lambda cell, _: _milliseconds(stats.percentile(cell.samples_s, 95)),
    "p99 ms": lambda cell, _: _milliseconds(stats.percentile(cell.samples_s, 99)),
    "memory": lambda cell, _: _mebibytes(cell.needed_bytes),
    "vs batch 1": lambda cell, results: ratio_text(versus_batch_1(cell, results)),
    "vs previous": lambda cell, results: ratio_text(versus_previous(cell, results)),
    "vs PyTorch": lambda cell, results: ratio_text(versus_pytorch(cell, results)),
    "flipped px": lambda cell, _: _BLANK if cell.parity is None else str(cell.parity.flipped_pixels),
    "worst IoU": lambda cell, _: _BLANK if cell.parity is None else _iou(cell.parity.worst_iou),
    "masks": lambda cell, results: results.verdict(cell) or _BLANK,
}
_PERCENTILES = {f"p{percent} ms": percent for percent in stats.RUNS_FOR_PERCENTILE}

# The same for the table of masks, which has a row per variant: that of its batch size with the most flips.
_MASK_COLUMNS: dict[str, Callable[[Parity], str]] = {
    "flipped px": lambda parity: str(parity.flipped_pixels),
    "benign": lambda parity: _share(parity.benign_flips / parity.flipped_pixels if parity.flipped_pixels else None),
    "mean IoU": lambda parity: _iou(parity.mean_iou),
    "worst IoU": lambda parity: _iou(parity.worst_iou),
    "mean Dice": lambda parity: _iou(parity.mean_dice),
    "max |Δ|": lambda parity: f"{parity.relative_diff:.1e}",
    "mean |Δ|": lambda parity: f"{parity.mean_abs_diff / max(1.0, parity.logit_range):.1e}",
    "off boundary": lambda parity: _BLANK if parity.flip_distance_px is None else f"{parity.flip_distance_px:.1f} px",
    "IoU to truth": lambda parity: _BLANK if parity.truth is None else _iou(parity.truth.iou),
    "Dice": lambda parity: _BLANK if parity.truth is None else _iou(parity.truth.dice),
    "loss": lambda parity: _loss(parity.truth),
    "worst class": lambda parity: _worst_class(parity.worst_class),
    "worst image": lambda parity: parity.worst_image if parity.flipped_pixels else _BLANK,
}
_ONLY_WITH_TRUTH = frozenset({"IoU to truth", "Dice", "loss"})


def to_text(results: Results) -> str:
    """Aligned tables for a terminal, one per variant, and one of masks."""
    parts = [_heading(results)]
    titles = _titles(results)
    present, missing = _present_and_missing(results)
    for variant, cells in present:
        table = aligned(_named(titles, variant, results), _rows(results, cells, titles))
        parts.append("\n".join([_title(variant, cells), table, *_below(cells)]))
    parts.append("\n".join(pipeline_lines(results)))
    parts += [f"{names}  {cell.status}: {cell.reason}\n  try: {cell.remedy}" for names, cell in missing]
    if masks := _mask_table(results):
        parts.append(f"{_mask_title(results)}\n{aligned(*masks, left=frozenset({0, len(masks[0]) - 1}))}")
    parts += ["\n".join(recommendations(recommend(results))), "\n".join(notes(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_markdown(results: Results) -> str:
    """The same tables as GitHub-flavoured Markdown."""
    parts = [_heading(results).replace("\n", "  \n")]
    titles = _titles(results)
    present, missing = _present_and_missing(results)
    for variant, cells in present:
        parts.append(f"### {_title(variant, cells)}")
        parts.append(_markdown_table(_named(titles, variant, results), _rows(results, cells, titles)))
        parts += _below(cells)
    if rows := pipeline_rows(results):
        parts += [f"### {TITLE}", _markdown_table(TITLES, rows), *LEGEND]
    parts += [f"### {names}\n\n{cell.status}: {cell.reason}; {cell.remedy}" for names, cell in missing]
    if masks := _mask_table(results):
        parts += [f"### {_mask_title(results)}", _markdown_table(*masks)]
    parts.append("\n".join(f"- **{line}**" for line in recommendations(recommend(results))))
    parts.append("\n".join(f"- {line}" for line in notes(results)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---:"] * len(titles), *rows]
    filled = ([text.replace("|", "\\|") for text in [*line, *[""] * (len(titles) - len(line))]] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in filled)


def _heading(results: Results) -> str:
    host, model = results.machine, results.model
    weights = f"{model.checkpoint or model.onnx} {model.weights_sha256[:12]}"
    gpus = ", ".join(gpu.name for gpu in host.gpus)
    truth = f", true masks: {results.inputs.truth}" if results.inputs.truth else ""
    lines = (
        f"segx {results.segx}  {results.created}" + ("" if results.complete else "  (not complete)"),
        f"model    {model.spec}, weights {weights}",
        f"inputs   {results.inputs.source}, sha256 {results.inputs.sha256[:12]}{truth}",
        f"machine  {host.cpu}, {host.cores_usable} of {host.cores_total} cores" + (f", {gpus}" if gpus else ""),
    )
    return "\n".join(lines)


def _by_variant(results: Results) -> list[tuple[Variant, list[Cell]]]:
    """In the order in which they were asked for."""
    order = results.options.runtimes
    cells: dict[Variant, list[Cell]] = {}
    for cell in sorted(apart(results)[0], key=lambda cell: order.index(cell.runtime)):
        cells.setdefault(cell.variant, []).append(cell)
    return list(cells.items())


def _present_and_missing(
    results: Results,
) -> tuple[list[tuple[Variant, list[Cell]]], list[tuple[str, Cell]]]:
    """Variants with a table of their own, and those that are unavailable as a whole, by reason: names and one cell."""
    variants = _by_variant(results)
    by_reason: dict[tuple[str, str], list[Cell]] = {}
    for _, cells in variants:
        if cells[0].batch_size is None:
            by_reason.setdefault((cells[0].reason, cells[0].remedy), []).append(cells[0])
    missing = [(", ".join(str(cell.variant) for cell in cells), cells[0]) for cells in by_reason.values()]
    return [(variant, cells) for variant, cells in variants if cells[0].batch_size is not None], missing


def _title(variant: Variant, cells: Sequence[Cell]) -> str:
    first = next((cell for cell in cells if cell.measured), None)
    if first is None:
        return str(variant)
    threads = first.facts.get("threads", "?")
    arena = ", low memory profile" if first.facts.get("memory arena") == "off" else ""
    tf32 = f", TF32 {first.facts['tf32']}" if "tf32" in first.facts else ""
    plural = "s" * (threads != "1")
    return f"{variant.runtime}  {variant.precision}{tf32}, {threads} thread{plural}{arena}, scope {variant.scope}"


def _below(cells: Sequence[Cell]) -> list[str]:
    """What belongs to a variant and not to one batch size."""
    measured = [cell for cell in cells if cell.measured]
    return [*_cold_start(measured), *_memory_slope(measured)]


def _cold_start(cells: Sequence[Cell]) -> list[str]:
    """One line: what comes before the first result. Import and load do not depend on the batch; the first call does."""
    timed = [cell for cell in cells if cell.load_s is not None]
    if not timed:
        return []
    parts = (stats.median([getattr(cell, name) or 0.0 for cell in timed]) for name in ("import_s", "load_s"))
    first = ", ".join(f"{cell.first_s or 0.0:.2f} s (batch {cell.batch_size})" for cell in timed)
    imported, loaded = parts
    return [f"cold start: import {imported:.1f} s, load {loaded:.1f} s, first call {first}"]


def _memory_slope(cells: Sequence[Cell]) -> list[str]:
    """One line: memory over batch size as a straight line, by least squares."""
    points = [(cell.batch_size or 0, needed) for cell in cells if (needed := cell.needed_bytes) is not None]
    if len({size for size, _ in points}) < 2:
        return []
    slope, fixed = stats.straight_line([size for size, _ in points], [needed / 2**20 for _, needed in points])
    return [f"memory over batch size: {round(slope)} MiB per image, beside {round(max(0.0, fixed))} MiB"]


def _titles(results: Results) -> list[str]:
    """Columns that some cell can fill; a percentile that none has enough runs for is left to the notes."""
    most = max((len(cell.samples_s) for cell in apart(results)[0] if cell.measured), default=0)
    return [
        title
        for title in _COLUMNS
        if title not in _PERCENTILES or most >= stats.RUNS_FOR_PERCENTILE[_PERCENTILES[title]]
    ]


def _named(titles: Sequence[str], variant: Variant, results: Results) -> list[str]:
    fuller = {"time": f"{results.images} images"}
    if runtime_info(variant.runtime).device == "cuda":
        fuller["memory"] = "GPU memory"
    return [fuller.get(title, title) for title in titles]


def _rows(results: Results, cells: Sequence[Cell], titles: Sequence[str]) -> list[list[str]]:
    """A row per cell; one that failed has its batch size and what went wrong."""
    rows = []
    for cell in cells:
        row = [_COLUMNS[title](cell, results) for title in titles] if cell.measured else [str(cell.batch_size)]
        if cell.status != "ok":
            trouble = f"{cell.status}: {cell.reason}; {cell.remedy}"
            if cell.measured:
                rows.append(row)
                row = [""]
            row.append(trouble)
        rows.append(row)
    return rows


def _mask_title(results: Results) -> str:
    """With how much the reference differs from itself, in logits."""
    if not results.noise:
        return f"masks  against {results.reference}"
    probes = ", ".join(f"{probe.max_abs_diff:.1e} ({probe.change})" for probe in results.noise)
    return f"masks  against {results.reference}, whose own logits differ by {probes}"


def _mask_table(results: Results) -> tuple[list[str], list[list[str]]] | None:
    """A row per variant that is not identical to the reference; all of them where there are true masks."""
    most_flips: dict[Variant, Cell] = {}
    for cell in apart(results)[0]:
        other = most_flips.get(cell.variant)
        if cell.parity and not (other and other.parity and other.parity.flipped_pixels >= cell.parity.flipped_pixels):
            most_flips[cell.variant] = cell
    judged = [(cell, cell.parity) for cell in most_flips.values() if cell.parity]
    truth = any(parity.truth for _, parity in judged)
    if not truth and not any(parity.flipped_pixels for _, parity in judged):
        return None
    titles = [title for title in _MASK_COLUMNS if truth or title not in _ONLY_WITH_TRUTH]
    if results.model.spec.classes == 1:
        titles.remove("worst class")
    rows = [
        [
            str(cell.variant),
            str(cell.batch_size),
            results.verdict(cell) or _BLANK,
            *(_MASK_COLUMNS[title](parity) for title in titles),
        ]
        for cell, parity in judged
    ]
    return ["variant", "batch", "masks", *titles], rows


def _seconds(seconds: float, measured: bool) -> str:
    return f"{'' if measured else '≈'}{seconds:.3g} s"


def _mebibytes(count: int | None) -> str:
    return _BLANK if count is None else f"{count / 2**20:.0f} MiB"


def _share(value: float | None) -> str:
    return _BLANK if value is None else f"{value * 100:.1f}%"


def _milliseconds(seconds: float | None) -> str:
    return _BLANK if seconds is None else f"{seconds * 1e3:.1f}"


def _iou(value: float) -> str:
    """Four places, rounded down: 1.0000 shall mean that nothing differs."""
    return f"{int(value * 10_000) / 10_000:.4f}"


def _loss(truth: TruthScore | None) -> str:
    """How much nearer to the truth the reference is; ``none`` where no difference can be told."""
    if truth is None:
        return _BLANK
    return "none" if truth.loss_low <= 0.0 <= truth.loss_high else f"{truth.loss:+.4f}"


def _worst_class(worst: ClassParity | None) -> str:
    return _BLANK if worst is None or worst.iou is None else f"{worst.index}: {_iou(worst.iou)}"
