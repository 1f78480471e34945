"""Changes to a foreign ONNX graph after which it takes float32 images (N, C, H, W) and returns float32 logits.

Everything happens in the graph, so that every engine runs the same. Functions that may change a graph return a sentence
for each change.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes.common import InlinePass, NameFixPass, RemoveInitializersFromInputsPass, RemoveUnusedNodesPass

INPUT, OUTPUT = "image", "logits"

OLDEST_OPSET = 13  # from which axes are inputs and int8 has a scale per channel
_LIFTED_OPSET = 17

# A probability of 0 or 1 has no finite logit.
_SMALLEST_PROBABILITY = 1e-7
# The logit of the pixels in a binary mask that comes without probabilities; beyond every threshold.
_SURE = 16.0

# What values pass through without being changed.
_MOVES = (
    "Identity", "Transpose", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Slice", "Gather", "Split", "DepthToSpace",
    "SpaceToDepth", "Expand", "Dropout",
)  # fmt: skip
# Among them, those that keep the axes in their order.
_KEEP_AXES = ("Identity", "Dropout")


def main_opset(model: ir.Model) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return int(model.opset_imports.get("", 1))


def lifted(model: ir.Model) -> ir.Model:
    """Return the model in an opset that everything here and the quantiser know.

    Raises:
        Exception: of many kinds; ONNX cannot convert it.
    """
    before = main_opset(model)
    if before >= OLDEST_OPSET:
        return model
    result: ir.Model = ir.from_proto(version_converter.convert_version(ir.to_proto(model), _LIFTED_OPSET))
    if before < 11:  # until then pixels were aligned by their corners, which the converter forgets
        for node in result.graph.all_nodes():
            if node.op_type == "Resize":
                node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                    "coordinate_transformation_mode", "asymmetric"
                )
                node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
    return result


def to_inference_mode(model: ir.Model) -> list[str]:
    """Put batch normalisation and dropout into inference mode.

    Raises:
        ValueError: the graph uses the statistics of the batch; the message names them.
    """
    found: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if node.op_type == "BatchNormalization" and (len(node.outputs) > 1 or _number(node, "training_mode")):
            if used := [value.name for value in node.outputs[1:] if value.uses() or value.is_graph_output()]:
                raise ValueError(", ".join(map(str, used)))
            node.attributes.pop("training_mode", None)
            node.resize_outputs(1)
        elif node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
            training = ir.convenience.get_const_tensor(node.inputs[2])
            if training is not None and not training.numpy().any():
                continue
            node.replace_input_with(2, None)
        else:
            continue
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return [f"put {count} {operator} from training into inference mode" for operator, count in found.items()]


def uses(model: ir.Model, *kinds: ir.DataType) -> bool:
    """Return True if a model has tensors, constants or casts of one of these types."""
    attributes = (each for node in model.graph.all_nodes() for each in node.attributes.items())
    return any(value.dtype in kinds for value in [*_values(model.graph), *model.graph.outputs]) or any(
        _kind(*each) in kinds for each in attributes
    )


def to_float32(model: ir.Model, *kinds: ir.DataType) -> list[str]:
    """Let a model compute in float32 where it does in one of these types: other precisions are derived from that.

    Raises:
        ValueError: it has numbers that are too large for float32; the message names them.
    """
    found = set()

    def converted(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        old = tensor.numpy()
        with np.errstate(over="ignore"):
            new = old.astype(np.float32)
        if (np.isfinite(old) & ~np.isfinite(new)).any():
            raise ValueError(f"{tensor.name} has values up to {np.abs(old[np.isfinite(old)]).max():.3g}")
        return ir.Tensor(new, name=tensor.name)

    for value in [*_values(model.graph), *model.graph.outputs]:
        if isinstance(value.type, ir.TensorType) and value.dtype in kinds:
            found.add(str(value.dtype.numpy()))
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if value.const_value is not None:
                value.const_value = converted(value.const_value)
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if _kind(name, attribute) not in kinds:
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, converted(attribute.as_tensor()))
            else:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    return [f"computed in float32 instead of {kind}" for kind in sorted(found)]


def _kind(name: str, attribute: ir.Attr) -> ir.DataType | None:
    """Return the type of a constant, or the one that an attribute chooses."""
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().dtype
    return ir.DataType(attribute.as_int()) if name in ("to", "dtype") else None


def keep_output(model: ir.Model, output: ir.Value) -> None:
    """Remove all other outputs and what computes them, and list no weights as inputs."""
    model.graph.outputs[:] = [output]
    if model.functions:
        InlinePass()(model)
    RemoveInitializersFromInputsPass()(model)
    RemoveUnusedNodesPass()(model)


def wrap_input(
    model: ir.Model, shape: Sequence[int | str], *, channels_last: bool, to_bytes: bool, full_brightness: float
) -> list[str]:
    """Give a model one float32 input (N, C, H, W) of a shape; bytes are made of 0 to ``full_brightness``."""
    (old,) = model.graph.inputs
    done = []
    new = ir.Value(name=INPUT, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    chain = _Chain(model, new)
    if to_bytes:
        if full_brightness != 255:
            chain.add("Mul", [np.float32(255 / full_brightness)])
        chain.add("Round")
        chain.add("Clip", [np.float32(0), np.float32(255)])
        done.append(f"images become {_name(old.dtype)} from 0 to 255 in the graph")
    if old.dtype not in (None, ir.DataType.FLOAT):
        chain.add("Cast", to=int(old.dtype))
        if not to_bytes:
            done.append(f"images become {_name(old.dtype)} in the graph")
    if channels_last:
        chain.add("Transpose", perm=[0, 2, 3, 1])
        done.append("images become channels-last (NHWC) in the graph")
    old.replace_all_uses_with(chain.value)
    model.graph.inputs[:] = [new]
    chain.insert()
    return done


class Output:
    """The output of a model, on its way to be logits (N, K, H, W) float32."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    @property
    def value(self) -> ir.Value:
        """Return the output's value."""
        value = self._model.graph.outputs[0]
        assert value is not None
        return value

    def pick(self, channel: int, axis: int) -> None:
        """Keep one channel."""
        chain = _Chain(self._model, self.value)
        chain.add("Gather", [np.array([channel])], axis=axis)
        self._end(chain)

    def remove_argmax(self) -> bool:
        """Return logits instead of the class with the largest; the mask is the same."""
        node, path = self._ending("ArgMax")
        allowed = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape")
        if node is None or any(step.op_type not in allowed for step in path):
            return False
        if _number(node, "axis") not in (1, 3, -1, -3):
            return False
        assert node.inputs[0] is not None
        self._replace(node.inputs[0])
        return True

    def remove_sigmoid(self) -> bool:
        """Remove a sigmoid with nothing but moves of values after it."""
        node, path = self._ending("Sigmoid")
        if node is None:
            return False
        self._bypass([node, *(step for step in path if step.op_type == "Clip")])
        return True

    def remove_softmax(self, class_axis: int, rank: int) -> bool:
        """Remove a softmax along the axis of classes, which keeps their order."""
        node, path = self._ending("Softmax")
        if node is None:
            return False
        axis = class_axis
        for step in path:  # from the output back to the softmax
            if step.op_type == "Transpose":
                axis = step.attributes["perm"].as_ints()[axis] if "perm" in step.attributes else rank - 1 - axis
            elif step.op_type not in (*_KEEP_AXES, "Cast", "Clip", "Resize"):
                return False
        if _number(node, "axis", -1) % rank != axis:
            return False
        self._bypass([node, *(step for step in path if step.op_type == "Clip")])
        return True

    def ends_in_probabilities(self) -> bool:
        """Return True if the last operator that changes values maps them to [0, 1]."""
        return self._ending("Sigmoid", "Softmax", "HardSigmoid")[0] is not None

    def arrange(self, *, dtype: np.dtype[Any], axis: int | None, channels_last: bool) -> list[str]:
        """Make the output float32 (N, K, H, W): ``axis`` is missing before, or the channels come last."""
        done = []
        chain = _Chain(self._model, self.value)
        if dtype != np.float32:
            chain.add("Cast", to=int(ir.DataType.FLOAT))
            done.append(f"the output was {dtype}")
        if axis is not None:
            chain.add("Unsqueeze", [np.array([axis])])
            done.append("the output had three axes")
        if channels_last:
            chain.add("Transpose", perm=[0, 3, 1, 2])
            done.append("the output was channels-last (NHWC)")
        self._end(chain)
        return done

    def to_logits(self, full: float) -> None:
        """Map probabilities from 0 to ``full`` to their logits."""
        chain = _Chain(self._model, self.value)
        if full != 1:
            chain.add("Div", [np.float32(full)])
        least = np.float32(_SMALLEST_PROBABILITY)
        chain.add("Clip", [least, np.float32(1) - least])
        probability = chain.value
        chain.add("Neg")
        chain.add("Add", [np.float32(1)])
        chain.add("Log")
        of_rest = chain.value
        chain.value = probability
        chain.add("Log")
        chain.add("Sub", [of_rest])
        self._end(chain)

    def to_one_hot(self, classes: int) -> None:
        """Map a map of class indices (N, 1, H, W) to logits; for one class, all but 0 are foreground."""
        chain = _Chain(self._model, self.value)
        if classes == 1:
            chain.add("Greater", [np.float32(0.5)])
            chain.add("Cast", to=int(ir.DataType.FLOAT))
            chain.add("Sub", [np.float32(0.5)])
            chain.add("Mul", [np.float32(2 * _SURE)])
        else:
            chain.add("Equal", [np.arange(classes, dtype=np.float32).reshape(1, -1, 1, 1)])
            chain.add("Cast", to=int(ir.DataType.FLOAT))
        self._end(chain)

    def enlarge(self, factors: tuple[int, int], mode: str) -> None:
        """Resize the output by whole factors of height and width: ``linear`` or ``nearest``."""
        chain = _Chain(self._model, self.value)
        how: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            how = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        chain.add("Resize", [None, np.array([1, 1, *factors], dtype=np.float32)], **how)
        self._end(chain)

    def finish(self, shape: Sequence[int | str]) -> None:
        """Name the output and declare its shape."""
        graph = self._model.graph
        if self.value.is_graph_input() or self.value.is_initializer():  # a model that does nothing
            chain = _Chain(self._model, self.value)
            chain.add("Identity")
            self._end(chain)
        self.value.name = OUTPUT
        self.value.type, self.value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        graph.sort()
        NameFixPass()(self._model)

    def _ending(self, *operators: str) -> tuple[ir.Node | None, list[ir.Node]]:
        """Return the operator that the output comes from by moves of values alone, and those moves, last one first."""
        path: list[ir.Node] = []
        value: ir.Value | None = self.value
        while value is not None and (node := value.producer()) is not None:
            if len(value.uses()) + value.is_graph_output() > 1:
                break
            if node.op_type in operators:
                return node, path
            others = (other for other in node.outputs if other is not value)
            if not _moves_values(node, to_index="ArgMax" in operators) or any(other.uses() for other in others):
                break
            path.append(node)
            value = node.inputs[0]
        return None, []

    def _bypass(self, nodes: Sequence[ir.Node]) -> None:
        """Take element-wise operators out of the graph."""
        for node in nodes:
            before, after = node.inputs[0], node.outputs[0]
            assert before is not None
            if after.is_graph_output():
                self._replace(before)
            else:
                after.replace_all_uses_with(before)
        self._drop_unused()

    def _replace(self, value: ir.Value) -> None:
        self._model.graph.outputs[0] = value
        self._drop_unused()

    def _end(self, chain: _Chain) -> None:
        chain.insert()
        self._model.graph.outputs[0] = chain.value

    def _drop_unused(self) -> None:
        RemoveUnusedNodesPass()(self._model)


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


class _Chain:
    """Operators one after the other, which begin at a value of the graph."""

    def __init__(self, model: ir.Model, value: ir.Value) -> None:
        self.value = value
        self._model = model
        self._tape = ir.tape.Tape(model.graph)

    def add(self, operator: str, others: Sequence[Any] = (), **attributes: Any) -> None:
        """Apply an operator to the value and to others: values, arrays, or None."""
        output = ir.Value(name=f"segx_{operator.lower()}")
        self.value = self._tape.op(operator, [self.value, *map(self._constant, others)], attributes, output=output)

    def insert(self) -> None:
        """Put the operators into their places in the graph, and give each value a name of its own."""
        self._model.graph.sort()
        NameFixPass()(self._model)

    def _constant(self, other: Any) -> ir.Value | None:
        if other is None or isinstance(other, ir.Value):
            return other
        taken = self._model.graph.initializers
        name = next(name for i in itertools.count() if (name := f"segx_constant_{i}") not in taken)
        return self._tape.initializer(ir.tensor(np.asarray(other)), name)


def _values(graph: ir.Graph) -> list[ir.Value]:
    """Return all tensors, those of subgraphs too, each once."""
    found = [*graph.inputs, *graph.initializers.values()]
    for part in graph.subgraphs():
        found += [*part.inputs, *part.initializers.values()]
    for node in graph.all_nodes():
        found += node.outputs
    return list({id(value): value for value in found}.values())


def _moves_values(node: ir.Node, *, to_index: bool) -> bool:
    """Return True for an operator that changes no value, or none in a way that a threshold on probabilities sees."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Cast":
        return to_index or node.attributes["to"].as_int() in [int(kind) for kind in _FLOATS]
    if node.op_type == "Resize":
        return node.attributes.get("mode", ir.AttrString("mode", "nearest")).as_string() == "nearest"
    if node.op_type == "Clip":
        limits = [ir.convenience.get_const_tensor(value) if value is not None else None for value in node.inputs[1:]]
        low, high = (*(tensor.numpy().item() if tensor is not None else None for tensor in limits), None, None)[:2]
        return (low is None or low <= 1e-3) and (high is None or high >= 1 - 1e-3)
    return node.op_type in _MOVES


def _number(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _name(dtype: ir.DataType | None) -> str:
    return str(dtype).lower()


def described(values: Sequence[ir.Value]) -> str:
    """List tensors with shape and type: ``out (batch, 1, 64, 64) float``."""
    return ", ".join(
        f"{value.name} ({', '.join(map(str, value.shape)) if value.shape is not None else '?'}) {_name(value.dtype)}"
        for value in values
    )


def forget_shapes(model: ir.Model) -> None:
    """Forget what a file says of the shapes of all tensors but its inputs, which ONNX Runtime does not trust either.

    Axes of the input of no or negative length become symbolic.
    """
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                [axis if not isinstance(axis, int) or axis > 0 else f"axis_{i}" for i, axis in enumerate(value.shape)]
            )
    for node in model.graph:
        for value in node.outputs:
            value.shape = None


def nodes_of(model: ir.Model) -> list[ir.Node]:
    """Return all nodes, those of subgraphs and functions too."""
    inner = (node for function in model.functions.values() for node in function.all_nodes())
    return [*model.graph.all_nodes(), *inner]


def operators_of(model: ir.Model) -> Mapping[str, set[str]]:
    """Return the operators of each domain that a model uses and does not define itself."""
    own = {(key[0], key[1]) for key in model.functions}
    found: dict[str, set[str]] = {}
    for node in nodes_of(model):
        if (node.domain, node.op_type) not in own:
            found.setdefault(node.domain, set()).add(node.op_type)
    return found
