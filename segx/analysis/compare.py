"""Two saved benches, cell by cell: faster, slower or tied. Refuses to compare what differs in more than that."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from segx.analysis import stats
from segx.analysis.ratios import Speedup, speedup
from segx.errors import NotComparable
from segx.results.provenance import differences
from segx.results.types import Cell, Results
from segx.runtimes import Variant

Verdict = Literal["faster", "slower", "tied", "unsure", "lost", "gained"]

# From so many rounds a side the normal approximation of the Mann-Whitney test holds (as google/benchmark advises).
ROUNDS_FOR_A_TEST = 9


@dataclass(frozen=True)
class CellComparison:
    """One cell of both runs.

    Attributes:
        variant: of both.
        batch_size: of both.
        verdict: ``faster`` or ``slower`` where the interval of the ratio excludes 1, else ``tied``; ``unsure`` with too
            few rounds for an interval; ``lost`` where only the first run measured it, ``gained`` where only the second.
        before_s: seconds per image in the first run.
        after_s: seconds per image in the second.
        speedup: images per second of the second run, relative to the first.
        p_value: of the Mann-Whitney test; None below 9 rounds a side.
    """

    variant: Variant
    batch_size: int
    verdict: Verdict
    before_s: float | None = None
    after_s: float | None = None
    speedup: Speedup | None = None
    p_value: float | None = None

    def regressed_by(self, share: float) -> bool:
        """Whether it surely is slower, and takes at least ``share`` longer per image; or is not measured any more."""
        if self.verdict == "lost":
            return True
        if self.verdict != "slower" or self.before_s is None or self.after_s is None:
            return False
        return self.after_s / self.before_s - 1 >= share


def compare(before: Results, after: Results, *, allow: Collection[str] = ()) -> list[CellComparison]:
    """Compare two runs.

    Args:
        before: the run to compare with.
        after: the run in question.
        allow: names from ``segx.results.provenance.ALLOWANCES`` whose difference is meant.

    Raises:
        NotComparable: weights, inputs, machine, … differ; names the field and both values.
    """
    for name, (ours, theirs) in differences(before, after).items():
        if name not in allow:
            raise NotComparable(
                f"the runs differ in {name}: {ours} against {theirs}",
                hint=f"compare runs that agree in it, or say that it is meant: --allow {name}",
            )
    cells = {key: (None, cell) for key, cell in _measured(after).items()}
    for key, cell in _measured(before).items():
        cells[key] = (cell, cells.get(key, (None, None))[1])  # type: ignore[assignment]
    ordered = sorted(cells.items(), key=lambda item: (str(item[0][0]), item[0][1]))
    return [_compare_cells(*key, *pair) for key, pair in ordered]


def _measured(results: Results) -> dict[tuple[Variant, int], Cell]:
    return {(c.variant, c.batch_size): c for c in results.cells if c.measured and c.batch_size}


def _compare_cells(variant: Variant, batch_size: int, before: Cell | None, after: Cell | None) -> CellComparison:
    if before is None or after is None:
        verdict: Verdict = "gained" if before is None else "lost"
        return CellComparison(variant, batch_size, verdict)
    against = speedup(before, after, paired=False)
    rounds = before.round_medians_s, after.round_medians_s
    p_value = stats.mann_whitney_p(*rounds) if min(map(len, rounds)) >= ROUNDS_FOR_A_TEST else None
    if against.interval is None:
        verdict = "unsure"
    elif against.tied:
        verdict = "tied"
    else:
        verdict = "faster" if against.ratio > 1 else "slower"
    seconds = before.seconds_per_image, after.seconds_per_image
    return CellComparison(variant, batch_size, verdict, *seconds, against, p_value)
