"""Reports on two benches compared cell by cell, and on several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from segx.analysis.compare import CellComparison, Row, Run, SideBySide
from segx.reporting.bench_document import troubles
from segx.reporting.columns import (
    Field,
    figures,
    group_headings,
    needed_memory,
    rate,
    ratio_interval,
    speedup,
    table_of,
    verdict,
    words,
)
from segx.reporting.document import (
    BLANK,
    NONE,
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
from segx.results.provenance import host_of
from segx.results.types import Cell

_STYLES: dict[str, Style] = {"faster": "good", "gained": "good", "slower": "bad", "lost": "bad", "tied": "muted"}
_MEANING = (
    "Ratios are of images per second, relative to A, ± their 95 % interval; tied: it includes 1; ±?: too few rounds "
    "for an interval. The interval covers the noise within a run, not how much a machine varies between runs."
)


def comparison_document(cells: Sequence[CellComparison]) -> Document:
    """Describe how two benches compare cell by cell."""

    def speed_up(cell: CellComparison) -> Datum:
        return Datum(ratio_interval(cell.speedup, 3), cell.speedup.ratio) if cell.speedup else NONE

    fields: list[Field[CellComparison]] = [
        words("variant", lambda cell: str(cell.variant)),
        figures("batch", lambda cell: cell.batch_size, form="{}"),
        figures("before ms/image", lambda cell: cell.before_s and cell.before_s * 1e3, form="{:.1f}"),
        figures("after ms/image", lambda cell: cell.after_s and cell.after_s * 1e3, form="{:.1f}"),
        (Column("speed-up"), speed_up),
        figures("p", lambda cell: cell.p_value, form="{:.3f}", optional=1),
        (Column("verdict", numeric=False), lambda cell: text(cell.verdict, _STYLES.get(cell.verdict, ""))),
    ]
    table = table_of("", cells, fields)
    return Document("segx compare", (), (Section(key="cells", blocks=(table,)),))


def letters(count: int) -> list[str]:
    """Return A, B, …, Z, AA, …: short names of runs, for the headings of columns."""

    def name(index: int) -> str:
        before, last = divmod(index, 26)
        return (name(before - 1) if before else "") + chr(ord("A") + last)

    return [name(index) for index in range(count)]


def measured_rows(compared: SideBySide) -> list[Row]:
    """Return the rows without variants that no run could measure: those are listed as failed."""
    return [row for row in compared.rows if row.batch_size is not None]


def side_by_side_document(compared: SideBySide) -> Document:
    """Describe several benches side by side; the first is the one that the others are compared with."""
    names = letters(len(compared.runs))
    rows = measured_rows(compared)
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
        tuple((number(row.batch_size, "{}"), *map(_memory, row.cells)) for row in rows),
        groups,
    )
    failed = [
        f"{name}: {trouble.where}: {trouble.status}: {trouble.reason}; {trouble.remedy}"
        for name, run in zip(names, compared.runs, strict=True)
        for trouble in troubles(run.results)
    ]
    sections = (
        Section(key="warnings", blocks=tuple(Paragraph(f"{line}.", "warning") for line in compared.warnings)),
        Section(key="differences", title="Differences", blocks=_differences(compared, names)),
        Section(key="speed", title="Speed", blocks=(speed,)),
        Section(key="memory", title="Memory", blocks=(memory,)),
        Section(key="not-measured", title="Failed or not measured", blocks=(Bullets(tuple(failed)),) if failed else ()),
    )
    facts = tuple((name, _run_line(run)) for name, run in zip(names, compared.runs, strict=True))
    return Document("segx bench, side by side", facts, tuple(section for section in sections if section.blocks))


def _run_line(run: Run) -> str:
    results = run.results
    cut = "" if results.complete else ", not complete"
    return f"{run.label}: segx {results.segx}, {results.created}, {host_of(results)}{cut}"


def _differences(compared: SideBySide, names: Sequence[str]) -> tuple[Facts, ...]:
    pairs = tuple(
        (what, ", ".join(f"{name} {value or BLANK}" for name, value in zip(names, values, strict=True)))
        for what, values in compared.differences.items()
    )
    return (Facts(pairs),) if pairs else ()


def _speed_row(row: Row, compared: SideBySide) -> tuple[Datum, ...]:
    first, *others = map(_rate, row.cells)
    cells = [first]
    for cell, against in zip(others, row.ratios[1:], strict=True):
        cells += [cell, speedup(against)]
    verdicts = [verdict(run.results, cell) for run, cell in zip(compared.runs, row.cells, strict=True)]
    known = {each.text: each for each in verdicts if each.value is not None}
    masks = next(iter(known.values()), NONE) if len(known) < 2 else text(" / ".join(each.text for each in verdicts))
    return (number(row.batch_size, "{}"), *cells, masks)


def _rate(cell: Cell | None) -> Datum:
    """Return the images per second of a cell, or its status if it was not measured."""
    if cell is None:
        return NONE
    return Datum(rate(cell), 1 / cell.seconds_per_image) if cell.measured else text(cell.status, "bad")


def _memory(cell: Cell | None) -> Datum:
    if cell is None:
        return NONE
    return needed_memory(cell) if cell.measured else text(cell.status, "bad")
