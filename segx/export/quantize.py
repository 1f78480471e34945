"""Post-training quantisation: an exported file in 8 bits, but for the layers that its masks need in float.

ONNX Runtime's quantiser writes the file for OpenVINO too. NNCF's files of the shipped model were at most a twentieth
faster there than the plainest of this quantiser, and their masks several times farther from the float ones.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segx.errors import ArtifactError, ExportError, UsageError
from segx.export.artifact import Artifact, read_artifact
from segx.export.qdq import Engine, Network, prepare
from segx.masks.agreement import ParityLimits, breaches, compare_logits
from segx.masks.image_io import FloatArray, in_batches
from segx.model.spec import PRECISION_KEY, ModelSpec
from segx.results.types import Parity
from segx.runtimes import RuntimeOptions, check_runtime, open_runtime
from segx.runtimes.base import Precision
from segx.system import machine
from segx.system.files import written_whole

if TYPE_CHECKING:
    import onnx

_QUANTIZATION = "segx.quantization"
_TOOLS = ("segx", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino")

# With more layers in float than this the file is hardly faster than the float one.
_MOST_FLOAT = 0.5
_RANKING_IMAGES = 4

_QUICK_TO_OPEN = "onnxruntime-cpu"
# In which the masks of a file are judged; a file for TensorRT needs no GPU to be made.
_JUDGES: Mapping[Engine, str] = {
    "onnxruntime": "onnxruntime-cpu",
    "openvino": "openvino-cpu",
    "tensorrt": "onnxruntime-cpu",
}


@dataclass(frozen=True)
class Stage:
    """One attempt: a file with some layers in float, and what its masks are like.

    Attributes:
        float_layers: layers left in float, by the name of their weights, costliest first.
        int8_layers: how many layers are in 8 bits.
        parity: against the float file, on the held-out images.
    """

    float_layers: tuple[str, ...]
    int8_layers: int
    parity: Parity


@dataclass(frozen=True)
class Quantized:
    """What a quantisation gave.

    Attributes:
        path: the file.
        engine: for which it was made.
        stages: one per attempt; the last is the file.
    """

    path: Path
    engine: Engine
    stages: tuple[Stage, ...]

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Layers left in float, by the name of their weights; empty when all of them are in 8 bits."""
        return self.stages[-1].float_layers

    @property
    def parity(self) -> Parity:
        """The file against the float one, on the held-out images."""
        return self.stages[-1].parity


def quantize_onnx(
    source: Path | str,
    images: FloatArray,
    held_out: FloatArray,
    spec: ModelSpec,
    *,
    output: Path | str,
    engine: Engine = "onnxruntime",
    min_iou_worst: float = 0.98,
    min_iou_mean: float = 0.995,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Quantized:
    """Quantise an exported file to 8 bits (QDQ: 8-bit activations, 8-bit weights per channel), and judge its masks.

    Where they differ too much from those of the float file, the layers that cost most go back to float, more in each
    attempt, until the masks are as they should be.

    Args:
        source: a file of ``export_onnx`` that gives logits.
        images: (N, C, H, W) float32, preprocessed images to take the ranges of activations from; 50 or more that are
            like those to come.
        held_out: (M, C, H, W) float32, other images to judge the masks on.
        spec: the model's description.
        output: where to write.
        engine: for which the file is made, and in which its masks are judged (for TensorRT, in ONNX Runtime). The other
            ones can run it, but slower.
        min_iou_worst: lowest IoU with the float file's mask that any held-out image may have, 0 to 1.
        min_iou_mean: lowest mean of them, 0 to 1.
        threads: processors to use; None means all that are usable.
        tell: called with one line per step.

    Raises:
        ArtifactError: ``source`` is missing, foreign, quantised already, or gives no logits.
        UsageError: ``images`` or ``held_out`` are no images for this model.
        RuntimeUnavailable: the engine is missing.
        ExportError: the masks differ too much even with half of the layers in float; no file is left then.
        OutputError: the file cannot be written.
    """
    source, output = Path(source), Path(output)
    artifact = read_artifact(source)
    if artifact.output_kind != "logits":
        raise ArtifactError(
            f"{source} gives {artifact.output_kind}, not logits", hint="export with logits, and quantise that file"
        )
    if artifact.precision != "fp32":
        raise ArtifactError(
            f"{source} computes in {artifact.precision} already", hint="quantise the fp32 file that `segx export` wrote"
        )
    for what, array in (("calibration", images), ("held-out", held_out)):
        if not len(array) or array.shape[1:] != spec.input_shape or array.dtype != np.float32:
            raise UsageError(
                f"{what} images of shape {array.shape} and type {array.dtype} do not fit {spec}",
                hint=f"give at least one, (N, {', '.join(map(str, spec.input_shape))}) float32",
            )
    engines = _Engines(spec, threads or machine.usable_cores(), artifact.batch_size or 1)
    check_runtime(_JUDGES[engine], RuntimeOptions(threads=engines.threads))
    limits = ParityLimits(relative_diff=math.inf, flipped_share=1.0, iou=min_iou_worst, mean_iou=min_iou_mean)
    names = [f"held-out image {i}" for i in range(len(held_out))]
    with written_whole(output) as temporary, tempfile.TemporaryDirectory(prefix="segx-int8-") as folder:
        reference = engines.run(source, _QUICK_TO_OPEN, "fp32", held_out)
        tell(f"measuring the ranges of activations on {len(images)} images")
        network = prepare(source, in_batches(images, engines.batch_size), engine, Path(folder), engines.threads)

        def costliest_first() -> list[str]:
            tell(f"ranking {len(network.layers)} layers by what 8 bits cost the masks")
            return _costliest_first(network, source, images[:_RANKING_IMAGES], engines, Path(folder))

        stages: list[Stage] = []
        for float_layers in _attempts(len(network.layers), costliest_first):
            model = network.quantized(but=float_layers)
            _save(model, _metadata(artifact, engine, len(images), float_layers), temporary)
            logits = engines.run(temporary, _JUDGES[engine], "int8", held_out)
            stages.append(
                Stage(float_layers, network.int8_layers(model), compare_logits(reference, logits, spec, names))
            )
            tell(_in_words(stages, len(network.layers)))
            if not breaches(stages[-1].parity, limits):
                return Quantized(output, engine, tuple(stages))
        best = max(stages, key=lambda stage: (stage.parity.worst_iou, stage.parity.mean_iou))
        raise ExportError(
            f"8 bits cost the masks too much: at best {'; '.join(breaches(best.parity, limits))}, "
            f"with {len(best.float_layers)} of {len(network.layers)} layers in float",
            hint="calibrate on more images that are like those to come, or accept a lower IoU",
        )


@dataclass(frozen=True)
class _Engines:
    """Runs files on the CPU, one image at a time where they take one."""

    spec: ModelSpec
    threads: int
    batch_size: int

    def run(self, path: Path, runtime: str, precision: Precision, images: FloatArray) -> FloatArray:
        options = RuntimeOptions(threads=self.threads, precision=precision)
        opened = open_runtime(runtime, path, spec=self.spec, options=options)
        logits = np.concatenate([opened.infer(batch) for batch in in_batches(images, self.batch_size)])
        opened.close()
        return logits[: len(images)]


def _attempts(layers: int, costliest_first: Callable[[], Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Layers to leave in float: none, then groups that grow by half. The ranking takes long, and may not be needed."""
    yield ()
    ranking = costliest_first()
    count, most = 1, int(layers * _MOST_FLOAT)
    while count < most:
        yield tuple(ranking[:count])
        count = max(count + 1, count * 3 // 2)
    if most:
        yield tuple(ranking[:most])


def _costliest_first(network: Network, source: Path, images: FloatArray, engines: _Engines, folder: Path) -> list[str]:
    """Layers by how far the masks move when that layer alone is in 8 bits."""
    expected = _probabilities(engines.run(source, _QUICK_TO_OPEN, "fp32", images), engines.spec)
    trial = folder / "one_layer.onnx"

    def cost(layer: str) -> float:
        _save(network.quantized(only=layer), {PRECISION_KEY: "int8"}, trial)
        # Rounding is the same in every engine, and this one is opened fastest.
        got = engines.run(trial, _QUICK_TO_OPEN, "int8", images)
        return float(np.abs(_probabilities(got, engines.spec) - expected).mean())

    return sorted(network.layers, key=cost, reverse=True)


def _probabilities(logits: FloatArray, spec: ModelSpec) -> FloatArray:
    """Logits squeezed to 0..1 about the cut: far from it they may move as they like."""
    if spec.classes == 1:
        return np.asarray((1 + np.tanh((logits - spec.logit_threshold) / 2)) / 2, dtype=np.float32)
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True), dtype=np.float32)


def _in_words(stages: Sequence[Stage], layers: int) -> str:
    """The last stage, and what it put back to float."""
    before = stages[-2].float_layers if len(stages) > 1 else ()
    stage = stages[-1]
    back = f", back to float: {', '.join(stage.float_layers[len(before) :])}" if stage.float_layers else ""
    return (
        f"{stage.int8_layers} of {layers} layers in 8 bits: "
        f"mean IoU {stage.parity.mean_iou:.4f}, worst {stage.parity.worst_iou:.4f}{back}"
    )


def _metadata(artifact: Artifact, engine: Engine, images: int, float_layers: Sequence[str]) -> dict[str, str]:
    """What the file says of itself: the source's words, and what was done to it."""
    installed = machine.package_versions()
    versions = {**artifact.versions, **{name: installed[name] for name in _TOOLS if name in installed}}
    quantization = {"engine": engine, "calibration_images": images, "float_layers": list(float_layers)}
    return {
        **dataclasses.replace(artifact, versions=versions, created=machine.now(), precision="int8").metadata(),
        _QUANTIZATION: json.dumps(quantization),
    }


def _save(model: onnx.ModelProto, metadata: Mapping[str, str], path: Path) -> None:
    import onnx

    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
