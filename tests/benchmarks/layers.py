"""Where an engine's time goes: the kinds of layers of a model, and the slowest layers, by the engine's own profile.

    uv run python tests/benchmarks/layers.py --variant openvino-cpu:int8 --variant onnxruntime-cpu:int8

Each variant runs in a process of its own: two engines in one process slow each other down. A layer's time is the
shortest of all calls, so that the sum is the time of an undisturbed call.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from segx.cli.options import SHIPPED_WEIGHTS, resolve_spec
from segx.export.variants import form_of, resolve_model, with_form
from segx.model.spec import ModelSpec
from segx.runtimes import Variant
from segx.system import machine
from segx.system.processes import Workers
from segx.system.progress import Told


def openvino_times(model: Path, precision: Any, image: np.ndarray, calls: int) -> Mapping[tuple[str, str], float]:
    """Return the milliseconds of each layer by its name and kernel."""
    import openvino

    hint = {"bf16": "bf16", "fp16": "f16"}.get(precision, "f32")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": machine.usable_cores(), "PERF_COUNT": True}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {**settings, "INFERENCE_PRECISION_HINT": hint})
    request, times = compiled.create_infer_request(), {}
    for _ in range(calls):
        request.infer({0: image})
        for layer in request.get_profiling_info():
            if spent := layer.real_time.total_seconds() * 1e3:
                key = layer.node_name, f"{layer.node_type} {layer.exec_type}"
                times[key] = min(spent, times.get(key, spent))
    return times


def onnxruntime_times(model: Path, _: Any, image: np.ndarray, calls: int) -> Mapping[tuple[str, str], float]:
    """Return the milliseconds of each layer by its name and operator."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = machine.usable_cores()
    settings.enable_profiling = True
    session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    for _call in range(calls):
        session.run(None, {session.get_inputs()[0].name: image})
    trace = Path(session.end_profiling())
    times: dict[tuple[str, str], float] = {}
    for event in json.loads(trace.read_text()):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            times[key] = min(event["dur"] / 1e3, times.get(key, float("inf")))
    trace.unlink()
    return times


@click.command(help=__doc__)
@click.option(
    "--variant", "variants", multiple=True, required=True, help="openvino-cpu:int8 or another of these engines."
)
@click.option("--weights", type=Path, default=SHIPPED_WEIGHTS)
@click.option("--calls", default=30, show_default=True)
@click.option("--slowest", default=8, show_default=True, help="How many layers to list.")
@click.option("--model", type=Path, hidden=True)
def main(variants: tuple[str, ...], weights: Path, calls: int, slowest: int, model: Path | None) -> None:
    """Print a table per variant."""
    if model is not None:
        print_profile(variants[0], model, resolve_spec(weights, {}), calls, slowest)
        return
    click.echo(machine.cpu_name())
    workers, files = Workers(threads=machine.usable_cores()), resolve_model(weights, None, None)
    for name in variants:
        runtime, _, precision = name.partition(":")
        variant: Any = Variant(runtime, precision)  # type: ignore[arg-type]
        files = with_form(workers, files, form_of(variant), threads=machine.usable_cores(), progress=Told(click.echo))
        here = [sys.executable, __file__, "--variant", name, "--weights", weights, "--model", files.file_for(variant)]
        subprocess.run([*map(str, here), "--calls", str(calls), "--slowest", str(slowest)], check=True)


def print_profile(name: str, model: Path, spec: ModelSpec, calls: int, slowest: int) -> None:
    runtime, _, precision = name.partition(":")
    image = np.random.default_rng(0).random((1, *spec.input_shape), dtype=np.float32)
    find = openvino_times if runtime.startswith("openvino") else onnxruntime_times
    times = find(model, precision, image, calls)
    total, kinds = sum(times.values()), collections.Counter[str]()
    for (_, kind), spent in times.items():
        kinds[kind] += spent  # type: ignore[assignment]
    click.echo(f"\n{name}: {total:.2f} ms in {len(times)} layers")
    for kind, spent in kinds.most_common():
        count = sum(each == kind for _, each in times)
        click.echo(f"{spent:8.2f} ms {spent / total:6.1%} {count:4} {kind}")
    for (layer, kind), spent in sorted(times.items(), key=lambda item: -item[1])[:slowest]:
        click.echo(f"    {spent:6.2f} ms {layer} ({kind})")


if __name__ == "__main__":
    main()
