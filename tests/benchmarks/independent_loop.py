"""What segx says of ONNX Runtime against a script that knows nothing of segx, in a process of its own.

    uv run python tests/benchmarks/independent_loop.py

The two are run in turn, so that a drift of the machine falls on both; printed as a ratio of medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from segx.cli.options import SHIPPED_WEIGHTS
from segx.export import export_onnx
from segx.system import machine

SCRIPT = """
import sys, time, json
import numpy as np, onnxruntime as ort
path, threads, batch, runs = sys.argv[1], *map(int, sys.argv[2:])
options = ort.SessionOptions()
options.intra_op_num_threads = threads
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
image = np.random.default_rng(0).random((batch, 1, 256, 256), dtype=np.float32)
seconds = []
for run in range(runs + 2):
    start = time.perf_counter()
    session.run(None, {"image": image})
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds[2:]))
"""


@click.command()
@click.option("--rounds", default=4, show_default=True)
@click.option("--runs", default=25, show_default=True)
@click.option("--batch-size", default=1, show_default=True)
def main(rounds: int, runs: int, batch_size: int) -> None:
    """Print segx / script."""
    model, threads = export_onnx(SHIPPED_WEIGHTS).artifact.path, machine.usable_cores()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "segx", "bench", "--model", str(model), "--runtime", "onnxruntime-cpu"]
            command += ["--batch-size", str(batch_size), "--num-images", "8", "--min-runs", str(runs)]
            command += ["--max-time", "0", "--output", folder]
            subprocess.run(command, check=True, capture_output=True)
            ours += json.loads((Path(folder) / "results.json").read_text())["cells"][0]["samples_s"]
        command = [sys.executable, "-c", SCRIPT, str(model), str(threads), str(batch_size), str(runs)]
        theirs += json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    medians = statistics.median(ours), statistics.median(theirs)
    click.echo(
        f"onnxruntime-cpu batch {batch_size}: segx {medians[0] * 1e3:.1f} ms ({len(ours)} calls), "
        f"script {medians[1] * 1e3:.1f} ms ({len(theirs)}), ratio {medians[0] / medians[1]:.3f}"
    )


if __name__ == "__main__":
    main()
