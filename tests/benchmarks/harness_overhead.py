"""How far the harness's median lies from that of a bare loop around the same call, in the same process.

    uv run python tests/benchmarks/harness_overhead.py

Slices of the two are taken in turn, so that a drift of the machine falls on both; printed as a ratio per runtime.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click

from segx.bench.inputs import BatchFiles, prepare_inputs
from segx.bench.sampling import by_clock, timed_runs
from segx.cli.options import SHIPPED_WEIGHTS
from segx.export import export_onnx
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, open_runtime, runtime_info
from segx.system import machine


@click.command()
@click.option("--runtime", "names", multiple=True, default=("onnxruntime-cpu", "pytorch-cpu"), show_default=True)
@click.option("--rounds", default=30, show_default=True)
@click.option("--batch-size", default=1, show_default=True)
def main(names: tuple[str, ...], rounds: int, batch_size: int) -> None:
    """Print harness / bare for each runtime."""
    spec, options = ModelSpec(), RuntimeOptions(threads=machine.usable_cores())
    files = {"checkpoint": SHIPPED_WEIGHTS, "onnx": export_onnx(SHIPPED_WEIGHTS).artifact.path}
    with tempfile.TemporaryDirectory() as scratch:
        inputs = prepare_inputs(Path(scratch) / "inputs", spec, folder=None, count=8)
        batches = BatchFiles(inputs, batch_size, Path(scratch) / "outputs")
        batch = batches.take(0)
        for name in names:
            runtime = open_runtime(name, files[runtime_info(name).takes], spec=spec, options=options)
            runtime.infer(batch)
            harness: list[float] = []
            bare: list[float] = []
            for turn in range(rounds):
                harness += timed_runs(by_clock(runtime.infer), batches, first_run=turn, slice_s=0.0)
                start = time.perf_counter()
                runtime.infer(batch)
                bare.append(time.perf_counter() - start)
            runtime.close()
            medians = statistics.median(harness), statistics.median(bare)
            click.echo(
                f"{name:16} harness {medians[0] * 1e3:7.1f} ms  bare {medians[1] * 1e3:7.1f} ms  "
                f"ratio {medians[0] / medians[1]:.3f}  ({rounds} each, batch {batch_size})"
            )


if __name__ == "__main__":
    main()
