"""The table of the pipeline scope: how fast the whole path is, and where its time goes."""

from __future__ import annotations

import dataclasses

from segx.analysis import stats
from segx.analysis.figures import verdict_of
from segx.analysis.ratios import ratio_text, versus, versus_pytorch
from segx.predict.batching import StageTimes
from segx.results.types import Cell, Results
from segx.runtimes import Variant

_BLANK = "–"
_STAGES = tuple(StageTimes.__dataclass_fields__)

TITLE = "whole path, image file to mask file; stages in ms per image"
# What the figures mean, for below the table.
LEGEND = (
    "of forward: images per second against the same variant at that batch size in the forward scope.",
    "stages overlap and are added up over their threads; wait: the engine had nothing to do.",
)
TITLES = ("variant", "batch", "images/s", "±", "of forward", "vs PyTorch", *_STAGES, "flipped px", "masks")


def apart(results: Results) -> tuple[list[Cell], list[Cell]]:
    """The cells of all other tables, and those of this one. A variant that is missing as a whole needs no table."""
    others: list[Cell] = []
    whole_path: list[Cell] = []
    for cell in results.cells:
        (whole_path if cell.scope == "pipeline" and cell.batch_size is not None else others).append(cell)
    return others, whole_path


def pipeline_rows(results: Results) -> list[list[str]]:
    """A row per cell of the pipeline scope under ``TITLES``; one that failed ends in what went wrong."""
    rows = []
    order = {name: place for place, name in enumerate(results.options.runtimes)}
    for cell in sorted(apart(results)[1], key=lambda cell: order.get(cell.runtime, len(order))):
        name = [str(_forward(cell)), str(cell.batch_size)]
        trouble = [] if cell.status == "ok" else [f"{cell.status}: {cell.reason}; {cell.remedy}"]
        if cell.measured:
            rows.append([*name, *_figures(cell, results)])
            rows += [[*["", ""], *trouble]] if trouble else []
        else:
            rows.append([*name, *trouble])
    return rows


def _forward(cell: Cell) -> Variant:
    return dataclasses.replace(cell.variant, scope="forward")


def _figures(cell: Cell, results: Results) -> list[str]:
    width = stats.relative_half_width(cell.samples_s)
    parity = cell.parity
    return [
        f"{1 / cell.seconds_per_image:.2f}",
        _BLANK if width is None else f"{width:.1%}",
        _of_forward(cell, results),
        ratio_text(versus_pytorch(cell, results)),
        *(f"{cell.stages[stage] * 1e3:.2f}" if stage in cell.stages else _BLANK for stage in _STAGES),
        str(parity.flipped_pixels) if parity else _BLANK,
        verdict_of(results, cell) or _BLANK,
    ]


def _of_forward(cell: Cell, results: Results) -> str:
    share = versus(results.cell(_forward(cell), cell.batch_size or 0), cell)
    if share is None:
        return _BLANK
    if share.interval is None:
        return f"{share.ratio:.1%} ±?"
    reach = max(share.interval.high - share.ratio, share.ratio - share.interval.low)
    return f"{share.ratio:.1%} ±{reach:.1%}"
