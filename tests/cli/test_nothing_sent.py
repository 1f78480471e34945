"""No command writes outside its folders, or reaches for the network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import segx
from tests.cli.command import QUICK

STRACE = shutil.which("strace")
ALLOWED = ("/dev/", "/proc/")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Run export, bench and predict with an empty home folder, and return the folder of everything that they know."""
    root = tmp_path_factory.mktemp("place")
    for name in ("home", "tmp", "work"):
        (root / name).mkdir()
    model = root / "model.safetensors"
    shutil.copy(tiny_checkpoint, model)
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "PYTHONPATH": str(Path(segx.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    trace = [STRACE, "-f", "--seccomp-bpf", "-qq", "-o", str(root / "trace"), "-A", "-e", "connect,openat"]
    runtimes = ("--runtime", "pytorch-cpu,onnxruntime-cpu,openvino-cpu", "--batch-size", "1")
    for arguments in (
        ("samples", "--output", "scenes", "--count", "2", "--size", "64"),
        ("export", "--weights", model),
        ("bench", "--weights", model, *runtimes, *QUICK, "--output", "bench"),
        ("predict", "scenes/images", "--weights", model, "--runtime", "openvino-cpu", "--output", "masks"),
    ):
        command = [*(trace if STRACE else ()), sys.executable, "-m", "segx", *map(str, arguments)]
        subprocess.run(command, cwd=root / "work", env=environment, capture_output=True, check=True)
    return root


def test_only_the_named_folders_and_tmpdir_are_written_to(place: Path) -> None:
    assert list((place / "home").iterdir()) == []
    assert {path.name for path in (place / "work").iterdir()} == {"artifacts", "bench", "masks", "scenes"}


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_no_process_connects_or_writes_elsewhere(place: Path) -> None:
    calls = (place / "trace").read_text(errors="replace").splitlines()
    assert any("openat" in call for call in calls)
    assert [call for call in calls if re.search(r"AF_INET6?\b", call)] == []
    opened = [(call, re.findall(r'"(.*?)"', call)[0]) for call in calls if "O_CREAT" in call and "= -1" not in call]
    # The result of a call that another one interrupts is on a later line: it may have failed.
    written = [path for call, path in opened if "<unfinished" not in call or Path(path).exists()]
    outside = [path for path in written if path.startswith("/") and not path.startswith((str(place), *ALLOWED))]
    assert outside == []
