"""``segx report``, ``segx compare`` and ``segx history``: saved benches in any form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segx.cli.options import BYTES, SECONDS, SHARE, debug_option, require_option
from segx.errors import GateNotMet

if TYPE_CHECKING:
    from segx.analysis.recommend import Constraints
    from segx.reporting.document import Document
    from segx.results.types import Results

    Loaded = list[tuple[Path, Results]]

_BY_ENDING = {".html": "html", ".htm": "html", ".md": "markdown", ".csv": "csv", ".json": "json", ".txt": "text"}


def _format_option(*forms: str, default: str) -> Callable[[Any], Any]:
    return click.option(
        "--format",
        "form",
        type=click.Choice(forms),
        help=f"What to write.  [default: by the ending of --output, else {default}]",
    )


def _output_option(default: str) -> Callable[[Any], Any]:
    return click.option("--output", type=click.Path(path_type=Path), help=f"File to write.  [default: {default}]")


def _chosen(form: str | None, output: Path | None, default: str) -> str:
    return form or (_BY_ENDING.get(output.suffix.lower()) if output else None) or default


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@_format_option("html", "text", "markdown", "csv", "json", "github", default="html for one bench, text for several")
@_output_option("report.html in RESULTS")
@click.option("--max-latency", type=SECONDS, help="Longest time of one call: 50ms.")
@click.option("--max-memory", type=BYTES, help="Most memory of model and inference at the peak: 2GB.")
@click.option("--min-iou", type=click.FloatRange(0, 1), help="Lowest IoU that an image's mask may have: 0.999.")
@require_option("What is recommended")
@debug_option
def report(
    results: tuple[Path, ...],
    form: str | None,
    output: Path | None,
    max_latency: float | None,
    max_memory: float | None,
    min_iou: float | None,
    require: Any,
) -> None:
    """Write a bench as a self-contained HTML page: what to deploy, charts, tables, pictures of masks.

    RESULTS is a folder that `segx bench` wrote, or its results.json. Limits change what is recommended. Prints the path
    of the page. Several RESULTS are shown side by side: machines, versions or settings, with ratios to the first.

    Other formats are printed, or written to --output. For GitHub Actions, --format github adds to the job summary and
    prints annotations for failures.

    \b
    segx report artifacts/bench-today
    segx report artifacts/bench-today --max-latency 50ms --max-memory 2GB --min-iou 0.999 --output page.html
    segx report laptop/ server/ --format markdown
    segx report artifacts/bench-today --format github
    """
    from segx.results.store import load_results

    loaded = [(path, load_results(path)) for path in results]
    several = len(loaded) > 1
    chosen = _chosen(form, output, "text" if several else "html")
    limits = _limits(max_latency, max_memory, min_iou, require)
    if limits and (several or chosen in {"csv", "json"}):
        raise click.UsageError("limits apply to the recommendation of one bench, as html, text, markdown or github")
    if chosen == "html":
        click.echo(_write_page(loaded, output, limits))
    elif chosen == "github":
        _write_summary(loaded, output, limits)
    elif several:
        _write_side_by_side(loaded, chosen, output)
    else:
        _write_bench(loaded[0][1], chosen, output, limits)


def _limits(
    max_latency: float | None, max_memory: float | None, min_iou: float | None, require: Any
) -> Constraints | None:
    from segx.analysis.recommend import Constraints

    memory = None if max_memory is None else int(max_memory)
    limits = Constraints(max_latency_s=max_latency, max_memory_bytes=memory, min_iou=min_iou, require=require)
    return None if limits == Constraints() else limits


def _write_bench(results: Results, form: str, output: Path | None, limits: Constraints | None) -> None:
    from segx.reporting import data
    from segx.reporting.bench_document import bench_document
    from segx.results.store import to_json

    if form == "csv":
        _write(data.to_csv(data.bench_rows(results)), output)
    elif form == "json":
        _write(to_json(results), output)
    else:
        _write_document(bench_document(results, limits).without("all"), form, output)


def _write_side_by_side(loaded: Loaded, form: str, output: Path | None) -> None:
    from segx.analysis.compare import labelled, side_by_side
    from segx.reporting import data
    from segx.reporting.compare_document import side_by_side_document

    compared = side_by_side(labelled(loaded))
    if form == "csv":
        _write(data.to_csv(data.side_by_side_rows(compared)), output)
    elif form == "json":
        _write(data.to_json(data.side_by_side_data(compared)), output)
    else:
        _write_document(side_by_side_document(compared), form, output)


def _write_page(loaded: Loaded, output: Path | None, limits: Constraints | None) -> Path:
    from segx.analysis.compare import labelled, side_by_side
    from segx.reporting.html.page import NAME, compare_page, write_bench_page
    from segx.system.files import write_text

    if len(loaded) > 1:
        if output is None:
            raise click.UsageError("a page of several benches needs a name: --output FILE")
        write_text(output, compare_page(side_by_side(labelled(loaded))))
        return output
    ((path, results),) = loaded
    folder = path if path.is_dir() else path.parent
    page = output or folder / NAME
    write_bench_page(results, folder, page, constraints=limits)
    return page


def _write_summary(loaded: Loaded, output: Path | None, limits: Constraints | None) -> None:
    """Write to --output, else to the job's summary, else to stdout; annotations go where the summary does not."""
    from segx.analysis.compare import labelled, side_by_side
    from segx.reporting import github, markdown
    from segx.reporting.compare_document import side_by_side_document
    from segx.system.files import write_text

    job = None if output else github.summary_file()
    room = github.room_in(job)
    if len(loaded) > 1:
        runs = labelled(loaded)
        text = github.fitted(markdown.parts(side_by_side_document(side_by_side(runs))), room)
        commands = [command for run in runs for command in github.workflow_commands(run.results, run.label)]
    else:
        ((_, results),) = loaded
        text = github.summary(results, limits, limit_bytes=room)
        commands = github.workflow_commands(results)
    if output:
        write_text(output, text)
    elif job:
        github.append(job, text)
    else:
        click.echo(text, nl=False)
    for command in commands:
        click.echo(command, err=output is None and job is None)


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["weights", "spec", "inputs", "host", "threads", "memory_profile"]),
    help="Compare although the runs differ in this. Repeatable.",
)
@click.option("--fail-on-regression", type=SHARE, help="Exit with 3 if a cell is slower by this much beyond noise: 5%.")
@_format_option("text", "markdown", "json", default="text")
@_output_option("the terminal")
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@debug_option
def compare(
    before: Path,
    after: Path,
    allow: tuple[str, ...],
    fail_on_regression: float | None,
    form: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare two saved benches cell by cell: faster, slower or tied.

    BEFORE and AFTER are folders that `segx bench` wrote, or their results.json.

    \b
    segx compare artifacts/bench-monday artifacts/bench-today
    segx compare main/ branch/ --fail-on-regression 5%
    """
    from segx.analysis.compare import compare as compare_results
    from segx.reporting import data
    from segx.reporting.compare_document import comparison_document
    from segx.results.store import load_results

    cells = compare_results(load_results(before), load_results(after), allow=allow)
    chosen = "json" if as_json else _chosen(form, output, "text")
    if chosen == "json":
        _write(data.to_json(data.comparison_data(cells)), output)
    else:
        _write_document(comparison_document(cells), chosen, output)
    if fail_on_regression is not None:
        slower = [f"{cell.variant} batch {cell.batch_size}" for cell in cells if cell.regressed_by(fail_on_regression)]
        if slower:
            raise GateNotMet(
                f"slower by {fail_on_regression:.0%} or more, or lost: {', '.join(slower)}",
                hint="find out what changed, or raise --fail-on-regression",
            )


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@_format_option("text", "markdown", "json", "csv", "html", default="text")
@_output_option("the terminal")
@click.option(
    "--min-change", type=SHARE, default="5%", show_default=True, help="Smallest change of speed that is marked."
)
@debug_option
def history(folder: Path, form: str | None, output: Path | None, min_change: float) -> None:
    """Show a series of saved benches over time, and mark changes beyond noise.

    Reads every results.json below DIR. Runs of the same model, images and settings on the same kind of machine form a
    series; others are shown in groups of their own. Files that are damaged or not segx's are listed and skipped.

    \b
    segx history artifacts/
    segx history artifacts/ --output history.html
    segx history benches/ --format markdown --min-change 10%
    """
    from segx.analysis.history import read_history
    from segx.reporting import data
    from segx.reporting.history_document import history_document
    from segx.system.text import printable

    found = read_history(folder, least_change=min_change)
    chosen = _chosen(form, output, "text")
    for path, reason in found.skipped if output or chosen != "text" else ():  # text on the terminal ends with them
        click.echo(f"skipped {printable(str(path))}: {printable(reason)}", err=True)
    if chosen == "html":
        from segx.reporting.html.page import history_page

        _write(history_page(found), output)
    elif chosen == "csv":
        _write(data.to_csv(data.history_rows(found)), output)
    elif chosen == "json":
        _write(data.to_json(data.history_data(found)), output)
    else:
        _write_document(history_document(found), chosen, output)


def _write_document(document: Document, form: str, output: Path | None) -> None:
    if form == "markdown":
        from segx.reporting.markdown import to_markdown

        _write(to_markdown(document), output)
    else:
        from segx.reporting.text import to_stream, to_text

        _write(to_text(document) if output else to_stream(document, sys.stdout), output)


def _write(text: str, output: Path | None) -> None:
    from segx.system.files import write_text

    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
        click.echo(f"wrote {output}", err=True)
