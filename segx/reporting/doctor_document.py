"""The report on this machine and the runtimes that work on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segx.reporting.columns import Field, gibibytes, table_of, words
from segx.reporting.document import Column, Document, Section, text
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
    packages: list[Field[tuple[str, str]]] = [
        words("package", lambda pair: pair[0]),
        words("version", lambda pair: pair[1]),
    ]
    states: list[Field[Finding]] = [
        words("runtime", lambda finding: finding.runtime),
        (Column("state", numeric=False), lambda f: text("ready", "good") if f.ready else text("not ready", "warning")),
        words("details", _details),
    ]
    tables = (table_of("", host.versions.items(), packages), table_of("", diagnosis.runtimes, states))
    return Document("segx doctor", facts, (Section(key="state", blocks=tables),))


def _details(finding: Finding) -> str:
    if finding.ready:
        return ", ".join(f"{name} {value}" for name, value in finding.facts.items())
    return f"{finding.reason}; {finding.remedy}"
