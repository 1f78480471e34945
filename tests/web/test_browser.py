from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segx import web
from segx.errors import RuntimeUnavailable
from segx.web.browser import Browser, browser_version, find_browser

_LONG_S = 60.0  # waited for only if something is broken


def test_a_browser_that_is_missing_is_unavailable_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEGX_CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(RuntimeUnavailable, match="which is not a program"):
        find_browser()
    monkeypatch.delenv("SEGX_CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("segx.web.browser._NAMES", ("chromium",))
    with pytest.raises(RuntimeUnavailable, match="no Chromium or Chrome") as caught:
        find_browser()
    assert "SEGX_CHROMIUM" in caught.value.hint


@pytest.mark.parametrize(
    ("script", "complaint"), [("echo 'needs the snap' >&2; exit 1", "needs the snap"), ("exit 0", "exit code 0")]
)
def test_a_browser_that_does_not_run_is_unavailable(script: str, complaint: str, tmp_path: Path) -> None:
    program = tmp_path / "chromium"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeUnavailable, match=complaint):
        browser_version(str(program))


def test_an_engine_that_is_missing_or_of_another_version_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(web, "_PACKAGES", tmp_path)
    with pytest.raises(RuntimeUnavailable, match="onnxruntime-web's files are missing") as caught:
        web.engine_files()
    assert "npm ci --prefix segx/web" in caught.value.hint
    for name in web.PACKAGE_FILES["onnxruntime-web"]:
        path = tmp_path / "onnxruntime-web" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"version": "1.2.3"}))
    with pytest.raises(RuntimeUnavailable, match=r"onnxruntime-web is 1\.2\.3"):
        web.engine_files()


_OPENS = """
import signal, sys
from segx.web.browser import Browser
with Browser("about:blank") as browser:
    print("open", flush=True)
    sys.stdin.read()
"""


def _browsers(folder: Path) -> list[bytes]:
    """The command lines of the processes that have a profile in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"={folder}".encode() in (line := (process / "cmdline").read_bytes()):
                found.append(line)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("how", ["closed", "killed", "killed while stopped"])
@pytest.mark.usefixtures("browser_ready")
def test_the_browser_and_its_profile_go_with_the_process_that_opened_it(how: str, tmp_path: Path) -> None:
    opener = subprocess.Popen(
        [sys.executable, "-c", _OPENS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert opener.stdout
    assert opener.stdin
    assert opener.stdout.readline() == b"open\n"
    until = time.monotonic() + _LONG_S
    while not list(tmp_path.glob("*/profile/Default/*")):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert _browsers(tmp_path)
    if how == "killed while stopped":
        opener.send_signal(signal.SIGSTOP)
    if how != "closed":
        opener.kill()
    opener.communicate()
    while (_browsers(tmp_path) or list(tmp_path.iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    assert _browsers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")
def test_what_a_browser_says_as_it_ends_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "chromium"
    program.write_text(
        "#!/bin/sh\necho '[1126/075739.94:FATAL:zygote.cc:128] No usable sandbox!' >&2\necho more\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("SEGX_CHROMIUM", str(program))
    with Browser("about:blank") as browser:
        until = time.monotonic() + _LONG_S
        while browser.ended is None and time.monotonic() < until:
            time.sleep(0.01)
        assert browser.ended == "No usable sandbox!"
