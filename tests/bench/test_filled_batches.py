"""Images that also fill up a last batch, and what they may not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import segx
from segx.masks.image_io import write_png
from segx.results.types import Results


def test_an_image_that_is_run_twice_is_no_further_evidence(
    plain_onnx: Path, script: Callable[..., None], tmp_path: Path
) -> None:
    """The same four images, with the same flips, once in batches of 4 and once four times over in a batch of 16."""
    script(flipped_pixels=300, flips_from=2)
    choose = np.random.default_rng(0)
    for number in range(4):
        pixels = choose.integers(0, 256, size=(32, 32), dtype=np.uint8)
        truth = (pixels > 127) ^ (choose.random(pixels.shape) < 0.1 * number)
        write_png(tmp_path / "images" / f"{number}.png", pixels)
        write_png(tmp_path / "masks" / f"{number}.png", truth.astype(np.uint8) * np.uint8(255))
    results: Results = segx.benchmark(
        model=plain_onnx,
        runtimes=["fake"],
        batch_sizes=(4, 16),
        images=tmp_path / "images",
        masks=tmp_path / "masks",
        num_images=4,
        warmup=0,
        min_time_s=0.0,
        min_runs=1,
        max_time_s=0.0,
        max_flips=1.0,
        min_iou=0.0,
    )
    once, four_times = (cell.parity.truth for cell in results.cells if cell.parity)
    assert once
    assert four_times
    assert four_times.loss == pytest.approx(once.loss)
    widths = [score.loss_high - score.loss_low for score in (once, four_times)]
    assert widths[0] > 0.1
    assert widths[1] == pytest.approx(widths[0], rel=0.05)
