from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import QUICK, Benched, segx


@pytest.fixture(scope="session")
def benched(plain_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Benched:
    """A bench of two runtimes as a user runs it, and the folder it ran in; its results are in ``out``."""
    folder = tmp_path_factory.mktemp("benched")
    arguments = ("--model", plain_onnx, "--runtime", "onnxruntime-cpu", "--runtime", "fake", "--batch-size", "1,2")
    return segx("bench", *arguments, *QUICK, "--output", "out", cwd=folder), folder
