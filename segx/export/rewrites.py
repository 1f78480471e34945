"""Enlarging by two, joining and convolving as layers of their own kind, which OpenVINO computes faster in 8 bits."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segx.masks.image_io import FloatArray

if TYPE_CHECKING:
    import onnx

# Between the name of a layer's weights and that of a part of them.
PART = "@"


def enlarge_within_layers(model: onnx.ModelProto) -> None:
    """Turn "enlarge twofold, join, convolve 3x3" into "convolve transposed 4x4, convolve 3x3, add"; equal results.

    A transposed convolution reads the small image: it multiplies 16 times per pixel of it, where the convolution of the
    enlarged one does 36 times, and nothing has to be enlarged or joined. OpenVINO adds while it writes the second part.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    depths = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in graph.value_info if _has_channels(v)}

    def maker(name: str, kind: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is of that kind and nothing else takes the tensor."""
        node = makers.get(name)
        return node if node is not None and node.op_type == kind and uses[name] == 1 else None

    nodes: list[onnx.NodeProto] = []
    replaced = []
    for node in graph.node:
        join = maker(node.input[0], "Concat")
        large, *others = join.input if join else node.input[:1]
        enlarge = maker(large, "Resize")
        fits = len(others) <= 1 and depths.get(large) and _is_plain_3x3(node, weights)
        if not fits or enlarge is None or not _doubles(enlarge, weights):
            nodes.append(node)
            continue
        replaced += [enlarge] if join is None else [enlarge, join]
        kernel, bias = weights[node.input[1]], node.input[2:]
        parts = {"enlarged": _doubling_kernel(kernel[:, : depths[large]]), "other": kernel[:, depths[large] :]}
        names = {part: f"{node.input[1]}{PART}{node.name}_{part}" for part in parts}
        graph.initializer.extend(numpy_helper.from_array(parts[part], names[part]) for part in parts)
        sums = [f"{node.output[0]}{PART}{part}" for part in parts] if others else node.output
        from_small = [enlarge.input[0], names["enlarged"], *bias]
        pads = [1, 1, 1, 1]
        nodes.append(
            helper.make_node("ConvTranspose", from_small, sums[:1], f"{node.name}_up", pads=pads, strides=[2, 2])
        )
        if others:
            nodes.append(helper.make_node("Conv", [*others, names["other"]], sums[1:], node.name, pads=pads))
            nodes.append(helper.make_node("Add", sums, node.output, f"{node.name}_sum"))
    kept = [node for node in nodes if node not in replaced]
    used = {name for node in kept for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)


def _has_channels(value: onnx.ValueInfoProto) -> bool:
    return len(value.type.tensor_type.shape.dim) == 4


def _doubles(resize: onnx.NodeProto, weights: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether each pixel becomes two by two equal ones."""
    from onnx import helper

    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in resize.attribute}
    wanted = {"mode": b"nearest", "coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}
    scales = weights.get(resize.input[2] if len(resize.input) > 2 else "", np.empty(0))
    return wanted.items() <= given.items() and scales.tolist() == [1, 1, 2, 2]


def _is_plain_3x3(node: onnx.NodeProto, weights: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether it is a convolution of 3x3 pixels about each pixel, with zeros around the image."""
    from onnx import helper

    if node.op_type != "Conv" or node.input[1] not in weights or weights[node.input[1]].shape[2:] != (3, 3):
        return False
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = {"strides": [1, 1], "dilations": [1, 1], "group": 1, "auto_pad": b"NOTSET", "kernel_shape": [3, 3]}
    return given.get("pads") == [1, 1, 1, 1] and all(given.get(name, value) == value for name, value in plain.items())


def _doubling_kernel(kernel: FloatArray) -> FloatArray:
    """What a 3x3 kernel is to the image before it was enlarged twofold.

    Args:
        kernel: (K, C, 3, 3) weights of a convolution.

    Returns:
        (C, K, 4, 4) weights of the transposed convolution with stride 2 and padding 1.
    """
    out = np.zeros((kernel.shape[1], kernel.shape[0], 4, 4), dtype=np.float32)
    turned = kernel[:, :, ::-1, ::-1].swapaxes(0, 1)
    for down, right in itertools.product(range(2), range(2)):  # each pixel stands at four places
        out[:, :, down : down + 3, right : right + 3] += turned
    return out
