"""Reports on several benches: two compared cell by cell, several side by side, a series over time."""

from __future__ import annotations

import itertools
import math
import string
from collections import Counter
from collections.abc import Callable, Iterator
from typing import get_args

from segx.analysis.compare import ROUNDS_FOR_A_TEST, CellComparison, Comparison, Row, Run, SideBySide, Verdict
from segx.analysis.history import FALSE_DISCOVERIES, RUNS_FOR_DRIFT, RUNS_FOR_NOISE, Change, Group, History, Series
from segx.reporting.bench_document import troubles
from segx.reporting.columns import (
    Field,
    counted,
    figures,
    group_headings,
    images_per_s,
    needed_memory,
    ratio_interval,
    sparkline,
    speedup,
    table_of,
    verdict,
    words,
)
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
    Style,
    Table,
    number,
    text,
)
from segx.results.provenance import changed, host_of
from segx.results.types import Cell

_STYLES: dict[str, Style] = {"faster": "good", "gained": "good", "slower": "bad", "lost": "bad", "tied": "muted"}
_MEANING = (
    "Ratios are of images per second, relative to A, ± their 95 % interval; tied: it includes 1; ±?: too few rounds "
    "for an interval. The interval covers the noise within a run, not how much a machine varies between runs."
)
# Bars of a series; of a longer one the latest are shown.
_MOST_BARS = 30
# Runs that are listed one by one.
_MOST_RUNS = 20
# Changes of the environment that are listed beside a change; more explain nothing.
_MOST_EXPLANATIONS = 6


def comparison_document(comparison: Comparison) -> Document:
    """Describe how two benches compare cell by cell."""

    def speed_up(cell: CellComparison) -> Datum:
        return Datum(ratio_interval(cell.speedup, 3), cell.speedup.ratio) if cell.speedup else NONE

    beyond: Field[CellComparison] = figures(
        "beyond common",
        lambda cell: cell.beyond.ratio if cell.beyond else None,
        "speed-up beyond the factor that all cells share",
        form="{:.3f}x",
        optional=2,
    )
    fields: list[Field[CellComparison]] = [
        words("variant", lambda cell: str(cell.variant)),
        figures("batch", lambda cell: cell.batch_size, form="{}"),
        figures("before ms/image", lambda cell: cell.before_s and cell.before_s * 1e3, form="{:.1f}"),
        figures("after ms/image", lambda cell: cell.after_s and cell.after_s * 1e3, form="{:.1f}"),
        (Column("speed-up"), speed_up),
        *([beyond] if comparison.common else []),
        figures("p", lambda cell: cell.p_value, "corrected for the number of cells", form="{:.3f}", optional=1),
        (Column("verdict", numeric=False), lambda cell: text(cell.verdict, _STYLES.get(cell.verdict, ""))),
    ]
    lines = [*map(Paragraph, _counts(comparison)), *_shared_change(comparison)]
    blocks: tuple[Block, ...] = (table_of("", comparison.cells, fields), *lines)
    return Document("segx compare", (), (Section(key="cells", blocks=blocks),))


def _counts(comparison: Comparison) -> list[str]:
    counts = Counter(cell.verdict for cell in comparison.cells)
    shown = [verdict for verdict in get_args(Verdict) if counts[verdict] or verdict in ("faster", "slower", "tied")]
    lines = [", ".join(f"{counts[verdict]} {verdict}" for verdict in shown) + "."]
    if counts["unsure"]:
        lines.append(f"unsure: no verdict, too noisy to tell {comparison.least_change:.0%}.")
    return lines


def _shared_change(comparison: Comparison) -> list[Paragraph]:
    """Say by how much all cells moved together, if that is more than noise."""
    common = comparison.common
    if common is None or common.tied:
        return []
    ratios = [cell.speedup.ratio for cell in comparison.cells if cell.speedup]
    reach = f"{min(ratios):.2f}x to {max(ratios):.2f}x"
    return [
        Paragraph(
            f"All {len(ratios)} cells moved together, by {common.ratio:.2f}x ({reach}). "
            "Most likely it is the machine, unless something changed for all of them: each cell is judged beyond that "
            "factor. To be sure, measure both versions in turns.",
            "warning",
        )
    ]


def letters(count: int) -> list[str]:
    """Return A, B, …, Z, AA, …: short names of runs, for the headings of columns."""
    lengths = itertools.count(1)
    names = ("".join(name) for length in lengths for name in itertools.product(string.ascii_uppercase, repeat=length))
    return list(itertools.islice(names, count))


def side_by_side_document(compared: SideBySide) -> Document:
    """Describe several benches side by side; the first is the one that the others are compared with."""
    names = letters(len(compared.runs))
    # A variant that no run could measure at all has a row without a batch size: it is listed as failed.
    rows = [row for row in compared.rows if row.batch_size is not None]
    groups = group_headings([row.variant for row in rows])
    heads = [names[0], *(head for name in names[1:] for head in (name, f"{name} vs {names[0]}"))]
    speed = Table(
        "Images per second",
        (Column("batch"), *map(Column, heads), Column("masks", numeric=False)),
        tuple(_speed_row(row, compared) for row in rows),
        groups,
        notes=(_MEANING,),
    )
    memory = Table(
        "Peak memory of model and inference",
        (Column("batch"), *map(Column, names)),
        tuple((number(row.batch_size, "{}"), *(_or_status(cell, needed_memory) for cell in row.cells)) for row in rows),
        groups,
    )
    differences = tuple(
        (what, ", ".join(f"{name} {value or BLANK}" for name, value in zip(names, values, strict=True)))
        for what, values in compared.differences.items()
    )
    named = list(zip(names, compared.runs, strict=True))
    failed = [
        f"{name}: {trouble.where}: {trouble.status}: {trouble.reason}; {trouble.remedy}"
        for name, run in named
        for trouble in troubles(run.results)
    ]
    sections = (
        Section(key="warnings", blocks=tuple(Paragraph(f"{line}.", "warning") for line in compared.warnings)),
        Section(key="differences", title="Differences", blocks=(Facts(differences),) if differences else ()),
        Section(key="speed", title="Speed", blocks=(speed,)),
        Section(key="memory", title="Memory", blocks=(memory,)),
        Section(key="not-measured", title="Failed or not measured", blocks=(Bullets(tuple(failed)),) if failed else ()),
    )
    facts = [
        (name, f"{run.label}: segx {run.results.segx}, {run.results.created}, {host_of(run.results)}{_cut(run)}")
        for name, run in named
    ]
    return Document.of("segx bench, side by side", facts, sections)


def _cut(run: Run) -> str:
    return "" if run.results.complete else ", not complete"


def _speed_row(row: Row, compared: SideBySide) -> tuple[Datum, ...]:
    first, *others = (_or_status(cell, images_per_s) for cell in row.cells)
    cells = [first]
    for cell, against in zip(others, row.ratios[1:], strict=True):
        cells += [cell, speedup(against)]
    verdicts = [verdict(run.results, cell) for run, cell in zip(compared.runs, row.cells, strict=True)]
    known = {each.text: each for each in verdicts if each.value is not None}
    masks = next(iter(known.values()), NONE) if len(known) < 2 else text(" / ".join(each.text for each in verdicts))
    return (number(row.batch_size, "{}"), *cells, masks)


def _or_status(cell: Cell | None, figure: Callable[[Cell], Datum]) -> Datum:
    """Return a figure of a cell, or its status if it was not measured."""
    if cell is None:
        return NONE
    return figure(cell) if cell.measured else text(cell.status, "bad")


def history_document(history: History) -> Document:
    """Describe a history: per group its runs, a bar per run for every series, and the changes beyond noise."""
    runs = counted(sum(len(group.runs) for group in history.groups), "run")
    groups = counted(len(history.groups), "group")
    facts = [("found", f"{runs} below {history.folder}, in {groups} of comparable runs")]
    if history.skipped:
        facts.append(("skipped", counted(len(history.skipped), "file")))
    sections = (_group_section(place, group) for place, group in enumerate(history.groups, start=1))
    notes = Section(key="notes", title="Notes", blocks=(Bullets(tuple(_notes_on(history))),))
    return Document("segx history", tuple(facts), (*sections, notes))


def _group_section(place: int, group: Group) -> Section:
    first, shared = group.runs[0].results, group.conditions
    low = ", low memory profile" if shared.memory_profile == "low" else ""
    conditions = (
        ("machine", f"{shared.host}, {shared.threads} threads{low}"),
        ("model", f"{first.model.spec}, weights {shared.weights[:12]}"),
        ("inputs", f"{first.inputs.source}, sha256 {shared.inputs[:12]}"),
    )
    blocks: list[Block] = [Facts(conditions), Facts(tuple(_runs(group))), _series_table(group)]
    if changes := list(_changes(group)):
        blocks += [Paragraph("Changes beyond noise", "strong"), *changes]
    else:
        blocks.append(Paragraph("No change is beyond noise."))
    return Section(key=f"group-{place}", title=f"Group {place}", blocks=tuple(blocks))


def _runs(group: Group) -> Iterator[tuple[str, str]]:
    """Return number and text of each; of many only the first, the last and those beside a change."""
    last = len(group.runs) - 1
    shown = list(range(last + 1))
    if last >= _MOST_RUNS:
        changes = [change for series in group.series for change in series.changes]
        shown = sorted({0, *(change.before for change in changes), *(change.after for change in changes), last})
    for place in shown:
        run = group.runs[place]
        commit = f", commit {run.results.machine.git_commit[:12]}" if run.results.machine.git_commit else ""
        yield f"run {place + 1}", f"{run.results.created}, {run.label}, segx {run.results.segx}{commit}{_cut(run)}"
    if len(shown) <= last:
        yield "…", f"and {last + 1 - len(shown)} more"


def _series_table(group: Group) -> Table:
    """Return a row per series: bars of images per second, the first and the last figure, and the runs with changes."""

    def bars(series: Series) -> str:
        speeds = [math.nan if cell and _speed(cell) is None else _speed(cell) for cell in series.cells]
        return sparkline(speeds[-_MOST_BARS:])

    def speed(series: Series, place: int) -> float | None:
        measured = [speed for cell in series.cells if (speed := _speed(cell)) is not None]
        return measured[place] if measured else None

    def growth(series: Series) -> float | None:
        first, last = speed(series, 0), speed(series, -1)
        return last / first if first and last else None

    fields: list[Field[Series]] = [
        figures("batch", lambda series: series.batch_size, form="{}"),
        words("runs", bars),
        figures("first images/s", lambda series: speed(series, 0), form="{:.2f}"),
        figures("last images/s", lambda series: speed(series, -1), form="{:.2f}"),
        figures("last/first", growth, form="{:.2f}x"),
        words("changes", lambda series: ", ".join(f"{change.kind} {change.after + 1}" for change in series.changes)),
    ]
    return table_of("", group.series, fields, groups=group_headings([series.variant for series in group.series]))


def _speed(cell: Cell | None) -> float | None:
    return 1 / cell.seconds_per_image if cell and cell.measured and cell.seconds_per_image > 0 else None


def _changes(group: Group) -> Iterator[Bullets]:
    """Return, per run that changed something, what else differs from the run before, and a line per change."""
    found = [(change, series) for series in group.series for change in series.changes]
    for after, before in sorted({(change.after, change.before) for change, _ in found}):
        here = [pair for pair in found if (pair[0].after, pair[0].before) == (after, before)]
        lines = [f"{series.variant} batch {series.batch_size} {told(change, series)}" for change, series in here]
        yield Bullets(tuple(lines), f"run {after + 1}: {_explanations(group.runs[before], group.runs[after], before)}")


def told(change: Change, series: Series) -> str:
    """Return a change in words and figures."""
    if change.speedup is None:
        return f"{change.kind}: {change.description}"
    before, after = (_speed(series.cells[place]) or 0.0 for place in (change.before, change.after))
    ratio = ratio_interval(change.speedup, 2)
    return f"{change.kind}: {ratio}, {before:.2f} → {after:.2f} images/s, p {change.p_value:.1g}"


def _explanations(before: Run, after: Run, place: int) -> str:
    differences = changed(before.results, after.results)
    found = [f"{name} {old or BLANK} → {new or BLANK}" for name, (old, new) in differences.items()]
    more = f" and {len(found) - _MOST_EXPLANATIONS} more" if len(found) > _MOST_EXPLANATIONS else ""
    what = ", ".join(found[:_MOST_EXPLANATIONS]) + more if found else "nothing that was recorded"
    return f"what else differs from run {place + 1}: {what}"


def _notes_on(history: History) -> Iterator[str]:
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
    if any(change.kind == "drift" for group in history.groups for series in group.series for change in series.changes):
        yield (
            f"Drift: a trend over {RUNS_FOR_DRIFT} runs or more since the last change of speed (Mann-Kendall, "
            f"Holm over all series) that adds up to at least {history.least_change:.0%}."
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
