"""Which of ONNX Runtime's int8 kernels is faster on this processor for the convolutions of the shipped model.

    uv run python tests/benchmarks/onnxruntime_int8.py

According to its source (QLinearConv in qlinearconv.cc, MLAS in platform.cpp), weights with a zero point of 0 use the
kernel for symmetric convolutions, which has a version for AVX512-VNNI but none for AMX. Others use a matrix product,
which has a version for AMX too if activations are unsigned and weights signed. So the same weights are stored in three
ways that compute the same numbers: signed with a zero point of 0, as segx exports them, signed with -1, and unsigned
with 128.

Each way is timed in a process of its own, in turns, so that a drift of the machine falls on all.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import numpy_helper

from segx.cli.options import SHIPPED_WEIGHTS, resolve_spec
from segx.export.variants import resolve_model, with_form
from segx.runtimes import Variant
from segx.system import machine
from segx.system.processes import Workers
from segx.system.progress import Told

WAYS: dict[str, tuple[Any, int]] = {
    "signed, 0": (np.int8, 0),
    "signed, -1": (np.int8, -1),
    "unsigned, 128": (np.uint8, 128),
}


def stored_with(model: onnx.ModelProto, kind: Any, zero_point: int) -> onnx.ModelProto:
    """Return a copy whose convolution weights have this type and zero point; their values are the same."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        weights = constants.get(node.input[0])
        if node.op_type != "DequantizeLinear" or weights is None or len(weights.dims) != 4:
            continue
        values = numpy_helper.to_array(weights).astype(np.int16) + zero_point
        assert np.iinfo(kind).min <= values.min()
        assert values.max() <= np.iinfo(kind).max
        scales = numpy_helper.to_array(constants[node.input[1]])
        weights.CopyFrom(numpy_helper.from_array(values.astype(kind), weights.name))
        name = f"{weights.name} zero point"
        copy.graph.initializer.append(numpy_helper.from_array(np.full(scales.shape, zero_point, kind), name))
        node.input[:] = [*node.input[:2], name]
    return copy


def timed(model: Path, calls: int) -> None:
    """Print the median milliseconds of a call, the operators in it, and the logits, as JSON."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = machine.usable_cores()
    settings.optimized_model_filepath = str(model.with_suffix(".optimised"))
    session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    shape = [1, *session.get_inputs()[0].shape[1:]]
    feed = {session.get_inputs()[0].name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    logits, taken = session.run(None, feed)[0], []
    for _ in range(calls):
        begun = time.perf_counter()
        session.run(None, feed)
        taken.append(time.perf_counter() - begun)
    operators = [node.op_type for node in onnx.load(settings.optimized_model_filepath).graph.node]
    fused = operators.count("QLinearConv")
    click.echo(json.dumps([statistics.median(taken) * 1e3, fused, logits.ravel().tolist()]))


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True)
@click.option("--calls", default=30, show_default=True)
@click.option("--model", type=Path, hidden=True)
def main(rounds: int, calls: int, model: Path | None) -> None:
    """Print the medians, and their ratios to the first way."""
    if model is not None:
        timed(model, calls)
        return
    click.echo(machine.cpu_name())
    workers, threads = Workers(threads=machine.usable_cores()), machine.usable_cores()
    files = resolve_model(SHIPPED_WEIGHTS, None, resolve_spec(SHIPPED_WEIGHTS, {}))
    files = with_form(workers, files, "int8-onnxruntime", threads=threads, progress=Told(click.echo))
    exported = onnx.load(files.file_for(Variant("onnxruntime-cpu", "int8")))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    results: dict[str, tuple[int, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, way in enumerate(WAYS):
            onnx.save(stored_with(exported, *WAYS[way]), Path(folder, f"{number}.onnx"))
        for _ in range(rounds):
            for number, way in enumerate(WAYS):
                command = [sys.executable, __file__, "--calls", str(calls), "--model", f"{folder}/{number}.onnx"]
                told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                times[way].append(told[0])
                results[way] = told[1], np.array(told[2])
    first = next(iter(WAYS))
    for way, taken in times.items():
        fused, logits = results[way]
        ratio = statistics.median(taken) / statistics.median(times[first])
        apart = np.abs(logits - results[first][1]).max()
        click.echo(
            f"weights {way}: {statistics.median(taken):.1f} ms, {ratio:.2f} of the first; {fused} QLinearConv; "
            f"logits differ by {apart:.2g} at most"
        )


if __name__ == "__main__":
    main()
