from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from segx.errors import RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.web import decoder_files, engine_files, static_files
from tests.builders import exported_onnx


@pytest.fixture(scope="session")
def page_files() -> dict[str, Path]:
    """The files of the pages, as they are served."""
    try:
        return {**static_files(), **decoder_files(), **engine_files()}
    except RuntimeUnavailable as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[[ModelSpec], Path]:
    """Make an exported file whose logits are weighted sums of the channels of a pixel."""

    def make(spec: ModelSpec) -> Path:
        shape = (spec.classes, spec.in_channels, 1, 1)
        weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        bias = -weights.sum(axis=(1, 2, 3)) / 2
        nodes = [helper.make_node("Conv", ["image", "weights", "bias"], ["logits"])]
        path, facts = tmp_path / f"{spec.classes}.onnx", {"checkpoint": "<b>sums.pt", "weights_sha256": "1" * 64}
        return exported_onnx(path, spec, nodes, {"weights": weights, "bias": bias}, **facts)

    return make
