"""How figures are displayed: digits, units, and the columns of tables. No other file formats a figure."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from segx.analysis import stats
from segx.analysis.figures import needed_bytes, seconds_for, verdict_of
from segx.analysis.ratios import Speedup, versus, versus_batch_1, versus_previous, versus_pytorch
from segx.analysis.stats import Interval
from segx.reporting.document import BLANK, Column, Datum, Style, number, text
from segx.results.types import Cell, Parity, Results
from segx.runtimes import Variant

MIB = 2**20
GIB = 2**30

# The names of the pipeline's stages, in order: see ``segx.results.types.Cell.stages``.
STAGES = ("read", "decode", "preprocess", "infer", "postprocess", "encode", "wait")

_NONE = Datum(BLANK, None)
_VERDICT_STYLES: Mapping[str | None, Style] = {"identical": "good", "degraded": "warning", "broken": "bad"}

# Eight heights; then what failed, and what was not tried.
_BARS, _FAILED, _MISSING = "▁▂▃▄▅▆▇█", "×", "·"


def digits(value: float, count: int = 3) -> str:
    """Return a number with ``count`` significant digits, without an exponent between 0.0001 and a million.

    Large numbers keep all digits before the point: 1234.5 is 1234.
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 6:
        return f"{value:.{count - 1}e}"
    return f"{value:.{max(0, count - 1 - size)}f}"


def seconds(value: float) -> str:
    """Return a duration in the unit that fits it: ``8.47 ms``."""
    if value < 1e-3:
        return f"{digits(value * 1e6)} µs"
    return f"{digits(value * 1e3)} ms" if value < 1 else f"{digits(value)} s"


def memory(count: float) -> str:
    """Return an amount of memory in MiB or GiB."""
    return f"{digits(count / GIB)} GiB" if count >= GIB else f"{digits(count / MIB)} MiB"


def mebibytes(count: float | None) -> str:
    """Return an amount of memory in whole MiB, for columns: ``512 MiB``."""
    return BLANK if count is None else f"{count / MIB:.0f} MiB"


def gibibytes(count: float) -> str:
    """Return the memory of a machine: ``23.5 GiB``."""
    return f"{count / GIB:.1f} GiB"


def rate(cell: Cell) -> str:
    """Return the images per second of a measured cell."""
    return f"{1 / cell.seconds_per_image:.2f}"


def between(interval: Interval | None, unit: float = 1.0) -> str:
    """Return an interval in multiples of 1/``unit``."""
    if interval is None:
        return "too few runs for an interval"
    return f"{digits(interval.low * unit)} to {digits(interval.high * unit)}"


def share(value: float, places: int = 1) -> str:
    """Return a share as a percentage: ``12.3 %``."""
    return f"{value * 100:.{places}f} %"


def iou(value: float) -> str:
    """Return an IoU with four places, rounded down: only identical masks have 1.0000."""
    return f"{int(value * 10_000) / 10_000:.4f}"


def ratio(against: Speedup | None) -> str:
    """Return ``1.50x ±0.21``, ``tied`` if the interval includes 1, ``±?`` if there is none, a dash without a base."""
    if against is None:
        return BLANK
    if against.interval is None:
        return f"{against.ratio:.2f}x ±?"
    if against.tied:
        return "tied"
    return f"{against.ratio:.2f}x ±{_reach(against):.2f}"


def ratio_interval(against: Speedup, places: int) -> str:
    """Return ``1.500x [1.450, 1.550]``."""
    interval = against.interval
    reach = f" [{interval.low:.{places}f}, {interval.high:.{places}f}]" if interval else ""
    return f"{against.ratio:.{places}f}x{reach}"


def counted(count: int, noun: str) -> str:
    """Return ``1 image`` or ``2 images``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def literal(words: str) -> str:
    """Escape text for Plotly, which interprets some tags in its texts."""
    return html.escape(words, quote=False)


def sparkline(values: Sequence[float | None]) -> str:
    """Return a bar of eight heights per value, from zero to the largest.

    Args:
        values: not negative; NaN for what failed, drawn as a cross, and None for what was not tried, drawn as a dot.
    """
    highest = max((value for value in values if value is not None and math.isfinite(value)), default=0.0)

    def bar(value: float | None) -> str:
        if value is None:
            return _MISSING
        if math.isnan(value):
            return _FAILED
        if value >= highest:
            return _BARS[-1] if highest > 0 else _BARS[0]
        return _BARS[int(len(_BARS) * value / highest)]

    return "".join(map(bar, values))


def named_cells(cells: Sequence[Cell]) -> str:
    """Return ``onnxruntime-cpu:fp32 batch 1, 4; …``."""
    sizes: dict[Variant, list[str]] = {}
    for cell in cells:
        sizes.setdefault(cell.variant, []).extend([] if cell.batch_size is None else [str(cell.batch_size)])
    return "; ".join(
        f"{variant} batch {', '.join(listed)}" if listed else str(variant) for variant, listed in sizes.items()
    )


def verdict(results: Results, cell: Cell | None) -> Datum:
    """Return the verdict on the masks of a cell."""
    found = verdict_of(results, cell) if cell else None
    return text(found, _VERDICT_STYLES.get(found, "")) if found else _NONE


def needed_memory(cell: Cell) -> Datum:
    """Return the peak memory of model and inference."""
    needed = needed_bytes(cell)
    return _NONE if needed is None else Datum(mebibytes(needed), needed)


def speedup(against: Speedup | None) -> Datum:
    """Return a ratio of images per second with its interval."""
    return Datum(ratio(against), against.ratio, "muted" if against.tied else "") if against else _NONE


@dataclass(frozen=True)
class CellColumn:
    """A column with a row per cell: its head, and the figure of a measured cell."""

    column: Column
    fill: Callable[[Cell, Results], Datum]


@dataclass(frozen=True)
class MaskColumn:
    """A column with a row per judged cell: its head, and the figure of the cell's parity."""

    column: Column
    fill: Callable[[Parity], Datum]
    needs: str = ""


def _numeric(title: str, fill: Callable[[Cell, Results], Datum], about: str = "", optional: int = 0) -> CellColumn:
    return CellColumn(Column(title, about=about, optional=optional), fill)


def _time(cell: Cell, results: Results) -> Datum:
    total, measured = seconds_for(cell, results.images)
    return Datum(f"{'' if measured else '≈'}{total:.3g} s", total)


def _half_width(cell: Cell, _: Results) -> Datum:
    width = stats.relative_half_width(cell.samples_s)
    return _NONE if width is None else Datum(f"{width * 100:.1f}%", width)


def _percentile(percent: int) -> Callable[[Cell, Results], Datum]:
    def fill(cell: Cell, _: Results) -> Datum:
        found = stats.percentile(cell.samples_s, percent)
        return _NONE if found is None else Datum(f"{found * 1e3:.1f}", found)

    return fill


def _per_second(cell: Cell, _: Results) -> Datum:
    return Datum(rate(cell), 1 / cell.seconds_per_image)


def _flips(cell: Cell, _: Results) -> Datum:
    return number(cell.parity.flipped_pixels, "{}") if cell.parity else _NONE


def _iou(value: float) -> Datum:
    return Datum(iou(value), value)


_MS = _numeric("ms/image", lambda cell, _: number(cell.seconds_per_image * 1e3, "{:.1f}"))
_HALF_WIDTH = _numeric("±", _half_width, "half-width of the 95 % interval of the median", 2)
_RATE = _numeric("images/s", _per_second)
_VS_PYTORCH = _numeric(
    "vs PyTorch",
    lambda cell, results: speedup(versus_pytorch(cell, results)),
    "images per second relative to PyTorch eager on the same device",
    3,
)
_FLIPS = _numeric("flipped px", _flips, "mask pixels that differ from the reference's", 8)
_MASKS = CellColumn(Column("masks", numeric=False, optional=4), lambda cell, results: verdict(results, cell))

CELL_COLUMNS: tuple[CellColumn, ...] = (
    _numeric("time", _time, "for all images"),
    _MS,
    _HALF_WIDTH,
    _RATE,
    _numeric("p50 ms", lambda cell, _: number(cell.median_s * 1e3, "{:.1f}"), "median call", 9),
    _numeric("p90 ms", _percentile(90), optional=12),
    _numeric("p95 ms", _percentile(95), optional=11),
    _numeric("p99 ms", _percentile(99), optional=6),
    _numeric(
        "memory", lambda cell, _: needed_memory(cell), "peak of model and inference, above the imported libraries"
    ),
    _numeric(
        "vs batch 1",
        lambda cell, results: speedup(versus_batch_1(cell, results)),
        "images per second relative to batch 1; tied: the 95 % interval includes 1",
    ),
    _numeric(
        "vs previous",
        lambda cell, results: speedup(versus_previous(cell, results)),
        "images per second relative to the next smaller batch size",
        1,
    ),
    _VS_PYTORCH,
    _FLIPS,
    _numeric(
        "worst IoU",
        lambda cell, _: _iou(cell.parity.worst_iou) if cell.parity else _NONE,
        "rounded down: only identical masks have 1.0000",
        10,
    ),
    _MASKS,
)

_PERCENTILES = {f"p{percent} ms": percent for percent in stats.RUNS_FOR_PERCENTILE}


def cell_columns(cells: Sequence[Cell]) -> list[CellColumn]:
    """Return the columns that some cell can fill: a percentile needs enough runs."""
    most = max((len(cell.samples_s) for cell in cells if cell.measured), default=0)
    needed = {title: stats.RUNS_FOR_PERCENTILE[percent] for title, percent in _PERCENTILES.items()}
    return [each for each in CELL_COLUMNS if most >= needed.get(each.column.title, 0)]


def overview_columns() -> list[CellColumn]:
    """Return the columns that describe the best cell of a variant."""
    batch = CellColumn(Column("batch", optional=1), lambda cell, _: number(cell.batch_size, "{}"))
    return [_RATE, batch, _VS_PYTORCH]


def forward_variant(cell: Cell) -> Variant:
    """Return the variant of a cell in the forward scope."""
    return dataclasses.replace(cell.variant, scope="forward")


def _of_forward(cell: Cell, results: Results) -> Datum:
    found = versus(results.cell(forward_variant(cell), cell.batch_size or 0), cell)
    if found is None:
        return _NONE
    reach = "?" if found.interval is None else f"{_reach(found):.1%}"
    return Datum(f"{found.ratio:.1%} ±{reach}", found.ratio)


def _reach(against: Speedup) -> float:
    assert against.interval
    return max(against.interval.high - against.ratio, against.ratio - against.interval.low)


def _stage(name: str) -> CellColumn:
    return _numeric(name, lambda cell, _: number(cell.stages[name] * 1e3, "{:.2f}") if name in cell.stages else _NONE)


PIPELINE_COLUMNS: tuple[CellColumn, ...] = (
    _RATE,
    _HALF_WIDTH,
    _numeric("of forward", _of_forward),
    _VS_PYTORCH,
    *map(_stage, STAGES),
    _numeric("flipped px", _flips),
    _MASKS,
)


def _mask(
    title: str, fill: Callable[[Parity], Datum], optional: int = 0, about: str = "", *, needs: str = ""
) -> MaskColumn:
    return MaskColumn(Column(title, numeric=title != "worst image", about=about, optional=optional), fill, needs)


def _benign(parity: Parity) -> Datum:
    flips = parity.flipped_pixels
    return number(parity.benign_flips / flips * 100, "{:.1f}%") if flips else _NONE


def _loss(parity: Parity) -> Datum:
    truth = parity.truth
    if truth is None:
        return _NONE
    return Datum("none" if truth.loss_low <= 0.0 <= truth.loss_high else f"{truth.loss:+.4f}", truth.loss)


def _worst_class(parity: Parity) -> Datum:
    worst = parity.worst_class
    return _NONE if worst is None or worst.iou is None else Datum(f"{worst.index}: {iou(worst.iou)}", worst.iou)


_MASK_COLUMNS: tuple[MaskColumn, ...] = (
    _mask("flipped px", lambda parity: number(parity.flipped_pixels, "{}"), about="mask pixels that differ"),
    _mask("benign", _benign, 1, "share of them that are within the reference's own noise"),
    _mask("mean IoU", lambda parity: _iou(parity.mean_iou), 7),
    _mask("worst IoU", lambda parity: _iou(parity.worst_iou)),
    _mask("mean Dice", lambda parity: _iou(parity.mean_dice), 10),
    _mask(
        "max |Δ|",
        lambda parity: number(parity.relative_diff, "{:.1e}"),
        5,
        "largest difference of logits, in units of the reference's logit range",
    ),
    _mask("mean |Δ|", lambda parity: number(parity.mean_abs_diff / max(1.0, parity.logit_range), "{:.1e}"), 11),
    _mask(
        "off boundary",
        lambda parity: number(parity.flip_distance_px, "{:.1f} px"),
        3,
        "largest distance of a flipped pixel from the boundary of the reference's mask",
    ),
    _mask("IoU to truth", lambda parity: _iou(parity.truth.iou) if parity.truth else _NONE, 6, needs="truth"),
    _mask("Dice", lambda parity: _iou(parity.truth.dice) if parity.truth else _NONE, 9, needs="truth"),
    _mask(
        "loss",
        _loss,
        0,
        "the reference's IoU to truth minus the variant's; none: the 95 % interval includes 0",
        needs="truth",
    ),
    _mask("worst class", _worst_class, 4, needs="classes"),
    _mask("worst image", lambda parity: text(parity.worst_image) if parity.flipped_pixels else _NONE, 2),
)


def mask_columns(*, truth: bool, classes: int) -> list[MaskColumn]:
    """Return the columns of the table of masks that this bench can fill."""
    absent = {"" if truth else "truth", "" if classes > 1 else "classes"} - {""}
    return [each for each in _MASK_COLUMNS if each.needs not in absent]
