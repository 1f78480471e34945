from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from segx.errors import RuntimeUnavailable
from segx.web import site_files
from tests.cli.command import segx


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_page_is_served_until_the_command_is_interrupted(
    plain_onnx: Path, tmp_path: Path, number: signal.Signals
) -> None:
    try:
        site_files()
    except RuntimeUnavailable as error:
        pytest.skip(error.message)
    process = subprocess.Popen(
        [sys.executable, "-m", "segx", "demo", "--model", str(plain_onnx), "--runtime", "ort", "--threshold", "0.25"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    with process:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{url}model.json") as answer:
            model = answer.read().decode()
        assert '"threshold": 0.25' in model
        assert '"native": ["onnxruntime-cpu:fp32", ' in model
        os.killpg(process.pid, number)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "press Ctrl-C to stop\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["demo", "--runtime", "openvinos"], "no runtime 'openvinos'"),
        (["demo", "--port", "70000"], "Invalid value for '--port'"),
        (["export", "--format", "web"], "no folder for the site; give one: segx export --format web DIR"),
        (["export", "site"], "site has no effect together with the other options"),
        (["export", "--format", "web", "site", "--output", "x.onnx"], "--output has no effect"),
        (["export", "--format", "web", "site", "--precision", "fp16"], "a site runs fp32 and int8 in ONNX Runtime"),
        (["export", "--format", "web", "site", "--engine", "openvino"], "a site runs fp32 and int8 in ONNX Runtime"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], error: str, tmp_path: Path) -> None:
    done = segx(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {error}")
    assert list(tmp_path.iterdir()) == []
