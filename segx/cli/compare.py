"""``segx compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segx.cli.options import SHARE, debug_option
from segx.errors import GateNotMet

if TYPE_CHECKING:
    from segx.analysis.compare import CellComparison


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["weights", "spec", "inputs", "host", "threads", "memory_profile"]),
    help="Compare although the runs differ in this. Repeatable.",
)
@click.option("--fail-on-regression", type=SHARE, help="Exit with 3 if a cell surely became this much slower: 5%.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON, and nothing else.")
@debug_option
def compare(before: Path, after: Path, allow: tuple[str, ...], fail_on_regression: float | None, as_json: bool) -> None:
    """Compare two saved benches cell by cell: faster, slower or tied.

    BEFORE and AFTER are folders that `segx bench` wrote, or their results.json.

    \b
    segx compare artifacts/bench-monday artifacts/bench-today
    segx compare main/ branch/ --fail-on-regression 5%
    """
    from segx.analysis.compare import compare as compare_results
    from segx.results.store import load_results

    cells = compare_results(load_results(before), load_results(after), allow=allow)
    click.echo(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n" if as_json else _text(cells), nl=False)
    if fail_on_regression is not None:
        slower = [f"{c.variant} batch {c.batch_size}" for c in cells if c.regressed_by(fail_on_regression)]
        if slower:
            raise GateNotMet(
                f"slower by {fail_on_regression:.0%} or more, or lost: {', '.join(slower)}",
                hint="find out what changed, or raise --fail-on-regression",
            )


def _text(comparisons: Sequence[CellComparison]) -> str:
    """Return one aligned table."""
    from segx.reporting.text import aligned

    titles = ["variant", "batch", "before ms/image", "after ms/image", "speed-up", "p", "verdict"]
    rows = []
    for c in comparisons:
        times = [f"{s * 1e3:.1f}" if s is not None else "–" for s in (c.before_s, c.after_s)]
        ratio = "–"
        if c.speedup:
            interval = c.speedup.interval
            ratio = f"{c.speedup.ratio:.3f}x" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else "")
        p_value = "–" if c.p_value is None else f"{c.p_value:.3f}"
        rows.append([str(c.variant), str(c.batch_size), *times, ratio, p_value, c.verdict])
    return aligned(titles, rows, left=frozenset({0, 6})) + "\n"
