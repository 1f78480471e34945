"""Which variant and batch size to run, where that is left to segx: the fastest that was measured, or a short probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from segx.analysis.recommend import fit_cells
from segx.errors import ResultsError, RuntimeUnavailable
from segx.export.variants import ModelFiles
from segx.predict.probe import Probed, candidates
from segx.results.store import load_results
from segx.results.types import Cell, Results
from segx.runtimes import Precision, Variant, runtime_info
from segx.system import machine

AUTO = "auto"

# On a GPU a single image leaves most of it idle; on a CPU it keeps every thread busy.
_CUDA_BATCH_SIZES = (1, 4, 16)

Probe = Callable[[Sequence[Variant], Sequence[int]], list[Probed]]


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        runtime: a name, or ``auto``.
        precision: None for fp32 of a named runtime, and for whichever is fastest of ``auto``.
        batch_size: None for the fastest.
    """

    runtime: str = AUTO
    precision: Precision | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Choice:
    """What runs.

    Attributes:
        variant: runtime and precision.
        batch_size: images per call.
        reason: why this one.
    """

    variant: Variant
    batch_size: int
    reason: str


def choose(wish: Wish, model: ModelFiles, *, folder: Path, threads: int, probe: Probe) -> Choice:
    """Decide what runs.

    Args:
        wish: what was asked for.
        model: the model.
        folder: where benches keep their results, as ``bench-DATE/results.json``.
        threads: processors that the runtime may use.
        probe: tries variants at batch sizes; see ``segx.predict.probe``.

    Raises:
        RuntimeUnavailable: nothing was measured, and nothing works here.
    """
    if wish.runtime != AUTO and wish.batch_size is not None:
        return Choice(_named(wish), wish.batch_size, "as asked for")
    if cell := best_measured(measured_here(folder, model, threads), wish):
        assert cell.cell.batch_size  # measured cells have one
        rate = 1 / cell.cell.seconds_per_image
        return Choice(
            cell.cell.variant,
            wish.batch_size or cell.cell.batch_size,
            f"the fastest in {cell.source}, {rate:.3g} images/s at batch {cell.cell.batch_size}",
        )
    variants = [_named(wish)] if wish.runtime != AUTO else candidates(wish.precision or "fp32")
    on_cuda = any(runtime_info(variant.runtime).device == "cuda" for variant in variants)
    sizes = (wish.batch_size,) if wish.batch_size else _CUDA_BATCH_SIZES if on_cuda else (1,)
    if len(variants) == 1 and len(sizes) == 1:
        return Choice(variants[0], sizes[0], "as asked for")
    if not variants:
        raise RuntimeUnavailable(
            f"no runtime without PyTorch computes in {wish.precision} here", hint="choose one with --runtime"
        )
    best = max(probe(variants, sizes), key=lambda found: found.images_per_s)
    reason = f"the fastest of a short probe, {best.images_per_s:.3g} images/s; `segx bench` finds out more"
    return Choice(best.variant, best.batch_size, reason)


@dataclass(frozen=True)
class Measured:
    """A cell, and the name of the bench it is from."""

    source: str
    cell: Cell


def measured_here(folder: Path, model: ModelFiles, threads: int) -> list[Measured]:
    """The cells of the newest bench of these weights on this machine, of those whose masks met their gate."""
    try:
        files = sorted(folder.glob("bench-*/results.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    except OSError:  # one was removed meanwhile
        return []
    for file in files:
        try:
            results = load_results(file)
        except ResultsError:
            continue
        if not _comparable(results, model, threads):
            continue
        takes = {"onnx"} if model.checkpoint is None else {"onnx", "checkpoint"}
        if cells := [cell for cell in fit_cells(results) if runtime_info(cell.runtime).takes in takes]:
            return [Measured(file.parent.name, cell) for cell in cells]
    return []


def best_measured(measured: Sequence[Measured], wish: Wish) -> Measured | None:
    """The one with the most images per second, of those that are wished for."""
    any_precision = get_args(Precision) if wish.runtime == AUTO else ("fp32",)
    precisions = any_precision if wish.precision is None else (wish.precision,)
    fit = [
        found
        for found in measured
        if wish.runtime in (AUTO, found.cell.runtime)
        if found.cell.precision in precisions
        if wish.batch_size in (None, found.cell.batch_size)
    ]
    return min(fit, key=lambda found: found.cell.seconds_per_image, default=None)


def _named(wish: Wish) -> Variant:
    return Variant(runtime_info(wish.runtime).name, wish.precision or "fp32")


def _comparable(results: Results, model: ModelFiles, threads: int) -> bool:
    """Whether its figures hold for this model on this machine; the threshold costs no time."""
    host = results.machine
    here = (machine.cpu_name(), machine.usable_cores(), tuple(gpu.name for gpu in machine.gpus()))
    there = (host.cpu, host.cores_usable, tuple(gpu.name for gpu in host.gpus))
    same_model = results.model.weights_sha256 == model.weights_sha256 and (
        dataclasses.replace(results.model.spec, threshold=0.5) == dataclasses.replace(model.spec, threshold=0.5)
    )
    return same_model and here == there and results.options.threads == threads
