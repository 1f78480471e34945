"""An ONNX file in half precision: fp16 inside, float32 in and out; and the layer for which fp16 is too small.

Made from the float32 file, in which batch normalisation is folded already: a file exported from ``model.half()`` has
the same operators, but its folding is done on rounded numbers, and a running variance above 65504 is infinite there.
Not by ``onnxruntime.transformers.float16``: in 1.31 it casts a scale that several Resize nodes share once for each of
them, under one name, and appends the casts at the end of the graph, so that the file is refused by ONNX Runtime.

Types are explicit everywhere, as TensorRT wants in strongly typed networks: which inputs of an operator can be fp16 is
taken from the operator's own schema (the scales of Resize cannot), and a Cast stands wherever two types meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from segx.errors import ArtifactError, ExportError
from segx.masks.image_io import in_batches
from segx.model.spec import PRECISION_KEY
from segx.runtimes.base import FloatArray
from segx.system.files import written_whole

if TYPE_CHECKING:
    import onnx

_LARGEST = float(np.finfo(np.float16).max)
_FLOAT, _HALF = "tensor(float)", "tensor(float16)"
_ONLY_FATAL = 4  # ONNX Runtime's errors arrive as exceptions
# With more layers in float32 than this the file is hardly half the work.
_MOST_FLOAT = 8


@dataclass(frozen=True)
class BadLayer:
    """The first layer whose output is not finite.

    Attributes:
        node: its name in the graph.
        op: its operator, ``Conv``.
        kind: ``overflow`` for infinities alone, ``nan`` where there is any NaN.
    """

    node: str
    op: str
    kind: Literal["overflow", "nan"]

    def __str__(self) -> str:
        """``overflow in node_Conv_613 (Conv)``."""
        return f"{self.kind} in {self.node} ({self.op})"


def export_fp16(source: Path, batch: FloatArray, *, output: Path) -> None:
    """Convert an exported file, keeping those layers in float32 for which fp16 is too small.

    Args:
        source: as for ``convert_fp16``.
        batch: (N, C, H, W) float32, images to try it on.
        output: where to write.

    Raises:
        ArtifactError, ExportError, OutputError: as ``convert_fp16``; also ``ExportError`` where the numbers are not
            finite with many layers in float32, naming the first.
    """
    kept: list[str] = []
    convert_fp16(source, output)
    while (bad := first_bad_layer(output, batch)) and len(kept) < _MOST_FLOAT and bad.node not in kept:
        kept.append(bad.node)
        convert_fp16(source, output, keep_fp32=kept)
    if bad:
        output.unlink()
        raise ExportError(f"fp16 is too small for this model: {bad}", hint="use fp32, tf32 or bf16")


def convert_fp16(source: Path, output: Path, *, keep_fp32: Collection[str] = ()) -> None:
    """Write the fp16 version of an exported file: half the size, the same float32 input and output.

    Args:
        source: ONNX file in float32 without subgraphs; its metadata are kept, and ``segx.precision`` says fp16.
        output: where to write.
        keep_fp32: names of nodes that go on computing in float32, such as ``first_bad_layer`` found.

    Raises:
        ArtifactError: there is no such file, or it is no ONNX.
        ExportError: a weight is too large for fp16, ``keep_fp32`` names no node, the graph has operators or subgraphs
            that cannot be converted, or the ONNX checker refuses the result.
        OutputError: the file cannot be written.
    """
    import onnx

    model = _load(source)
    if unknown := set(keep_fp32) - {node.name for node in model.graph.node}:
        raise ExportError(f"{source} has no node {min(unknown)!r} to keep in float32", hint="give names of its nodes")
    try:
        _Halving(model, frozenset(keep_fp32)).apply()
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{source} cannot be converted to fp16: {' '.join(str(error).split())[:200]}",
            hint="report it with the model's arguments and the versions that `segx doctor` prints",
        ) from error
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != PRECISION_KEY]
    del model.metadata_props[:]
    for key, value in (*kept, (PRECISION_KEY, "fp16")):
        model.metadata_props.add(key=key, value=value)
    with written_whole(output) as temporary:
        onnx.save(model, temporary)


def first_bad_layer(path: Path, batch: FloatArray) -> BadLayer | None:
    """Find where a file's numbers stop being finite, by running it on the CPU with every node's output exposed.

    Takes the memory of all activations of one image at a time, and is slow: for looking into a failure.

    Args:
        path: ONNX file with one input.
        batch: (N, C, H, W) float32, preprocessed images.

    Returns:
        The first such node in the order of the graph over all images; None where all is finite.

    Raises:
        ArtifactError: there is no such file, it is no ONNX, or ONNX Runtime cannot run it.
    """
    import onnx

    model = _load(path)
    nodes = [node for node in model.graph.node if node.output]
    shown = {value.name for value in model.graph.output}
    names = [name for node in nodes for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in shown)
    found: tuple[int, BadLayer] | None = None
    for values in _values(model, names, batch, path):
        for position, node in enumerate(nodes[: found[0] if found else None]):
            if kind := _trouble([values[name] for name in node.output if name]):
                found = position, BadLayer(node.name, node.op_type, kind)
                break
    return found[1] if found else None


def _values(
    model: onnx.ModelProto, names: list[str], batch: FloatArray, path: Path
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The named outputs for each image, computed node by node as they stand in the file."""
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = _ONLY_FATAL
    try:
        session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        (image_input,) = session.get_inputs()
        size = image_input.shape[0] if isinstance(image_input.shape[0], int) else 1
        for images in in_batches(batch, size):
            yield dict(zip(names, session.run(names, {image_input.name: images}), strict=True))
    except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented) as error:
        raise ArtifactError(
            f"ONNX Runtime cannot run {path}: {' '.join(str(error).split())[:200]}",
            hint="export it again with `segx export`, and give images of the model's size",
        ) from error


def _trouble(outputs: list[npt.NDArray[Any]]) -> Literal["overflow", "nan"] | None:
    floats = [value for value in outputs if np.issubdtype(value.dtype, np.floating)]
    if any(np.isnan(value).any() for value in floats):
        return "nan"
    return None if all(np.isfinite(value).all() for value in floats) else "overflow"


def _load(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ArtifactError(f"no ONNX file at {path}", hint="make it with `segx export`")
    try:
        return onnx.load(path)
    except (OSError, DecodeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as ONNX: {error}", hint="export it again with `segx export`"
        ) from error


class _Halving:
    """One conversion: takes the nodes over in their order and gives each its inputs in the types that it can have."""

    def __init__(self, model: onnx.ModelProto, keep: frozenset[str]) -> None:
        import onnx

        self._onnx = onnx
        self._model = model
        self._keep = keep
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._float32 = self._float32_tensors()
        # (name in the old graph, type) -> name in the new one.
        self._names: dict[tuple[str, str], str] = {(value.name, _FLOAT): value.name for value in model.graph.input}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def apply(self) -> None:
        """Convert the model in place."""
        graph = self._model.graph
        for node in graph.node:
            self._take_over(node)
        for value in graph.output:
            if (value.name, _HALF) in self._names:
                self._cast(self._names[value.name, _HALF], value.name, _FLOAT)
        new = {"node": self._nodes, "initializer": self._initializers.values(), "value_info": ()}
        for field, values in new.items():
            del getattr(graph, field)[:]
            getattr(graph, field).extend(values)

    def _float32_tensors(self) -> set[str]:
        wanted = self._onnx.TensorProto.FLOAT
        graph = self._onnx.shape_inference.infer_shapes(self._model, strict_mode=True).graph
        values = (*graph.input, *graph.output, *graph.value_info)
        computed = {value.name for value in values if value.type.tensor_type.elem_type == wanted}
        return computed | {name for name, tensor in self._weights.items() if tensor.data_type == wanted}

    def _take_over(self, node: onnx.NodeProto) -> None:
        schema = self._schema(node)
        new = type(node)()
        new.CopyFrom(node)
        for slot, name in enumerate(node.input):
            if name in self._float32:
                new.input[slot] = self._name_of(name, self._type_at(schema.inputs, slot, node))
            elif name in self._weights:
                self._initializers[name] = self._weights[name]
        for slot, name in enumerate(node.output):
            if name in self._float32:
                kind = self._type_at(schema.outputs, slot, node)
                new.output[slot] = self._names[name, kind] = _suffixed(name, kind)
                if kind == _HALF:
                    self._halve_attributes(new)
        self._nodes.append(new)

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ExportError(
                f"{node.op_type} {node.name} has a subgraph, which cannot be converted to fp16",
                hint="use a model without branches and loops",
            )
        try:
            return self._onnx.defs.get_schema(node.op_type, self._opsets[node.domain], node.domain)
        except (self._onnx.defs.SchemaError, KeyError) as error:
            raise ExportError(
                f"{node.op_type} {node.name} is no operator of ONNX",
                hint="convert the file that `segx export` wrote, not an optimised one",
            ) from error

    def _type_at(self, parameters: Any, slot: int, node: onnx.NodeProto) -> str:
        """The type that a float32 tensor gets here; the last parameter may stand for any number of tensors."""
        can_be = parameters[min(slot, len(parameters) - 1)].types
        return _HALF if _HALF in can_be and node.name not in self._keep else _FLOAT

    def _name_of(self, name: str, kind: str) -> str:
        """Name in the new graph of what was a float32 tensor, in the type wanted; made where it is not there yet."""
        if (name, kind) not in self._names:
            wanted = _suffixed(name, kind)
            if name in self._weights:
                tensor = self._weights[name] if kind == _FLOAT else self._half(self._weights[name])
                self._initializers[wanted] = tensor
            else:
                other = self._names[name, _FLOAT if kind == _HALF else _HALF]
                self._cast(other, wanted, kind)
            self._names[name, kind] = wanted
        return self._names[name, kind]

    def _cast(self, source: str, target: str, kind: str) -> None:
        to = self._onnx.TensorProto.FLOAT if kind == _FLOAT else self._onnx.TensorProto.FLOAT16
        self._nodes.append(self._onnx.helper.make_node("Cast", [source], [target], name=f"cast_to_{target}", to=to))

    def _half(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        values = self._onnx.numpy_helper.to_array(tensor)
        finite = np.abs(values[np.isfinite(values)])
        if (largest := finite.max(initial=0.0)) > _LARGEST:
            raise ExportError(
                f"{tensor.name} holds {largest:.3g}, and fp16 ends at {_LARGEST:.0f}",
                hint="use bf16 or fp32, or keep the nodes that use it in float32",
            )
        return self._onnx.numpy_helper.from_array(values.astype(np.float16), _suffixed(tensor.name, _HALF))

    def _halve_attributes(self, node: onnx.NodeProto) -> None:
        """Those that decide the type of an output."""
        onnx = self._onnx
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
            elif attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.FLOAT:
                attribute.t.CopyFrom(self._half(attribute.t))


def _suffixed(name: str, kind: str) -> str:
    return name if kind == _FLOAT else f"{name}_fp16"
