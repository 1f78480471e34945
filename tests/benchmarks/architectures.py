"""Which architectures of segmentation_models_pytorch segx exports: a Markdown table, one line for each.

    uv run python tests/benchmarks/architectures.py
    uv run python tests/benchmarks/architectures.py --arch Segformer --arch FPN --size 96

Random weights, 3 channels, 3 classes. The parity is that of the export's own proof, ONNX Runtime on the CPU against
PyTorch over all its batch sizes; where the proof fails, so does the export. Random weights are the harder case for
masks: their logits lie close together.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import segmentation_models_pytorch as smp
import torch

from segx import machine
from segx.errors import SegxError
from segx.export import export_onnx
from segx.spec import ModelSpec

_CLASSES = _CHANNELS = 3

# DPT takes vision transformers alone; the others, the smallest usual encoder. Segformer is meant for its own.
_ENCODERS = dict.fromkeys(
    (
        "Unet", "UnetPlusPlus", "FPN", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet", "PAN", "PSPNet", "Segformer",
        "UPerNet", "DPT",
    ),
    "resnet18",
) | {"Segformer": "mit_b0", "DPT": "tu-vit_tiny_patch16_224.augreg_in21k"}  # fmt: skip

# PAN halves the last stage's 1/16 three times more; a vision transformer takes the size that it was made for.
_SIZE = 64
_SIZES = {"PAN": 128, "DPT": 224}
_SMP_ERRORS = (ValueError, TypeError, KeyError, IndexError, AssertionError, RuntimeError)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        arch: class name in segmentation_models_pytorch.
        encoder: as that library names it.
        size: height and width of the input in pixels.
        flipped: mask pixels that differ, and of how many; empty where it does not export.
        diff: largest difference of logits and their range; likewise.
        seconds: time taken, from checkpoint to proof.
        reason: why it does not export; empty where it does.
    """

    arch: str
    encoder: str
    size: int
    flipped: str
    diff: str
    seconds: float
    reason: str

    def to_markdown(self) -> str:
        exports = "no" if self.reason else "yes"
        cells = (
            self.arch,
            self.encoder,
            str(self.size),
            exports,
            self.flipped,
            self.diff,
            f"{self.seconds:.0f}",
            self.reason,
        )
        return f"| {' | '.join(cells)} |"


@click.command(help=__doc__)
@click.option("--arch", "archs", multiple=True, type=click.Choice(list(_ENCODERS)), help="Only these.")
@click.option("--encoder", help="Another encoder for all of them.")
@click.option("--size", type=int, help=f"Height and width of the input; by default {_SIZE}, or what the model needs.")
@click.option("--threads", default=machine.usable_cores(), show_default=True)
def main(archs: tuple[str, ...], encoder: str | None, size: int | None, threads: int) -> None:
    """Print the table, line by line."""
    click.echo(f"{_CHANNELS} channels, {_CLASSES} classes; torch {torch.__version__}, smp {smp.__version__}\n")
    click.echo("| architecture | encoder | size | exports | flipped px | max diff of logits (range) | s | reason |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for arch in archs or _ENCODERS:
        click.echo(try_export(arch, encoder or _ENCODERS[arch], size or _SIZES.get(arch, _SIZE), threads).to_markdown())


def try_export(arch: str, encoder: str, size: int, threads: int) -> Row:
    """Build the model as its users do, save its weights, export them."""
    spec = ModelSpec(
        arch=arch,
        encoder_name=encoder,
        in_channels=_CHANNELS,
        classes=_CLASSES,
        height=size,
        width=size,
        arguments={},
    )
    start = time.perf_counter()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "model.pth"
        try:
            module = getattr(smp, arch)(encoder, encoder_weights=None, in_channels=_CHANNELS, classes=_CLASSES)
            torch.save(module.state_dict(), checkpoint)
            exported = export_onnx(checkpoint, spec=spec, output=Path(scratch) / "model.onnx", threads=threads)
        except (SegxError, *_SMP_ERRORS) as error:
            reason = " ".join(str(error).split()).replace("|", "/")
            return Row(arch, encoder, size, "", "", time.perf_counter() - start, reason)
    found = [row.parity for row in exported.proof.rows]
    worst = max(found, key=lambda parity: parity.relative_diff)
    return Row(
        arch,
        encoder,
        size,
        f"{sum(p.flipped_pixels for p in found)} of {sum(p.pixels for p in found)}",
        f"{worst.max_abs_diff:.1e} ({worst.logit_range:.2g})",
        time.perf_counter() - start,
        "",
    )


if __name__ == "__main__":
    main()
