"""Where results come from: enough to tell runs apart and to know whether they can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from segx.results.types import Results


def host_of(results: Results) -> str:
    """What decides speed on a machine: ``AMD EPYC, 2 cores, NVIDIA H200``."""
    host = results.machine
    return ", ".join([host.cpu, f"{host.cores_usable} cores", *(gpu.name for gpu in host.gpus)])


def machine_id(results: Results) -> str:
    """12 hexadecimal digits, the same for machines of the same kind, and nothing that names this one."""
    return _digest(host_of(results))


def spec_id(results: Results) -> str:
    """12 hexadecimal digits of the model's description."""
    return _digest(json.dumps(asdict(results.model.spec), sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What two runs must agree in, or their figures are of different things.

    Attributes:
        weights: digest of the checkpoint.
        spec: digest of the model's description.
        inputs: digest of the images.
        host: see ``host_of``.
        threads: processors of every runtime.
        memory_profile: see ``RuntimeOptions``.
    """

    weights: str
    spec: str
    inputs: str
    host: str
    threads: int
    memory_profile: str


def circumstances(results: Results) -> Circumstances:
    """Those of a run."""
    return Circumstances(
        weights=results.model.weights_sha256,
        spec=spec_id(results),
        inputs=results.inputs.sha256,
        host=host_of(results),
        threads=results.options.threads,
        memory_profile=results.options.memory_profile,
    )


def environment(results: Results) -> dict[str, str]:
    """What may change from run to run and explain a difference: name -> value; empty where it is not known."""
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
    """What differs in the environments of two runs: name -> both values, empty where there is none."""
    ours, theirs = environment(before), environment(after)
    names = dict.fromkeys([*ours, *theirs])
    pairs = {name: (ours.get(name, ""), theirs.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# Name -> what must be equal in two runs to compare them, unless the user allows a difference.
_MUST_AGREE: dict[str, Callable[[Results], object]] = {
    "weights": lambda results: results.model.weights_sha256,
    "spec": lambda results: asdict(results.model.spec),
    "inputs": lambda results: results.inputs.sha256,
    "host": host_of,
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
