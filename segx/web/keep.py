"""Run a program in a process group of its own until it ends, or until whoever started this script is gone.

Run as a script, by a plain interpreter, with a folder and a command. Standard input is a pipe that nobody writes to; it
closes when the other end dies, even by SIGKILL. Then every process of the group is killed and the folder is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_TRIES, _PAUSE_S = 100, 0.05


def _main(folder: str, *command: str) -> int:
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    alone = threading.Event()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)

    def watch() -> None:
        sys.stdin.read()
        alone.set()
        kill()

    threading.Thread(target=watch, daemon=True).start()
    code = program.wait()
    kill()  # what it started and left
    tries = _TRIES if alone.is_set() else 0
    while tries and Path(folder).exists():  # processes that are about to end may still write to it
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_PAUSE_S)
        tries -= 1
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
