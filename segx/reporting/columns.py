"""What tables show: columns, rows, and each figure with its unit. The only place where units are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segx.analysis import stats
from segx.analysis.figures import needed_bytes, seconds_for, verdict_of
from segx.analysis.ratios import ratio_text, versus_batch_1, versus_previous, versus_pytorch
from segx.analysis.scaling import memory_points, memory_slope
from segx.masks.agreement import Verdict
from segx.reporting.pipeline_report import apart
from segx.reporting.sparkline import sparkline
from segx.results.types import Cell, ClassParity, Parity, Results, Status, TruthScore
from segx.runtimes import Variant, runtime_info

BLANK = "–"
# From the best to the worst; None is not known.
_VERDICTS: tuple[Verdict | None, ...] = (None, "identical", "equivalent", "degraded", "broken")

# Heading -> how a measured cell fills the column.
_COLUMNS: dict[str, Callable[[Cell, Results], str]] = {
    "batch": lambda cell, _: str(cell.batch_size),
    "time": lambda cell, results: _seconds(*seconds_for(cell, results.images)),
    "ms/image": lambda cell, _: f"{cell.seconds_per_image * 1e3:.1f}",
    "±": lambda cell, _: _share(stats.relative_half_width(cell.samples_s)),
    "FPS": lambda cell, _: f"{1 / cell.seconds_per_image:.2f}",
    "p50 ms": lambda cell, _: f"{cell.median_s * 1e3:.1f}",
    "p90 ms": lambda cell, _: _milliseconds(stats.percentile(cell.samples_s, 90)),
    "p95 ms": lambda cell, _: _milliseconds(stats.percentile(cell.samples_s, 95)),
    "p99 ms": lambda cell, _: _milliseconds(stats.percentile(cell.samples_s, 99)),
    "memory": lambda cell, _: mebibytes(needed_bytes(cell)),
    "vs batch 1": lambda cell, results: ratio_text(versus_batch_1(cell, results)),
    "vs previous": lambda cell, results: ratio_text(versus_previous(cell, results)),
    "vs PyTorch": lambda cell, results: ratio_text(versus_pytorch(cell, results)),
    "flipped px": lambda cell, _: BLANK if cell.parity is None else str(cell.parity.flipped_pixels),
    "worst IoU": lambda cell, _: BLANK if cell.parity is None else _iou(cell.parity.worst_iou),
    "masks": lambda cell, results: verdict_of(results, cell) or BLANK,
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
    "off boundary": lambda parity: BLANK if parity.flip_distance_px is None else f"{parity.flip_distance_px:.1f} px",
    "IoU to truth": lambda parity: BLANK if parity.truth is None else _iou(parity.truth.iou),
    "Dice": lambda parity: BLANK if parity.truth is None else _iou(parity.truth.dice),
    "loss": lambda parity: _loss(parity.truth),
    "worst class": lambda parity: _worst_class(parity.worst_class),
    "worst image": lambda parity: parity.worst_image if parity.flipped_pixels else BLANK,
}
# Which of them a narrow terminal goes without, the first one first.
MASK_COLUMNS_TO_SPARE = (
    "mean |Δ|", "mean Dice", "Dice", "batch", "mean IoU", "IoU to truth", "max |Δ|", "worst class", "off boundary",
    "worst image", "benign",
)  # fmt: skip
_ONLY_WITH_TRUTH = frozenset({"IoU to truth", "Dice", "loss"})


def _by_variant(results: Results) -> list[tuple[Variant, list[Cell]]]:
    """In the order in which they were asked for."""
    order = {name: place for place, name in enumerate(results.options.runtimes)}
    cells: dict[Variant, list[Cell]] = {}
    for cell in sorted(apart(results)[0], key=lambda cell: order.get(cell.runtime, len(order))):
        cells.setdefault(cell.variant, []).append(cell)
    return list(cells.items())


def present_and_missing(
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


def conditions(cells: Sequence[Cell]) -> str:
    """How a variant ran, as its engine said; empty where none of its cells was measured."""
    first = next((cell for cell in cells if cell.measured), None)
    if first is None:
        return ""
    threads = first.facts.get("threads", "?")
    tf32 = f"TF32 {first.facts['tf32']}, " if "tf32" in first.facts else ""
    arena = ", low memory profile" if first.facts.get("memory arena") == "off" else ""
    return f"{tf32}{threads} thread{'s' * (threads != '1')}{arena}, scope {first.scope}"


def below(cells: Sequence[Cell]) -> list[str]:
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
    line = memory_slope(memory_points(cells))
    if line is None:
        return []
    per_image, base = round(line.per_image_bytes / 2**20), round(line.base_bytes / 2**20)
    return [f"memory over batch size: {per_image} MiB per image, beside {base} MiB"]


def column_titles(results: Results) -> list[str]:
    """Columns that some cell can fill; a percentile that none has enough runs for is left to the notes."""
    most = max((len(cell.samples_s) for cell in apart(results)[0] if cell.measured), default=0)
    return [
        title
        for title in _COLUMNS
        if title not in _PERCENTILES or most >= stats.RUNS_FOR_PERCENTILE[_PERCENTILES[title]]
    ]


def named(titles: Sequence[str], variant: Variant, results: Results) -> list[str]:
    """The titles as this variant has them."""
    fuller = {"time": f"{results.images} images"}
    if runtime_info(variant.runtime).device == "cuda":
        fuller["memory"] = "GPU memory"
    return [fuller.get(title, title) for title in titles]


def figures(cell: Cell, results: Results, titles: Sequence[str]) -> list[str]:
    """What a measured cell has in these columns."""
    return [_COLUMNS[title](cell, results) for title in titles]


def trouble(cell: Cell) -> str:
    """What went wrong with a cell and what to do, in one line."""
    return f"{cell.status}: {cell.reason}; {cell.remedy}"


@dataclass(frozen=True)
class Trouble:
    """What went wrong in the same way with some cells.

    Attributes:
        cells: those.
        status: of all of them, as are the other two.
        reason: what went wrong.
        remedy: what to do about it.
    """

    cells: tuple[Cell, ...]
    status: Status
    reason: str
    remedy: str

    @property
    def where(self) -> str:
        """``pytorch-cuda:fp32; onnxruntime-cpu:fp32 batch 4, 8``."""
        return named_cells(self.cells)


def troubles(results: Results) -> list[Trouble]:
    """Everything that is not ``ok``, what has the same reason together."""
    alike: dict[tuple[Status, str, str], list[Cell]] = {}
    for cell in results.cells:
        if cell.status != "ok":
            alike.setdefault((cell.status, cell.reason, cell.remedy), []).append(cell)
    return [Trouble(tuple(cells), *what) for what, cells in alike.items()]


def named_cells(cells: Sequence[Cell]) -> str:
    """``onnxruntime-cpu:fp32 batch 1, 4; …``."""
    sizes: dict[Variant, list[str]] = {}
    for cell in cells:
        sizes.setdefault(cell.variant, []).extend([] if cell.batch_size is None else [str(cell.batch_size)])
    return "; ".join(
        f"{variant} batch {', '.join(listed)}" if listed else str(variant) for variant, listed in sizes.items()
    )


def overview(results: Results, *, encoding: str = "utf-8") -> tuple[list[str], list[list[str]]]:
    """A row per variant that was measured: images per second over batch size as bars, and the best of them."""
    sizes = results.options.batch_sizes
    span = f"{sizes[0]}-{sizes[-1]}" if len(sizes) > 1 else f"batch {sizes[0]}"
    rows = []
    for variant, _ in _by_variant(results):
        cells = [results.cell(variant, size) for size in sizes]
        measured = [cell for cell in cells if cell]
        if measured:
            best = min(measured, key=lambda cell: cell.seconds_per_image)
            speeds = [1 / cell.seconds_per_image if cell else math.nan for cell in cells]
            bars = sparkline(speeds, encoding=encoding)
            worst = max(measured, key=lambda cell: _VERDICTS.index(verdict_of(results, cell)))
            row = figures(best, results, ("FPS", "batch", "vs PyTorch"))
            rows.append([str(variant), bars, *row, verdict_of(results, worst) or BLANK])
    return ["variant", span, "FPS", "batch", "vs PyTorch", "masks"], rows


def mask_title(results: Results) -> str:
    """With how much the reference differs from itself, in logits."""
    if not results.noise:
        return f"masks against {results.reference}"
    probes = ", ".join(f"{probe.max_abs_diff:.1e} ({probe.change})" for probe in results.noise)
    return f"masks against {results.reference}, whose own logits differ by {probes}"


def mask_table(results: Results) -> tuple[list[str], list[list[str]]] | None:
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
            verdict_of(results, cell) or BLANK,
            *(_MASK_COLUMNS[title](parity) for title in titles),
        ]
        for cell, parity in judged
    ]
    return ["variant", "batch", "masks", *titles], rows


def _seconds(seconds: float, measured: bool) -> str:
    return f"{'' if measured else '≈'}{seconds:.3g} s"


def mebibytes(count: int | None) -> str:
    """``512 MiB``."""
    return BLANK if count is None else f"{count / 2**20:.0f} MiB"


def _share(value: float | None) -> str:
    return BLANK if value is None else f"{value * 100:.1f}%"


def _milliseconds(seconds: float | None) -> str:
    return BLANK if seconds is None else f"{seconds * 1e3:.1f}"


def _iou(value: float) -> str:
    """Four places, rounded down: 1.0000 shall mean that nothing differs."""
    return f"{int(value * 10_000) / 10_000:.4f}"


def _loss(truth: TruthScore | None) -> str:
    """How much nearer to the truth the reference is; ``none`` where no difference can be told."""
    if truth is None:
        return BLANK
    return "none" if truth.loss_low <= 0.0 <= truth.loss_high else f"{truth.loss:+.4f}"


def _worst_class(worst: ClassParity | None) -> str:
    return BLANK if worst is None or worst.iou is None else f"{worst.index}: {_iou(worst.iou)}"
