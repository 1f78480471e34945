"""Which architectures of segmentation_models_pytorch export, and keep their masks in which runtime: a Markdown table.

    uv run python tests/benchmarks/architectures.py
    uv run python tests/benchmarks/architectures.py --arch Segformer --arch FPN --size 96

Random weights, 3 channels, 3 classes. Every runtime computes the same generated scenes; its masks are judged against
PyTorch eager by the limits of fp32. Random weights are the harder case for masks: their logits lie close together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import segmentation_models_pytorch as smp
import torch

from segx.errors import SegxError, first_line
from segx.export import export_onnx
from segx.export.variants import derive, form_of
from segx.masks.agreement import LIMITS, breaches, compare_logits
from segx.masks.preprocess import model_inputs
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, Variant, open_runtime, runtime_info
from segx.system import machine

_CLASSES = _CHANNELS = 3
_IMAGES, _SEED = 8, 11
_RUNTIMES = ("pytorch-cpu-channels-last", "onnxruntime-cpu", "openvino-cpu", "openvino-cpu-throughput")

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
_SMP_ERRORS = (ValueError, TypeError, KeyError, IndexError, AssertionError, RuntimeError)


@click.command(help=__doc__)
@click.option("--arch", "archs", multiple=True, type=click.Choice(list(_ENCODERS)), help="Only these.")
@click.option("--encoder", help="Another encoder for all of them.")
@click.option("--size", type=int, help=f"Height and width of the input; by default {_SIZE}, or what the model needs.")
@click.option("--threads", default=machine.usable_cores(), show_default=True)
def main(archs: tuple[str, ...], encoder: str | None, size: int | None, threads: int) -> None:
    """Print the table line by line, and the reasons below it."""
    click.echo(f"{_CHANNELS} channels, {_CLASSES} classes; torch {torch.__version__}, smp {smp.__version__}\n")
    titles = ("architecture", "encoder", "size", "export", "symbolic sizes", *_RUNTIMES)
    click.echo(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    reasons: list[str] = []
    for arch in archs or _ENCODERS:
        name, pixels = encoder or _ENCODERS[arch], size or _SIZES.get(arch, _SIZE)
        cells = [arch, name, str(pixels), *_try(arch, name, pixels, threads, reasons)]
        click.echo(f"| {' | '.join(cells)} |")
    click.echo("\n" + "\n".join(f"- {reason}" for reason in reasons))


def _try(arch: str, encoder: str, size: int, threads: int, reasons: list[str]) -> list[str]:
    """Build the model as its users do, save its weights, export them, run them everywhere."""
    spec = ModelSpec(
        arch=arch,
        encoder_name=encoder,
        in_channels=_CHANNELS,
        classes=_CLASSES,
        height=size,
        width=size,
        arguments={},
    )
    images = np.stack([image for _, image in model_inputs(spec, _IMAGES, seed=_SEED)])
    names = [f"sample {index}" for index in range(_IMAGES)]
    torch.manual_seed(0)

    def tried(what: str, attempt: Callable[[], str]) -> str:
        try:
            return attempt()
        except (SegxError, *_SMP_ERRORS) as error:
            reasons.append(f"{arch}, {what}: {first_line(error).replace('|', '/')}")
            return "no"

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, onnx = Path(scratch) / "model.pth", Path(scratch) / "model.onnx"

        def run(name: str) -> np.ndarray:
            variant = Variant(name)
            takes_checkpoint = runtime_info(name).takes == "checkpoint"
            made = derive(onnx, form_of(variant), output=Path(scratch) / "made.onnx").path
            path = checkpoint if takes_checkpoint else made
            runtime = open_runtime(name, path, spec=spec, options=RuntimeOptions(threads=threads))
            logits = runtime.infer(images)
            runtime.close()
            return logits

        def export(*, dynamic_size: bool) -> str:
            output = Path(scratch) / "dynamic.onnx" if dynamic_size else onnx
            exported = export_onnx(checkpoint, spec=spec, output=output, dynamic_size=dynamic_size, threads=threads)
            return "yes" if exported.artifact.size_multiple is None else f"× {exported.artifact.size_multiple}"

        def judged(name: str) -> str:
            parity = compare_logits(expected, run(name), spec, names)
            if broken := breaches(parity, LIMITS["fp32"]):
                reasons.append(f"{arch}, {name}: {'; '.join(broken)}")
                return "no"
            return f"{parity.flipped_pixels} px, {parity.relative_diff:.0e}"

        def built() -> str:
            module = getattr(smp, arch)(encoder, encoder_weights=None, in_channels=_CHANNELS, classes=_CLASSES)
            torch.save(module.state_dict(), checkpoint)
            return export(dynamic_size=False)

        exports = tried("export", built)
        if exports == "no":
            return [exports, *[""] * (1 + len(_RUNTIMES))]
        expected = run("pytorch-cpu")
        return [
            exports,
            tried("symbolic sizes", lambda: export(dynamic_size=True)),
            *(tried(name, lambda name=name: judged(name)) for name in _RUNTIMES),
        ]


if __name__ == "__main__":
    main()
