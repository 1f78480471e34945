"""The report on a series of benches over time."""

from __future__ import annotations

import math
from collections.abc import Iterator

from segx.analysis.compare import ROUNDS_FOR_A_TEST, Run
from segx.analysis.history import FALSE_DISCOVERIES, RUNS_FOR_NOISE, Change, Group, History, Series
from segx.reporting.columns import counted, group_headings, rate, ratio_interval, sparkline
from segx.reporting.document import (
    BLANK,
    NONE,
    Block,
    Bullets,
    Column,
    Datum,
    Document,
    Facts,
    Paragraph,
    Section,
    Table,
    number,
    text,
)
from segx.results.provenance import changed
from segx.results.types import Cell

# Bars of a series; of a longer one the latest are shown.
_MOST_BARS = 30
# Runs that are listed one by one.
_MOST_RUNS = 20
# Changes of the environment that are listed beside a change; more explain nothing.
_MOST_EXPLANATIONS = 6


def history_document(history: History) -> Document:
    """Describe a history: per group its runs, a bar per run for every series, and the changes beyond noise."""
    runs = sum(len(group.runs) for group in history.groups)
    found = (
        f"{counted(runs, 'run')} below {history.folder}, in {counted(len(history.groups), 'group')} of comparable runs"
    )
    facts: tuple[tuple[str, str], ...] = (("found", found),)
    if history.skipped:
        facts = (*facts, ("skipped", counted(len(history.skipped), "file")))
    sections = tuple(_section(place, group) for place, group in enumerate(history.groups, start=1))
    notes = Section(key="notes", title="Notes", blocks=(Bullets(tuple(notes_on(history))),))
    return Document("segx history", facts, (*sections, notes))


def _section(place: int, group: Group) -> Section:
    blocks: list[Block] = [Facts(conditions_of(group)), Facts(tuple(_runs(group))), _series_table(group)]
    changes = [Bullets(tuple(lines), lead=head) for head, lines in _changes(group)]
    if changes:
        blocks += [Paragraph("Changes beyond noise", "strong"), *changes]
    else:
        blocks.append(Paragraph("No change is beyond noise."))
    return Section(key=f"group-{place}", title=f"Group {place}", blocks=tuple(blocks))


def conditions_of(group: Group) -> tuple[tuple[str, str], ...]:
    """Return what the runs of a group have in common: label and text."""
    first, shared = group.runs[0].results, group.conditions
    low = ", low memory profile" if shared.memory_profile == "low" else ""
    return (
        ("machine", f"{shared.host}, {shared.threads} threads{low}"),
        ("model", f"{first.model.spec}, weights {shared.weights[:12]}"),
        ("inputs", f"{first.inputs.source}, sha256 {shared.inputs[:12]}"),
    )


def _runs(group: Group) -> Iterator[tuple[str, str]]:
    """Return number and text of each; of many only the first, the last and those beside a change."""
    last = len(group.runs) - 1
    shown = list(range(last + 1))
    if last >= _MOST_RUNS:
        changes = [change for series in group.series for change in series.changes]
        shown = sorted({0, *(change.before for change in changes), *(change.after for change in changes), last})
    for place in shown:
        results = group.runs[place].results
        commit = f", commit {results.machine.git_commit[:12]}" if results.machine.git_commit else ""
        cut = "" if results.complete else ", not complete"
        yield f"run {place + 1}", f"{results.created}, {group.runs[place].label}, segx {results.segx}{commit}{cut}"
    if len(shown) <= last:
        yield "…", f"and {last + 1 - len(shown)} more"


def _series_table(group: Group) -> Table:
    """Return a row per series: bars of images per second, the first and the last figure, and the runs with changes."""
    columns = (
        Column("batch"),
        Column("runs", numeric=False),
        Column("first images/s"),
        Column("last images/s"),
        Column("last/first"),
        Column("changes", numeric=False),
    )
    groups = group_headings([series.variant for series in group.series])
    return Table("", columns, tuple(map(_series_row, group.series)), groups)


def _series_row(series: Series) -> tuple[Datum, ...]:
    speeds = [_speed(cell) for cell in series.cells]
    measured = [speed for speed in speeds if speed is not None]
    shown = [math.nan if cell and speed is None else speed for cell, speed in zip(series.cells, speeds, strict=True)]
    figures = [NONE] * 3
    if measured:
        first, last = measured[0], measured[-1]
        figures = [number(first, "{:.2f}"), number(last, "{:.2f}"), number(last / first, "{:.2f}x")]
    changes = ", ".join(f"{change.kind} {change.after + 1}" for change in series.changes)
    return (number(series.batch_size, "{}"), text(sparkline(shown[-_MOST_BARS:])), *figures, text(changes))


def _speed(cell: Cell | None) -> float | None:
    return 1 / cell.seconds_per_image if cell and cell.measured and cell.seconds_per_image > 0 else None


def _changes(group: Group) -> Iterator[tuple[str, list[str]]]:
    """Return, per run that changed something, what else differs from the run before, and a line per change."""
    found = [(change, series) for series in group.series for change in series.changes]
    for after, before in sorted({(change.after, change.before) for change, _ in found}):
        here = [pair for pair in found if (pair[0].after, pair[0].before) == (after, before)]
        lines = [f"{series.variant} batch {series.batch_size} {told(change, series)}" for change, series in here]
        yield f"run {after + 1}: {_explanations(group.runs[before], group.runs[after], before)}", lines


def told(change: Change, series: Series) -> str:
    """Return a change in words and figures."""
    if change.speedup is None:
        return f"{change.kind}: {change.description}"
    before, after = (
        cell if cell and _speed(cell) else None for cell in (series.cells[change.before], series.cells[change.after])
    )
    from_to = f"{rate(before) if before else 0} → {rate(after) if after else 0} images/s"
    return f"{change.kind}: {ratio_interval(change.speedup, 2)}, {from_to}, p {change.p_value:.1g}"


def _explanations(before: Run, after: Run, place: int) -> str:
    differences = changed(before.results, after.results)
    found = [f"{name} {old or BLANK} → {new or BLANK}" for name, (old, new) in differences.items()]
    more = f" and {len(found) - _MOST_EXPLANATIONS} more" if len(found) > _MOST_EXPLANATIONS else ""
    what = ", ".join(found[:_MOST_EXPLANATIONS]) + more if found else "nothing that was recorded"
    return f"what else differs from run {place + 1}: {what}"


def notes_on(history: History) -> Iterator[str]:
    """Return what the marks mean, what could not be tested, and which files were skipped."""
    yield (
        f"Bars: images per second run by run, at most the latest {_MOST_BARS}, from zero; a cross if a run failed, a "
        "dot if it did not try. Ratios are of the medians of rounds."
    )
    yield (
        f"Faster, slower: at least {history.least_change:.0%} from one run to the next, beyond the noise within both "
        f"runs (Mann-Whitney on rounds, Benjamini-Hochberg at {FALSE_DISCOVERIES:.0%} over all series of a run) and "
        "beyond the usual variation of the series from run to run."
    )
    short = [group for group in history.groups if len(group.runs) < RUNS_FOR_NOISE]
    if any(change.speedup for group in short for series in group.series for change in series.changes):
        yield (
            f"With fewer than {RUNS_FOR_NOISE} runs the variation from run to run is unknown: changes there may be "
            "no more than that."
        )
    if untested := sum(group.untested for group in history.groups):
        yield f"Not tested: {counted(untested, 'step')} with fewer than {ROUNDS_FOR_A_TEST} rounds on a side."
    for path, reason in history.skipped:
        yield f"skipped {path}: {reason}"
