"""Describe where results come from, and what differs between the environments of two runs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from segx.results.settings import host_of, instructions_of
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
        load_average_1min=os.getloadavg()[0],
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


def was_written_for(path: Path, results: Results) -> bool:
    """Return whether a table, a page or a folder of pictures is of these results: each names when they were created."""
    file = path / "index.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return results.created in text or results.created[:16].replace("T", " ") in text
