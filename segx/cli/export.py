"""``segx export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from segx.cli import options
from segx.cli.options import BYTES, PATH, POSITIVE_INTEGERS
from segx.errors import UsageError

if TYPE_CHECKING:
    from segx.export.variants import Form

_BATCH_SIZES = (1, 2, 4, 8, 16)


@click.command(cls=options.GroupedCommand)
@click.argument("site", metavar="[DIR]", type=PATH, required=False)
@options.weights_option
@click.option("--model", type=PATH, help="ONNX model to start from instead of a checkpoint.")
@options.model_options
@options.foreign_options
@click.option(
    "--output",
    type=PATH,
    help="File to write, ending in .onnx, or .engine with --format tensorrt.  [default: artifacts/NAME….onnx]",
)
@click.option(
    "--output-kind",
    type=click.Choice(["logits", "probabilities", "mask"]),
    help="What the exported model returns.  [default: logits]",
)
@click.option(
    "--dynamic-size",
    is_flag=True,
    help="Accept images of any height and width that are multiples of the network's stride.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["onnx", "tensorrt", "web"]),
    default="onnx",
    show_default=True,
    help="tensorrt: build an engine for this machine's GPU, and print the equivalent trtexec command. web: write a "
    "page that segments images in the browser to DIR, as a static site.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Precision in which the file computes (tf32 with --format tensorrt only); its input and output are float32.",
)
@click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "openvino", "tensorrt"]),
    help="Engine to make the file for; `segx bench --runtime` and `segx predict --runtime` choose what runs it. "
    "An int8 file is made for one engine, an fp32 file for openvino or any.  [default: any; for int8 openvino]",
)
@options.calibration_option("generated scenes")
@click.option(
    "--min-iou",
    type=click.FloatRange(0, 1),
    help="Keep layers in float until every int8 mask has this IoU with the fp32 one.  [default: 0.98]",
)
@click.option(
    "--batch-size",
    type=POSITIVE_INTEGERS,
    help="Batch sizes that a TensorRT engine is optimised for.  [default: 1,2,4,8,16]",
)
@click.option(
    "--workspace",
    type=BYTES,
    help="GPU memory that one layer of a TensorRT engine may use: 1GB.  [default: all]",
)
@click.option("--force", is_flag=True, help="Export even if the file is up to date.")
@click.option("--threads", type=options.THREADS, help="Threads to use.  [default: all usable cores]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@options.debug_option
def export(
    site: Path | None,
    weights: Path | None,
    model: Path | None,
    output: Path | None,
    output_kind: Any,
    dynamic_size: bool,
    file_format: str,
    precision: Any,
    engine: Any,
    calibration: Path | None,
    min_iou: float | None,
    batch_size: tuple[int, ...] | None,
    workspace: float | None,
    force: bool,
    threads: int | None,
    as_json: bool,
    **described: Any,
) -> None:
    """Export a checkpoint to ONNX, or to the file for one engine.

    The ONNX file takes any batch size. It is put in place only after ONNX Runtime has returned the same masks as
    PyTorch. Other files are made from it: int8 for one engine, with layers kept in float where the masks need it; fp16;
    a form that OpenVINO runs faster; or a TensorRT engine. A static site holds the fp32 file, and with --precision
    int8 also the int8 file for ONNX Runtime.

    \b
    segx export
    segx export --precision int8 --engine openvino --calibration photos/
    segx export --weights unet.pth --arch Unet --in-channels 3 --dynamic-size
    segx export --format tensorrt --precision fp16 --batch-size 1,8
    segx export --format web site/
    segx export --model other.onnx --engine openvino
    """
    from functools import partial

    from segx.export import export_file
    from segx.export.variants import export_site
    from segx.reporting.command_documents import export_document, export_json
    from segx.reporting.renderers.text import to_stream
    from segx.system.progress import progress_on

    as_tensorrt, as_site = file_format == "tensorrt", file_format == "web"
    if as_site and site is None:
        raise click.UsageError("no folder for the site; give one: segx export --format web DIR")
    if as_site and (precision not in ("fp32", "int8") or engine not in (None, "onnxruntime")):
        raise click.UsageError("a site runs fp32 and int8 in ONNX Runtime; leave other precisions and engines out")
    _check_ending(output, as_tensorrt=as_tensorrt)
    form = _form(precision, "onnxruntime" if as_site and precision == "int8" else engine, as_tensorrt=as_tensorrt)
    plain = form == "onnx" and not as_tensorrt and not as_site
    without_effect = {
        str(site): site is not None and not as_site,
        "--output": output is not None and as_site,
        "--output-kind": output_kind is not None and not plain,
        "--calibration": calibration is not None and precision != "int8",
        "--min-iou": min_iou is not None and precision != "int8",
        "--batch-size": batch_size is not None and not as_tensorrt,
        "--workspace": workspace is not None and not as_tensorrt,
        "--weights": weights is not None and model is not None,
        "--dynamic-size": dynamic_size and model is not None,
        "--output-kind with --model": output_kind is not None and model is not None,
        "--checkpoint-key": described["checkpoint_key"] is not None and model is not None,
    }
    if useless := next((name for name, given in without_effect.items() if given), None):
        raise click.UsageError(f"{useless} has no effect together with the other options; leave it out")
    overrides = options.spec_overrides(**described)
    if model is None:
        options.refuse_reading_options(overrides)
    make = export_file if site is None else partial(export_site, site)
    with progress_on() as progress:
        made = make(
            options.resolve_weights(weights) if model is None else None,
            model=model,
            overrides=overrides,
            form=form,
            output=output,
            output_kind=output_kind or "logits",
            dynamic_size=dynamic_size,
            calibration=calibration,
            min_iou=min_iou,
            engine_batch_sizes=(batch_size or _BATCH_SIZES) if as_tensorrt else (),
            engine_precision=precision,
            workspace_bytes=None if workspace is None else int(workspace),
            force=force,
            threads=threads,
            progress=progress,
        )
    click.echo(export_json(made) if as_json else to_stream(export_document(made), sys.stdout), nl=False, color=True)


def _check_ending(output: Path | None, *, as_tensorrt: bool) -> None:
    """Refuse a name that promises another format than the one that is written."""
    if output is None or as_tensorrt or output.suffix.lower() == ".onnx":
        return
    hint = "OpenVINO reads .onnx files as they are" if output.suffix.lower() == ".xml" else "give it the ending .onnx"
    raise UsageError(f"{output} would be an ONNX file: segx writes no other format here", hint=hint)


def _form(precision: str, engine: str | None, *, as_tensorrt: bool) -> Form:
    """Return the form to make, also as the source of a TensorRT engine."""
    if as_tensorrt and engine not in (None, "tensorrt"):
        raise click.UsageError(f"a TensorRT engine cannot run in {engine}; leave --engine or --format out")
    if precision == "tf32" and not as_tensorrt:
        raise click.UsageError("tf32 is a way to compute a float32 file: export fp32, and bench with --precision tf32")
    if precision == "int8":
        return cast("Form", f"int8-{'tensorrt' if as_tensorrt else engine or 'openvino'}")
    if precision == "fp16":
        if engine and not as_tensorrt:
            raise click.UsageError("one fp16 file serves every engine; leave --engine out")
        return "fp16"
    if engine == "openvino":
        return "openvino"
    if engine and not as_tensorrt:
        raise click.UsageError(f"{engine} runs the plain fp32 file; leave --engine out")
    return "onnx"
