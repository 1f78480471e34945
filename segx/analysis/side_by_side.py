"""Several runs side by side: of other machines, versions or settings. Says what differs before it compares."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segx.analysis.ratios import Speedup, speedup
from segx.errors import UsageError
from segx.results.provenance import environment, host_of, spec_id
from segx.results.types import Cell, Results
from segx.runtimes import Variant


@dataclass(frozen=True)
class Run:
    """One of the runs.

    Attributes:
        label: tells it from the others.
        results: of the bench.
    """

    label: str
    results: Results


@dataclass(frozen=True)
class Row:
    """One variant at one batch size, in every run.

    Attributes:
        variant: of all.
        batch_size: of all; None where a runtime as a whole was unavailable in all runs.
        cells: run by run; None where a run did not have it.
        ratios: images per second, relative to the first run; None for the first run itself, where either has no times,
            and where the runs do not compare.
    """

    variant: Variant
    batch_size: int | None
    cells: tuple[Cell | None, ...]
    ratios: tuple[Speedup | None, ...]


@dataclass(frozen=True)
class SideBySide:
    """Runs and what they have in common.

    Attributes:
        runs: in the order given; the first is what the others are compared with.
        rows: by variant, then batch size.
        differences: what differs: name -> the value of every run.
        warnings: what these differences mean for the figures, one line each; empty where nothing casts doubt on them.
    """

    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    differences: dict[str, tuple[str, ...]]
    warnings: tuple[str, ...]

    @property
    def same_masks(self) -> bool:
        """Whether masks of all runs are of the same model and images, so that their figures compare."""
        return not {"weights", "model", "inputs"} & set(self.differences)


def side_by_side(runs: Sequence[Run]) -> SideBySide:
    """Put runs side by side.

    Ratios are of the rounds' medians, unpaired, with intervals by bootstrap (see ``segx.analysis.ratios``). Another
    network takes another time: where models differ there are no ratios, and the warnings say so.

    Raises:
        UsageError: fewer than two runs.
    """
    if len(runs) < 2:
        raise UsageError("one run cannot stand side by side", hint="give two results or more")
    differences = _differences([run.results for run in runs])
    return SideBySide(
        runs=tuple(runs),
        rows=tuple(_rows(runs, comparable="model" not in differences)),
        differences=differences,
        warnings=tuple(_warnings(differences)),
    )


def labelled(loaded: Sequence[tuple[Path, Results]]) -> list[Run]:
    """Runs with names that tell them apart: the folder's, with as much of the path before it as it takes.

    The same results given twice are numbered.
    """
    folders = [(path.parent if path.is_file() else path).absolute() for path, _ in loaded]
    labels = [_shortest(folder, folders) for folder in folders]
    numbers: dict[str, itertools.count[int]] = {label: itertools.count(1) for label in labels}
    distinct = [f"{label} ({next(numbers[label])})" if labels.count(label) > 1 else label for label in labels]
    return [Run(label, results) for label, (_, results) in zip(distinct, loaded, strict=True)]


def _shortest(folder: Path, folders: Sequence[Path]) -> str:
    """The last parts of a path, as many as no other path ends in."""
    others = [other for other in folders if other != folder]
    for count in range(1, len(folder.parts) + 1):
        ending = folder.parts[-count:]
        if all(other.parts[-count:] != ending for other in others):
            return str(Path(*ending))
    return str(folder)


# What differs -> how a run has it, and what that means for the figures.
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


def _differences(all_results: Sequence[Results]) -> dict[str, tuple[str, ...]]:
    """Settings and environment that are not the same in all runs; a value that is not known is empty."""
    values = {name: tuple(value(results) for results in all_results) for name, (value, _) in _SETTINGS.items()}
    environments = [environment(results) for results in all_results]
    for name in dict.fromkeys(name for found in environments for name in found):
        values[name] = tuple(found.get(name, "") for found in environments)
    return {name: found for name, found in values.items() if len(set(found)) > 1}


def _warnings(differences: dict[str, tuple[str, ...]]) -> list[str]:
    return [meaning for name, (_, meaning) in _SETTINGS.items() if name in differences]


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
    ratios = [_ratio(first, cell) if comparable else None for cell in others]
    return Row(variant, batch_size, (first, *others), (None, *ratios))


def _ratio(first: Cell | None, other: Cell | None) -> Speedup | None:
    if first is None or other is None or not (first.measured and other.measured):
        return None
    return speedup(first, other, paired=False)


def cell_of(results: Results, variant: Variant, batch_size: int | None) -> Cell | None:
    """Of this batch size; where the variant as a whole was unavailable, the one that says so."""
    of_variant = {cell.batch_size: cell for cell in results.cells if cell.variant == variant}
    return of_variant.get(batch_size) or of_variant.get(None)
