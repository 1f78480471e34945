"""Results as GitHub-flavoured Markdown: a pure function, results in, text out. Every text of theirs is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from segx.analysis.decision import Constraints, decide
from segx.reporting.bench_document import heading
from segx.reporting.columns import (
    below,
    column_titles,
    conditions,
    figures,
    mask_table,
    mask_title,
    named,
    overview,
    present_and_missing,
    troubles,
)
from segx.reporting.markdown_text import code, details, escaped, table
from segx.reporting.notes import notes
from segx.reporting.pipeline_report import LEGEND, TITLE, TITLES, pipeline_rows
from segx.reporting.prose import exclusion_sentences, pick_sentences, sentences
from segx.results.types import Cell, Machine, Results
from segx.runtimes import Variant

_GIB = 2**30


def to_markdown(results: Results, constraints: Constraints | None = None) -> str:
    """What to deploy, all variants in one table, what failed, a table per variant, masks, notes and environment."""
    parts = ["# segx bench", decision(results, constraints), facts(results), *overview_table(results)]
    parts += [
        *failures(results),
        *variant_tables(results),
        *whole_path(results),
        *mask_part(results),
        *notes_and_environment(results),
    ]
    return joined(parts)


def joined(parts: Sequence[str]) -> str:
    """Blocks of Markdown with an empty line between them."""
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(results: Results) -> str:
    """What was measured, on what and where."""
    return "\n".join(f"- **{label}**: {escaped(text)}" for label, text in heading(results))


def overview_table(results: Results) -> list[str]:
    """A row per variant; nothing where none was measured."""
    titles, rows = overview(results)
    title = "Images per second over batch size as bars from zero, and the best of each variant:"
    return [title, table(titles, rows, left=(0, 1))] if rows else []


def decision(results: Results, constraints: Constraints | None) -> str:
    """A point for each wish, with what speaks for it and what would change it, and the command that makes the file."""
    decided = decide(results, constraints)
    lines = []
    for pick in decided.picks:
        first, *rest = pick_sentences(pick, decided)
        lines.append(f"- **{escaped(first)}** {escaped(' '.join(rest))}")
        if pick.command:
            lines += ["", *(f"  {line}" for line in code(pick.command).splitlines()), ""]
    beyond = exclusion_sentences(decided) if decided.picks else sentences(decided)
    return "\n".join([*lines, *(f"- {escaped(line)}" for line in beyond)]).strip("\n")


def failures(results: Results) -> list[str]:
    """What is not ``ok``, with reason and remedy."""
    rows = [[trouble.where, trouble.status, trouble.reason, trouble.remedy] for trouble in troubles(results)]
    return ["## What did not work", table(["where", "status", "reason", "remedy"], rows, left=range(4))] if rows else []


def variant_tables(results: Results) -> list[str]:
    """A table per variant, with what is under it."""
    titles = column_titles(results)
    parts = []
    for variant, cells in present_and_missing(results)[0]:
        parts.append(f"## {escaped(str(variant))}")
        parts.append(escaped(conditions(cells)))
        parts.append(_table_of(variant, cells, results, titles))
        parts.append("\n".join(f"- {escaped(line)}" for line in below(cells)))
    return parts


def _table_of(variant: Variant, cells: Sequence[Cell], results: Results, titles: Sequence[str]) -> str:
    """A row per batch size; one that was not measured has its status alone, the reason stands further up."""
    rows = [
        figures(cell, results, titles)
        if cell.measured
        else [str(cell.batch_size), cell.status, *[""] * (len(titles) - 2)]
        for cell in cells
    ]
    return table(named(titles, variant, results), rows)


def whole_path(results: Results) -> list[str]:
    """The table of the pipeline scope, where it was measured."""
    rows = [[*row, *[""] * (len(TITLES) - len(row))] for row in pipeline_rows(results)]
    return ["## " + TITLE, table(TITLES, rows, left=(0,)), *map(escaped, LEGEND)] if rows else []


def mask_part(results: Results) -> list[str]:
    """The table of masks, where there is something to tell."""
    masks = mask_table(results)
    if masks is None:
        return []
    titles, rows = masks
    words = [i for i, title in enumerate(titles) if title in {"variant", "worst image"}]
    return ["## Masks", escaped(mask_title(results)), table(titles, rows, left=words)]


def notes_and_environment(results: Results) -> list[str]:
    """What the figures mean, what casts doubt on them, and where they were made."""
    lines = notes(results)
    parts = ["## Notes", "\n".join(f"- {escaped(line)}" for line in lines)] if lines else []
    return [*parts, "To repeat it:", code(results.command), details("Environment", _environment(results))]


def _environment(results: Results) -> str:
    rows = [[label, text] for label, text in machine_facts(results.machine) if text]
    return table(["what", "value"], rows, left=(0, 1))


def machine_facts(machine: Machine) -> list[tuple[str, str]]:
    """Everything that is known about a machine: label and text, empty where the system does not tell."""
    quota = "none" if machine.cpu_quota is None else f"{machine.cpu_quota:g} processors"
    frequencies = (machine.frequency_mhz, machine.frequency_max_mhz)
    frequency, highest = ("" if mhz is None else f"{mhz:.0f} MHz" for mhz in frequencies)
    limit = machine.memory_limit_bytes
    facts = [
        ("processor", machine.cpu),
        ("instruction sets", ", ".join(machine.cpu_flags)),
        ("cores", f"{machine.cores_usable} usable of {machine.cores_total}"),
        ("CPU quota", quota),
        ("frequency", frequency),
        ("highest frequency", highest),
        ("governor", machine.governor),
        ("memory", f"{machine.memory_total_bytes / _GIB:.1f} GiB"),
        ("memory free", f"{machine.memory_available_bytes / _GIB:.1f} GiB"),
        ("memory limit", "none" if limit is None else f"{limit / _GIB:.1f} GiB"),
        ("load", "" if machine.load_average_1min is None else f"{machine.load_average_1min:.2f}"),
        ("system", machine.system),
        ("Python", machine.python),
        ("git commit", machine.git_commit),
    ]
    for gpu in machine.gpus:
        clock = "" if gpu.max_clock_mhz is None else f", up to {gpu.max_clock_mhz:.0f} MHz"
        power = "" if gpu.power_limit_w is None else f", {gpu.power_limit_w:.0f} W"
        facts.append(("GPU", f"{gpu.name}, {gpu.memory_bytes / _GIB:.0f} GiB, driver {gpu.driver}{clock}{power}"))
    facts += machine.versions.items()
    facts += [(f"variable {name}", value) for name, value in machine.variables.items()]
    return facts
