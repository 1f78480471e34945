"""Describe where results come from, and what differs between the provenance of two runs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segx.results.types import Gpu, Machine, Results
from segx.system import machine


def describe_machine() -> Machine:
    """Return a record of this machine at this moment."""
    return Machine(
        cpu=machine.cpu_name(),
        cpu_flags=machine.cpu_flags(),
        cores_total=os.cpu_count() or 1,
        cores_usable=machine.usable_cores(),
        memory_total_bytes=machine.memory_total_bytes(),
        memory_available_bytes=machine.memory_available_bytes(),
        gpus=tuple(Gpu(*reading) for reading in machine.gpus()),
        load_average_1min=machine.load_average(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=machine.package_versions(),
        cores_affinity=machine.cpu_affinity(),
        cpu_quota=machine.cpu_quota(),
        frequency_mhz=machine.frequency_mhz(),
        frequency_max_mhz=machine.frequency_max_mhz(),
        governor=machine.frequency_governor(),
        memory_limit_bytes=machine.memory_limit_bytes(),
        variables=machine.variables(),
        git_commit=machine.git_commit(Path()),
    )


def host_of(results: Results) -> str:
    """Return what decides the speed of a machine: ``AMD EPYC, 2 cores, NVIDIA H200``."""
    host = results.machine
    return ", ".join([host.cpu, f"{host.cores_usable} cores", *(gpu.name for gpu in host.gpus)])


def instructions_of(results: Results) -> str:
    """Return the instruction sets that decide speed; virtual machines of one name may differ in them."""
    return " ".join(results.machine.cpu_flags) or "unknown"


def machine_id(results: Results) -> str:
    """Return 12 hexadecimal digits that are the same for all machines of a kind and do not identify one."""
    return _digest(f"{host_of(results)} {instructions_of(results)}")


def bench_id(results: Results) -> str:
    """Return 12 hexadecimal digits that tell a bench from others."""
    return _digest(f"{results.created} {results.command} {host_of(results)} {results.model.weights_sha256}")


def spec_id(results: Results) -> str:
    """Return 12 hexadecimal digits of the model spec's digest."""
    return _digest(json.dumps(asdict(results.model.spec), sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class RunConditions:
    """What two runs must have in common to be comparable; weights, spec and inputs are digests."""

    weights: str
    spec: str
    inputs: str
    host: str
    instructions: str
    threads: int
    memory_profile: str


def conditions(results: Results) -> RunConditions:
    """Return what a run must have in common with another to be comparable."""
    values = {name: value(results) for name, value in _MUST_AGREE.items()}
    return RunConditions(**{**values, "spec": spec_id(results)})


def environment(results: Results) -> dict[str, str]:
    """Return what may change between comparable runs and explain a difference: name -> value, empty if unknown."""
    host = results.machine
    drivers = ", ".join(dict.fromkeys(gpu.driver for gpu in host.gpus))
    variables = {f"variable {name}": value for name, value in host.variables.items()}
    return {
        **host.versions,
        "segx": results.segx,  # also where it is not installed as a package
        "git commit": host.git_commit[:12] + "+" * host.git_commit.endswith("+"),
        "Python": host.python,
        "system": host.system,
        "driver": drivers,
        "governor": host.governor,
        **variables,
    }


def changed(before: Results, after: Results) -> dict[str, tuple[str, str]]:
    """Return what differs in the environments of two runs: name -> both values, empty if unknown."""
    ours, theirs = environment(before), environment(after)
    names = dict.fromkeys([*ours, *theirs])
    pairs = {name: (ours.get(name, ""), theirs.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# Name -> what must be equal in two runs to compare them, unless the user allows a difference.
_MUST_AGREE: dict[str, Callable[[Results], Any]] = {
    "weights": lambda results: results.model.weights_sha256,
    "spec": lambda results: asdict(results.model.spec),
    "inputs": lambda results: results.inputs.sha256,
    "host": host_of,
    "instructions": instructions_of,
    "threads": lambda results: results.options.threads,
    "memory_profile": lambda results: results.options.memory_profile,
}
ALLOWANCES = tuple(_MUST_AGREE)


def differences(before: Results, after: Results) -> dict[str, tuple[str, str]]:
    """Return what makes two runs incomparable: name -> both values, shortened."""
    found = {}
    for name, value in _MUST_AGREE.items():
        ours, theirs = value(before), value(after)
        if ours != theirs:
            found[name] = _short(ours, theirs), _short(theirs, ours)
    return found


def _short(value: object, other: object) -> str:
    """Shorten a value; of dictionaries only the keys that differ."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner != other.get(key))
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"


def was_written_for(path: Path, results: Results) -> bool:
    """Return whether a table, a page or a folder of pictures is of these results: each names when they were created."""
    file = path / "index.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return results.created in text or results.created[:16].replace("T", " ") in text
