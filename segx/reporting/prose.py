"""Sentences about results: what to deploy and why, and notes on what the figures mean."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segx.analysis import stats
from segx.analysis.figures import EQUAL, half_width, seconds_for, settled
from segx.analysis.outliers import LOAD_TOLERANCE, disturbances, find_outliers
from segx.analysis.recommend import Constraints, Decision, Exclusion, Limit, Pick, Purpose
from segx.analysis.scaling import memory_line
from segx.masks.agreement import changed_images
from segx.masks.metrics import MIN_IMAGES
from segx.model.spec import ModelSpec
from segx.model.synthetic import TRAINED_ON_SCENES
from segx.reporting.columns import (
    MIB,
    counted,
    images_per_s,
    iou,
    memory,
    named_cells,
    needed_memory,
    percent,
    quality_words,
    seconds,
    times,
)
from segx.reporting.document import Card, Datum, Option, text
from segx.results.types import Cell, Required, Results
from segx.runtimes import runtime_info

if TYPE_CHECKING:
    from segx.predict.pipeline import PipelineReport

# Blank masks in this share of the images, and a lower IoU with the true masks, are signs of another normalisation.
_NEARLY_ALL, _FAR_FROM_TRUTH = 0.9, 0.5


def caution(results: Results) -> str:
    """Return why the figures of a bench are not to be relied on; empty for a quiet run."""
    measured = [cell for cell in results.cells if cell.measured]
    unsettled = [cell for cell in measured if not settled(cell)]
    reasons = []
    cores, load = results.machine.cores_usable, results.machine.load_average_1min
    if load is not None and load > cores + LOAD_TOLERANCE:
        reasons.append(f"load {load:.1f} on {counted(cores, 'core')}")
    if len(unsettled) * 2 >= len(measured) > 0:
        reasons.append(f"{len(unsettled)} of {len(measured)} unsettled")
    return f"Noisy run: {', '.join(reasons)}; trust only the order." if reasons else ""


UNTRUSTED_INT8 = (
    "int8 was calibrated on generated scenes, which this model may never have seen: do not trust its masks before you "
    "calibrate it on your own images with --calibration."
)

NO_MARGIN = (
    "No choice of float layers meets the limits on masks by a margin, so other images may miss them: calibrate int8 on "
    "more images with --calibration."
)


def few_held_out(images: int) -> str:
    """Return the warning for an int8 file that was judged on too few images while it was made."""
    return (
        f"Too few images to judge int8: its layers were chosen by {counted(images, 'held-out image')}, and at least "
        f"{MIN_IMAGES} are needed. Calibrate it on {2 * MIN_IMAGES} images or more with --calibration."
    )


def doubts(results: Results) -> list[str]:
    """Return what makes it doubtful that the model gets the images, or int8 the calibration, that it needs."""
    spec, masks = results.model.spec, results.reference_masks
    check = preparation(spec)
    lines = []
    if masks and (blank := masks.empty + masks.full) >= _NEARLY_ALL * masks.images:
        lines.append(
            f"The reference's own masks are blank in {blank} of {counted(masks.images, 'image')} ({masks.empty} empty, "
            f"{masks.full} full), so equal masks prove little. {check}."
        )
    elif masks and masks.truth_iou is not None and masks.truth_iou < _FAR_FROM_TRUTH:
        lines.append(
            f"The reference's own masks are far from the true ones (IoU {iou(masks.truth_iou)}). {check}"
            f"{', or bench it on its own images with --images' if results.inputs.truth == 'generated' else ''}."
        )
    if doubt := results.inputs.doubt:
        lines.append(f"{doubt[0].upper()}{doubt[1:]}.")
    if others := results.model.other_pixels:
        lines.append(f"These weights were exported before for images in {'; '.join(others)}, now {spec.pixels}.")
    quantized = any(cell.precision == "int8" and cell.measured for cell in results.cells)
    if quantized and results.options.calibration is None and results.model.weights_sha256 not in TRAINED_ON_SCENES:
        lines.append(f"{UNTRUSTED_INT8[:-1]}, or bench it with --images.")
    held_out = [made.held_out_images for made in results.model.derived.values() if made.held_out_images]
    if quantized and held_out and min(held_out) < MIN_IMAGES:
        lines.append(few_held_out(min(held_out)))
    without_margin = [made for made in results.model.derived.values() if quantized and made.has_margin is False]
    lines += [f"{Path(made.path).name}: {NO_MARGIN[0].lower()}{NO_MARGIN[1:]}" for made in without_margin]
    images = len(results.inputs.names)
    if images < MIN_IMAGES and any(cell.parity and cell.parity.real_flips for cell in results.cells):
        lines.append(f"Too few images to judge masks: {images}, and at least {MIN_IMAGES} are needed.")
    return lines


def blank_masks(report: PipelineReport, spec: ModelSpec) -> str:
    """Return the note on a prediction nearly all of whose masks are blank; empty for any other, or for few images."""
    if report.images < MIN_IMAGES or report.blank < _NEARLY_ALL * report.images:
        return ""
    return f"masks are blank in {report.blank:,} of {counted(report.images, 'image')}. {preparation(spec)}"


def preparation(spec: ModelSpec) -> str:
    """Return how images are prepared, and what to try if that is wrong."""
    return f"Images are prepared as {spec.preprocessing}: check how the model was trained ({_image_options(spec)})"


def _image_options(spec: ModelSpec) -> str:
    """Return the options to try if images seem to be prepared in another way than in training."""
    options = ["--normalize none" if spec.mean or spec.std else "--normalize imagenet"]
    options.append("--input-range 0-1" if spec.input_range == "0-255" else "--input-range 0-255")
    if spec.in_channels == 3:
        options.append("--channel-order rgb" if spec.channel_order == "bgr" else "--channel-order bgr")
    return ", ".join([*options, "--input-size"])


def exclusions(decision: Decision) -> list[str]:
    """Return a sentence per limit on what it excludes; first of all, if nothing is left, that it is so."""
    every = {id(exclusion.cell) for exclusion in decision.excluded}
    lines = [] if decision.pick else [_nothing_fits(len(every))]
    for limit, words in _LIMITS.items():
        if found := [exclusion for exclusion in decision.excluded if exclusion.limit == limit]:
            all_of_them = not decision.pick and len(found) == len(every)
            cells = "them all" if all_of_them else named_cells([exclusion.cell for exclusion in found], "at batch")
            lines.append(f"{words(decision.constraints)} excludes {cells}{_nearest(found)}.")
    return lines


def limits(constraints: Constraints) -> list[str]:
    """Return the limits that the user set, in words."""
    given: tuple[tuple[Any, Callable[[Any], str]], ...] = (
        (constraints.max_latency_s, lambda value: f"a call takes at most {seconds(value, exact=True)}"),
        (constraints.max_memory_bytes, lambda value: f"memory at most {memory(value, exact=True)}"),
        (constraints.min_iou, lambda value: f"IoU of the worst image at least {value}"),
        (constraints.require, lambda value: f"masks {_REQUIRED[value]}"),
    )
    return [words(value) for value, words in given if value is not None]


def card(pick: Pick, decision: Decision, reference: str) -> Card:
    """Return what is recommended, what must be known about it, and what to use under which condition instead."""
    cell = pick.cell
    itself = str(cell.variant) == reference and not (cell.parity and cell.parity.flipped_pixels)
    masks = "the reference itself" if itself else _masks(pick)
    facts = [
        ("Masks", masks),
        ("Quality", _quality(pick, itself=itself)),
        ("Limits", _effect_of_limits(pick, decision)),
    ]
    more = [
        ("Changed pixels", _changed_pixels(pick)),
        ("PyTorch", _base(pick)),
        ("Sure?", _certainty(cell)),
        ("Next best", _next_best(pick, decision)),
    ]
    return Card(
        variant=str(cell.variant),
        batch=f"batch {cell.batch_size}",
        figures=_figures_for("latency", cell),
        gain=_gain(pick),
        facts=tuple(fact for fact in facts if fact[1]),
        more=tuple(fact for fact in more if fact[1]),
        options=_options(pick),
        command=pick.command,
    )


def _gain(pick: Pick) -> Datum:
    base, gain = pick.base, pick.gain
    if base is None:
        return text("PyTorch was not measured", "muted")
    if base.variant == pick.cell.variant:
        return text("This is PyTorch itself", "muted")
    if gain is None or gain.tied:
        known = gain and gain.interval and gain.interval.high < 1 + EQUAL and gain.interval.low > 1 - EQUAL
        return text("As fast as PyTorch" if known else "No difference from PyTorch beyond noise")
    return text(f"{times(gain.ratio)} PyTorch", "good" if gain.ratio > 1 else "")


def _base(pick: Pick) -> str:
    base = pick.base
    if base is None or base.variant == pick.cell.variant:
        return ""
    return f"{base.precision}, batch {base.batch_size}, its fastest: {_rate(base)}"


def _masks(pick: Pick) -> str:
    parity = pick.cell.parity
    if parity is None:
        return "not judged"
    if not parity.judged:
        return f"not judged: the reference's are blank in all {counted(parity.images, 'image')}"
    if not parity.flipped_pixels:
        return f"identical; no pixel of {parity.pixels:,} in {counted(parity.images, 'image')} differs"
    changed = changed_images(parity)
    off = f", in {len(changed)} of {counted(parity.images, 'image')} off the outlines" if changed else ""
    return f"{pick.verdict}, {percent(parity.flipped_share)} of pixels{off}"


def _changed_pixels(pick: Pick) -> str:
    parity = pick.cell.parity
    if parity is None or not parity.flipped_pixels:
        return ""
    within, distance = parity.benign_flips, parity.flip_distance_px
    blank = sum(image.real_flips for image in parity.per_image if image.flip_distance_px is None)
    parts = [f"{within:,} within the reference's own rounding"] if within else []
    parts += [f"{blank:,} where the reference has no outline"] if blank else []
    if distance:
        rounded_up = math.ceil(distance * 10) / 10
        parts.append(f"{'the others ' * bool(parts)}at most {rounded_up:g} px from an outline")
    return "; ".join([f"{parity.flipped_pixels:,} of {parity.pixels:,}", *([", ".join(parts)] if parts else [])])


def _quality(pick: Pick, *, itself: bool) -> str:
    parity = pick.cell.parity
    if not (parity and parity.truth and pick.quality):
        return ""
    truth = parity.truth
    if itself:
        return f"IoU with the true masks {iou(truth.iou)}"
    return (
        f"{quality_words(pick.quality, parity)}; IoU with the true masks {iou(truth.iou)}, the reference's "
        f"{iou(truth.reference_iou)}"
    )


def _effect_of_limits(pick: Pick, decision: Decision) -> str:
    lines = []
    if pick.uncertain_limit and (limit := decision.constraints.max_latency_s) is not None:
        lines.append(f"a call may take longer than {seconds(limit, exact=True)}: its interval extends beyond")
    if other := pick.without_limits:
        lines.append(f"without them {_named(other)}, {_rate(other)}")
    return "; ".join(lines)


def _certainty(cell: Cell) -> str:
    width = half_width(cell)
    if width is None:
        return "too few rounds to tell how uncertain the time is"
    return f"±{width:.1%} within this run; between runs machines often differ by more"


def _next_best(pick: Pick, decision: Decision) -> str:
    rival = pick.runner_up
    if rival is None:
        others = any(exclusion.cell.variant != pick.cell.variant for exclusion in decision.excluded)
        return "no other variant qualified" if others else ""
    if rival in pick.ties:
        return f"{_named(rival)}: no measurable difference"
    slower = rival.seconds_per_image / pick.cell.seconds_per_image
    return f"{_named(rival)}: {f'{times(slower)} slower' if slower * (1 - EQUAL) > 1 else 'as fast'}"


def _options(pick: Pick) -> tuple[Option, ...]:
    return tuple(
        Option(
            _PURPOSES[each.purpose].format(each.images),
            str(each.cell.variant),
            f"batch {each.cell.batch_size}",
            _figures_for(each.purpose, each.cell),
        )
        for each in pick.alternatives
    )


_PURPOSES: Mapping[Purpose, str] = {
    "identical": "identical masks",
    "memory": "least memory",
    "latency": "shortest waits",
    "throughput": "most images/s",
    "few images": "under {:,} images",
}


def _figures_for(purpose: Purpose, cell: Cell) -> tuple[str, ...]:
    """Return time, images per second and memory, that which speaks for the cell first."""
    time = seconds(cell.median_s) + ("/call" if cell.batch_size != 1 else "")
    if purpose == "memory":
        return (*_memory(cell), time, _rate(cell))
    return (_rate(cell), time, *_memory(cell)) if purpose == "throughput" else (time, _rate(cell), *_memory(cell))


def _rate(cell: Cell) -> str:
    return f"{images_per_s(cell).text} images/s"


def _memory(cell: Cell) -> tuple[str, ...]:
    shown = needed_memory(cell)
    return (shown.text,) if shown.value is not None else ()


_LIMITS: Mapping[Limit, Callable[[Constraints], str]] = {
    "parity": lambda _: "The gate on masks",
    "unfinished": lambda _: "Interruption before the masks were judged",
    "latency": lambda given: f"The limit of {seconds(given.max_latency_s or 0.0, exact=True)} per call",
    "memory": lambda given: f"The limit of {memory(given.max_memory_bytes or 0, exact=True)} of memory",
    "masks": lambda given: f"The limit of {given.min_iou} on the IoU of the worst image",
    "quality": lambda _: "A worse overlap with the true masks",
    "required": lambda given: f"The requirement of masks {_REQUIRED[given.require or 'identical']}",
}

_REQUIRED: Mapping[Required, str] = {
    "identical": "identical to the reference's",
    "noise": "that differ within its noise only",
    "edges": "that differ along edges only",
}

_NEAREST: Mapping[Limit, Callable[[Sequence[float]], str]] = {
    "latency": lambda values: seconds(min(values), exact=True),
    "memory": lambda values: memory(min(values), exact=True),
    "masks": lambda values: iou(max(values)),
}


def _nothing_fits(measured: int) -> str:
    if not measured:
        return "Nothing can be recommended: no cell was measured in the forward scope."
    missed = f"all {measured} measured cells miss a limit" if measured > 1 else "the only measured cell misses a limit"
    return f"Nothing fits: {missed}."


def _nearest(found: Sequence[Exclusion]) -> str:
    """Return how near the best of them came, for limits that are numbers."""
    values = [exclusion.found for exclusion in found if exclusion.found is not None]
    if not values or not (shown := _NEAREST.get(found[0].limit)):
        return ""
    return f" (the nearest has {shown(values)})"


def _named(cell: Cell) -> str:
    return f"{cell.variant}, batch {cell.batch_size}"


# Why sampling stopped early -> what that means, and what to do.
_UNSETTLED = {
    "not settled": f"The median did not settle to ±{stats.SETTLED:.0%} (raise --max-time, or use a quieter machine)",
    "budget spent": "The budget was spent before the median settled (raise --budget)",
    "interrupted": "Sampling was interrupted (continue with --resume)",
}

_SCOPES = {
    "forward": "forward: from host array to host array",
    "device": "device: input and output stay on the device; timed by events on the stream that does the work",
    "pipeline": "pipeline: from image file to mask file, all stages at once",
}


def notes(results: Results) -> list[str]:
    """Return what the figures mean and what casts doubt on them; empty if nothing was measured."""
    measured = [cell for cell in results.cells if cell.measured]
    if not measured:
        return []
    scopes = "; ".join(_SCOPES[scope] for scope in _SCOPES if any(cell.scope == scope for cell in measured))
    lines = [
        f"{scopes}. Masks are compared with those of {results.reference}, on the outputs of the timed calls.",
        "±: half the width of the 95% interval of the median call, within this run; it does not know how runs differ.",
        "Ratios are of images per second; =: their 95% interval includes 1; ?: fewer than 6 rounds, too few for one.",
        "memory: peak private memory of model and inference, above that of the imported libraries.",
    ]
    if any(not seconds_for(cell, results.images)[1] for cell in measured):
        lines.append(f"≈: projected from fewer than {counted(results.images, 'image')}.")
    if results.options.processes == 1:
        lines.append("Each cell ran in one process: ± does not know how processes differ (--processes 2).")
    lines += _missing_percentiles([cell for cell in measured if cell.scope != "pipeline"])
    for reason, told in _UNSETTLED.items():
        if cells := [cell for cell in measured if cell.stopped == reason]:
            lines.append(f"{told}: {named_cells(cells)}.")
    lines += _not_offered(results)
    lines += [
        f"{Path(made.path).name}: {counted(len(made.float_layers), 'layer')} stayed in float to keep its masks: "
        f"{', '.join(made.float_layers)}."
        for made in results.model.derived.values()
        if made.float_layers
    ]
    return [*lines, *_disturbances(results, measured), *_missing_memory(measured), *_where_the_time_went(results)]


def _not_offered(results: Results) -> list[str]:
    """Return the combinations of runtime and precision that do not exist, if several precisions were requested."""
    asked = results.options.precisions
    lacking: dict[str, list[str]] = {}
    for name in results.options.runtimes:
        if missing := [precision for precision in asked if precision not in runtime_info(name).precisions]:
            lacking.setdefault(", ".join(missing), []).append(name)
    told = "; ".join(f"{missing} by {', '.join(names)}" for missing, names in lacking.items())
    return [f"Not offered: {told}."] if len(asked) > 1 and told and not results.options.variants else []


def _missing_percentiles(cells: Sequence[Cell]) -> list[str]:
    fewest = min((len(cell.samples_s) for cell in cells), default=max(stats.RUNS_FOR_PERCENTILE.values()))
    missing = {percent: needed for percent, needed in stats.RUNS_FOR_PERCENTILE.items() if fewest < needed}
    if not missing:
        return []
    needs = ", ".join(f"p{percent} from {needed} calls" for percent, needed in missing.items())
    return [f"A percentile is shown if six calls or more lie beyond it: {needs} (--min-runs)."]


def _disturbances(results: Results, cells: Sequence[Cell]) -> list[str]:
    """Return what disturbed sampling, and the slow calls; none of them was removed from the figures."""
    cores = results.machine.cores_usable
    lines = []
    load = results.machine.load_average_1min
    if load is not None and load > cores:
        lines.append(f"The load was {load:.1f} on {counted(cores, 'core')} at the start: other programs were running.")
    spent_s = {id(cell): results.spent_s(cell) for cell in cells}
    throughout = Counter(cause for cell in cells for cause in disturbances(spent_s[id(cell)], cell.rounds, cores=cores))
    lines += [f"In most turns of {count} of {len(cells)} cells, {cause}." for cause, count in throughout.items()]
    found = [
        (cell, outliers) for cell in cells for outliers in find_outliers(spent_s[id(cell)], cell.rounds, cores=cores)
    ]
    for causes in dict.fromkeys(outliers.causes for _, outliers in found):
        alike = [(cell, outliers) for cell, outliers in found if outliers.causes == causes]
        slow = sum(len(outliers.indices) for _, outliers in alike)
        calls = sum(len(cell.samples_s) for cell, _ in alike)
        worst = max(outliers.worst for _, outliers in alike)
        where = named_cells([cell for cell, _ in alike])
        which = f"{slow} of {calls} calls {'was' if slow == 1 else 'were'} slow"
        lines.append(f"{which} (up to {worst:.1f}x the median; {alike[0][1].told}): {where}.")
    return lines


def _missing_memory(cells: Sequence[Cell]) -> list[str]:
    reasons: dict[str, list[Cell]] = {}
    for cell in cells:
        on_gpu = runtime_info(cell.runtime).device == "cuda"
        if reason := cell.device_memory_missing if on_gpu else cell.host_memory_missing:
            reasons.setdefault(reason, []).append(cell)
    return [f"No memory for {named_cells(cells)}: {reason}." for reason, cells in reasons.items()]


def _where_the_time_went(results: Results) -> list[str]:
    wall = results.wall
    if wall is None:
        return []
    parts = {
        "sampling": wall.sampling,
        "loading": wall.loading,
        "reference masks": wall.reference,
        "export": wall.export,
        "peaks": wall.peaks,
    }
    shares = ", ".join(f"{name} {spent / wall.total:.0%}" for name, spent in parts.items() if spent)
    return [f"The bench took {wall.total:.0f} s: {shares}, the rest {wall.overhead:.0%}."]


def memory_slope(cells: Sequence[Cell]) -> str:
    """Return how memory grows with the batch size of one variant; empty if that is not known."""
    line = memory_line(cells)
    if line is None:
        return ""
    return f"{round(line.per_image_bytes / MIB):,} MiB per image on top of {round(line.base_bytes / MIB):,} MiB"
