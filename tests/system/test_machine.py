from __future__ import annotations

import ctypes
import datetime as dt
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segx.results.provenance import describe_machine
from segx.system import machine
from segx.system.machine import git_commit, usable_cores

HUGE = 9_223_372_036_854_771_712  # what cgroup v1 writes for no limit


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu.max": "300000 50000"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "250000"}, 8),
        ({"pod/box/cpu.max": "max 100000", "pod/cpu.max": "300000 100000", "cpu.max": "500000 100000"}, 3),
        ({"cpu/pod/box/cpu.cfs_quota_us": "250000", "cpu/pod/box/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_usable_cores_obey_the_cgroup_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    (tmp_path / "own").write_text("4:cpu,cpuacct:/pod/box\n0::/pod/box\n")
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "own")
    assert usable_cores(_write(tmp_path, files)) == cores


def test_usable_cores_obey_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    assert usable_cores(_write(tmp_path, {"cpu.max": "800000 100000"})) == 2


def test_usable_cores_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 10)
    assert usable_cores(tmp_path) == 10


def _memory(monkeypatch: pytest.MonkeyPatch, root: Path, cgroup: dict[str, str], meminfo: str | None) -> None:
    monkeypatch.setattr(machine, "_CGROUP", _write(root / "cgroup", cgroup))
    monkeypatch.setattr(machine, "_MEMINFO", root / "meminfo")
    monkeypatch.setattr(machine, "_OWN_CGROUP", root / "own")
    _write(root, {"own": "4:cpu,memory:/pod/box\n0::/pod/box"})
    if meminfo is not None:
        _write(root, {"meminfo": meminfo})


MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB"
KB = 1024


@pytest.mark.parametrize(
    ("cgroup", "total", "available"),
    [
        ({}, 1000 * KB, 600 * KB),
        ({"memory.max": "max", "memory.current": "5"}, 1000 * KB, 600 * KB),
        ({"memory.max": f"{400 * KB}", "memory.current": f"{150 * KB}"}, 400 * KB, 250 * KB),
        ({"memory.max": f"{400 * KB}", "memory.current": f"{401 * KB}"}, 400 * KB, 0),
        ({"memory.max": f"{400 * KB}"}, 400 * KB, 400 * KB),
        ({"memory.max": f"{5000 * KB}", "memory.current": f"{KB}"}, 1000 * KB, 600 * KB),
        (
            {"memory/memory.limit_in_bytes": f"{300 * KB}", "memory/memory.usage_in_bytes": f"{100 * KB}"},
            300 * KB,
            200 * KB,
        ),
        (  # what the kernel can drop is available
            {
                "memory.max": f"{400 * KB}",
                "memory.current": f"{390 * KB}",
                "memory.stat": f"anon {60 * KB}\nfile {330 * KB}\ninactive_file {300 * KB}\nactive_file {30 * KB}",
            },
            400 * KB,
            310 * KB,
        ),
        (
            {
                "memory/memory.limit_in_bytes": f"{300 * KB}",
                "memory/memory.usage_in_bytes": f"{280 * KB}",
                "memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {100 * KB}",
            },
            300 * KB,
            120 * KB,
        ),
        (  # the process's own cgroup has a limit, and the one above it less free memory
            {
                "pod/box/memory.max": f"{500 * KB}",
                "pod/box/memory.current": f"{100 * KB}",
                "pod/memory.max": f"{600 * KB}",
                "pod/memory.current": f"{400 * KB}",
                "memory.max": "max",
            },
            500 * KB,
            200 * KB,
        ),
        ({"other/memory.max": f"{KB}", "other/memory.current": "0"}, 1000 * KB, 600 * KB),
        (
            {"memory/memory.limit_in_bytes": str(HUGE), "memory/memory.usage_in_bytes": f"{100 * KB}"},
            1000 * KB,
            600 * KB,
        ),
    ],
)
def test_memory_is_the_smaller_of_host_and_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: dict[str, str], total: int, available: int
) -> None:
    _memory(monkeypatch, tmp_path, cgroup, MEMINFO)
    assert machine.memory_total_bytes() == total
    assert machine.memory_available_bytes() == available


def test_memory_without_proc_comes_from_sysconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _memory(monkeypatch, tmp_path, {}, None)
    expected = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory_total_bytes() == expected


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (
            "model name\t: Fast CPU\nflags\t\t: fpu avx2 avx512f amx_int8\n\nmodel name\t: Other CPU\nflags\t\t: fpu",
            "Fast CPU",
            ("avx2", "avx512f", "amx_int8"),
        ),
        ("processor\t: 0\nmodel name\t: Arm\nFeatures\t: fp asimddp i8mm", "Arm", ("asimddp", "i8mm")),
    ],
)
def test_cpu_is_described_by_its_first_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, model: str, flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", _write(tmp_path, {"cpuinfo": text}) / "cpuinfo")
    assert machine._cpu() == (model, flags)


def test_cpu_without_proc_has_some_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "absent")
    model, flags = machine._cpu()
    assert model
    assert flags == ()


@pytest.fixture
def fake_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(output: str, status: int = 0) -> None:
        (tmp_path / "output").write_text(output)
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n/bin/cat {tmp_path}/output\nexit {status}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_gpus_are_listed_with_memory_in_bytes(fake_smi: Callable[..., None]) -> None:
    fake_smi(
        "NVIDIA H200, 143771, 570.86.15, 9.0, P0, 345, 1980, 700.00, 31\n"
        "Quadro, special, 4096, 535.1, 7.5, P8, [N/A], [N/A], [N/A], [N/A]\n"
    )
    assert machine.gpus() == (
        machine.GpuReading("NVIDIA H200", 143_771 * 2**20, "570.86.15", "9.0", "P0", 345.0, 1980.0, 700.0, 31.0),
        machine.GpuReading("Quadro, special", 4096 * 2**20, "535.1", "7.5", "P8", None, None, None, None),
    )


def test_a_gpu_without_memory_of_its_own_is_still_listed(fake_smi: Callable[..., None]) -> None:
    fake_smi("NVIDIA GB10, [N/A], 580.95.05, 12.1, P8, 208, 2418, [N/A], 40\n")
    assert [gpu.name for gpu in machine.gpus()] == ["NVIDIA GB10"]


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ("", 0),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9),
        ("No devices were found\n", 0),
        ("Unable to determine the device handle for GPU0: 0000:01:00.0: Unknown Error\n", 0),
    ],
)
def test_no_gpu_that_can_be_used_means_none(fake_smi: Callable[..., None], output: str, status: int) -> None:
    fake_smi(output, status)
    assert machine.gpus() == ()


def test_no_driver_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == ()


class _Driver:
    def __init__(self, status: int, count: int) -> None:
        self._status, self._count = status, count

    def cuInit(self, _: int) -> int:  # noqa: N802 - the driver's name
        return self._status

    def cuDeviceGetCount(self, reference: Any) -> int:  # noqa: N802 - the driver's name
        reference._obj.value = self._count
        return 0


@pytest.mark.parametrize(
    ("status", "count", "told"), [(0, 1, None), (0, 0, "lists no GPU"), (100, 0, "cuInit returned 100")]
)
def test_cuda_problem_is_what_the_driver_says(
    monkeypatch: pytest.MonkeyPatch, status: int, count: int, told: str | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: _Driver(status, count))
    problem = machine.cuda_problem()
    assert problem is None if told is None else told in (problem or "")


def test_cuda_problem_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert "no NVIDIA driver" in (machine.cuda_problem() or "")


class _Bus:
    """A driver of one GPU."""

    def cuInit(self, _: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = 40 + index
        return 0 if index == 0 else 101

    def cuDeviceGetPCIBusId(self, name: Any, length: int, device: Any) -> int:  # noqa: N802
        assert length >= 13
        name.value = f"0000:{device.value}:00.0".encode()
        return 0


def test_the_bus_id_is_that_of_cudas_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: _Bus())
    assert machine.cuda_bus_id(0) == "0000:40:00.0"
    assert machine.cuda_bus_id(1) == ""


def test_versions_are_of_installed_packages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-package"))
    assert machine.package_versions() == {"numpy": np.__version__}


def test_now_is_utc_to_the_second() -> None:
    moment = dt.datetime.fromisoformat(machine.now())
    assert moment.utcoffset() == dt.timedelta(0)
    assert moment.microsecond == 0
    assert abs(dt.datetime.now(dt.UTC) - moment) < dt.timedelta(minutes=5)


def test_this_machine_can_be_described() -> None:
    host = describe_machine()
    assert 1 <= host.cores_usable <= host.cores_total
    assert 0 < host.memory_available_bytes <= host.memory_total_bytes
    assert host.cpu
    assert "numpy" in host.versions


# What is recorded beside a measurement


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for /sys and /proc, and has nothing in it."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "cpu")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for name in machine._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


# Processors


def test_frequencies_and_governor_are_the_kernels(host: Path) -> None:
    files = {"scaling_cur_freq": "2400000", "cpuinfo_max_freq": "4800500", "scaling_governor": "powersave"}
    _write(host / "cpu" / "cpu0" / "cpufreq", files)
    _write(host, {"cpuinfo": "cpu MHz\t\t: 1000.0"})
    told = describe_machine()
    assert (told.frequency_mhz, told.frequency_max_mhz, told.governor) == (2400.0, 4800.5, "powersave")


def test_a_virtual_machine_tells_its_frequency_in_cpuinfo_alone(host: Path) -> None:
    _write(host, {"cpuinfo": "model name\t: A\ncpu MHz\t\t: 2000.000\n\nmodel name\t: A\ncpu MHz\t\t: 3000.500"})
    told = describe_machine()
    assert told.frequency_mhz == pytest.approx(2500.25)  # the mean
    assert (told.frequency_max_mhz, told.governor) == (None, "")


@pytest.mark.parametrize("cpuinfo", [None, "", "model name\t: Arm\nBogoMIPS\t: 50.00"])
def test_a_system_that_tells_no_frequency_leaves_it_open(host: Path, cpuinfo: str | None) -> None:
    if cpuinfo is not None:
        _write(host, {"cpuinfo": cpuinfo})
    told = describe_machine()
    assert (told.frequency_mhz, told.frequency_max_mhz, told.governor) == (None, None, "")


def test_a_frequency_that_the_kernel_does_not_know_is_left_open(host: Path) -> None:
    _write(host, {"cpuinfo": "model name\t: A\ncpu MHz\t\t: Unknown"})
    assert describe_machine().frequency_mhz is None


def test_a_frequency_that_is_no_number_is_left_open(host: Path) -> None:
    _write(host / "cpu" / "cpu0" / "cpufreq", {"scaling_cur_freq": "<unsupported>", "cpuinfo_max_freq": "<unknown>"})
    told = describe_machine()
    assert (told.frequency_mhz, told.frequency_max_mhz) == (None, None)


def test_processors_of_several_kinds_all_count(host: Path) -> None:
    for number, (now, highest) in enumerate([(2_000_000, 3_000_000), (4_000_000, 5_000_000)]):
        folder = host / "cpu" / f"cpu{number}" / "cpufreq"
        _write(folder, {"scaling_cur_freq": f"{now}", "cpuinfo_max_freq": f"{highest}"})
    told = describe_machine()
    assert (told.frequency_mhz, told.frequency_max_mhz) == (3000.0, 5000.0)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "150000 50000"}, 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ({"cpu.max": "max 100000", "cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
    ],
)
def test_the_quota_is_told_as_it_is_and_not_rounded_up(host: Path, files: dict[str, str], quota: float | None) -> None:
    _write(host / "cgroup", files)
    told = describe_machine()
    assert told.cpu_quota == quota
    assert told.cores_affinity is not None
    assert told.cores_affinity <= told.cores_total


# Memory


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max"}, None),
        ({"memory.max": "400000"}, 400_000),
        ({"memory/memory.limit_in_bytes": "300000"}, 300_000),
        ({"memory/memory.limit_in_bytes": str(HUGE)}, None),
        ({"memory/memory.limit_in_bytes": str(2**63 - 1 - (2**63 - 1) % 65536)}, None),  # pages of 64 KiB
        ({"memory.max": "400000", "memory/memory.limit_in_bytes": "300000"}, 300_000),
    ],
)
def test_the_limit_of_the_cgroup_is_told_where_there_is_one(
    host: Path, files: dict[str, str], limit: int | None
) -> None:
    _write(host / "cgroup", files)
    _write(host, {"meminfo": "MemTotal:       1000 kB\nMemAvailable:    600 kB"})
    told = describe_machine()
    assert told.memory_limit_bytes == limit
    assert told.memory_total_bytes == min(1000 * 1024, limit or 1000 * 1024)


# Variables


@pytest.mark.usefixtures("host")
def test_only_variables_that_are_set_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_machine().variables == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # set to nothing is not unset: it hides all GPUs
    monkeypatch.setenv("A_SECRET_TOKEN", "hunter2")
    assert describe_machine().variables == {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": ""}


# Commit

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that no repository is above of."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(folder: Path) -> Path:
    _git(folder, "init", "--quiet")
    _write(folder, {"file": "one", "sub/other": "two"})
    _git(folder, "add", ".")
    _git(folder, "commit", "--quiet", "--message", "first")
    return folder


@needs_git
def test_the_commit_is_the_one_checked_out(repository: Path) -> None:
    commit = _git(repository, "rev-parse", "HEAD")
    assert len(commit) >= 40
    assert git_commit(repository) == git_commit(repository / "sub") == commit


@needs_git
def test_a_changed_file_is_told_by_a_plus(repository: Path) -> None:
    commit = git_commit(repository)
    (repository / "sub" / "other").write_text("changed")
    assert git_commit(repository) == git_commit(repository / "sub") == f"{commit}+"
    _git(repository, "add", ".")  # staged is changed too
    assert git_commit(repository) == f"{commit}+"
    _git(repository, "commit", "--quiet", "--message", "second")
    assert not git_commit(repository).endswith("+")
    (repository / "file").unlink()
    assert git_commit(repository).endswith("+")


@needs_git
def test_a_changed_file_may_have_a_name_that_is_not_utf_8(repository: Path) -> None:
    file = Path(os.fsdecode(bytes(repository / "sub") + b"/\xff"))
    file.write_text("one")
    _git(repository, "config", "core.quotepath", "false")
    _git(repository, "add", ".")
    _git(repository, "commit", "--quiet", "--message", "second")
    assert not git_commit(repository).endswith("+")
    file.write_text("two")
    assert git_commit(repository).endswith("+")


@needs_git
def test_a_file_that_git_does_not_know_is_no_change(repository: Path) -> None:
    _write(repository, {"results/results.json": "{}"})
    assert not git_commit(repository).endswith("+")


@needs_git
def test_outside_a_repository_or_before_its_first_commit_there_is_none(folder: Path) -> None:
    assert git_commit(folder) == ""
    assert git_commit(folder / "absent") == ""
    _git(folder, "init", "--quiet")
    assert git_commit(folder) == ""


@needs_git
def test_the_commit_is_that_of_the_folder_in_which_the_command_runs(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository / "sub")
    assert describe_machine().git_commit == _git(repository, "rev-parse", "HEAD")


def test_without_git_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert git_commit(folder) == ""


@pytest.mark.parametrize("last_words", ["exit 1", "kill -9 $$"])
def test_a_git_that_fails_is_as_good_as_none(folder: Path, monkeypatch: pytest.MonkeyPatch, last_words: str) -> None:
    tool = folder / "git"
    tool.write_text(f"#!/bin/sh\necho 0123456789\n{last_words}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    assert git_commit(folder) == ""
