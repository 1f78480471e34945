"""What a foreign ONNX model takes and returns: read from the file where it tells, found by running it where not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from segx.errors import ArtifactError, UsageError, first_line
from segx.export import adapt
from segx.export.artifact import Artifact, read_artifact, versions_of
from segx.export.trial import Trial, close, command
from segx.export.verify import TrialRun
from segx.model.spec import METADATA_KEY, READING, ModelSpec

_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_IMAGE_CHANNELS = (1, 3, 4)
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
# Every onnxruntime that segx supports reads it; the opset decides what a graph means.
_IR_VERSION = 10
_SEED = 12
_USUAL_SIDE = 512


def convert(path: Path, overrides: Mapping[str, Any], copy: Path, weights_sha256: str) -> tuple[str, ...]:
    """Write the copy, with this digest of the weights; return what was done."""
    model = _read(path)
    _check_operators(model, path)
    given = {name: overrides.get(name) for name in READING}
    image = _only_input(model, path)
    logits = _chosen_output(model, path, given["output_name"])
    done = [f"{logits.name} is used of {len(model.graph.outputs)} outputs"] if len(model.graph.outputs) > 1 else []
    try:
        done += adapt.to_inference_mode(model)
    except ValueError as error:
        raise ArtifactError(
            f"{path} is in training mode, and its graph uses the statistics of the batch ({error})",
            hint="export it again after model.eval()",
        ) from error
    adapt.keep_output(model, logits)
    adapt.forget_shapes(model)
    done += _in_float32(model, path)
    axes = list(image.shape or ())
    layout = _layout(path, axes, given["layout"], overrides.get("in_channels"))
    batch, channels, *size = (_known(axes[i]) for i in ((0, 1, 2, 3) if layout == "nchw" else (0, 3, 1, 2)))
    channels = _channels(path, channels, overrides)
    if (opset := adapt.main_opset(model)) < adapt.OLDEST_OPSET:
        model = _lifted(model, path)
        done.append(f"lifted from opset {opset} to {adapt.main_opset(model)}")
    input_type = model.graph.inputs[0].dtype
    to_bytes = input_type in (ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64)
    if to_bytes and (overrides.keys() & {"mean", "std"} or overrides.get("normalize", "none") != "none"):
        raise UsageError(
            f"{path} takes {str(input_type).lower()}, to which mean and std cannot have been applied",
            hint="leave --normalize, --mean and --std out",
        )
    shape = [batch or "batch", channels, size[0] or "height", size[1] or "width"]
    full = 255.0 if overrides.get("input_range") == "0-255" else 1.0
    done += adapt.wrap_input(model, shape, channels_last=layout == "nhwc", to_bytes=to_bytes, full_brightness=full)
    trial = Trial(path, model, channels, overrides, layout)
    stride = trial.stride(batch or 1, size) if None in size else None
    height, width = _size(path, size, overrides, stride)
    batch = trial.batch_size(batch, height, width)
    fields = {name: value for name, value in overrides.items() if name not in (*READING, "multilabel", "threshold")}
    base = ModelSpec(arch=path.stem, encoder_name="", arguments={})
    spec = ModelSpec.with_overrides(
        base, {**fields, "in_channels": channels, "classes": 1, "height": height, "width": width}
    )
    classes, class_map = trial.make_logits(spec, batch or 1)
    spec = dataclasses.replace(spec, classes=classes, class_map=class_map, multilabel=trial.multilabel)
    spec = spec.cut_at(overrides.get("threshold"))
    model.graph.inputs[0].shape = ir.Shape([batch or "batch", channels, size[0] or "height", size[1] or "width"])
    adapt.Output(model).finish([batch or "batch", classes, size[0] or "height", size[1] or "width"])
    artifact = Artifact(
        path=copy,
        spec=spec,
        output_kind="logits",
        checkpoint=path.name,
        weights_sha256=weights_sha256,
        versions=versions_of("segx"),
        size_multiple=stride if size == [None, None] else None,
        batch_size=batch,
    )
    model.metadata_props.update(artifact.metadata())
    ir.save(model, copy)
    return *done, *trial.said


def _read(path: Path) -> ir.Model:
    """Read a file with its weights.

    Raises:
        ArtifactError: it is not ONNX, is newer than the installed libraries, or its weights are missing.
    """
    try:
        model = ir.load(path)
    except (OSError, DecodeError, ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        cause: BaseException = error
        while isinstance(cause, ir.serde.SerdeError) and cause.__cause__:  # each holds all of the part it is about
            cause = cause.__cause__
        raise ArtifactError(
            f"{path} cannot be read as ONNX: {first_line(cause)}", hint="pass an undamaged ONNX file"
        ) from error
    if METADATA_KEY in model.metadata_props:
        read_artifact(path)  # raises with the problem in its metadata
    if not len(model.graph):
        raise ArtifactError(f"{path} holds no graph", hint="pass an undamaged ONNX file")
    opset, newest = model.opset_imports.get("", 1), onnx.defs.onnx_opset_version()
    if opset > newest or (model.ir_version or 0) > onnx.IR_VERSION:
        what = f"opset {opset}" if opset > newest else f"IR version {model.ir_version}"
        known = newest if opset > newest else onnx.IR_VERSION
        raise ArtifactError(
            f"{path} has {what}, but onnx {onnx.__version__} knows versions up to {known}",
            hint="export it again with an older opset, such as 17, or update onnx and onnxruntime",
        )
    model.ir_version = min(model.ir_version or _IR_VERSION, _IR_VERSION)
    try:
        return _with_weights(model, path)
    except FileNotFoundError as error:
        name = Path(error.filename).name if error.filename else first_line(error)
        raise ArtifactError(
            f"the weights of {path} are in {name}, which does not exist",
            hint=f"put it into the folder of {path.name}; the two belong together",
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"the weights beside {path} cannot be read: {first_line(error)}", hint="copy them again, with the model"
        ) from error


def _with_weights(model: ir.Model, path: Path) -> ir.Model:
    """Load what is in files beside the model: initializers, and the values of constants, also in functions."""
    ir.external_data.load_to_model(model)
    for node in adapt.nodes_of(model):
        for name, attribute in node.attributes.items():
            if isinstance(attribute.value, ir.ExternalTensor):
                attribute.value.base_dir = path.parent
                (tensor,) = ir.external_data.convert_tensors_from_external([attribute.value])
                node.attributes[name] = ir.AttrTensor(name, tensor)
    return model


def _check_operators(model: ir.Model, path: Path) -> None:
    """Raise ArtifactError for a quantised model or operators that no runtime has."""
    operators = adapt.operators_of(model)
    custom = {domain: names for domain, names in operators.items() if domain not in _KNOWN_DOMAINS}
    unknown = {name for name in operators.get("", set()) | operators.get("ai.onnx", set()) if not onnx.defs.has(name)}
    for domain, names in [*custom.items(), *([("ai.onnx", unknown)] if unknown else [])]:
        raise ArtifactError(
            f"{path} uses {', '.join(sorted(names))} of the domain {domain}, which is not an ONNX operator",
            hint="export the model with ONNX's own operators: no runtime here has this one",
        )
    everything = {name for names in operators.values() for name in names}
    if found := sorted(name for name in everything if name in _QUANTIZED or name.startswith("QLinear")):
        raise ArtifactError(
            f"{path} is already quantised ({', '.join(found)})",
            hint="pass the float32 model; segx quantises and verifies it with --precision int8",
        )


def _only_input(model: ir.Model, path: Path) -> ir.Value:
    """Return the only input; initializers that older files list as inputs do not count."""
    found: list[ir.Value] = [value for value in model.graph.inputs if value.const_value is None]
    if len(found) != 1:
        raise ArtifactError(
            f"{path} has {len(found)} inputs: {adapt.described(found)}",
            hint="export it again with images as its only input",
        )
    taken = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "UINT8", "INT32", "INT64")
    if found[0].dtype is not None and found[0].dtype.name not in taken:
        raise ArtifactError(
            f"{path} takes {adapt.described(found)}",
            hint=f"images can become {', '.join(taken).lower()}; export it again",
        )
    if found[0].shape is None or len(found[0].shape) != 4:
        raise ArtifactError(
            f"{path} takes {adapt.described(found)}, which is not a batch of images with four axes",
            hint="export it again with images of the shape (batch, channels, height, width), or channels last",
        )
    return found[0]


def _chosen_output(model: ir.Model, path: Path, name: str | None) -> ir.Value:
    outputs: list[ir.Value] = list(model.graph.outputs)
    names = [str(value.name) for value in outputs]
    if name in names:
        return outputs[names.index(name)]
    if name is None and len(outputs) == 1:
        return outputs[0]
    possible = [str(value.name) for value in outputs if _may_be_masks(value)] if len(outputs) > 1 else names
    proposed = possible[0] if len(possible) == 1 else "NAME"
    listed = f"{path} has {len(outputs)} output{'s' * (len(outputs) > 1)}: {adapt.described(outputs)}"
    raise UsageError(
        listed if name is None else f"no output {name!r}; {listed}",
        hint=f"choose the one with logits or class indices: {command(path, 'output-name', proposed)}",
    )


def _may_be_masks(value: ir.Value) -> bool:
    """Return True for an output that has the form of class indices, or of logits or probabilities of each class."""
    if value.shape is None or value.dtype is None:
        return False
    axes, node = [_known(axis) for axis in value.shape], value.producer()
    whole = value.dtype.numpy().kind in "iub"
    if len(axes) == 3:  # floats may be the probability of the likeliest class
        return whole
    is_largest = node is not None and node.op_type in ("ReduceMax", "TopK")
    is_image = len(axes) == 4 and (1 not in axes[1:3] or 1 not in axes[2:])
    return is_image and not is_largest and (not whole or None in axes or 1 in axes[1:])


def _known(axis: Any) -> int | None:
    return axis if isinstance(axis, int) else None


def _layout(path: Path, axes: list[Any], given: str | None, channels: int | None) -> str:
    """Return ``nchw`` or ``nhwc``: channels are fewer than rows and columns."""
    if given is not None:
        return given
    first, last = _known(axes[1]), _known(axes[3])
    possible = []
    if channels not in (None, first, last) and (None not in (first, last) or {first, last} & {*_IMAGE_CHANNELS}):
        channels = None  # the difference is told later
    for layout, count, sides in (("nchw", first, axes[2:]), ("nhwc", last, axes[1:3])):
        smaller = all(not isinstance(side, int) or count is None or count < side for side in sides)
        if (channels is None or count in (None, channels)) and smaller:
            possible.append((layout, count))
    fixed = [layout for layout, count in possible if count is not None]
    images = [layout for layout, count in possible if count in _IMAGE_CHANNELS]
    for layouts in (images, fixed, [layout for layout, _ in possible]):
        if len(layouts) == 1:
            return layouts[0]
    if not fixed and channels is not None:
        return "nchw"
    if not fixed and possible:
        raise UsageError(
            f"{path} takes images of any number of channels", hint=f"choose it: {command(path, 'in-channels', '3')}"
        )
    raise UsageError(
        f"{path} takes ({', '.join(map(str, axes))}), in which channels cannot be told from rows and columns",
        hint=f"say which: {command(path, 'layout', 'nchw')} or nhwc",
    )


def _channels(path: Path, fixed: int | None, overrides: Mapping[str, Any]) -> int:
    given = overrides.get("in_channels", fixed)
    if given is None:
        raise UsageError(
            f"{path} takes images of any number of channels", hint=f"choose it: {command(path, 'in-channels', '3')}"
        )
    if fixed is not None and given != fixed:
        raise UsageError(f"{path} takes {fixed} channels, not {given}", hint="leave --in-channels out")
    return int(given)


def _size(path: Path, size: list[int | None], overrides: Mapping[str, Any], stride: int | None) -> tuple[int, int]:
    chosen = []
    in_steps = f" in multiples of {stride}" if stride and stride > 1 else ""
    side = -(-_USUAL_SIDE // (stride or 1)) * (stride or 1)
    for name, fixed in zip(("height", "width"), size, strict=True):
        given = overrides.get(name, fixed)
        if given is None:
            raise UsageError(
                f"{path} takes images of any {name}{in_steps}",
                hint=f"choose one with --input-size WxH: {command(path, 'input-size', f'{side}x{side}')}",
            )
        if fixed is not None and given != fixed:
            raise UsageError(f"{path} takes only a {name} of {fixed}, not {given}", hint="leave --input-size out")
        chosen.append(int(given))
    if in_steps and stride and any(side % stride for side, fixed in zip(chosen, size, strict=True) if fixed is None):
        near = "x".join(str(-(-side // stride) * stride) for side in reversed(chosen))
        raise UsageError(
            f"{path} takes heights and widths{in_steps}, not {chosen[1]}x{chosen[0]}",
            hint=f"use the nearest: {command(path, 'input-size', near)}",
        )
    return chosen[0], chosen[1]


def _in_float32(model: ir.Model, path: Path) -> list[str]:
    """Let a model compute in float32; float64 stays if ONNX Runtime can run it, as where it keeps sizes exact.

    Raises:
        ArtifactError: float32 cannot hold its numbers.
    """
    done = adapt.to_float32(model, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    if adapt.uses(model, ir.DataType.DOUBLE):
        try:
            TrialRun(ir.to_proto(model), path)
        except ArtifactError:
            try:
                done += adapt.to_float32(model, ir.DataType.DOUBLE)
            except ValueError as error:
                problem = f"{path} computes in float64, which ONNX Runtime cannot, nor float32: {error}"
                raise ArtifactError(problem, hint="export it in float32") from error
    return done


def _lifted(model: ir.Model, path: Path) -> ir.Model:
    """Return the model in a newer opset.

    Raises:
        ArtifactError: it cannot be converted, or does not compute the same afterwards.
    """
    opset = adapt.main_opset(model)
    problem, hint = f"opset {opset} of {path} is too old", "export it again with opset 17 or later"
    try:
        new = adapt.lifted(model)
    except Exception as error:  # the converter raises whatever its C++ code throws
        raise ArtifactError(f"{problem}, and ONNX cannot convert it: {first_line(error)}", hint=hint) from error
    (value,) = model.graph.inputs
    sides = [axis if isinstance(axis, int) else 1 if i == 0 else 128 for i, axis in enumerate(value.shape or ())]
    if sides[1] == 128 and sides[3] == 128:  # channels are symbolic
        sides[1] = 3
    numbers = np.random.default_rng(_SEED).uniform(0, 255 if value.dtype == ir.DataType.UINT8 else 1, sides)
    images = numbers.astype(value.dtype.numpy() if value.dtype else np.float32)
    before, after = (
        TrialRun(ir.to_proto(each), path).run([str(each.graph.outputs[0].name)], images, hint=hint)[0]
        for each in (model, new)
    )
    if not close(before, after):
        raise ArtifactError(f"{problem}: after conversion, it returns different values", hint=hint)
    return new
