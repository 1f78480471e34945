"""Judge whether a run's masks agree with the reference's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from segx.masks.metrics import (
    MIN_IMAGES,
    Scores,
    TruthOverlap,
    by_class,
    class_ious,
    dice,
    farthest_from_boundary,
    lowest,
    overlap_with_truth,
    truth_score,
)
from segx.masks.preprocess import FloatArray, MaskArray, masks_from_logits
from segx.model.spec import ModelSpec
from segx.results.types import ClassParity, ImageParity, Parity, Required
from segx.system.text import percentage, rounded_down

# The reference's and another mask of an image, (H, W) uint8 or (K, H, W) of a multilabel model, and where a flip is
# within the noise band, of the same shape.
ImageMasks = tuple[MaskArray, MaskArray, npt.NDArray[np.bool_]]

Verdict = Literal["identical", "noise only", "edges only", "small changes", "FAILED"]
Quality = Literal["no worse", "worse", "unclear"]

# From the best to the worst.
VERDICTS: tuple[Verdict, ...] = ("identical", "noise only", "edges only", "small changes", "FAILED")
# The worst verdict that meets each requirement.
_WORST_ALLOWED: Mapping[Required, Verdict] = {"identical": "identical", "noise": "noise only", "edges": "edges only"}

# What rounding alone may change, as a share of the largest logit. The unit roundoff of float32 is 2^-24; the sums and
# layers of a network enlarge it. Over 24 models of smp (eight architectures, three encoders) PyTorch, ONNX Runtime and
# OpenVINO, all of them right, differed by up to 76 units of 2^-23, with other random weights by up to 161
# (tests/benchmarks/rounding.py); 2^-15 are 256.
ROUNDING_SHARE = 2.0**-15

# So many flips in an image say nothing about its mask, whatever share of a small object they are.
FEW_PIXELS = 4
FEW_SHARE = 1e-5

# A flip at most this far from a boundary of the reference's mask moves that boundary.
EDGE_PX = 2.0


# Values of ``Flips.kinds``: not flipped, flipped within the noise band, flipped outside it.
SAME, BENIGN, REAL = 0, 1, 2

# Logarithmic, four bins per power of ten: flips have small margins, most pixels large ones.
MARGIN_EDGES: tuple[float, ...] = (0.0, *(10 ** (step / 4) for step in range(-24, 9)))


@dataclass(frozen=True)
class ParityLimits:
    """How far a precision may differ from the reference.

    Only flips outside the noise band count, and no more than ``few_pixels`` of them fail an image.

    Attributes:
        relative_diff: largest |difference of logits|, in units of the reference's logit range (at least 1).
        flipped_share: share of mask pixels that differ, over all images.
        iou: lowest intersection over union of the two masks of an image; ``mean_iou`` is the lowest mean over images.
        few_flips: number of flips over all images that passes whatever their share.
        stray_share: share of an image's pixels with a class that the reference's mask of it does not have; None for
            ``flipped_share``.
    """

    relative_diff: float
    flipped_share: float
    iou: float
    mean_iou: float = 0.0
    few_flips: int = FEW_PIXELS
    stray_share: float | None = None

    def with_gates(self, *, min_iou: float | None, max_flips: float | None) -> ParityLimits:
        """Replace limits by the user's gates; with a gate on masks, logits are not judged."""
        if min_iou is None and max_flips is None:
            return self
        return ParityLimits(
            relative_diff=math.inf,
            flipped_share=self.flipped_share if max_flips is None else max_flips,
            iou=self.iou if min_iou is None else min_iou,
            mean_iou=self.mean_iou if min_iou is None else 0.0,
            few_flips=self.few_flips if max_flips is None else 0,
            stray_share=self.stray_share,
        )


def gate(*, min_iou: float, max_flips: float) -> ParityLimits:
    """Return limits on masks alone: the lowest IoU of an image and the highest share of pixels that differ, 0 to 1."""
    return ParityLimits(relative_diff=math.inf, flipped_share=max_flips, iou=min_iou)


_HALF = ParityLimits(relative_diff=2e-2, flipped_share=1e-3, iou=0.995)
LIMITS: Mapping[str, ParityLimits] = {
    "fp32": ParityLimits(relative_diff=1e-4, flipped_share=1e-5, iou=0.9999),
    "tf32": ParityLimits(relative_diff=5e-3, flipped_share=1e-4, iou=0.999),
    "fp16": _HALF,
    "bf16": _HALF,
    # Rounding to 8 bits moves logits far from the threshold, where no mask depends on them: only masks are judged.
    "int8": ParityLimits(relative_diff=math.inf, flipped_share=1e-2, iou=0.98, mean_iou=0.995),
}


@dataclass(frozen=True, kw_only=True)
class MarginHistogram:
    """Distribution of the reference's margins: pixel counts per bin of ``MARGIN_EDGES``.

    For one class the margin is |logit - threshold|. For several it is half the lead over the second-best class, and
    for a flipped pixel half the lead over the class it flipped to. Margins above the last edge count in the last bin.

    Attributes:
        pixels: all pixels.
        benign: flipped pixels within the noise band.
        real: flipped pixels outside it.
    """

    pixels: tuple[int, ...]
    benign: tuple[int, ...]
    real: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Flipped pixels of one image under one variant.

    All arrays are (H, W) uint8: the reference's and the variant's mask, and ``kinds``, which holds ``SAME``,
    ``BENIGN`` or ``REAL``.
    """

    reference: MaskArray
    mask: MaskArray
    kinds: MaskArray
    histogram: MarginHistogram


def compare_logits(
    reference: FloatArray,
    logits: FloatArray,
    spec: ModelSpec,
    names: Sequence[str],
    *,
    noise_band: float = 0.0,
    truth: MaskArray | None = None,
) -> Parity:
    """Compare a run's logits and masks with the reference's, image by image, so that both may be files in memory maps.

    Args:
        reference: (N, K, H, W) float32 logits.
        logits: (N, K, H, W) float32 logits of the same images in the same order.
        spec: the threshold; of a model that returns a class map, only masks are compared.
        names: N image names.
        noise_band: largest difference of the reference's logits between two of its own runs, taken to be at least
            ``rounding_band(reference)``; a flip with no larger margin is benign.
        truth: ground-truth masks in the form of ``masks_from_logits``.

    Raises:
        ValueError: the shapes differ; the message names both.
    """
    if reference.shape != logits.shape:
        raise ValueError(f"logits of shape {logits.shape} cannot be compared with {reference.shape}")
    if spec.class_map:
        logit_range, noise_band, diffs = 0.0, 0.0, np.zeros((len(reference), 2))
    else:
        logit_range = float(np.ptp(reference))
        noise_band = max(noise_band, rounding_band(reference))
        diffs = np.array([_differences(*pair) for pair in zip(reference, logits, strict=True)])
    ours, theirs = (
        np.concatenate([masks_from_logits(each[None], spec) for each in run]) for run in (reference, logits)
    )
    within_noise = (
        flip_margins(each[None], mask[None], other[None], spec)[0] <= noise_band
        for each, mask, other in zip(reference, ours, theirs, strict=True)
    )
    overlaps = None
    if truth is not None:
        overlaps = overlap_with_truth(truth, theirs, spec.classes), overlap_with_truth(truth, ours, spec.classes)
    return _judge(
        zip(ours, theirs, within_noise, strict=True),
        spec.classes,
        names,
        diffs=diffs,
        logit_range=logit_range,
        noise_band=noise_band,
        overlaps=overlaps,
    )


def rounding_band(logits: FloatArray) -> float:
    """Return how far logits may be off by float32 arithmetic alone: a share of the largest finite one."""
    largest = (np.max(np.abs(each), where=np.isfinite(each), initial=0.0) for each in logits)
    return ROUNDING_SHARE * float(max(largest, default=0.0))


def other_threads(threads: int) -> int:
    """Return a number of threads with which a reference adds in another order, for the measurement of its noise."""
    return 1 if threads > 1 else 2


def largest_difference(logits: FloatArray, again: FloatArray) -> float:
    """Return the noise between two runs of the reference: the largest |difference of logits|; 0 if not finite."""
    difference = float(np.abs(logits - again).max())
    return difference if math.isfinite(difference) else 0.0


def few_pixels(pixels: int) -> int:
    """Return how many flips in an image of so many pixels say nothing about its mask."""
    return max(FEW_PIXELS, int(FEW_SHARE * pixels))


def compare_masks(reference: MaskArray, masks: MaskArray, spec: ModelSpec, names: Sequence[str]) -> Parity:
    """Compare masks in the form of ``masks_from_logits`` alone; difference and range of logits are recorded as 0."""
    none = np.zeros(reference.shape, dtype=np.bool_)
    return compare_images(zip(reference, masks, none, strict=True), spec, names)


def compare_images(
    images: Iterable[ImageMasks], spec: ModelSpec, names: Sequence[str], *, noise_band: float = 0.0
) -> Parity:
    """Compare masks of images of any sizes, as ``compare_masks``; ``noise_band``, in logits, is only recorded."""
    diffs = np.zeros((len(names), 2))
    return _judge(images, spec.classes, names, diffs=diffs, logit_range=0.0, noise_band=noise_band, overlaps=None)


def _differences(reference: FloatArray, logits: FloatArray) -> tuple[float, float]:
    """Return the largest and mean |difference|; infinite if the run's logits are not finite."""
    if not np.isfinite(logits).all():
        return math.inf, math.inf
    difference = np.abs(reference - logits)
    return float(difference.max()), float(difference.mean())


def flip_margins(reference: FloatArray, mask: MaskArray, other: MaskArray, spec: ModelSpec) -> FloatArray:
    """Return how far the reference's logits are from producing another mask.

    Args:
        reference: (N, K, H, W) float32 logits.
        mask: the reference's own masks, in the form of ``masks_from_logits``.
        other: the other masks.
        spec: the threshold.

    Returns:
        float32 of the shape of ``mask``: the distance from the threshold; for exclusive classes half the lead over the
        other mask's class, 0 for pixels of the same class.
    """
    if not spec.exclusive:
        margins: FloatArray = np.abs(reference - np.float32(spec.logit_threshold)).reshape(mask.shape)
        return margins
    own, others = (np.take_along_axis(reference, values[:, None], axis=1)[:, 0] for values in (mask, other))
    half_gap: FloatArray = (own - others) / np.float32(2)
    return half_gap


def classify_flips(reference: FloatArray, logits: FloatArray, spec: ModelSpec, noise_band: float) -> Flips:
    """Classify one image's flipped pixels by its (K, H, W) float32 logits; benign ones have margins in the band.

    Of a multilabel model, one channel can be classified as a model of one class.
    """
    ours = reference[None]
    expected, found = masks_from_logits(ours, spec), masks_from_logits(logits[None], spec)
    flipped = expected != found
    margins = flip_margins(ours, expected, found, spec)
    kinds = np.where(flipped, np.where(margins <= noise_band, BENIGN, REAL), SAME).astype(np.uint8)
    if spec.classes > 1:
        leaders = np.partition(ours, -2, axis=1)
        margins = np.where(flipped, margins, (leaders[:, -1] - leaders[:, -2]) / np.float32(2))

    def counts(chosen: npt.NDArray[np.bool_]) -> tuple[int, ...]:
        values = np.minimum(margins[chosen].astype(np.float64), MARGIN_EDGES[-1])
        return tuple(int(count) for count in np.histogram(values, bins=np.asarray(MARGIN_EDGES))[0])

    histogram = MarginHistogram(
        pixels=counts(np.ones_like(flipped)), benign=counts(kinds == BENIGN), real=counts(kinds == REAL)
    )
    return Flips(reference=expected[0], mask=found[0], kinds=kinds[0], histogram=histogram)


def _judge(
    images: Iterable[ImageMasks],
    classes: int,
    names: Sequence[str],
    *,
    diffs: Scores,
    logit_range: float,
    noise_band: float,
    overlaps: tuple[TruthOverlap, TruthOverlap] | None,
) -> Parity:
    scores, counts, distances, blank = [], [], [], 0
    for reference, mask, within_noise in images:
        if reference.shape != mask.shape:
            raise ValueError(f"masks of shape {mask.shape} cannot be compared with {reference.shape}")
        flipped = reference != mask
        real = flipped & ~within_noise
        ious = class_ious(reference[None], np.where(real, mask, reference)[None], classes)[0]
        stray, is_blank = 0, True
        both = zip(by_class(reference[None], classes), by_class(mask[None], classes), strict=True)
        for index, (ours, theirs) in enumerate(both):
            if not ours.any():
                ious[index] = np.nan
                stray += int(np.count_nonzero(theirs & (real[index] if real.ndim == 3 else real)))
            elif not ours.all():
                is_blank = False
        scores.append(ious)
        kinds = (flipped, flipped & within_noise)
        counts.append([mask.size, *(int(np.count_nonzero(kind)) for kind in kinds), stray])
        distances.append(farthest_from_boundary(reference, real))
        blank += is_blank
    per_class = np.stack(scores)
    totals = np.sum(counts, axis=0)
    ious = lowest(per_class)
    dices = lowest(dice(per_class))
    overlap = overlaps[0] if overlaps else None
    unit = max(1.0, logit_range)
    worst = int(ious.argmin())
    return Parity(
        images=len(ious),
        pixels=int(totals[0]),
        flipped_pixels=int(totals[1]),
        benign_flips=int(totals[2]),
        mean_iou=float(ious.mean()),
        worst_iou=float(ious[worst]),
        worst_image=names[worst],
        mean_dice=float(dices.mean()),
        max_abs_diff=float(diffs[:, 0].max()),
        mean_abs_diff=float(diffs[:, 1].mean()),
        logit_range=logit_range,
        noise_band=noise_band,
        blank_images=blank,
        flip_distance_px=max((d for d in distances if d is not None), default=None),
        classes=_class_parities(per_class, names) if classes > 1 else (),
        truth=truth_score(*overlaps) if overlaps else None,
        per_image=tuple(
            ImageParity(
                name=names[i],
                pixels=counts[i][0],
                flipped_pixels=counts[i][1],
                benign_flips=counts[i][2],
                stray_pixels=counts[i][3],
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


def _class_parities(per_class: Scores, names: Sequence[str]) -> tuple[ClassParity, ...]:
    found = []
    for index, ious in enumerate(per_class.T):
        if np.isnan(ious).all():
            found.append(ClassParity(index=index, iou=None, worst_iou=None, worst_image=""))
            continue
        worst = int(np.nanargmin(ious))
        mean, lowest_iou = float(np.nanmean(ious)), float(ious[worst])
        found.append(ClassParity(index=index, iou=mean, worst_iou=lowest_iou, worst_image=names[worst]))
    return tuple(found)


def verdict(parity: Parity, limits: ParityLimits) -> Verdict:
    """Return the verdict on a run's masks against the reference's.

    ``identical``: no pixel differs. ``noise only``: pixels differ only where the reference itself is that unsure.
    ``edges only``: others differ too, at most ``EDGE_PX`` from a boundary of the reference's mask. ``small changes``:
    some lie farther off, or in an image without a boundary. ``FAILED``: a limit is exceeded.
    """
    if breaches(parity, limits):
        return "FAILED"
    if not parity.flipped_pixels:
        return "identical"
    if not parity.real_flips:
        return "noise only"
    return "small changes" if changed_images(parity) else "edges only"


def changed_images(parity: Parity) -> list[ImageParity]:
    """Return the images in which real flips lie off the boundaries: something appeared, vanished or moved."""
    return [
        image
        for image in parity.per_image
        if image.real_flips and (image.flip_distance_px is None or image.flip_distance_px > EDGE_PX)
    ]


def meets(found: Verdict | None, required: Required | None) -> bool:
    """Return whether a verdict meets a requirement; an unknown one meets only None."""
    if required is None:
        return True
    return found is not None and VERDICTS.index(found) <= VERDICTS.index(_WORST_ALLOWED[required])


def quality(parity: Parity, max_loss: float) -> Quality | None:
    """Return whether a run's masks are as good as the reference's; None without ground truth.

    By the 95% interval of the loss of IoU with the ground truth, paired by image. ``no worse``: the interval ends at
    or below ``max_loss``. ``worse``: it starts at or above it. ``unclear``: neither, or too few images to tell.
    """
    if parity.truth is None:
        return None
    if parity.images >= MIN_IMAGES and parity.truth.loss_high <= max_loss:
        return "no worse"
    return "worse" if parity.images >= MIN_IMAGES and parity.truth.loss_low >= max_loss else "unclear"


def breaches(parity: Parity, limits: ParityLimits) -> list[str]:
    """Return a message for each limit that is exceeded."""
    found = []
    if not math.isfinite(parity.max_abs_diff):
        found.append("logits are not finite")
    elif parity.relative_diff > limits.relative_diff:
        found.append(f"logits differ by {parity.relative_diff:.2e} of their range (limit {limits.relative_diff:.0e})")
    if not parity.real_flips <= max(limits.few_flips, limits.flipped_share * parity.pixels):
        found.append(
            f"{parity.real_flips:,} of {parity.pixels:,} pixels changed beyond noise "
            f"(limit {percentage(limits.flipped_share)})"
        )
    changed = [image for image in parity.per_image if image.real_flips > few_pixels(image.pixels)]
    stray = max(changed, key=lambda image: image.stray_pixels, default=None)
    most = limits.flipped_share if limits.stray_share is None else limits.stray_share
    if stray and stray.stray_pixels > max(few_pixels(stray.pixels), most * stray.pixels):
        found.append(
            f"{stray.stray_pixels:,} pixels of {stray.name} have a class that its reference mask does not have "
            f"(limit {percentage(most)} of {stray.pixels:,})"
        )
    worst = min(changed, key=lambda image: image.iou, default=None)
    if worst and worst.iou < limits.iou:
        found.append(f"IoU {rounded_down(worst.iou, 4)} on {worst.name} (limit {limits.iou})")
    mean_iou = 1 - sum(1 - image.iou for image in changed) / parity.images
    if mean_iou < limits.mean_iou:
        found.append(f"mean IoU {rounded_down(mean_iou, 4)} (limit {limits.mean_iou})")
    return found
