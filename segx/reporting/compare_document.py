"""Runs side by side as text, Markdown, CSV and JSON: pure functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from segx.analysis import stats
from segx.analysis.figures import needed_bytes, verdict_of
from segx.analysis.ratios import Speedup, ratio_text
from segx.analysis.side_by_side import Row, Run, SideBySide
from segx.reporting import data
from segx.reporting.columns import BLANK, mebibytes, troubles
from segx.reporting.markdown import joined
from segx.reporting.markdown_text import cell as markdown_cell
from segx.reporting.markdown_text import table
from segx.reporting.terminal import Terminal
from segx.results.provenance import host_of, machine_id
from segx.results.types import Cell

_HANGING = "  "
_SPEED, _MEMORY = "images per second", "memory, at the peak, of model and inference"
_MEANING = (
    "Ratios are of images per second, to A, ± their 95 % interval; tied where it spans 1; ±?: too few rounds for one. "
    "The interval holds the noise within a run, not what a machine does from one run to the next."
)


def letters(count: int) -> list[str]:
    """A, B, …, Z, AA, …: short names of runs, for the heads of columns."""

    def name(number: int) -> str:
        before, last = divmod(number, 26)
        return (name(before - 1) if before else "") + chr(ord("A") + last)

    return [name(number) for number in range(count)]


def to_text(compared: SideBySide, terminal: Terminal | None = None) -> str:
    """Which runs, what differs, and two tables: images per second, and memory."""
    on = terminal or Terminal()
    parts = [[on.labelled(f"{name:4}", text) for name, text in _legend(compared)]]
    parts.append([on.labelled("note: ", warning) for warning in compared.warnings])
    parts.append(list(_differences(compared, on)))
    for title, (titles, rows) in _tables(compared).items():
        lines, variant = [], None
        for row, cells in zip(measured_rows(compared), rows, strict=True):
            if row.variant != variant:
                lines.append([str(row.variant)])
                variant = row.variant
            lines.append(cells)
        parts.append([on.paragraph(title, hanging=_HANGING), on.table(titles, lines, left={"masks"})])
    parts.append([on.labelled(f"{name}: ", text) for name, text in _failures(compared)])
    parts.append([on.paragraph(_MEANING, hanging=_HANGING)])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def to_markdown(compared: SideBySide) -> str:
    """The same as GitHub-flavoured Markdown."""
    return joined(markdown_parts(compared))


def markdown_parts(compared: SideBySide) -> list[str]:
    """Its blocks, the most important first."""
    names = letters(len(compared.runs))
    parts = [
        "# segx bench, side by side",
        "\n".join(f"- **{name}**: {markdown_cell(text)}" for name, text in _legend(compared)),
    ]
    parts.append("\n>\n".join(f"> **Note**: {markdown_cell(warning)}" for warning in compared.warnings))
    if compared.differences:
        rows = [[what, *(value or BLANK for value in values)] for what, values in compared.differences.items()]
        parts += ["## What differs", table(["", *names], rows, left=range(len(names) + 1))]
    for title, (titles, rows) in _tables(compared).items():
        whole = [[str(row.variant), *cells] for row, cells in zip(measured_rows(compared), rows, strict=True)]
        parts += [f"## {title.capitalize()}", table(["variant", *titles], whole, left=(0,))]
    parts.append(markdown_cell(_MEANING))
    if failures := list(_failures(compared)):
        parts += ["## What did not work", "\n".join(f"- **{name}**: {markdown_cell(text)}" for name, text in failures)]
    return parts


def _legend(compared: SideBySide) -> Iterator[tuple[str, str]]:
    for name, run in zip(letters(len(compared.runs)), compared.runs, strict=True):
        results = run.results
        cut = "" if results.complete else ", not complete"
        yield name, f"{run.label}: segx {results.segx}, {results.created}, {host_of(results)}{cut}"


def _differences(compared: SideBySide, on: Terminal) -> Iterator[str]:
    if compared.differences:
        yield "what differs"
    for what, values in compared.differences.items():
        told = ", ".join(f"{name} {value or BLANK}" for name, value in zip(letters(len(values)), values, strict=True))
        yield on.paragraph(f"{what}: {told}", hanging=_HANGING)


def _tables(compared: SideBySide) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Title -> heads of the columns and a row of cells per row of ``compared``, without the variant."""
    names = letters(len(compared.runs))
    heads = [names[0], *(head for name in names[1:] for head in (name, f"{name} vs {names[0]}"))]
    rows = measured_rows(compared)
    return {
        _SPEED: (["batch", *heads, "masks"], [_speed_row(row, compared) for row in rows]),
        _MEMORY: (["batch", *names], [_memory_row(row) for row in rows]),
    }


def measured_rows(compared: SideBySide) -> list[Row]:
    """Without variants that no run could measure: those stand among what did not work."""
    return [row for row in compared.rows if row.batch_size is not None]


def _speed_row(row: Row, compared: SideBySide) -> list[str]:
    first, *others = (_told(cell, lambda cell: f"{1 / cell.seconds_per_image:.2f}") for cell in row.cells)
    cells = [first]
    for told, ratio in zip(others, row.ratios[1:], strict=True):
        cells += [told, ratio_text(ratio)]
    verdicts = [_verdict(run, cell) for run, cell in zip(compared.runs, row.cells, strict=True)]
    known = {verdict for verdict in verdicts if verdict != BLANK}
    return [str(row.batch_size), *cells, " / ".join(verdicts) if len(known) > 1 else "".join(known) or BLANK]


def _verdict(run: Run, cell: Cell | None) -> str:
    return (verdict_of(run.results, cell) if cell else None) or BLANK


def _memory_row(row: Row) -> list[str]:
    return [str(row.batch_size), *(_told(cell, lambda cell: mebibytes(needed_bytes(cell))) for cell in row.cells)]


def _told(cell: Cell | None, figure: Callable[[Cell], str]) -> str:
    """The figure of a measured cell, else what became of it."""
    if cell is None:
        return BLANK
    return figure(cell) if cell.measured else cell.status


def _failures(compared: SideBySide) -> Iterator[tuple[str, str]]:
    for name, run in zip(letters(len(compared.runs)), compared.runs, strict=True):
        for trouble in troubles(run.results):
            yield name, f"{trouble.where}: {trouble.status}: {trouble.reason}; {trouble.remedy}"


def to_csv(compared: SideBySide) -> str:
    """A row per run and cell, as in ``segx.reporting.data``, with the run's label and the ratio to the first."""
    lines = []
    for place, run in enumerate(compared.runs):
        ratios = {(row.variant, row.batch_size): row.ratios[place] for row in compared.rows}
        for cell, line in zip(run.results.cells, data.rows(run.results), strict=True):
            against = ratios.get((cell.variant, cell.batch_size))
            lines.append({"run": run.label, **line, **data.ratio_columns("vs_first", against)})
    return data.written(lines)


def to_json(compared: SideBySide) -> str:
    """Runs, differences and rows as data; seconds, bytes and ratios. Raw samples stay in each run's own file."""
    data = {
        "runs": [_run_data(run) for run in compared.runs],
        "differences": {name: list(values) for name, values in compared.differences.items()},
        "warnings": list(compared.warnings),
        "masks_compare": compared.same_masks,
        "rows": [_row_data(row, compared) for row in compared.rows],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _run_data(run: Run) -> dict[str, Any]:
    results = run.results
    return {
        "label": run.label,
        "created": results.created,
        "segx": results.segx,
        "host": host_of(results),
        "machine_id": machine_id(results),
        "complete": results.complete,
    }


def _row_data(row: Row, compared: SideBySide) -> dict[str, Any]:
    return {
        "runtime": row.variant.runtime,
        "precision": row.variant.precision,
        "scope": row.variant.scope,
        "batch_size": row.batch_size,
        "cells": [
            _cell_data(run, cell, ratio) for run, cell, ratio in zip(compared.runs, row.cells, row.ratios, strict=True)
        ],
    }


def _cell_data(run: Run, cell: Cell | None, ratio: Speedup | None) -> dict[str, Any] | None:
    """None where the run did not have it."""
    if cell is None:
        return None
    interval = stats.median_interval(cell.samples_s) if cell.measured else None
    return {
        "status": cell.status,
        "reason": cell.reason,
        "remedy": cell.remedy,
        "s_per_image": cell.seconds_per_image if cell.measured else None,
        "p50_s": cell.median_s if cell.measured else None,
        "p50_low_s": interval.low if interval else None,
        "p50_high_s": interval.high if interval else None,
        "needed_bytes": needed_bytes(cell) if cell.measured else None,
        "masks": verdict_of(run.results, cell),
        **data.ratio_columns("vs_first", ratio),
    }
