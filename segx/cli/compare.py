"""``segx compare``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from segx.cli.options import SHARE, debug_option
from segx.errors import GateNotMet


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
    from segx.analysis.compare import to_dicts, to_text
    from segx.results.store import load_results

    cells = compare_results(load_results(before), load_results(after), allow=allow)
    click.echo(json.dumps(to_dicts(cells), indent=1) + "\n" if as_json else to_text(cells), nl=False)
    if fail_on_regression is not None:
        slower = [f"{c.variant} batch {c.batch_size}" for c in cells if c.regressed_by(fail_on_regression)]
        if slower:
            raise GateNotMet(
                f"slower by {fail_on_regression:.0%} or more, or lost: {', '.join(slower)}",
                hint="find out what changed, or raise --fail-on-regression",
            )
