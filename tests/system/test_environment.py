"""What of the surroundings is recorded beside a measurement, from files made by hand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from segx.results.provenance import describe_machine
from segx.system import machine
from segx.system.machine import git_commit

NO_LIMIT_V1 = "9223372036854771712"


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


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
        ({"memory/memory.limit_in_bytes": NO_LIMIT_V1}, None),
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
