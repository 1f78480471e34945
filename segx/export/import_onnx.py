"""Any segmentation model in ONNX, made a file as segx exports them: named, and described in its metadata."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segx.errors import ArtifactError, UsageError, first_line
from segx.export.artifact import Artifact, read_artifact
from segx.model.spec import ModelSpec
from segx.system import machine
from segx.system.files import sha256_of, written_whole

if TYPE_CHECKING:
    import onnx_ir as ir

_INPUT, _OUTPUT = "image", "logits"
# Squeeze logits to probabilities, and leave the order of classes as it is.
_SQUEEZING = ("Sigmoid", "Softmax")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "ConvInteger", "QLinearConv")
_ONLY_FATAL = 4  # ONNX Runtime's errors arrive as exceptions


@dataclass(frozen=True)
class Adopted:
    """What became of a file.

    Attributes:
        artifact: the file to use, and what it says of itself.
        left_out: operator after the logits that the file to use does not have, ``Sigmoid``; empty where none was.
        foreign: False where segx had exported the file, which is used as it is.
    """

    artifact: Artifact
    left_out: str = ""
    foreign: bool = True


def adopt_onnx(
    path: Path | str, overrides: Mapping[str, Any] | None = None, *, output: Path | str | None = None
) -> Adopted:
    """Make a model that was not exported by segx usable: a copy with its description, and with segx's names.

    A sigmoid or softmax at its end is left out, since masks are cut and compared on logits. Weights in files beside it
    become part of the copy. A file that segx exported is left alone.

    Args:
        path: ONNX file with one float32 image input (N, C, H, W), C 1 or 3, and one float32 output (N, K, H, W) of the
            same height and width; N fixed or symbolic; H and W likewise.
        overrides: fields of ``ModelSpec`` that the file cannot tell: ``threshold``, ``mean``, ``std``; ``height`` and
            ``width`` where they are symbolic.
        output: where to write; None means ``artifacts/NAME-segx.onnx``.

    Raises:
        ArtifactError: the file is missing, no ONNX, not of that kind, or ONNX Runtime cannot run it.
        UsageError: height and width are symbolic and not given, or other ones than the file's are.
        OutputError: the copy cannot be written.
    """
    path, overrides = Path(path), dict(overrides or {})
    if not path.is_file():
        raise ArtifactError(f"no ONNX file at {path}", hint="give the path of one")
    with contextlib.suppress(ArtifactError):  # said below, in the words for a foreign file
        return Adopted(read_artifact(path), foreign=False)
    import onnx_ir as ir  # takes seconds, and a file that segx exported does without
    from google.protobuf.message import DecodeError

    try:
        model = ir.external_data.load_to_model(ir.load(path))
    except (OSError, DecodeError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read as ONNX: {first_line(error)}", hint="give a whole file") from error
    if any(key.startswith("segx.") for key in model.metadata_props):
        read_artifact(path)  # says what is wrong with the description that it has
    if found := sorted({node.op_type for node in model.graph.all_nodes()} & set(_QUANTIZED)):
        raise ArtifactError(
            f"{path} is quantised already ({', '.join(found)})",
            hint="give the float32 model; segx makes and judges 8 bits itself, with --precision int8",
        )
    image = _only(model.graph.inputs, "input", path)
    batch, channels, *size = _axes(image, path)
    if channels not in (1, 3):
        raise ArtifactError(
            f"{path} takes {_shape(image)}: no image (N, C, H, W) with 1 or 3 channels",
            hint="change the layout of its input, or export it again",
        )
    height, width = _size(path, size, overrides)
    logits = _only(model.graph.outputs, "output", path)
    left_out = _without_squeezing(model)
    _rename(model, image, model.graph.outputs[0])
    classes = _classes(model, (batch or 1, channels, height, width), path, _shape(logits))
    spec = ModelSpec.with_overrides(
        ModelSpec(arch=path.stem, encoder_name="", arguments={}),
        {**overrides, "in_channels": channels, "classes": classes, "height": height, "width": width},
    )
    versions = machine.package_versions()
    artifact = Artifact(
        path=Path(output) if output else Path("artifacts") / f"{path.stem}-segx.onnx",
        spec=spec,
        output_kind="logits",
        checkpoint=path.name,
        weights_sha256=sha256_of(path),
        versions={"segx": versions["segx"]} if "segx" in versions else {},
        created=machine.now(),
        size_multiple=1 if size == [None, None] else None,
        batch_size=batch,
    )
    if _is_there(artifact):
        return Adopted(artifact, left_out)
    model.metadata_props.update(artifact.metadata())
    with written_whole(artifact.path) as temporary:
        ir.save(model, temporary)
    return Adopted(artifact, left_out)


def _is_there(artifact: Artifact) -> bool:
    """Whether the copy was made before: a file that stays the same can be known again, as a resumed run does."""
    try:
        before = read_artifact(artifact.path)
    except ArtifactError:
        return False
    return dataclasses.replace(before, created=artifact.created) == artifact


def _only(values: Any, what: str, path: Path) -> ir.Value:
    """The one input or output; initializers that older files list as inputs are none."""
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
            f"its {what} {found[0].name!r} in {path} is {found[0].dtype}, not float32",
            hint="segx gives float32 images and compares float32 logits: cut off what comes before or after",
        )
    return found[0]


def _axes(image: ir.Value, path: Path) -> list[int | None]:
    """(N, C, H, W), None where symbolic."""
    if image.shape is None or len(image.shape) != 4:
        raise ArtifactError(
            f"{path} takes {_shape(image)}, no batch of images (N, C, H, W)", hint="give a model of images"
        )
    return [axis if isinstance(axis, int) else None for axis in image.shape]


def _shape(value: ir.Value) -> str:
    return f"{value.name} {value.shape}"


def _size(path: Path, size: list[int | None], overrides: Mapping[str, Any]) -> tuple[int, int]:
    chosen = []
    for name, fixed in zip(("height", "width"), size, strict=True):
        given = overrides.get(name, fixed)
        if given is None:
            raise UsageError(f"{path} takes images of any {name}", hint="say which with --input-size WxH")
        if fixed is not None and given != fixed:
            raise UsageError(f"{path} takes a {name} of {fixed} alone, not {given}", hint="leave --input-size out")
        chosen.append(int(given))
    return chosen[0], chosen[1]


def _without_squeezing(model: ir.Model) -> str:
    """Take a sigmoid or softmax off the end; gives its operator."""
    (output,) = model.graph.outputs
    last = output.producer()
    if last is None or last.op_type not in _SQUEEZING or last.inputs[0] is None or list(output.uses()):
        return ""
    logits = last.inputs[0]
    logits.shape, logits.type = output.shape, output.type
    model.graph.outputs[0] = logits
    model.graph.remove(last, safe=True)
    return str(last.op_type)


def _rename(model: ir.Model, image: ir.Value, logits: ir.Value) -> None:
    """Give the two their names, which no other tensor may have."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value is not logits and value.name in (_INPUT, _OUTPUT):
                value.name = f"{value.name}_within"
    image.name, logits.name = _INPUT, _OUTPUT


def _classes(model: ir.Model, shape: tuple[int, ...], path: Path, said: str) -> int:
    """How many channels come out, found by running it."""
    import onnx_ir as ir
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = machine.usable_cores()
    settings.log_severity_level = _ONLY_FATAL
    try:
        text = ir.to_proto(model).SerializeToString()
        session = ort.InferenceSession(text, settings, providers=["CPUExecutionProvider"])
        got: npt.NDArray[Any] = session.run([_OUTPUT], {_INPUT: np.zeros(shape, dtype=np.float32)})[0]
    except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, ValueError) as error:
        raise ArtifactError(
            f"ONNX Runtime cannot run {path} on {shape}: {first_line(error)}",
            hint="give another --input-size where the file takes any, or export it again",
        ) from error
    if got.ndim != 4 or got.shape[2:] != shape[2:]:
        raise ArtifactError(
            f"{path} gives {said}, that is {got.shape} for images {shape}: no logits (N, K, H, W) of their size",
            hint="segx compares masks pixel by pixel: enlarge the logits to the image's size within the model",
        )
    return int(got.shape[1])
