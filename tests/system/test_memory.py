"""Memory figures against allocations of known size, and by sampling where the kernel's peak cannot be reset."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segx.system import memory
from segx.system.memory import DeviceMemoryMeter, HostMemoryMeter
from segx.system.nvml import Nvml

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def in_fresh_process(code: str) -> subprocess.CompletedProcess[str]:
    prelude = "import numpy as np\nfrom segx.system.memory import *\n"
    return subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False)


@linux_only
def test_a_passed_peak_counts() -> None:
    done = in_fresh_process(
        "before = np.ones(300_000_000, dtype=np.uint8); del before\n"
        "meter = HostMemoryMeter()\n"
        "kept = np.ones(50_000_000, dtype=np.uint8)\n"
        "peak = np.ones(100_000_000, dtype=np.uint8); del peak\n"
        "memory = meter.read()\n"
        "print(memory.peak_bytes - memory.imported_bytes, memory.steady_bytes - memory.imported_bytes)\n"
    )
    needed, steady = map(int, done.stdout.split())
    assert needed == pytest.approx(150e6, rel=0.05)
    assert steady == pytest.approx(50e6, rel=0.05)


@linux_only
def test_the_memory_of_other_processes_adds_up_and_one_that_ended_no_longer_counts() -> None:
    holds = "import sys; kept = bytearray(b'x') * int(sys.argv[1]); print(flush=True); sys.stdin.read()"
    done = in_fresh_process(
        "import subprocess\n"
        "from pathlib import Path\n"
        f"start = lambda size: subprocess.Popen([sys.executable, '-c', {holds!r}, str(size)], stdin=-1, stdout=-1)\n"
        "children = [start(60_000_000), start(40_000_000)]\n"
        "for child in children: child.stdout.readline()\n"
        "meter = HostMemoryMeter([Path(f'/proc/{child.pid}') for child in children])\n"
        "held = meter.read().steady_bytes\n"
        "meter.model_is_loaded()\n"
        "children[0].communicate()\n"
        "print(held, meter.read().steady_bytes, meter.read().peak_bytes, meter.read().method)\n"
    )
    held, left, peak, method = done.stdout.split(maxsplit=3)
    assert int(peak) == int(held)
    assert int(held) == pytest.approx(100e6, rel=0.2)
    assert int(held) - int(left) == pytest.approx(60e6, rel=0.2)
    assert "of 2 processes" in method


@linux_only
def test_files_mapped_for_reading_do_not_count() -> None:
    done = in_fresh_process(
        "import os, tempfile\n"
        "file = tempfile.NamedTemporaryFile()\n"
        "np.ones(100_000_000, dtype=np.uint8).tofile(file.name)\n"
        "os.fsync(file.fileno())\n"
        "meter = HostMemoryMeter()\n"
        "mapped = np.memmap(file.name, mode='r')\n"
        "print(int(mapped.sum()), meter.read().peak_bytes - meter._imported)\n"
    )
    total, needed = map(int, done.stdout.split())
    assert total == 100_000_000
    assert needed < 10_000_000


@linux_only
def test_allocations_over_the_limit_fail_and_those_under_it_do_not() -> None:
    done = in_fresh_process(
        "limit_this_process(200_000_000)\n"
        "np.ones(150_000_000, dtype=np.uint8)\n"
        "print('fits')\n"
        "try: np.ones(250_000_000, dtype=np.uint8)\n"
        "except MemoryError: print('refused')\n"
    )
    assert done.stdout.split() == ["fits", "refused"], done.stderr


class Pynvml:
    """Double of pynvml: one GPU whose used memory follows a script."""

    class NVMLError(Exception):
        pass

    def __init__(self, used: list[int]) -> None:
        self._used = iter(used)
        self._last = 0

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's name
        pass

    def nvmlDeviceGetHandleByPciBusId(self, _: str) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetMemoryInfo(self, _handle: Any) -> SimpleNamespace:  # noqa: N802
        self._last = next(self._used, self._last)
        return SimpleNamespace(used=self._last)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pynvml]:
    def install(*used: int) -> Pynvml:
        double = Pynvml(list(used))
        monkeypatch.setitem(sys.modules, "pynvml", double)
        return double

    monkeypatch.setattr("segx.system.machine.cuda_bus_id", lambda _: "0000:01:00.0")
    return install


def test_device_memory_is_the_peak_above_what_was_used_before(nvml: Callable[..., Pynvml]) -> None:
    gpu = nvml(1000, 1000, 1500, 4000, 2000)  # the first is read to see whether the device reports it
    sampler = DeviceMemoryMeter(Nvml.of_cuda_device(0))
    with sampler.watching():
        while gpu._last != 2000:
            pass
    reading = sampler.read()
    assert reading
    assert reading.peak_bytes == 3000
    assert "NVML" in reading.method


def test_memory_that_others_take_between_two_rounds_does_not_count(nvml: Callable[..., Pynvml]) -> None:
    gpu = nvml(1000, 1000, 3000)
    sampler = DeviceMemoryMeter(Nvml.of_cuda_device(0))
    with sampler.watching():
        while gpu._last != 3000:
            pass
    gpu._used = iter([8000, 8500])  # another worker took 5000 meanwhile
    with sampler.watching():
        while gpu._last != 8500:
            pass
    reading = sampler.read()
    assert reading
    assert reading.peak_bytes == 2500


def test_without_nvml_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(Pynvml):
        def nvmlInit(self) -> None:  # noqa: N802
            raise self.NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", Absent([]))
    sampler = DeviceMemoryMeter(Nvml.of_cuda_device(0))
    with sampler.watching():
        pass
    assert sampler.read() is None


# By sampling

_LONG_S = 60.0  # waited for only if something is broken


class Process:
    """Memory as the test sets it."""

    def __init__(self) -> None:
        self.dirty: int | None = 100
        self._seen = threading.Condition()
        self._seen_by_others: list[int | None] = []

    def dirty_bytes(self, _process: Path) -> int | None:
        value = self.dirty
        if threading.current_thread() is not threading.main_thread():
            with self._seen:
                self._seen_by_others.append(value)
                self._seen.notify_all()
        return value

    def holds_until_seen(self, value: int | None) -> None:
        """Hold this much until the sampler has seen it."""
        with self._seen:
            self._seen_by_others.clear()
            self.dirty = value
            # Twice: the first may still be on its way to the sampler.
            assert self._seen.wait_for(lambda: self._seen_by_others.count(value) >= 2, timeout=_LONG_S)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """Return a process whose peak cannot be reset."""
    process_double = Process()
    monkeypatch.setattr(memory, "dirty_bytes", process_double.dirty_bytes)
    monkeypatch.setattr(memory, "_reset_peak", lambda _: False)
    return process_double


def test_a_passed_peak_is_sampled(process: Process) -> None:
    meter = HostMemoryMeter()
    process.dirty = 300
    meter.model_is_loaded()
    process.holds_until_seen(900)
    process.holds_until_seen(400)
    meter.about_to_time()
    read = meter.read()
    assert read
    assert (read.imported_bytes, read.loaded_bytes, read.steady_bytes, read.peak_bytes) == (100, 300, 400, 900)
    assert read.peak_bytes - read.imported_bytes == 800
    assert "sampled every 10 ms until the timed calls" in read.method


def test_no_thread_runs_during_timed_calls(process: Process) -> None:
    threads = threading.active_count()
    meter = HostMemoryMeter()
    assert threading.active_count() == threads + 1
    process.holds_until_seen(500)
    meter.about_to_time()
    assert threading.active_count() == threads
    process.dirty = 5000  # during a timed call
    process.dirty = 200
    read = meter.read()
    assert read
    assert (read.steady_bytes, read.peak_bytes) == (200, 500)


def test_the_peak_is_never_below_what_is_held_at_the_end(process: Process) -> None:
    meter = HostMemoryMeter()
    meter.about_to_time()
    process.dirty = 700
    read = meter.read()
    assert read
    assert (read.steady_bytes, read.peak_bytes) == (700, 700)


def test_memory_held_when_sampling_ends_counts(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where loading and warm-up are shorter than the interval, so that the thread never looked."""
    monkeypatch.setattr(memory, "_INTERVAL_S", _LONG_S)
    meter = HostMemoryMeter()
    process.dirty = 600
    meter.about_to_time()
    process.dirty = 150
    read = meter.read()
    assert read
    assert read.peak_bytes == 600


def test_reading_ends_the_sampler_too(process: Process) -> None:
    threads = threading.active_count()
    meter = HostMemoryMeter()
    process.holds_until_seen(500)
    assert meter.read()
    assert threading.active_count() == threads
    process.dirty = 300
    again = meter.read()
    assert again
    assert again.peak_bytes == 500


def test_a_sampler_that_fails_to_read_goes_on(process: Process) -> None:
    meter = HostMemoryMeter()
    process.holds_until_seen(500)
    process.holds_until_seen(None)
    process.holds_until_seen(800)
    process.dirty = 100
    meter.about_to_time()
    read = meter.read()
    assert read
    assert read.peak_bytes == 800


def test_a_system_that_reports_nothing_gives_no_figures(process: Process) -> None:
    process.dirty = None
    meter = HostMemoryMeter()
    meter.model_is_loaded()
    meter.about_to_time()
    assert meter.read() is None


def test_nothing_is_sampled_if_the_peak_can_be_reset(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_peak", lambda _: True)
    monkeypatch.setattr(memory, "_status_bytes", lambda _, key: {"VmHWM": 5000, "VmRSS": 4000}[key])
    threads = threading.active_count()
    meter = HostMemoryMeter()
    assert threading.active_count() == threads
    process.dirty = 3000
    meter.about_to_time()
    read = meter.read()
    assert read
    assert (read.steady_bytes, read.peak_bytes) == (3000, 4000)  # 1000 resident bytes are not dirty
    assert "VmHWM reset after import" in read.method


def test_a_container_that_denies_the_reset_is_noticed(tmp_path: Path) -> None:
    assert memory._reset_peak(tmp_path)
    assert (tmp_path / "clear_refs").read_text() == "5"
    (tmp_path / "clear_refs").unlink()
    (tmp_path / "clear_refs").mkdir()  # not writable, even as root
    assert not memory._reset_peak(tmp_path)
    assert not memory._reset_peak(tmp_path / "absent")


def test_dirty_memory_counts_shared_and_swapped_pages(tmp_path: Path) -> None:
    assert memory.dirty_bytes(tmp_path) is None
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
    assert memory.dirty_bytes(tmp_path) == 62 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_allocation_is_seen_by_sampling() -> None:
    code = (
        "import time\n"
        "import numpy as np\n"
        "from segx.system import memory\n"
        "memory._reset_peak = lambda _: False\n"
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
