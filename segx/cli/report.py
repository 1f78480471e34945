"""``segx report``, ``segx plan``, ``segx compare`` and ``segx history``: saved benches in any form."""

from __future__ import annotations

import dataclasses
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segx.cli import options
from segx.cli.options import BYTES, COUNT, IMAGES, PATH, PRICE, SECONDS, SHARE
from segx.errors import GateNotMet, OutputError
from segx.reporting.renderers import FORMS
from segx.results.settings import SETTINGS

if TYPE_CHECKING:
    from segx.analysis.compare import Comparison, SideBySide
    from segx.analysis.recommend import Constraints
    from segx.results.types import Results

    Loaded = list[tuple[Path, Results]]

# Forms without a recommendation.
_WITHOUT_LIMITS = ("csv", "json")


def _format_option(*parts: str, default: str) -> Callable[[Any], Any]:
    return click.option(
        "--format",
        "form",
        type=click.Choice([name for name, form in FORMS.items() if form.part in parts]),
        help=f"What to write.  [default: by the ending of --output, else {default}]",
    )


def _output_option(default: str) -> Callable[[Any], Any]:
    return click.option("--output", type=PATH, help=f"File to write.  [default: {default}]")


def _chosen(form: str | None, output: Path | None, default: str) -> str:
    ending = output.suffix.lower() if output else ""
    return form or next((name for name, known in FORMS.items() if ending in known.endings), default)


def _write(parts: Mapping[str, Callable[[], Any]], form: str, output: Path | None) -> None:
    """Write a report, given by what makes its parts, to a file or to stdout; text fits the terminal."""
    from segx.reporting.renderers.text import to_stream
    from segx.system.files import write_text

    part, renderer, _ = FORMS[form]
    if part not in parts:
        raise click.UsageError(f"this report has no {form} form; choose another --output ending, or --format")
    content = parts[part]()
    if output is None:
        shown = to_stream(content, sys.stdout) if form == "text" else _rendered(content, renderer)
        click.echo(shown, nl=False, color=True)
    else:
        write_text(output, _rendered(content, renderer))
        click.echo(f"wrote {output}", err=True)


def _keep_inputs(output: Path | None, given: Iterable[Path]) -> None:
    """Raise OutputError if a file to be written is among the results and pictures that are read."""
    from segx.system.files import refuse_inputs

    if output is None:
        return
    for path in given:
        folder = path if path.is_dir() else path.parent
        results = folder.rglob("results.json") if path.is_dir() else [path]
        refuse_inputs(output, (*results, *folder.rglob("pictures/*")))


def _rendered(content: Any, renderer: str) -> str:
    return str(pkgutil.resolve_name(renderer)(content) if renderer else content)


@click.command()
@click.argument("results", nargs=-1, required=True, type=PATH)
@_format_option("document", "rows", "json", "page", "summary", default="html for one bench, text for several")
@_output_option("report.html in RESULTS")
@click.option("--max-latency", type=SECONDS, help="Recommend only what takes at most this long per call: 50ms.")
@click.option("--max-memory", type=BYTES, help="Recommend only what needs at most this much memory at its peak: 2GB.")
@click.option(
    "--min-iou",
    type=click.FloatRange(0, 1),
    help="Recommend only what gives every mask at least this IoU with the reference's: 0.999.",
)
@options.require_option("Recommend only a variant")
@options.details_option
@options.debug_option
def report(
    results: tuple[Path, ...],
    form: str | None,
    output: Path | None,
    max_latency: float | None,
    max_memory: float | None,
    min_iou: float | None,
    require: Any,
    details: bool,
) -> None:
    """Write a bench as one HTML page, or in another format.

    The page says what to deploy and why, with charts, tables and pictures of masks, and works offline; its path is
    printed. RESULTS is a folder that `segx bench` wrote, or its results.json. Several RESULTS (of other machines,
    versions or settings) are shown side by side, with ratios to the first.

    The --require of the bench holds here too, unless another is given. The exit code is 3 if nothing meets the limits.

    Other formats are printed, or written to --output. --format text prints what `segx bench` printed; --format github
    adds to the job summary of GitHub Actions and prints annotations for failures.

    \b
    segx report artifacts/bench-today
    segx report artifacts/bench-today --max-latency 50ms --output page.html
    segx report laptop/ server/ --format markdown
    segx report artifacts/bench-today --format github
    """
    from segx.analysis.recommend import Constraints
    from segx.results.store import load_results

    _keep_inputs(output, results)
    loaded = [(path, load_results(path)) for path in results]
    several = len(loaded) > 1
    chosen = _chosen(form, output, "text" if several else "html")
    memory = None if max_memory is None else int(max_memory)
    limits = Constraints(max_latency_s=max_latency, max_memory_bytes=memory, min_iou=min_iou, require=require)
    if details and (several or chosen != "text"):
        raise click.UsageError("--details applies only to one bench as text; other formats show everything")
    if limits != Constraints() and (several or chosen in _WITHOUT_LIMITS):
        raise click.UsageError("limits apply to the recommendation of one bench, as html, text, markdown or github")
    if chosen == "html":
        click.echo(_write_page(loaded, output, limits))
        if not several:
            _say_if_nothing_fits(loaded[0][1], limits)
    elif chosen == "github":
        _write_summary(loaded, output, limits)
    else:
        if several:
            parts = _side_by_side_parts(_side_by_side(loaded))
        else:
            parts = _bench_parts(loaded[0][1], limits, terminal=chosen == "text", details=details)
        _write(parts, chosen, output)
    if not several and chosen not in _WITHOUT_LIMITS:
        options.check_limits(loaded[0][1], limits)


def _say_if_nothing_fits(results: Results, limits: Constraints) -> None:
    from segx.analysis.recommend import decide
    from segx.reporting.prose import exclusions

    decision = decide(results, limits)
    if not decision.pick:
        click.echo("\n".join(exclusions(decision)))


def _bench_parts(
    results: Results, limits: Constraints, *, terminal: bool, details: bool
) -> dict[str, Callable[[], Any]]:
    from segx.reporting.bench_document import bench_document, terminal_document
    from segx.reporting.renderers.csv_json import bench_rows
    from segx.results.store import to_json

    return {
        "document": lambda: (
            terminal_document(results, limits, details=details)
            if terminal
            else bench_document(results, limits).without("all")
        ),
        "rows": lambda: bench_rows(results),
        "json": lambda: to_json(results),
    }


def _side_by_side(loaded: Loaded) -> SideBySide:
    from segx.analysis.compare import labelled, side_by_side

    return side_by_side(labelled(loaded))


def _side_by_side_parts(compared: SideBySide) -> dict[str, Callable[[], Any]]:
    from segx.reporting.renderers import csv_json
    from segx.reporting.runs_document import side_by_side_document

    return {
        "document": lambda: side_by_side_document(compared),
        "rows": lambda: csv_json.side_by_side_rows(compared),
        "json": lambda: csv_json.to_json(csv_json.side_by_side_data(compared)),
    }


def _write_page(loaded: Loaded, output: Path | None, limits: Constraints) -> Path:
    from segx.reporting.renderers.html.page import NAME, compare_page, write_bench_page
    from segx.results.provenance import was_written_for
    from segx.system.files import write_text

    if len(loaded) > 1:
        if output is None:
            raise click.UsageError("a page of several benches needs a name: --output FILE")
        write_text(output, compare_page(_side_by_side(loaded)))
        return output
    ((path, results),) = loaded
    folder = path if path.is_dir() else path.parent
    page = output or folder / NAME
    _keep_inputs(page, [path])
    if output is None and os.path.lexists(page) and not was_written_for(page, results):
        raise OutputError(
            f"{page} does not belong to this bench", hint="move it away, or name another page with --output"
        )
    write_bench_page(results, folder, page, constraints=limits)
    return page


def _write_summary(loaded: Loaded, output: Path | None, limits: Constraints) -> None:
    """Write to --output, else to the job's summary, else to stdout; annotations go where the summary does not."""
    from segx.reporting.bench_document import bench_document
    from segx.reporting.renderers import markdown
    from segx.reporting.runs_document import side_by_side_document
    from segx.system.files import write_text

    if len(loaded) > 1:
        compared = _side_by_side(loaded)
        document = side_by_side_document(compared)
        commands = [command for run in compared.runs for command in markdown.workflow_commands(run.results, run.label)]
    else:
        ((_, results),) = loaded
        document = bench_document(results, limits).without("all")
        commands = markdown.workflow_commands(results)
    job = None if output else markdown.summary_file()
    taken = job.stat().st_size + len("\n\n") if job and job.is_file() else 0  # by earlier commands of this step
    text = markdown.summary(document, markdown.SUMMARY_LIMIT_BYTES - taken)
    if output:
        write_text(output, text)
    elif job:
        markdown.append(job, text)
    else:
        click.echo(text, nl=False)
    for command in commands:
        click.echo(command, err=output is None and job is None)


@click.command()
@click.argument("results", type=PATH)
@click.option("--images", type=IMAGES, required=True, help="Number of images to segment: 50000, 200k or 10M.")
@click.option("--deadline", type=SECONDS, required=True, help="Time in which all masks must be done: 24h.")
@click.option("--price", type=PRICE, help="Price of one machine for an hour, in any currency: 0.40/h.")
@click.option("--machine-cores", type=COUNT, help="Usable cores of a machine.  [default: those of the bench's machine]")
@options.require_option("Plan only with a variant")
@_format_option("document", "json", "page", default="text")
@_output_option("the terminal")
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@options.debug_option
def plan(
    results: Path,
    images: int,
    deadline: float,
    price: float | None,
    machine_cores: int | None,
    require: Any,
    form: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Plan machines, hours and price for a number of images.

    Uses the bench's times from image file to mask file if it has the pipeline scope, and says what it assumes.
    RESULTS is a folder that `segx bench` wrote, or its results.json.

    \b
    segx bench --scope forward,pipeline --images photos/ --output bench/
    segx plan bench/ --images 10M --deadline 24h --price 0.40/h
    """
    from segx.analysis.capacity import Demand, plan_capacity
    from segx.reporting.capacity_document import capacity_data, capacity_document
    from segx.reporting.renderers.csv_json import to_json
    from segx.results.store import load_results

    def page() -> str:
        from segx.reporting.renderers.html.page import bench_page, pictures_in

        folder = results if results.is_dir() else results.parent
        return bench_page(measured, pictures=pictures_in(folder), plan=planned)

    if not deadline or not images:
        raise click.UsageError("--images and --deadline must be more than 0")
    _keep_inputs(output, [results])
    measured = load_results(results)
    planned = plan_capacity(
        measured,
        Demand(images=images, deadline_s=deadline, price_per_hour=price, cores=machine_cores, require=require),
    )
    parts = {
        "document": lambda: capacity_document(planned, measured),
        "json": lambda: to_json(capacity_data(planned)),
        "page": page,
    }
    _write(parts, "json" if as_json else _chosen(form, output, "text"), output)
    if not any(fleet.machines for fleet in planned.fleets):
        raise GateNotMet("no variant meets this plan", hint="see what was measured: segx report RESULTS --format text")


@click.command()
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(list(SETTINGS)),
    help="Compare even though the runs differ in this. Repeatable.",
)
@click.option(
    "--fail-on-regression",
    type=SHARE,
    help="Exit with code 3 if a cell is slower by this much, beyond noise and what all cells share, or its masks fail "
    "now: 5%.",
)
@_format_option("document", "json", default="text")
@_output_option("the terminal")
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@options.debug_option
def compare(
    before: Path,
    after: Path,
    allow: tuple[str, ...],
    fail_on_regression: float | None,
    form: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare two saved benches: what is faster, slower or tied.

    Each variant at each batch size is judged beyond the noise of both runs. A factor that they share, most likely due
    to the machine, is named and removed.

    BEFORE and AFTER are folders that `segx bench` wrote, or their results.json.

    \b
    segx compare artifacts/bench-monday artifacts/bench-today
    segx compare main/ branch/ --fail-on-regression 5%
    """
    from segx.analysis.compare import compare as compare_results
    from segx.analysis.compare import labelled
    from segx.reporting.renderers.csv_json import to_json
    from segx.reporting.runs_document import comparison_document
    from segx.results.store import load_results

    _keep_inputs(output, (before, after))
    least = {} if fail_on_regression is None else {"least_change": fail_on_regression}
    runs = labelled([(path, load_results(path)) for path in (before, after)])
    compared = compare_results(runs[0].results, runs[1].results, allow=allow, **least)
    parts = {
        "document": lambda: comparison_document(compared, runs),
        "json": lambda: to_json(dataclasses.asdict(compared)),
    }
    _write(parts, "json" if as_json else _chosen(form, output, "text"), output)
    if fail_on_regression is not None:
        _gate(compared, fail_on_regression)


def _gate(compared: Comparison, share: float) -> None:
    """Fail if a cell is slower by a share or lost, if its masks fail now, or if nothing can be told."""
    from segx.system.text import percentage

    least = percentage(share)
    reasons = (
        (
            [cell for cell in compared.cells if cell.regressed_by(share)],
            f"slower by {least} or more, or lost",
            "find out what changed, or raise --fail-on-regression",
        ),
        (
            [cell for cell in compared.cells if cell.masks_broke],
            "masks fail now",
            "see by how much, and what to do: segx report AFTER --format text --details",
        ),
        (
            [cell for cell in compared.cells if cell.verdict == "unsure"],
            f"no verdict: too noisy to tell {least}",
            "measure longer (--min-time, --processes), or both versions in turns; or raise --fail-on-regression",
        ),
    )
    found = [
        (f"{what}: {', '.join(f'{cell.variant} batch {cell.batch_size}' for cell in cells)}", hint)
        for cells, what, hint in reasons
        if cells
    ]
    if found:
        raise GateNotMet("; ".join(told for told, _ in found), hint=found[0][1])
    if not any(cell.speedup for cell in compared.cells):
        raise GateNotMet(
            "nothing was compared: no cell was measured in both runs",
            hint="see why: segx report BEFORE AFTER --format text",
        )


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
@_format_option("document", "rows", "json", "page", default="text")
@_output_option("the terminal")
@click.option(
    "--min-change", type=SHARE, default="5%", show_default=True, help="Mark changes in speed of at least this size."
)
@options.debug_option
def history(folder: Path, form: str | None, output: Path | None, min_change: float) -> None:
    """Show saved benches over time, and mark changes beyond noise.

    Reads every results.json below DIR. Runs of the same model, images and settings on the same kind of machine are
    shown as one group. Files that are damaged or not from segx are listed and skipped.

    \b
    segx history artifacts/
    segx history artifacts/ --output history.html
    segx history benches/ --format markdown --min-change 10%
    """
    from segx.analysis.history import read_history
    from segx.reporting.renderers import csv_json
    from segx.reporting.runs_document import history_document
    from segx.system.text import printable

    def page() -> str:
        from segx.reporting.renderers.html.page import history_page

        return history_page(found)

    _keep_inputs(output, [folder])
    found = read_history(folder, least_change=min_change)
    chosen = _chosen(form, output, "text")
    for path, reason in found.skipped if output or chosen != "text" else ():  # text on the terminal ends with them
        click.echo(f"skipped {printable(str(path))}: {printable(reason)}", err=True)
    parts = {
        "document": lambda: history_document(found),
        "rows": lambda: csv_json.history_rows(found),
        "json": lambda: csv_json.to_json(csv_json.history_data(found)),
        "page": page,
    }
    _write(parts, chosen, output)
