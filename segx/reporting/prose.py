"""Sentences about results: what to deploy and why, and notes on what the figures mean."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segx.analysis import stats
from segx.analysis.figures import half_width, needed_bytes, seconds_for, versus_previous, versus_pytorch
from segx.analysis.outliers import LOAD_TOLERANCE, disturbances, find_outliers
from segx.analysis.recommend import Change, Constraints, Decision, Exclusion, Goal, Limit, Pick
from segx.analysis.scaling import memory_line
from segx.masks.agreement import Required, changed_images
from segx.model.spec import ModelSpec
from segx.model.synthetic import TRAINED_ON_SCENES
from segx.reporting.columns import MIB, images_per_s, iou, memory, named_cells, quality_words, seconds
from segx.reporting.document import Card
from segx.results.types import Cell, Results
from segx.runtimes import runtime_info

# Title of a card, and the beginning of its first sentence.
_GOALS: Mapping[Goal, tuple[str, str]] = {
    "throughput": ("Throughput", "For throughput"),
    "latency": ("Latency of one image", "For the latency of a single image"),
    "memory": ("Memory", "For memory"),
}


def cards(decision: Decision) -> tuple[Card, ...]:
    """Return a card per goal that some cell qualifies for."""
    return tuple(_card(pick, decision) for pick in decision.picks)


# Blank masks in this share of the images, and a lower IoU with the true masks, are signs of another normalisation.
_NEARLY_ALL, _FAR_FROM_TRUTH = 0.9, 0.5


def caution(results: Results) -> str:
    """Return why the figures of a bench are not to be relied on; empty for a quiet run."""
    measured = [cell for cell in results.cells if cell.measured]
    unsettled = [cell for cell in measured if cell.stopped not in ("settled", "")]
    reasons = []
    cores, load = results.machine.cores_usable, results.machine.load_average_1min
    if load is not None and load > cores + LOAD_TOLERANCE:
        reasons.append(f"load {load:.1f} on {cores} cores at the start")
    if len(unsettled) * 2 >= len(measured) > 0:
        widths = [width for cell in unsettled if (width := half_width(cell))]
        reach = f" (±{min(widths):.0%} to ±{max(widths):.0%})" if widths else ""
        reasons.append(f"{len(unsettled)} of {len(measured)} results did not settle{reach}")
    if not reasons:
        return ""
    return f"Noisy run: {'; '.join(reasons)}. Use it for the order of the runtimes, not for the numbers."


UNTRUSTED_INT8 = (
    "int8 was calibrated on generated scenes, which this model may never have seen: do not trust its masks before you "
    "calibrate it on your own images with --calibration."
)


def doubts(results: Results) -> list[str]:
    """Return what makes it doubtful that the model gets the images, or int8 the calibration, that it needs."""
    spec, masks = results.model.spec, results.reference_masks
    check = f"Images are prepared as {spec.preprocessing}: check how the model was trained ({_image_options(spec)})"
    lines = []
    if masks and (blank := masks.empty + masks.full) >= _NEARLY_ALL * masks.images:
        lines.append(
            f"The reference's own masks are blank in {blank} of {masks.images} images ({masks.empty} empty, "
            f"{masks.full} full), so equal masks prove little. {check}."
        )
    elif masks and masks.truth_iou is not None and masks.truth_iou < _FAR_FROM_TRUTH:
        lines.append(
            f"The reference's own masks are far from the true ones (IoU {iou(masks.truth_iou)}). {check}"
            f"{', or bench it on its own images with --images' if results.inputs.truth == 'generated' else ''}."
        )
    if others := results.model.other_pixels:
        lines.append(f"These weights were exported before for images in {'; '.join(others)}, now {spec.pixels}.")
    quantized = any(cell.precision == "int8" and cell.measured for cell in results.cells)
    if quantized and results.options.calibration is None and results.model.weights_sha256 not in TRAINED_ON_SCENES:
        lines.append(f"{UNTRUSTED_INT8[:-1]}, or bench it with --images.")
    return lines


def _image_options(spec: ModelSpec) -> str:
    """Return the options to try if images seem to be prepared in another way than in training."""
    options = ["--normalize none" if spec.mean or spec.std else "--normalize imagenet"]
    options.append("--input-range 0-1" if spec.input_range == "0-255" else "--input-range 0-255")
    if spec.in_channels == 3:
        options.append("--channel-order rgb" if spec.channel_order == "bgr" else "--channel-order bgr")
    return ", ".join([*options, "--input-size"])


def exclusions(decision: Decision) -> list[str]:
    """Return a sentence per limit on what it excludes; first of all, if nothing is left, that it is so."""
    lines = [] if decision.picks else [_nothing_fits(decision)]
    for limit, words in _LIMITS.items():
        if found := [exclusion for exclusion in decision.excluded if exclusion.limit == limit]:
            cells = named_cells([exclusion.cell for exclusion in found], "at batch")
            lines.append(f"{words(decision.constraints)} excludes {cells}{_nearest(found)}.")
    return lines


def limits(constraints: Constraints) -> list[str]:
    """Return the limits that the user set, in words."""
    given: tuple[tuple[Any, Callable[[Any], str]], ...] = (
        (constraints.max_latency_s, lambda value: f"a call takes at most {seconds(value)}"),
        (constraints.max_memory_bytes, lambda value: f"memory at most {memory(value)}"),
        (constraints.min_iou, lambda value: f"IoU of the worst image at least {value:g}"),
        (constraints.require, lambda value: f"masks {_REQUIRED[value]}"),
    )
    return [words(value) for value, words in given if value is not None]


def _card(pick: Pick, decision: Decision) -> Card:
    title, goal = _GOALS[pick.goal]
    figure, interval = _value(pick.goal, pick.cell), _interval(pick)
    value, unit = figure.split()
    reasons = (_gain(pick), _masks(pick), *_alternatives(pick))
    return Card(
        key=f"ship-{pick.goal}",
        title=title,
        lead=f"{goal}: {_named(pick.cell)}, {figure} ({interval}).",
        figure=(value, unit),
        interval=interval,
        variant=str(pick.cell.variant),
        batch=f"batch {pick.cell.batch_size}",
        reasons=reasons,
        changes=(*(_change(change, pick) for change in pick.changes), *_effect_of_limits(pick, decision)),
        command=pick.command,
    )


def _interval(pick: Pick) -> str:
    if pick.goal == "memory":
        return "at the peak, measured once"
    if pick.interval is None:
        return "too few calls for an interval"
    low, high = pick.interval.low, pick.interval.high
    if pick.goal == "throughput":
        return f"95 % interval {1 / high:.2f} to {1 / low:.2f}"
    return f"95 % interval {seconds(low)} to {seconds(high)}"


def _gain(pick: Pick) -> str:
    if pick.baseline is pick.cell:
        return "This is PyTorch eager itself."
    if pick.baseline is None:
        return "PyTorch eager was not measured in this run, so the gain is unknown."
    base = f"PyTorch eager at batch {pick.baseline.batch_size}"
    parts = []
    if (gain := pick.gain) and gain.tied:
        parts.append(f"no measurable difference in speed from {base}")
    elif gain:
        interval = "too few rounds for an interval"
        if gain.interval:
            interval = f"95 % interval {gain.interval.low:.2f} to {gain.interval.high:.2f}"
        parts.append(f"{gain.ratio:.2f} times the images per second of {base} ({interval})")
    if pick.memory_ratio is not None:
        parts.append(f"{pick.memory_ratio:.2f} times its memory")
    return f"Compared with PyTorch: {', '.join(parts)}."


def _masks(pick: Pick) -> str:
    parity = pick.cell.parity
    if parity is None:
        return "Its masks were not judged."
    if not parity.judged:
        return f"Its masks were not judged: the reference's are blank in all {parity.images} images."
    if not parity.flipped_pixels:
        return f"Its masks are identical: no pixel of {parity.pixels} in {parity.images} images differs."
    changed = f" in {len(images)} of {parity.images} images" if (images := changed_images(parity)) else ""
    sentence = (
        f"Its masks: {pick.verdict}{changed}; {parity.flipped_pixels} of {parity.pixels} pixels differ, "
        f"{parity.real_flips} of them by more than the reference's own noise; mean IoU {iou(parity.mean_iou)}, "
        f"worst image {iou(parity.worst_iou)} ({parity.worst_image})."
    )
    if (truth := parity.truth) and pick.quality:
        sentence += (
            f" Against the true masks: {quality_words(pick.quality, parity)}, IoU {iou(truth.iou)} where the reference "
            f"has {iou(truth.reference_iou)}."
        )
    return sentence


def _alternatives(pick: Pick) -> list[str]:
    lines = []
    if pick.goal != "memory" and pick.interval is None:
        lines.append("There were too few calls to tell whether others are as good.")
    if pick.ties:
        lines.append(f"No measurable difference to {named_cells(pick.ties, 'at batch')}.")
    if pick.runner_up and pick.runner_up not in pick.ties and pick.behind is not None:
        share = f"{pick.behind:.0%}" if pick.behind >= 0.01 else "under 1%"
        costs = "needs {} more memory" if pick.goal == "memory" else "takes {} longer"
        lines.append(f"The next best variant, {_named(pick.runner_up)}, {costs.format(share)}.")
    if pick.identical:
        lines.append(f"If the masks must be identical: {_named(pick.identical)}, {_value(pick.goal, pick.identical)}.")
    if pick.runner_up is None:
        lines.append("No other variant qualified.")
    return lines


# The condition of a change -> how it continues after "If".
_CONDITIONS: Mapping[str, Callable[[float], str]] = {
    "latency below": lambda value: f"a call must take less than {seconds(value)}",
    "memory below": lambda value: f"memory must stay below {memory(value)}",
    "masks above": lambda value: f"the worst image must have an IoU above {iou(value)}",
}


def _change(change: Change, pick: Pick) -> str:
    if change.condition == "images below":
        assert change.cell  # there is always one that starts sooner
        count = math.ceil(change.threshold)
        return f"For fewer than {count} images in total, {_named(change.cell)} finishes first, as it starts sooner."
    condition = _CONDITIONS[change.condition](change.threshold)
    if change.cell is None:
        return f"If {condition}, no measured cell is left."
    return f"If {condition}: {_named(change.cell)}, {_value(pick.goal, change.cell)}."


def _effect_of_limits(pick: Pick, decision: Decision) -> list[str]:
    lines = []
    if pick.uncertain_limit and (limit := decision.constraints.max_latency_s) is not None:
        lines.append(f"It may miss the limit of {seconds(limit)}: the interval of its latency extends beyond it.")
    if other := pick.without_limits:
        lines.append(f"Without the limits it would be {_named(other)}, {_value(pick.goal, other)}.")
    return lines


_LIMITS: Mapping[Limit, Callable[[Constraints], str]] = {
    "parity": lambda _: "The gate on masks",
    "unfinished": lambda _: "Interruption before the masks were judged",
    "latency": lambda given: f"The limit of {seconds(given.max_latency_s or 0.0)} per call",
    "memory": lambda given: f"The limit of {memory(given.max_memory_bytes or 0)} of memory",
    "masks": lambda given: f"The limit of {given.min_iou or 0.0:g} on the IoU of the worst image",
    "quality": lambda _: "A worse overlap with the true masks",
    "required": lambda given: f"The requirement of masks {_REQUIRED[given.require or 'identical']}",
}

_REQUIRED: Mapping[Required, str] = {
    "identical": "identical to the reference's",
    "noise": "that differ within its noise only",
    "edges": "that differ along edges only",
}

_NEAREST: Mapping[Limit, Callable[[Sequence[float]], str]] = {
    "latency": lambda values: seconds(min(values)),
    "memory": lambda values: memory(min(values)),
    "masks": lambda values: iou(max(values)),
}


def _nothing_fits(decision: Decision) -> str:
    if not decision.excluded:
        return "Nothing can be recommended: no cell was measured."
    by_limit = {limit: {id(each.cell) for each in decision.excluded if each.limit == limit} for limit in _LIMITS}
    every = {id(exclusion.cell) for exclusion in decision.excluded}
    enough = [limit for limit, cells in by_limit.items() if cells == every]
    why = f"; {' and '.join(enough)} alone would exclude them all" if enough else ""
    return f"Nothing fits: all {len(every)} measured cells miss a limit{why}."


def _nearest(found: Sequence[Exclusion]) -> str:
    """Return how near the best of them came, for limits that are numbers."""
    values = [exclusion.found for exclusion in found if exclusion.found is not None]
    if not values or not (shown := _NEAREST.get(found[0].limit)):
        return ""
    return f" (the nearest has {shown(values)})"


def _value(goal: Goal, cell: Cell) -> str:
    if goal == "throughput":
        return f"{images_per_s(cell).text} images/s"
    return seconds(cell.median_s) if goal == "latency" else memory(needed_bytes(cell) or 0)


def _named(cell: Cell) -> str:
    return f"{cell.variant} at batch {cell.batch_size}"


# Why sampling stopped early -> what to do.
_UNSETTLED = {
    "not settled": f"the median did not settle to ±{stats.SETTLED:.0%}: raise --max-time, or use a quieter machine",
    "budget spent": "raise --budget",
    "interrupted": "continue with --resume",
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
        "±: 95 % interval of the median call, within this run; it does not know how runs differ.",
        "Ratios are of images per second; tied: their 95 % interval includes 1.",
        "memory: peak private memory of model and inference, above that of the imported libraries.",
    ]
    if any(not seconds_for(cell, results.images)[1] for cell in measured):
        lines.append(f"≈ projected from fewer than {results.images} images.")
    ratios = (versus(cell, results) for cell in measured for versus in (versus_previous, versus_pytorch))
    if any(ratio and ratio.interval is None for ratio in ratios):
        lines.append("±?: fewer than 6 rounds, too few for an interval.")
    if results.options.processes == 1:
        lines.append("Each cell ran in one process: ± does not know how processes differ (--processes 2).")
    lines += _missing_percentiles([cell for cell in measured if cell.scope != "pipeline"])
    for reason, advice in _UNSETTLED.items():
        if cells := [cell for cell in measured if cell.stopped == reason]:
            lines.append(f"{reason}: {named_cells(cells)}; {advice}.")
    lines += _not_offered(results)
    lines += [
        f"{Path(made.path).name}: {len(made.float_layers)} layers stayed in float to keep its masks: "
        f"{', '.join(made.float_layers)}."
        for made in results.model.derived.values()
        if made.float_layers
    ]
    return [*lines, *_disturbances(results, measured), *_missing_memory(measured), *_where_the_time_went(results)]


def _not_offered(results: Results) -> list[str]:
    """Return the combinations of runtime and precision that do not exist, if several precisions were requested."""
    asked = results.options.precisions
    lacking = {
        name: [precision for precision in asked if precision not in runtime_info(name).precisions]
        for name in results.options.runtimes
    }
    pairs = "; ".join(f"{name} in {', '.join(missing)}" for name, missing in lacking.items() if missing)
    return [f"not offered: {pairs}."] if len(asked) > 1 and pairs else []


def _missing_percentiles(cells: Sequence[Cell]) -> list[str]:
    fewest = min((len(cell.samples_s) for cell in cells), default=max(stats.RUNS_FOR_PERCENTILE.values()))
    missing = {percent: needed for percent, needed in stats.RUNS_FOR_PERCENTILE.items() if fewest < needed}
    if not missing:
        return []
    needs = ", ".join(f"p{percent} from {needed} runs" for percent, needed in missing.items())
    return [f"percentiles of the calls are shown where six of them lie beyond: {needs} (--min-runs)."]


def _disturbances(results: Results, cells: Sequence[Cell]) -> list[str]:
    """Return what disturbed sampling, and the slow calls; none of them was removed from the figures."""
    cores = results.machine.cores_usable
    lines = []
    load = results.machine.load_average_1min
    if load is not None and load > cores:
        lines.append(f"The load was {load:.1f} on {cores} cores at the start: other programs were running.")
    spent_s = {id(cell): results.spent_s(cell) for cell in cells}
    throughout = Counter(cause for cell in cells for cause in disturbances(spent_s[id(cell)], cell.rounds, cores=cores))
    lines += [f"in most turns of {count} of {len(cells)} cells, {cause}." for cause, count in throughout.items()]
    found = [
        (cell, outliers) for cell in cells if (outliers := find_outliers(spent_s[id(cell)], cell.rounds, cores=cores))
    ]
    for causes in dict.fromkeys(outliers.causes for _, outliers in found):
        alike = [(cell, outliers) for cell, outliers in found if outliers.causes == causes]
        slow = sum(len(outliers.indices) for _, outliers in alike)
        calls = sum(len(cell.samples_s) for cell, _ in alike)
        worst = max(outliers.worst for _, outliers in alike)
        where = named_cells([cell for cell, _ in alike])
        lines.append(
            f"outliers: {slow} of {calls} calls, up to {worst:.1f}x the median, of {where}: "
            f"{', '.join(causes) or 'cause unknown'}."
        )
    return lines


def _missing_memory(cells: Sequence[Cell]) -> list[str]:
    reasons: dict[str, list[Cell]] = {}
    for cell in cells:
        on_gpu = runtime_info(cell.runtime).device == "cuda"
        if reason := cell.device_memory_missing if on_gpu else cell.host_memory_missing:
            reasons.setdefault(reason, []).append(cell)
    return [f"no memory for {named_cells(cells)}: {reason}." for reason, cells in reasons.items()]


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


def below_variant(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return what belongs to a variant, of which these are measured, and not to one batch size."""
    lines = []
    if timed := [cell for cell in cells if cell.load_s is not None]:
        imported, loaded = (
            statistics.median([getattr(cell, name) or 0.0 for cell in timed]) for name in ("import_s", "load_s")
        )
        first = ", ".join(f"{cell.first_s or 0.0:.2f} s (batch {cell.batch_size})" for cell in timed)
        lines.append(f"cold start: import {imported:.1f} s, load {loaded:.1f} s, first call {first}")
    if line := memory_line(cells):
        per_image, base = (round(count / MIB) for count in (line.per_image_bytes, line.base_bytes))
        lines.append(f"memory by batch size: {per_image} MiB per image on top of {base} MiB")
    return tuple(lines)
