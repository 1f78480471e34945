"""Results on disk: JSON with a schema version; files of all older versions still load."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segx.errors import ResultsError, UsageError
from segx.masks.agreement import parity_from_dict
from segx.model.spec import ModelSpec
from segx.results.types import (
    BenchOptions,
    Cell,
    DeviceMemory,
    Gpu,
    HostMemory,
    InputFacts,
    Machine,
    ModelFacts,
    NoiseProbe,
    Peaks,
    Results,
    Round,
    Wall,
    Work,
)

# 1: first version; cells one after the other.
# 2: cells of one batch size in rounds (rounds, max_time_s, seed); gates of the user (min_iou, max_flips).
# 3: precisions and scopes instead of tf32, memory_profile; what went on in each round; noise floor, parity per image,
#    truth; memory after loading, reasons where a figure is missing; where the time went.
# 4: work of the network, peaks of the devices, and the time these took.
SCHEMA_VERSION = 4


def to_json(results: Results) -> str:
    """Results as JSON text, with their schema version first; a line per field, and per cell."""
    values = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(dataclasses.replace(results, cells=()))}
    del values["cells"]
    fields = "".join(f"{json.dumps(name)}: {_json(value)},\n" for name, value in values.items())
    cells = ",\n".join(_json(dataclasses.asdict(cell)) for cell in results.cells)
    return f'{{{fields}"cells": [\n{cells}\n]}}\n'


def _json(value: Any) -> str:
    """NaN and infinity are no JSON; a missing number is null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def load_results(path: Path) -> Results:
    """Read results from a file, or from ``results.json`` in a folder.

    Raises:
        ResultsError: missing, no JSON, or of an unknown schema version.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version = values.pop("schema_version")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(
            f"{file} is missing or no segx results", hint="give a folder that `segx bench` wrote"
        ) from error
    if version not in range(1, SCHEMA_VERSION + 1):
        raise ResultsError(
            f"{file} has schema version {version}; this segx reads 1 to {SCHEMA_VERSION}",
            hint="use the segx that wrote it",
        )
    try:
        for older in range(version, SCHEMA_VERSION):
            values = _UPGRADES[older](values)
        return _results_from(values)
    except (TypeError, KeyError, ValueError, AttributeError, UsageError) as error:
        raise ResultsError(f"{file} is damaged: {error}", hint="run the bench again") from error


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """Cells were sampled one after the other, until the minima were met."""
    options = {**values["options"], "max_time_s": values["options"]["min_time_s"], "seed": 0}
    model = {"onnx_sha256": None, **values["model"]}
    if isinstance(model["onnx"], dict):  # the first files have its digest beside its name
        model |= {"onnx": model["onnx"]["file"], "onnx_sha256": model["onnx"]["sha256"]}
    cells = [{**cell, "rounds": []} for cell in values["cells"]]
    return {**values, "options": options, "model": model, "cells": cells}


def _from_version_2(values: dict[str, Any]) -> dict[str, Any]:
    """One precision and scope; rounds were numbers of calls; parity was known by its extremes alone."""
    options = {**values["options"], "scopes": ["forward"], "memory_profile": "default"}
    options["precisions"] = ["tf32" if options.pop("tf32") else "fp32"]
    return {**values, "options": options, "cells": [_cell_from_version_2(cell) for cell in values["cells"]]}


def _cell_from_version_2(values: dict[str, Any]) -> dict[str, Any]:
    cell = {**values, "rounds": [{"number": i, "runs": runs} for i, runs in enumerate(values["rounds"])]}
    if cell["device_memory"]:
        cell["device_memory"] = {**cell["device_memory"], "steady_bytes": None}
    if parity := cell["parity"]:
        # The extremes stand for the means, which are no worse; nothing is known to be benign.
        cell["parity"] = {
            **parity,
            "benign_flips": 0,
            "mean_iou": parity["worst_iou"],
            "mean_dice": 2 * parity["worst_iou"] / (1 + parity["worst_iou"]),
            "mean_abs_diff": parity["max_abs_diff"],
            "noise_band": 0.0,
            "classes": [],
            "truth": None,
            "per_image": [],
        }
    return cell


def _from_version_3(values: dict[str, Any]) -> dict[str, Any]:
    """Nothing is known of the ceiling; all other fields are as they were."""
    return values


# Version -> how to make the next one of it.
_UPGRADES = {1: _from_version_1, 2: _from_version_2, 3: _from_version_3}


def _results_from(values: dict[str, Any]) -> Results:
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["options"].items()}
    host = values["machine"]
    load = host["load_average_1min"]
    machine = {
        **host,
        "cpu_flags": tuple(host["cpu_flags"]),
        "gpus": tuple(Gpu(**gpu) for gpu in host["gpus"]),
        "load_average_1min": math.nan if load is None else load,
    }
    model, inputs = values["model"], values["inputs"]
    work = model.get("work")
    return Results(
        **{
            **values,
            "model": ModelFacts(
                **{**model, "spec": ModelSpec.from_dict(model["spec"]), "work": Work(**work) if work else None}
            ),
            "inputs": InputFacts(**{**inputs, "names": tuple(inputs["names"])}),
            "options": BenchOptions(**options),
            "machine": Machine(**machine),
            "cells": tuple(_cell_from(cell) for cell in values["cells"]),
            "noise": tuple(_noise_from(probe) for probe in values.get("noise", [])),
            "wall": Wall(**wall) if (wall := values.get("wall")) else None,
            "peaks": tuple(Peaks(**peaks) for peaks in values.get("peaks", [])),
        }
    )


def _noise_from(values: dict[str, Any]) -> NoiseProbe:
    difference = values["max_abs_diff"]
    return NoiseProbe(**{**values, "max_abs_diff": math.inf if difference is None else difference})


def _cell_from(values: dict[str, Any]) -> Cell:
    nested: dict[str, Callable[[dict[str, Any]], Any]] = {
        "host_memory": lambda inner: HostMemory(**inner),
        "device_memory": lambda inner: DeviceMemory(**inner),
        "parity": parity_from_dict,
    }
    built = {name: build(values[name]) for name, build in nested.items() if values[name] is not None}
    rounds = tuple(Round(**turn) for turn in values["rounds"])
    return Cell(**{**values, "samples_s": tuple(values["samples_s"]), "rounds": rounds, **built})
