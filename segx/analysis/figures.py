"""Figures of one cell that need more than its own fields, and its speed-up over another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from segx.analysis import stats
from segx.masks.agreement import LIMITS, VERDICTS, ParityLimits, Quality, Verdict, quality, verdict
from segx.results.types import BenchOptions, Cell, Results, Round
from segx.runtimes import Precision, Variant, runtime_info

_TICK_S = 1e-9
# Cells whose images per second differ by no more than this share count as equally fast.
EQUAL = 0.05


def needed_bytes(cell: Cell) -> int | None:
    """Return the peak memory of model and inference: the device's on CUDA, else the host's above the libraries."""
    if runtime_info(cell.runtime).device == "cuda":
        return cell.device_memory.peak_bytes if cell.device_memory else None
    return cell.host_memory.needed_bytes if cell.host_memory else None


def seconds_for(cell: Cell, images: int) -> tuple[float, bool]:
    """Return the seconds to run ``images`` images, and whether that was measured.

    Measured, as the mean of the complete passes, where the timed calls took at least that many images; else projected
    from the median. The last call of a pass counts whole. In the pipeline scope every sample is of a whole pass.
    """
    assert cell.batch_size  # measured cells have one
    if cell.scope == "pipeline":
        return sum(cell.samples_s) / len(cell.samples_s) / cell.batch_size * images, True
    calls = math.ceil(images / cell.batch_size)
    passes = len(cell.samples_s) // calls
    if passes:
        return sum(cell.samples_s[: passes * calls]) / passes, True
    return calls * cell.median_s, False


def displayed_rate(cell: Cell) -> float:
    """Return the images per second of a measured cell, rounded to three digits as they are displayed."""
    rate = 1 / cell.seconds_per_image
    return round(rate, max(0, 2 - math.floor(math.log10(rate)))) if math.isfinite(rate) else rate


def settled(cell: Cell) -> bool:
    """Return whether the median of a measured cell settled, as far as that is known."""
    return cell.stopped in ("settled", "")


def limits_for(precision: Precision, options: BenchOptions) -> ParityLimits:
    """Return how far masks may differ: the user's own gates, else what the precision allows."""
    return LIMITS[precision].with_gates(min_iou=options.min_iou, max_flips=options.max_flips)


def verdict_of(results: Results, cell: Cell) -> Verdict | None:
    """Return what the differences of a cell's masks amount to; None if its masks were not judged.

    Where all masks of the reference are blank, only a failed gate is a judgement.
    """
    found = verdict(cell.parity, limits_for(cell.precision, results.options)) if cell.parity else None
    return None if cell.parity and not cell.parity.judged and found != "FAILED" else found


def quality_of(results: Results, cell: Cell) -> Quality | None:
    """Return whether a cell's masks are as good as the reference's; None without ground truth."""
    return quality(cell.parity, results.options.max_loss) if cell.parity else None


def interval_of(cell: Cell) -> stats.Interval | None:
    """Return the 95% interval of the median seconds of a call; None for too few rounds."""
    spread = _spread_of(cell)
    return spread.around(cell.median_s) if spread else None


def interval_per_image(cell: Cell) -> stats.Interval | None:
    """Return the 95% interval of the median seconds per image; None for too few rounds."""
    spread = _spread_of(cell)
    return spread.around(cell.seconds_per_image) if spread else None


def half_width(cell: Cell) -> float | None:
    """Return half the width of that interval, as a share of the median; None for too few rounds."""
    spread = _spread_of(cell)
    return math.sinh(spread.reach) if spread else None


def _spread_of(cell: Cell) -> stats.Spread | None:
    return stats.spread_of_median(log_rounds(cell), cell.process_sd)


def log_rounds(cell: Cell) -> list[list[float]]:
    """Return the logarithms of the median calls of a cell's rounds, per process."""
    found: dict[int, list[float]] = {}
    for process, seconds in _rounds_of(cell).values():
        found.setdefault(process, []).append(math.log(seconds))
    return list(found.values())


def _rounds_of(cell: Cell) -> dict[int, tuple[int, float]]:
    """Return number of each round -> its process and the median call, at least a tick of the clock."""
    turns = cell.rounds or [Round(number=number, runs=1) for number in range(len(cell.samples_s))]
    pairs = zip(turns, cell.round_medians_s, strict=True)
    return {turn.number: (turn.process, max(seconds, _TICK_S)) for turn, seconds in pairs}


@dataclass(frozen=True)
class Speedup:
    """Images per second relative to the base's, by the medians of both; ``interval`` is None for too few rounds."""

    ratio: float
    interval: stats.Interval | None

    @property
    def tied(self) -> bool:
        """Whether the interval contains 1."""
        return self.interval is not None and self.interval.spans(1.0)


def speedup(base: Cell, cell: Cell, *, paired: bool) -> Speedup:
    """Compare a measured cell with its base; ``paired`` if they took turns, so that a disturbed round affected both."""
    ratio, spread = base.seconds_per_image / cell.seconds_per_image, spread_of_ratio(base, cell, paired=paired)
    return Speedup(ratio, spread.around(ratio) if spread else None)


def spread_of_ratio(base: Cell, cell: Cell, *, paired: bool) -> stats.Spread | None:
    """Return the uncertainty of the ratio of two measured cells; None for too few rounds."""
    if paired:
        return stats.spread_of_median(_log_ratios(base, cell), _combined_sd(base, cell))
    ours, theirs = _spread_of(cell), _spread_of(base)
    return ours + theirs if ours and theirs else None


def _log_ratios(base: Cell, cell: Cell) -> list[list[float]]:
    """Return the logarithms of the ratios of the rounds in which both had a turn, per process."""
    theirs = _rounds_of(cell)
    found: dict[int, list[float]] = {}
    for number, (process, seconds) in _rounds_of(base).items():
        if number in theirs:
            found.setdefault(process, []).append(math.log(seconds / theirs[number][1]))
    return list(found.values())


def _combined_sd(base: Cell, cell: Cell) -> float | None:
    """Return the standard deviation between processes of the ratio of two cells; None if unknown."""
    known = [each.process_sd for each in (base, cell) if each.process_sd is not None]
    return math.hypot(*known) if known else None


def versus_batch_1(cell: Cell, results: Results) -> Speedup | None:
    """Compare with the same variant at batch 1; None if that was not measured or is this cell."""
    return versus(results.cell(cell.variant, 1), cell)


def versus_previous(cell: Cell, results: Results) -> Speedup | None:
    """Compare with the measured cell of the same variant at the next smaller batch size."""
    sizes = sorted((size for size in results.options.batch_sizes if size < (cell.batch_size or 0)), reverse=True)
    return versus(next((other for size in sizes if (other := results.cell(cell.variant, size))), None), cell)


def pytorch_variant(cell: Cell) -> Variant:
    """Return PyTorch eager in fp32 on the device of a cell, in its scope."""
    return Variant(runtime_info(cell.runtime).baseline, "fp32", cell.scope)


def pytorch_base(cell: Cell, results: Results) -> Cell | None:
    """Return PyTorch eager in fp32 on the device and in the scope of a cell, at its own fastest settled batch size."""
    eager = [other for other in results.cells if other.measured and other.variant == pytorch_variant(cell)]
    by_size = sorted(eager, key=lambda other: other.batch_size or 0)
    return min(filter(settled, by_size), key=_cost, default=min(by_size, key=_cost, default=None))


def versus_pytorch(cell: Cell, results: Results) -> Speedup | None:
    """Compare with ``pytorch_base``; the ratio is the quotient of the images per second as displayed."""
    base = pytorch_base(cell, results)
    found = versus(base, cell)
    if base is None or found is None:
        return None
    return Speedup(displayed_rate(cell) / displayed_rate(base), found.interval)


def _cost(cell: Cell) -> float:
    return cell.seconds_per_image


def best_of(cells: Iterable[Cell], results: Results) -> Cell | None:
    """Return the fastest of measured cells; of those as fast, the one with the smallest batch, then the best masks.

    Cells are as fast if their images per second are within 5%; None without cells.
    """
    candidates = list(cells)
    least = min(map(_cost, candidates), default=math.inf)

    def preference(cell: Cell) -> tuple[int, int, float]:
        found = verdict_of(results, cell)
        return cell.batch_size or 0, VERDICTS.index(found) if found else len(VERDICTS), _cost(cell)

    return min((cell for cell in candidates if _cost(cell) * (1 - EQUAL) <= least), key=preference, default=None)


def versus(base: Cell | None, cell: Cell) -> Speedup | None:
    """Compare two measured cells of one bench; None without a base or if it is this cell."""
    if base is None or base is cell:
        return None
    # Cells that took turns have rounds of the same numbers.
    numbers = ({turn.number for turn in each.rounds} for each in (base, cell))
    took_turns = cell.batch_size == base.batch_size and bool(set.intersection(*numbers))
    return speedup(base, cell, paired=took_turns)
