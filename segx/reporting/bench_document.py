"""Results as text for a terminal: a pure function, results in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from segx.analysis.decision import Constraints, decide
from segx.analysis.recommend import recommend, sentence
from segx.reporting.columns import (
    MASK_COLUMNS_TO_SPARE,
    below,
    column_titles,
    conditions,
    figures,
    mask_table,
    mask_title,
    named,
    overview,
    present_and_missing,
    trouble,
)
from segx.reporting.notes import notes
from segx.reporting.pipeline_report import LEGEND, TITLE, TITLES, pipeline_rows
from segx.reporting.prose import sentences
from segx.reporting.terminal import Terminal
from segx.results.types import Cell, Results

_HANGING = "  "


def to_text(results: Results, terminal: Terminal | None = None, constraints: Constraints | None = None) -> str:
    """Aligned tables, one per variant, and one of masks; then all variants in one, and what to deploy.

    Args:
        results: of a bench.
        terminal: how wide it is and what it can show; 80 columns of Unicode by default.
        constraints: that a choice has to meet; where given, the choice is told in full.
    """
    on = terminal or Terminal()
    parts = [[on.labelled(f"{label:9}", text) for label, text in heading(results)]]
    titles = column_titles(results)
    present, missing = present_and_missing(results)
    for variant, cells in present:
        table = on.table(named(titles, variant, results), _rows(results, cells, titles))
        lines = [on.paragraph(line, hanging=_HANGING) for line in below(cells)]
        parts.append([on.labelled(f"{variant}  ", conditions(cells)).rstrip(), table, *lines])
    parts.append(list(_whole_path(results, on)))
    for names, cell in missing:
        what = on.paragraph(f"{names}: {cell.status}: {cell.reason}", hanging=_HANGING)
        parts.append([what, on.labelled("  try: ", cell.remedy)])
    parts += [list(_masks(results, on)), list(_overview(results, on)), list(_choices(results, on, constraints))]
    parts.append([on.paragraph(line, hanging=_HANGING) for line in notes(results)])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def heading(results: Results) -> list[tuple[str, str]]:
    """What was measured, on what and where: label and text."""
    host, model = results.machine, results.model
    weights = f"{model.checkpoint or model.onnx} {model.weights_sha256[:12]}"
    gpus = ", ".join(gpu.name for gpu in host.gpus)
    truth = f", true masks: {results.inputs.truth}" if results.inputs.truth else ""
    return [
        ("segx", f"{results.segx}, {results.created}" + ("" if results.complete else " (not complete)")),
        ("model", f"{model.spec}, weights {weights}"),
        ("inputs", f"{results.inputs.source}, sha256 {results.inputs.sha256[:12]}{truth}"),
        ("machine", f"{host.cpu}, {host.cores_usable} of {host.cores_total} cores" + (f", {gpus}" if gpus else "")),
    ]


def _masks(results: Results, on: Terminal) -> Iterator[str]:
    masks = mask_table(results)
    if masks is None:
        return
    table, left_out = on.one_table(*masks, left={"variant", "worst image"}, spare=MASK_COLUMNS_TO_SPARE)
    yield on.paragraph(mask_title(results), hanging=_HANGING)
    yield table
    if left_out:
        yield on.paragraph(f"for a wider terminal, or --format markdown: {', '.join(left_out)}", hanging=_HANGING)


def _whole_path(results: Results, on: Terminal) -> Iterator[str]:
    if rows := pipeline_rows(results):
        yield on.paragraph(TITLE)
        yield on.table(TITLES, rows)
        yield from (on.paragraph(line, hanging=_HANGING) for line in LEGEND)


def _overview(results: Results, on: Terminal) -> Iterator[str]:
    titles, rows = overview(results, encoding=on.encoding)
    if len(rows) > 1 or (rows and len(results.options.batch_sizes) > 1):
        yield on.paragraph("all variants: images per second over batch size as bars from zero, and the best")
        yield on.one_table(titles, rows, left=set(titles[:2]), spare=("batch",))[0]


def _choices(results: Results, on: Terminal, constraints: Constraints | None) -> Iterator[str]:
    if constraints:
        for line in sentences(decide(results, constraints)):
            yield on.paragraph(line, hanging=_HANGING)
        return
    for choice in recommend(results):
        yield on.paragraph(sentence(choice), hanging=_HANGING)
        if choice.command:
            yield on.command(choice.command)


def _rows(results: Results, cells: Sequence[Cell], titles: Sequence[str]) -> list[list[str]]:
    """A row per cell; one that failed has its batch size and what went wrong."""
    rows = []
    for cell in cells:
        row = figures(cell, results, titles) if cell.measured else [str(cell.batch_size)]
        if cell.status != "ok":
            if cell.measured:
                rows.append(row)
                row = [""]
            row.append(trouble(cell))
        rows.append(row)
    return rows
