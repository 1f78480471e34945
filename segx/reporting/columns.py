"""How figures are displayed: digits, units, and the columns of tables. No other file formats a figure."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from segx.analysis import stats
from segx.analysis.figures import (
    Speedup,
    displayed_rate,
    half_width,
    needed_bytes,
    pytorch_base,
    pytorch_variant,
    quality_of,
    seconds_for,
    settled,
    verdict_of,
    versus,
    versus_batch_1,
    versus_previous,
    versus_pytorch,
)
from segx.analysis.stats import Interval
from segx.masks.agreement import Quality
from segx.masks.metrics import MIN_IMAGES
from segx.reporting.document import BLANK, NONE, Column, Datum, Style, Table, number, text
from segx.results.types import STAGES, Cell, Parity, Results, TruthScore
from segx.runtimes import Variant, runtime_info
from segx.system.text import rounded_down

KIB = 2**10
MIB = 2**20
GIB = 2**30

_BESIDES_NAME = re.compile(r"\((R|TM)\)| (CPU|Processor)\b| @ [^,]*| \d+-Core\b", re.IGNORECASE)

Record = TypeVar("Record")
Part = TypeVar("Part")
# A column and how its value is found.
Field = tuple[Column, Callable[[Record], Datum]]

_VERDICT_STYLES: Mapping[str | None, Style] = {"identical": "good", "small changes": "warning", "FAILED": "bad"}
_QUALITY_STYLES: Mapping[Quality, Style] = {"no worse": "good", "worse": "bad", "unclear": ""}

# Smaller ratios have two significant digits; the format g writes larger numbers with an exponent.
_SMALL_RATIO, _LARGE = 0.1, 9999.5

# Eight heights; then what failed, and what was not tried.
_BARS, _FAILED, _MISSING = "▁▂▃▄▅▆▇█", "×", "·"


def digits(value: float, count: int = 3) -> str:
    """Return a number with ``count`` significant digits, without an exponent between 0.0001 and a million.

    Large numbers keep all digits before the point: 1234.5 is 1,234.
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 6:
        return f"{value:.{count - 1}e}"
    return f"{value:,.{max(0, count - 1 - size)}f}"


def seconds(value: float, *, exact: bool = False) -> str:
    """Return a duration in the unit that fits it: ``8.47 ms``, or ``8.472 ms``."""
    unit, name = (1e-6, "µs") if value < 1e-3 else (1e-3, "ms") if value < 1 else (1, "s")
    return f"{_rounded(value / unit, exact=exact)} {name}"


def memory(count: float, *, exact: bool = False) -> str:
    """Return an amount of memory in the unit that fits it: ``143 MiB``, or ``142.6 MiB``."""
    unit, name = (KIB, "KiB") if 0 < count < MIB else (MIB, "MiB") if count < GIB else (GIB, "GiB")
    return f"{_rounded(count / unit, exact=exact)} {name}"


def _rounded(value: float, *, exact: bool) -> str:
    return f"{value:.4g}" if exact and value < _LARGE else digits(value)


def processor(name: str) -> str:
    """Return the name of a processor in short: ``Intel Xeon``."""
    return " ".join(_BESIDES_NAME.sub("", name).split())


def machine_name(results: Results) -> str:
    """Return the machine of a bench in a few words: ``Intel Xeon, 2 cores``, after the GPUs if any was used."""
    machine = results.machine
    on_gpu = any(runtime_info(cell.runtime).device == "cuda" for cell in results.cells if cell.measured)
    cores = f"{processor(machine.cpu)}, {counted(machine.cores_usable, 'core')}"
    return " and ".join([*(gpu.name for gpu in machine.gpus if on_gpu), cores])


def scientific(value: float) -> str:
    """Return a number with two significant digits and an exponent: ``5.7e-06``; 0 is ``0``."""
    return f"{value:.1e}" if value else "0"


# Labels of recorded fields that their own names do not describe well enough.
_LABELS = {
    "activation_bytes": "inputs and outputs of its operators, one image",
    "calibration": "int8 calibrated on",
    "change": "",
    "copy_bytes_per_s": "copying, read and written",
    "cpu": "processor",
    "cpu_flags": "instruction sets",
    "cpu_quota": "CPU quota",
    "derived": "file for",
    "engine_options": "option",
    "has_margin": "meets the limits by a margin:",
    "held_out_images": "held-out images",
    "load_after": "load average after the bench",
    "max_abs_diff": "largest difference of logits",
    "missing": "not measured:",
    "name": "",
    "noise": "against itself",
    "operations": "operations, one image",
    "operations_per_s": "operations,",
    "path": "",
    "reference_masks": "masks",
    "variables": "variable",
    "weight_bytes": "weights",
}
_SPELLED = {"cpu": "CPU", "gpus": "GPU", "iou": "IoU", "onnx": "exported file", "python": "Python", "sha256": "SHA-256"}
# Text for None in fields where it does not mean unknown.
_NONE_MEANS = {"calibration": "generated scenes", "cpu_quota": "none"}
# How numbers are written, by the ending of the field's name; the first that fits.
_BY_ENDING: dict[str, Callable[[float], str]] = {
    "operations_per_s": lambda value: f"{digits(value / 1e9)} G/s",
    "_bytes_per_s": lambda value: f"{digits(value / 1e9)} GB/s",
    "_s": lambda value: f"{value:g} s",
    "operations": lambda value: f"{digits(value / 1e9)} G",
    "_bytes": memory,
    "_mhz": lambda value: f"{value:.0f} MHz",
    "_w": lambda value: f"{value:.0f} W",
    "_c": lambda value: f"{value:.0f} °C",
    "_diff": scientific,
    "_1min": lambda value: f"{value:.2f}",
    "load_after": lambda value: f"{value:.2f}",
    "quota": lambda value: f"{value:g} cores",
}


def recorded(fields: Mapping[str, Any], *without: str) -> Iterator[tuple[str, str]]:
    """Yield label and text of each known field of a record; mappings and lists of records give a pair per entry.

    Args:
        fields: name -> value, as ``vars`` returns them.
        without: names of fields to leave out.
    """
    for name, value in fields.items():
        label = _label(name)
        if name in without:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{label} {key}", told) for key, each in value.items() if (told := _told(name, each)))
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            yield from ((label, _told(name, each)) for each in value)
        elif told := _told(name, value):
            yield label, told


def _label(name: str) -> str:
    ending = next(filter(name.endswith, _BY_ENDING), "")
    words = name.removesuffix(ending).split("_")
    return _LABELS.get(name, " ".join(_SPELLED.get(word, word) for word in words))


def _told(name: str, value: Any) -> str:
    """Return the value of a field on one line; empty if it is unknown."""
    if value is None:
        return _NONE_MEANS.get(name, "")
    if dataclasses.is_dataclass(value):
        return ", ".join(f"{label} {told}".strip() for label, told in recorded(vars(value)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(_told(name, each) for each in value)
    if isinstance(value, (int, float)) and (ending := next(filter(name.endswith, _BY_ENDING), "")):
        return _BY_ENDING[ending](value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def between(interval: Interval | None, unit: float = 1.0) -> str:
    """Return an interval in multiples of 1/``unit``."""
    if interval is None:
        return "too few runs for an interval"
    return f"{digits(interval.low * unit)} to {digits(interval.high * unit)}"


def times(ratio: float) -> str:
    """Return a ratio: ``1.05x``, ``4.2x`` or ``23x``; a small one with two significant digits."""
    if ratio < _SMALL_RATIO:
        return f"{digits(ratio, 2)}x"
    return f"{ratio:.{2 if ratio < 1.995 else 1 if ratio < 9.95 else 0}f}x"  # the limits are rounded to 2.0x and 10x


def percent(value: float) -> str:
    """Return a share as a percentage with two significant digits: ``0.013%``."""
    return f"{digits(value * 100, 2)}%"


def share(value: float, places: int = 1) -> str:
    """Return a share as a percentage: ``12.3%``."""
    return f"{value * 100:.{places}f}%"


def iou(value: float) -> str:
    """Return an IoU with four places, outside the noise, rounded down: only masks without such flips have 1.0000."""
    return rounded_down(value, 4)


def spread(interval: Interval | None) -> str:
    """Return the interval of a ratio: ``1.12–1.19``."""
    if interval is None:
        return "?"
    return "–".join(f"{end:.2f}" if end >= _SMALL_RATIO else digits(end, 2) for end in (interval.low, interval.high))


def counted(count: int, noun: str) -> str:
    """Return ``1 image`` or ``2,000 images``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def literal(words: str) -> str:
    """Escape text for Plotly, which interprets some tags in its texts."""
    return html.escape(words, quote=False)


def sparkline(values: Sequence[float | None]) -> str:
    """Return a bar of eight heights per value, from zero to the largest.

    Args:
        values: not negative; NaN for what failed, drawn as a cross, and None for what was not tried, drawn as a dot.
    """
    highest = max((value for value in values if value is not None and math.isfinite(value)), default=0.0)

    def bar(value: float | None) -> str:
        if value is None:
            return _MISSING
        if math.isnan(value):
            return _FAILED
        if value >= highest:
            return _BARS[-1] if highest > 0 else _BARS[0]
        return _BARS[int(len(_BARS) * value / highest)]

    return "".join(map(bar, values))


def named_cells(cells: Sequence[Cell], before: str = "batch") -> str:
    """Return ``onnxruntime-cpu:fp32, openvino-cpu:fp32 batch 1, 4; …``, with ``before`` before the batch sizes."""
    sizes: dict[Variant, list[int]] = {}
    for cell in cells:
        sizes.setdefault(cell.variant, []).extend([] if cell.batch_size is None else [cell.batch_size])
    alike: dict[str, list[str]] = {}
    for variant, listed in sizes.items():
        alike.setdefault(", ".join(map(str, sorted(listed))), []).append(str(variant))
    return "; ".join(", ".join(names) + (f" {before} {listed}" if listed else "") for listed, names in alike.items())


def verdict(results: Results, cell: Cell | None) -> Datum:
    """Return the verdict on the masks of a cell; ``reference`` if it is the reference and repeats its own masks."""
    if cell is None or cell.parity is None:
        return NONE
    if str(cell.variant) == results.reference and not cell.parity.flipped_pixels:
        return text("reference")
    found = verdict_of(results, cell)
    return text(found, _VERDICT_STYLES.get(found, "")) if found else text("not judged", "warning")


def quality(results: Results, cell: Cell) -> Datum:
    """Return whether the masks of a cell are as good as the reference's, by the ground truth."""
    if str(cell.variant) == results.reference:
        return NONE
    found = quality_of(results, cell)
    return text(quality_words(found, cell.parity), _QUALITY_STYLES[found]) if found and cell.parity else NONE


def quality_words(found: Quality, parity: Parity) -> str:
    """Return a quality with what belongs to it: by how much worse, or why unclear."""
    if found == "worse" and parity.truth:
        return f"worse by {digits(parity.truth.loss, 2)}"
    few = found == "unclear" and parity.images < MIN_IMAGES
    return f"unclear ({counted(parity.images, 'image')})" if few else found


def needed_memory(cell: Cell) -> Datum:
    """Return the peak memory of model and inference in whole MiB, and from 10 GiB on in GiB."""
    needed = needed_bytes(cell)
    if needed is None:
        return NONE
    return Datum(memory(needed) if needed >= 10 * GIB else f"{needed / MIB:,.0f} MiB", needed)


def images_per_s(cell: Cell) -> Datum:
    """Return the images per second of a measured cell."""
    return Datum(digits(rate := displayed_rate(cell)), rate)


def speedup(against: Speedup | None) -> Datum:
    """Return ``1.05x``, ``=`` if the interval includes 1, ``1.05x?`` if there is none, a dash without a base."""
    if against is None:
        return NONE
    if against.tied:
        return Datum("=", against.ratio, "muted")
    return Datum(f"{times(against.ratio)}{'' if against.interval else '?'}", against.ratio)


# Columns


def table_of(
    caption: str,
    records: Iterable[Record],
    fields: Sequence[Field[Record]],
    *,
    groups: Mapping[int, tuple[Datum, ...]] | None = None,
    messages: Mapping[int, str] | None = None,
    notes: tuple[str, ...] = (),
) -> Table:
    """Return a table with a row per record and a column per field."""
    rows = tuple(tuple(value(record) for _, value in fields) for record in records)
    return Table(caption, tuple(column for column, _ in fields), rows, groups or {}, messages or {}, notes)


def group_headings(variants: Sequence[Variant]) -> dict[int, tuple[Datum, ...]]:
    """Return the headings of groups of rows: the variant, above the first row of each."""
    return {
        i: (text(str(variant), "strong"),) for i, variant in enumerate(variants) if i == 0 or variant != variants[i - 1]
    }


def within(part: Callable[[Record], Part | None], fields: Iterable[Field[Part]]) -> list[Field[Record]]:
    """Return columns of a part of each record, blank where the record lacks it."""

    def of_part(value: Callable[[Part], Datum]) -> Callable[[Record], Datum]:
        return lambda record: NONE if (found := part(record)) is None else value(found)

    return [(column, of_part(value)) for column, value in fields]


def words(
    title: str, value: Callable[[Record], str | None], about: str = "", *, style: Style = "", optional: int = 0
) -> Field[Record]:
    """Return a column of text."""

    def shown(record: Record) -> Datum:
        found = value(record)
        return NONE if found is None else text(found, style)

    return Column(title, numeric=False, about=about, optional=optional), shown


def figures(
    title: str,
    value: Callable[[Record], float | None],
    about: str = "",
    *,
    form: str | Callable[[float], str] = "",
    count: int = 3,
    optional: int = 0,
) -> Field[Record]:
    """Return a column of numbers, by a format string or a function, or else with ``count`` significant digits."""

    def shown(record: Record) -> Datum:
        found = value(record)
        if found is None:
            return NONE
        return Datum(form(found), found) if callable(form) else number(found, form or digits(found, count))

    return Column(title, about=about, optional=optional), shown


def milliseconds(title: str, value: Callable[[Record], float | None], about: str = "") -> Field[Record]:
    """Return a column of durations, given in seconds and shown in milliseconds with four significant digits."""
    return figures(title, lambda record: None if (found := value(record)) is None else found * 1e3, about, count=4)


def speedups(
    title: str, value: Callable[[Record], Speedup | None], about: str = "", *, optional: int = 0
) -> Field[Record]:
    """Return a column of ratios of images per second."""
    return Column(title, about=about, optional=optional), lambda record: speedup(value(record))


VARIANT: Field[Cell] = words("variant", lambda cell: str(cell.variant))
BATCH: Field[Cell] = figures("batch", lambda cell: cell.batch_size, form="{}")
_RATE: Field[Cell] = (Column("images/s"), images_per_s)


def _uncertainty(cell: Cell) -> Datum:
    """Return half the width of the interval of the median, marked if it did not settle."""
    width = half_width(cell)
    known = BLANK if width is None else f"{width * 100:.1f}%"
    return Datum(known, width) if settled(cell) else Datum(f"!{known}", width, "warning")


_HALF_WIDTH: Field[Cell] = (
    Column(
        "±",
        about="half the width of the 95% interval of the median, within this run; !: it did not settle",
        optional=2,
    ),
    _uncertainty,
)
_MEMORY: Field[Cell] = (
    Column("memory", about="peak of model and inference: on a GPU its own, else above the imported libraries"),
    needed_memory,
)


def _percentile(percent: int) -> Field[Cell]:
    return figures(
        f"p{percent} ms",
        lambda cell: None if (found := stats.percentile(cell.samples_s, percent)) is None else found * 1e3,
        optional=percent,
    )


def _flips(about: str = "", optional: int = 0) -> Field[Parity]:
    return figures("changed px", lambda parity: parity.flipped_pixels, about, form="{:,}", optional=optional)


def _worst_iou(about: str = "") -> Field[Parity]:
    return figures("worst IoU", lambda parity: parity.worst_iou, about, form=iou)


def _parity(cell: Cell) -> Parity | None:
    return cell.parity


def vs_pytorch(results: Results) -> list[Field[Cell]]:
    """Return the column of ratios to PyTorch; none without another variant to compare with it."""
    others = (cell for cell in results.cells if cell.measured and cell.variant != pytorch_variant(cell))
    if not any(pytorch_base(cell, results) for cell in others):
        return []
    about = "images per second relative to PyTorch eager in fp32 on the same device, at its own fastest batch size"
    return [speedups("× PyTorch", lambda cell: versus_pytorch(cell, results), about, optional=5)]


def _verdict(results: Results) -> Field[Cell]:
    return Column("masks", numeric=False, optional=6), lambda cell: verdict(results, cell)


def size_columns(results: Results) -> list[Field[Cell]]:
    """Return the columns of measured cells, by batch size."""

    def time(cell: Cell) -> Datum:
        total, measured = seconds_for(cell, results.images)
        return Datum(f"{'' if measured else '≈'}{digits(total)} s", total)

    several = len({cell.batch_size for cell in results.cells if cell.measured}) > 1
    ratios: list[Field[Cell]] = [
        speedups(
            "vs batch 1",
            lambda cell: versus_batch_1(cell, results),
            "images per second relative to batch 1; =: no difference beyond noise",
            optional=1,
        ),
        speedups(
            "vs previous",
            lambda cell: versus_previous(cell, results),
            "images per second relative to the next smaller batch size",
            optional=4,
        ),
    ]
    return [
        (
            Column(counted(results.images, "image"), about="time for all images; ≈: projected from fewer", optional=3),
            time,
        ),
        figures("ms/image", lambda cell: cell.seconds_per_image * 1e3),
        _RATE,
        _HALF_WIDTH,
        _MEMORY,
        *(ratios if several else []),
    ]


def further_columns(results: Results) -> list[Field[Cell]]:
    """Return more columns of measured cells by batch size, for wide terminals: the first are left out last."""
    measured = [cell for cell in results.cells if cell.measured]
    most_runs = max((len(cell.samples_s) for cell in measured), default=0)
    return [
        *vs_pytorch(results),
        *within(_parity, [_flips("mask pixels that differ from the reference's", optional=6)]),
        figures("p50 ms", lambda cell: cell.median_s * 1e3, "median call", optional=7),
        *(_percentile(percent) for percent, needed in stats.RUNS_FOR_PERCENTILE.items() if most_runs >= needed),
    ]


def call_columns(cells: Sequence[Cell]) -> list[Field[Cell]]:
    """Return the columns on single calls and the start of measured cells; percentiles as far as the calls suffice."""
    most_runs = max((len(cell.samples_s) for cell in cells), default=0)
    return [
        figures("calls", lambda cell: len(cell.samples_s), form="{:,}"),
        figures("p50 ms", lambda cell: cell.median_s * 1e3, "median call"),
        *(_percentile(percent) for percent, needed in stats.RUNS_FOR_PERCENTILE.items() if most_runs >= needed),
        figures("import s", lambda cell: cell.import_s, "import of the engine", form="{:.2f}"),
        figures("load s", lambda cell: cell.load_s, "loading the model", form="{:.2f}"),
        figures("first s", lambda cell: cell.first_s, "the first call", form="{:.2f}"),
    ]


def cell_columns(results: Results) -> list[Field[Cell]]:
    """Return all columns of measured cells that this bench can fill."""
    measured = [cell for cell in results.cells if cell.measured]
    masks = [
        _flips("mask pixels that differ from the reference's"),
        _worst_iou("rounded down: only identical masks have 1.0000"),
    ]
    return [
        *size_columns(results),
        *vs_pytorch(results),
        *call_columns(measured),
        *within(_parity, masks),
        _verdict(results),
    ]


def overview_columns(results: Results) -> list[Field[Cell]]:
    """Return the columns that describe the best cell of a variant; PyTorch is not compared with itself."""

    def unless_itself(value: Callable[[Cell], Datum]) -> Callable[[Cell], Datum]:
        return lambda cell: NONE if cell.variant == pytorch_variant(cell) else value(cell)

    return [
        BATCH,
        (Column("images/s", bar=True), images_per_s),
        figures("ms/image", lambda cell: cell.seconds_per_image * 1e3),
        _MEMORY,
        *((column, unless_itself(value)) for column, value in vs_pytorch(results)),
    ]


def forward_variant(cell: Cell) -> Variant:
    """Return the variant of a cell in the forward scope."""
    return dataclasses.replace(cell.variant, scope="forward")


def pipeline_columns(results: Results) -> list[Field[Cell]]:
    """Return the columns of measured cells of the pipeline scope, with the time of each stage."""

    def of_forward(cell: Cell) -> Datum:
        found = versus(results.cell(forward_variant(cell), cell.batch_size or 0), cell)
        if found is None:
            return NONE
        return Datum("=", found.ratio, "muted") if found.tied else Datum(f"{found.ratio:.0%}", found.ratio)

    def stage(name: str) -> Field[Cell]:
        return figures(name, lambda cell: cell.stages[name] * 1e3 if name in cell.stages else None, optional=9)

    def longest(cell: Cell) -> str | None:
        return max(cell.stages, key=lambda name: cell.stages[name], default=None)

    return [
        _RATE,
        _HALF_WIDTH,
        (Column("of forward"), of_forward),
        words("longest stage", longest),
        *map(stage, STAGES),
        _verdict(results),
    ]


def _worst_class(parity: Parity) -> Datum:
    worst = parity.worst_class
    return NONE if worst is None or worst.iou is None else Datum(f"{worst.index}: {iou(worst.iou)}", worst.iou)


_AGAINST_TRUTH: list[Field[TruthScore]] = [
    figures("IoU to truth", lambda truth: truth.iou, form=iou, optional=6),
    figures("Dice", lambda truth: truth.dice, form=iou, optional=9),
    figures(
        "loss",
        lambda truth: truth.loss,
        "the reference's IoU to truth minus the variant's",
        form="{:+z.4f}",
        optional=6,
    ),
]


def mask_columns(*, truth: bool, classes: int) -> list[Field[Cell]]:
    """Return the columns of judged cells that this bench can fill."""
    fields: list[Field[Parity]] = [
        _flips("mask pixels that differ"),
        figures(
            "within noise",
            lambda parity: parity.benign_flips / flips * 100 if (flips := parity.flipped_pixels) else None,
            "share of them that are within the reference's own rounding",
            form="{:.1f}%",
            optional=1,
        ),
        figures("mean IoU", lambda parity: parity.mean_iou, form=iou, optional=7),
        _worst_iou(),
        figures("mean Dice", lambda parity: parity.mean_dice, form=iou, optional=10),
        figures(
            "max |Δ|",
            lambda parity: parity.relative_diff,
            "largest difference of logits, in units of the reference's logit range",
            form=scientific,
            optional=5,
        ),
        figures(
            "mean |Δ|",
            lambda parity: parity.mean_abs_diff / max(1.0, parity.logit_range),
            form=scientific,
            optional=11,
        ),
        figures(
            "off outline",
            lambda parity: parity.flip_distance_px,
            "largest distance of a changed pixel outside the noise from an outline of the reference's mask",
            form="{:.1f} px",
            optional=3,
        ),
    ]
    if truth:
        fields += within(lambda parity: parity.truth, _AGAINST_TRUTH)
    if classes > 1:
        fields.append((Column("worst class", optional=4), _worst_class))
    fields.append(
        words("worst image", lambda parity: parity.worst_image if parity.flipped_pixels else None, optional=2)
    )
    return within(_parity, fields)
