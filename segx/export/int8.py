"""Post-training quantisation to 8 bits for one engine, with the layers in float that the masks need in float.

ONNX Runtime's quantiser writes the file for OpenVINO too. NNCF's files of the shipped model were at most a twentieth
faster there than this quantiser's plainest, and their masks several times farther from the float ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from segx.errors import ArtifactError, ExportError, UsageError
from segx.export.artifact import Artifact, read_artifact, save_model, versions_of
from segx.export.verify import infer_all, sample_images
from segx.masks.agreement import (
    LIMITS,
    ParityLimits,
    breaches,
    compare_logits,
    few_pixels,
    largest_difference,
    other_threads,
)
from segx.masks.folders import images_of
from segx.masks.image_io import read_inputs
from segx.masks.preprocess import FloatArray, in_batches
from segx.model.spec import PRECISION_KEY, ModelSpec
from segx.results.types import Parity
from segx.runtimes import Precision, RuntimeOptions, check_runtime, open_runtime
from segx.system import machine
from segx.system.files import temporary_folder, written_whole
from segx.system.progress import SILENT, Progress

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Engine = Literal["onnxruntime", "openvino", "tensorrt"]

TOOLS = ("segx", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino")

_QUANTIZATION = "segx.quantization"

# Other scenes than those a bench generates, which judge the file.
_CALIBRATION_SEED, _HELD_OUT_SEED = 7, 8
_CALIBRATION_IMAGES, _HELD_OUT_IMAGES = 64, 32
_FIRST_IMAGES = 8  # to calibrate on; then twice as many, as long as that improves the masks
# An overexposed image can have activations ten times as large as any in the calibration. If they are cut off, whole
# objects are lost, whatever layers stay in float.
_CONTRAST = 2.0
_HELD_OUT_SHARE = 3  # one of so many images in a folder
_ENOUGH_HELD_OUT = 8  # and their mirror images; up to two thirds of a small folder are held out to get as many

# With more layers in float the file is hardly faster than the float one.
_MOST_FLOAT = 0.5
_RANKING_IMAGES = 4
_NAMED = 3  # costliest layers in an error
_PREPARED = "prepared.onnx"

_FASTEST_TO_OPEN = "onnxruntime-cpu"
# The runtime that judges the masks; making a file for TensorRT needs no GPU.
_JUDGES: Mapping[Engine, str] = {
    "onnxruntime": "onnxruntime-cpu",
    "openvino": "openvino-cpu",
    "tensorrt": "onnxruntime-cpu",
}
# OpenVINO computes a transposed convolution in 8 bits, ONNX Runtime does not.
_LAYERS: Mapping[Engine, tuple[str, ...]] = {
    "onnxruntime": ("Conv",),
    "openvino": ("Conv", "ConvTranspose"),
    "tensorrt": ("Conv",),
}
# TensorRT requires activations with zero point 0, biases in float, and the rounding of weights in the graph:
# https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
_TENSORRT_OPTIONS = {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}
# ONNX Runtime gives the output of these the scale of their input.
_SAME_SCALE = ("MaxPool", "Resize")
_ACTIVATIONS = ("Clip", "Relu")
# Operators that compute in 8 bits beside layers; any other stays in float.
_BETWEEN_LAYERS = ("Add", "Concat", *_SAME_SCALE, *_ACTIVATIONS)

# Concatenated tensors share a range if theirs differ by at most this factor: the narrower loses one bit of eight.
_NEAR = 2.0

# Lowest and highest value from the calibration: float32 arrays of one number.
_Range = tuple[FloatArray, FloatArray]


@dataclass(frozen=True)
class Stage:
    """One attempt to quantise, compared with the float file on the held-out images.

    Layers in float have the names of their weights, costliest first. ``parity`` counts mirror images too;
    ``has_margin`` tells whether it meets the limits by a margin.
    """

    float_layers: tuple[str, ...]
    int8_layers: int
    parity: Parity
    calibration_images: int
    held_out_images: int
    has_margin: bool


def calibration_images(spec: ModelSpec, folder: Path | None) -> tuple[FloatArray, FloatArray]:
    """Return images to calibrate on and images to judge by, each (N, C, H, W) float32: generated ones for None.

    Of the images in a folder or list (see ``images_of``) a third is held out to judge by; of a few, up to two thirds,
    because masks need more images to be judged by than activations to be calibrated on.

    Raises:
        ImageError: the folder holds no images, or one cannot be read.
        UsageError: it holds one image only.
    """
    if folder is None:
        return (
            sample_images(spec, _CALIBRATION_IMAGES, seed=_CALIBRATION_SEED),
            sample_images(spec, _HELD_OUT_IMAGES, seed=_HELD_OUT_SEED),
        )
    paths = images_of(folder)
    if len(paths) < 2:
        raise UsageError(f"{folder} holds one image", hint="give at least two: one is held out to judge the masks")
    # Spread over the folder, which may be sorted by subject.
    share = max(len(paths) // _HELD_OUT_SHARE, min(_ENOUGH_HELD_OUT, 2 * len(paths) // 3))
    held_out = _spread(paths, min(share, _HELD_OUT_IMAGES))
    kept = [path for path in paths if path not in set(held_out)]
    calibration, judged = (read_inputs(group, spec) for group in (_spread(kept, _CALIBRATION_IMAGES), held_out))
    return calibration, judged


def _spread(paths: Sequence[Path], most: int) -> list[Path]:
    """Return at most so many paths, evenly spaced."""
    count = min(most, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


def quantize_onnx(
    source: Path,
    images: FloatArray,
    held_out: FloatArray,
    *,
    output: Path,
    engine: Engine = "onnxruntime",
    min_iou_worst: float = LIMITS["int8"].iou,
    min_iou_mean: float = LIMITS["int8"].mean_iou,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> tuple[Stage, ...]:
    """Quantise an exported file (QDQ: 8-bit activations, 8-bit weights per channel), and judge its masks.

    It is calibrated on twice as many images in each attempt, until the mean IoU with the float file's masks no longer
    rises. If the masks still differ too much, the layers that cost most return to float, more in each attempt, until
    they meet the limits with a margin for other images. Returns the attempts; the last one is the file.

    ``images``, (N, C, H, W) float32 and preprocessed, give the ranges of activations: 50 or more that are
    representative. ``held_out``, (M, C, H, W) float32, are other images, on which the engine judges the file (ONNX
    Runtime for TensorRT); so it does on their mirror images, if they are few. Their IoU with the float file's masks
    must reach the limits, 0 to 1. Other engines can run the file, but slower.

    Raises:
        ArtifactError: ``source`` is missing, was not exported by segx, is not float32, or does not return logits.
        UsageError: ``images`` or ``held_out`` do not fit the model.
        RuntimeUnavailable: the engine is not installed.
        ExportError: the masks differ too much even with half of the layers in float, or no layer can be quantised; no
            file is left then.
        OutputError: the file cannot be written.
    """
    artifact = read_artifact(source).require_fp32().require_logits()
    spec = artifact.spec
    for what, array in (("calibration", images), ("held-out", held_out)):
        if not len(array) or array.shape[1:] != spec.input_shape or array.dtype != np.float32:
            raise UsageError(
                f"{what} images of shape {array.shape} and type {array.dtype} do not fit {spec}",
                hint=f"give at least one, (N, {', '.join(map(str, spec.input_shape))}) float32",
            )
    threads = threads or machine.usable_cores()
    check_runtime(_JUDGES[engine], RuntimeOptions(threads=threads))
    limits = dataclasses.replace(
        LIMITS["int8"],
        iou=min_iou_worst,
        mean_iou=min_iou_mean,
        flipped_share=1.0,
        stray_share=LIMITS["int8"].flipped_share,
    )
    with written_whole(output) as temporary, temporary_folder() as folder:
        search = _Search(artifact, engine, images, held_out, folder, limits, threads, progress)
        network, model = search.calibrate()
        curve = {stage.calibration_images: stage.parity.mean_iou for stage in search.stages}
        if not search.stages[-1].has_margin:
            model = search.return_to_float(network)
        last = search.stages[-1]
        quantized = dataclasses.replace(
            artifact, versions={**artifact.versions, **versions_of(*TOOLS)}, precision="int8"
        )
        facts = {
            "engine": engine,
            "weight_bits": 7 if needs_narrow_weights() else 8,
            "calibration_images": last.calibration_images,
            "held_out_images": last.held_out_images,
            "mean_iou_by_calibration_images": curve,
            "float_layers": last.float_layers,
        }
        save_model(model, temporary, {**quantized.metadata(), _QUANTIZATION: json.dumps(facts)})
    return tuple(dataclasses.replace(s, parity=dataclasses.replace(s.parity, per_image=())) for s in search.stages)


@dataclass
class _Search:
    """Attempts to quantise a file; ``stages`` has those that were made."""

    artifact: Artifact
    engine: Engine
    images: FloatArray
    held_out: FloatArray
    folder: Path
    limits: ParityLimits
    threads: int
    progress: Progress
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Images may be sorted by subject: in this order, the first few are spread over all of them.
        self.images = self.images[sorted(range(len(self.images)), key=lambda index: f"{index:032b}"[::-1])]
        self._spec, self._trial = self.artifact.spec, self.folder / "trial.onnx"
        self._judged, self._names = self.held_out, [f"held-out image {i}" for i in range(len(self.held_out))]
        if 2 * len(self.held_out) <= _HELD_OUT_IMAGES:  # a mirror image is rounded differently
            self._judged = np.concatenate([self.held_out, self.held_out[..., ::-1]])
            self._names += [f"{name}, mirrored" for name in self._names]
        self._reference = self._infer(self.artifact.path, self._judged)
        again = self._infer(self.artifact.path, self.held_out[:1], threads=other_threads(self.threads))
        self._noise = largest_difference(self._reference[:1], again)

    def _infer(
        self,
        path: Path,
        images: FloatArray,
        *,
        runtime: str = _FASTEST_TO_OPEN,
        precision: Precision = "fp32",
        threads: int | None = None,
    ) -> FloatArray:
        options = RuntimeOptions(threads=threads or self.threads, precision=precision)
        return infer_all(
            open_runtime(runtime, path, spec=self._spec, options=options), images, self.artifact.batch_size
        )

    def _infer_int8(self, images: FloatArray) -> FloatArray:
        return self._infer(self._trial, images, runtime=_JUDGES[self.engine], precision="int8")

    def calibrate(self) -> tuple[_Network, ir.Model]:
        """Quantise all layers by more and more images, and return the network and file of the best attempt."""
        prepared = _prepare(self.artifact.path, self.engine, self.folder)
        if not prepared.layers:
            raise ExportError(
                f"{self.artifact.path} has no {' or '.join(_LAYERS[self.engine])} with fixed weights, the layers for "
                "8 bits",
                hint="use fp32, bf16 or fp16",
            )
        best: tuple[_Network, ir.Model] | None = None
        batch_size = self.artifact.batch_size or 1
        for network in _calibrated(prepared, self.images, batch_size, self.folder, self.threads, self.progress):
            attempt = network, self._attempt(network)
            parity = self.stages[-1].parity
            if best and parity.judged and parity.mean_iou <= self.stages[-2].parity.mean_iou:
                self.stages[-2:] = reversed(self.stages[-2:])
                return best
            best = attempt
        assert best  # there is at least one image
        return best

    def _has_margin(self, parity: Parity) -> bool:
        """Return whether masks are likely to meet the limits on other images too.

        That is, with a mean IoU two standard errors lower and a worst IoU one standard deviation lower. Among several
        attempts, the first one above a limit is often there by chance. An image and its mirror image, which are much
        alike, count as one.
        """
        limits = self.limits
        ious = [image.iou if image.real_flips > few_pixels(image.pixels) else 1.0 for image in parity.per_image]
        if len(ious) > 1:
            deviation = float(np.std(ious, ddof=1))
            limits = dataclasses.replace(
                limits,
                iou=limits.iou and limits.iou + deviation,
                mean_iou=limits.mean_iou and limits.mean_iou + 2 * deviation / math.sqrt(len(self.held_out)),
            )
        return not breaches(parity, limits)

    def return_to_float(self, network: _Network) -> ir.Model:
        """Quantise with more and more of the costliest layers in float, until the masks meet the limits by a margin.

        If none does, the best attempt that meets them without one is made again.
        """
        layers, start = len(network.layers), len(self.stages) - 1
        self.progress.say(f"ranking {layers} layers by how much 8 bits change the masks")
        ranking = self._ranked(network)
        for count in _float_counts(layers):
            model = self._attempt(network, ranking[:count])
            if self.stages[-1].has_margin:
                return model
        attempts = self.stages[start:]
        passed = [stage for stage in attempts if not breaches(stage.parity, self.limits)]
        best = max(passed or attempts, key=lambda stage: (stage.parity.worst_iou, stage.parity.mean_iou))
        if not passed:
            raise ExportError(
                f"8 bits change the masks too much: at best {'; '.join(breaches(best.parity, self.limits))}, "
                f"with {len(best.float_layers)} of {layers} layers in float; most in {', '.join(ranking[:_NAMED])}",
                hint="calibrate on more images like those to be segmented, or accept a lower IoU",
            )
        return self._attempt(network, best.float_layers)

    def _attempt(self, network: _Network, but: Sequence[str] = ()) -> ir.Model:
        model = network.quantized(but=but)
        save_model(model, self._trial, {PRECISION_KEY: "int8"})
        logits = self._infer_int8(self._judged)
        parity = compare_logits(self._reference, logits, self._spec, self._names, noise_band=self._noise)
        stage = Stage(
            tuple(but),
            network.int8_layers(model),
            parity,
            calibration_images=network.images,
            held_out_images=len(self.held_out),
            has_margin=self._has_margin(parity),
        )
        self.stages.append(stage)
        self.progress.say(_summary(self.stages, len(network.layers)))
        return model

    def _ranked(self, network: _Network) -> list[str]:
        """Return the layers, first the one whose rounding moves the masks most in the engine that judges them."""
        few = self.images[:_RANKING_IMAGES]
        expected = _probabilities(self._infer(self.artifact.path, few), self._spec)

        def cost(layer: str) -> float:
            save_model(network.quantized(only=layer), self._trial, {PRECISION_KEY: "int8"})
            try:
                got = _probabilities(self._infer_int8(few), self._spec)
            except ArtifactError:  # the engine computes this layer in float all the same
                return 0.0
            return float(np.abs(got - expected).mean())

        return sorted(network.layers, key=cost, reverse=True)


def _float_counts(layers: int) -> Iterator[int]:
    """Yield how many layers to keep in float: more by half in each attempt."""
    count, most = 1, int(layers * _MOST_FLOAT)
    while count < most:
        yield count
        count = max(count + 1, count * 3 // 2)
    if most:
        yield most


def _probabilities(logits: FloatArray, spec: ModelSpec) -> FloatArray:
    """Map logits to 0..1 around the threshold, so that changes far from it count little."""
    if not spec.exclusive:
        return np.asarray((1 + np.tanh((logits - spec.logit_threshold) / 2)) / 2, dtype=np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def _summary(stages: Sequence[Stage], layers: int) -> str:
    """Describe the last stage and the layers that it returned to float."""
    before = stages[-2].float_layers if len(stages) > 1 else ()
    stage = stages[-1]
    new = [name for name in stage.float_layers if name not in before]
    back = f", back to float: {', '.join(new)}" if new else ""
    judgement = f"mean IoU {stage.parity.mean_iou:.4f}, worst {stage.parity.worst_iou:.4f}"
    if not stage.parity.judged:
        judgement = f"masks not judged, as the float file's are blank in all {stage.held_out_images} held-out images"
    calibrated = f"calibrated on {stage.calibration_images} images"
    return f"{calibrated}, {stage.int8_layers} of {layers} layers in 8 bits: {judgement}{back}"


@dataclass(frozen=True)
class _Network:
    """The prepared float model and the ranges of its tensors, from which it is quantised repeatedly."""

    model: ir.Model
    engine: Engine
    layers: Mapping[str, tuple[str, ...]]  # name of weights -> names of the nodes that use them
    ranges: Mapping[str, _Range] = field(default_factory=dict)
    images: int = 0  # on which the ranges were measured

    def quantized(self, *, but: Iterable[str] = (), only: str | None = None) -> ir.Model:
        """Return the model in 8 bits, except for some layers or with only one layer in 8 bits."""
        import onnx_ir as ir
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import QuantType

        from segx.export.rewrites import add_in_float, copy_upsampling, pool_in_float, return_float

        for_tensorrt = self.engine == "tensorrt"
        chosen = [] if only is None else self._with_activation(self.layers[only])
        excluded = self._with_neighbours(node for layer in but for node in self.layers[layer])
        with _mapped_errors():
            quantizer = QDQQuantizer(
                ir.to_proto(self.model),
                per_channel=True,
                reduce_range=needs_narrow_weights(),
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, dict(self.ranges)),
                nodes_to_quantize=chosen,  # empty for all
                nodes_to_exclude=excluded,
                op_types_to_quantize=[*_LAYERS[self.engine], *_BETWEEN_LAYERS],
                extra_options=_TENSORRT_OPTIONS if for_tensorrt else {},
            )
            quantizer.quantize_model()
        model: ir.Model = ir.from_proto(quantizer.model.model)
        cut = {str(node.outputs[0].name) for node in self.model.graph if node.op_type in _ACTIVATIONS}
        return_float(model, cut)
        if self.engine == "openvino":
            add_in_float(model, cut)
            pool_in_float(model)
        if self.engine == "onnxruntime":
            copy_upsampling(model)
        return model

    def int8_layers(self, model: ir.Model) -> int:
        """Return how many layers of a quantised model take both image and weights in 8 bits."""

        def rounded(value: ir.Value | None) -> bool:
            producer = value.producer() if value is not None else None
            return producer is not None and producer.op_type == "DequantizeLinear"

        in_8_bits = {node.name for node in model.graph if all(map(rounded, node.inputs[:2]))}
        return sum(in_8_bits.issuperset(nodes) for nodes in self.layers.values())

    def _with_activation(self, names: Iterable[str]) -> list[str]:
        """Return nodes and the activations after them, which narrow the range of their output."""
        wanted = [node for node in self.model.graph if node.name in set(names)]
        after = [user for node in wanted for user in node.successors() if user.op_type in _ACTIVATIONS]
        return [str(node.name) for node in (*wanted, *after)]

    def _with_neighbours(self, names: Iterable[str]) -> list[str]:
        """Return nodes and everything between them and the next layers, which would round what they pass on."""
        wanted, layers = set(names), _LAYERS[self.engine]
        found = {node for node in self.model.graph if node.name in wanted}
        for direction in ("predecessors", "successors"):
            pending = [node for node in found if node.op_type in layers]
            while pending:
                neighbours: Sequence[ir.Node] = getattr(pending.pop(), direction)()
                near = [n for n in neighbours if n.op_type not in layers and n not in found]
                found.update(near)
                pending.extend(near)
        return sorted(str(node.name) for node in found)


def _prepare(source: Path, engine: Engine, folder: Path) -> _Network:
    """Fold constants and infer the types of tensors; the model lies in the folder as ``_PREPARED``."""
    import onnx_ir as ir
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from segx.export.rewrites import PART, fuse_upsampling

    prepared = folder / _PREPARED
    with _mapped_errors():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # fails on UNet++, and shapes are known without
        proto: onnx.ModelProto = load_model_with_shape_infer(prepared)
        for index, unnamed in enumerate(proto.graph.node):
            unnamed.name = unnamed.name or f"{unnamed.op_type}_{index}"  # layers are kept in float by name
        model = ir.from_proto(proto)
        if engine == "openvino":
            fuse_upsampling(model)
            ir.save(model, prepared)
            model = ir.from_proto(load_model_with_shape_infer(prepared))
    layers: dict[str, tuple[str, ...]] = {}
    for node in model.graph:
        if node.op_type in _LAYERS[engine] and (kernel := node.inputs[1]) is not None and kernel.is_initializer():
            name = str(kernel.name).partition(PART)[0].removeprefix("model.").removesuffix(".weight")
            layers[name] = (*layers.get(name, ()), str(node.name))
    return _Network(model, engine, layers)


def _calibrated(
    network: _Network, images: FloatArray, batch_size: int, folder: Path, threads: int, progress: Progress
) -> Iterator[_Network]:
    """Yield a prepared network with the ranges over the first images, over twice as many, and so on to all.

    Each counts as it is and with more contrast, as if it were overexposed.
    """
    import onnxruntime as ort
    from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

    input_name = str(network.model.graph.inputs[0].name)

    class BatchByBatch(CalibrationDataReader):  # type: ignore[misc]  # published without types
        def __init__(self, images: FloatArray) -> None:
            self._left = in_batches(images, batch_size)

        def get_next(self) -> dict[str, FloatArray] | None:
            return next(({input_name: batch} for batch in self._left), None)

    prepared, augmented = folder / _PREPARED, folder / "augmented.onnx"
    settings = ort.SessionOptions()  # the calibrator's own session would use every core of the host
    settings.intra_op_num_threads = threads
    # Fusion removes tensors whose range is needed.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    operators = [*_LAYERS[network.engine], *_BETWEEN_LAYERS]
    with _mapped_errors():
        calibrator = MinMaxCalibrater(prepared, operators, augmented_model_path=str(augmented))
        calibrator.augment_graph()
        calibrator.infer_session = ort.InferenceSession(str(augmented), settings, providers=["CPUExecutionProvider"])
    seen, (low, high) = 0, (ends((0, 2, 3), keepdims=True) for ends in (images.min, images.max))
    while seen < len(images):
        count = min(max(_FIRST_IMAGES, 2 * seen), len(images))
        progress.say(f"measuring the ranges of activations on {count} images")
        new = images[seen:count]
        overexposed = np.minimum(low + np.float32(_CONTRAST) * (new - low), high)
        with _mapped_errors():
            calibrator.collect_data(BatchByBatch(np.concatenate([new, overexposed])))  # adds to the ranges so far
            ranges = {name: data.range_value for name, data in calibrator.compute_data().items()}
        yield dataclasses.replace(network, ranges=_joined(ranges, network.model), images=count)
        seen = count


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    """Map the quantiser's errors for a graph that it cannot handle; the float file itself has run before."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ExportError(
            f"ONNX Runtime cannot quantise the file: {' '.join(str(error).split())[:200]}",
            hint="see the whole error with --debug; another version of onnxruntime may quantise it",
        ) from error


def _joined(ranges: Mapping[str, _Range], model: ir.Model) -> dict[str, _Range]:
    """Give concatenated tensors one range if theirs are near, so that concatenating them only copies bytes.

    The quantiser drops an activation, because the range of its output cuts off the same; so no other range may let
    more through.
    """
    group = {name: {name} for name in ranges}
    lows, highs = ({name: float(ends[side].item()) for name, ends in ranges.items()} for side in (0, 1))
    widths = {name: highs[name] - lows[name] for name in ranges}
    cut = {str(node.outputs[0].name): node.op_type for node in model.graph if node.op_type in _ACTIVATIONS}

    def merge(a: str, b: str) -> None:
        merged = group[a] | group[b]
        group.update(dict.fromkeys(merged, merged))

    def spread(names: Iterable[str]) -> float:
        of = [widths[name] for name in names]
        return max(of) / max(min(of), 1e-30)

    def cuts_the_same(names: Collection[str]) -> bool:
        low, high = min(lows[name] for name in names), max(highs[name] for name in names)
        cutting = [name for name in names if name in cut]
        return all(low >= min(lows[name], 0) and (cut[name] == "Relu" or high <= highs[name]) for name in cutting)

    nodes = [
        (node.op_type, [str(value.name) for value in node.inputs if value is not None], str(node.outputs[0].name))
        for node in model.graph
    ]
    for operator, inputs, output in nodes:
        if operator in _SAME_SCALE and {inputs[0], output} <= group.keys():
            merge(inputs[0], output)
    concats = [
        (inputs, output) for operator, inputs, output in nodes if operator == "Concat" and group.keys() >= {*inputs}
    ]
    pairs = [pair for inputs, _ in concats for pair in itertools.combinations(inputs, 2)]
    for a, b in sorted(pairs, key=spread):  # nearest first
        if spread(group[a] | group[b]) <= _NEAR and cuts_the_same(group[a] | group[b]):
            merge(a, b)
    for inputs, output in concats:
        if all(group[name] is group[inputs[0]] for name in inputs):
            merge(inputs[0], output)
    return {
        name: (np.minimum.reduce([ranges[n][0] for n in names]), np.maximum.reduce([ranges[n][1] for n in names]))
        for name, names in group.items()
    }


def needs_narrow_weights() -> bool:
    """Return True where weights must have 7 bits: x86 without VNNI adds two 8-bit products in 16 bits."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and not any("vnni" in flag for flag in machine.cpu_flags())
