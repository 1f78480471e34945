"""Compare benches: two of them cell by cell with a verdict, or several side by side with what differs between them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segx.analysis import stats
from segx.analysis.figures import Speedup, speedup, spread_of_ratio, verdict_of
from segx.errors import NotComparable, UsageError
from segx.masks import agreement
from segx.results.provenance import environment
from segx.results.settings import SETTINGS, differences
from segx.results.types import BenchOptions, Cell, Results
from segx.runtimes import Variant, runtime_info

Verdict = Literal["faster", "slower", "tied", "unsure", "lost", "gained", "not asked for"]
# A change of speed: the logarithm of a ratio of images per second, and its uncertainty.
_Change = tuple[float, stats.Spread]

# Smaller changes are not worth acting on.
LEAST_CHANGE = 0.05
# With fewer cells, a change that all share cannot be told from changes of each.
_CELLS_FOR_A_COMMON_FACTOR = 3
# A factor is common if at least this share of the cells agrees with it.
_AGREEING = 0.75


@dataclass(frozen=True)
class CellComparison:
    """One cell of both runs: seconds per image, and speed-ups of the second run.

    ``beyond`` is the speed-up beyond the factor that the cells share, the same as ``speedup`` without one; ``p_value``
    is that of its difference from 1, corrected for the number of cells; ``together`` says that it agrees with that
    factor. The verdict is ``faster`` or ``slower`` if p is at most 5%, else ``tied`` if the interval of ``beyond``
    holds no change worth acting on, else ``unsure``: too noisy to tell, or too few rounds. A cell that only the second
    run measured is ``gained``; one that only the first measured is ``lost``, or ``not asked for`` by the second.
    ``masks_before`` and ``masks_after`` are the verdicts on the masks against the reference of each run; None if not
    judged.
    """

    variant: Variant
    batch_size: int
    verdict: Verdict
    before_s: float | None = None
    after_s: float | None = None
    speedup: Speedup | None = None
    beyond: Speedup | None = None
    p_value: float | None = None
    together: bool = False
    masks_before: agreement.Verdict | None = None
    masks_after: agreement.Verdict | None = None

    @property
    def masks_broke(self) -> bool:
        """Whether the masks met their gate in the first run and fail it in the second."""
        compared = self.before_s is not None and self.after_s is not None
        return compared and self.masks_after == "FAILED" and self.masks_before not in (None, "FAILED")

    def regressed_by(self, share: float) -> bool:
        """Return whether it is slower by at least ``share`` of the time per image, or is no longer measured."""
        slower = self.verdict == "slower" and self.beyond is not None and 1 / self.beyond.ratio - 1 >= share
        return self.verdict == "lost" or slower


@dataclass(frozen=True)
class _Test:
    """The change of a cell beyond the one that cells share, and the corrected p-value of its difference from 0."""

    size: float
    spread: stats.Spread
    p_value: float
    together: bool


@dataclass(frozen=True)
class Comparison:
    """Two runs, cell by cell.

    Attributes:
        common: speed-up of the second run that the cells share; None for fewer than 3 cells, or if they share none.
        apart: there are 3 cells or more, and they share none.
        least_change: smallest share by which a time must change to be worth acting on.
    """

    cells: tuple[CellComparison, ...]
    common: Speedup | None
    apart: bool
    least_change: float


def compare(
    before: Results, after: Results, *, allow: Collection[str] = (), least_change: float = LEAST_CHANGE
) -> Comparison:
    """Compare two runs; ``allow`` has the names from ``segx.results.settings.SETTINGS`` that may differ.

    Machines differ from run to run by more than within one, and mostly in all cells alike. So a factor that the cells
    share is found first, as the median of their ratios, and each cell is judged beyond it. Three quarters of the cells
    must agree with it: beyond it, they moved by at most half as much (in logarithms), by no change worth acting on, or
    within the noise of the runs. A slow-down is not shared if a cell that does not agree is faster, and a speed-up is
    not if PyTorch's cells on one device have less than half of it, since a faster machine makes PyTorch faster too.
    Where none is shared, each cell is judged by its own ratio.

    What cells differ from each other beyond the noise within the runs is taken to be noise between runs, estimated
    robustly, so that a change of a few cells stands out; where no factor is shared, from the half of the cells that
    differ least. The p-values are corrected for the number of cells (Holm 1979).

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
    pairs = {key: (before.cell(*key), after.cell(*key)) for key in keys}
    changes = {
        key: (math.log(old.seconds_per_image / new.seconds_per_image), spread)
        for key, (old, new) in pairs.items()
        if old and new and (spread := spread_of_ratio(old, new, paired=False))
    }
    common, tests = _judged(changes, least_change)
    judged = dict(zip(changes, tests, strict=True))
    compared = (
        dataclasses.replace(
            _compare_cells(*key, old, new, judged.get(key), after.options, least_change),
            masks_before=_masks(before, old),
            masks_after=_masks(after, new),
        )
        for key, (old, new) in pairs.items()
    )
    apart = common is None and len(changes) >= _CELLS_FOR_A_COMMON_FACTOR
    return Comparison(tuple(compared), _speedup_of(*common) if common else None, apart, least_change)


def _masks(results: Results, cell: Cell | None) -> agreement.Verdict | None:
    """Return the verdict on the masks of a cell; FAILED also if the bench found so under other limits."""
    return "FAILED" if cell and cell.status == "parity broken" else verdict_of(results, cell) if cell else None


def _speedup_of(size: float, spread: stats.Spread) -> Speedup:
    ratio = math.exp(size)
    return Speedup(ratio, spread.around(ratio))


def _judged(of_cells: Mapping[tuple[Variant, int], _Change], least_change: float) -> tuple[_Change | None, list[_Test]]:
    """Return the change that the cells share, or None, and the test of each cell beyond it."""
    changes = list(of_cells.values())
    count = len(changes)
    if count < _CELLS_FOR_A_COMMON_FACTOR:
        return None, _tests(changes, 0.0, stats.Spread(0.0, 1.0))
    sizes, variances = zip(*((size, spread.variance) for size, spread in changes), strict=True)
    middle = statistics.median(sizes)
    within = statistics.median(variances)
    freedom = max(4, count - 1)
    deviation = stats.MAD_TO_SIGMA * statistics.median(abs(size - middle) for size in sizes)
    between = stats.Spread(max(0.0, deviation**2 - within), freedom)
    of_median = stats.Spread(math.pi / 2 * (between.variance + statistics.fmean(variances)) / count, freedom)
    least = math.log1p(min(least_change, LEAST_CHANGE))
    together = [abs(size - middle) <= max(abs(middle) / 2, least, spread.reach) for size, spread in changes]
    tests = _tests(changes, middle, of_median + between, together)
    if sum(together) >= _AGREEING * count and not _contradicted(of_cells, tests, middle, least):
        return (middle, of_median), tests
    noise = max(0.0, stats.deviation_of_densest_half(sizes) ** 2 - within)
    return None, _tests(changes, 0.0, stats.Spread(noise, freedom))


def _contradicted(
    changes: Mapping[tuple[Variant, int], _Change], tests: Sequence[_Test], middle: float, least: float
) -> bool:
    """Return whether cells that kept their speed show that it is not the machine which changed.

    A single cell that lacks a speed-up may have regressed instead. PyTorch's do not: changes of the exported files
    leave them alone.
    """
    if middle <= -least:
        return any(test.size > 0 and test.p_value <= 1 - stats.CONFIDENCE and not test.together for test in tests)
    control: dict[str, list[float]] = {}
    for (variant, _), (size, _) in changes.items():
        if variant.runtime == runtime_info(variant.runtime).baseline:
            control.setdefault(variant.runtime, []).append(size)
    return middle >= least and any(statistics.median(sizes) < middle / 2 for sizes in control.values())


def _tests(
    changes: Sequence[_Change], shared: float, noise: stats.Spread, together: Sequence[bool] | None = None
) -> list[_Test]:
    """Test each change beyond a shared one, with the noise of that and between runs."""
    beyond = [(size - shared, spread + noise) for size, spread in changes]
    p_values = stats.holm([stats.student_p(*change) for change in beyond])
    return [
        _Test(*change, p_value, with_others)
        for change, p_value, with_others in zip(beyond, p_values, together or [False] * len(changes), strict=True)
    ]


def _compare_cells(
    variant: Variant,
    batch_size: int,
    before: Cell | None,
    after: Cell | None,
    test: _Test | None,
    options: BenchOptions,
    least_change: float,
) -> CellComparison:
    if before is None or after is None:
        asked = batch_size in options.batch_sizes and (
            variant.runtime in options.runtimes
            and runtime_info(variant.runtime).least_batch <= batch_size
            and variant.precision in options.precisions
            and (not options.variants or f"{variant.runtime}:{variant.precision}" in options.variants)
            and variant.scope in options.scopes
        )
        return CellComparison(variant, batch_size, "gained" if before is None else "lost" if asked else "not asked for")
    against, seconds = speedup(before, after, paired=False), (before.seconds_per_image, after.seconds_per_image)
    if test is None:
        return CellComparison(variant, batch_size, "unsure", *seconds, against)
    verdict: Verdict = "faster" if test.size > 0 else "slower"
    if test.p_value > 1 - stats.CONFIDENCE:
        known = abs(test.size) + test.spread.reach <= math.log1p(least_change)
        verdict = "tied" if known else "unsure"
    beyond = _speedup_of(test.size, test.spread)
    return CellComparison(variant, batch_size, verdict, *seconds, against, beyond, test.p_value, test.together)


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

    Ratios are of the medians of the rounds, unpaired (see ``segx.analysis.figures``). There are none if the models
    differ.

    Raises:
        UsageError: fewer than two runs.
    """
    if len(runs) < 2:
        raise UsageError("one run cannot be shown side by side", hint="give two results or more")
    all_results = [run.results for run in runs]
    settings = differences(*all_results)
    warnings = [SETTINGS[name].warning for name in settings]
    values = {SETTINGS[name].label: found for name, found in settings.items()}
    values["images"] = tuple(results.inputs.source for results in all_results)
    values["reference"] = tuple(results.reference for results in all_results)
    if len(set(values["reference"])) > 1:
        warnings.append("the masks are judged against other references")
    environments = [environment(results) for results in all_results]
    for name in dict.fromkeys(name for found in environments for name in found):
        values[name] = tuple(found.get(name, "") for found in environments)
    return SideBySide(
        runs=tuple(runs),
        rows=tuple(_rows(runs, comparable="spec" not in settings)),
        differences={name: found for name, found in values.items() if len(set(found)) > 1},
        warnings=tuple(warnings),
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
