"""Which variant and batch size to deploy, of those whose masks met the gate."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from segx.bench.results import Cell, Results
from segx.bench.stats import Interval, median_interval
from segx.runtimes import Variant, runtime_info


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
    fit = [cell for cell in results.cells if cell.status == "ok" and cell.measured and cell.scope == "forward"]
    single = [cell for cell in fit if cell.batch_size == 1]
    weighed = [cell for cell in fit if cell.needed_bytes is not None]
    choices = (
        _best("throughput", fit, lambda cell: cell.seconds_per_image, results),
        _best("latency at batch 1", single, lambda cell: cell.median_s, results),
        _best("memory", weighed, lambda cell: float(cell.needed_bytes or 0), results),
    )
    return [choice for choice in choices if choice]


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
    return Choice(wish, best, ties, _export_command(best.variant, results))


def interval_per_image(cell: Cell) -> Interval | None:
    """The 95 % interval of the median seconds per image; None with too few calls."""
    interval, size = median_interval(cell.samples_s), cell.batch_size or 1
    return Interval(interval.low / size, interval.high / size) if interval else None


def _export_command(variant: Variant, results: Results) -> str:
    info = runtime_info(variant.runtime)
    if info.takes == "checkpoint":
        return ""
    source = f"--weights {shlex.quote(results.model.checkpoint)}" if results.model.checkpoint else ""
    engine = f"--precision int8 --engine {info.int8_engine}" if variant.precision == "int8" else ""
    return " ".join(["segx export", *filter(None, (source, engine))])


def sentence(choice: Choice) -> str:
    """What it is best in, with its figure and what it is tied with."""
    cell = choice.cell
    figures = {
        "throughput": f"{1 / cell.seconds_per_image:.2f} images/s",
        "latency at batch 1": f"{cell.median_s * 1e3:.1f} ms",
        "memory": f"{(cell.needed_bytes or 0) / 2**20:.0f} MiB",
    }
    tied = ", ".join(f"{other.variant} batch {other.batch_size}" for other in choice.ties)
    return f"best {choice.wish}: {cell.variant} batch {cell.batch_size}, {figures[choice.wish]}" + (
        f" (tied with {tied})" if tied else ""
    )
