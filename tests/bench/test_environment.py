"""Throttling, stolen time and clocks of a round, read from files of the test."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from segx.bench import environment
from segx.bench.environment import RoundConditions, stolen_s, throttled_s
from segx.results.types import Round
from segx.system.nvml import Nvml

V2 = "usage_usec 900000000\nuser_usec 800000000\nnr_periods 50\nnr_throttled 7\nthrottled_usec {}\nnr_bursts 0\n"
V1 = "nr_periods 50\nnr_throttled 7\nthrottled_time {}\n"
STAT = "cpu  100 200 300 4000 50 60 70 {} 9 10\ncpu0 1 2 3 4 5 6 7 99999 9 10\nctxt 12345\n"
TICKS = os.sysconf("SC_CLK_TCK")


def _cgroup(folder: Path, v2: str | None, v1: str | None) -> Path:
    files = folder / "cpu.stat", folder / "cpu" / "cpu.stat"
    for path, text in zip(files, (v2, v1), strict=True):
        if text is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("v2", "v1", "seconds"),
    [
        (V2.format(1_500_000), None, 1.5),
        (None, V1.format(2_500_000_000), 2.5),
        (V2.format(0), None, 0.0),
        (V2.format(1_500_000), V1.format(9_000_000_000), 9.0),
        ("usage_usec 900\nuser_usec 800\n", None, 0.0),  # the root group has no quota
        ("usage_usec 900\nuser_usec 800\n", V1.format(2_500_000_000), 2.5),
        ("", None, 0.0),
        (None, None, 0.0),
    ],
)
def test_throttled_seconds_are_those_of_either_version_of_cgroups(
    tmp_path: Path, v2: str | None, v1: str | None, seconds: float
) -> None:
    assert throttled_s(_cgroup(tmp_path, v2, v1)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "ticks"),
    [
        (STAT.format(0), 0),
        (STAT.format(450), 450),
        ("cpu0 1 2 3 4 5 6 7 99999 9 10\n", 0),  # that of one processor is not that of all
        ("cpu  1 2 3 4 5 6 7\n", 0),  # kernels before 2.6.11
        ("", 0),
    ],
)
def test_stolen_seconds_are_the_eighth_figure_in_clock_ticks(tmp_path: Path, text: str, ticks: int) -> None:
    (tmp_path / "stat").write_text(text)
    assert stolen_s(tmp_path / "stat") == pytest.approx(ticks / TICKS)


def test_without_proc_nothing_is_stolen(tmp_path: Path) -> None:
    assert stolen_s(tmp_path / "stat") == 0.0


def test_counters_of_this_machine_do_not_go_backwards() -> None:
    before = throttled_s(), stolen_s()
    after = throttled_s(), stolen_s()
    assert all(0.0 <= earlier <= later for earlier, later in zip(before, after, strict=True))


class Library:
    """Double of pynvml."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetClockInfo(self, _handle: Any, _kind: int) -> int:  # noqa: N802 - pynvml's names
        return 1410

    def nvmlDeviceGetCurrentClocksEventReasons(self, _handle: Any) -> int:  # noqa: N802
        return 0x04 | 0x40


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files the counters are read from."""
    files = _cgroup(tmp_path, V2.format(5_000_000), None)
    (tmp_path / "stat").write_text(STAT.format(1000))
    monkeypatch.setattr(environment, "throttled_s", functools.partial(throttled_s, files))
    monkeypatch.setattr(environment, "stolen_s", functools.partial(stolen_s, tmp_path / "stat"))
    monkeypatch.setattr(os, "getloadavg", lambda: (3.25, 2.0, 1.0))
    return tmp_path


def test_a_round_has_what_happened_since_it_began(machine: Path) -> None:
    conditions = RoundConditions(None)
    (machine / "cpu.stat").write_text(V2.format(5_250_000))
    (machine / "stat").write_text(STAT.format(1000 + 2 * TICKS))
    turn = conditions.record(4, 17)
    assert (turn.number, turn.runs, turn.load) == (4, 17, 3.25)
    assert turn.throttled_s == pytest.approx(0.25)
    assert turn.stolen_s == pytest.approx(2.0)
    assert (turn.gpu_mhz, turn.gpu_slowed) == (None, "")


@pytest.mark.usefixtures("machine")
def test_an_undisturbed_round_has_nothing() -> None:
    assert RoundConditions(None).record(0, 1) == Round(number=0, runs=1, load=3.25)
    assert RoundConditions(None, own_load=True).record(0, 1).load is None


@pytest.mark.usefixtures("machine")
def test_the_gpus_clock_and_throttling_are_recorded() -> None:
    turn = RoundConditions(Nvml(Library(), 0)).record(0, 1)
    assert (turn.gpu_mhz, turn.gpu_slowed) == (1410, "power cap, hardware thermal slowdown")


def test_a_round_reads_this_machine() -> None:
    turn = RoundConditions(None).record(0, 3)
    assert turn.throttled_s >= 0.0
    assert turn.stolen_s >= 0.0
    assert turn.runs == 3
