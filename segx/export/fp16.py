"""Conversion of an ONNX file to half precision: fp16 inside, float32 input and output.

The float32 file is converted because batch normalisation is folded in it. A file exported from ``model.half()`` has the
same operators, but folds rounded numbers, and a running variance above 65504 is infinite in it.
``onnxruntime.transformers.float16`` cannot be used: in 1.31 it casts a scale that several Resize nodes share once for
each of them under one name, and appends the casts at the end of the graph, so that ONNX Runtime refuses the file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from segx.errors import ExportError
from segx.export.artifact import load_onnx, save_model
from segx.export.rewrites import weight
from segx.export.verify import run_on_cpu
from segx.model.spec import PRECISION_KEY
from segx.runtimes.base import FloatArray
from segx.system.files import written_whole

_LARGEST = float(np.finfo(np.float16).max)
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_SUFFIX = "_fp16"
# With more layers in float32 the file saves little work.
_MOST_FLOAT = 8


@dataclass(frozen=True)
class BadLayer:
    """The first layer whose output is not finite."""

    node: str
    op: str
    kind: Literal["overflow", "nan"]  # overflow if there are infinities but no NaN

    def __str__(self) -> str:
        return f"{self.kind} in {self.node} ({self.op})"


def convert_finite(source: Path, images: FloatArray, output: Path) -> None:
    """Convert an exported file to fp16, keeping layers in float32 that overflow on preprocessed (N, C, H, W) images.

    Raises:
        ArtifactError, ExportError: as for ``convert_fp16``; also ``ExportError`` if outputs are not finite even with
            several layers in float32, naming the first. An older file at ``output`` stays.
    """
    kept: list[str] = []
    with written_whole(output) as temporary:
        convert_fp16(source, temporary)
        while (bad := first_bad_layer(temporary, images)) and len(kept) < _MOST_FLOAT and bad.node not in kept:
            kept.append(bad.node)
            convert_fp16(source, temporary, keep_fp32=kept)
        if bad:
            raise ExportError(f"fp16 is too small for this model: {bad}", hint="use fp32, tf32 or bf16")


def convert_fp16(source: Path, output: Path, *, keep_fp32: Collection[str] = ()) -> None:
    """Write the fp16 version of a float32 file: half the size, the same float32 input and output.

    The metadata are kept, with ``segx.precision`` set to fp16. Nodes named in ``keep_fp32`` stay in float32, and so do
    branches and loops.

    Raises:
        ArtifactError: ``source`` does not exist or is not ONNX.
        ExportError: a weight is too large for fp16, ``keep_fp32`` contains an unknown name, the graph has operators
            that cannot be converted, or the ONNX checker rejects the result.
    """
    failure = f"{source} cannot be converted to fp16"
    try:
        model = ir.from_proto(onnx.shape_inference.infer_shapes(load_onnx(source), strict_mode=True))
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(
            f"{failure}: {' '.join(str(error).split())[:200]}", hint="convert the file that `segx export` wrote"
        ) from error
    if unknown := set(keep_fp32) - {node.name for node in model.graph}:
        raise ExportError(f"the model has no node {min(unknown)!r} to keep in float32", hint="give names of its nodes")
    _compute_in_fp16(model, keep_fp32)
    save_model(model, output, {**model.metadata_props, PRECISION_KEY: "fp16"}, check_failure=failure)


def _compute_in_fp16(model: ir.Model, keep_fp32: Collection[str]) -> None:
    """Compute in fp16 between float32 inputs and outputs.

    All types are explicit, as TensorRT's strongly typed networks require: the operator's schema says which inputs can
    be fp16 (the scales of Resize cannot), and a Cast stands wherever two types meet. The types of all tensors must be
    known.
    """
    graph = model.graph
    computed = (value for node in graph for value in node.outputs)
    float32 = {v for v in (*graph.inputs, *graph.initializers.values(), *computed) if v.dtype == _FLOAT}
    converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def in_type(value: ir.Value, dtype: ir.DataType, user: ir.Node | None) -> ir.Value:
        if value.dtype != dtype and (value, dtype) not in converted:
            converted[value, dtype] = _converted(graph, value, dtype, user)
        return converted.get((value, dtype), value)

    for node in list(graph):
        inside = _nodes_inside(node)
        schema, kept = _schema(node, model.opset_imports), node.name in keep_fp32 or bool(inside)
        for user, slot in [(each, slot) for each in (node, *inside) for slot in range(len(each.inputs))]:
            if (value := user.inputs[slot]) in float32:
                user.replace_input_with(slot, in_type(value, _type_at(schema.inputs, slot, kept), node))
        for slot, value in enumerate(node.outputs):
            if value in float32 and _type_at(schema.outputs, slot, kept) == _HALF:
                value.dtype, value.name = _HALF, f"{value.name}{_SUFFIX}"
                _halve_attributes(node)
    for index, value in enumerate(graph.outputs):
        if value in float32:
            graph.outputs[index] = in_type(value, _FLOAT, None)
    RemoveUnusedNodesPass()(model)


def _type_at(parameters: Any, slot: int, kept: bool) -> ir.DataType:
    """Return the type of a float32 tensor here; the last parameter may stand for any number of tensors."""
    allowed = parameters[min(slot, len(parameters) - 1)].types
    return _HALF if "tensor(float16)" in allowed and not kept else _FLOAT


def _converted(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, user: ir.Node | None) -> ir.Value:
    """Return a value in another type, cast before its first user (at the end of the graph for None)."""
    name = f"{value.name}{_SUFFIX}" if dtype == _HALF else str(value.name).removesuffix(_SUFFIX)
    if value.is_initializer() and value.const_value is not None:
        return weight(graph, name, _half(value.const_value))
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"cast_to_{name}")
    result = cast.outputs[0]
    result.name, result.shape, result.dtype = name, value.shape, dtype
    if user is None:
        graph.append(cast)
    else:
        graph.insert_before(user, cast)
    return result


def _nodes_inside(node: ir.Node) -> list[ir.Node]:
    """Return the nodes in the branches of a node, or in the body of a loop."""
    parts = [each.as_graph() for each in node.attributes.values() if each.type == ir.AttributeType.GRAPH]
    return [inner for part in parts for inner in part.all_nodes()]


def _schema(node: ir.Node, opsets: dict[str, int]) -> onnx.defs.OpSchema:
    try:
        return onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except (onnx.defs.SchemaError, KeyError) as error:
        raise ExportError(
            f"{node.op_type} {node.name} is not an ONNX operator",
            hint="convert the file that `segx export` wrote, not an optimised one",
        ) from error


def _half(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    values = tensor.numpy()
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    if largest > _LARGEST:
        raise ExportError(
            f"{tensor.name} holds {largest:.3g}, and the largest fp16 number is {_LARGEST:.0f}",
            hint="use bf16 or fp32, or keep the nodes that use it in float32",
        )
    return ir.tensor(values.astype(np.float16))


def _halve_attributes(node: ir.Node) -> None:
    """Change attributes that decide the type of an output."""
    for name, attribute in list(node.attributes.items()):
        if name in ("to", "dtype") and attribute.value == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(_HALF))
        elif name == "value" and attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == _FLOAT:
            node.attributes[name] = ir.AttrTensor(name, _half(attribute.value))


def first_bad_layer(path: Path, images: FloatArray) -> BadLayer | None:
    """Find the first node in graph order whose output is not finite on any preprocessed (N, C, H, W) image.

    Runs the file on the CPU with every output exposed: slow, and needs the memory of all activations of one image.

    Raises:
        ArtifactError: the file does not exist, is not ONNX, or ONNX Runtime cannot run it.
    """
    model = load_onnx(path)
    nodes = [node for node in model.graph.node if node.output]
    names = [name for node in nodes for name in node.output if name]
    exposed = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in exposed)
    first: BadLayer | None = None
    hint = "export it again with `segx export`, and give images of the model's size"
    for values in run_on_cpu(model, names, images, path, hint=hint):
        for position, node in enumerate(nodes):
            floats = [values[name] for name in node.output if name and np.issubdtype(values[name].dtype, np.floating)]
            if not all(np.isfinite(value).all() for value in floats):
                is_nan = any(np.isnan(value).any() for value in floats)
                first = BadLayer(node.name, node.op_type, "nan" if is_nan else "overflow")
                nodes = nodes[:position]  # in other images only earlier ones matter
                break
    return first
