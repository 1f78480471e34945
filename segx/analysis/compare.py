"""Compare benches: two of them cell by cell with a verdict, or several side by side with what differs between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segx.analysis import stats
from segx.analysis.figures import Speedup, speedup
from segx.errors import NotComparable, UsageError
from segx.results.provenance import differences, environment, host_of, spec_id
from segx.results.types import Cell, Results
from segx.runtimes import Variant

Verdict = Literal["faster", "slower", "tied", "unsure", "lost", "gained"]

# From so many rounds a side the normal approximation of the Mann-Whitney test holds (as google/benchmark advises).
ROUNDS_FOR_A_TEST = 9


@dataclass(frozen=True)
class CellComparison:
    """One cell of both runs: seconds per image, speed-up of the second run, and p-value of the Mann-Whitney test.

    The verdict is ``faster`` or ``slower`` if the interval of the ratio excludes 1, else ``tied``; ``unsure`` without
    an interval; ``lost`` if only the first run measured the cell, ``gained`` if only the second did.
    """

    variant: Variant
    batch_size: int
    verdict: Verdict
    before_s: float | None = None
    after_s: float | None = None
    speedup: Speedup | None = None
    p_value: float | None = None

    def regressed_by(self, share: float) -> bool:
        """Return whether it is slower by at least ``share`` of the time per image, or is no longer measured."""
        if self.verdict == "lost":
            return True
        if self.verdict != "slower" or self.before_s is None or self.after_s is None:
            return False
        return self.after_s / self.before_s - 1 >= share


def compare(before: Results, after: Results, *, allow: Collection[str] = ()) -> list[CellComparison]:
    """Compare two runs; ``allow`` has the names from ``segx.results.provenance.ALLOWANCES`` that may differ.

    Raises:
        NotComparable: weights, inputs, machine, … differ; names the field and both values.
    """
    for name, (ours, theirs) in differences(before, after).items():
        if name not in allow:
            raise NotComparable(
                f"the runs differ in {name}: {ours} against {theirs}",
                hint=f"compare runs with the same {name}, or allow the difference: --allow {name}",
            )
    cells = (cell for results in (before, after) for cell in results.cells if cell.measured)
    keys = sorted({(cell.variant, cell.batch_size or 0) for cell in cells}, key=lambda key: (str(key[0]), key[1]))
    return [_compare_cells(*key, before.cell(*key), after.cell(*key)) for key in keys]


def _compare_cells(variant: Variant, batch_size: int, before: Cell | None, after: Cell | None) -> CellComparison:
    if before is None or after is None:
        return CellComparison(variant, batch_size, "gained" if before is None else "lost")
    against = speedup(before, after, paired=False)
    verdict: Verdict
    if against.interval is None:
        verdict = "unsure"
    elif against.tied:
        verdict = "tied"
    else:
        verdict = "faster" if against.ratio > 1 else "slower"
    seconds = before.seconds_per_image, after.seconds_per_image
    return CellComparison(variant, batch_size, verdict, *seconds, against, rounds_p_value(before, after))


def rounds_p_value(before: Cell, after: Cell) -> float | None:
    """Return the p-value of the Mann-Whitney test on the medians of the rounds; None for too few rounds."""
    rounds = before.round_medians_s, after.round_medians_s
    return stats.mann_whitney_p(*rounds) if min(map(len, rounds)) >= ROUNDS_FOR_A_TEST else None


@dataclass(frozen=True)
class Run:
    """The results of one of several runs, and a label that tells it from the others."""

    label: str
    results: Results


@dataclass(frozen=True)
class Row:
    """One variant at one batch size, or None if it was unavailable in all runs; a cell, if there is one, per run.

    ``ratios`` are images per second relative to the first run; None for that itself, for cells without times, and if
    the runs do not compare.
    """

    variant: Variant
    batch_size: int | None
    cells: tuple[Cell | None, ...]
    ratios: tuple[Speedup | None, ...]


@dataclass(frozen=True)
class SideBySide:
    """Several runs side by side, with ratios to the first.

    ``differences`` has the settings and parts of the environment that differ, with the value in every run, and
    ``warnings`` what they mean for the figures, one line each.
    """

    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    differences: dict[str, tuple[str, ...]]
    warnings: tuple[str, ...]

    @property
    def same_masks(self) -> bool:
        """Whether all runs have the same model and images, so that their mask figures compare."""
        return not {"weights", "model", "inputs"} & set(self.differences)


def side_by_side(runs: Sequence[Run]) -> SideBySide:
    """Put runs side by side.

    Ratios are of the medians of the rounds, unpaired, with bootstrap intervals (see ``segx.analysis.figures``). There
    are none if the models differ.

    Raises:
        UsageError: fewer than two runs.
    """
    if len(runs) < 2:
        raise UsageError("one run cannot be shown side by side", hint="give two results or more")
    found = _differences_of_all([run.results for run in runs])
    return SideBySide(
        runs=tuple(runs),
        rows=tuple(_rows(runs, comparable="model" not in found)),
        differences=found,
        warnings=tuple(meaning for name, (_, meaning) in _SETTINGS.items() if name in found),
    )


def labelled(loaded: Sequence[tuple[Path, Results]]) -> list[Run]:
    """Label runs by their folders, with as many parent folders as it takes to tell them apart.

    The same results given twice are numbered.
    """
    folders = [(path.parent if path.is_file() else path).absolute() for path, _ in loaded]
    labels = [_shortest(folder, folders) for folder in folders]
    numbers: dict[str, itertools.count[int]] = {label: itertools.count(1) for label in labels}
    distinct = [f"{label} ({next(numbers[label])})" if labels.count(label) > 1 else label for label in labels]
    return [Run(label, results) for label, (_, results) in zip(distinct, loaded, strict=True)]


def _shortest(folder: Path, folders: Sequence[Path]) -> str:
    """Return the last parts of a path, as many as no other path ends in."""
    others = [other for other in folders if other != folder]
    for count in range(1, len(folder.parts) + 1):
        ending = folder.parts[-count:]
        if all(other.parts[-count:] != ending for other in others):
            return str(Path(*ending))
    return str(folder)


# Setting -> its value in a run, and what a difference means for the figures.
_SETTINGS: dict[str, tuple[Callable[[Results], str], str]] = {
    "model": (
        lambda results: f"{results.model.spec} {spec_id(results)[:8]}",
        "the models differ: neither times nor masks compare, and no ratios are given",
    ),
    "weights": (
        lambda results: results.model.weights_sha256[:12],
        "the weights differ: the masks are of other models and do not compare",
    ),
    "inputs": (
        lambda results: f"{results.inputs.source} {results.inputs.sha256[:12]}",
        "the images differ: the masks do not compare",
    ),
    "machine": (host_of, "the machines differ: ratios are of machine and software together"),
    "threads": (lambda results: str(results.options.threads), "the threads differ: ratios are of that too"),
    "memory profile": (
        lambda results: results.options.memory_profile,
        "the memory profiles differ: ratios are of that too",
    ),
    "reference": (lambda results: results.reference, "the masks are judged against other references"),
}


def _differences_of_all(all_results: Sequence[Results]) -> dict[str, tuple[str, ...]]:
    """Return settings and environment that are not the same in all runs; unknown values are empty."""
    values = {name: tuple(value(results) for results in all_results) for name, (value, _) in _SETTINGS.items()}
    environments = [environment(results) for results in all_results]
    for name in dict.fromkeys(name for found in environments for name in found):
        values[name] = tuple(found.get(name, "") for found in environments)
    return {name: found for name, found in values.items() if len(set(found)) > 1}


def _rows(runs: Sequence[Run], *, comparable: bool) -> list[Row]:
    sizes: dict[Variant, dict[int | None, None]] = {}
    for cell in (cell for run in runs for cell in run.results.cells):
        sizes.setdefault(cell.variant, {})[cell.batch_size] = None
    return [
        _row(variant, size, runs, comparable=comparable)
        for variant, found in sizes.items()
        for size in (sorted(size for size in found if size is not None) if found.keys() - {None} else [None])
    ]


def _row(variant: Variant, batch_size: int | None, runs: Sequence[Run], *, comparable: bool) -> Row:
    first, *others = (cell_of(run.results, variant, batch_size) for run in runs)
    base = first if comparable and first and first.measured else None
    ratios = (speedup(base, cell, paired=False) if base and cell and cell.measured else None for cell in others)
    return Row(variant, batch_size, (first, *others), (None, *ratios))


def cell_of(results: Results, variant: Variant, batch_size: int | None) -> Cell | None:
    """Return a variant's cell at a batch size, else the one that says why the whole variant was unavailable."""
    of_variant = {cell.batch_size: cell for cell in results.cells if cell.variant == variant}
    return of_variant.get(batch_size) or of_variant.get(None)
