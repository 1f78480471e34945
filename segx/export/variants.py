"""The file that a variant runs: the exported one, or one made of it for a precision or an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segx.export.artifact import read_artifact
from segx.export.fp16 import export_fp16
from segx.export.int8 import export_int8, int8_already
from segx.export.manifest import read_sidecar, write_sidecar
from segx.export.qdq import Engine
from segx.export.tuned import export_tuned
from segx.masks.agreement import LIMITS, compare_logits
from segx.masks.image_io import FloatArray, in_batches
from segx.model.scenes import model_inputs
from segx.model.spec import ModelSpec
from segx.results.types import Parity
from segx.runtimes import Precision, RuntimeOptions, Variant, runtime_info
from segx.system import machine
from segx.system.files import sha256_of

Form = Literal["checkpoint", "onnx", "openvino", "fp16", "int8-onnxruntime", "int8-openvino", "int8-tensorrt"]

# Forms in 8 bits -> whose they are.
_QUANTIZED: Mapping[Form, Engine] = {
    "int8-onnxruntime": "onnxruntime",
    "int8-openvino": "openvino",
    "int8-tensorrt": "tensorrt",
}
# Those that are the float32 file in another notation.
_REWRITTEN: tuple[Form, ...] = ("openvino", "fp16")
_TOOLS = ("segx", "onnx")

# 1: first version.
SCHEMA_VERSION = 1

# Other scenes than those that files are proven, calibrated or benched on.
_SEED, _IMAGES = 9, 8


@dataclass(frozen=True)
class Derived:
    """A file made of an exported one.

    Attributes:
        path: the file.
        float_layers: of a file in 8 bits, the layers that its masks need in float.
    """

    path: Path
    float_layers: tuple[str, ...] = ()


def form_of(variant: Variant) -> Form:
    """Which form a variant takes.

    Args:
        variant: one that its runtime's line in the table allows.
    """
    info = runtime_info(variant.runtime)
    if info.takes == "checkpoint":
        return "checkpoint"
    if variant.precision == "int8":
        return next(form for form, engine in _QUANTIZED.items() if engine == (info.engine or "onnxruntime"))
    if variant.precision == "fp16":
        return "fp16"
    return "openvino" if info.engine == "openvino" else "onnx"


def derive(
    source: Path,
    form: Form,
    *,
    output: Path | None = None,
    calibration: Path | None = None,
    min_iou: float | None = None,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Derived:
    """Make one form of an exported file, unless it is there and nothing changed.

    Args:
        source: a file of ``export_onnx`` that gives logits.
        form: which; ``onnx`` is the source itself.
        output: where to write; None means under ``artifacts/``, by the names of source and form.
        calibration: folder of images for 8 bits; None generates scenes.
        min_iou: lowest IoU with the float file's mask that 8 bits may leave any image, and the mean; None for the
            usual limits.
        threads: processors to use; None means all that are usable.
        tell: called with one line per step.

    Raises:
        ArtifactError, ExportError, RuntimeUnavailable, ImageError, OutputError: it cannot be made.
    """
    if form in _REWRITTEN:
        return Derived(_rewritten(source, form, output or default_form_output(source, form)))
    if form in _QUANTIZED:
        made = export_int8(
            source,
            engine=_QUANTIZED[form],
            calibration=calibration,
            output=output,
            min_iou_worst=LIMITS["int8"].iou if min_iou is None else min_iou,
            min_iou_mean=LIMITS["int8"].mean_iou if min_iou is None else min_iou,
            threads=threads,
            tell=tell,
        )
        return Derived(made.path, made.stages[-1].float_layers)
    return Derived(source)


def form_already(source: Path, form: Form) -> Derived | None:
    """The file of a form at its usual place, if it was made of that source by these tools; imports no framework."""
    if form in _QUANTIZED:
        made = int8_already(source, _QUANTIZED[form])
        return Derived(made.path, made.stages[-1].float_layers) if made else None
    path = default_form_output(source, form)
    values = read_sidecar(path, schema_version=SCHEMA_VERSION)
    return Derived(path) if values is not None and values["recipe"] == _recipe(source, form) else None


def default_form_output(source: Path, form: Form) -> Path:
    """``artifacts/NAME-FORM.onnx``; the exported file itself for its own form."""
    return source if form == "onnx" else Path("artifacts") / f"{source.stem}-{form}.onnx"


def _rewritten(source: Path, form: Form, path: Path) -> Path:
    recipe = _recipe(source, form)
    values = read_sidecar(path, schema_version=SCHEMA_VERSION)
    if values is not None and values["recipe"] == recipe:
        return path
    if form == "fp16":
        export_fp16(source, _scenes(read_artifact(source).spec), output=path)
    else:
        export_tuned(source, output=path)
    write_sidecar(path, schema_version=SCHEMA_VERSION, created=machine.now(), recipe=recipe)
    return path


def _recipe(source: Path, form: Form) -> dict[str, Any]:
    """Everything that decides what a rewritten file holds."""
    installed = machine.package_versions()
    versions = {name: installed[name] for name in _TOOLS if name in installed}
    return {"source_sha256": sha256_of(source), "form": form, "versions": versions}


def judged(source: Path, made: Path) -> Parity:
    """Compare a file in floating point with the exported one it was made of, both in ONNX Runtime on the CPU.

    Raises:
        ArtifactError, InferenceError, OutOfMemory: one of them cannot be run.
    """
    # Not by its name: the table offers no fp16 on the CPU, where it is slow, and right all the same.
    from segx.runtimes.onnxruntime import OnnxRuntimeCpu

    artifact = read_artifact(source)
    spec = artifact.spec
    images = _scenes(spec)

    def run(path: Path) -> FloatArray:
        precision: Precision = "fp16" if read_artifact(path).precision == "fp16" else "fp32"
        runtime = OnnxRuntimeCpu(path, spec, RuntimeOptions(threads=machine.usable_cores(), precision=precision))
        logits = np.concatenate([runtime.infer(batch) for batch in in_batches(images, artifact.batch_size or 1)])
        runtime.close()
        return logits[: len(images)]

    return compare_logits(run(source), run(made), spec, [f"sample_{index:05d}" for index in range(len(images))])


def _scenes(spec: ModelSpec) -> FloatArray:
    """(N, C, H, W) float32."""
    return np.stack([image for _, image in model_inputs(spec, _IMAGES, seed=_SEED)])
