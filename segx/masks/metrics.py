"""Overlap of masks with each other and with the ground truth; pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from segx.masks.preprocess import MaskArray
from segx.results.types import TruthScore

Scores = npt.NDArray[np.float64]

_RESAMPLES = 2000
_CONFIDENCE = 0.95
# With fewer, the interval of the loss is not known.
MIN_IMAGES = 6


def by_class(masks: MaskArray, classes: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield where masks have each class, (N, H, W); of one class only the foreground.

    ``masks`` are (N, H, W) uint8 class indices, 0 and 1 for one class, or (N, K, H, W) of 0 and 1.
    """
    if masks.ndim == 4:
        yield from (masks[:, channel] == 1 for channel in range(classes))
    else:
        yield from (masks == value for value in ([1] if classes == 1 else range(classes)))


def class_ious(masks_a: MaskArray, masks_b: MaskArray, classes: int) -> Scores:
    """Return the intersection over union of masks as ``by_class`` takes them, per image and class.

    Returns (N, ``classes``) float64 in [0, 1]; NaN if neither mask has the class.

    Source: Jaccard 1912, "The distribution of the flora in the alpine zone".
    """
    found = []
    for a, b in zip(by_class(masks_a, classes), by_class(masks_b, classes), strict=True):
        both, either = (a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2))
        found.append(np.where(either > 0, both / np.maximum(either, 1), np.nan))
    return np.stack(found, axis=1)


def dice(ious: Scores) -> Scores:
    """Return the Dice coefficients that belong to IoUs: 2 IoU / (1 + IoU).

    Source: Dice 1945, "Measures of the Amount of Ecologic Association Between Species".
    """
    return 2 * ious / (1 + ious)


def lowest(scores: Scores) -> Scores:
    """Reduce (N, classes), NaN for absent classes, to the (N,) lowest of the present ones; 1.0 if all are absent."""
    result: Scores = np.where(np.isnan(scores), 1.0, scores).min(axis=1)
    return result


def mean_of_present(scores: Scores) -> Scores:
    """Reduce (N, classes), NaN for absent classes, to the (N,) mean of the present ones; 1.0 if all are absent."""
    present = ~np.isnan(scores)
    counts = present.sum(axis=1)
    sums = np.where(present, scores, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


def farthest_from_boundary(mask: MaskArray, pixels: npt.NDArray[np.bool_]) -> float | None:
    """Return the largest distance of the given pixels from a mask's boundaries.

    Args:
        mask: (H, W) uint8 class indices, or (K, H, W) masks, each with boundaries of its own.
        pixels: of the same shape, which pixels to consider.

    Returns:
        Pixels from centre to centre of the nearest pixel of another value: 1 next to the boundary. None without pixels,
        or if a mask with pixels has one value only.
    """
    if mask.ndim == 3:
        changed = [farthest_from_boundary(*each) for each in zip(mask, pixels, strict=True) if each[1].any()]
        known = [distance for distance in changed if distance is not None]
        return max(known) if known and len(known) == len(changed) else None
    if not pixels.any() or (mask == mask.flat[0]).all():
        return None
    farthest = 0.0
    for value in np.unique(mask[pixels]):
        inside = mask == value
        distances = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        farthest = max(farthest, float(distances[inside & pixels].max()))
    return farthest


@dataclass(frozen=True)
class TruthOverlap:
    """Overlap of masks with the ground truth: per image the mean over present classes, (N,) float64 in [0, 1]."""

    ious: Scores
    dices: Scores


def overlap_with_truth(truth: MaskArray, masks: MaskArray, classes: int) -> TruthOverlap:
    """Compare masks, as ``by_class`` takes them, with the ground truth, image by image."""
    ious = class_ious(truth, masks, classes)
    return TruthOverlap(mean_of_present(ious), mean_of_present(dice(ious)))


def truth_score(run: TruthOverlap, reference: TruthOverlap) -> TruthScore:
    """Summarise a run's and the reference's overlap with the ground truth, with a paired interval of the loss."""
    losses = reference.ious - run.ious
    low, high = _mean_interval(losses)
    return TruthScore(
        iou=float(run.ious.mean()),
        dice=float(run.dices.mean()),
        reference_iou=float(reference.ious.mean()),
        reference_dice=float(reference.dices.mean()),
        loss=float(losses.mean()),
        loss_low=low,
        loss_high=high,
    )


def _mean_interval(values: Scores) -> tuple[float, float]:
    """Return the 95% interval of the mean of values from -1 to 1; (-1, 1) for too few values.

    It is Student's or, where wider, that of the bootstrap, which takes percentiles, with a fixed seed (Efron &
    Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13): that follows skewed values better, but is too
    short for few. With 6 to 64 values drawn from a normal distribution the true mean is inside in 93% to 96% of the
    cases, from a log-normal one (sigma 1) in 82% to 92%.
    """
    from scipy.special import stdtrit

    if len(values) < MIN_IMAGES:
        return -1.0, 1.0
    chosen = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(values[chosen].mean(axis=1), [tail, 1 - tail])
    reach = stdtrit(len(values) - 1, 1 - tail) * values.std(ddof=1) / math.sqrt(len(values))
    return max(-1.0, float(min(low, values.mean() - reach))), min(1.0, float(max(high, values.mean() + reach)))
