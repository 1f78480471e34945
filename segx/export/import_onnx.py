"""Import of any segmentation model in ONNX: a copy with segx's tensor names and metadata."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segx.errors import ArtifactError, UsageError, first_line
from segx.export.artifact import ARTIFACTS, Artifact, cached, content_key, read_artifact, versions_of
from segx.export.verify import run_on_cpu
from segx.model.spec import METADATA_KEY, ModelSpec
from segx.system.files import sha256_of

if TYPE_CHECKING:
    import onnx_ir as ir

_INPUT, _OUTPUT = "image", "logits"
# Both are removed from the end of a model: they keep the order of classes.
_ACTIVATIONS = ("Sigmoid", "Softmax")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "ConvInteger", "QLinearConv")


@dataclass(frozen=True)
class ImportedModel:
    """Result of ``import_model``; a file that segx exported is its own source."""

    artifact: Artifact
    source: Path
    removed: str = ""  # operator after the logits, such as Sigmoid


def import_model(
    path: Path | str, overrides: Mapping[str, Any] | None = None, *, output: Path | str | None = None
) -> ImportedModel:
    """Make a usable copy of a model that segx did not export.

    The model has one float32 image input (N, C, H, W), C 1 or 3, and one float32 output (N, K, H, W) of the same height
    and width; N, H and W may be fixed or symbolic. A final sigmoid or softmax is removed, since masks are compared by
    logits. Weights in files beside it become part of the copy, by default ``artifacts/NAME-KEY.onnx``. A file that
    segx exported is returned as it is, and so is an up-to-date copy. ``overrides`` gives the fields of ``ModelSpec``
    that the file lacks: ``threshold``, ``mean``, ``std``; ``height`` and ``width`` if they are symbolic.

    Raises:
        ArtifactError: the file is missing, not ONNX, not such a model, or ONNX Runtime cannot run it.
        UsageError: height and width are symbolic and not given, or differ from the file's.
        OutputError: the copy cannot be written, or segx did not write the file in its place.
    """
    path, overrides = Path(path), dict(overrides or {})
    if not path.is_file():
        raise ArtifactError(f"no ONNX file at {path}", hint="give the path of one")
    with contextlib.suppress(ArtifactError):  # raised below with hints for foreign files
        return ImportedModel(read_artifact(path), path)
    sha256 = sha256_of(path)
    recipe = {
        "source": path.name,
        "source_sha256": sha256,
        "overrides": {name: list(v) if isinstance(v, tuple) else v for name, v in overrides.items()},
        "versions": versions_of("segx"),
    }
    key = content_key(sha256, json.dumps(recipe["overrides"], sort_keys=True))
    copy = Path(output) if output else ARTIFACTS / f"{path.stem}-{key}.onnx"
    manifest, _ = cached(copy, recipe, lambda temporary: _convert(path, overrides, temporary), proof=str)
    return ImportedModel(read_artifact(copy), path, manifest.proof)


def _convert(path: Path, overrides: Mapping[str, Any], copy: Path) -> str:
    """Write the copy; returns the operator that was removed from the end."""
    import onnx_ir as ir
    from google.protobuf.message import DecodeError

    try:
        model = ir.external_data.load_to_model(ir.load(path))
    except (OSError, DecodeError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as ONNX: {first_line(error)}", hint="give an ONNX file that is not damaged"
        ) from error
    if METADATA_KEY in model.metadata_props:
        read_artifact(path)  # raises with the problem in its metadata
    if found := sorted({node.op_type for node in model.graph.all_nodes()} & set(_QUANTIZED)):
        raise ArtifactError(
            f"{path} is quantised already ({', '.join(found)})",
            hint="give the float32 model; segx quantises and verifies it with --precision int8",
        )
    image = _only(model.graph.inputs, "input", path)
    batch, channels, *size = _axes(image, path)
    if channels not in (1, 3):
        raise ArtifactError(
            f"{path} takes {_shape(image)}, which is no image (N, C, H, W) with 1 or 3 channels",
            hint="change the layout of its input, or export it again",
        )
    height, width = _size(path, size, overrides)
    logits = _only(model.graph.outputs, "output", path)
    removed = _remove_activation(model)
    _rename(model, image, model.graph.outputs[0])
    classes = _classes(model, (batch or 1, channels, height, width), path, _shape(logits))
    spec = ModelSpec.with_overrides(
        ModelSpec(arch=path.stem, encoder_name="", arguments={}),
        {**overrides, "in_channels": channels, "classes": classes, "height": height, "width": width},
    )
    artifact = Artifact(
        path=copy,
        spec=spec,
        output_kind="logits",
        checkpoint=path.name,
        weights_sha256=sha256_of(path),
        versions=versions_of("segx"),
        size_multiple=1 if size == [None, None] else None,
        batch_size=batch,
    )
    model.metadata_props.update(artifact.metadata())
    ir.save(model, copy)
    return removed


def _only(values: Any, what: str, path: Path) -> ir.Value:
    """Return the only input or output; initializers that older files list as inputs do not count."""
    import onnx_ir as ir

    found: list[ir.Value] = [value for value in values if value.const_value is None]
    if len(found) != 1:
        names = ", ".join(str(value.name) for value in found)
        raise ArtifactError(
            f"{path} has {len(found)} {what}s ({names})",
            hint=f"cut it with onnx.utils.extract_model, so that one {what} is left",
        )
    if found[0].dtype != ir.DataType.FLOAT:
        raise ArtifactError(
            f"the {what} {found[0].name!r} of {path} is {found[0].dtype}, not float32",
            hint="segx passes float32 images and compares float32 logits: remove what comes before or after",
        )
    return found[0]


def _axes(image: ir.Value, path: Path) -> list[int | None]:
    """Return (N, C, H, W), None for symbolic axes."""
    if image.shape is None or len(image.shape) != 4:
        raise ArtifactError(
            f"{path} takes {_shape(image)}, which is no batch of images (N, C, H, W)", hint="give an image model"
        )
    return [axis if isinstance(axis, int) else None for axis in image.shape]


def _shape(value: ir.Value) -> str:
    return f"{value.name} {value.shape}"


def _size(path: Path, size: list[int | None], overrides: Mapping[str, Any]) -> tuple[int, int]:
    chosen = []
    for name, fixed in zip(("height", "width"), size, strict=True):
        given = overrides.get(name, fixed)
        if given is None:
            raise UsageError(f"{path} takes images of any {name}", hint="choose one with --input-size WxH")
        if fixed is not None and given != fixed:
            raise UsageError(f"{path} takes only a {name} of {fixed}, not {given}", hint="leave --input-size out")
        chosen.append(int(given))
    return chosen[0], chosen[1]


def _remove_activation(model: ir.Model) -> str:
    """Remove a sigmoid or softmax from the end and return its operator."""
    (output,) = model.graph.outputs
    last = output.producer()
    if last is None or last.op_type not in _ACTIVATIONS or last.inputs[0] is None or list(output.uses()):
        return ""
    logits = last.inputs[0]
    logits.shape, logits.type = output.shape, output.type
    model.graph.outputs[0] = logits
    model.graph.remove(last, safe=True)
    return str(last.op_type)


def _rename(model: ir.Model, image: ir.Value, logits: ir.Value) -> None:
    """Rename input and output, and any other tensor of these names."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value is not logits and value.name in (_INPUT, _OUTPUT):
                value.name = f"{value.name}_within"
    image.name, logits.name = _INPUT, _OUTPUT


def _classes(model: ir.Model, shape: tuple[int, ...], path: Path, declared: str) -> int:
    """Return the number of output channels, found by running the model."""
    import onnx_ir as ir

    hint = "give another --input-size if the file takes any, or export it again"
    (outputs,) = run_on_cpu(ir.to_proto(model), [_OUTPUT], np.zeros(shape, dtype=np.float32), path, hint=hint)
    got = outputs[_OUTPUT]
    if got.ndim != 4 or got.shape[2:] != shape[2:]:
        raise ArtifactError(
            f"{path} returns {declared}, which is {got.shape} for images {shape}: no logits (N, K, H, W) of their size",
            hint="segx compares masks pixel by pixel: resize the logits to the image's size in the model",
        )
    return int(got.shape[1])
