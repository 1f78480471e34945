"""What this machine is: processors and memory that this process may really use, GPUs, versions. No framework."""

from __future__ import annotations

import ctypes
import datetime as dt
import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")

# Instruction sets that decide which kernels and precisions are fast.
_TELLING_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimddp",
    "i8mm",
)  # fmt: skip

PACKAGES = (
    "segx", "torch", "torchvision", "segmentation-models-pytorch", "onnx", "onnxscript", "onnxruntime",
    "onnxruntime-gpu", "numpy", "opencv-python-headless", "pillow", "safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver names it."""

    name: str
    memory_bytes: int
    driver: str


@dataclass(frozen=True)
class Machine:
    """What a measurement depends on and cannot choose.

    Attributes:
        cpu: model name.
        cpu_flags: the instruction sets that decide speed, of those present.
        cores_total: logical processors of the host.
        cores_usable: what affinity and the cgroup quota leave this process; the default number of threads.
        memory_total_bytes: physical memory, or the cgroup's limit where that is lower.
        memory_available_bytes: of that, what was free when asked.
        gpus: NVIDIA GPUs; empty without a driver.
        load_average_1min: running tasks, averaged over the last minute.
        system: kernel and architecture.
        python: version.
        versions: package -> installed version, of those that matter here.
    """

    cpu: str
    cpu_flags: tuple[str, ...]
    cores_total: int
    cores_usable: int
    memory_total_bytes: int
    memory_available_bytes: int
    gpus: tuple[Gpu, ...]
    load_average_1min: float
    system: str
    python: str
    versions: dict[str, str]


def describe() -> Machine:
    """Look at this machine now."""
    cpu, flags = _cpu()
    return Machine(
        cpu=cpu,
        cpu_flags=flags,
        cores_total=os.cpu_count() or 1,
        cores_usable=usable_cores(),
        memory_total_bytes=memory_total_bytes(),
        memory_available_bytes=memory_available_bytes(),
        gpus=gpus(),
        load_average_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=package_versions(),
    )


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Processors this process may use: the smaller of its affinity and its cgroup quota, at least 1.

    ``os.cpu_count()`` knows neither; in a container it names the host's processors.
    """
    # sched_getaffinity is Linux's; other systems have neither it nor cgroups.
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = _cpu_quota(cgroup)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def _cpu_quota(cgroup: Path) -> float | None:
    """Processors' worth of time that the cgroup allows (v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``), None for no limit."""
    fields = (_read(cgroup / "cpu.max") or "").split()
    if len(fields) == 2:
        return None if fields[0] == "max" else int(fields[0]) / int(fields[1])
    quota, period = (_read(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def memory_total_bytes() -> int:
    """Physical memory, or the cgroup's limit where that is lower; 0 where the system does not tell."""
    total = _meminfo("MemTotal") or _sysconf_memory()
    limit = _cgroup_memory("memory.max", "memory.limit_in_bytes")
    return min(total, limit) if limit else total


def memory_available_bytes() -> int:
    """Memory that could be taken now without swapping; 0 where the system does not tell."""
    available = _meminfo("MemAvailable") or _sysconf_memory()
    limit = _cgroup_memory("memory.max", "memory.limit_in_bytes")
    used = _cgroup_memory("memory.current", "memory.usage_in_bytes")
    return min(available, max(0, limit - (used or 0))) if limit else available


def _cgroup_memory(v2: str, v1: str) -> int | None:
    text = _read(_CGROUP / v2) or _read(_CGROUP / "memory" / v1)
    return int(text) if text and text.isdigit() else None


def _meminfo(key: str) -> int:
    for line in (_read(_MEMINFO) or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _sysconf_memory() -> int:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs by ``nvidia-smi``; empty where there is none, or no driver."""
    if not (tool := shutil.which("nvidia-smi")):
        return ()
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rsplit(", ", 2) for line in output.splitlines()]
    # Memory is "[N/A]" where the GPU shares the host's; lines without three columns are messages.
    return tuple(
        Gpu(name, int(mebibytes) * 2**20 if mebibytes.isdigit() else 0, driver)
        for name, mebibytes, driver in (row for row in rows if len(row) == 3)
    )


def cuda_problem() -> str | None:
    """Why CUDA cannot work in this process, or None. Asks the driver itself; needs no framework."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver on this machine ({library} not found)"
    if status := driver.cuInit(0):
        return f"the NVIDIA driver finds no usable GPU (cuInit returned {status})"
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else "the NVIDIA driver lists no GPU"


def package_versions() -> dict[str, str]:
    """Installed versions, read from package metadata: nothing is imported."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def now() -> str:
    """The time, as ISO 8601 in UTC to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _cpu() -> tuple[str, tuple[str, ...]]:
    entries: dict[str, str] = {}
    for line in (_read(_CPUINFO) or "").splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())  # the first processor speaks for all
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    model = entries.get("model name") or platform.processor() or platform.machine()
    return model, tuple(flag for flag in _TELLING_FLAGS if flag in flags)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
