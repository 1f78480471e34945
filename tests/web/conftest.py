from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segx.errors import RuntimeUnavailable
from segx.export.artifact import Artifact
from segx.model.spec import ModelSpec
from segx.web import decoder_files, engine_files, static_files


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
        graph = helper.make_graph(
            [helper.make_node("Conv", ["image", "weights", "bias"], ["logits"])],
            "sums",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *spec.input_shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *spec.output_shape])],
            [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(bias, "bias")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        path = tmp_path / f"{spec.classes}.onnx"
        facts = Artifact(
            path=path,
            spec=spec,
            output_kind="logits",
            checkpoint="<b>sums.pt",
            weights_sha256="1" * 64,
            versions={},
        )
        helper.set_model_props(model, facts.metadata())
        onnx.save(model, path)
        return path

    return make
