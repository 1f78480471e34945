"""Reports on several benches: two compared cell by cell, several side by side, a series over time."""

from __future__ import annotations

import itertools
import math
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from segx.analysis.compare import CellComparison, Comparison, Row, Run, SideBySide
from segx.analysis.figures import Speedup, best_of
from segx.analysis.history import RUNS_FOR_DRIFT, RUNS_FOR_NOISE, Change, Group, History, Series
from segx.analysis.stats import FEWEST_ROUNDS
from segx.reporting.bench_document import short_names, troubles
from segx.reporting.columns import (
    Field,
    counted,
    digits,
    figures,
    group_headings,
    images_per_s,
    needed_memory,
    processor,
    sparkline,
    speedup,
    spread,
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
from segx.results.provenance import changed
from segx.results.settings import SETTINGS, differences, host_of
from segx.results.types import Cell
from segx.system.text import percentage

_STYLES: dict[str, Style] = {"faster": "good", "gained": "good", "slower": "bad", "lost": "bad", "tied": "muted"}
_MEANING = (
    "Ratios are of images per second, relative to A; =: no difference beyond the noise within the runs; ?: too few "
    "rounds to tell. How much a machine varies between runs is not part of that noise."
)
# Bars of a series; of a longer one the latest are shown.
_MOST_BARS = 30
# Runs that are listed one by one.
_MOST_RUNS = 20
# Changes of the environment that are listed beside a change; more explain nothing.
_MOST_EXPLANATIONS = 6


def comparison_document(comparison: Comparison, runs: Sequence[Run]) -> Document:
    """Describe how two benches compare cell by cell; ``runs`` are the two."""
    before, after = runs
    shared = comparison.common if comparison.common and not comparison.common.tied else None
    by_size: dict[int, list[CellComparison]] = {}
    for cell in comparison.cells:
        if cell.speedup or cell.verdict == "lost":
            by_size.setdefault(cell.batch_size, []).append(cell)
    tables = [_compared(size, by_size[size], shared) for size in sorted(by_size)]
    lines = [Paragraph("; ".join(_counts(comparison, after)) + "."), *_shared_change(comparison, before, after)]
    if not any(cell.speedup for cell in comparison.cells):
        lines.append(Paragraph("Nothing was compared: no cell was measured in both runs.", "warning"))
    if broken := [f"{cell.variant} batch {cell.batch_size}" for cell in comparison.cells if cell.masks_broke]:
        lines.append(Paragraph(f"Masks met their gate before and fail now: {', '.join(broken)}.", "warning"))
    facts = [(name, _described(run)) for name, run in zip(("before", "after"), runs, strict=True)]
    found = differences(before.results, after.results)
    differing = [f"{SETTINGS[name].label}: {old} against {new}" for name, (old, new) in found.items()]
    same = [setting.label for name, setting in SETTINGS.items() if name not in found]
    facts += [("same", ", ".join(same))] * bool(same)
    facts += [("differ", "; ".join(differing))] * bool(differing)
    names = short_names(cell.variant for cell in comparison.cells)
    document = Document("segx compare", tuple(facts), (Section(key="cells", blocks=(*tables, *lines)),))
    return document.renamed(names)


def _described(run: Run) -> str:
    commit = run.results.machine.git_commit
    parts = (
        f"segx {run.results.segx}",
        f"commit {commit[:7]}" if commit else "",
        "" if run.results.complete else "not complete",
    )
    return f"{run.label}, {run.results.created[:16].replace('T', ' ')}, {', '.join(filter(None, parts))}"


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _compared(size: int, cells: Sequence[CellComparison], shared: Speedup | None) -> Table:
    """Return the table of one batch size; if the cells share a factor, with what goes beyond it."""
    beyond: Field[CellComparison] = figures(
        "beyond",
        lambda cell: cell.beyond.ratio if cell.beyond else None,
        "speed-up beyond the factor that the cells share; the verdict is on this",
        form="{:.2f}x",
    )
    fields: list[Field[CellComparison]] = [
        words(f"batch {size}, ms/image", lambda cell: str(cell.variant)),
        figures("before", lambda cell: cell.before_s and cell.before_s * 1e3, "milliseconds per image"),
        figures("after", lambda cell: cell.after_s and cell.after_s * 1e3, "milliseconds per image"),
        figures("speed-up", lambda cell: cell.speedup.ratio if cell.speedup else None, form="{:.2f}x"),
        words("95% interval", lambda cell: spread(cell.speedup.interval) if cell.speedup else None, optional=2),
        *([beyond] if shared else []),
        figures("p", lambda cell: cell.p_value, "corrected for the number of cells", form=_p_value, optional=3),
        (Column("verdict", numeric=False), lambda cell: text(cell.verdict, _STYLES.get(cell.verdict, ""))),
        *([(Column("masks", numeric=False), _changed_masks)] if any(map(_masks_differ, cells)) else []),
    ]
    return table_of("", cells, fields)


def _masks_differ(cell: CellComparison) -> bool:
    return cell.speedup is not None and cell.masks_before != cell.masks_after


def _changed_masks(cell: CellComparison) -> Datum:
    """Return both verdicts on the masks where they differ, as in a history."""
    if not _masks_differ(cell):
        return NONE
    before, after = (masks or "not judged" for masks in (cell.masks_before, cell.masks_after))
    return text(f"{before} → {after}", "bad" if cell.masks_broke else "")


def _counts(comparison: Comparison, after: Run) -> Iterator[str]:
    counts = Counter(cell.verdict for cell in comparison.cells)
    yield ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("faster", "slower", "tied"))
    if counts["unsure"]:
        yield f"{counts['unsure']} unsure: too noisy to tell {percentage(comparison.least_change)}"
    if counts["lost"]:
        yield f"{counts['lost']} lost: measured before, and not any more"
    if counts["gained"]:
        yield f"{counts['gained']} only in {after.label}"
    if counts["not asked for"]:
        yield f"{counts['not asked for']} not asked for in {after.label}"


def _shared_change(comparison: Comparison, before: Run, after: Run) -> list[Paragraph]:
    """Say by how much the cells moved together, if that is more than noise, and what may explain it."""
    common = comparison.common
    moved = [cell for cell in comparison.cells if cell.speedup and cell.p_value is not None]
    if comparison.apart:
        told = f"The cells did not move together ({_range(moved)}): each is judged by its own ratio."
        return [Paragraph(f"{told} If you suspect the machine, run both once more, in turns.", "warning")]
    if common is None or common.tied:
        return []
    together = [cell for cell in moved if cell.together]
    share = f"All {len(moved)}" if len(together) == len(moved) else f"{len(together)} of {len(moved)} cells"
    found = changed(before.results, after.results)
    why = (
        f"These differ: {_told_changes(found)}. If none of them explains it, it is the machine."
        if found
        else "Nothing that segx records differs: most likely it is the machine, not a change of yours."
    )
    told = f"{share} moved together, by {common.ratio:.2f}x ({_range(together)})."
    return [Paragraph(f"{told} {why} Each is judged beyond that factor. Run both once more, in turns.", "warning")]


def _range(cells: Sequence[CellComparison]) -> str:
    ratios = [cell.speedup.ratio for cell in cells if cell.speedup]
    return f"{min(ratios):.2f}x to {max(ratios):.2f}x"


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
    failed: dict[str, list[str]] = {}
    for name, run in named:
        for trouble in troubles(run.results):
            failed.setdefault(f"{trouble.where}: {trouble.told}; {trouble.remedy}", []).append(name)
    failures = tuple(f"{', '.join(where)}: {what}" for what, where in failed.items())
    sections = (
        Section(key="warnings", blocks=tuple(Paragraph(f"{line}.", "warning") for line in compared.warnings)),
        Section(key="differences", title="Differences", blocks=(Facts(differences),) if differences else ()),
        Section(key="speed", title="Speed", blocks=(speed,)),
        Section(key="memory", title="Memory", blocks=(memory,)),
        Section(key="not-measured", title="Not measured", blocks=(Bullets(failures),) if failures else ()),
    )
    facts = [(name, f"{_described(run)}; {processor(host_of(run.results))}") for name, run in named]
    return Document.of("segx bench, side by side", facts, sections)


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
    facts = [("found", f"{runs} below {history.name}, in {groups} of comparable runs")]
    if history.skipped:
        facts.append(("skipped", counted(len(history.skipped), "file")))
    numbered = list(enumerate(history.groups, start=1))
    sections = [_group_section(place, group) for place, group in numbered if len(group.runs) > 1]
    single = tuple(_single_run(place, group) for place, group in numbered if len(group.runs) == 1)
    others = Section(
        key="single", title="Single runs, with nothing to compare", blocks=(Bullets(single),) * bool(single)
    )
    notes = Section(key="notes", title="Notes", blocks=(Bullets(tuple(_notes_on(history))),))
    skipped = tuple(f"{path}: {reason}" for path, reason in history.skipped)
    left = Section(key="skipped", title="Skipped files", blocks=(Bullets(skipped),) * bool(skipped))
    return Document.of("segx history", facts, (*sections, others, left, notes))


def _single_run(place: int, group: Group) -> str:
    """Return the only run of a group in one line, with its fastest cell."""
    (run,) = group.runs
    best = best_of([cell for cell in run.results.cells if cell.measured], run.results)
    speed = (
        f"{best.variant}, batch {best.batch_size}: {images_per_s(best).text} images/s" if best else "nothing measured"
    )
    return f"{run.label} (group {place}), {run.results.created[:16].replace('T', ' ')}, {speed}"


def _group_section(place: int, group: Group) -> Section:
    first = group.runs[0].results
    low = ", low memory profile" if first.options.memory_profile == "low" else ""
    conditions = (
        ("machine", f"{processor(host_of(first))}, {counted(first.options.threads, 'thread')}{low}"),
        ("model", f"{first.model.spec}, weights {first.model.weights_sha256[:12]}"),
        ("inputs", f"{first.inputs.source}, sha256 {first.inputs.sha256[:12]}"),
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
        yield f"run {place + 1}", _described(run)
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
        words("images/s by run", bars),
        figures("first", lambda series: speed(series, 0), optional=2),
        figures("last", lambda series: speed(series, -1)),
        figures("last/first", growth, form="{:.2f}x", optional=1),
        words(
            "changes at run", lambda series: ", ".join(f"{change.kind} {change.after + 1}" for change in series.changes)
        ),
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
    ratio = f"{change.speedup.ratio:.2f}x ({spread(change.speedup.interval)})"
    return f"{change.kind}: {ratio}, {digits(before)} → {digits(after)} images/s"


def _explanations(before: Run, after: Run, place: int) -> str:
    found = changed(before.results, after.results)
    return f"what else differs from run {place + 1}: {_told_changes(found) or 'nothing that was recorded'}"


def _told_changes(found: Mapping[str, tuple[str, str]]) -> str:
    told = [f"{name} {old or BLANK} → {new or BLANK}" for name, (old, new) in found.items()]
    more = f" and {len(told) - _MOST_EXPLANATIONS} more" if len(told) > _MOST_EXPLANATIONS else ""
    return ", ".join(told[:_MOST_EXPLANATIONS]) + more


def _notes_on(history: History) -> Iterator[str]:
    """Return what the marks mean, what could not be tested, and which files were skipped."""
    yield (
        f"Bars: images per second run by run, at most the latest {_MOST_BARS}, from zero; a cross if a run failed, a "
        "dot if it did not try. Ratios are of the medians of rounds."
    )
    least = percentage(history.least_change)
    yield (
        f"Faster, slower: at least {least} from one run to the next, beyond the noise within both runs "
        "(Student's t on rounds, Holm over all series of a run) and beyond the usual variation of the series "
        "from run to run."
    )
    if any(change.kind == "drift" for group in history.groups for series in group.series for change in series.changes):
        yield (
            f"Drift: a trend over {RUNS_FOR_DRIFT} runs or more since the last change of speed (Mann-Kendall, "
            f"Holm over all series) that adds up to at least {least}."
        )
    short = [group for group in history.groups if len(group.runs) < RUNS_FOR_NOISE]
    if any(change.speedup for group in short for series in group.series for change in series.changes):
        yield (
            f"With fewer than {RUNS_FOR_NOISE} runs the variation from run to run is unknown: changes there may be "
            "no more than that."
        )
    if untested := sum(group.untested for group in history.groups):
        few = f"fewer than {FEWEST_ROUNDS} rounds, or than 2 in a process, on a side"
        yield f"Not tested: {counted(untested, 'step')} with {few}."
