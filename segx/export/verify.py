"""Verification of exported files: structure by the ONNX checker, numbers against PyTorch or the file they came from."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segx.errors import ArtifactError, ExportError
from segx.export.artifact import (
    REPORT_HINT,
    Artifact,
    OutputKind,
    Proof,
    ProofRow,
    check_onnx,
    load_onnx,
    read_artifact,
)
from segx.masks.agreement import LIMITS, breaches, compare_logits, compare_masks, largest_difference, other_threads
from segx.masks.preprocess import FloatArray, in_batches, model_inputs
from segx.model.spec import ModelSpec
from segx.results.types import Parity
from segx.runtimes import Precision, RuntimeOptions, open_runtime
from segx.runtimes.base import Runtime
from segx.system import machine

if TYPE_CHECKING:
    import onnx

# Not that of the exporter's example.
BATCH_SIZES = (1, 4)
# Other scenes than those that int8 files are calibrated on or a bench runs on.
_PROOF_SEED, _COMPARISON_SEED = 3, 9
_COMPARED_IMAGES = 8

_FOLD_INTO = ("Conv", "ConvTranspose", "Gemm")
_ONLY_FATAL = 4  # ONNX Runtime's errors arrive as exceptions


def sample_images(spec: ModelSpec, count: int, *, seed: int) -> FloatArray:
    """Return generated scenes, preprocessed for a model: (N, C, H, W) float32."""
    return np.stack([image for _, image in model_inputs(spec, count, seed=seed)])


def comparison_images(spec: ModelSpec) -> FloatArray:
    """Return the scenes on which derived files are tried and compared, (N, C, H, W) float32."""
    return sample_images(spec, _COMPARED_IMAGES, seed=_COMPARISON_SEED)


def infer_all(runtime: Runtime, images: FloatArray, batch_size: int | None) -> FloatArray:
    """Return the outputs for all images, in batches of one or of the size that a file takes; closes the runtime."""
    outputs = np.concatenate([runtime.infer(batch) for batch in in_batches(images, batch_size or 1)])
    runtime.close()
    return outputs[: len(images)]


class TrialRun:
    """A model in memory in ONNX Runtime on the CPU, without graph optimisation; ``path`` is for error messages.

    Raises:
        ArtifactError: ONNX Runtime cannot load the model.
    """

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = machine.usable_cores()
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.log_severity_level = _ONLY_FATAL
        self._path = path
        with self._errors("load", "", "export it again with operators and an opset, such as 17, that ONNX Runtime has"):
            self._session = ort.InferenceSession(
                model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
        (self._input,) = self._session.get_inputs()

    @property
    def batch_size(self) -> int | None:
        """The only number of images that the model takes; None if it does not say."""
        size = self._input.shape[0]
        return size if isinstance(size, int) else None

    def run(self, outputs: Sequence[str], images: FloatArray, *, hint: str) -> list[npt.NDArray[Any]]:
        """Return the named outputs for one batch.

        Raises:
            ArtifactError: ONNX Runtime cannot run it.
        """
        with self._errors("run", f" on {images.shape}", hint):
            results: list[npt.NDArray[Any]] = self._session.run(outputs, {self._input.name: images})
        return results

    @contextlib.contextmanager
    def _errors(self, task: str, data: str, hint: str) -> Iterator[None]:
        from segx.runtimes.onnxruntime import ENGINE_ERRORS, reason_of

        kinds: tuple[type[Exception], ...] = (*ENGINE_ERRORS, ValueError)
        try:
            yield
        except kinds as error:
            raise ArtifactError(
                f"ONNX Runtime cannot {task} {self._path}{data}: {reason_of(error)}", hint=hint
            ) from error


def run_on_cpu(
    model: onnx.ModelProto, outputs: Sequence[str], images: FloatArray, path: Path, *, hint: str
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the named outputs for each batch of images, from ONNX Runtime without graph optimisation.

    Batches have one image or the size that the model takes. ``path`` is for the error message.

    Raises:
        ArtifactError: ONNX Runtime cannot run the model.
    """
    trial = TrialRun(model, path)
    for batch in in_batches(images, trial.batch_size or 1):
        yield dict(zip(outputs, trial.run(outputs, batch, hint=hint), strict=True))


def verify_export(artifact: Artifact, reference: Callable[[FloatArray], npt.NDArray[Any]], *, threads: int) -> Proof:
    """Verify that a file holds what the artifact says: its graph, and its output against PyTorch's (``reference``).

    Raises:
        ExportError: a check failed; the message says which one and by how much.
    """
    opset, nodes, batch_axis = _check_structure(artifact.path)
    cases = [artifact.spec]
    if (step := artifact.size_multiple) is not None:  # also at a second size, which is not square
        height, width = artifact.spec.height + step, artifact.spec.width + 3 * step
        cases.append(replace(artifact.spec, height=height, width=width))
    options = RuntimeOptions(threads=threads)
    rows = []
    with contextlib.closing(
        open_runtime("onnxruntime-cpu", artifact.path, spec=artifact.spec, options=options)
    ) as exported:
        for spec in cases:
            images = sample_images(spec, max(BATCH_SIZES), seed=_PROOF_SEED)
            expected = reference(images)
            noise = largest_difference(expected[:1], reference(images[:1]))
            for size in BATCH_SIZES:
                got = exported.infer(images[:size])
                parity = _compare(expected[:size], got, spec, artifact.output_kind, noise)
                if broken := breaches(parity, LIMITS["fp32"]):
                    raise ExportError(
                        f"the exported model differs from PyTorch at batch {size}, {spec.width}x{spec.height} pixels: "
                        f"{'; '.join(broken)}",
                        hint=REPORT_HINT,
                    )
                rows.append(ProofRow(size, spec.height, spec.width, replace(parity, per_image=())))
    return Proof(opset, nodes, batch_axis, artifact.size_multiple, tuple(rows))


def compare_files(source: Path, derived: Path) -> Parity:
    """Compare a floating-point file with the exported file it was derived from, in ONNX Runtime on the CPU.

    Raises:
        ArtifactError, InferenceError, OutOfMemory: one of them cannot be run.
    """
    # The class, not open_runtime: fp16 is not offered on the CPU because it is slow, but it is correct there.
    from segx.runtimes.onnxruntime import OnnxRuntimeCpu

    artifact = read_artifact(source)
    spec = artifact.spec
    images = comparison_images(spec)

    def run(path: Path, images: FloatArray, threads: int) -> FloatArray:
        precision: Precision = "fp16" if read_artifact(path).precision == "fp16" else "fp32"
        options = RuntimeOptions(threads=threads, precision=precision)
        return infer_all(OnnxRuntimeCpu(path, spec, options), images, artifact.batch_size)

    threads = machine.usable_cores()
    expected, got = run(source, images, threads), run(derived, images, threads)
    noise = largest_difference(expected[:1], run(source, images[:1], other_threads(threads)))
    return compare_logits(expected, got, spec, _names(images), noise_band=noise)


def _compare(
    expected: npt.NDArray[Any], got: npt.NDArray[Any], spec: ModelSpec, kind: OutputKind, noise_band: float
) -> Parity:
    if expected.shape != got.shape:
        raise ExportError(
            f"the exported model returns {got.shape} where PyTorch returns {expected.shape}", hint=REPORT_HINT
        )
    names = _names(expected)
    if kind == "mask":
        return compare_masks(expected, got, spec, names)
    if kind == "probabilities" and not spec.exclusive:
        # Shifted so that the threshold on probabilities falls where the threshold on logits is.
        shift = np.float32(spec.threshold - spec.logit_threshold)
        expected, got = expected - shift, got - shift
    return compare_logits(expected, got, spec, names, noise_band=noise_band)


def _names(images: npt.NDArray[Any]) -> list[str]:
    return [f"sample_{i:05d}" for i in range(len(images))]


def _check_structure(path: Path) -> tuple[int, int, str]:
    check_onnx(str(path), "the ONNX checker rejects the file")
    model = load_onnx(path)
    if remaining := _unfolded(model.graph):
        raise ExportError(f"{remaining} batch normalisations were not folded", hint=REPORT_HINT)
    axes = {value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)}
    if len(axes) != 1 or "" in axes:
        raise ExportError("the batch axis is not symbolic on input and output", hint=REPORT_HINT)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return opset, len(model.graph.node), axes.pop()


def _unfolded(graph: onnx.GraphProto) -> int:
    """Count the batch normalisations that could be part of the weights before them.

    Those of DenseNet and other encoders follow a concatenation or an addition, or share a convolution's result.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    weights = {tensor.name for tensor in graph.initializer if uses[tensor.name] == 1}
    norms = [node.input[0] for node in graph.node if node.op_type == "BatchNormalization"]
    return sum(
        name in made_by
        and uses[name] == 1
        and made_by[name].op_type in _FOLD_INTO
        and weights.issuperset(made_by[name].input[1:])
        for name in norms
    )
