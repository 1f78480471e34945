"""Are the masks still the same? Pure functions from two runs' logits to a judgement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from segx.masks.image_io import FloatArray, MaskArray, masks_from_logits
from segx.masks.metrics import Scores, class_ious, dice, farthest_from_boundary, lowest
from segx.masks.truth import overlap_with_truth, truth_score
from segx.model.spec import ModelSpec
from segx.results.types import ClassParity, ImageParity, Parity

Verdict = Literal["identical", "equivalent", "degraded", "broken"]


@dataclass(frozen=True)
class ParityLimits:
    """What a precision is allowed to differ from the reference.

    Attributes:
        relative_diff: largest |difference of logits|, in units of the reference's logit range (at least 1).
        flipped_share: pixels whose mask differs, over all images.
        iou: intersection over union of the two masks, for the worst image.
        mean_iou: the same, mean of all images.
    """

    relative_diff: float
    flipped_share: float
    iou: float
    mean_iou: float = 0.0

    def with_gates(self, *, min_iou: float | None, max_flips: float | None) -> ParityLimits:
        """The user's own limits where given. Who gates masks does not care how far logits moved."""
        if min_iou is None and max_flips is None:
            return self
        return ParityLimits(
            relative_diff=math.inf,
            flipped_share=self.flipped_share if max_flips is None else max_flips,
            iou=self.iou if min_iou is None else min_iou,
            mean_iou=self.mean_iou if min_iou is None else 0.0,
        )


_HALF = ParityLimits(relative_diff=2e-2, flipped_share=1e-3, iou=0.995)
LIMITS: Mapping[str, ParityLimits] = {
    "fp32": ParityLimits(relative_diff=1e-4, flipped_share=1e-5, iou=0.9999),
    "tf32": ParityLimits(relative_diff=5e-3, flipped_share=1e-4, iou=0.999),
    "fp16": _HALF,
    "bf16": _HALF,
    # Rounding to 8 bits moves logits far from every cut, where it matters to no mask: judged by masks alone.
    "int8": ParityLimits(relative_diff=math.inf, flipped_share=1e-2, iou=0.98, mean_iou=0.995),
}


def compare_logits(
    reference: FloatArray,
    logits: FloatArray,
    spec: ModelSpec,
    names: Sequence[str],
    *,
    noise_band: float = 0.0,
    truth: MaskArray | None = None,
) -> Parity:
    """Compare a run with the reference.

    Args:
        reference: (N, K, H, W) float32 logits.
        logits: (N, K, H, W) float32 logits of the same images in the same order.
        spec: gives the cut.
        names: N image names.
        noise_band: how far the reference's logits differ from its own, in logits; flips inside are benign.
        truth: (N, H, W) uint8 true masks, as ``masks_from_logits`` gives them.

    Raises:
        ValueError: the shapes differ; the message names both.
    """
    if reference.shape != logits.shape:
        raise ValueError(f"logits of shape {logits.shape} cannot be compared with {reference.shape}")
    logit_range = float(np.ptp(reference))
    diffs = np.array([_differences(*pair) for pair in zip(reference, logits, strict=True)])
    masks = masks_from_logits(reference, spec), masks_from_logits(logits, spec)
    return _judge(
        *masks,
        spec.classes,
        names,
        diffs=diffs,
        logit_range=logit_range,
        wavering=margins_to(reference, *masks, spec) <= noise_band,
        noise_band=noise_band,
        truth=truth,
    )


def compare_masks(
    reference: MaskArray,
    masks: MaskArray,
    spec: ModelSpec,
    names: Sequence[str],
    *,
    wavering: npt.NDArray[np.bool_] | None = None,
    noise_band: float = 0.0,
) -> Parity:
    """Compare masks where there are no logits; their difference and range are given as 0.

    Args:
        reference: (N, H, W) uint8 class indices.
        masks: (N, H, W) uint8 class indices.
        spec: gives the number of classes.
        names: N image names.
        wavering: (N, H, W), where the reference wavers itself, so that a flip is benign; None for nowhere.
        noise_band: what that was found with, in logits.
    """
    nothing = np.zeros((len(reference), 2))
    certain = np.zeros(reference.shape, dtype=np.bool_)
    return _judge(
        reference,
        masks,
        spec.classes,
        names,
        diffs=nothing,
        logit_range=0.0,
        wavering=certain if wavering is None else wavering,
        noise_band=noise_band,
        truth=None,
    )


def _differences(reference: FloatArray, logits: FloatArray) -> tuple[float, float]:
    """Largest and mean |difference|; infinite where the run's logits are not finite."""
    if not np.isfinite(logits).all():
        return math.inf, math.inf
    difference = np.abs(reference - logits)
    return float(difference.max()), float(difference.mean())


def margins_to(reference: FloatArray, mask: MaskArray, other: MaskArray, spec: ModelSpec) -> FloatArray:
    """By how much each of the reference's logits would have to move to give another mask's value.

    Args:
        reference: (N, K, H, W) float32 logits.
        mask: (N, H, W) uint8, the mask they give.
        other: (N, H, W) uint8, the other mask; of several classes, the margin is 0 where it is the same.
        spec: gives the cut.

    Returns:
        (N, H, W) float32: the distance from the cut; for several classes half the lead over the other's class.
    """
    if spec.classes == 1:
        margins: FloatArray = np.abs(reference[:, 0] - np.float32(spec.logit_threshold))
        return margins
    own, others = (np.take_along_axis(reference, values[:, None], axis=1)[:, 0] for values in (mask, other))
    half_gap: FloatArray = (own - others) / np.float32(2)
    return half_gap


def _judge(
    reference: MaskArray,
    masks: MaskArray,
    classes: int,
    names: Sequence[str],
    *,
    diffs: Scores,
    logit_range: float,
    wavering: npt.NDArray[np.bool_],
    noise_band: float,
    truth: MaskArray | None,
) -> Parity:
    if reference.shape != masks.shape:
        raise ValueError(f"masks of shape {masks.shape} cannot be compared with {reference.shape}")
    by_class = class_ious(reference, masks, classes)
    ious = lowest(by_class)
    dices = lowest(dice(by_class))
    flipped = reference != masks
    flips, benign = flipped.sum(axis=(1, 2)), (flipped & wavering).sum(axis=(1, 2))
    distances = [farthest_from_boundary(*pair) for pair in zip(reference, flipped, strict=True)]
    overlap = overlap_with_truth(truth, masks, classes) if truth is not None else None
    unit = max(1.0, logit_range)
    worst = int(ious.argmin())
    return Parity(
        images=len(ious),
        pixels=reference.size,
        flipped_pixels=int(flips.sum()),
        benign_flips=int(benign.sum()),
        mean_iou=float(ious.mean()),
        worst_iou=float(ious[worst]),
        worst_image=names[worst],
        mean_dice=float(dices.mean()),
        max_abs_diff=float(diffs[:, 0].max()),
        mean_abs_diff=float(diffs[:, 1].mean()),
        logit_range=logit_range,
        noise_band=noise_band,
        flip_distance_px=max((d for d in distances if d is not None), default=None),
        classes=_class_parities(by_class, names) if classes > 1 else (),
        truth=truth_score(overlap, overlap_with_truth(truth, reference, classes))
        if truth is not None and overlap
        else None,
        per_image=tuple(
            ImageParity(
                name=names[i],
                flipped_pixels=int(flips[i]),
                benign_flips=int(benign[i]),
                iou=float(ious[i]),
                dice=float(dices[i]),
                max_diff=float(diffs[i, 0]) / unit,
                mean_diff=float(diffs[i, 1]) / unit,
                flip_distance_px=distances[i],
                truth_iou=float(overlap.ious[i]) if overlap else None,
                truth_dice=float(overlap.dices[i]) if overlap else None,
            )
            for i in range(len(ious))
        ),
    )


def _class_parities(by_class: Scores, names: Sequence[str]) -> tuple[ClassParity, ...]:
    found = []
    for index, ious in enumerate(by_class.T):
        if np.isnan(ious).all():
            found.append(ClassParity(index=index, iou=None, worst_iou=None, worst_image=""))
            continue
        worst = int(np.nanargmin(ious))
        found.append(
            ClassParity(
                index=index,
                iou=float(np.nanmean(ious)),
                worst_iou=float(ious[worst]),
                worst_image=names[worst],
            )
        )
    return tuple(found)


def verdict(parity: Parity, limits: ParityLimits) -> Verdict:
    """Return what the differences amount to.

    ``identical``: every mask pixel is the same. ``equivalent``: the only pixels that differ lie inside the noise band.
    ``degraded``: others differ too, within the limits. ``broken``: beyond them.
    """
    if breaches(parity, limits):
        return "broken"
    if not parity.flipped_pixels:
        return "identical"
    return "degraded" if parity.real_flips else "equivalent"


def breaches(parity: Parity, limits: ParityLimits) -> list[str]:
    """Return what exceeds the limits, in words; empty if nothing does."""
    found = []
    if not math.isfinite(parity.max_abs_diff):
        found.append("logits are not finite")
    elif parity.relative_diff > limits.relative_diff:
        found.append(f"logits differ by {parity.relative_diff:.1e} of their range (limit {limits.relative_diff:.0e})")
    if not parity.flipped_share <= limits.flipped_share:
        found.append(f"{parity.flipped_pixels} of {parity.pixels} pixels flipped (limit {limits.flipped_share:.0e})")
    if not parity.worst_iou >= limits.iou:
        found.append(f"IoU {parity.worst_iou:.4f} on {parity.worst_image} (limit {limits.iou})")
    if not parity.mean_iou >= limits.mean_iou:
        found.append(f"mean IoU {parity.mean_iou:.4f} (limit {limits.mean_iou})")
    return found
