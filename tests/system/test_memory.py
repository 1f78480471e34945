"""Memory figures against allocations of known size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from segx.system.memory import DeviceMemoryMeter
from segx.system.nvml import Nvml

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def in_fresh_process(code: str) -> subprocess.CompletedProcess[str]:
    prelude = "import numpy as np\nfrom segx.system.memory import *\n"
    return subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False)


@linux_only
def test_a_peak_that_is_gone_is_still_seen() -> None:
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
    """Stands in for pynvml: one GPU whose used memory follows a script."""

    class NVMLError(Exception):
        pass

    def __init__(self, used: list[int]) -> None:
        self.asked: list[Any] = []
        self._used = iter(used)
        self._last = 0

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's name
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self.asked.append(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetMemoryInfo(self, _handle: Any) -> SimpleNamespace:  # noqa: N802
        self._last = next(self._used, self._last)
        return SimpleNamespace(used=self._last)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pynvml]:
    def install(*used: int) -> Pynvml:
        stand_in = Pynvml(list(used))
        monkeypatch.setitem(sys.modules, "pynvml", stand_in)
        return stand_in

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


def test_device_memory_is_the_peak_above_what_was_used_before(nvml: Callable[..., Pynvml]) -> None:
    gpu = nvml(1000, 1000, 1500, 4000, 2000)  # the first is asked whether the device tells at all
    sampler = DeviceMemoryMeter(Nvml.of_cuda_device(0))
    with sampler.watching():
        while gpu._last != 2000:
            pass
    memory = sampler.read()
    assert memory
    assert memory.peak_bytes == 3000
    assert "NVML" in memory.method


def test_memory_that_others_take_between_two_turns_is_not_charged(nvml: Callable[..., Pynvml]) -> None:
    gpu = nvml(1000, 1000, 3000)
    sampler = DeviceMemoryMeter(Nvml.of_cuda_device(0))
    with sampler.watching():
        while gpu._last != 3000:
            pass
    gpu._used = iter([8000, 8500])  # another worker took 5000 meanwhile
    with sampler.watching():
        while gpu._last != 8500:
            pass
    memory = sampler.read()
    assert memory
    assert memory.peak_bytes == 2500


@pytest.mark.parametrize(("visible", "asked"), [("3,1", 3), ("GPU-abc", "GPU-abc"), ("", 0)])
def test_the_gpu_watched_is_the_one_cuda_counts_as_first(
    nvml: Callable[..., Pynvml], monkeypatch: pytest.MonkeyPatch, visible: str, asked: int | str
) -> None:
    gpu = nvml(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    DeviceMemoryMeter(Nvml.of_cuda_device(0))
    assert gpu.asked == [asked]


def test_without_nvml_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(Pynvml):
        def nvmlInit(self) -> None:  # noqa: N802
            raise self.NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", Absent([]))
    sampler = DeviceMemoryMeter(Nvml.of_cuda_device(0))
    with sampler.watching():
        pass
    assert sampler.read() is None
