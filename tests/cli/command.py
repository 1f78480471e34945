"""The program in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

QUICK = ("--num-images", "2", "--warmup", "0", "--min-time", "0", "--max-time", "0", "--min-runs", "1")
Benched = tuple[subprocess.CompletedProcess[str], Path]


def segx(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "segx", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )
