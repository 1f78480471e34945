"""One GPU through a double of NVIDIA's library."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from segx.system import machine, nvml
from segx.system.nvml import Nvml


class Library:
    """Double of pynvml: GPUs by PCI bus id, and functions that the driver lacks."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, *, lacks: tuple[str, ...] = (), clock_mhz: int = 0, reasons: int = 0) -> None:
        self.asked: list[str] = []
        self._lacks, self._clock_mhz, self._reasons = lacks, clock_mhz, reasons

    def _may(self, name: str) -> None:
        if name in self._lacks:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's names, here and below
        self._may("init")

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> int:  # noqa: N802
        self._may("handle")
        self.asked.append(bus_id)
        return len(self.asked)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> SimpleNamespace:  # noqa: N802
        self._may("memory")
        return SimpleNamespace(used=1000 + int(handle), free=1, total=2)

    def nvmlDeviceGetClockInfo(self, _handle: Any, kind: int) -> int:  # noqa: N802
        self._may("clock")
        assert kind == self.NVML_CLOCK_SM
        return self._clock_mhz

    def nvmlDeviceGetCurrentClocksEventReasons(self, _handle: Any) -> int:  # noqa: N802
        self._may("reasons")
        return self._reasons


def _install(monkeypatch: pytest.MonkeyPatch, library: Library, *bus_ids: str) -> Library:
    """Install the double, and a CUDA driver that counts GPUs with these PCI bus ids."""
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(machine, "cuda_bus_id", lambda index: dict(enumerate(bus_ids)).get(index, ""))
    return library


@pytest.mark.parametrize("index", [0, 1])
def test_the_gpu_is_the_one_that_cuda_counts(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """CUDA counts the fastest first and only those that are visible, NVML all by their place on the bus."""
    library = _install(monkeypatch, Library(), "0000:65:00.0", "0000:17:00.0")
    assert Nvml.of_cuda_device(index)
    assert library.asked == [("0000:65:00.0", "0000:17:00.0")[index]]


def test_a_gpu_that_cuda_does_not_see_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, Library(), "0000:65:00.0")
    assert Nvml.of_cuda_device(1) is None


@pytest.mark.parametrize("lacks", ["init", "handle", "memory"])
def test_without_driver_device_or_memory_there_is_none(monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    _install(monkeypatch, Library(lacks=(lacks,)), "0000:65:00.0")
    assert Nvml.of_cuda_device(0) is None


def test_the_real_library_finds_no_absent_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Nvml.of_cuda_device(10_000) is None  # with a driver or without
    monkeypatch.setattr(machine, "cuda_bus_id", lambda _: "0000:ff:1f.7")
    assert Nvml.of_cuda_device(0) is None


def test_memory_and_clock_are_those_of_the_handle() -> None:
    gpu = Nvml(Library(clock_mhz=1980), 7)
    assert gpu.used_bytes() == 1007
    assert gpu.clock_mhz() == 1980


def test_a_device_that_reports_nothing_has_neither_clock_nor_reasons() -> None:
    gpu = Nvml(Library(lacks=("clock", "reasons"), clock_mhz=1, reasons=0xFF), 0)
    assert gpu.clock_mhz() is None
    assert gpu.slowed_by() == ()


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0x00, ()),
        (0x01, ()),  # idle
        (0x02, ()),  # clocks that somebody set
        (0x10, ()),  # sync boost
        (0x100, ()),  # display
        (0x04, ("power cap",)),
        (0x08, ("hardware slowdown",)),
        (0x20, ("software thermal slowdown",)),
        (0x40, ("hardware thermal slowdown",)),
        (0x80, ("hardware power brake",)),
        (0x01 | 0x04 | 0x48, ("power cap", "hardware slowdown", "hardware thermal slowdown")),
    ],
)
def test_reasons_for_reduced_clocks_are_named(reasons: int, words: tuple[str, ...]) -> None:
    assert Nvml(Library(reasons=reasons), 0).slowed_by() == words


@pytest.mark.parametrize(
    ("constant", "words"),
    [
        ("SwPowerCap", "power cap"),
        ("HwSlowdown", "hardware slowdown"),
        ("SwThermalSlowdown", "software thermal slowdown"),
        ("HwThermalSlowdown", "hardware thermal slowdown"),
        ("HwPowerBrakeSlowdown", "hardware power brake"),
    ],
)
def test_the_reasons_have_the_bits_of_the_real_library(constant: str, words: str) -> None:
    import pynvml

    assert nvml._SLOWED[getattr(pynvml, f"nvmlClocksEventReason{constant}")] == words


def test_the_double_has_the_shape_of_the_real_library() -> None:
    import pynvml

    shape = [name for name in vars(Library) if name.startswith(("nvml", "NVML"))]
    assert len(shape) >= 7
    assert all(hasattr(pynvml, name) for name in shape)
    assert pynvml.NVML_CLOCK_SM == Library.NVML_CLOCK_SM
    # Functions that an older driver lacks fail with an error of the same kind.
    assert issubclass(pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError)
