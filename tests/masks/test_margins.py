"""Kinds of flips, and histograms of margins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.masks.agreement import BENIGN, MARGIN_EDGES, REAL, SAME, classify_flips, compare_logits
from segx.masks.preprocess import FloatArray
from segx.model.spec import ModelSpec
from segx.results.types import Parity

MakeParity = Callable[..., Parity]
Script = Callable[..., None]

SIZE = 24


def spec_for(classes: int, **changes: Any) -> ModelSpec:
    return ModelSpec(height=SIZE, width=SIZE, classes=classes, **changes)


def made_up(classes: int, count: int, noise: float, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    generator = np.random.default_rng(seed)
    reference = generator.normal(0, 1, (count, classes, SIZE, SIZE)).astype(np.float32)
    return reference, (reference + generator.normal(0, noise, reference.shape)).astype(np.float32)


# Flips


@given(st.integers(1, 4), st.floats(0.0, 0.5), st.floats(0.0, 0.3), st.integers(0, 99))
def test_flips_are_those_that_parity_counts(classes: int, noise: float, band: float, seed: int) -> None:
    spec = spec_for(classes)
    reference, logits = made_up(classes, 2, noise, seed)
    parity = compare_logits(reference, logits, spec, ["a", "b"], noise_band=band)
    for index, image in enumerate(parity.per_image):
        flips = classify_flips(reference[index], logits[index], spec, band)
        assert (flips.kinds == BENIGN).sum() == image.benign_flips
        assert (flips.kinds == REAL).sum() == image.flipped_pixels - image.benign_flips
        assert ((flips.reference != flips.mask) == (flips.kinds != SAME)).all()


@given(st.integers(1, 4), st.floats(0.0, 0.5), st.integers(0, 99))
def test_the_histogram_has_every_pixel_and_every_flip_once(classes: int, noise: float, seed: int) -> None:
    reference, logits = made_up(classes, 1, noise, seed)
    flips = classify_flips(reference[0], logits[0], spec_for(classes), 0.05)
    histogram = flips.histogram
    assert len(histogram.pixels) == len(MARGIN_EDGES) - 1
    assert sum(histogram.pixels) == SIZE * SIZE
    assert sum(histogram.benign) == (flips.kinds == BENIGN).sum()
    assert sum(histogram.real) == (flips.kinds == REAL).sum()
    assert all(b + r <= n for n, b, r in zip(histogram.pixels, histogram.benign, histogram.real, strict=True))
    # Inside the band and outside it are different bins but for the one that holds its edge.
    benign, real = (np.flatnonzero(counts) for counts in (histogram.benign, histogram.real))
    assert not (benign.size and real.size) or benign.max() <= real.min()


@pytest.mark.parametrize(
    ("margin", "edge"), [(0.0, 0.0), (1e-9, 0.0), (0.011, 1e-2), (50.0, 10**1.5), (5e4, MARGIN_EDGES[-2])]
)
def test_a_margin_is_the_distance_from_the_cut(margin: float, edge: float) -> None:
    spec = spec_for(1, threshold=0.7)
    reference = np.full((1, SIZE, SIZE), spec.logit_threshold + margin, dtype=np.float64).astype(np.float32)
    if margin == 0.0:
        reference[:] = np.float32(spec.logit_threshold)
    (filled,) = np.flatnonzero(classify_flips(reference, reference, spec, 0.0).histogram.pixels)
    assert MARGIN_EDGES[filled] == pytest.approx(edge)


def test_the_margin_of_several_classes_is_half_the_lead() -> None:
    reference = np.zeros((3, SIZE, SIZE), dtype=np.float32)
    reference[1], reference[2] = 5.0, 3.0
    (filled,) = np.flatnonzero(classify_flips(reference, reference, spec_for(3), 0.0).histogram.pixels)
    assert MARGIN_EDGES[filled] <= 1.0 < MARGIN_EDGES[filled + 1]
    flipped = reference.copy()
    flipped[0] = 9.0  # over the class it flipped to the lead is 5
    (filled,) = np.flatnonzero(classify_flips(reference, flipped, spec_for(3), 0.0).histogram.real)
    assert MARGIN_EDGES[filled] <= 2.5 < MARGIN_EDGES[filled + 1]
