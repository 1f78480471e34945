"""A run that is killed with no chance to clean up, at some moment, over and over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segx.predict.manifest import Ledger, read_manifest
from segx.predict.output import OutputFolder

_RUN = """
import os, signal, sys, threading
from pathlib import Path
from segx.predict.output import OutputFolder
from segx.predict.manifest import Ledger, Line

out, count, after_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with OutputFolder(out) as folder, Ledger.open(folder, {}, resume=True) as ledger:
    threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for number in range(count):
        name = f"{number % 5}/{number}"
        if name not in ledger.done:
            folder.write(name + ".png", name.encode() * 100_000)
            ledger.append(Line(name, "done", mask=name + ".png"))
os._exit(0)
"""


@pytest.mark.parametrize("count", [300])
def test_masks_are_whole_and_none_is_made_twice(tmp_path: Path, count: int) -> None:
    out = tmp_path / "out"
    for number in range(12):
        command = [sys.executable, "-c", _RUN, str(out), str(count), str(0.01 + 0.007 * number)]
        subprocess.run(command, check=False, timeout=100)
        for path in out.rglob("*.png"):
            name = str(path.relative_to(out).with_suffix(""))
            assert path.read_bytes() == name.encode() * 100_000
    assert (out / "manifest.jsonl").exists()
    subprocess.run([sys.executable, "-c", _RUN, str(out), str(count), "100"], check=True, timeout=100)
    lines = [line.input for line in read_manifest(out / "manifest.jsonl")]
    assert len(lines) == len(set(lines)) == count
    with OutputFolder(out) as folder, Ledger.open(folder, {}, resume=True) as ledger:
        assert len(ledger.done) == count
    assert not list(out.glob(".segx*"))
