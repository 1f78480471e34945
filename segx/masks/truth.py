"""Masks against the true ones: whether a variant loses quality, or only differs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segx.masks.image_io import MaskArray
from segx.masks.metrics import Scores, class_ious, dice, mean_of_present
from segx.results.types import TruthScore

_RESAMPLES = 2000
_CONFIDENCE = 0.95
_FEWEST_IMAGES = 6


@dataclass(frozen=True)
class TruthOverlap:
    """How much masks overlap the true ones: (N,) float64 in [0, 1], per image the mean of the classes either holds."""

    ious: Scores
    dices: Scores


def overlap_with_truth(truth: MaskArray, masks: MaskArray, classes: int) -> TruthOverlap:
    """Compare masks with the true ones, image by image.

    Args:
        truth: (N, H, W) uint8, 0 or 1, or class indices.
        masks: (N, H, W) uint8, likewise.
        classes: the model's number of classes.
    """
    ious = class_ious(truth, masks, classes)
    return TruthOverlap(mean_of_present(ious), mean_of_present(dice(ious)))


def truth_score(ours: TruthOverlap, references: TruthOverlap) -> TruthScore:
    """Sum the images up, for this run and for the reference."""
    losses = references.ious - ours.ious
    low, high = _mean_interval(losses)
    return TruthScore(
        iou=float(ours.ious.mean()),
        dice=float(ours.dices.mean()),
        reference_iou=float(references.ious.mean()),
        reference_dice=float(references.dices.mean()),
        loss=float(losses.mean()),
        loss_low=low,
        loss_high=high,
    )


def _mean_interval(values: Scores) -> tuple[float, float]:
    """95 % interval of the mean by percentile bootstrap (Efron & Tibshirani 1993, chapter 13), always the same."""
    if len(values) < _FEWEST_IMAGES:
        return -1.0, 1.0
    chosen = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    outside = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(values[chosen].mean(axis=1), [outside, 1 - outside])
    return float(low), float(high)
