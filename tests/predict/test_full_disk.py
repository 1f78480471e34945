"""A disk that is really full: a small file system in memory, in a mount namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """
import itertools, sys
from pathlib import Path
from segx.errors import OutputError
from segx.predict.output import OutputFolder
from segx.predict.manifest import Ledger, Line, read_manifest

out = Path(sys.argv[1]) / "out"
written = 0
with OutputFolder(out) as folder, Ledger.open(folder, {}, resume=False) as ledger:
    try:
        for number in itertools.count():
            folder.write(f"{number}.png", bytes(7000))
            ledger.append(Line(str(number), "done", mask=f"{number}.png"))
            written += 1
    except OutputError as error:
        print(error, "-", error.hint)
with OutputFolder(out) as folder, Ledger.open(folder, {}, resume=True) as ledger:
    assert len(ledger.done) == written > 10
    assert all(path.stat().st_size == 7000 for path in out.glob("*.png"))
    assert not list((out / ".segx-partial").iterdir())
    try:
        while True:
            ledger.append(Line("x" * 1000, "failed"))
    except OutputError as error:
        print(error, "-", error.hint)
    assert ledger.path.read_bytes().endswith(b"\\n")
    assert sum(1 for _ in read_manifest(ledger.path)) >= written
"""


def test_nothing_is_half_written_when_the_disk_is_full(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    mount = ["sh", "-c", 'mount -t tmpfs -o size=400k tmpfs "$1" && shift && exec "$@"', "sh", str(tmp_path)]
    if unshare is None or subprocess.run([unshare, "-m", *mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    command = [unshare, "-m", *mount, sys.executable, "-c", _RUN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "No space left on device - free some space" in first
    assert "manifest.jsonl" in second
    assert "free some space" in second
