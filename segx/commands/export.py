"""``segx export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segx.options import (
    calibration_option,
    debug_option,
    model_options,
    resolve_spec,
    resolve_weights,
    spec_overrides,
    weights_option,
)


@click.command()
@weights_option
@model_options
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: artifacts/NAME.onnx]")
@click.option(
    "--output-kind",
    type=click.Choice(["logits", "probabilities", "mask"]),
    default="logits",
    show_default=True,
    help="What the exported model gives.",
)
@click.option(
    "--precision", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True, help="Of the exported model."
)
@click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "openvino"]),
    default="openvino",
    show_default=True,
    help="Whose int8 file to make.",
)
@calibration_option
@click.option("--min-iou", type=click.FloatRange(0, 1), help="Lowest IoU that int8 may leave a mask.  [default: 0.98]")
@click.option("--force", is_flag=True, help="Export again although nothing changed.")
@click.option("--threads", type=click.IntRange(1), help="Processors for the proof.  [default: all usable]")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON, and nothing else.")
@debug_option
def export(
    weights: Path | None,
    output: Path | None,
    output_kind: Any,
    precision: str,
    engine: Any,
    calibration: Path | None,
    min_iou: float | None,
    force: bool,
    threads: int | None,
    as_json: bool,
    **model: Any,
) -> None:
    """Export a checkpoint to one self-contained ONNX file with a symbolic batch axis.

    The file is put in place only after ONNX Runtime gave the same masks as PyTorch; the proof is printed. With
    --precision int8 that file is quantised for one engine; layers that cost its masks too much stay in float.

    \b
    segx export
    segx export --precision int8 --engine openvino --calibration photos/
    segx export --weights unet.pth --arch Unet --encoder resnet18 --in-channels 3
    segx export --weights my_pretrained_folder/ --input-size 512 --output-kind mask
    """
    from segx.bench.progress import progress_on
    from segx.export import export_int8, export_onnx
    from segx.export.int8 import to_text as int8_to_text
    from segx.export.manifest import manifest_path
    from segx.export.report import to_text

    if precision == "int8" and output_kind != "logits":
        raise click.UsageError("int8 is made of logits; leave --output-kind out")
    checkpoint = resolve_weights(weights)
    spec = resolve_spec(checkpoint, spec_overrides(**model))
    with progress_on() as progress:
        exported = export_onnx(
            checkpoint,
            spec=spec,
            output=None if precision == "int8" else output,
            output_kind=output_kind,
            force=force and precision != "int8",
            threads=threads,
            tell=progress.say,
        )
        if precision == "int8":
            limits = {} if min_iou is None else {"min_iou_worst": min_iou, "min_iou_mean": min_iou}
            quantized = export_int8(
                exported.artifact.path,
                engine=engine,
                calibration=calibration,
                output=output,
                force=force,
                threads=threads,
                tell=progress.say,
                **limits,
            )
    if precision == "int8":
        click.echo(manifest_path(quantized.path).read_text() if as_json else int8_to_text(quantized), nl=False)
        return
    click.echo(manifest_path(exported.artifact.path).read_text() if as_json else to_text(exported), nl=False)
