"""The report on one bench."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segx.analysis.figures import verdict_of
from segx.analysis.recommend import Constraints, decide
from segx.masks.agreement import VERDICTS, Verdict
from segx.reporting import prose
from segx.reporting.columns import (
    BATCH,
    VARIANT,
    Field,
    cell_columns,
    digits,
    figures,
    forward_variant,
    gibibytes,
    iou,
    mask_columns,
    memory,
    named_cells,
    overview_columns,
    pipeline_columns,
    quality,
    sparkline,
    table_of,
    verdict,
    within,
    words,
)
from segx.reporting.document import (
    Block,
    Bullets,
    Column,
    Command,
    Document,
    Facts,
    Paragraph,
    Section,
    Table,
    number,
    text,
)
from segx.results.types import Cell, Gpu, Machine, Parity, Results, Status
from segx.runtimes import Variant, runtime_info

# From the best to the worst; None is not known.
_VERDICTS: tuple[Verdict | None, ...] = (None, *VERDICTS)


def bench_document(results: Results, constraints: Constraints | None = None) -> Document:
    """Describe one bench, complete or not.

    The keys of the sections: ``decision``, ``overview`` (a row per variant), ``not-measured``, ``variants`` (a table
    per variant), ``pipeline``, ``masks``, ``all`` (every cell and every judged mask), ``notes``, ``reproduce`` and
    ``environment``. A section without content is absent.
    """
    sections = (
        _decision(results, constraints),
        _overview(results),
        _not_measured(results),
        _variants(results),
        _pipeline(results),
        _masks(results),
        _all(results),
        Section(key="notes", title="Notes", blocks=_bullets(prose.notes(results))),
        Section(key="reproduce", title="Reproduce", blocks=(Command(results.command),), detail=True),
        Section(key="environment", title="Environment", blocks=tuple(_environment(results)), detail=True),
    )
    return Document.of("segx bench", _heading(results), sections)


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


def troubles(results: Results) -> list[Trouble]:
    """Return everything that is not ``ok``, grouped by reason."""
    alike: dict[tuple[Status, str, str], list[Cell]] = {}
    for cell in results.cells:
        if cell.status != "ok":
            alike.setdefault((cell.status, cell.reason, cell.remedy), []).append(cell)
    return [Trouble(tuple(cells), *what) for what, cells in alike.items()]


def _heading(results: Results) -> tuple[tuple[str, str], ...]:
    host, model = results.machine, results.model
    weights = f"{model.name} {model.weights_sha256[:12]}"
    truth = f", true masks: {results.inputs.truth}" if results.inputs.truth else ""
    devices = ", ".join([f"{host.cores_usable} of {host.cores_total} cores", *(gpu.name for gpu in host.gpus)])
    return (
        ("segx", f"{results.segx}, {results.created}" + ("" if results.complete else " (not complete)")),
        ("model", f"{model.spec}, weights {weights}"),
        ("inputs", f"{results.inputs.source}, sha256 {results.inputs.sha256[:12]}{truth}"),
        ("images", model.spec.preprocessing),
        *_reference(results),
        *_calibration(results),
        ("machine", f"{host.cpu}, {devices}"),
    )


def _reference(results: Results) -> tuple[tuple[str, str], ...]:
    masks = results.reference_masks
    if masks is None:
        return ()
    truth = "" if masks.truth_iou is None else f", IoU with the true masks {iou(masks.truth_iou)}"
    blank = f", blank masks in {masks.empty + masks.full} of {masks.images} images" if masks.empty + masks.full else ""
    return (("reference", f"{results.reference}{truth}{blank}"),)


def _calibration(results: Results) -> tuple[tuple[str, str], ...]:
    if "int8" not in results.options.precisions:
        return ()
    images = results.options.calibration
    return (("int8", f"calibrated on {'generated scenes' if images is None else f'the images of {images}'}"),)


def _decision(results: Results, constraints: Constraints | None) -> Section:
    decision = decide(results, constraints)
    limits = prose.limits(decision.constraints)
    caution = prose.caution(results)
    blocks: list[Block] = [Paragraph(line, "warning") for line in (caution, *prose.doubts(results)) if line]
    blocks += [Facts((("limits", "; ".join(limits)),))] if limits else []
    blocks += prose.cards(decision)
    excluded = prose.exclusions(decision)
    if not decision.picks:
        blocks.append(Paragraph(excluded.pop(0), "strong"))
    title = "Recommendation" + (" (an order, not numbers)" if caution and decision.picks else "")
    return Section(key="decision", title=title, blocks=(*blocks, *_bullets(excluded)), lead=True)


def _bullets(lines: Sequence[str]) -> tuple[Bullets, ...]:
    return (Bullets(tuple(lines)),) if lines else ()


def _other_scopes(results: Results) -> list[Cell]:
    """Return the cells outside the pipeline scope; a variant that is unavailable as a whole counts among them."""
    return [cell for cell in results.cells if cell.scope != "pipeline" or cell.batch_size is None]


def _by_variant(results: Results, cells: Iterable[Cell]) -> list[tuple[Variant, list[Cell]]]:
    """Return the cells of each variant, in the order in which the runtimes were requested."""
    found: dict[Variant, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: results.place_of(cell.runtime)):
        found.setdefault(cell.variant, []).append(cell)
    return list(found.items())


def _overview(results: Results) -> Section:
    sizes = results.options.batch_sizes
    span = f"{sizes[0]}-{sizes[-1]}" if len(sizes) > 1 else f"batch {sizes[0]}"
    columns = overview_columns(results)
    rows = []
    for variant, _ in _by_variant(results, _other_scopes(results)):
        cells = [results.cell(variant, size) for size in sizes]
        if measured := [cell for cell in cells if cell]:
            best = min(measured, key=lambda cell: cell.seconds_per_image)
            bars = sparkline([1 / cell.seconds_per_image if cell else math.nan for cell in cells])
            worst = max(measured, key=lambda cell: _VERDICTS.index(verdict_of(results, cell)))
            filled = (value(best) for _, value in columns)
            judged = (verdict(results, worst), *([quality(results, worst)] if results.inputs.truth else []))
            rows.append((text(str(variant), "strong"), text(bars), *filled, *judged))
    heads = (
        Column("variant", numeric=False),
        Column(span, numeric=False, about="images per second by batch size, as bars from zero", optional=2),
        *(column for column, _ in columns),
        Column("masks", numeric=False),
        *([Column("quality", numeric=False, optional=4)] if results.inputs.truth else []),
    )
    table = Table("Images per second by batch size as bars from zero, and the best of each variant", heads, tuple(rows))
    return Section(key="overview", title="All variants", blocks=(table,) if rows else ())


def _not_measured(results: Results) -> Section:
    fields: list[Field[Trouble]] = [
        words("where", lambda trouble: trouble.where),
        words("status", lambda trouble: trouble.status, style="bad"),
        words("reason", lambda trouble: trouble.reason),
        words("remedy", lambda trouble: trouble.remedy),
    ]
    table = table_of("What could not be measured, or must not be deployed", troubles(results), fields)
    return Section(key="not-measured", title="Failed or not measured", blocks=(table,) if table.rows else ())


def _variants(results: Results) -> Section:
    others = _other_scopes(results)
    most_runs = max((len(cell.samples_s) for cell in others if cell.measured), default=0)
    fields = cell_columns(results, most_runs=most_runs)
    found = _by_variant(results, (cell for cell in others if cell.batch_size is not None))
    tables = tuple(_variant_table(variant, cells, results, fields) for variant, cells in found)
    return Section(key="variants", title="Batch sizes", blocks=tables)


def _variant_table(variant: Variant, cells: Sequence[Cell], results: Results, fields: Sequence[Field[Cell]]) -> Table:
    titles = {"time": f"{results.images} images"}
    if runtime_info(variant.runtime).device == "cuda":
        titles["memory"] = "GPU memory"
    measured = [cell for cell in cells if cell.measured]
    return _cell_table(
        ": ".join(filter(None, (str(variant), _conditions(measured)))),
        cells,
        [BATCH],
        [(dataclasses.replace(head, title=titles.get(head.title, head.title)), value) for head, value in fields],
        prose.below_variant(measured),
    )


def _cell_table(
    caption: str,
    cells: Sequence[Cell],
    names: Sequence[Field[Cell]],
    fields: Sequence[Field[Cell]],
    notes: tuple[str, ...] = (),
) -> Table:
    """Return a row per cell; one without figures has its status as a message."""
    shown = list(names)
    shown += within(lambda cell: cell if cell.measured else None, fields)
    messages = {place: cell.status for place, cell in enumerate(cells) if not cell.measured}
    return table_of(caption, cells, shown, messages=messages, notes=notes)


def _conditions(measured: Sequence[Cell]) -> str:
    """Return how a variant ran, as its engine reported."""
    if not measured:
        return ""
    first = measured[0]
    threads = first.facts.get("threads", "?")
    tf32 = f"TF32 {first.facts['tf32']}, " if "tf32" in first.facts else ""
    arena = ", low memory profile" if first.facts.get("memory arena") == "off" else ""
    return f"{tf32}{threads} thread{'s' * (threads != '1')}{arena}, scope {first.scope}"


def _pipeline(results: Results) -> Section:
    found = (cell for cell in results.cells if cell.scope == "pipeline" and cell.batch_size is not None)
    cells = [cell for _, of_variant in _by_variant(results, found) for cell in of_variant]
    table = _cell_table(
        "From image file to mask file; stages in ms per image",
        cells,
        [words("variant", lambda cell: str(forward_variant(cell))), BATCH],
        pipeline_columns(results),
        (
            "of forward: images per second relative to the same variant and batch size in the forward scope.",
            "Stages overlap and are summed over their threads; wait: the engine had nothing to do.",
        ),
    )
    return Section(key="pipeline", title="Pipeline", blocks=(table,) if cells else ())


def _masks(results: Results) -> Section:
    """Return a row per variant, that of its batch size with the most flips; nothing if all masks are identical."""
    most_flips: dict[Variant, tuple[Cell, Parity]] = {}
    for cell in _other_scopes(results):
        _, other = most_flips.get(cell.variant, (None, None))
        if cell.parity and not (other and other.flipped_pixels >= cell.parity.flipped_pixels):
            most_flips[cell.variant] = cell, cell.parity
    if not any(parity.truth or parity.flipped_pixels for _, parity in most_flips.values()):
        return Section(key="masks")
    probes = ", ".join(f"{probe.max_abs_diff:.1e} ({probe.change})" for probe in results.noise)
    caption = f"Masks against {results.reference}" + (f", whose own logits differ by {probes}" if probes else "")
    table = _mask_table(results, [cell for cell, _ in most_flips.values()], caption)
    return Section(key="masks", title="Masks", blocks=(table,))


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
    cells = dataclasses.replace(_cell_table("All cells", results.cells, names, cell_columns(results)), messages={})
    masks = _mask_table(results, results.cells, f"Masks against {results.reference}, all cells")
    return Section(key="all", title="All results", blocks=(cells, masks) if masks.rows else (cells,), detail=True)


def _environment(results: Results) -> list[Block]:
    """Return everything that the figures depend on."""
    model, options = results.model, results.options
    files = {
        "model": str(model.spec),
        "threshold": f"{model.spec.threshold:g}",
        "checkpoint": model.checkpoint,
        "SHA-256 of the weights": model.weights_sha256,
        "exported file": model.onnx,
        "SHA-256 of the exported file": model.onnx_sha256,
        **{f"{form} file {made.path}": made.sha256 for form, made in model.derived.items()},
        "images": results.inputs.source,
        "SHA-256 of the images": results.inputs.sha256,
        "true masks": results.inputs.truth,
        "reference": results.reference,
        **{
            f"noise of the reference, {probe.change}": (
                f"logits differ by {probe.max_abs_diff:.1e}, {probe.flipped_pixels} pixels flip"
            )
            for probe in results.noise
        },
    }
    machine = _machine_facts(results.machine)
    if results.load_after is not None:
        machine["load after the bench"] = f"{results.load_after:.2f}"
    blocks = [
        _facts("Machine", machine),
        _facts("Peak rates of the machine, and work of the network", _roofline(results)),
        _facts("Versions", {"segx": results.segx, **results.machine.versions}),
        _facts("Model and images", files),
        _facts("Options", {name.replace("_", " "): _plain(value) for name, value in vars(options).items()}),
    ]
    return [*(block for block in blocks if block.pairs), *_engine_facts(results)]


def _machine_facts(machine: Machine) -> dict[str, str]:
    """Return everything known about a machine: label and text, empty if the system does not tell."""
    limit, load = machine.memory_limit_bytes, machine.load_average_1min
    frequencies = (machine.frequency_mhz, machine.frequency_max_mhz)
    frequency, highest = ("" if mhz is None else f"{mhz:.0f} MHz" for mhz in frequencies)
    return {
        "processor": machine.cpu,
        "instruction sets": ", ".join(machine.cpu_flags),
        "cores": f"{machine.cores_usable} usable of {machine.cores_total}",
        "CPU quota": "none" if machine.cpu_quota is None else f"{machine.cpu_quota:g} cores",
        "frequency": frequency,
        "highest frequency": highest,
        "governor": machine.governor,
        "memory": gibibytes(machine.memory_total_bytes),
        "memory free": gibibytes(machine.memory_available_bytes),
        "memory limit": "none" if limit is None else gibibytes(limit),
        "load": "" if load is None else f"{load:.2f}",
        "system": machine.system,
        "Python": machine.python,
        "git commit": machine.git_commit,
        **{f"GPU {gpu.name}": _gpu_facts(gpu) for gpu in machine.gpus},
        **{f"variable {name}": value for name, value in machine.variables.items()},
    }


def _gpu_facts(gpu: Gpu) -> str:
    """Return what is known about a GPU, on one line."""
    known = (
        f"{gpu.memory_bytes / 2**30:.0f} GiB",
        f"driver {gpu.driver}",
        gpu.compute_capability and f"compute capability {gpu.compute_capability}",
        gpu.clock_mhz is not None and f"clock {gpu.clock_mhz:.0f} MHz",
        gpu.max_clock_mhz is not None and f"up to {gpu.max_clock_mhz:.0f} MHz",
        gpu.power_limit_w is not None and f"power limit {gpu.power_limit_w:.0f} W",
        gpu.temperature_c is not None and f"{gpu.temperature_c:.0f} °C",
    )
    return ", ".join(fact for fact in known if fact)


def _roofline(results: Results) -> dict[str, str]:
    if not results.peaks:
        return {}
    rows: dict[str, str] = {}
    for peaks in results.peaks:
        for precision, operations in peaks.operations_per_s.items():
            rows[f"{peaks.device}, {precision}"] = f"{digits(operations / 1e9)} G operations/s"
        rows |= {f"{peaks.device}, {precision}": f"not measured: {why}" for precision, why in peaks.missing.items()}
        rows[f"{peaks.device}, copying"] = f"{digits(peaks.copy_bytes_per_s / 1e9)} GB/s, read and written"
        rows[f"{peaks.device}, method"] = peaks.method
    if work := results.model.work:
        rows["network, one image"] = f"{digits(work.operations / 1e9)} G operations in {work.operators} operators"
        rows["network, weights"] = memory(work.weight_bytes)
        rows["network, inputs and outputs of its operators"] = f"{memory(work.activation_bytes)} per image"
    return rows


def _engine_facts(results: Results) -> list[Block]:
    """Return the settings in force in each variant, read back from its engine."""
    first: dict[str, Cell] = {}
    for cell in results.cells:
        if cell.facts:
            first.setdefault(str(cell.variant), cell)
    columns = tuple(Column(title, numeric=False) for title in ("variant", "setting", "value"))
    rows = tuple(tuple(map(text, (variant, *fact))) for variant, cell in first.items() for fact in cell.facts.items())
    return [Table("Settings in force, as the engines report them", columns, rows)] if rows else []


def _facts(title: str, values: Mapping[str, Any]) -> Facts:
    return Facts(tuple((name, str(value)) for name, value in values.items() if value not in (None, "")), title)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
