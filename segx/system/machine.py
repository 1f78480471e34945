"""Readings of this machine: processors and memory that this process may use, GPUs, versions. Imports no framework."""

from __future__ import annotations

import ctypes
import datetime as dt
import functools
import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from segx.system.files import read_field, read_kibibytes

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")

_GPU_FIELDS = (
    "memory.total", "driver_version", "compute_cap", "pstate", "clocks.sm", "clocks.max.sm", "power.limit",
    "temperature.gpu",
)  # fmt: skip

_CUDA_DRIVER = "libcuda.so.1"

# cgroups v1 reports the largest number of pages for no limit.
_NO_LIMIT = 2**60

# Read by engines while they load, or by the allocator: they change what is measured.
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY",
    "MALLOC_ARENA_MAX", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "CUDA_MODULE_LOADING",
    "ORT_INTRA_OP_NUM_THREADS", "ORT_INTER_OP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
)  # fmt: skip

# Instruction sets that decide which kernels and precisions are fast.
_TELLING_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8",
    "asimddp", "i8mm",
)  # fmt: skip
# Narrow precisions -> instructions of which a CPU needs one; without, bf16 and fp16 are converted to fp32 and back.
# OpenVINO and PyTorch do that with avx512_fp16 too: kernels named F16 took 1.6 to 1.7 times as long as those in fp32.
_CPU_NEEDS = {
    "bf16": ("avx512_bf16", "amx_bf16"),
    "fp16": ("amx_fp16",),
    "int8": ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"),
}
# Precisions -> lowest compute capability; older GPUs silently compute tf32 as fp32, and emulate bf16.
_GPU_NEEDS = {"tf32": (8, 0), "bf16": (8, 0), "fp16": (5, 3)}

PACKAGES = (
    "segx", "torch", "torchvision", "segmentation-models-pytorch", "onnx", "onnxscript", "onnxruntime",
    "onnxruntime-gpu", "openvino", "tensorrt", "numpy", "opencv-python-headless", "pillow", "safetensors",
)  # fmt: skip


class GpuReading(NamedTuple):
    """One line of ``nvidia-smi``; text is empty and numbers are None where the driver does not say."""

    name: str
    memory_bytes: int
    driver: str
    compute_capability: str
    power_state: str
    clock_mhz: float | None
    max_clock_mhz: float | None
    power_limit_w: float | None
    temperature_c: float | None


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Return the number of processors this process may use: the smaller of affinity and cgroup quota, at least 1.

    ``os.cpu_count()`` considers neither; in a container it counts the host's processors.
    """
    quota = cpu_quota(cgroup)
    return max(1, cpu_affinity() if quota is None else min(cpu_affinity(), math.ceil(quota)))


def cpu_affinity() -> int:
    """Return the number of processors in the CPU affinity of this process."""
    # sched_getaffinity is Linux's; other systems have neither it nor cgroups.
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_quota(cgroup: Path | None = None) -> float | None:
    """Return the CPU quota in processors (v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``); None for no limit.

    It is the smallest of those of this process's cgroup and of the cgroups above it.
    """
    return min(filter(None, map(_quota, cgroups("cpu", cgroup))), default=None)


def _quota(folder: Path) -> float | None:
    fields = (_read(folder / "cpu.max") or "").split()
    if len(fields) == 2:
        return None if fields[0] == "max" else int(fields[0]) / int(fields[1])
    quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def cgroups(controller: str, root: Path | None = None) -> list[Path]:
    """Return the folders of this process's cgroup and of all above it, v2 and v1; not all of them need to exist.

    In a container the paths in ``/proc/self/cgroup`` may be those of the host; then only the topmost folder exists.
    """
    root = root or _CGROUP
    found = {root: None, root / controller: None}
    for line in (_read(_OWN_CGROUP) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = root / controller if controllers else root
            own = top / path.lstrip("/")
            found |= dict.fromkeys(each for each in (own, *own.parents) if each.is_relative_to(top))
    return list(found)


def memory_limit_bytes() -> int | None:
    """Return the smallest memory limit of this process's cgroup and of those above it; None for no limit."""
    return min((limit for limit, _ in _cgroup_memory()), default=None)


def memory_total_bytes() -> int:
    """Return physical memory, or the cgroup's limit if that is lower."""
    total, limit = read_kibibytes(_MEMINFO, "MemTotal") or _sysconf_memory(), memory_limit_bytes()
    return min(total, limit) if limit else total


def memory_available_bytes() -> int:
    """Return the memory available now without swapping; outside Linux all of it.

    Inactive pages of files are available: the kernel drops them when memory is needed.
    """
    available = read_kibibytes(_MEMINFO, "MemAvailable") or _sysconf_memory()
    return min([available, *(max(0, limit - used) for limit, used in _cgroup_memory())])


def _cgroup_memory() -> list[tuple[int, int]]:
    """Return (limit, memory that cannot be reclaimed) in bytes of each cgroup that has a limit."""
    found = []
    for folder in cgroups("memory"):
        limit = _number_in(folder, "memory.max", "memory.limit_in_bytes")
        if limit is not None and limit < _NO_LIMIT:
            used = _number_in(folder, "memory.current", "memory.usage_in_bytes") or 0
            fields = (read_field(folder / "memory.stat", name) for name in ("total_inactive_file", "inactive_file"))
            found.append((limit, used - int(next(filter(None, fields), 0))))
    return found


def _number_in(folder: Path, *names: str) -> int | None:
    texts = (_read(folder / name) for name in names)
    return next((int(text) for text in texts if text and text.isdigit()), None)


def _sysconf_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gpus() -> tuple[GpuReading, ...]:
    """Return the NVIDIA GPUs by ``nvidia-smi``; empty without a GPU or driver."""
    query = f"--query-gpu=name,{','.join(_GPU_FIELDS)}"
    output = _output_of("nvidia-smi", query, "--format=csv,noheader,nounits") or ""
    rows = [line.rsplit(", ", len(_GPU_FIELDS)) for line in output.splitlines()]
    # Lines with fewer columns are messages.
    return tuple(_gpu(*row) for row in rows if len(row) == len(_GPU_FIELDS) + 1)


def _gpu(name: str, *values: str) -> GpuReading:
    # "[N/A]" where the driver does not report a value, such as the memory of a GPU that shares the host's.
    memory, driver, capability, state, *numbers = ("" if value.startswith("[") else value for value in values)
    memory_bytes = int(memory) * 2**20 if memory.isdigit() else 0
    return GpuReading(name, memory_bytes, driver, capability, state, *map(_number, numbers))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@functools.cache
def compute_capability() -> tuple[int, int]:
    """Return the compute capability of the first GPU; (0, 0) if there is none or the driver does not say."""
    major, _, minor = next((gpu.compute_capability for gpu in gpus()), "").partition(".")
    return int(major or 0), int(minor or 0)


def cuda_problem() -> str | None:
    """Return why CUDA cannot work in this process, by the driver; None if it can."""
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return f"no NVIDIA driver on this machine ({_CUDA_DRIVER} not found)"
    if status := driver.cuInit(0):
        return f"the NVIDIA driver finds no usable GPU (cuInit returned {status})"
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else "the NVIDIA driver lists no GPU"


def cuda_bus_id(index: int) -> str:
    """Return the PCI bus id of CUDA's device ``index``, by the driver; empty if there is none."""
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return ""
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(32)
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index)
    failed = failed or driver.cuDeviceGetPCIBusId(name, len(name), device)
    return "" if failed else name.value.decode()


def package_versions() -> dict[str, str]:
    """Return installed versions from package metadata; imports no package."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit(folder: Path) -> str:
    """Return the commit checked out in ``folder``, with ``+`` if files differ from it; empty without git."""
    git = ("git", "--no-optional-locks", "-C", str(folder))
    commit = _output_of(*git, "rev-parse", "HEAD")
    changes = _output_of(*git, "status", "--porcelain", "--untracked-files=no") if commit else None
    return "" if commit is None or changes is None else commit + "+" * bool(changes)


def _output_of(tool: str, *arguments: str) -> str | None:
    """Return what a program prints; None if it is missing or fails."""
    if not (path := shutil.which(tool)):
        return None
    try:
        command = [path, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def cpu_flags() -> tuple[str, ...]:
    """Return the instruction sets that decide speed, of those the processor has."""
    return _cpu()[1]


def cpu_lacks(precision: str) -> str:
    """Return which instructions the CPU lacks, so that it would emulate a precision; empty if it lacks none."""
    needed = _CPU_NEEDS.get(precision, ())
    return f"{precision} instructions ({' or '.join(needed)})" if needed and not {*needed} & {*cpu_flags()} else ""


def gpu_lacks(precision: str, capability: tuple[int, int]) -> str:
    """Return the compute capability that a GPU of ``capability`` lacks for a precision; empty if it lacks none."""
    major, minor = _GPU_NEEDS.get(precision, (0, 0))
    return f"compute capability {major}.{minor}" if capability < (major, minor) else ""


def cpu_name() -> str:
    """Return the model name of the processor."""
    return _cpu()[0]


def _cpu() -> tuple[str, tuple[str, ...]]:
    entries: dict[str, str] = {}
    for line in (_read(_CPUINFO) or "").splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())  # the first processor stands for all
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    model = entries.get("model name") or platform.processor() or platform.machine()
    return model, tuple(flag for flag in _TELLING_FLAGS if flag in flags)


def frequency_mhz() -> float | None:
    """Return the mean clock of the processors now, by the kernel, else by /proc/cpuinfo; None if neither reports it."""
    lines = (_read(_CPUINFO) or "").splitlines()
    listed = (_number(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz"))
    clocks = _cpufreq("scaling_cur_freq") or [clock for clock in listed if clock is not None]
    return sum(clocks) / len(clocks) if clocks else None


def frequency_max_mhz() -> float | None:
    """Return the highest clock of the processors; None if the kernel does not report it."""
    return max(_cpufreq("cpuinfo_max_freq"), default=None)


def frequency_governor() -> str:
    """Return the CPU frequency governor; empty if the kernel does not report it."""
    return _read(_CPUS / "cpu0" / "cpufreq" / "scaling_governor") or ""


def variables() -> dict[str, str]:
    """Return the environment variables that engines and allocators read, of those that are set."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def _cpufreq(name: str) -> list[float]:
    """Return the value for each processor that has one, in MHz."""
    texts = (_read(folder / name) for folder in _CPUS.glob("cpu[0-9]*/cpufreq"))
    return [int(text) / 1000 for text in texts if text and text.isdigit()]


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
