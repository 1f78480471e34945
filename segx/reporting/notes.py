"""What stands below the tables: what the figures mean, and whatever casts doubt on one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from segx.analysis import stats
from segx.analysis.figures import seconds_for
from segx.analysis.outliers import disturbances, find_outliers
from segx.analysis.ratios import versus_previous, versus_pytorch
from segx.bench.sampling import SETTLED
from segx.reporting.columns import named_cells
from segx.results.types import Cell, Results
from segx.runtimes import runtime_info

_UNSETTLED = {
    "not settled": f"the median did not settle to ±{SETTLED:.0%}: give more --max-time, or a quieter machine",
    "budget spent": "give more --budget",
    "interrupted": "go on with --resume",
}

_SCOPES = {
    "forward": "forward: host array in, host array out",
    "device": "device: input and output stay on the device, timed by events on the stream that does the work",
    "pipeline": "pipeline: image file in, mask file out, all stages at once",
}


def notes(results: Results) -> list[str]:
    """One line each; empty where nothing was measured."""
    measured = [cell for cell in results.cells if cell.measured]
    if not measured:
        return []
    scopes = "; ".join(_SCOPES[scope] for scope in _SCOPES if any(cell.scope == scope for cell in measured))
    lines = [
        f"{scopes}. Masks against {results.reference}, on the outputs of the timed runs.",
        "±: 95 % interval of the median call. Ratios are of images per second; tied where their 95 % interval spans 1.",
        "memory: peak private memory of model and inference, above the imported libraries.",
    ]
    if any(not seconds_for(cell, results.images)[1] for cell in measured):
        lines.append(f"≈ projected from fewer than {results.images} images.")
    ratios = (versus(cell, results) for cell in measured for versus in (versus_previous, versus_pytorch))
    if any(ratio and ratio.interval is None for ratio in ratios):
        lines.append("±?: under 6 rounds, too few for an interval.")
    lines += _missing_percentiles([cell for cell in measured if cell.scope != "pipeline"])
    for reason, advice in _UNSETTLED.items():
        if cells := [cell for cell in measured if cell.stopped == reason]:
            lines.append(f"{reason}: {named_cells(cells)}; {advice}.")
    lines += _left_out(results)
    lines += [
        f"{name}: {len(layers)} layers stayed float for its masks: {', '.join(layers)}."
        for name, layers in results.model.float_layers.items()
    ]
    return [*lines, *_disturbances(results, measured), *_missing_memory(measured), *_where_the_time_went(results)]


def _left_out(results: Results) -> list[str]:
    """Pairs of runtime and precision that make no sense, where several precisions were asked for."""
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
    return [f"percentiles are shown once they are known with 99 % confidence: {needs} (--min-runs)."]


def _disturbances(results: Results, cells: Sequence[Cell]) -> list[str]:
    """What disturbed the sampling, and calls that stand out; nothing of it was left out of the figures."""
    cores = results.machine.cores_usable
    lines = []
    load = results.machine.load_average_1min
    if load is not None and load > cores:
        lines.append(f"load was {load:.1f} on {cores} cores when this began: other programs were running.")
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
            f"{', '.join(causes) or 'nothing that was watched explains them'}."
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
    shares = ", ".join(f"{name} {seconds / wall.total:.0%}" for name, seconds in parts.items() if seconds)
    return [f"took {wall.total:.0f} s: {shares}, the rest {wall.overhead:.0%}."]
