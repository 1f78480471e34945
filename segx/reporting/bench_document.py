"""The report on one bench."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segx.analysis.figures import (
    best_of,
    pytorch_variant,
    seconds_for,
    settled,
    verdict_of,
    versus_batch_1,
    versus_previous,
    versus_pytorch,
)
from segx.analysis.recommend import Constraints, decide
from segx.masks.agreement import VERDICTS, Verdict
from segx.reporting import prose
from segx.reporting.columns import (
    BATCH,
    VARIANT,
    Field,
    call_columns,
    cell_columns,
    counted,
    figures,
    forward_variant,
    further_columns,
    mask_columns,
    named_cells,
    overview_columns,
    pipeline_columns,
    processor,
    quality,
    recorded,
    scientific,
    size_columns,
    table_of,
    times,
    verdict,
    within,
    words,
)
from segx.reporting.document import (
    NONE,
    Block,
    Bullets,
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
from segx.results.types import Cell, Parity, Results, Status
from segx.runtimes import Variant, runtime_info
from segx.system.progress import duration

# Batch sizes of a variant that are shown in short.
_MOST_SIZES = 3

# From the best to the worst; None is not known.
_VERDICTS: tuple[Verdict | None, ...] = (None, *VERDICTS)


def bench_document(results: Results, constraints: Constraints | None = None) -> Document:
    """Describe one bench, complete or not.

    The keys of the sections: ``decision``, ``overview`` (a row per variant), ``not-measured``, ``variants`` (a row per
    batch size), ``pipeline``, ``masks``, ``calls``, ``all`` (every cell and every judged mask), ``notes``,
    ``reproduce`` and ``environment``. A section without content is absent.
    """
    sections = (
        _decision(results, constraints),
        _overview(results),
        _not_measured(troubles(results)),
        _variants(results, brief=False),
        _pipeline(results),
        _masks(results),
        _calls(results),
        _all(results),
        Section(key="notes", title="Notes", blocks=_bullets(prose.notes(results)), detail=True),
        Section(key="reproduce", title="Reproduce", blocks=(Command(results.command),), detail=True),
        Section(key="environment", title="Environment", blocks=tuple(_environment(results)), detail=True),
    )
    return Document.of("segx bench", _heading(results), sections)


def terminal_document(results: Results, constraints: Constraints | None = None, *, details: bool = False) -> Document:
    """Describe one bench for a terminal: what must be known, and with ``details`` everything else.

    In short, three batch sizes of each variant are shown, and what this machine cannot run is counted only. Names are
    without the device if all that was measured ran on the same.
    """
    document = bench_document(results, constraints).without("overview", "all", "not-measured")
    found = troubles(results)
    skipped = [trouble for trouble in found if trouble.status == "unavailable"]
    if details or not any(cell.measured for cell in results.cells):
        skipped = []
    replaced = {"variants": _variants(results, brief=not details)}
    if not any(cell.measured for cell in results.cells):
        document = document.without("variants")
    sections = [replaced.get(section.key, section) for section in document.sections]
    shown = [
        dataclasses.replace(
            section,
            detail=section.detail and not details and section.key != "variants",
            title=section.title if details and not section.lead else "",
        )
        for section in sections
    ]
    failed = _not_measured([trouble for trouble in found if trouble not in skipped])
    names = short_names((cell.variant for cell in results.cells if cell.measured), results.cells)
    return Document.of(document.title, document.facts, (*shown, failed)).renamed(names)


def short_names(variants: Iterable[Variant], others: Iterable[Cell] = ()) -> dict[str, str]:
    """Return variant -> its name without the device, if all run on one; also for those of ``others`` on that device."""
    found = set(variants)
    devices = {runtime_info(variant.runtime).device for variant in found}
    if len(devices) != 1:
        return {}
    (device,) = devices
    found |= {cell.variant for cell in others if runtime_info(cell.runtime).device == device}
    return {str(variant): str(variant).replace(f"-{device}", "", 1) for variant in found}


@dataclass(frozen=True)
class Trouble:
    """Cells that went wrong in the same way, and what to do about it."""

    cells: tuple[Cell, ...]
    status: Status
    reason: str
    remedy: str

    @property
    def where(self) -> str:
        """Return ``pytorch-cuda:fp32; onnxruntime-cpu:fp32 batch 4, 8``."""
        return named_cells(self.cells)

    @property
    def told(self) -> str:
        """Return what happened in one line: the status, unless it tells no more than the reason."""
        if self.status in ("unavailable", "failed"):
            return self.reason
        return f"{'masks FAILED' if self.status == 'parity broken' else self.status}: {self.reason}"


def troubles(results: Results) -> list[Trouble]:
    """Return everything that is not ``ok``, grouped by reason."""
    alike: dict[tuple[Status, str, str], list[Cell]] = {}
    for cell in results.cells:
        if cell.status != "ok":
            alike.setdefault((cell.status, cell.reason, cell.remedy), []).append(cell)
    return [Trouble(tuple(cells), *what) for what, cells in alike.items()]


def _heading(results: Results) -> tuple[tuple[str, str], ...]:
    host, spec, model = results.machine, results.model.spec, results.model
    size = f"{spec.in_channels}x{spec.height}x{spec.width}" + (f", {spec.classes} classes" if spec.classes > 1 else "")
    made_of = " ".join(filter(None, (spec.arch, spec.encoder_name)))
    truth = " with true masks" if results.inputs.truth else ""
    devices = [f"{processor(host.cpu)}, {counted(host.cores_usable, 'core')}", *(gpu.name for gpu in host.gpus)]
    if results.options.threads != host.cores_usable:
        devices.append(counted(results.options.threads, "thread"))
    return (
        ("model", f"{made_of}, {size}; {Path(model.name).stem} ({model.weights_sha256[:8]})"),
        ("images", f"{results.inputs.source}{truth}; {spec.pixels}"),
        ("run on", f"{', '.join(devices)}; segx {results.segx}, {', '.join(_extent(results))}"),
    )


def _extent(results: Results) -> list[str]:
    """Return when the bench ran, how long it took, and how much of it was measured unless that is all."""
    sized = [cell for cell in results.cells if cell.status != "unavailable"]
    measured = sum(cell.measured for cell in sized)
    parts = [
        results.created[:16].replace("T", " "),
        duration(results.wall.total) if results.wall else "",
        f"{measured} of {len(sized)} measured" if measured < len(sized) or not measured else "",
        "" if results.complete else "not complete",
    ]
    return [part for part in parts if part]


def _decision(results: Results, constraints: Constraints | None) -> Section:
    decision = decide(results, constraints)
    limits = prose.limits(decision.constraints)
    caution = prose.caution(results)
    blocks: list[Block] = [Paragraph(line, "warning") for line in (caution, *prose.doubts(results)) if line]
    blocks += [Facts((("limits", "; ".join(limits)),))] if limits else []
    excluded = prose.exclusions(decision)
    if decision.pick:
        blocks += [*_bullets(excluded), prose.card(decision.pick, decision, results.reference)]
    else:
        blocks += [Paragraph(excluded[0], "strong"), *_bullets(excluded[1:])]
    return Section(key="decision", title="Recommendation", blocks=tuple(blocks), lead=True)


def _bullets(lines: Sequence[str]) -> tuple[Bullets, ...]:
    return (Bullets(tuple(lines)),) if lines else ()


def _other_scopes(results: Results) -> list[Cell]:
    """Return the cells outside the pipeline scope; a variant that is unavailable as a whole counts among them."""
    return [cell for cell in results.cells if cell.scope != "pipeline" or cell.batch_size is None]


def _by_variant(results: Results, cells: Iterable[Cell]) -> dict[Variant, list[Cell]]:
    """Return the cells of each variant by batch size, the fastest variant first; those without figures come last."""
    found: dict[Variant, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: results.place_of(cell.runtime)):
        found.setdefault(cell.variant, []).append(cell)

    def cost(variant: Variant) -> float:
        best = best_of([cell for cell in found[variant] if cell.measured], results)
        return best.seconds_per_image if best else math.inf

    return {
        variant: sorted(found[variant], key=lambda cell: cell.batch_size or 0) for variant in sorted(found, key=cost)
    }


def _best_cells(results: Results) -> Iterator[tuple[Cell, list[Cell]]]:
    """Yield the best cell of each variant and all that were measured, the fastest variant first."""
    for cells in _by_variant(results, _other_scopes(results)).values():
        measured = [cell for cell in cells if cell.measured]
        if best := best_of(measured, results):
            yield best, measured


def _worst_masks(results: Results, cells: Sequence[Cell]) -> Cell:
    """Return that of the measured cells of a variant whose masks are farthest from the reference's."""

    def distance(cell: Cell) -> tuple[int, int]:
        return _VERDICTS.index(verdict_of(results, cell)), cell.parity.flipped_pixels if cell.parity else 0

    return max(cells, key=distance)


def _verdict_of_all(results: Results, best: Cell, worst: Cell) -> Datum:
    """Return the verdict on the masks at the best batch size, and at another one where it is worse."""
    ours, other = verdict(results, best), verdict(results, worst)
    if _VERDICTS.index(verdict_of(results, worst)) <= _VERDICTS.index(verdict_of(results, best)):
        return ours
    return text(f"{ours.text}; {other.text} at batch {worst.batch_size}", other.style)


def _overview(results: Results) -> Section:
    best_cells = list(_best_cells(results))
    has_quality = bool(results.inputs.truth) and any(str(best.variant) != results.reference for best, _ in best_cells)
    columns = overview_columns(results)
    heads = [Column("variant", numeric=False), *(column for column, _ in columns), Column("masks", numeric=False)]
    heads += [Column("quality", numeric=False)] * has_quality
    rows = []
    for best, measured in best_cells:
        figures = (value(best) for _, value in columns)
        masks = _verdict_of_all(results, best, _worst_masks(results, measured))
        rows.append((text(str(best.variant), "strong"), *figures, masks, *[quality(results, best)] * has_quality))
    table = Table("", tuple(heads), tuple(rows))
    return Section(key="overview", title="All variants, fastest first", blocks=(table,) if rows else ())


def _not_measured(found: Sequence[Trouble]) -> Section:
    fields: list[Field[Trouble]] = [
        words("where", lambda trouble: trouble.where),
        words("what happened", lambda trouble: trouble.told, style="bad"),
        words("what to do", lambda trouble: trouble.remedy),
    ]
    cells = sum(len(trouble.cells) for trouble in found)
    failed = any(trouble.status == "parity broken" for trouble in found)
    title = f"Not measured{', or masks FAILED' if failed else ''} ({cells})"
    return Section(key="not-measured", title=title, blocks=(table_of("", found, fields),) if found else ())


def _variants(results: Results, *, brief: bool) -> Section:
    """Return a row per batch size below a heading per variant; ``brief``: of many sizes the first, best and last."""
    found = _by_variant(results, (cell for cell in _other_scopes(results) if cell.batch_size is not None))
    rows: list[Cell] = []
    groups: dict[int, tuple[Datum, ...]] = {}
    for cells in found.values():
        groups[len(rows)] = _group_heading(results, cells, first=not rows)
        rows += _few(results, cells) if brief else cells
    notes = (_legend(results, rows, brief=brief),) if rows else ()
    table = _cell_table(
        "", rows, [BATCH], [*size_columns(results), *further_columns(results)], groups=groups, notes=notes
    )
    return Section(key="variants", title="Batch sizes", blocks=(table,) if rows else (), detail=True)


def _few(results: Results, cells: Sequence[Cell]) -> list[Cell]:
    if len(cells) <= _MOST_SIZES:
        return list(cells)
    best = best_of([cell for cell in cells if cell.measured], results)
    return [cell for place, cell in enumerate(cells) if place in (0, len(cells) - 1) or cell is best]


def _group_heading(results: Results, cells: Sequence[Cell], *, first: bool) -> tuple[Datum, ...]:
    """Return the variant, its speed relative to PyTorch, its masks and their quality; the first names PyTorch."""
    name = text(str(cells[0].variant), "strong")
    measured = [cell for cell in cells if cell.measured]
    best = best_of(measured, results)
    if best is None:
        return (name,)
    if str(best.variant) == results.reference:
        return (name, text("reference"))
    worst = _worst_masks(results, measured)
    said = [name]
    if (gain := versus_pytorch(best, results)) and best.variant != pytorch_variant(best):
        said.append(
            text(f"as fast{' as PyTorch' * first}" if gain.tied else f"{times(gain.ratio)}{' PyTorch' * first}")
        )
    if worst.parity:
        found, flipped, good = (
            _verdict_of_all(results, best, worst),
            worst.parity.flipped_pixels,
            quality(results, best),
        )
        changed = f" ({flipped:,} px)" if flipped else ""
        as_good = "" if good is NONE else f", {good.text}"
        style = good.style if good.style == "bad" else found.style
        said.append(Datum(f"masks: {found.text}{changed}{as_good}", None, style))
    return tuple(said)


def _legend(results: Results, shown: Sequence[Cell], *, brief: bool) -> str:
    """Explain the signs that occur in the table of batch sizes, and say what is left out in short."""
    skipped = sum(cell.status == "unavailable" for cell in results.cells)
    measured = [cell for cell in shown if cell.measured]
    against = [versus(cell, results) for cell in measured for versus in (versus_batch_1, versus_previous)]
    signs = {
        "=  no difference beyond noise": any(each and each.tied for each in against),
        "?  too few rounds": any(each and each.interval is None for each in against),
        "!  did not settle": not all(map(settled, measured)),
        f"skipped: {skipped} (--details)": brief and skipped > 0,
        "≈  projected": any(not seconds_for(cell, results.images)[1] for cell in measured),
    }
    return "   ".join(sign for sign, occurs in signs.items() if occurs)


def _calls(results: Results) -> Section:
    found = _by_variant(results, (cell for cell in _other_scopes(results) if cell.measured))
    rows = [cell for cells in found.values() for cell in cells]
    starts = itertools.accumulate(map(len, found.values()), initial=0)
    groups = {
        start: (text(str(variant), "strong"), *map(text, filter(None, (prose.memory_slope(cells),))))
        for start, (variant, cells) in zip(starts, found.items(), strict=False)
    }
    table = table_of("", rows, [BATCH, *call_columns(rows)], groups=groups)
    return Section(key="calls", title="Single calls and start", blocks=(table,) if rows else (), detail=True)


def _cell_table(
    caption: str,
    cells: Sequence[Cell],
    names: Sequence[Field[Cell]],
    fields: Sequence[Field[Cell]],
    *,
    groups: Mapping[int, tuple[Datum, ...]] | None = None,
    notes: tuple[str, ...] = (),
) -> Table:
    """Return a row per cell; one without figures has its status as a message."""
    shown = list(names)
    shown += within(lambda cell: cell if cell.measured else None, fields)
    messages = {place: cell.status for place, cell in enumerate(cells) if not cell.measured}
    return table_of(caption, cells, shown, groups=groups, messages=messages, notes=notes)


def _pipeline(results: Results) -> Section:
    found = (cell for cell in results.cells if cell.scope == "pipeline" and cell.batch_size is not None)
    cells = [cell for of_variant in _by_variant(results, found).values() for cell in of_variant]
    table = _cell_table(
        "From image file to mask file; stages in ms per image",
        cells,
        [words("variant", lambda cell: str(forward_variant(cell))), BATCH],
        pipeline_columns(results),
        notes=(
            "of forward: images per second relative to the same variant and batch size in the forward scope.",
            "Stages overlap and are summed over their threads; wait: the engine had nothing to do.",
        ),
    )
    return Section(key="pipeline", title="Pipeline", blocks=(table,) if cells else ())


def _masks(results: Results) -> Section:
    """Return a row per variant, that of its batch size with the most flips; nothing if all masks are identical."""
    most_flips: dict[Variant, tuple[Cell, Parity]] = {}
    for cell in itertools.chain(*_by_variant(results, _other_scopes(results)).values()):
        _, other = most_flips.get(cell.variant, (None, None))
        if cell.parity and not (other and other.flipped_pixels >= cell.parity.flipped_pixels):
            most_flips[cell.variant] = cell, cell.parity
    if not any(parity.truth or parity.flipped_pixels for _, parity in most_flips.values()):
        return Section(key="masks")
    probes = " and by ".join(f"{scientific(probe.max_abs_diff)} ({probe.change})" for probe in results.noise)
    caption = f"Masks against {results.reference}" + (f", whose own logits differ by {probes}" if probes else "")
    table = _mask_table(results, [cell for cell, _ in most_flips.values()], caption)
    return Section(key="masks", title="Masks", blocks=(table,), detail=True)


def _mask_table(results: Results, cells: Sequence[Cell], caption: str) -> Table:
    judged = [cell for cell in cells if cell.parity]
    truth = any(cell.parity.truth for cell in judged if cell.parity)
    fields: list[Field[Cell]] = [
        VARIANT,
        figures("batch", lambda cell: cell.batch_size, form="{}", optional=8),
        (Column("masks", numeric=False), lambda cell: verdict(results, cell)),
        *([(Column("quality", numeric=False), lambda cell: quality(results, cell))] if truth else []),
        *mask_columns(truth=truth, classes=results.model.spec.classes),
    ]
    return table_of(caption, judged, fields)


def _all(results: Results) -> Section:
    """Return every cell, and every judged mask; for forms in which tables can be sorted."""
    names: list[Field[Cell]] = [
        VARIANT,
        (Column("batch"), lambda cell: number(cell.batch_size, "{}") if cell.batch_size else text("all")),
        (Column("status", numeric=False), lambda cell: text(cell.status, "" if cell.status == "ok" else "bad")),
    ]
    lines = sorted(results.cells, key=lambda cell: cell.batch_size is None)
    cells = dataclasses.replace(_cell_table("All cells", lines, names, cell_columns(results)), messages={})
    masks = _mask_table(results, results.cells, f"Masks against {results.reference}, all cells")
    return Section(key="all", title="All results", blocks=(cells, masks) if masks.rows else (cells,), detail=True)


def _environment(results: Results) -> list[Block]:
    """Return everything that the figures depend on."""
    model, spec, machine = vars(results.model), results.model.spec, results.machine
    own = {"memory_limit_bytes": machine.memory_limit_bytes or "none", "load_after": results.load_after}
    described = {"model": str(spec), "threshold": spec.threshold, "preparation of images": spec.preprocessing}
    reference = {name: getattr(results, name) for name in ("reference", "reference_masks", "noise")}
    options = results.options
    groups = {
        "Machine": recorded(vars(machine) | own, "versions"),
        **{f"Peak rates of {peaks.device}": recorded(vars(peaks), "device") for peaks in results.peaks},
        "Work of the network": recorded(vars(results.model.work) if results.model.work else {}),
        "Versions": ({"segx": results.segx} | machine.versions).items(),
        "Model": recorded(described | model, "spec", "work", "arguments"),
        "Images": recorded(vars(results.inputs), "names"),
        "Reference": recorded(reference),
        "Options": recorded(vars(options), *["calibration"] * ("int8" not in options.precisions)),
    }
    facts = (Facts(tuple(pairs), title) for title, pairs in groups.items())
    return [*(block for block in facts if block.pairs), *_engine_facts(results)]


def _engine_facts(results: Results) -> list[Block]:
    """Return a matrix of the settings in force for each engine, as it reports them: a row per variant."""
    first: dict[Variant, Cell] = {}
    for cell in filter(lambda cell: cell.facts, results.cells):
        first.setdefault(cell.variant, cell)
    alike: dict[tuple[str, ...], list[Cell]] = {}
    for cell in first.values():
        alike.setdefault(tuple(cell.facts), []).append(cell)
    return [
        Table(
            f"Settings in force, as reported by {', '.join(dict.fromkeys(cell.runtime for cell in cells))}",
            tuple(Column(title, numeric=False) for title in ("variant", *settings)),
            tuple(tuple(map(text, (str(cell.variant), *cell.facts.values()))) for cell in cells),
        )
        for settings, cells in alike.items()
    ]
