"""How much longer a model takes in a browser than by native code, and why.

    uv run python tests/benchmarks/browser.py --threads 1 --threads 2

The engines take turns, each time in a process of its own, with the shipped network at batch 1; a time is the shortest
of all calls. PyTorch held to SSE4.1 has the vectors that WebAssembly has: 128 bits, without fused multiply-add.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from segx.cli.options import SHIPPED_WEIGHTS, resolve_spec
from segx.export.variants import form_of, resolve_model, with_form
from segx.runtimes import RuntimeOptions, Variant, open_runtime
from segx.runtimes.base import RunsElsewhere
from segx.system import machine
from segx.system.processes import Workers
from segx.system.progress import Told

NARROW = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}
# Each is compared with the first that has its precision.
ENGINES: tuple[tuple[str, Any, dict[str, str]], ...] = (
    ("onnxruntime-cpu", "fp32", {}),
    ("onnxruntime-web", "fp32", {}),
    ("pytorch-cpu", "fp32", NARROW),
    ("onnxruntime-cpu", "int8", {}),
    ("onnxruntime-web", "int8", {}),
)


@click.command(help=__doc__)
@click.option("--threads", multiple=True, type=int, default=(1, machine.usable_cores()), show_default=True)
@click.option("--turns", default=3, show_default=True)
@click.option("--calls", default=8, show_default=True)
@click.option("--child", nargs=3, hidden=True)
def main(threads: tuple[int, ...], turns: int, calls: int, child: tuple[str, str, str] | None) -> None:
    """Print milliseconds per image, and the ratio to native ONNX Runtime in the same precision."""
    if child:
        click.echo(shortest(*child, threads=threads[0], calls=calls))
        return
    click.echo(machine.cpu_name())
    workers, files = Workers(threads=machine.usable_cores()), resolve_model(SHIPPED_WEIGHTS, None, None)
    for form in dict.fromkeys(form_of(Variant(runtime, precision)) for runtime, precision, _ in ENGINES):
        files = with_form(workers, files, form, threads=machine.usable_cores(), progress=Told(click.echo))
    for count in dict.fromkeys(threads):
        times = dict.fromkeys(range(len(ENGINES)), float("inf"))
        for _turn in range(turns):
            for engine, (runtime, precision, variables) in enumerate(ENGINES):
                model = files.file_for(Variant(runtime, precision))
                here = [sys.executable, __file__, "--child", runtime, precision, str(model)]
                command = [*here, "--threads", str(count), "--calls", str(calls)]
                done = subprocess.run(command, env={**os.environ, **variables}, check=True, stdout=subprocess.PIPE)
                times[engine] = min(times[engine], float(done.stdout))
        click.echo(f"{count} threads")
        for engine, (runtime, precision, variables) in enumerate(ENGINES):
            base = next(i for i, (_, other, _) in enumerate(ENGINES) if other == precision)
            name = f"{runtime}:{precision}{' held to SSE4.1' if variables else ''}"
            click.echo(f"{name:40} {times[engine] * 1e3:8.1f} ms {times[engine] / times[base]:6.2f}x")


def shortest(runtime: str, precision: Any, model: str, *, threads: int, calls: int) -> float:
    """Return the seconds of the shortest call."""
    spec = resolve_spec(SHIPPED_WEIGHTS, {})
    options = RuntimeOptions(threads=threads, precision=precision)
    opened = open_runtime(runtime, Path(model), spec=spec, options=options)
    batch = np.random.default_rng(0).random((1, *spec.input_shape), dtype=np.float32)
    seconds = []
    for _ in range(calls):
        begun = time.perf_counter()
        if isinstance(opened, RunsElsewhere):
            seconds.append(opened.infer_timed(batch)[1])
        else:
            opened.infer(batch)
            seconds.append(time.perf_counter() - begun)
    opened.close()
    return min(seconds)


if __name__ == "__main__":
    main()
