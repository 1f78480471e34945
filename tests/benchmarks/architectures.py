"""Which architectures of segmentation_models_pytorch keep their masks in which runtime and precision: a Markdown table.

    uv run python tests/benchmarks/architectures.py
    uv run python tests/benchmarks/architectures.py --arch Segformer --arch FPN --steps 50

Each model (3 channels, one class, ImageNet normalisation) is trained for a moment on generated scenes, saved as a state
dict, and used as a user would: ``segx.benchmark`` exports it, calibrates int8 on a part of the scenes and judges every
variant by PyTorch's masks on others; ``segx.segment`` then segments all of them with the fastest. The last column is
the IoU of these mask files with the true masks, that before it the IoU of PyTorch's.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch

import segx
from segx.analysis.figures import quality_of, verdict_of
from segx.errors import SegxError, first_line
from segx.masks.metrics import mask_iou
from segx.model import synthetic
from segx.model.spec import ModelSpec, normalization
from segx.results.types import Results
from segx.runtimes import Variant
from segx.system import machine

_VARIANTS = (
    "pytorch-cpu:bf16", "onnxruntime-cpu:fp32", "onnxruntime-cpu:int8", "openvino-cpu:fp32", "openvino-cpu:int8",
)  # fmt: skip
_SCENES, _BATCH, _TRAINING_SEED, _SEED = 160, 16, 5, 11
_SAMPLING = segx.SamplingOptions(warmup=1, min_time_s=0.0, min_runs=2, max_time_s=1.0, processes=1)

# DPT takes vision transformers alone; the others, the smallest usual encoder. Segformer is meant for its own.
_ENCODERS = dict.fromkeys(
    (
        "UnetPlusPlus", "Unet", "FPN", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet", "PAN", "PSPNet", "Segformer",
        "UPerNet", "DPT",
    ),
    "resnet18",
) | {"Segformer": "mit_b0", "DPT": "tu-vit_tiny_patch16_224.augreg_in21k"}  # fmt: skip

# PAN halves the last stage's 1/16 three times more; a vision transformer takes the size that it was made for.
_SIZE = 64
_SIZES = {"PAN": 128, "DPT": 224}


@click.command(help=__doc__)
@click.option("--arch", "archs", multiple=True, type=click.Choice(list(_ENCODERS)), help="Only these.")
@click.option("--steps", default=150, show_default=True, help="Training steps of 16 scenes.")
@click.option("--images", default=36, show_default=True, help="Scenes to calibrate, judge and segment.")
def main(archs: tuple[str, ...], steps: int, images: int) -> None:
    """Print the table line by line, and the reasons below it."""
    click.echo(f"{machine.cpu_name()}; torch {torch.__version__}, smp {smp.__version__}\n")
    titles = ("architecture", "encoder", "size", *_VARIANTS, "IoU of PyTorch", "IoU of predict")
    click.echo(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    reasons: list[str] = []
    for arch in archs or _ENCODERS:
        encoder, size = _ENCODERS[arch], _SIZES.get(arch, _SIZE)
        mean, std = normalization("imagenet", 3)
        spec = ModelSpec(
            arch=arch, encoder_name=encoder, in_channels=3, height=size, width=size, mean=mean, std=std, arguments={}
        )
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)  # where artifacts go
            cells = _used(spec, steps, images, reasons)
            os.chdir("/")
        click.echo(f"| {' | '.join((arch, encoder, str(size), *cells))} |")
    click.echo("\n" + "\n".join(f"- {reason}" for reason in reasons))


def _used(spec: ModelSpec, steps: int, images: int, reasons: list[str]) -> list[str]:
    """Train, bench and predict one model; return the cells of its row."""
    checkpoint = Path("model.pth")
    torch.manual_seed(0)
    module = getattr(smp, spec.arch)(spec.encoder_name, encoder_weights=None, in_channels=3, classes=1)
    _train(module, spec, steps)
    torch.save(module.state_dict(), checkpoint)
    list(synthetic.write_samples(Path("scenes"), count=images, seed=_SEED, height=spec.height, width=spec.width))
    try:
        results = segx.benchmark(
            checkpoint,
            spec=spec,
            runtimes=("pytorch-cpu", "onnxruntime-cpu", "openvino-cpu"),
            precisions=("fp32", "bf16", "int8"),
            batch_sizes=(1,),
            data=segx.DataOptions(images="scenes/images", masks="scenes/masks"),
            sampling=_SAMPLING,
            output="artifacts/bench",
        )
        judged = [_judgement(results, name, spec.arch, reasons) for name in _VARIANTS]
        segx.segment("scenes/images", "masks", checkpoint=checkpoint, spec=spec)
    except SegxError as error:
        reasons.append(f"{spec.arch}: {first_line(error)}")
        return ["no"] * (len(_VARIANTS) + 2)
    reference = results.reference_masks
    assert reference
    return [*judged, f"{reference.truth_iou:.3f}", f"{_iou_of_files(images):.3f}"]


def _train(module: torch.nn.Module, spec: ModelSpec, steps: int) -> None:
    scenes = list(synthetic.series(_SCENES, seed=_TRAINING_SEED, height=spec.height, width=spec.width))
    unit = torch.from_numpy(np.stack([scene.image for scene in scenes])).float()[:, None].repeat(1, 3, 1, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    inputs, truth = (unit - mean) / std, torch.from_numpy(np.stack([scene.mask for scene in scenes])).float()[:, None]
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    module.train()
    for _ in range(steps):
        chosen = torch.randint(0, _SCENES, (_BATCH,))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(module(inputs[chosen]), truth[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()


def _judgement(results: Results, name: str, arch: str, reasons: list[str]) -> str:
    runtime, _, precision = name.partition(":")
    variant: Any = Variant(runtime, precision)  # type: ignore[arg-type]
    cell = next((cell for cell in results.cells if cell.variant == variant), None)
    if cell is None or not cell.measured or cell.status != "ok":
        reasons.append(f"{arch}, {name}: {cell.reason if cell else 'not measured'}")
    if cell is None or not cell.parity:
        return "no"
    return f"{verdict_of(results, cell)} ({cell.parity.flipped_pixels} px), {quality_of(results, cell)}"


def _iou_of_files(images: int) -> float:
    """Return the mean IoU of the mask files with the true masks."""
    names = [f"sample_{index:05d}.png" for index in range(images)]
    found, truth = (
        np.stack([cv2.imread(str(Path(folder) / name), cv2.IMREAD_GRAYSCALE) > 0 for name in names])
        for folder in ("masks", "scenes/masks")
    )
    return float(mask_iou(found.astype(np.uint8), truth.astype(np.uint8), 1).mean())


if __name__ == "__main__":
    main()
