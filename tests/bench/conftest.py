"""A model that needs no training and no torch: logits are the image's brightness about one half, times 20."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segx.export.artifact import Artifact
from segx.runtimes.fake import SCRIPT_VARIABLE
from segx.spec import ModelSpec

PLAIN_SPEC = ModelSpec(height=32, width=32)


@pytest.fixture(scope="session")
def plain_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with segx's metadata that computes what the fake runtime computes."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", *PLAIN_SPEC.input_shape]
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["image", "half"], ["centred"]),
            helper.make_node("Mul", ["centred", "scale"], ["logits"]),
        ],
        "plain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [20.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    artifact = Artifact(
        path=path,
        spec=PLAIN_SPEC,
        output_kind="logits",
        checkpoint="plain.safetensors",
        weights_sha256="0" * 64,
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )
    for key, value in artifact.metadata().items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what the fake runtime shall do."""

    def write(**values: Any) -> None:
        monkeypatch.setenv(SCRIPT_VARIABLE, json.dumps(values))

    return write


def run_segx(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "segx", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )
