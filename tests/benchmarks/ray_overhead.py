"""`segx predict --engine ray` against the local engine on the same cores, and two nodes against one.

    uv run python tests/benchmarks/ray_overhead.py --images 1000

A node has some of this machine's cores, on which its processes are pinned. All take turns in each round, so that a
drift of the machine falls on all; figures are medians over the rounds. Rates count from the moment the first engine is
ready, seconds from the start of the command to its end.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from ray.cluster_utils import Cluster

from segx.cli.options import SHIPPED_WEIGHTS


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin this process, and those that it starts, to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def cluster(nodes: Sequence[Sequence[int]]) -> Iterator[str]:
    """Start a node on each of these groups of cores; give the cluster's address."""
    started = Cluster()
    for cores in nodes:
        with pinned(cores):
            started.add_node(num_cpus=len(cores), include_dashboard=False, object_store_memory=200 * 2**20)
    try:
        yield started.address
    finally:
        started.shutdown()


def predict(folder: Path, variant: str, batch_size: int, *options: str) -> tuple[float, float]:
    """Images per second and seconds of one command."""
    with tempfile.TemporaryDirectory() as masks:
        command = [sys.executable, "-m", "segx", "predict", str(folder), "--output", masks, "--json", *options]
        command += ["--weights", str(SHIPPED_WEIGHTS), "--runtime", variant, "--batch-size", str(batch_size)]
        begun = time.perf_counter()
        told: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        seconds = time.perf_counter() - begun
    assert not told["failed"]
    return told["images_per_s"], seconds


@click.command()
@click.option("--variant", default="openvino-cpu:int8", show_default=True)
@click.option("--images", default=1000, show_default=True, help="How many, of 512 x 512 pixels.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--batch-size", default=1, show_default=True)
def main(variant: str, images: int, rounds: int, batch_size: int) -> None:
    """Print images per second and seconds of each way to run, and their ratios."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if not half:
        raise click.UsageError("two nodes need two cores")
    # Name -> the cores of each node; the local engine has no nodes.
    ways: dict[str, list[list[int]]] = {
        f"local, {len(cores)} cores": [],
        f"ray, 1 node of {len(cores)}": [cores],
        f"ray, 1 node of {half}": [cores[:half]],
        f"ray, 2 nodes of {half}": [cores[:half], cores[half : 2 * half]],
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "segx",
            "samples",
            "--count",
            str(images),
            "--size",
            "512",
            "--output",
            scratch,
        ]
        subprocess.run(command, check=True, capture_output=True)
        folder = Path(scratch) / "images"
        predict(folder, variant, batch_size)  # makes the file
        for number in range(rounds):
            for name, nodes in ways.items():
                if nodes:
                    with cluster(nodes) as address:
                        told = predict(folder, variant, batch_size, "--engine", "ray", "--ray-address", address)
                else:
                    told = predict(folder, variant, batch_size)
                rates[name].append(told[0])
                spent[name].append(told[1])
                click.echo(f"round {number}: {name}: {told[0]:.2f} images/s, {told[1]:.1f} s")
    local, whole, one, two = (statistics.median(rates[name]) for name in ways)
    for name in ways:
        click.echo(f"{name}: {statistics.median(rates[name]):.2f} images/s, {statistics.median(spent[name]):.1f} s")
    click.echo(f"{variant} batch {batch_size}: one node has {whole / local:.1%} of the local engine's rate")
    click.echo(f"two nodes have {two / one:.2f} times the rate of one")


if __name__ == "__main__":
    main()
