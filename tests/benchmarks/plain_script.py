"""The script that `segx predict` replaces: one process, one step after the other, PyTorch eager.

    uv run python tests/benchmarks/plain_script.py photos/ masks/ --batch-size 4

Nothing of segx is timed in it: weights and size of the model are all that it takes from there.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import cv2
import torch
from torchvision.transforms.v2 import Compose, Resize, ToDtype, ToImage

from segx.cli.options import SHIPPED_WEIGHTS
from segx.model.checkpoint import described
from segx.model.smp import load_model
from segx.model.spec import ModelSpec
from segx.system import machine


@click.command()
@click.argument("images", type=click.Path(path_type=Path))
@click.argument("masks", type=click.Path(path_type=Path))
@click.option("--weights", type=click.Path(path_type=Path), default=SHIPPED_WEIGHTS)
@click.option("--batch-size", default=1, show_default=True)
def main(images: Path, masks: Path, weights: Path, batch_size: int) -> None:
    """Print images and seconds as JSON; loading the model is not counted."""
    spec = described(weights).spec or ModelSpec()
    torch.set_num_threads(machine.usable_cores())
    model = load_model(weights, spec).eval()
    preprocess = Compose(
        [ToImage(), ToDtype(torch.float32, scale=True), Resize((spec.height, spec.width), antialias=True)]
    )
    flag = cv2.IMREAD_GRAYSCALE if spec.in_channels == 1 else cv2.IMREAD_COLOR_RGB
    masks.mkdir(parents=True, exist_ok=True)
    paths = sorted(images.glob("*.png"))
    with torch.inference_mode():
        model(torch.zeros(batch_size, *spec.input_shape))
        begun = time.perf_counter()
        for first in range(0, len(paths), batch_size):
            batch = paths[first : first + batch_size]
            pictures = [cv2.imread(str(path), flag) for path in batch]
            logits = model(torch.stack([preprocess(picture) for picture in pictures]))
            found = (logits.sigmoid() >= spec.threshold).to(torch.uint8).mul(255)[:, 0].numpy()
            for path, picture, mask in zip(batch, pictures, found, strict=True):
                height, width = picture.shape[:2]
                resized = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
                cv2.imwrite(str(masks / path.name), resized)
        seconds = time.perf_counter() - begun
    click.echo(json.dumps({"images": len(paths), "seconds": seconds}))


if __name__ == "__main__":
    main()
