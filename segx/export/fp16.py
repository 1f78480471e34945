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
import numpy.typing as npt
import onnx
import onnx_ir as ir

from segx.errors import ExportError
from segx.export.artifact import load_onnx, save_checked
from segx.export.rewrites import remove_unused_weights, weight
from segx.export.verify import run_on_cpu
from segx.model.spec import PRECISION_KEY
from segx.runtimes.base import FloatArray

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
        """Return text such as ``overflow in node_Conv_613 (Conv)``."""
        return f"{self.kind} in {self.node} ({self.op})"


def convert_finite(source: Path, images: FloatArray, output: Path) -> None:
    """Convert an exported file to fp16, keeping layers in float32 that overflow on preprocessed (N, C, H, W) images.

    Raises:
        ArtifactError, ExportError: as for ``convert_fp16``; also ``ExportError`` if outputs are not finite even with
            several layers in float32, naming the first.
    """
    kept: list[str] = []
    convert_fp16(source, output)
    while (bad := first_bad_layer(output, images)) and len(kept) < _MOST_FLOAT and bad.node not in kept:
        kept.append(bad.node)
        convert_fp16(source, output, keep_fp32=kept)
    if bad:
        output.unlink()
        raise ExportError(f"fp16 is too small for this model: {bad}", hint="use fp32, tf32 or bf16")


def convert_fp16(source: Path, output: Path, *, keep_fp32: Collection[str] = ()) -> None:
    """Write the fp16 version of a float32 file without subgraphs: half the size, the same float32 input and output.

    The metadata are kept, with ``segx.precision`` set to fp16. Nodes named in ``keep_fp32`` stay in float32.

    Raises:
        ArtifactError: ``source`` does not exist or is not ONNX.
        ExportError: a weight is too large for fp16, ``keep_fp32`` contains an unknown name, the graph has operators or
            subgraphs that cannot be converted, or the ONNX checker rejects the result.
    """
    proto = load_onnx(source)
    failure = f"{source} cannot be converted to fp16"
    try:
        model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(
            f"{failure}: {' '.join(str(error).split())[:200]}", hint="convert the file that `segx export` wrote"
        ) from error
    ToFloat16(keep_fp32)(model)
    save_checked(model, output, {**model.metadata_props, PRECISION_KEY: "fp16"}, failure=failure)


class ToFloat16(ir.passes.InPlacePass):
    """Compute in fp16 between float32 inputs and outputs.

    All types are explicit, as TensorRT's strongly typed networks require: the operator's schema says which inputs can
    be fp16 (the scales of Resize cannot), and a Cast stands wherever two types meet. The types of all tensors must be
    known.
    """

    def __init__(self, keep_fp32: Collection[str] = ()) -> None:
        self._keep = frozenset(keep_fp32)
        self._converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert the model; raises ``ExportError`` if that is not possible."""
        graph = model.graph
        if unknown := self._keep - {node.name for node in graph}:
            raise ExportError(
                f"the model has no node {min(map(str, unknown))!r} to keep in float32", hint="give names of its nodes"
            )
        self._converted.clear()
        computed = (value for node in graph for value in node.outputs)
        float32 = {v for v in (*graph.inputs, *graph.initializers.values(), *computed) if v.dtype == _FLOAT}
        for node in list(graph):
            schema = _schema(node, model.opset_imports)
            for slot, value in enumerate(node.inputs):
                if value in float32:
                    node.replace_input_with(slot, self._as(value, self._type_at(schema.inputs, slot, node), node))
            for slot, value in enumerate(node.outputs):
                if value in float32 and self._type_at(schema.outputs, slot, node) == _HALF:
                    value.dtype, value.name = _HALF, f"{value.name}{_SUFFIX}"
                    _halve_attributes(node)
        for index, value in enumerate(graph.outputs):
            if value in float32:
                graph.outputs[index] = self._as(value, _FLOAT, None)
        remove_unused_weights(model)
        return ir.passes.PassResult(model, modified=True)

    def _type_at(self, parameters: Any, slot: int, node: ir.Node) -> ir.DataType:
        """Return the type of a float32 tensor here; the last parameter may stand for any number of tensors."""
        allowed = parameters[min(slot, len(parameters) - 1)].types
        return _HALF if "tensor(float16)" in allowed and node.name not in self._keep else _FLOAT

    def _as(self, value: ir.Value, dtype: ir.DataType, user: ir.Node | None) -> ir.Value:
        """Return a value in a type, cast before its first user (at the end of the graph for None)."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._converted:
            name = str(value.name)
            name = f"{name}{_SUFFIX}" if dtype == _HALF else name.removesuffix(_SUFFIX)
            self._converted[value, dtype] = _half_weight(value, name) or _cast(value, dtype, name, user)
        return self._converted[value, dtype]


def _half_weight(value: ir.Value, name: str) -> ir.Value | None:
    if not value.is_initializer() or value.graph is None or value.const_value is None:
        return None
    assert isinstance(value.graph, ir.Graph)
    return weight(value.graph, name, _half(value.const_value))


def _cast(value: ir.Value, dtype: ir.DataType, name: str, user: ir.Node | None) -> ir.Value:
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"cast_to_{name}")
    result = cast.outputs[0]
    result.name, result.shape, result.dtype = name, value.shape, dtype
    assert isinstance(value.graph, ir.Graph)
    if user is None:
        value.graph.append(cast)
    else:
        value.graph.insert_before(user, cast)
    return result


def _schema(node: ir.Node, opsets: dict[str, int]) -> onnx.defs.OpSchema:
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        raise ExportError(
            f"{node.op_type} {node.name} has a subgraph, which cannot be converted to fp16",
            hint="use a model without branches and loops",
        )
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
    exposed = {value.name for value in model.graph.output}
    names = [name for node in nodes for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in exposed)
    found: tuple[int, BadLayer] | None = None
    hint = "export it again with `segx export`, and give images of the model's size"
    for values in run_on_cpu(model, names, images, path, hint=hint):
        for position, node in enumerate(nodes[: found[0] if found else None]):
            if kind := _problem([values[name] for name in node.output if name]):
                found = position, BadLayer(node.name, node.op_type, kind)
                break
    return found[1] if found else None


def _problem(outputs: list[npt.NDArray[Any]]) -> Literal["overflow", "nan"] | None:
    floats = [value for value in outputs if np.issubdtype(value.dtype, np.floating)]
    if any(np.isnan(value).any() for value in floats):
        return "nan"
    return None if all(np.isfinite(value).all() for value in floats) else "overflow"
