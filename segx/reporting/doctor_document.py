"""The report on this machine and the runtimes that work on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segx.reporting.columns import gibibytes
from segx.reporting.document import Column, Document, Section, Table, text
from segx.results.types import Machine


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


def doctor_document(diagnosis: Diagnosis) -> Document:
    """Describe the machine, the versions of packages, and each runtime."""
    host = diagnosis.machine
    gpus = [f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, driver {gpu.driver}" for gpu in host.gpus]
    load = host.load_average_1min
    facts = (
        ("cpu", f"{host.cpu}, {host.cores_usable} of {host.cores_total} cores usable"),
        ("flags", " ".join(host.cpu_flags) or "none that affect speed"),
        ("memory", f"{gibibytes(host.memory_total_bytes)}, {gibibytes(host.memory_available_bytes)} free"),
        ("gpu", "; ".join(gpus) or "no NVIDIA GPU"),
        ("load", "unknown" if load is None else f"{load:.2f} in the last minute"),
        ("system", f"{host.system}, Python {host.python}"),
    )
    versions = Table(
        "", _words("package", "version"), tuple((text(name), text(version)) for name, version in host.versions.items())
    )
    runtimes = Table(
        "",
        _words("runtime", "state", "details"),
        tuple(
            (
                text(finding.runtime),
                text("ready", "good") if finding.ready else text("not ready", "warning"),
                text(_details(finding)),
            )
            for finding in diagnosis.runtimes
        ),
    )
    return Document("segx doctor", facts, (Section(key="state", blocks=(versions, runtimes)),))


def _words(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, numeric=False) for title in titles)


def _details(finding: Finding) -> str:
    if finding.ready:
        return ", ".join(f"{name} {value}" for name, value in finding.facts.items())
    return f"{finding.reason}; {finding.remedy}"
