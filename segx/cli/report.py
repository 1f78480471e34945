"""``segx report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from segx.cli.options import BYTES, SECONDS, debug_option

if TYPE_CHECKING:
    from segx.analysis.decision import Constraints
    from segx.reporting.forms import Form
    from segx.results.types import Results

    Loaded = list[tuple[Path, Results]]

_FORMATS = ("html", "text", "markdown", "csv", "json", "github")
_BY_ENDING = {".html": "html", ".htm": "html", ".md": "markdown", ".csv": "csv", ".json": "json", ".txt": "text"}


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    help="What to write.  [default: by the ending of --output; else html for one bench, text for several]",
)
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: report.html in RESULTS]")
@click.option("--max-latency", type=SECONDS, help="Of one call, at most: 50ms.")
@click.option("--max-memory", type=BYTES, help="Of model and inference at the peak, at most: 2GB.")
@click.option("--min-iou", type=click.FloatRange(0, 1), help="Lowest IoU that an image's mask may have: 0.999.")
@debug_option
def report(
    results: tuple[Path, ...],
    form: str | None,
    output: Path | None,
    max_latency: float | None,
    max_memory: float | None,
    min_iou: float | None,
) -> None:
    """Write a bench as one HTML page that needs nothing beside it: what to ship, charts, tables, pictures of masks.

    RESULTS is a folder that `segx bench` wrote, or its results.json. Limits change what is recommended. Prints the path
    of the page. Several RESULTS stand side by side: machines, versions or settings, with ratios to the first.

    Other formats are printed, or written to --output. For GitHub Actions, --format github adds to the job summary and
    prints annotations for what failed.

    \b
    segx report artifacts/bench-today
    segx report artifacts/bench-today --max-latency 50ms --max-memory 2GB --min-iou 0.999 --output page.html
    segx report laptop/ server/ --format markdown
    segx report artifacts/bench-today --format github
    """
    from segx.results.store import load_results

    loaded = [(path, load_results(path)) for path in results]
    several = len(loaded) > 1
    chosen = form or (_BY_ENDING.get(output.suffix.lower()) if output else None) or ("text" if several else "html")
    limits = _limits(max_latency, max_memory, min_iou)
    if limits and (several or chosen in {"csv", "json"}):
        raise click.UsageError("limits are for the decision on one bench, as html, text, markdown or github")
    if chosen == "html":
        click.echo(_write_page(loaded, output, limits))
    elif chosen == "github":
        _write_summary(loaded, output, limits)
    else:
        _print_or_write(_written(loaded, chosen, limits, to_file=output is not None), output)


def _limits(max_latency: float | None, max_memory: float | None, min_iou: float | None) -> Constraints | None:
    from segx.analysis.decision import Constraints

    memory = None if max_memory is None else int(max_memory)
    limits = Constraints(max_latency_s=max_latency, max_memory_bytes=memory, min_iou=min_iou)
    return None if limits == Constraints() else limits


def _write_page(loaded: Loaded, output: Path | None, limits: Constraints | None) -> Path:
    from segx.analysis.side_by_side import labelled, side_by_side
    from segx.reporting.html.page import NAME, compare_page, write_bench_page
    from segx.system.files import write_text

    if len(loaded) > 1:
        if output is None:
            raise click.UsageError("say where to write the page of several benches: --output FILE")
        write_text(output, compare_page(side_by_side(labelled(loaded))))
        return output
    ((path, results),) = loaded
    folder = path if path.is_dir() else path.parent
    page = output or folder / NAME
    write_bench_page(results, folder, page, constraints=limits)
    return page


def _written(loaded: Loaded, form: str, limits: Constraints | None, *, to_file: bool) -> str:
    from segx.reporting.forms import written
    from segx.reporting.terminal import Terminal

    return written(loaded, cast("Form", form), Terminal() if to_file else Terminal.of(sys.stdout), limits)


def _print_or_write(text: str, output: Path | None) -> None:
    from segx.system.files import write_text

    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
        click.echo(f"wrote {output}", err=True)


def _write_summary(loaded: Loaded, output: Path | None, limits: Constraints | None) -> None:
    """To --output, else to the job's summary, else printed; annotations stand where the summary does not."""
    from segx.reporting.forms import job_summary
    from segx.reporting.github import append, room_in, summary_file
    from segx.system.files import write_text

    job = None if output else summary_file()
    text, commands = job_summary(loaded, limits, limit_bytes=room_in(job))
    if output:
        write_text(output, text)
    elif job:
        append(job, text)
    else:
        click.echo(text, nl=False)
    for command in commands:
        click.echo(command, err=output is None and job is None)
