"""Documents of the pages: the tables, facts and sentences of a bench, of several runs and of a history."""

from __future__ import annotations

from collections.abc import Sequence

from segx.analysis.compare import Run, SideBySide
from segx.analysis.figures import needed_bytes
from segx.analysis.history import Group, History
from segx.analysis.ratios import Speedup
from segx.analysis.recommend import Constraints, decide
from segx.reporting import tables
from segx.reporting.columns import troubles
from segx.reporting.compare_document import letters, measured_rows
from segx.reporting.document import (
    BLANK,
    Block,
    Bullets,
    Card,
    Column,
    Command,
    Datum,
    Document,
    Facts,
    Paragraph,
    Section,
    Table,
    number,
    text,
)
from segx.reporting.history_document import circumstances_of, notes_on, told
from segx.reporting.notes import notes
from segx.reporting.units import MIB, between, digits
from segx.reporting.verdict import verdict
from segx.results.provenance import changed, host_of
from segx.results.types import Cell, Results

_RATIOS = (
    "Ratios are of images per second, relative to A; tied if their 95 % interval includes 1. The interval covers the "
    "noise within a run, not how much a machine differs from one run to the next."
)


def bench_document(results: Results, constraints: Constraints | None) -> Document:
    """Describe one bench; see ``segx.reporting.document`` for the parts."""
    host = results.machine
    devices = ", ".join([f"{host.cores_usable} of {host.cores_total} cores", *(gpu.name for gpu in host.gpus)])
    facts = (
        ("Model", str(results.model.spec)),
        ("Machine", f"{host.cpu}, {devices}"),
        ("Images", results.inputs.source),
        ("Measured", f"{results.created.replace('T', ' ').replace('+00:00', ' UTC')}, segx {results.segx}"),
    )
    judged, failed, remarks = tables.masks(results), tables.troubles(results), notes(results)
    sections = (
        _decision(results, constraints),
        Section(key="masks", title="Masks", blocks=(judged,) if judged else ()),
        Section(key="all", title="All results", blocks=(tables.all_cells(results),)),
        Section(key="not-measured", title="Failed or not measured", blocks=(failed,) if failed else ()),
        Section(key="notes", title="Notes", blocks=(Bullets(tuple(remarks)),) if remarks else ()),
        Section(key="reproduce", title="Reproduce", blocks=(Command(results.command),)),
        Section(key="environment", title="Environment", blocks=tuple(tables.environment(results))),
    )
    return Document("segx bench", facts, tuple(section for section in sections if section.blocks))


def _decision(results: Results, constraints: Constraints | None) -> Section:
    found = verdict(decide(results, constraints))
    blocks: list[Block] = [Facts((("Limits", "; ".join(found.limits)),))] if found.limits else []
    blocks += [
        Card(
            key=card.key,
            title=card.wish,
            lead=f"{card.variant} at {card.batch}",
            figure=card.figure,
            interval=card.interval,
            variant=card.variant,
            batch=card.batch,
            reasons=card.reasons,
            changes=card.changes,
            command=card.command,
        )
        for card in found.cards
    ]
    blocks += map(Paragraph, found.remarks)
    return Section(key="decision", title="Recommendation", blocks=tuple(blocks))


def side_by_side_document(compared: SideBySide) -> Document:
    """Describe several runs side by side; the first is the one that the others are compared with."""
    names = letters(len(compared.runs))
    differences = tuple(
        (what, ", ".join(f"{name} {value or BLANK}" for name, value in zip(names, values, strict=True)))
        for what, values in compared.differences.items()
    )
    failed = tuple(
        f"{name}: {trouble.where}: {trouble.status}: {trouble.reason}; {trouble.remedy}"
        for name, run in zip(names, compared.runs, strict=True)
        for trouble in troubles(run.results)
    )
    warnings = tuple(Paragraph(f"{line[0].upper()}{line[1:]}.", "warning") for line in compared.warnings)
    sections = (
        Section(key="runs", title="Runs", blocks=(*warnings, runs_table(names, compared.runs))),
        Section(key="differences", title="Differences", blocks=(Facts(differences),) if differences else ()),
        Section(key="speed", title="Speed", blocks=(_speed_table(compared),)),
        Section(key="memory", title="Memory", blocks=(_memory_table(compared),)),
        Section(key="not-measured", title="Failed or not measured", blocks=(Bullets(failed),) if failed else ()),
    )
    return Document("segx bench, side by side", (), tuple(section for section in sections if section.blocks))


def _speed_table(compared: SideBySide) -> Table:
    first, *others = letters(len(compared.runs))
    columns = [Column("variant", numeric=False), Column("batch"), Column(f"{first} images/s")]
    for name in others:
        columns += [Column(f"{name} images/s"), Column(f"{name} / {first}"), Column("95 % interval", numeric=False)]
    rows = []
    for row in measured_rows(compared):
        data = [text(str(row.variant)), number(row.batch_size, "{}"), _rate(row.cells[0])]
        for cell, ratio in zip(row.cells[1:], row.ratios[1:], strict=True):
            data += [_rate(cell), *_ratio(ratio)]
        rows.append(tuple(data))
    return Table("Images per second", tuple(columns), tuple(rows), notes=(_RATIOS,))


def _rate(cell: Cell | None) -> Datum:
    if cell is None or not cell.measured:
        return Datum(cell.status if cell else BLANK, None)
    return number(1 / cell.seconds_per_image, digits(1 / cell.seconds_per_image, 4))


def _ratio(ratio: Speedup | None) -> tuple[Datum, Datum]:
    if ratio is None:
        return Datum(BLANK, None), Datum(BLANK, None)
    return Datum("tied" if ratio.tied else f"{ratio.ratio:.2f}", ratio.ratio), text(between(ratio.interval))


def _memory_table(compared: SideBySide) -> Table:
    def mebibytes(cell: Cell | None) -> Datum:
        needed = needed_bytes(cell) if cell and cell.measured else None
        return number(None if needed is None else needed / MIB, "{:.0f}")

    rows = tuple(
        (text(str(row.variant)), number(row.batch_size, "{}"), *map(mebibytes, row.cells))
        for row in measured_rows(compared)
    )
    names = (Column(f"{name} MiB") for name in letters(len(compared.runs)))
    return Table(
        "Peak memory of model and inference", (Column("variant", numeric=False), Column("batch"), *names), rows
    )


def history_document(history: History) -> Document:
    """Describe a history: its groups of comparable runs, with their changes beyond noise."""
    sections = tuple(_group_section(place, group) for place, group in enumerate(history.groups, start=1))
    remarks = Section(key="notes", title="Notes", blocks=(Bullets(tuple(notes_on(history))),))
    return Document("segx history", (), (*sections, remarks))


def _group_section(place: int, group: Group) -> Section:
    changes = _changes_table(group)
    blocks: list[Block] = [Facts(tuple(circumstances_of(group)))]
    blocks.append(changes if changes.rows else Paragraph("No change is beyond noise."))
    blocks.append(runs_table([str(number) for number in range(1, 1 + len(group.runs))], group.runs))
    return Section(key=f"group-{place}", title=f"Group {place}", blocks=tuple(blocks))


def _changes_table(group: Group) -> Table:
    columns = (
        Column("run"),
        Column("variant", numeric=False),
        Column("batch"),
        Column("change", numeric=False),
        Column("other differences", numeric=False, about="from the run before"),
    )
    rows = []
    for series in group.series:
        for change in series.changes:
            differences = changed(group.runs[change.before].results, group.runs[change.after].results)
            what = ", ".join(f"{name} {old or BLANK} → {new or BLANK}" for name, (old, new) in differences.items())
            rows.append(
                (
                    number(change.after + 1, "{}"),
                    text(str(series.variant)),
                    number(series.batch_size, "{}"),
                    text(told(change, series)),
                    text(what or BLANK),
                )
            )
    rows.sort(key=lambda row: float(row[0].value or 0))
    return Table("Changes beyond noise", columns, tuple(rows))


def runs_table(names: Sequence[str], runs: Sequence[Run]) -> Table:
    """Return a row per run."""
    titles = ("run", "name", "started", "segx", "commit", "machine", "complete")
    rows = []
    for name, run in zip(names, runs, strict=True):
        results = run.results
        complete = "yes" if results.complete else "no"
        commit = results.machine.git_commit[:12] or BLANK
        values = (name, run.label, results.created, results.segx, commit, host_of(results), complete)
        rows.append(tuple(map(text, values)))
    return Table("Runs", tuple(Column(title, numeric=False) for title in titles), tuple(rows))
