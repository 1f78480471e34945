"""How much a network has to compute and to move, counted from the graph of its exported file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segx.errors import ArtifactError
from segx.results.types import Work

_Shape = tuple[int, ...]
_BYTES = 4


def network_work(path: Path, batch: int = 1) -> Work:
    """Count the operations and bytes of an exported fp32 file.

    An operation is a multiplication or an addition, so a multiply-accumulate counts as two. Convolutions, transposed
    convolutions and matrix products are counted as they are written; what is done between them (activations, sums,
    joining, enlarging) is taken to be fused into them, and neither its operations nor its bytes count.

    Args:
        path: an ONNX file.
        batch: images per call; the figures are of one image, whatever it is.

    Raises:
        ArtifactError: no file, no ONNX, or shapes that do not follow from the input's.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        _fix_batch(model.graph, batch)
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (OSError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(
            f"the operations of {path} cannot be counted: {error}", hint="export it again with `segx export`"
        ) from error
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    shapes = weights | {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    operations = moved = operators = 0
    for node in graph.node:
        if count := _COUNTED.get(node.op_type):
            operations += 2 * count(node, [_known(name, shapes, path) for name in (*node.input[:2], node.output[0])])
            tensors = [name for name in (*node.input[:2], node.output[0]) if name not in weights]
            moved += _BYTES * sum(math.prod(shapes[name]) for name in tensors)
            operators += 1
    return Work(
        operations=operations // batch,
        weight_bytes=_BYTES * sum(math.prod(weights[name]) for name in floats),
        activation_bytes=moved // batch,
        operators=operators,
    )


def _fix_batch(graph: Any, batch: int) -> None:
    """Give the inputs this batch, and forget what was derived from another."""
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _shape(value: Any) -> _Shape:
    """0 stands for a size that is not known."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _known(name: str, shapes: dict[str, _Shape], path: Path) -> _Shape:
    shape = shapes.get(name, ())
    if not shape or not all(shape):
        raise ArtifactError(
            f"the operations of {path} cannot be counted: the shape of {name} does not follow from the input's",
            hint="export it again with `segx export`",
        )
    return shape


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _conv(_: Any, shapes: Sequence[_Shape]) -> int:
    """Each output value is the sum over one kernel; weights are (out, in / groups, kernel…)."""
    _image, weight, output = shapes
    return math.prod(output) * math.prod(weight[1:])


def _conv_transpose(_: Any, shapes: Sequence[_Shape]) -> int:
    """Each input value is spread over one kernel; weights are (in, out / groups, kernel…)."""
    image, weight, _output = shapes
    return math.prod(image) * math.prod(weight[1:])


def _gemm(node: Any, shapes: Sequence[_Shape]) -> int:
    left, _right, output = shapes
    return math.prod(output) * left[0 if _attribute(node, "transA", 0) else 1]


def _matmul(_: Any, shapes: Sequence[_Shape]) -> int:
    left, _right, output = shapes
    return math.prod(output) * left[-1]


# Operator -> its multiply-accumulates, from the shapes of two inputs and the output.
_COUNTED: dict[str, Callable[[Any, Sequence[_Shape]], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
