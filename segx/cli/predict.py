"""``segx predict``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segx.cli.options import (
    BATCH_SIZE_OR_AUTO,
    NAMES,
    PATH,
    PATH_OR_URL,
    SIZE_OR_ORIGINAL,
    THREADS,
    GroupedCommand,
    debug_option,
    device_option,
    filled,
    foreign_options,
    model_options,
    onnx_option,
    require_option,
    resolve_onnx,
    resolve_spec,
    resolve_weights,
    spec_overrides,
    weights_option,
)
from segx.errors import ImageError

if TYPE_CHECKING:
    from segx.predict.api import PredictReport


@click.command(cls=GroupedCommand)
@click.argument("inputs")
@click.option("--output", type=PATH_OR_URL, required=True, help="Folder for the masks; with --engine ray also a URL.")
@weights_option
@onnx_option
@click.option(
    "--runtime",
    default="auto",
    show_default=True,
    help="What runs the model. auto: the fastest that a bench measured and whose masks passed. Or a name as in `segx "
    "doctor`, a short one (openvino, ort, torch, trt), or a variant (openvino-cpu:int8).",
)
@device_option
@click.option("--precision", help="fp32, tf32, fp16, bf16 or int8.  [default: fp32; with auto, the fastest]")
@click.option(
    "--batch-size",
    type=BATCH_SIZE_OR_AUTO,
    metavar="N",
    default="auto",
    show_default=True,
    help="Images per call, or auto.",
)
@require_option("Choose only a variant")
@click.option(
    "--bench",
    type=PATH,
    help="Folder of the bench to choose from.  [default: the newest of this model on this machine]",
)
@click.option(
    "--size",
    type=SIZE_OR_ORIGINAL,
    default="original",
    show_default=True,
    help="Size of the masks: that of each image, or pixels as 640x480 (width x height).",
)
@click.option("--probabilities", is_flag=True, help="Also write the probabilities, as NAME.probabilities.npy.")
@click.option("--overlay", is_flag=True, help="Also write the image with the mask's outline, as NAME.overlay.jpg.")
@click.option("--palette", is_flag=True, help="Write masks as PNG with a colour for each class.")
@click.option(
    "--class-names",
    type=NAMES,
    metavar="A,B,C",
    help="A name for each mask value; for a multilabel model, for each mask.",
)
@click.option(
    "--ignore-orientation",
    is_flag=True,
    help="Use images as stored, instead of applying their EXIF orientation.",
)
@click.option(
    "--scaled-decoding",
    is_flag=True,
    help="Decode large JPEG images at 1/2, 1/4 or 1/8 of their size: faster, but edges of masks may move slightly. "
    "Not with --overlay, nor for a model with --resize linear.",
)
@click.option("--resume", is_flag=True, help="Continue an earlier run into the same folder.")
@click.option(
    "--on-error",
    type=click.Choice(["skip", "stop"]),
    default="skip",
    show_default=True,
    help="What to do when an image cannot be segmented.",
)
@click.option(
    "--no-fsync",
    is_flag=True,
    help="Do not wait for each mask to reach the disk: faster, but a power failure may lose the last ones.",
)
@click.option(
    "--threads",
    type=THREADS,
    help="Threads of the runtime; with --engine ray, also the CPUs it takes on a machine.  [default: all]",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run on this machine, or on the machines of a Ray cluster.",
)
@click.option(
    "--ray-address",
    help="With --engine ray: host:port of the cluster, auto for this machine's, or local to start one.  "
    "[default: auto]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@model_options
@foreign_options
@debug_option
def predict(
    inputs: str,
    output: str,
    weights: Path | None,
    onnx: Path | None,
    no_fsync: bool,
    engine: str,
    ray_address: str | None,
    as_json: bool,
    threshold: float | None,
    **given: Any,
) -> None:
    """Segment images: write a mask for each of INPUTS.

    INPUTS is a folder, a quoted glob, a list of paths (.txt), a video, one image, - for a list on stdin, or a URL such
    as s3://bucket/photos. Masks are PNG files under the same relative paths, with 0 and 255, or class indices; for a
    multilabel model, in a folder per class. manifest.jsonl has a line for each image. An image that fails is skipped,
    and the exit code is then 1.

    \b
    segx predict photos/ --output masks/
    segx predict photos/ --output masks/ --runtime openvino:int8 --overlay
    find photos -name '*.jpg' -print0 | segx predict - --output masks/ --resume
    segx predict s3://bucket/photos --output s3://bucket/masks --engine ray
    """
    from segx.predict.options import OutputOptions, RuntimeRequest
    from segx.system.progress import progress_on

    if ray_address is not None and engine != "ray":
        raise click.UsageError("--ray-address has no effect without --engine ray; leave it out")
    if no_fsync and engine == "ray":
        raise click.UsageError("--no-fsync has no effect with --engine ray; leave it out")
    checkpoint = None if onnx and not weights else resolve_weights(weights)
    # The threshold is applied to the logits, so that one exported file serves all thresholds.
    overrides = spec_overrides(**given)
    with progress_on() as progress:
        onnx, overrides = resolve_onnx(onnx, overrides, progress)
    try:
        with progress_on() as progress:
            report = _engine(engine, ray_address)(
                inputs,
                output,
                checkpoint=checkpoint,
                model=onnx,
                spec=resolve_spec(checkpoint, overrides, onnx=onnx) if overrides or not onnx else None,
                runtime=filled(RuntimeRequest, given),
                threshold=threshold,
                options=filled(OutputOptions, {**given, "fsync": not no_fsync}),
                progress=progress,
            )
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"run the command again with --resume; finished masks, if any, are in {output}",)
        raise
    from segx.reporting.command_documents import predict_data, predict_document
    from segx.reporting.renderers.csv_json import to_json
    from segx.reporting.renderers.text import to_stream

    shown = to_json(predict_data(report)) if as_json else to_stream(predict_document(report), sys.stdout)
    click.echo(shown, nl=False, color=True)
    if failed := report.pipeline.failed:
        raise ImageError(
            f"{failed} of {failed + report.pipeline.images} images failed; the first: {report.pipeline.first_failure}",
            hint=f'see the lines with "failed" in {output.rstrip("/")}/manifest.jsonl{"/*" * (engine == "ray")}',
        )


def _engine(name: str, ray_address: str | None) -> Callable[..., PredictReport]:
    """Return the function that segments."""
    if name == "ray":
        from segx.ray import segment_on_ray

        return partial(segment_on_ray, address=ray_address or "auto")
    from segx.predict.api import segment

    return segment
