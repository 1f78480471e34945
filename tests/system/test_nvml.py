"""One GPU through a double of NVIDIA's library."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from segx.system import nvml
from segx.system.nvml import Nvml


class Library:
    """Double of pynvml: GPUs by index or UUID, and functions that the driver lacks."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, *, lacks: tuple[str, ...] = (), clock_mhz: int = 0, reasons: int = 0) -> None:
        self.asked: list[int | str] = []
        self._lacks, self._clock_mhz, self._reasons = lacks, clock_mhz, reasons

    def _may(self, name: str) -> None:
        if name in self._lacks:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's names, here and below
        self._may("init")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._may("handle")
        self.asked.append(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._may("handle")
        self.asked.append(uuid)
        return uuid

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


def _install(monkeypatch: pytest.MonkeyPatch, library: Library, visible: str | None = None) -> Library:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    return library


@pytest.mark.parametrize(
    ("visible", "index", "asked"),
    [
        (None, 0, 0),
        (None, 2, 2),
        ("", 1, 1),
        ("3,1", 0, 3),
        ("3,1", 1, 1),
        (" 5 , 7 ", 1, 7),
        ("GPU-0a1b,2", 0, "GPU-0a1b"),
        ("GPU-0a1b,2", 1, 2),
    ],
)
def test_the_gpu_is_the_one_that_cuda_counts(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, index: int, asked: int | str
) -> None:
    library = _install(monkeypatch, Library(), visible)
    monkeypatch.setattr(library, "nvmlDeviceGetMemoryInfo", lambda _: SimpleNamespace(used=0))
    assert Nvml.of_cuda_device(index)
    assert library.asked == [asked]


def test_a_gpu_that_cuda_does_not_see_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, Library(), "3")
    assert Nvml.of_cuda_device(1) is None


@pytest.mark.parametrize("lacks", ["init", "handle", "memory"])
@pytest.mark.parametrize("visible", ["0", "GPU-0a1b"])
def test_without_driver_device_or_memory_there_is_none(
    monkeypatch: pytest.MonkeyPatch, lacks: str, visible: str
) -> None:
    library = Library(lacks=(lacks,))
    monkeypatch.setattr(library, "nvmlDeviceGetHandleByUUID", lambda _: library.nvmlDeviceGetHandleByIndex(0))
    _install(monkeypatch, library, visible)
    assert Nvml.of_cuda_device(0) is None


def test_the_real_library_finds_no_absent_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Nvml.of_cuda_device(10_000) is None  # with a driver or without
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000000-0000-0000-0000-000000000000")
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
    assert len(shape) >= 8
    assert all(hasattr(pynvml, name) for name in shape)
    assert pynvml.NVML_CLOCK_SM == Library.NVML_CLOCK_SM
    # Functions that an older driver lacks fail with an error of the same kind.
    assert issubclass(pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError)
