"""Speed-up of one cell over another, with its confidence interval."""

from __future__ import annotations

from dataclasses import dataclass

from segx.analysis import stats
from segx.results.types import Cell, Results
from segx.runtimes import Variant, runtime_info


@dataclass(frozen=True)
class Speedup:
    """Images per second relative to the base's.

    Attributes:
        ratio: ratio of the medians of the rounds' medians, per image.
        interval: its 95 % interval, from the same figures; None for too few rounds.
    """

    ratio: float
    interval: stats.Interval | None

    @property
    def tied(self) -> bool:
        """Whether the interval contains 1."""
        return self.interval is not None and self.interval.spans(1.0)


def speedup(base: Cell, cell: Cell, *, paired: bool) -> Speedup:
    """Compare a measured cell with its base; ``paired`` if they took turns, so that a disturbed round affected both."""
    assert base.batch_size  # measured cells have one
    assert cell.batch_size
    ours, theirs = _of_the_same_rounds(cell, base) if paired else (cell.round_medians_s, base.round_medians_s)
    images = cell.batch_size / base.batch_size
    interval = stats.ratio_interval(theirs, ours, paired=paired)
    scaled = stats.Interval(interval.low * images, interval.high * images) if interval else None
    return Speedup(images * stats.median(theirs) / stats.median(ours), scaled)


def _of_the_same_rounds(a: Cell, b: Cell) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the medians of the rounds in which both had a turn."""
    medians = [dict(zip((turn.number for turn in cell.rounds), cell.round_medians_s, strict=True)) for cell in (a, b)]
    common = [number for number in medians[0] if number in medians[1]]
    return tuple(medians[0][number] for number in common), tuple(medians[1][number] for number in common)


def versus_batch_1(cell: Cell, results: Results) -> Speedup | None:
    """Compare with the same variant at batch 1; None if that was not measured or is this cell."""
    return versus(results.cell(cell.variant, 1), cell)


def versus_previous(cell: Cell, results: Results) -> Speedup | None:
    """Compare with the measured cell of the same variant at the batch size before."""
    sizes = results.options.batch_sizes
    above = [results.cell(cell.variant, size) for size in sizes[: sizes.index(cell.batch_size or 0)]]
    return versus(next((other for other in reversed(above) if other), None), cell)


def versus_pytorch(cell: Cell, results: Results) -> Speedup | None:
    """Compare with PyTorch eager in fp32 on the same device, in the same scope, at the same batch size."""
    return versus(results.cell(pytorch_variant(cell), cell.batch_size or 0), cell)


def pytorch_variant(cell: Cell) -> Variant:
    """Return PyTorch eager in fp32 on the device of a cell, in its scope."""
    return Variant(runtime_info(cell.runtime).baseline, "fp32", cell.scope)


def versus(base: Cell | None, cell: Cell) -> Speedup | None:
    """Compare two measured cells of one bench; None without a base or if it is this cell."""
    if base is None or base is cell:
        return None
    # Cells that took turns have rounds of the same numbers.
    numbers = ({turn.number for turn in each.rounds} for each in (base, cell))
    took_turns = cell.batch_size == base.batch_size and bool(set.intersection(*numbers))
    return speedup(base, cell, paired=took_turns)
