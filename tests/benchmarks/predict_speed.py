"""`segx predict`, end to end, against the bare forward throughput of its runtime and against a plain script.

    uv run python tests/benchmarks/predict_speed.py --variant onnxruntime-cpu:fp32 --variant openvino-cpu:int8

All take turns in one run, so that a drift of the machine falls on all; rates are images per second once the model is
loaded, and ratios are of the medians over the rounds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from segx.cli.options import SHIPPED_WEIGHTS, resolve_spec
from segx.export.variants import form_of, resolve_model, with_form
from segx.masks.metrics import class_ious, lowest
from segx.runtimes import Variant
from segx.system import machine
from segx.system.processes import Workers
from segx.system.progress import Told

BARE = """
import sys, time, json
from pathlib import Path
import numpy as np
from segx.predict.sources import open_source, fetch, decode
from segx.masks.preprocess import preprocess
from segx.runtimes import RuntimeOptions, open_runtime
from segx.model.spec import ModelSpec
folder, model, runtime, precision, spec = sys.argv[1:6]
batch_size, count = map(int, sys.argv[6:])
spec = ModelSpec.from_json(spec)
items = [item for item, _ in zip(open_source(folder), range(8 * batch_size))]
images = np.stack([preprocess(decode(fetch(item), item, spec.in_channels), spec) for item in items])
batches = [np.ascontiguousarray(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
options = RuntimeOptions(threads=THREADS, precision=precision)
engine = open_runtime(runtime, Path(model), spec=spec, options=options)
engine.infer(batches[0])
calls = -(-count // batch_size)
begun = time.perf_counter()
for call in range(calls):
    engine.infer(batches[call % len(batches)])
print(json.dumps(calls * batch_size / (time.perf_counter() - begun)))
"""


def last_line(command: list[str]) -> Any:
    """What a command prints last, as JSON."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def bare_rate(folder: Path, model: Path, variant: Variant, spec: str, batch_size: int, images: int) -> float:
    """Images per second of the runtime alone, on images that lie in memory."""
    program = BARE.replace("THREADS", str(machine.usable_cores()))
    arguments = [str(folder), str(model), variant.runtime, variant.precision, spec, str(batch_size), str(images)]
    rate: float = last_line([sys.executable, "-c", program, *arguments])
    return rate


def predict(folder: Path, masks: Path, variant: Variant, batch_size: int, *options: str) -> dict[str, Any]:
    """Segment a folder, and return the report."""
    command = [sys.executable, "-m", "segx", "predict", str(folder), "--output", str(masks), "--json", *options]
    command += ["--runtime", variant.runtime, "--precision", variant.precision, "--batch-size", str(batch_size)]
    report: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return report


def as_jpeg(folder: Path) -> None:
    """Replace the images of a folder by JPEG files in colour."""
    for path in [*folder.glob("*.png")]:
        cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)), [cv2.IMWRITE_JPEG_QUALITY, 92])
        path.unlink()


def compare_scaled_decoding(folder: Path, variant: Variant, batch_size: int) -> None:
    """Print the rates with and without scaled decoding, and how far the masks differ."""
    with tempfile.TemporaryDirectory() as scratch:
        masks = Path(scratch, "whole"), Path(scratch, "scaled")
        rates = [
            predict(folder, path, variant, batch_size, *options)["images_per_s"]
            for path, options in zip(masks, ((), ("--scaled-decoding",)), strict=True)
        ]
        names = sorted(path.name for path in masks[0].glob("*.png"))
        whole, scaled = (np.stack([cv2.imread(str(path / name), 0) // 255 for name in names]) for path in masks)
    ious = lowest(class_ious(whole, scaled, 1))
    click.echo(
        f"{variant} batch {batch_size}: {rates[0]:.2f} images/s, with scaled decoding {rates[1]:.2f}; "
        f"{(whole != scaled).mean():.4%} of pixels flip, IoU {ious.mean():.4f}, of the worst image {ious.min():.4f}"
    )


def plain_rate(folder: Path, batch_size: int) -> float:
    """Images per second of the plain script."""
    script = Path(__file__).with_name("plain_script.py")
    with tempfile.TemporaryDirectory() as masks:
        told = last_line([sys.executable, str(script), str(folder), masks, "--batch-size", str(batch_size)])
    rate: float = told["images"] / told["seconds"]
    return rate


@click.command()
@click.option("--variant", "variants", multiple=True, default=("onnxruntime-cpu:fp32", "openvino-cpu:int8"))
@click.option("--images", default=500, show_default=True)
@click.option("--size", default=512, show_default=True, help="Height and width of the images in pixels.")
@click.option("--jpeg", is_flag=True, help="Take JPEG files, and compare scaled decoding too.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--batch-size", default=1, show_default=True)
@click.option("--plain-batch-size", default=1, show_default=True)
@click.option("--plain/--no-plain", default=True, show_default=True, help="Whether to run the plain script too.")
def main(
    variants: tuple[str, ...],
    images: int,
    size: int,
    jpeg: bool,
    rounds: int,
    batch_size: int,
    plain_batch_size: int,
    plain: bool,
) -> None:
    """Print the rates and their ratios for each variant."""
    chosen = [Variant(*text.split(":")) for text in variants]  # type: ignore[arg-type]
    spec = resolve_spec(SHIPPED_WEIGHTS, {})
    threads = machine.usable_cores()
    model, workers = resolve_model(SHIPPED_WEIGHTS, None, spec), Workers(threads=threads)
    files = {}
    for variant in chosen:
        made = with_form(workers, model, form_of(variant), threads=threads, any_int8=True, progress=Told(click.echo))
        files[variant] = made.file_for(variant)
    bare: dict[Variant, list[float]] = {variant: [] for variant in chosen}
    whole: dict[Variant, list[float]] = {variant: [] for variant in chosen}
    script: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "segx", "samples", "--count", str(images), "--size", str(size)]
        subprocess.run([*command, "--out", scratch], check=True, capture_output=True)
        folder = Path(scratch) / "images"
        if jpeg:
            as_jpeg(folder)
        for number in range(rounds):
            for variant in chosen:
                bare[variant].append(bare_rate(folder, files[variant], variant, spec.to_json(), batch_size, images))
                with tempfile.TemporaryDirectory() as masks:
                    report = predict(folder, Path(masks), variant, batch_size)
                whole[variant].append(report["images_per_s"])
                stages = ", ".join(
                    f"{stage} {1e3 * seconds / images:.2f}" for stage, seconds in report["stages"].items()
                )
                rates = f"{bare[variant][-1]:.2f} bare, {whole[variant][-1]:.2f} whole"
                click.echo(f"round {number}: {variant} {rates}; ms: {stages}")
            if plain:
                script.append(plain_rate(folder, plain_batch_size))
                click.echo(f"round {number}: plain script {script[-1]:.2f}")
        for variant in chosen if jpeg else ():
            compare_scaled_decoding(folder, variant, batch_size)
    for variant in chosen:
        ours = statistics.median(whole[variant])
        against_bare = ours / statistics.median(bare[variant])
        against_script = f", {ours / statistics.median(script):.2f}x the plain script" if plain else ""
        click.echo(f"{variant} batch {batch_size}: {ours:.2f} images/s, {against_bare:.1%} of bare{against_script}")


if __name__ == "__main__":
    main()
