"""``segx report``."""

from __future__ import annotations

from pathlib import Path

import click

from segx.options import BYTES, SECONDS, debug_option


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: report.html in RESULTS]")
@click.option("--max-latency", type=SECONDS, help="Of one call, at most: 50ms.")
@click.option("--max-memory", type=BYTES, help="Of model and inference at the peak, at most: 2GB.")
@click.option("--min-iou", type=click.FloatRange(0, 1), help="Lowest IoU that an image's mask may have: 0.999.")
@debug_option
def report(
    results: Path, output: Path | None, max_latency: float | None, max_memory: float | None, min_iou: float | None
) -> None:
    """Write a bench as one HTML page that needs nothing beside it: what to ship, charts, tables, pictures of masks.

    RESULTS is a folder that `segx bench` wrote, or its results.json. Limits change what is recommended. Prints the path
    of the page.

    \b
    segx report artifacts/bench-today
    segx report artifacts/bench-today --max-latency 50ms --max-memory 2GB --min-iou 0.999 --output page.html
    """
    from segx.bench.decision import Constraints
    from segx.bench.results_file import load_results
    from segx.report.write import NAME, write_report

    folder = results if results.is_dir() else results.parent
    limits = Constraints(
        max_latency_s=max_latency, max_memory_bytes=None if max_memory is None else int(max_memory), min_iou=min_iou
    )
    page = output or folder / NAME
    write_report(load_results(results), folder, page, constraints=limits)
    click.echo(page)
