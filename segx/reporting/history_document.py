"""A history as text, Markdown, CSV and JSON: pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from segx.analysis import stats
from segx.analysis.compare import ROUNDS_FOR_A_TEST
from segx.analysis.figures import needed_bytes, verdict_of
from segx.analysis.history import FALSE_DISCOVERIES, RUNS_FOR_NOISE, Change, Group, History, Series
from segx.analysis.side_by_side import Run
from segx.reporting import data
from segx.reporting.columns import BLANK
from segx.reporting.markdown import joined
from segx.reporting.markdown_text import cell as markdown_cell
from segx.reporting.markdown_text import table
from segx.reporting.sparkline import sparkline
from segx.reporting.terminal import Terminal
from segx.results.provenance import changed
from segx.results.types import Cell

_HANGING = "  "
_NO_CHANGE = "No change is more than noise."
# Bars of a series; of a longer one the latest are shown.
_MOST_BARS = 30
# Runs that are listed one by one.
_MOST_RUNS = 20
# Changes of the environment that are named beside a change; more explain nothing.
_MOST_EXPLANATIONS = 6


def to_text(history: History, terminal: Terminal | None = None) -> str:
    """Per group: the runs, a row with a bar per run for every series, and the changes in words."""
    on = terminal or Terminal()
    parts = [[on.paragraph(line, hanging=_HANGING) for line in _heading(history)]]
    for group in history.groups:
        parts.append([on.labelled(f"{label:9}", text) for label, text in circumstances_of(group)])
        parts.append([on.labelled(f"{number:>4}  ", text) for number, text in _runs(group)])
        titles, rows = _series_table(group, on.encoding)
        lines: list[list[str]] = []
        variant = None
        for series, row in zip(group.series, rows, strict=True):
            if series.variant != variant:
                lines.append([str(series.variant)])
                variant = series.variant
            lines.append(row)
        parts.append([on.table(titles, lines, left={titles[1], "changes"})])
        lines_of_changes = [
            line
            for head, words in _changes(group)
            for line in (on.paragraph(head, hanging=_HANGING), *(on.bullet(text) for text in words))
        ]
        parts.append(["changes that are more than noise", *lines_of_changes] if lines_of_changes else [_NO_CHANGE])
    parts.append([on.paragraph(note, hanging=_HANGING) for note in notes_on(history)])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def to_markdown(history: History) -> str:
    """The same as GitHub-flavoured Markdown."""
    parts = ["# segx history", "\n".join(f"- {markdown_cell(line)}" for line in _heading(history))]
    for number, group in enumerate(history.groups, start=1):
        parts.append(f"## Group {number}")
        parts.append("\n".join(f"- **{label}**: {markdown_cell(text)}" for label, text in circumstances_of(group)))
        parts.append(table(["run", "what"], list(_runs(group)), left=(1,)))
        titles, rows = _series_table(group, "utf-8")
        whole = [[str(series.variant), *row] for series, row in zip(group.series, rows, strict=True)]
        parts.append(table(["variant", *titles], whole, left=(0, 2, len(titles))))
        changes = [
            "\n".join([f"- {markdown_cell(head)}", *(f"  - {markdown_cell(text)}" for text in words)])
            for head, words in _changes(group)
        ]
        parts += ["### Changes that are more than noise", "\n".join(changes)] if changes else [_NO_CHANGE]
    parts += ["## Notes", "\n".join(f"- {markdown_cell(note)}" for note in notes_on(history))]
    return joined(parts)


def _heading(history: History) -> Iterator[str]:
    runs = sum(len(group.runs) for group in history.groups)
    groups = len(history.groups)
    yield f"{_counted(runs, 'run')} below {history.folder}, in {_counted(groups, 'group')} of runs that compare"
    if history.skipped:
        yield f"{_counted(len(history.skipped), 'file')} skipped"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def circumstances_of(group: Group) -> Iterator[tuple[str, str]]:
    """What the runs of a group have in common: label and text."""
    first, shared = group.runs[0].results, group.circumstances
    low = ", low memory profile" if shared.memory_profile == "low" else ""
    yield "machine", f"{shared.host}, {shared.threads} threads{low}"
    yield "model", f"{first.model.spec}, weights {shared.weights[:12]}"
    yield "inputs", f"{first.inputs.source}, sha256 {shared.inputs[:12]}"


def _runs(group: Group) -> Iterator[tuple[str, str]]:
    """Number and text of each; of many only the first, the last and those beside a change."""
    last = len(group.runs) - 1
    told = list(range(last + 1))
    if last >= _MOST_RUNS:
        changes = [change for series in group.series for change in series.changes]
        told = sorted({0, *(change.before for change in changes), *(change.after for change in changes), last})
    for place in told:
        results = group.runs[place].results
        commit = f", commit {results.machine.git_commit[:12]}" if results.machine.git_commit else ""
        cut = "" if results.complete else ", not complete"
        yield str(place + 1), f"{results.created}, {group.runs[place].label}, segx {results.segx}{commit}{cut}"
    if len(told) <= last:
        yield "", f"and {last + 1 - len(told)} more"


def _series_table(group: Group, encoding: str) -> tuple[list[str], list[list[str]]]:
    """A row per series: bars of images per second, the first and the last figure, and in which runs it changed."""
    titles = ["batch", "runs", "first FPS", "last FPS", "last/first", "changes"]
    return titles, [_series_row(series, encoding) for series in group.series]


def _series_row(series: Series, encoding: str) -> list[str]:
    speeds = [_fps(cell) for cell in series.cells]
    measured = [speed for speed in speeds if speed is not None]
    shown = [math.nan if cell and speed is None else speed for cell, speed in zip(series.cells, speeds, strict=True)]
    figures = [BLANK, BLANK, BLANK]
    if measured:
        figures = [f"{measured[0]:.2f}", f"{measured[-1]:.2f}", f"{measured[-1] / measured[0]:.2f}x"]
    changes = ", ".join(f"{change.kind} {change.after + 1}" for change in series.changes)
    bars = sparkline(shown[-_MOST_BARS:], encoding=encoding)
    return [str(series.batch_size), bars, *figures, changes]


def _fps(cell: Cell | None) -> float | None:
    return 1 / cell.seconds_per_image if cell and cell.measured and cell.seconds_per_image > 0 else None


def _changes(group: Group) -> Iterator[tuple[str, list[str]]]:
    """Per run that changed something: what else differs from the run before, and a line per change."""
    found = [(change, series) for series in group.series for change in series.changes]
    for after, before in sorted({(change.after, change.before) for change, _ in found}):
        here = [pair for pair in found if (pair[0].after, pair[0].before) == (after, before)]
        lines = [f"{series.variant} batch {series.batch_size} {told(change, series)}" for change, series in here]
        yield f"run {after + 1}: {_explanations(group.runs[before], group.runs[after], before)}", lines


def told(change: Change, series: Series) -> str:
    """A change in words and figures."""
    against = change.speedup
    if against is None:
        return f"{change.kind}: {change.told}"
    speeds = [_fps(series.cells[place]) or 0.0 for place in (change.before, change.after)]
    interval = against.interval
    reach = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval else ""
    from_to = f"{speeds[0]:.2f} → {speeds[1]:.2f} images/s"
    return f"{change.kind}: {against.ratio:.2f}x{reach}, {from_to}, p {change.p_value:.1g}"


def _explanations(before: Run, after: Run, place: int) -> str:
    differences = changed(before.results, after.results)
    found = [f"{name} {old or BLANK} → {new or BLANK}" for name, (old, new) in differences.items()]
    more = f" and {len(found) - _MOST_EXPLANATIONS} more" if len(found) > _MOST_EXPLANATIONS else ""
    what = ", ".join(found[:_MOST_EXPLANATIONS]) + more if found else "nothing that was recorded"
    return f"what else differs from run {place + 1}: {what}"


def notes_on(history: History) -> Iterator[str]:
    """What the marks mean, what could not be tested, and what was passed over."""
    yield (
        f"Bars: images per second run by run, the latest {_MOST_BARS} at most, from zero; a cross where that failed, a "
        "dot where it was not tried. Ratios are of the medians of rounds."
    )
    yield (
        f"Faster, slower: at least {history.least_change:.0%} from one run to the next, beyond the noise within both "
        f"runs (Mann-Whitney on rounds, Benjamini-Hochberg at {FALSE_DISCOVERIES:.0%} over all series of a run) and "
        "beyond what the series does from run to run."
    )
    short = [group for group in history.groups if len(group.runs) < RUNS_FOR_NOISE]
    if any(change.speedup for group in short for series in group.series for change in series.changes):
        yield f"Under {RUNS_FOR_NOISE} runs nobody knows what a series does from run to run: changes there may be that."
    if untested := sum(group.untested for group in history.groups):
        yield f"{_counted(untested, 'step')} had under {ROUNDS_FOR_A_TEST} rounds on a side and could not be tested."
    for path, reason in history.skipped:
        yield f"skipped {path}: {reason}"


def to_data(history: History) -> dict[str, Any]:
    """Plain data, for JSON and for plots: seconds and bytes; places of runs count from 0 within their group."""
    return {
        "folder": str(history.folder),
        "least_change": history.least_change,
        "groups": [_group_data(group) for group in history.groups],
        "skipped": [{"path": str(path), "reason": reason} for path, reason in history.skipped],
    }


def _group_data(group: Group) -> dict[str, Any]:
    return {
        "host": group.circumstances.host,
        "threads": group.circumstances.threads,
        "memory_profile": group.circumstances.memory_profile,
        "weights_sha256": group.circumstances.weights,
        "inputs_sha256": group.circumstances.inputs,
        "model": str(group.runs[0].results.model.spec),
        "untested": group.untested,
        "runs": [
            {
                "label": run.label,
                "created": run.results.created,
                "segx": run.results.segx,
                "git_commit": run.results.machine.git_commit,
                "complete": run.results.complete,
            }
            for run in group.runs
        ],
        "series": [_series_data(series, group) for series in group.series],
    }


def _series_data(series: Series, group: Group) -> dict[str, Any]:
    return {
        "variant": str(series.variant),
        "runtime": series.variant.runtime,
        "precision": series.variant.precision,
        "scope": series.variant.scope,
        "batch_size": series.batch_size,
        "points": [
            {"run": place, **_point(cell, run)}
            for place, (cell, run) in enumerate(zip(series.cells, group.runs, strict=True))
            if cell
        ],
        "changes": [
            {
                "before": change.before,
                "after": change.after,
                "kind": change.kind,
                "told": change.told,
                "p_value": change.p_value,
                **data.ratio_columns("ratio", change.speedup),
            }
            for change in series.changes
        ],
    }


def _point(cell: Cell, run: Run) -> dict[str, Any]:
    """A cell in figures; the interval is that of the median."""
    size = cell.batch_size or 1
    interval = stats.median_interval(cell.samples_s) if cell.measured else None
    return {
        "status": cell.status,
        "reason": cell.reason,
        "s_per_image": cell.seconds_per_image if cell.measured else None,
        "s_per_image_low": interval.low / size if interval else None,
        "s_per_image_high": interval.high / size if interval else None,
        "rounds": len(cell.rounds),
        "needed_bytes": needed_bytes(cell) if cell.measured else None,
        "masks": verdict_of(run.results, cell),
    }


def to_json(history: History) -> str:
    """``to_data`` as text."""
    return json.dumps(to_data(history), indent=1, allow_nan=False) + "\n"


def to_csv(history: History) -> str:
    """A row per run, variant and batch size, by group, series and time; changes into that run beside it."""
    lines = []
    for number, group in enumerate(history.groups, start=1):
        for series in group.series:
            for place, (cell, run) in enumerate(zip(series.cells, group.runs, strict=True)):
                if cell:
                    lines.append(_csv_row(number, series, place, cell, run))
    return data.written(lines)


def _csv_row(number: int, series: Series, place: int, cell: Cell, run: Run) -> dict[str, Any]:
    into = [change for change in series.changes if change.after == place]
    tested = next((change for change in into if change.speedup), None)
    return {
        "group": number,
        "run": run.label,
        "created": run.results.created,
        "segx": run.results.segx,
        "git_commit": run.results.machine.git_commit,
        "runtime": series.variant.runtime,
        "precision": series.variant.precision,
        "scope": series.variant.scope,
        "batch_size": series.batch_size,
        **_point(cell, run),
        "changes": "; ".join(change.kind for change in into),
        "p_value": tested.p_value if tested else None,
        **data.ratio_columns("ratio", tested.speedup if tested else None),
    }
