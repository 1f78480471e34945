"""Are the masks still the same? Pure functions from two runs' logits to a judgement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segx.masks.image_io import FloatArray, MaskArray, masks_from_logits
from segx.masks.metrics import Scores, class_ious, dice, farthest_from_boundary, lowest
from segx.masks.truth import TruthScore, overlap_with_truth, truth_score
from segx.model.spec import ModelSpec

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


@dataclass(frozen=True, kw_only=True)
class ImageParity:
    """One image: its mask and logits against the reference's.

    Attributes:
        name: of the image.
        flipped_pixels: mask pixels that differ.
        benign_flips: of those, how many lie inside the noise band: the reference's logit there is no further from the
            cut than the reference differs from itself.
        iou: intersection over union of the two masks; several classes count by their worst.
        dice: twice the intersection over the sum of both areas; several classes count by their worst.
        max_diff: largest |difference of logits|, in units of the reference's logit range; infinite where not finite.
        mean_diff: mean |difference of logits|, likewise.
        flip_distance_px: how far the farthest flip lies from the boundary of the reference's mask: 1 is the pixel
            beside it. None without flips, or where that mask has no boundary.
        truth_iou: this run's mask against the true one, mean of the classes that either holds; None without a true one.
        truth_dice: likewise.
    """

    name: str
    flipped_pixels: int
    benign_flips: int
    iou: float
    dice: float
    max_diff: float
    mean_diff: float
    flip_distance_px: float | None = None
    truth_iou: float | None = None
    truth_dice: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassParity:
    """One class of a model with several, over the images where either mask holds it.

    Attributes:
        index: of the class.
        iou: mean over those images; None where there are none.
        worst_iou: lowest of them.
        worst_image: name of the image it belongs to.
    """

    index: int
    iou: float | None
    worst_iou: float | None
    worst_image: str


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How one run's logits and masks differ from the reference's, over a set of images.

    Attributes:
        images: how many images were compared.
        pixels: how many mask pixels, over all images.
        flipped_pixels: of those, how many differ.
        benign_flips: of those, how many lie inside the noise band.
        mean_iou: of the two masks of one image, mean over images.
        worst_iou: the lowest; several classes count by their worst.
        worst_image: name of that image (the first, where several tie).
        mean_dice: like ``mean_iou``.
        max_abs_diff: largest |difference of logits|; infinite where the run's logits are not finite.
        mean_abs_diff: mean |difference of logits|, likewise.
        logit_range: reference's largest logit minus its smallest.
        noise_band: how far the reference's logits differ from its own, and so the half-width of the band about the cut
            in which a flip is benign.
        flip_distance_px: the farthest over all images; see ``ImageParity``.
        classes: one entry per class where there are several.
        truth: None where there are no true masks.
        per_image: one entry per image compared.
    """

    images: int
    pixels: int
    flipped_pixels: int
    benign_flips: int
    mean_iou: float
    worst_iou: float
    worst_image: str
    mean_dice: float
    max_abs_diff: float
    mean_abs_diff: float
    logit_range: float
    noise_band: float
    flip_distance_px: float | None = None
    classes: tuple[ClassParity, ...] = ()
    truth: TruthScore | None = None
    per_image: tuple[ImageParity, ...] = ()

    @property
    def relative_diff(self) -> float:
        """``max_abs_diff`` in units of the logit range, which is taken as 1 where it is smaller."""
        return self.max_abs_diff / max(1.0, self.logit_range)

    @property
    def flipped_share(self) -> float:
        """Flipped pixels of all pixels, 0 to 1."""
        return self.flipped_pixels / self.pixels

    @property
    def real_flips(self) -> int:
        """Flips outside the noise band: the reference does not waver there."""
        return self.flipped_pixels - self.benign_flips

    @property
    def worst_class(self) -> ClassParity | None:
        """The class with the lowest mean IoU; None for a model of one class."""
        present = [entry for entry in self.classes if entry.iou is not None]
        return min(present, key=lambda entry: entry.iou or 0.0, default=None)

    def verdict(self, limits: ParityLimits) -> Verdict:
        """What the differences amount to.

        ``identical``: every mask pixel is the same. ``equivalent``: the only pixels that differ are those in which the
        reference wavers itself (benign). ``degraded``: others differ too, within the limits. ``broken``: beyond them.
        """
        if self.breaches(limits):
            return "broken"
        if not self.flipped_pixels:
            return "identical"
        return "degraded" if self.real_flips else "equivalent"

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
        if not self.mean_iou >= limits.mean_iou:
            found.append(f"mean IoU {self.mean_iou:.4f} (limit {limits.mean_iou})")
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Parity:
        """Inverse of ``dataclasses.asdict``, also after JSON, which has no infinity and writes null."""
        names = ("max_abs_diff", "mean_abs_diff", "logit_range", "noise_band")
        infinite = {name: math.inf for name in names if values[name] is None}
        images = (
            {**image, **{name: math.inf for name in ("max_diff", "mean_diff") if image[name] is None}}
            for image in values["per_image"]
        )
        return cls(
            **{
                **values,
                **infinite,
                "classes": tuple(ClassParity(**entry) for entry in values["classes"]),
                "truth": TruthScore(**values["truth"]) if values["truth"] else None,
                "per_image": tuple(ImageParity(**image) for image in images),
            }
        )


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
