"""Are the masks still the same? Pure functions from two runs' logits to a judgement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segx.images import FloatArray, MaskArray, masks_from_logits
from segx.spec import ModelSpec


@dataclass(frozen=True)
class ParityLimits:
    """What a precision is allowed to differ from the reference.

    Attributes:
        relative_diff: largest |difference of logits|, in units of the reference's logit range (at least 1).
        flipped_share: pixels whose mask differs, over all images.
        iou: intersection over union of the two masks, for the worst image.
    """

    relative_diff: float
    flipped_share: float
    iou: float

    def with_gates(self, *, min_iou: float | None, max_flips: float | None) -> ParityLimits:
        """The user's own limits where given. Who gates masks does not care how far logits moved."""
        if min_iou is None and max_flips is None:
            return self
        return ParityLimits(
            relative_diff=math.inf,
            flipped_share=self.flipped_share if max_flips is None else max_flips,
            iou=self.iou if min_iou is None else min_iou,
        )


LIMITS = {
    "fp32": ParityLimits(relative_diff=1e-4, flipped_share=1e-5, iou=0.9999),
    "tf32": ParityLimits(relative_diff=5e-3, flipped_share=1e-4, iou=0.999),
}


@dataclass(frozen=True)
class Parity:
    """How one run's logits and masks differ from the reference's, over a set of images.

    Attributes:
        images: how many images were compared; one that also filled up a last batch counts each time.
        pixels: how many mask pixels, over all images.
        flipped_pixels: of those, how many differ.
        worst_iou: lowest IoU of the two masks of one image; several classes count by their worst.
        worst_image: name of that image (the first, where several tie).
        max_abs_diff: largest |difference of logits|; infinite where the run's logits are not finite.
        logit_range: reference's largest logit minus its smallest.
    """

    images: int
    pixels: int
    flipped_pixels: int
    worst_iou: float
    worst_image: str
    max_abs_diff: float
    logit_range: float

    @property
    def relative_diff(self) -> float:
        """``max_abs_diff`` in units of the logit range, which is taken as 1 where it is smaller."""
        return self.max_abs_diff / max(1.0, self.logit_range)

    @property
    def flipped_share(self) -> float:
        """Flipped pixels of all pixels, 0 to 1."""
        return self.flipped_pixels / self.pixels

    def breaches(self, limits: ParityLimits) -> list[str]:
        """What exceeds the limits, in words; empty when all is well."""
        found = []
        if not math.isfinite(self.max_abs_diff):
            found.append("logits are not finite")
        elif self.relative_diff > limits.relative_diff:
            found.append(f"logits differ by {self.relative_diff:.1e} of their range (limit {limits.relative_diff:.0e})")
        if not self.flipped_share <= limits.flipped_share:
            found.append(f"{self.flipped_pixels} of {self.pixels} pixels flipped (limit {limits.flipped_share:.0e})")
        if not self.worst_iou >= limits.iou:
            found.append(f"IoU {self.worst_iou:.4f} on {self.worst_image} (limit {limits.iou})")
        return found


def compare_logits(reference: FloatArray, logits: FloatArray, spec: ModelSpec, names: Sequence[str]) -> Parity:
    """Compare a run with the reference.

    Args:
        reference: (N, K, H, W) float32 logits.
        logits: (N, K, H, W) float32 logits of the same images in the same order.
        spec: gives the cut.
        names: N image names.

    Raises:
        ValueError: the shapes differ; the message names both.
    """
    if reference.shape != logits.shape:
        raise ValueError(f"logits of shape {logits.shape} cannot be compared with {reference.shape}")
    finite = bool(np.isfinite(logits).all())
    diff = float(np.abs(reference - logits).max()) if finite else float("inf")
    masks = masks_from_logits(reference, spec), masks_from_logits(logits, spec)
    return _judge(*masks, spec.classes, names, max_abs_diff=diff, logit_range=float(np.ptp(reference)))


def compare_masks(reference: MaskArray, masks: MaskArray, spec: ModelSpec, names: Sequence[str]) -> Parity:
    """Compare masks where there are no logits; their difference and range are given as 0.

    Args:
        reference: (N, H, W) uint8 class indices.
        masks: (N, H, W) uint8 class indices.
        spec: gives the number of classes.
        names: N image names.
    """
    return _judge(reference, masks, spec.classes, names, max_abs_diff=0.0, logit_range=0.0)


def _judge(
    reference: MaskArray,
    masks: MaskArray,
    classes: int,
    names: Sequence[str],
    *,
    max_abs_diff: float,
    logit_range: float,
) -> Parity:
    if reference.shape != masks.shape:
        raise ValueError(f"masks of shape {masks.shape} cannot be compared with {reference.shape}")
    ious = mask_iou(reference, masks, classes)
    worst = int(ious.argmin())
    return Parity(
        images=len(ious),
        pixels=reference.size,
        flipped_pixels=int((reference != masks).sum()),
        worst_iou=float(ious[worst]),
        worst_image=names[worst],
        max_abs_diff=max_abs_diff,
        logit_range=logit_range,
    )


def mask_iou(masks_a: MaskArray, masks_b: MaskArray, classes: int) -> npt.NDArray[np.float64]:
    """Intersection over union of two masks, per image.

    With one class that of the foreground; with several the lowest among the classes that either mask holds. Two empty
    masks agree and give 1.0; exactly one empty mask gives 0.0.

    Args:
        masks_a: (N, H, W) uint8, 0 or 1, or class indices.
        masks_b: (N, H, W) uint8, of the same shape.
        classes: the model's number of classes; 1 means 0 is background and 1 foreground.

    Returns:
        (N,) float64 in [0, 1].

    Source: Jaccard 1912, "The distribution of the flora in the alpine zone".
    """
    lowest = np.ones(len(masks_a))
    for value in [1] if classes == 1 else range(classes):
        a, b = masks_a == value, masks_b == value
        both, either = (a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2))
        iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
        lowest = np.minimum(lowest, iou)
    return lowest
