"""Train the shipped UNet++ on generated scenes; writes weights_001.safetensors and what the model card says of it.

    uv run python weights/train.py --steps 1200 --amp

Runs on the CPU or, with ``--device cuda``, on a GPU; ``--amp`` (bfloat16 autocast) is faster where the processor has
bfloat16 instructions. Scenes come from seed 1; ``judge.py`` judges the result on scenes of seed 2.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from judge import held_out, judge_scene, summary
from safetensors.torch import save_file
from torch.nn import functional

import segx
from segx.model import synthetic
from segx.model.smp import build_module
from segx.model.spec import METADATA_KEY, ModelSpec

TRAIN_SEED = 1
CROP = 128
MAX_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4

FloatArray = npt.NDArray[np.float32]


def crops(scene: synthetic.Sample, count: int, choose: np.random.Generator) -> list[tuple[FloatArray, FloatArray]]:
    """Cut ``count`` random squares, each turned and mirrored, with random contrast; (CROP, CROP) in [0, 1]."""
    cuts = []
    for _ in range(count):
        y, x = (int(choose.integers(0, n - CROP + 1)) for n in scene.image.shape)
        window = np.s_[y : y + CROP, x : x + CROP]
        image, mask = scene.image[window].astype(np.float32) / 255, scene.mask[window].astype(np.float32)
        turns, mirrored = int(choose.integers(4)), bool(choose.integers(2))
        image, mask = (np.rot90(a[:, ::-1] if mirrored else a, turns) for a in (image, mask))
        image = np.clip(image * choose.uniform(0.7, 1.3) + choose.uniform(-0.03, 0.03), 0, 1)
        cuts.append((image.astype(np.float32), mask))
    return cuts


def batch_of(step: int, size: int, choose: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two crops from each of ``size / 2`` scenes that no other step uses."""
    pairs = []
    for i in range(size // 2):
        scene = synthetic.generate(step * (size // 2) + i, seed=TRAIN_SEED)
        pairs += crops(scene, 2, choose)
    images, masks = (np.stack([pair[i] for pair in pairs])[:, None] for i in (0, 1))
    return torch.from_numpy(images), torch.from_numpy(masks)


def loss_of(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy plus soft Dice over the batch."""
    probabilities = torch.sigmoid(logits)
    overlap = 2 * (probabilities * masks).sum() + 1
    dice = overlap / (probabilities.sum() + masks.sum() + 1)
    return functional.binary_cross_entropy_with_logits(logits, masks) + 1 - dice


def live_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights in fp16; counters stay whole numbers. Parts that never run are already out of the module."""
    state = model.state_dict()
    return {k: (t.half() if t.is_floating_point() else t).contiguous().cpu() for k, t in state.items()}


@click.command()
@click.option("--steps", default=1200, show_default=True)
@click.option("--batch-size", default=8, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--amp", is_flag=True, help="Run the network in bfloat16 autocast.")
@click.option("--output", type=click.Path(path_type=Path), default=Path(__file__).parent / "weights_001.safetensors")
def main(steps: int, batch_size: int, device: str, amp: bool, output: Path) -> None:
    """Train, judge on unseen scenes, save."""
    torch.manual_seed(0)
    choose = np.random.default_rng(0)
    spec = ModelSpec()
    model = build_module(spec).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=MAX_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LEARNING_RATE, total_steps=steps)
    started = time.monotonic()
    for step in range(steps):
        images, masks = (t.to(device, memory_format=torch.channels_last) for t in batch_of(step, batch_size, choose))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
            logits = model(images)
        loss = loss_of(logits.float(), masks)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == steps - 1:
            click.echo(f"step {step + 1}/{steps}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", err=True)
    state = live_state(model)
    # Judged as it is stored: the fp16 rounding is part of the weights.
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    report: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "amp": amp,
        "training_seconds": round(time.monotonic() - started),
        "segx": segx.__version__,
        "torch": torch.__version__,
        **summary([judge_scene(model.eval(), spec, scene, device) for scene in held_out()]),
    }
    save_file(state, output, metadata={METADATA_KEY: spec.to_json(), "training": json.dumps(report, sort_keys=True)})
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
