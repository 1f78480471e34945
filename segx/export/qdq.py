"""A network in 8 bits by ONNX Runtime's quantiser: rounding (QDQ) about each layer, laid out as one engine likes it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from segx.errors import ExportError
from segx.export.rewrites import PART, enlarge_within_layers
from segx.masks.image_io import FloatArray
from segx.system import machine

if TYPE_CHECKING:
    import onnx

Engine = Literal["onnxruntime", "openvino", "tensorrt"]

# OpenVINO computes a transposed convolution in 8 bits, ONNX Runtime does not.
_LAYERS: Mapping[Engine, tuple[str, ...]] = {
    "onnxruntime": ("Conv",),
    "openvino": ("Conv", "ConvTranspose"),
    "tensorrt": ("Conv",),
}
# TensorRT wants zero as the zero of activations, biases in float, and weights whose rounding stands in the graph:
# https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
_AS_TENSORRT_READS = {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}
_JOINING = "Concat"
# Give out what they take in, so ONNX Runtime gives their output the scale of their input.
_PASSING = ("MaxPool", "Resize")
_ACTIVATIONS = ("Clip", "Relu")
# What is computed in 8 bits beside layers; any other operator stays in float.
_BETWEEN_LAYERS = ("Add", _JOINING, *_PASSING, *_ACTIVATIONS)

# Ranges this close are made one where tensors are joined: the narrower then loses at most one bit of eight.
_NEAR = 2.0

# Lowest and highest value, as the calibration gives them: float32 arrays of one number.
_Range = tuple[FloatArray, FloatArray]


@dataclass(frozen=True)
class Network:
    """The float model, and all that it takes to quantise it again and again.

    Attributes:
        model: prepared, with the type of each tensor and a name for each node.
        engine: for which it is quantised.
        ranges: of each tensor.
        layers: by the name of their weights, the nodes that use them.
        narrow_weights: use 7 bits of 8 for weights.
    """

    model: onnx.ModelProto
    engine: Engine
    ranges: Mapping[str, _Range]
    layers: Mapping[str, tuple[str, ...]]
    narrow_weights: bool

    def quantized(self, *, but: Iterable[str] = (), only: str | None = None) -> onnx.ModelProto:
        """The model in 8 bits, but for some layers; or one layer in 8 bits and all others in float."""
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import QuantType

        for_tensorrt = self.engine == "tensorrt"
        chosen = [] if only is None else self._with_activation(self.layers[only])
        excluded = self._with_surroundings(node for layer in but for node in self.layers[layer])
        with _mapped_errors():
            quantizer = QDQQuantizer(
                copy.deepcopy(self.model),
                per_channel=True,
                reduce_range=self.narrow_weights,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, dict(self.ranges)),
                nodes_to_quantize=chosen,  # empty for all
                nodes_to_exclude=excluded,
                op_types_to_quantize=_operators(self.engine),
                extra_options=_AS_TENSORRT_READS if for_tensorrt else {},
            )
            quantizer.quantize_model()
        model: onnx.ModelProto = quantizer.model.model
        _leave_output_in_float(model)
        if self.engine == "openvino":
            _leave_sums_in_float(model)
        return model

    def int8_layers(self, model: onnx.ModelProto) -> int:
        """How many layers of a quantised model get both image and weights from 8 bits."""
        rounded = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        in_8_bits = {node.name for node in model.graph.node if set(node.input[:2]) <= rounded}
        return sum(in_8_bits.issuperset(nodes) for nodes in self.layers.values())

    def _with_activation(self, nodes: Iterable[str]) -> list[str]:
        """Nodes and the activation functions after them, which cut off what need not be represented."""
        wanted = set(nodes)
        outputs = {name for node in self.model.graph.node if node.name in wanted for name in node.output}
        after = (n for n in self.model.graph.node if n.op_type in _ACTIVATIONS and n.input[0] in outputs)
        return [*wanted, *(node.name for node in after)]

    def _with_surroundings(self, nodes: Iterable[str]) -> list[str]:
        """Nodes, and all between them and the next layers on either side, which would round what they pass on."""
        by_name = {node.name: node for node in self.model.graph.node}
        makers = {name: node for node in self.model.graph.node for name in node.output}
        users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                users.setdefault(name, []).append(node)
        layers = _LAYERS[self.engine]
        found = set(nodes)
        for neighbours in (
            lambda node: [makers[name] for name in node.input if name in makers],
            lambda node: [user for name in node.output for user in users.get(name, [])],
        ):
            pending = [by_name[name] for name in found if by_name[name].op_type in layers]
            while pending:
                near = [n for n in neighbours(pending.pop()) if n.op_type not in layers and n.name not in found]
                found.update(node.name for node in near)
                pending.extend(near)
        return sorted(found)


def _operators(engine: Engine) -> list[str]:
    return [*_LAYERS[engine], *_BETWEEN_LAYERS]


def prepare(source: Path, batches: Iterable[FloatArray], engine: Engine, folder: Path, threads: int) -> Network:
    """Fold constants, find the types of tensors, measure their ranges.

    Raises:
        ExportError: the quantiser cannot handle it.
    """
    import onnx
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    with _mapped_errors():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # it fails on UNet++, and dims are known without
        model: onnx.ModelProto = load_model_with_shape_infer(prepared)
        for index, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{index}"  # layers are left in float by name
        if engine == "openvino":
            enlarge_within_layers(model)
            onnx.save(model, prepared)
            model = load_model_with_shape_infer(prepared)
    constants = {tensor.name for tensor in model.graph.initializer}
    layers: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        if node.op_type in _LAYERS[engine] and node.input[1] in constants:
            name = node.input[1].partition(PART)[0].removeprefix("model.").removesuffix(".weight")
            layers[name] = (*layers.get(name, ()), node.name)
    ranges = _measured_ranges(prepared, model.graph.input[0].name, batches, _operators(engine), threads)
    return Network(model, engine, _joined(ranges, model), layers, narrow_weights=needs_narrow_weights())


def _measured_ranges(
    prepared: Path, input_name: str, batches: Iterable[FloatArray], operators: list[str], threads: int
) -> dict[str, _Range]:
    """Lowest and highest value of each tensor over all batches."""
    import onnxruntime as ort
    from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

    class BatchByBatch(CalibrationDataReader):  # type: ignore[misc]  # published without types
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, FloatArray] | None:
            batch = next(self._left, None)
            return None if batch is None else {input_name: batch}

    augmented = prepared.with_name("augmented.onnx")
    settings = ort.SessionOptions()  # the calibrator's own session would take every core of the host
    settings.intra_op_num_threads = threads
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused tensors have no range
    with _mapped_errors():
        calibrator = MinMaxCalibrater(prepared, operators, augmented_model_path=str(augmented))
        calibrator.augment_graph()
        calibrator.infer_session = ort.InferenceSession(str(augmented), settings, providers=["CPUExecutionProvider"])
        calibrator.collect_data(BatchByBatch())
        return {name: data.range_value for name, data in calibrator.compute_data().items()}


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    """What the quantiser raises for a graph that it cannot handle; the float file itself has run before."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ExportError(
            f"ONNX Runtime cannot quantise the file: {' '.join(str(error).split())[:200]}",
            hint="see the whole error with --debug; another version of onnxruntime may quantise it",
        ) from error


def _joined(ranges: Mapping[str, _Range], model: onnx.ModelProto) -> dict[str, _Range]:
    """Give tensors that are concatenated one range where theirs are near, so that joining them only moves bytes."""
    group = {name: {name} for name in ranges}
    widths = {name: float((high - low).item()) for name, (low, high) in ranges.items()}

    def merge(a: str, b: str) -> None:
        merged = group[a] | group[b]
        group.update(dict.fromkeys(merged, merged))

    def spread(names: Iterable[str]) -> float:
        of = [widths[name] for name in names]
        return max(of) / max(min(of), 1e-30)

    for node in model.graph.node:
        if node.op_type in _PASSING and {node.input[0], node.output[0]} <= group.keys():
            merge(node.input[0], node.output[0])
    joins = [node for node in model.graph.node if node.op_type == _JOINING and set(node.input) <= group.keys()]
    pairs = [pair for node in joins for pair in itertools.combinations(node.input, 2)]
    for a, b in sorted(pairs, key=spread):  # nearest first
        if spread(group[a] | group[b]) <= _NEAR:
            merge(a, b)
    for node in joins:
        if all(group[name] is group[node.input[0]] for name in node.input):
            merge(node.input[0], node.output[0])
    return {
        name: (np.minimum.reduce([ranges[n][0] for n in names]), np.maximum.reduce([ranges[n][1] for n in names]))
        for name, names in group.items()
    }


def needs_narrow_weights() -> bool:
    """Whether 8-bit products can overflow: on x86 without VNNI two of them are added up in 16 bits."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and not any("vnni" in flag for flag in machine.describe().cpu_flags)


def _leave_output_in_float(model: onnx.ModelProto) -> None:
    """Take the rounding off the logits: it saves no time there, and moves masks."""
    nodes = model.graph.node
    for output in model.graph.output:
        dequantize = next(node for node in nodes if output.name in node.output)
        if dequantize.op_type != "DequantizeLinear":
            continue
        quantize = next(node for node in nodes if dequantize.input[0] in node.output)
        maker = next(node for node in nodes if quantize.input[0] in node.output)
        maker.output[list(maker.output).index(quantize.input[0])] = output.name
        nodes.remove(quantize)
        nodes.remove(dequantize)


def _leave_sums_in_float(model: onnx.ModelProto) -> None:
    """Take the rounding off one of two tensors that are added, if a convolution makes it: OpenVINO adds in that one."""
    nodes = model.graph.node
    makers = {name: node for node in nodes for name in node.output}
    uses = Counter(name for node in nodes for name in node.input)
    for add in [node for node in nodes if node.op_type == "Add"]:
        for index, name in enumerate(add.input):
            dequantize = makers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear" or uses[name] != 1:
                continue
            quantize = makers.get(dequantize.input[0])
            if quantize is None or uses[dequantize.input[0]] != 1 or makers[quantize.input[0]].op_type != "Conv":
                continue
            add.input[index] = quantize.input[0]
            nodes.remove(quantize)
            nodes.remove(dequantize)
            break
