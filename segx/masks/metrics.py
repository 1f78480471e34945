"""How much two masks overlap: pure functions of two stacks of masks."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from segx.masks.image_io import MaskArray

Scores = npt.NDArray[np.float64]


def mask_iou(masks_a: MaskArray, masks_b: MaskArray, classes: int) -> Scores:
    """Intersection over union of two masks, per image.

    With one class that of the foreground; with several the lowest among the classes that either mask holds. Two empty
    masks agree and give 1.0; exactly one empty mask gives 0.0.

    Args:
        masks_a: (N, H, W) uint8, 0 or 1, or class indices.
        masks_b: (N, H, W) uint8, of the same shape.
        classes: the model's number of classes; 1 means 0 is background and 1 foreground.

    Returns:
        (N,) float64 in [0, 1].
    """
    return lowest(class_ious(masks_a, masks_b, classes))


def class_ious(masks_a: MaskArray, masks_b: MaskArray, classes: int) -> Scores:
    """Intersection over union of two masks, per image and class.

    Args:
        masks_a: (N, H, W) uint8, 0 or 1, or class indices.
        masks_b: (N, H, W) uint8, of the same shape.
        classes: the model's number of classes; with 1 only the foreground (value 1) counts.

    Returns:
        (N, ``classes``) float64 in [0, 1]; NaN where neither mask holds the class.

    Source: Jaccard 1912, "The distribution of the flora in the alpine zone".
    """
    found = []
    for value in [1] if classes == 1 else range(classes):
        a, b = masks_a == value, masks_b == value
        both, either = (a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2))
        found.append(np.where(either > 0, both / np.maximum(either, 1), np.nan))
    return np.stack(found, axis=1)


def dice(ious: Scores) -> Scores:
    """Twice the intersection over the sum of both areas, from the intersection over union, of which it is a function.

    Source: Dice 1945, "Measures of the Amount of Ecologic Association Between Species".
    """
    return 2 * ious / (1 + ious)


def lowest(scores: Scores) -> Scores:
    """(N, classes), NaN where a class is absent -> (N,), the lowest class of each image; 1.0 where all are absent."""
    result: Scores = np.where(np.isnan(scores), 1.0, scores).min(axis=1)
    return result


def mean_of_present(scores: Scores) -> Scores:
    """(N, classes), NaN where a class is absent -> (N,), the mean of the present ones; 1.0 where all are absent."""
    present = ~np.isnan(scores)
    counts = present.sum(axis=1)
    sums = np.where(present, scores, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


def farthest_from_boundary(mask: MaskArray, pixels: npt.NDArray[np.bool_]) -> float | None:
    """How far from a mask's boundaries the farthest of some pixels lies.

    Args:
        mask: (H, W) uint8 class indices.
        pixels: (H, W), which pixels.

    Returns:
        Pixels from its centre to that of the nearest pixel of another value: 1 is beside the boundary. None where there
        are no such pixels, or the mask has but one value.
    """
    if not pixels.any() or (mask == mask.flat[0]).all():
        return None
    farthest = 0.0
    for value in np.unique(mask[pixels]):
        inside = mask == value
        distances = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        farthest = max(farthest, float(distances[inside & pixels].max()))
    return farthest
