"""``segx export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from segx.cli.options import (
    BYTES,
    POSITIVE_INTEGERS,
    calibration_option,
    debug_option,
    model_options,
    resolve_spec,
    resolve_weights,
    spec_overrides,
    weights_option,
)

if TYPE_CHECKING:
    from segx.export.variants import Form
    from segx.reporting.document import Document
    from segx.system.progress import Progress

_BATCH_SIZES = (1, 2, 4, 8, 16)


@click.command()
@weights_option
@click.option("--model", type=click.Path(path_type=Path), help="Any ONNX model to start from, instead of a checkpoint.")
@model_options
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: artifacts/NAME….onnx]")
@click.option(
    "--output-kind",
    type=click.Choice(["logits", "probabilities", "mask"]),
    help="Output of the exported model.  [default: logits]",
)
@click.option("--dynamic-size", is_flag=True, help="Make height and width symbolic too, in multiples of the stride.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["onnx", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="tensorrt: an engine for this machine's GPU, and the equivalent trtexec command.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Precision of the computation; input and output are float32.",
)
@click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "openvino", "tensorrt"]),
    help="Engine to optimise for: int8 files for each, fp32 for openvino.  [default: none; openvino for int8]",
)
@calibration_option
@click.option(
    "--min-iou", type=click.FloatRange(0, 1), help="Lowest IoU of int8 masks with fp32 masks.  [default: 0.98]"
)
@click.option("--batch-size", type=POSITIVE_INTEGERS, help="Profiles of a TensorRT engine.  [default: 1,2,4,8,16]")
@click.option("--workspace", type=BYTES, help="Device memory for one layer of a TensorRT engine, such as 1GB.")
@click.option("--force", is_flag=True, help="Export even if the file is up to date.")
@click.option("--threads", type=click.IntRange(1), help="Threads to use.  [default: all usable cores]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@debug_option
def export(
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
    """Export a checkpoint to one self-contained ONNX file, or to the file that an engine runs best.

    The ONNX file has a symbolic batch axis. It is put in place only after ONNX Runtime returned the same masks as
    PyTorch. The other files are derived from it: in 8 bits for one engine, with layers in float that the masks need in
    float; in half precision; rewritten for OpenVINO; or as a TensorRT engine.

    \b
    segx export
    segx export --precision int8 --engine openvino --calibration photos/
    segx export --weights unet.pth --arch Unet --encoder resnet18 --in-channels 3 --dynamic-size
    segx export --format tensorrt --precision fp16 --batch-size 1,8
    segx export --model other.onnx --engine openvino
    """
    from segx.export import compare_files, derive, export_int8, export_onnx, import_model
    from segx.export.artifact import manifest_path
    from segx.reporting.command_documents import (
        derived_data,
        derived_document,
        exported_document,
        imported_document,
        int8_document,
    )
    from segx.reporting.data import to_json
    from segx.reporting.text import to_stream
    from segx.system.progress import progress_on

    as_tensorrt = file_format == "tensorrt"
    form = _form(precision, engine, as_tensorrt=as_tensorrt)
    plain = form == "onnx" and not as_tensorrt
    without_effect = {
        "--output-kind": output_kind is not None and not plain,
        "--calibration": calibration is not None and precision != "int8",
        "--min-iou": min_iou is not None and precision != "int8",
        "--batch-size": batch_size is not None and not as_tensorrt,
        "--workspace": workspace is not None and not as_tensorrt,
        "--weights": weights is not None and model is not None,
        "--dynamic-size": dynamic_size and model is not None,
        "--output-kind with --model": output_kind is not None and model is not None,
    }
    if useless := next((name for name, given in without_effect.items() if given), None):
        raise click.UsageError(f"{useless} has no effect together with the other options; leave it out")
    overrides = spec_overrides(**described)
    common: dict[str, Any] = {"output": None if as_tensorrt else output, "threads": threads}
    with progress_on() as progress:
        if model is not None:
            progress.say(f"reading {model}")
            imported = import_model(model, overrides, output=output if plain else None)
            source, spec = imported.artifact.path, imported.artifact.spec
            document = imported_document(imported)
            json_text = to_json(derived_data(source, model, "imported", None))
        else:
            checkpoint = resolve_weights(weights)
            spec = resolve_spec(checkpoint, overrides)
            exported = export_onnx(
                checkpoint,
                spec=spec,
                output=output if plain else None,
                output_kind=output_kind or "logits",
                dynamic_size=dynamic_size,
                force=force and plain,
                threads=threads,
                on_progress=progress.say,
            )
            source = exported.artifact.path
            document, json_text = exported_document(exported), manifest_path(source).read_text()
        if form.startswith("int8"):
            quantized = export_int8(
                source,
                engine="tensorrt" if as_tensorrt else engine or "openvino",
                calibration=calibration,
                min_iou=min_iou,
                force=force,
                on_progress=progress.say,
                **common,
            )
            onnx = quantized.path
            document, json_text = int8_document(quantized), manifest_path(onnx).read_text()
        elif form != "onnx":
            about = "half precision, float32 in and out" if form == "fp16" else "laid out for OpenVINO"
            progress.say(f"making the {form} file")
            onnx = derive(source, form, **common).path
            progress.say("comparing its masks with those of the exported file")
            parity = compare_files(source, onnx)
            document = derived_document(onnx, source, about, parity)
            json_text = to_json(derived_data(onnx, source, about, parity))
        else:
            onnx = source
        if as_tensorrt:
            document, json_text = _tensorrt(
                onnx,
                spec,
                batch_size or _BATCH_SIZES,
                precision=precision,
                output=output,
                workspace_bytes=None if workspace is None else int(workspace),
                force=force,
                threads=threads,
                progress=progress,
            )
    click.echo(json_text if as_json else to_stream(document, sys.stdout), nl=False)


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


def _tensorrt(
    onnx: Path, spec: Any, batch_sizes: tuple[int, ...], *, progress: Progress, **options: Any
) -> tuple[Document, str]:
    """Build an engine and return its document and JSON; without a GPU, the error contains the command."""
    from segx.errors import RuntimeUnavailable
    from segx.export.tensorrt import export_tensorrt, trtexec_command
    from segx.reporting.command_documents import engine_data, engine_document
    from segx.reporting.data import to_json

    try:
        built = export_tensorrt(onnx, spec, batch_sizes, on_progress=progress.say, **options)
    except RuntimeUnavailable as error:
        command = trtexec_command(
            onnx,
            spec,
            sorted(set(batch_sizes)),
            precision=options["precision"],
            output=options["output"] or onnx.with_suffix(".engine"),
            workspace_bytes=options["workspace_bytes"],
            timing_cache=None,
        )
        raise RuntimeUnavailable(error.message, hint=f"{error.hint}; there, this builds it:\n{command}") from error
    return engine_document(built), to_json(engine_data(built))
