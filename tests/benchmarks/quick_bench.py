"""How long `segx bench --quick` takes without any file made before, and again with them.

    uv run python tests/benchmarks/quick_bench.py --tree ../segx-before --tree .

The checkouts take turns in one run, so that a drift of the machine falls on all; each run has a new working folder.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click


def quick_bench(tree: Path, folder: Path, output: str) -> tuple[float, dict[str, float]]:
    """Return the seconds of the whole command, and of its parts."""
    command = [sys.executable, "-m", "segx", "bench", "--quick", "--output", output]
    begun = time.perf_counter()
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, capture_output=True)
    taken = time.perf_counter() - begun
    parts: dict[str, float] = json.loads((folder / output / "results.json").read_text())["wall"]
    return taken, parts


@click.command()
@click.option("--tree", "trees", multiple=True, default=(".",), type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=3, show_default=True)
def main(trees: tuple[Path, ...], rounds: int) -> None:
    """Print the medians for each checkout, and their ratios to the first one."""
    times: dict[tuple[Path, str], list[float]] = {}
    for _ in range(rounds):
        for tree in trees:
            with tempfile.TemporaryDirectory() as folder:
                for output in ("first", "second"):
                    taken, parts = quick_bench(tree.resolve(), Path(folder), output)
                    times.setdefault((tree, output), []).append(taken)
                    told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
                    click.echo(f"{tree}, {output} bench: {taken:.1f} s ({told})")
    for (tree, output), seconds in times.items():
        ratio = statistics.median(seconds) / statistics.median(times[trees[0], output])
        click.echo(f"{tree}, {output} bench: median {statistics.median(seconds):.1f} s, {ratio:.2f} of {trees[0]}")


if __name__ == "__main__":
    main()
