"""Which variant and batch size to deploy, of those whose masks met the gate."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from segx.analysis.figures import needed_bytes
from segx.analysis.stats import Interval, median_interval
from segx.export.variants import form_of
from segx.results.types import Cell, Results
from segx.runtimes import runtime_info


@dataclass(frozen=True)
class Choice:
    """The best cell in one respect.

    Attributes:
        wish: what it is best in.
        cell: the one.
        ties: others that may well be as good: their intervals overlap.
        command: makes the file that it runs; empty where it runs the checkpoint itself.
    """

    wish: str
    cell: Cell
    ties: tuple[Cell, ...]
    command: str


def recommend(results: Results) -> list[Choice]:
    """The best in throughput, in latency of a single image and in memory; empty where nothing met the gate.

    Only the forward scope counts: what is deployed has to bring its images in and its masks out.
    """
    fit = fit_cells(results)
    single = [cell for cell in fit if cell.batch_size == 1]
    weighed = [cell for cell in fit if needed_bytes(cell) is not None]
    choices = (
        _best("throughput", fit, lambda cell: cell.seconds_per_image, results),
        _best("latency at batch 1", single, lambda cell: cell.median_s, results),
        _best("memory", weighed, lambda cell: float(needed_bytes(cell) or 0), results),
    )
    return [choice for choice in choices if choice]


def fit_cells(results: Results) -> list[Cell]:
    """Those that can be recommended: measured in the forward scope, with masks that met the gate.

    The masks of an interrupted cell were never judged.
    """
    return [
        cell
        for cell in results.cells
        if cell.status == "ok" and cell.measured and cell.scope == "forward" and cell.stopped != "interrupted"
    ]


def _best(wish: str, cells: list[Cell], cost: Callable[[Cell], float], results: Results) -> Choice | None:
    if not cells:
        return None
    best = min(cells, key=cost)
    ours = interval_per_image(best)
    ties = (
        ()
        if wish == "memory"
        else tuple(
            cell
            for cell in cells
            if cell is not best and ours and (theirs := interval_per_image(cell)) and ours.overlaps(theirs)
        )
    )
    return Choice(wish, best, ties, _export_command(best, results))


def interval_per_image(cell: Cell) -> Interval | None:
    """The 95 % interval of the median seconds per image; None with too few calls."""
    interval, size = median_interval(cell.samples_s), cell.batch_size or 1
    return Interval(interval.low / size, interval.high / size) if interval else None


def _export_command(cell: Cell, results: Results) -> str:
    """Makes the file that a cell runs; empty where the user has it already."""
    form, model = form_of(cell.variant), results.model
    if form == "checkpoint" or (form == "onnx" and model.checkpoint is None):
        return ""
    source = (
        f"--weights {shlex.quote(model.checkpoint)}" if model.checkpoint else f"--model {shlex.quote(str(model.onnx))}"
    )
    engine = runtime_info(cell.runtime).engine
    options = {
        "openvino": "--engine openvino",
        "fp16": "--precision fp16",
        f"int8-{engine}": f"--precision int8 --engine {engine}",
    }
    if cell.runtime == "tensorrt":
        return f"segx export {source} --format tensorrt --precision {cell.precision} --batch-size {cell.batch_size}"
    return " ".join(["segx export", source, *filter(None, [options.get(form)])])


def sentence(choice: Choice) -> str:
    """What it is best in, with its figure and what it is tied with."""
    cell = choice.cell
    figures = {
        "throughput": f"{1 / cell.seconds_per_image:.2f} images/s",
        "latency at batch 1": f"{cell.median_s * 1e3:.1f} ms",
        "memory": f"{(needed_bytes(cell) or 0) / 2**20:.0f} MiB",
    }
    tied = ", ".join(f"{other.variant} batch {other.batch_size}" for other in choice.ties)
    return f"best {choice.wish}: {cell.variant} batch {cell.batch_size}, {figures[choice.wish]}" + (
        f" (tied with {tied})" if tied else ""
    )
