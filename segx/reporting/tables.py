"""The tables of the page that stand for themselves: every cell, masks, failures, environment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from segx.analysis import stats
from segx.analysis.figures import needed_bytes, verdict_of
from segx.analysis.ratios import Speedup, versus_batch_1, versus_previous, versus_pytorch
from segx.reporting.document import BLANK, Column, Datum, Table, number, text
from segx.reporting.units import MIB, digits, memory, share
from segx.results.types import Cell, Results

_CELL_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("status", numeric=False),
    Column("images/s"),
    Column("ms/image"),
    Column("ms/call", about="median"),
    Column("± %", about="how far the 95 % interval of the median reaches"),
    Column("memory MiB", about="peak of model and inference, above the imported libraries"),
    Column("× batch 1", about="images per second, relative to batch 1; tied where the 95 % interval spans 1"),
    Column("× previous", about="likewise, relative to the next smaller batch size"),
    Column("× PyTorch", about="likewise, relative to PyTorch eager on the same device"),
    Column("flipped px", about="mask pixels that differ from the reference's"),
    Column("worst IoU", about="rounded down, so that 1.0000 means the same"),
    Column("masks", numeric=False),
)


def all_cells(results: Results) -> Table:
    """A row per cell; one that failed keeps its row."""
    return Table("Every cell", _CELL_COLUMNS, tuple(_cell_row(cell, results) for cell in results.cells))


def _cell_row(cell: Cell, results: Results) -> tuple[Datum, ...]:
    blank = Datum(BLANK, None)
    what = (text(str(cell.variant)), number(cell.batch_size, "{}"), text(cell.status))
    if not cell.measured:
        return (*what, *[blank] * (len(_CELL_COLUMNS) - len(what)))
    reach, parity = stats.relative_half_width(cell.samples_s), cell.parity
    needed = needed_bytes(cell)
    return (
        *what,
        number(1 / cell.seconds_per_image, digits(1 / cell.seconds_per_image, 4)),
        number(cell.seconds_per_image * 1e3, digits(cell.seconds_per_image * 1e3, 4)),
        number(cell.median_s * 1e3, digits(cell.median_s * 1e3, 4)),
        number(None if reach is None else reach * 100, "{:.1f}"),
        number(None if needed is None else needed / MIB, "{:.0f}"),
        *(_ratio(versus(cell, results)) for versus in (versus_batch_1, versus_previous, versus_pytorch)),
        number(parity.flipped_pixels if parity else None, "{}"),
        _iou(parity.worst_iou) if parity else blank,
        text(verdict_of(results, cell) or BLANK),
    )


def _ratio(against: Speedup | None) -> Datum:
    if against is None:
        return Datum(BLANK, None)
    if against.interval is None:
        return Datum(f"{against.ratio:.2f} ±?", against.ratio)
    reach = max(against.interval.high - against.ratio, against.ratio - against.interval.low)
    return Datum("tied" if against.tied else f"{against.ratio:.2f} ±{reach:.2f}", against.ratio)


def _iou(value: float) -> Datum:
    return Datum(f"{int(value * 10_000) / 10_000:.4f}", value)


_MASK_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("masks", numeric=False),
    Column("flipped px"),
    Column("benign", about="share of them where the reference wavers itself"),
    Column("mean IoU"),
    Column("worst IoU"),
    Column("mean Dice"),
    Column("max |Δ|", about="largest difference of logits, in units of the reference's logit range"),
    Column("off boundary px", about="how far the farthest flip lies from the boundary of the reference's mask"),
    Column("IoU to truth"),
    Column(
        "loss", about="IoU to truth of the reference less that of the variant; none where its 95 % interval holds 0"
    ),
    Column("worst image", numeric=False),
)


def masks(results: Results) -> Table | None:
    """A row per judged cell; None where none was judged."""
    rows = []
    for cell in results.cells:
        if (parity := cell.parity) is None:
            continue
        flips, truth = parity.flipped_pixels, parity.truth
        lossless = truth is not None and truth.loss_low <= 0.0 <= truth.loss_high
        rows.append(
            (
                text(str(cell.variant)),
                number(cell.batch_size, "{}"),
                text(verdict_of(results, cell) or BLANK),
                number(flips, "{}"),
                Datum(share(parity.benign_flips / flips), parity.benign_flips / flips) if flips else Datum(BLANK, None),
                _iou(parity.mean_iou),
                _iou(parity.worst_iou),
                _iou(parity.mean_dice),
                number(parity.relative_diff, "{:.1e}"),
                number(parity.flip_distance_px, "{:.1f}"),
                _iou(truth.iou) if truth else Datum(BLANK, None),
                Datum("none" if lossless else f"{truth.loss:+.4f}", truth.loss) if truth else Datum(BLANK, None),
                text(parity.worst_image if flips else BLANK),
            )
        )
    return Table(f"Masks against {results.reference}", _MASK_COLUMNS, tuple(rows)) if rows else None


_TROUBLE_COLUMNS = (
    Column("variant", numeric=False),
    Column("batch"),
    Column("what happened", numeric=False),
    Column("reason", numeric=False),
    Column("what to do", numeric=False),
)


def troubles(results: Results) -> Table | None:
    """A row per cell that failed, was skipped or broke its masks; None where there is none."""
    rows = tuple(
        (
            text(str(cell.variant)),
            number(cell.batch_size, "{}") if cell.batch_size else text("all"),
            text(cell.status),
            text(cell.reason),
            text(cell.remedy),
        )
        for cell in results.cells
        if cell.status != "ok"
    )
    return Table("What could not be measured, or must not be shipped", _TROUBLE_COLUMNS, rows) if rows else None


def environment(results: Results) -> list[Table]:
    """Everything that the figures depend on: machine, versions, model and inputs, options, facts of each variant."""
    machine, model, options = results.machine, results.model, results.options
    host = {
        "CPU": machine.cpu,
        "instruction sets": ", ".join(machine.cpu_flags),
        "processors": f"{machine.cores_usable} usable of {machine.cores_total}",
        "CPU quota": machine.cpu_quota and f"{machine.cpu_quota:g} processors",
        "frequency": machine.frequency_mhz and f"{machine.frequency_mhz:.0f} MHz",
        "highest frequency": machine.frequency_max_mhz and f"{machine.frequency_max_mhz:.0f} MHz",
        "governor": machine.governor,
        "memory": memory(machine.memory_total_bytes),
        "of that free": memory(machine.memory_available_bytes),
        "memory limit": machine.memory_limit_bytes and memory(machine.memory_limit_bytes),
        "load before": machine.load_average_1min is not None and f"{machine.load_average_1min:.2f}",
        "load after": results.load_after is not None and f"{results.load_after:.2f}",
        "system": machine.system,
        "Python": machine.python,
        "git commit": machine.git_commit,
        **{f"variable {name}": value for name, value in machine.variables.items()},
    }
    for gpu in machine.gpus:
        host[f"GPU {gpu.name}"] = _named(
            memory=memory(gpu.memory_bytes),
            driver=gpu.driver,
            compute_capability=gpu.compute_capability,
            clock_mhz=gpu.clock_mhz,
            max_clock_mhz=gpu.max_clock_mhz,
            power_limit_w=gpu.power_limit_w,
            temperature_c=gpu.temperature_c,
        )
    digests = {
        "model": str(model.spec),
        "threshold": f"{model.spec.threshold:g}",
        "checkpoint": model.checkpoint,
        "its SHA-256": model.weights_sha256,
        "exported file": model.onnx,
        "SHA-256 of that": model.onnx_sha256,
        **{f"made of it: {name}": digest for name, digest in model.derived.items()},
        "images": results.inputs.source,
        "SHA-256 of them": results.inputs.sha256,
        "true masks": results.inputs.truth,
        "reference": results.reference,
        **{
            f"reference against itself, {probe.change}": f"logits differ by {probe.max_abs_diff:.1e}, "
            f"{probe.flipped_pixels} pixels flip"
            for probe in results.noise
        },
    }
    return [
        _pairs("Machine", host),
        *([_pairs("What the devices and the network amount to", _at_best(results))] if results.peaks else []),
        _pairs("Versions", {"segx": results.segx, **machine.versions}),
        _pairs("Model and images", digests),
        _pairs("Options", {name.replace("_", " "): _plain(value) for name, value in vars(options).items()}),
        _facts(results),
    ]


def _at_best(results: Results) -> dict[str, Any]:
    """What ceilings are made of."""
    rows: dict[str, Any] = {}
    for peaks in results.peaks:
        for precision, rate in peaks.operations_per_s.items():
            rows[f"{peaks.device}, {precision}"] = f"{digits(rate / 1e9)} G operations/s"
        rows |= {f"{peaks.device}, {precision}": f"not measured: {why}" for precision, why in peaks.missing.items()}
        rows[f"{peaks.device}, copying"] = f"{digits(peaks.copy_bytes_per_s / 1e9)} GB/s, read and written"
        rows[f"{peaks.device}, method"] = peaks.method
    if work := results.model.work:
        rows["network, one image"] = f"{digits(work.operations / 1e9)} G operations in {work.operators} operators"
        rows["network, weights"] = memory(work.weight_bytes)
        rows["network, inputs and outputs of its operators"] = f"{memory(work.activation_bytes)} an image"
    return rows


def _facts(results: Results) -> Table:
    """What was really in force in each variant, read back from its engine."""
    first: dict[str, Cell] = {}
    for cell in results.cells:
        if cell.facts:
            first.setdefault(str(cell.variant), cell)
    rows = (
        (text(variant), text(name), text(value))
        for variant, cell in first.items()
        for name, value in cell.facts.items()
    )
    columns = tuple(Column(title, numeric=False) for title in ("variant", "fact", "value"))
    return Table("What was in force, as the engines say", columns, tuple(rows))


def _pairs(caption: str, values: dict[str, Any]) -> Table:
    columns = (Column("what", numeric=False), Column("value", numeric=False))
    rows = ((text(name), text(str(value))) for name, value in values.items() if value not in (None, "", False))
    return Table(caption, columns, tuple(rows))


def _named(**values: Any) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value not in (None, ""))


def _plain(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
