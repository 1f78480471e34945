"""Chromium or Chrome without a window, with a profile of its own, which ends with the process that opened it."""

from __future__ import annotations

import contextlib
import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from segx.errors import RuntimeUnavailable
from segx.system.files import temporary_folder

VARIABLE = "SEGX_CHROMIUM"
_NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
_FLAGS = (
    "--headless=new",
    # Nothing leaves the machine: no updates, no reports, and no name is looked up.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--password-store=basic",
    "--use-mock-keychain",
    # A page that nobody looks at would be slowed down.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-dev-shm-usage",  # in a container it is small
)
_KEEPER = Path(__file__).with_name("keep.py")
_VERSION_TIMEOUT_S = 30.0
_GRACE_S = 10.0


def find_browser() -> str:
    """Return the path of the browser that ``SEGX_CHROMIUM`` names, or of one that is installed.

    Raises:
        RuntimeUnavailable: there is none.
    """
    if named := os.environ.get(VARIABLE):
        if found := shutil.which(named):
            return found
        raise RuntimeUnavailable(
            f"{VARIABLE} names {named}, which is not a program", hint="set it to a Chromium or Chrome, or unset it"
        )
    if found := next(filter(None, map(shutil.which, _NAMES)), None):
        return found
    raise RuntimeUnavailable(
        "no Chromium or Chrome is installed", hint=f"apt-get install chromium, or set {VARIABLE} to one"
    )


def browser_version(path: str) -> str:
    """Return the name and version that a browser reports, such as ``Chromium 150.0.7871.46``.

    Raises:
        RuntimeUnavailable: it does not run.
    """
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=_VERSION_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _does_not_run(path, str(error)) from error
    version = done.stdout.decode(errors="replace").strip()
    if done.returncode or not version:
        raise _does_not_run(path, _reason(done.stderr) or f"exit code {done.returncode}")
    return version.partition(" built on")[0]


class Browser:
    """A running browser that shows one page; leave the context to end it."""

    def __init__(self, url: str, flags: Sequence[str] = ()) -> None:
        """Open the page.

        Raises:
            RuntimeUnavailable: there is no browser.
            OutputError: there is no folder for its profile.
        """
        path = find_browser()
        self.trial = f"see whether `{path} --headless about:blank` runs"
        with contextlib.ExitStack() as on_failure:
            folder = on_failure.enter_context(temporary_folder())
            self._log = folder / "log"
            # As root there is no sandbox; the page is our own.
            sandbox = [] if os.geteuid() else ["--no-sandbox"]
            # Every user can read a command line, but not this folder.
            opener = folder / "open.html"
            opener.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(url)}">')
            command = [path, *_FLAGS, *sandbox, *flags, f"--user-data-dir={folder / 'profile'}", opener.as_uri()]
            with self._log.open("wb") as log:
                self._keeper = subprocess.Popen(
                    [sys.executable, "-I", str(_KEEPER), str(folder), *command],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    # It writes to both, whatever its profile. The name of a socket there may not be long.
                    env={**os.environ, "HOME": str(folder), "TMPDIR": "."},
                    cwd=folder,
                    start_new_session=True,  # out of reach of Ctrl-C
                )
            self._resources = on_failure.pop_all()

    @property
    def ended(self) -> str | None:
        """Return why the browser has ended; None while it runs."""
        code = self._keeper.poll()
        if code is None:
            return None
        return _reason(self._log.read_bytes()) or f"exit code {code}"

    def processes(self) -> list[Path]:
        """Return the folders under /proc of the browser's processes; none where the system has no /proc."""
        return [folder for folder in Path("/proc").glob("[0-9]*") if _session_of(folder.name) == self._keeper.pid]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._keeper.stdin
        self._keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(_GRACE_S)
        self._resources.close()


def _session_of(pid: str) -> int | None:
    with contextlib.suppress(OSError):  # it has ended
        return os.getsid(int(pid))
    return None


def _reason(output: bytes) -> str:
    """Return the line that says why a browser ended, without where in its source."""
    lines = output.decode(errors="replace").strip().splitlines() or [""]
    fatal = [line for line in lines if ":FATAL:" in line]
    return re.sub(r"^\[[^]]*\] *", "", (fatal or lines)[-1])[:200]


def _does_not_run(path: str, reason: str) -> RuntimeUnavailable:
    return RuntimeUnavailable(f"{path} does not run: {reason}", hint=f"set {VARIABLE} to another Chromium or Chrome")
