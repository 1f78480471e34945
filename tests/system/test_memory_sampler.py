"""The peak by sampling, where the kernel's own cannot be reset; on memory that the test sets."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from segx.system import memory
from segx.system.memory import HostMemoryMeter

_LONG_S = 60.0  # only ever waited for where something is broken


class Process:
    """Private memory as the test sets it."""

    def __init__(self) -> None:
        self.private: int | None = 100
        self._seen = threading.Condition()
        self._seen_by_others: list[int | None] = []

    def dirty_bytes(self) -> int | None:
        value = self.private
        if threading.current_thread() is not threading.main_thread():
            with self._seen:
                self._seen_by_others.append(value)
                self._seen.notify_all()
        return value

    def holds_until_seen(self, value: int | None) -> None:
        """Take so much until the sampler has looked at it."""
        with self._seen:
            self._seen_by_others.clear()
            self.private = value
            # Twice: the first may still be on its way to the sampler.
            assert self._seen.wait_for(lambda: self._seen_by_others.count(value) >= 2, timeout=_LONG_S)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """One whose peak cannot be reset."""
    stand_in = Process()
    monkeypatch.setattr(memory, "dirty_bytes", stand_in.dirty_bytes)
    monkeypatch.setattr(memory, "_reset_peak", lambda: False)
    return stand_in


def test_a_peak_that_is_gone_was_seen(process: Process) -> None:
    meter = HostMemoryMeter()
    process.private = 300
    meter.model_is_loaded()
    process.holds_until_seen(900)
    process.holds_until_seen(400)
    meter.about_to_time()
    read = meter.read()
    assert read
    assert (read.imported_bytes, read.loaded_bytes, read.steady_bytes, read.peak_bytes) == (100, 300, 400, 900)
    assert read.peak_bytes - read.imported_bytes == 800
    assert "sampled every 10 ms until the timed calls" in read.method


def test_nothing_runs_beside_timed_calls(process: Process) -> None:
    threads = threading.active_count()
    meter = HostMemoryMeter()
    assert threading.active_count() == threads + 1
    process.holds_until_seen(500)
    meter.about_to_time()
    assert threading.active_count() == threads
    process.private = 5000  # during a timed call
    process.private = 200
    read = meter.read()
    assert read
    assert (read.steady_bytes, read.peak_bytes) == (200, 500)


def test_the_peak_is_never_below_what_is_held_at_the_end(process: Process) -> None:
    meter = HostMemoryMeter()
    meter.about_to_time()
    process.private = 700
    read = meter.read()
    assert read
    assert (read.steady_bytes, read.peak_bytes) == (700, 700)


def test_what_is_held_when_sampling_ends_counts(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where loading and warm-up are shorter than the interval, so that the thread never looked."""
    monkeypatch.setattr(memory, "_INTERVAL_S", _LONG_S)
    meter = HostMemoryMeter()
    process.private = 600
    meter.about_to_time()
    process.private = 150
    read = meter.read()
    assert read
    assert read.peak_bytes == 600


def test_reading_ends_the_sampler_too(process: Process) -> None:
    threads = threading.active_count()
    meter = HostMemoryMeter()
    process.holds_until_seen(500)
    assert meter.read()
    assert threading.active_count() == threads
    process.private = 300
    again = meter.read()
    assert again
    assert again.peak_bytes == 500


def test_a_sampler_that_fails_to_read_goes_on(process: Process) -> None:
    meter = HostMemoryMeter()
    process.holds_until_seen(500)
    process.holds_until_seen(None)
    process.holds_until_seen(800)
    process.private = 100
    meter.about_to_time()
    read = meter.read()
    assert read
    assert read.peak_bytes == 800


def test_a_system_that_does_not_tell_gives_no_figures(process: Process) -> None:
    process.private = None
    meter = HostMemoryMeter()
    meter.model_is_loaded()
    meter.about_to_time()
    assert meter.read() is None


def test_where_the_peak_can_be_reset_nothing_is_sampled(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_peak", lambda: True)
    monkeypatch.setattr(memory, "_status_bytes", {"VmHWM": 5000, "VmRSS": 4000}.__getitem__)
    threads = threading.active_count()
    meter = HostMemoryMeter()
    assert threading.active_count() == threads
    process.private = 3000
    meter.about_to_time()
    read = meter.read()
    assert read
    assert (read.steady_bytes, read.peak_bytes) == (3000, 4000)  # 1000 resident pages are not private
    assert "VmHWM reset after import" in read.method


def test_a_container_that_denies_the_reset_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert memory._reset_peak()
    assert (tmp_path / "clear_refs").read_text() == "5"
    (tmp_path / "clear_refs").unlink()
    (tmp_path / "clear_refs").mkdir()  # whoever runs the tests may not write to that
    assert not memory._reset_peak()
    monkeypatch.setattr(memory, "_PROC", tmp_path / "absent")
    assert not memory._reset_peak()


def test_dirty_memory_counts_shared_and_swapped_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert memory.dirty_bytes() is None
    lines = [
        "55a0-7fff ---p 00000000 00:00 0    [rollup]",
        "Rss:    9000 kB",
        "Private_Clean:   70 kB",
        "Shared_Dirty:   20 kB",
        "Private_Dirty:   30 kB",
        "Swap:   12 kB",
        "SwapPss:   5 kB",
    ]
    (tmp_path / "smaps_rollup").write_text("\n".join(lines))
    assert memory.dirty_bytes() == 62 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_allocation_is_seen_by_sampling() -> None:
    code = (
        "import time\n"
        "import numpy as np\n"
        "from segx.system import memory\n"
        "memory._reset_peak = lambda: False\n"
        "meter = memory.HostMemoryMeter()\n"
        "kept = np.ones(20_000_000, dtype=np.uint8)\n"
        "peak = np.ones(80_000_000, dtype=np.uint8)\n"
        "until = time.monotonic() + 60\n"
        "whole = meter._imported + 99_000_000\n"
        "while meter._sampler.peak < whole and time.monotonic() < until: time.sleep(0.01)\n"
        "del peak\n"
        "meter.about_to_time()\n"
        "late = np.ones(300_000_000, dtype=np.uint8); del late\n"
        "read = meter.read()\n"
        "print(read.peak_bytes - read.imported_bytes, read.steady_bytes - read.imported_bytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed, steady = map(int, done.stdout.split())
    assert needed == pytest.approx(100e6, rel=0.05)
    assert steady == pytest.approx(20e6, rel=0.1)
