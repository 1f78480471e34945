"""Which pixels of a mask flipped, which of them matter, and how far every pixel was from flipping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segx.masks.agreement import margins_to
from segx.masks.image_io import FloatArray, MaskArray, masks_from_logits
from segx.model.spec import ModelSpec

# Values of ``Flips.kinds``.
SAME, BENIGN, REAL = 0, 1, 2

# Margins of flips are small and those of most pixels are not: four bins per power of ten, and the first for all below.
MARGIN_EDGES: tuple[float, ...] = (0.0, *(10 ** (step / 4) for step in range(-24, 9)))


@dataclass(frozen=True, kw_only=True)
class MarginHistogram:
    """How far the reference's logits are from giving another mask; counts of pixels per bin of ``MARGIN_EDGES``.

    The margin of one class is |logit - cut|. Of several classes it is half the lead over the runner-up, and where the
    mask flipped half the lead over the class it flipped to. Margins above the last edge count in the last bin.

    Attributes:
        pixels: all pixels.
        benign: flipped ones inside the noise band.
        real: flipped ones outside it.
    """

    pixels: tuple[int, ...]
    benign: tuple[int, ...]
    real: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Flips:
    """One image under one variant.

    Attributes:
        reference: (H, W) uint8, the reference's mask.
        mask: (H, W) uint8, the variant's mask.
        kinds: (H, W) uint8: ``SAME``, ``BENIGN`` or ``REAL``.
        histogram: of the margins.
    """

    reference: MaskArray
    mask: MaskArray
    kinds: MaskArray
    histogram: MarginHistogram


def classed_flips(reference: FloatArray, logits: FloatArray, spec: ModelSpec, noise_band: float) -> Flips:
    """Class one image's flips as ``segx.masks.agreement`` counts them.

    Args:
        reference: (K, H, W) float32 logits.
        logits: (K, H, W) float32 logits of the variant.
        spec: gives the cut.
        noise_band: flips of margins up to this are benign.
    """
    ours = reference[None]
    expected, found = masks_from_logits(ours, spec), masks_from_logits(logits[None], spec)
    flipped = expected != found
    margins = margins_to(ours, expected, found, spec)
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
