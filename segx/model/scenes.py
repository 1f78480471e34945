"""Generated scenes as a model takes them, with their true masks; each use has a series of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segx.masks.image_io import FloatArray, preprocess
from segx.model import synthetic
from segx.model.spec import ModelSpec
from segx.model.synthetic import Sample


def model_inputs(spec: ModelSpec, count: int, *, seed: int) -> Iterator[tuple[Sample, FloatArray]]:
    """The first scenes of a series.

    Args:
        spec: input size, channels and normalisation.
        count: how many.
        seed: of the series.

    Yields:
        Each scene, and its (C, H, W) float32 input; the scene itself is no smaller than scenes can be drawn.
    """
    height, width = (max(n, synthetic.MIN_SIZE) for n in (spec.height, spec.width))
    for scene in synthetic.series(count, seed=seed, height=height, width=width):
        yield scene, preprocess(np.repeat(scene.image[..., None], spec.in_channels, axis=2), spec)
