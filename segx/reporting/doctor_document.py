"""What this machine is and which runtimes work on it, each asked in a process of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from segx.errors import SegxError
from segx.reporting.text import aligned
from segx.results.provenance import describe_machine
from segx.results.types import Machine
from segx.runtimes import RUNTIMES, RuntimeOptions, check_runtime
from segx.system import machine
from segx.system.processes import Workers
from segx.system.progress import Progress

_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Finding:
    """One runtime: ready, or the reason why not and what to do."""

    runtime: str
    ready: bool
    reason: str = ""
    remedy: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """The machine and its runtimes."""

    machine: Machine
    runtimes: tuple[Finding, ...]


def examine(progress: Progress) -> Diagnosis:
    """Look at the machine and try every runtime, without a model."""
    options = RuntimeOptions(threads=machine.usable_cores())
    workers = Workers(threads=options.threads)
    findings = []
    for name, info in RUNTIMES.items():
        progress.say(f"trying {name}")
        try:
            arguments = {"name": name, "options": options}
            facts = workers.call(check_runtime, arguments, torch=info.torch, timeout_s=_TIMEOUT_S)
            findings.append(Finding(name, ready=True, facts=facts))
        except SegxError as error:
            findings.append(Finding(name, ready=False, reason=error.message, remedy=error.hint))
    return Diagnosis(describe_machine(), tuple(findings))


def to_json(diagnosis: Diagnosis) -> str:
    """The diagnosis as JSON."""
    return json.dumps(dataclasses.asdict(diagnosis), indent=1) + "\n"


def to_text(diagnosis: Diagnosis) -> str:
    """The diagnosis for a terminal."""
    host = diagnosis.machine
    gibibytes = 2**30
    gpus = [f"{gpu.name}, {gpu.memory_bytes / gibibytes:.0f} GiB, driver {gpu.driver}" for gpu in host.gpus]
    facts = (
        ("cpu", f"{host.cpu}, {host.cores_usable} of {host.cores_total} cores usable"),
        ("flags", " ".join(host.cpu_flags) or "none that decides speed"),
        (
            "memory",
            f"{host.memory_total_bytes / gibibytes:.1f} GiB, {host.memory_available_bytes / gibibytes:.1f} GiB free",
        ),
        ("gpu", "; ".join(gpus) or "no NVIDIA GPU"),
        ("load", "unknown" if host.load_average_1min is None else f"{host.load_average_1min:.2f} in the last minute"),
        ("system", f"{host.system}, Python {host.python}"),
    )
    rows = [
        [finding.runtime, "ready", ", ".join(f"{name} {value}" for name, value in finding.facts.items())]
        if finding.ready
        else [finding.runtime, "not ready", f"{finding.reason}; {finding.remedy}"]
        for finding in diagnosis.runtimes
    ]
    parts = (
        "\n".join(f"{name:8}{text}" for name, text in facts),
        aligned(["package", "version"], [list(item) for item in host.versions.items()], left=frozenset({0, 1})),
        aligned(["runtime", "state", ""], rows, left=frozenset({0, 1, 2})),
    )
    return "\n\n".join(parts) + "\n"
