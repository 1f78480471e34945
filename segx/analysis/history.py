"""Runs over time, and which of their changes are more than noise."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segx.analysis import stats
from segx.analysis.compare import Run, cell_of, labelled
from segx.analysis.figures import Speedup, speedup, spread_of_ratio, verdict_of
from segx.errors import ResultsError, SegxError
from segx.results.settings import key_of
from segx.results.store import load_results
from segx.results.types import Cell, Results
from segx.runtimes import Variant
from segx.system.files import sha256_of

Kind = Literal["faster", "slower", "drift", "lost", "back", "masks"]

# Smaller changes are not worth acting on.
LEAST_CHANGE = 0.05

# Fewest runs to know the noise from run to run: four other steps.
RUNS_FOR_NOISE = 6
# Fewest runs in which a slow drift is looked for.
RUNS_FOR_DRIFT = 8
# A change has to exceed that by so many standard deviations.
_DEVIATIONS = 3.0


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change between two successive runs of a series, given by their indices in the group.

    ``faster`` and ``slower`` are more than noise, and come with the speed-up of the later run and the p-value of its
    difference from 1, corrected for the number of series. ``lost`` was measured before and failed now, ``back`` is the
    reverse, and ``masks`` is another verdict on the masks; these come with a description of both states. ``drift`` is
    between runs that are far apart.
    """

    before: int
    after: int
    kind: Kind
    description: str = ""
    speedup: Speedup | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Series:
    """One variant at one batch size over all runs of a group; None where a run lacks the cell."""

    variant: Variant
    batch_size: int
    cells: tuple[Cell | None, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Group:
    """Comparable runs, in order of time: the same model, images and settings on the same kind of machine.

    ``untested`` is the number of steps with too few rounds for a test.
    """

    runs: tuple[Run, ...]
    series: tuple[Series, ...]
    untested: int


@dataclass(frozen=True)
class History:
    """All runs below a folder: groups with the latest run first, and skipped files with the reason.

    ``least_change`` is the smallest share by which the speed must change to be marked.
    """

    folder: Path
    groups: tuple[Group, ...]
    skipped: tuple[tuple[Path, str], ...]
    least_change: float

    @property
    def name(self) -> str:
        """Return the name of the folder, also of ``.``."""
        return self.folder.resolve().name or str(self.folder)


def read_history(folder: Path, *, least_change: float = LEAST_CHANGE) -> History:
    """Read every ``results.json`` below a folder, at any depth, except in hidden folders, which hold unfinished files.

    Raises:
        ResultsError: the folder does not exist, or has no results.
    """
    if not folder.is_dir():
        raise ResultsError(
            f"{folder} is not a folder", hint="give the folder that holds the folders of several benches"
        )
    loaded: list[tuple[Path, Results]] = []
    skipped: list[tuple[Path, str]] = []
    known: dict[str, Path] = {}
    for path in sorted(folder.rglob("results.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            results = load_results(path)
            moment(results)
            first = known.setdefault(sha256_of(path), path)
        except (SegxError, OSError, ValueError) as error:
            reason = error.message if isinstance(error, SegxError) else str(error)
            skipped.append((path, reason.removeprefix(f"{path} ").removeprefix("is ")))
            continue
        if first is path:
            loaded.append((path, results))
        else:
            skipped.append((path, f"the same file as {first}"))
    if not loaded:
        why = f"; none of {len(skipped)} files can be read: {skipped[0][1]}" if skipped else ""
        raise ResultsError(f"there are no results below {folder}{why}", hint="save benches there with --output")
    return History(folder, tuple(grouped(loaded, least_change=least_change)), tuple(skipped), least_change)


def moment(results: Results) -> dt.datetime:
    """Return when a run began.

    Raises:
        ValueError: ``created`` is not a date.
    """
    when = dt.datetime.fromisoformat(results.created)
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)


def grouped(loaded: Sequence[tuple[Path, Results]], *, least_change: float = LEAST_CHANGE) -> list[Group]:
    """Sort runs by time and group the comparable ones; the group with the latest run comes first."""
    runs = sorted(labelled(loaded), key=lambda run: (moment(run.results), run.label))
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(key_of(run.results), []).append(run)
    groups = [_group(members, least_change) for members in alike.values()]
    return sorted(groups, key=lambda group: moment(group.runs[-1].results), reverse=True)


def _group(runs: Sequence[Run], least_change: float) -> Group:
    keys: dict[Variant, set[int]] = {}
    for cell in (cell for run in runs for cell in run.results.cells if cell.batch_size is not None):
        keys.setdefault(cell.variant, set()).add(cell.batch_size or 0)
    cells = {
        (variant, size): tuple(cell_of(run.results, variant, size) for run in runs)
        for variant, sizes in keys.items()
        for size in sorted(sizes)
    }
    steps = [step for key, found in cells.items() for step in _steps(key, found)]
    speeds = _more_than_noise(steps, least_change)
    drifts = _drifts(cells, speeds, least_change)
    series = []
    for key, found in cells.items():
        found_here = [*_events(found, runs), *speeds.get(key, []), *drifts.get(key, [])]
        changes = sorted(found_here, key=lambda change: change.after)
        series.append(Series(*key, found, tuple(changes)))
    return Group(tuple(runs), tuple(series), sum(step.p_value is None for step in steps))


def _events(cells: Sequence[Cell | None], runs: Sequence[Run]) -> list[Change]:
    """Return changes that need no test: cells that stop or start to work, and changed verdicts on masks."""
    found = []
    present = [(place, cell) for place, cell in enumerate(cells) if cell]
    for (before, old), (after, new) in itertools.pairwise(present):
        if old.measured != new.measured:
            kind: Kind = "back" if new.measured else "lost"
            reason = f" ({new.reason})" if new.reason else ""
            found.append(
                Change(before=before, after=after, kind=kind, description=f"{old.status} → {new.status}{reason}")
            )
        verdicts = verdict_of(runs[before].results, old), verdict_of(runs[after].results, new)
        if None not in verdicts and verdicts[0] != verdicts[1]:
            found.append(Change(before=before, after=after, kind="masks", description=f"{verdicts[0]} → {verdicts[1]}"))
    return found


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One measured cell of a series and the next.

    Attributes:
        before: index of the run of the first.
        size: logarithm of images per second of the second relative to the first, by the rounds' medians or by the
            median of all calls, whichever is nearer to 0; 0 if these disagree in sign, as with calls of changing speed.
        p_value: of its difference from 0, as in ``compare``; None for too few rounds.
    """

    series: tuple[Variant, int]
    before: int
    after: int
    cells: tuple[Cell, Cell]
    size: float
    p_value: float | None


def _steps(series: tuple[Variant, int], cells: Sequence[Cell | None]) -> Iterator[_Step]:
    measured = [(place, cell) for place, cell in enumerate(cells) if cell and cell.measured and cell.median_s > 0]
    for (before, old), (after, new) in itertools.pairwise(measured):
        by_rounds = math.log(statistics.median(old.round_medians_s) / statistics.median(new.round_medians_s))
        by_calls = math.log(old.median_s / new.median_s)
        size = min(by_rounds, by_calls, key=abs) if by_rounds * by_calls > 0 else 0.0
        spread = spread_of_ratio(old, new, paired=False)
        p_value = stats.student_p(size, spread) if spread else None
        yield _Step(series=series, before=before, after=after, cells=(old, new), size=size, p_value=p_value)


def _more_than_noise(steps: Sequence[_Step], least_change: float) -> dict[tuple[Variant, int], list[Change]]:
    """Return series -> its steps that pass three tests.

    1. Within the runs: Student's t of the ratio, the test of ``compare``. All steps to one run are one family of
       hypotheses, corrected by Holm.
    2. Large enough to act on, by the rounds' medians and by the median of all calls.
    3. From run to run: larger than three standard deviations of the other steps of the series, if there are enough of
       them (estimated from their median absolute size, which is robust to a real change among them). Machines whose
       speed varies from run to run pass the first test all the time.
    """
    changes: dict[tuple[Variant, int], list[Change]] = {}
    families: dict[int, list[tuple[_Step, float]]] = {}
    for step in steps:
        if step.p_value is not None:
            families.setdefault(step.after, []).append((step, step.p_value))
    for family in families.values():
        corrected = stats.holm([p_value for _, p_value in family])
        for (step, _), p_value in zip(family, corrected, strict=True):
            others = [abs(other.size) for other in steps if other.series == step.series and other is not step]
            large = abs(step.size) >= math.log1p(least_change) and abs(step.size) > _usual_size(others)
            if large and p_value <= 1 - stats.CONFIDENCE:
                change = Change(
                    before=step.before,
                    after=step.after,
                    kind="faster" if step.size > 0 else "slower",
                    speedup=speedup(*step.cells, paired=False),
                    p_value=p_value,
                )
                changes.setdefault(step.series, []).append(change)
    return changes


def _drifts(
    cells: Mapping[tuple[Variant, int], Sequence[Cell | None]],
    speeds: Mapping[tuple[Variant, int], Sequence[Change]],
    least_change: float,
) -> dict[tuple[Variant, int], list[Change]]:
    """Return series -> the slow drift since its last marked change of speed, if it is more than noise.

    No step of a slow drift passes the tests of ``_more_than_noise``. It is a trend by the Mann-Kendall test, corrected
    for the number of series (Holm), that adds up to a change worth acting on by the Theil-Sen slope.
    """
    trends: dict[tuple[Variant, int], tuple[int, int, int, float, float]] = {}
    for key, found in cells.items():
        start = max((change.after for change in speeds.get(key, [])), default=0)
        measured = [
            (place, math.log(1 / cell.seconds_per_image))
            for place, cell in enumerate(found)
            if place >= start and cell and cell.measured and cell.median_s > 0
        ]
        if len(measured) >= RUNS_FOR_DRIFT:
            values = [value for _, value in measured]
            total = stats.theil_sen_slope(values) * (len(values) - 1)
            trends[key] = (measured[0][0], measured[-1][0], len(values), total, stats.mann_kendall_p(values))
    corrected = stats.holm([p_value for *_, p_value in trends.values()])
    return {
        key: [
            Change(
                before=first,
                after=last,
                kind="drift",
                description=f"{math.exp(total):.2f}x over {count} runs, p {p_value:.1g}",
            )
        ]
        for (key, (first, last, count, total, _)), p_value in zip(trends.items(), corrected, strict=True)
        if p_value <= 1 - stats.CONFIDENCE and abs(total) >= math.log1p(least_change)
    }


def _usual_size(sizes: Sequence[float]) -> float:
    """Return how much a series varies from run to run, by its other steps; 0 for too few."""
    return _DEVIATIONS * stats.MAD_TO_SIGMA * statistics.median(sizes) if len(sizes) >= RUNS_FOR_NOISE - 2 else 0.0
