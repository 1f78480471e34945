"""What two runs must have in common to be comparable.

The command line takes the names for ``--allow`` from here, so that this module imports nothing that takes time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from segx.results.types import Results


def host_of(results: Results) -> str:
    """Return what decides the speed of a machine: ``AMD EPYC, 2 cores, NVIDIA H200``."""
    host = results.machine
    cores = f"{host.cores_usable} core{'s' * (host.cores_usable != 1)}"
    return ", ".join([host.cpu, cores, *(gpu.name for gpu in host.gpus)])


def instructions_of(results: Results) -> str:
    """Return the instruction sets that decide speed; virtual machines of one name may differ in them."""
    return " ".join(results.machine.cpu_flags) or "unknown"


class Setting(NamedTuple):
    """Something that must be equal in two runs to compare them, unless the user allows a difference."""

    label: str
    value: Callable[[Results], Any]
    warning: str  # what a difference means for the figures of runs side by side


# By the name that ``segx compare --allow`` takes.
SETTINGS = {
    "weights": Setting(
        "weights",
        lambda run: run.model.weights_sha256,
        "the weights differ: the masks are of other models and do not compare",
    ),
    "spec": Setting(
        "model",
        lambda run: dataclasses.asdict(run.model.spec),
        "the models differ: neither times nor masks compare, and no ratios are given",
    ),
    "inputs": Setting("inputs", lambda run: run.inputs.sha256, "the images differ: the masks do not compare"),
    "host": Setting("machine", host_of, "the machines differ: ratios are of machine and software together"),
    "instructions": Setting("instructions", instructions_of, "the instruction sets differ: ratios are of that too"),
    "threads": Setting("threads", lambda run: run.options.threads, "the threads differ: ratios are of that too"),
    "memory_profile": Setting(
        "memory profile",
        lambda run: run.options.memory_profile,
        "the memory profiles differ: ratios are of that too",
    ),
}


def key_of(results: Results) -> str:
    """Return text that is the same for comparable runs."""
    return json.dumps([setting.value(results) for setting in SETTINGS.values()], sort_keys=True)


def differences(*runs: Results) -> dict[str, tuple[str, ...]]:
    """Return what makes runs incomparable: name in ``SETTINGS`` -> the value in every run, shortened."""
    values = {name: [setting.value(run) for run in runs] for name, setting in SETTINGS.items()}
    return {
        name: tuple(_short(value, found) for value in found)
        for name, found in values.items()
        if any(value != found[0] for value in found)
    }


def _short(value: Any, all_values: list[Any]) -> str:
    """Shorten a digest; of a dictionary show only what is not the same in all."""
    if isinstance(value, dict):
        differing = (name for name in value if any(value[name] != other[name] for other in all_values))
        return ", ".join(f"{name} {value[name]}" for name in differing)
    text = str(value)
    return text if len(text) <= 60 or " " in text else f"{text[:12]}…"
