"""Proof that an exported file is the model: structure by the ONNX checker, numbers by ONNX Runtime against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from segx.errors import ExportError
from segx.export.artifact import Artifact, OutputKind
from segx.masks.agreement import LIMITS, breaches, compare_logits, compare_masks
from segx.masks.image_io import FloatArray
from segx.model.scenes import model_inputs
from segx.model.spec import ModelSpec
from segx.results.types import Parity
from segx.runtimes.base import Runtime

if TYPE_CHECKING:
    import onnx

BATCH_SIZES = (1, 2, 3, 16)
_SEED = 3

_BATCH_NORM = "BatchNormalization"
_REPORT_HINT = "report it with the model's arguments and the versions that `segx doctor` prints"


@dataclass(frozen=True)
class ProofRow:
    """One batch size and image size of the proof; height and width in pixels."""

    batch_size: int
    height: int
    width: int
    parity: Parity


@dataclass(frozen=True)
class Proof:
    """What was checked before the file was put in place.

    Attributes:
        opset: ONNX operator set of the file.
        nodes: operators in the graph.
        batch_axis: name of the symbolic batch axis.
        size_multiple: see ``Artifact``.
        rows: ONNX Runtime on the CPU against PyTorch, one per batch size.
    """

    opset: int
    nodes: int
    batch_axis: str
    size_multiple: int | None
    rows: tuple[ProofRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest, without the figures of single images."""
        summary = replace(self, rows=tuple(replace(row, parity=replace(row.parity, per_image=())) for row in self.rows))
        return asdict(summary)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Proof:
        """Inverse of ``to_dict``."""
        return msgspec.convert(values, cls)


def prove(
    path: Path,
    artifact: Artifact,
    *,
    reference: Callable[[FloatArray], npt.NDArray[Any]],
    open_exported: Callable[[], Runtime],
) -> Proof:
    """Check an exported file.

    Args:
        path: the file.
        artifact: what it should be.
        reference: PyTorch's output of that kind for a batch (N, C, H, W) float32.
        open_exported: loads the file into ONNX Runtime on the CPU.

    Raises:
        ExportError: any check failed; the message says which and by how much.
    """
    opset, nodes, batch_axis = _check_structure(path)
    exported = open_exported()
    rows = []
    for spec, sizes in _cases(artifact):
        images = np.stack([image for _, image in model_inputs(spec, max(sizes), seed=_SEED)])
        names = [f"sample_{i:05d}" for i in range(len(images))]
        expected = reference(images)
        for size in sizes:
            got = exported.infer(images[:size])
            parity = _compare(expected[:size], got, spec, artifact.output_kind, names[:size])
            rows.append(ProofRow(size, spec.height, spec.width, parity))
    exported.close()
    for row in rows:
        if broken := breaches(row.parity, LIMITS["fp32"]):
            raise ExportError(
                f"the exported model differs from PyTorch at batch {row.batch_size}, {row.width}x{row.height} pixels: "
                f"{'; '.join(broken)}",
                hint=_REPORT_HINT,
            )
    return Proof(opset, nodes, batch_axis, artifact.size_multiple, tuple(rows))


def _cases(artifact: Artifact) -> list[tuple[ModelSpec, tuple[int, ...]]]:
    """Sizes of images and of batches; of symbolic sizes a second one, of another shape."""
    cases: list[tuple[ModelSpec, tuple[int, ...]]] = [(artifact.spec, BATCH_SIZES)]
    if (step := artifact.size_multiple) is not None:
        spec = artifact.spec
        cases.append((replace(spec, height=spec.height + step, width=spec.width + 3 * step), BATCH_SIZES[:2]))
    return cases


def _compare(
    expected: npt.NDArray[Any], got: npt.NDArray[Any], spec: ModelSpec, kind: OutputKind, names: list[str]
) -> Parity:
    if expected.shape != got.shape:
        raise ExportError(
            f"the exported model gives {got.shape} where PyTorch gives {expected.shape}", hint=_REPORT_HINT
        )
    if kind == "logits":
        return compare_logits(expected, got, spec, names)
    if kind == "mask":
        return compare_masks(expected, got, spec, names)
    # Probabilities as logits whose cut lies at the threshold, so that one comparison serves both.
    shift = np.float32(spec.threshold - spec.logit_threshold) if spec.classes == 1 else np.float32(0)
    return compare_logits(expected - shift, got - shift, spec, names)


def _check_structure(path: Path) -> tuple[int, int, str]:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX checker refuses the file: {error}", hint=_REPORT_HINT) from error
    model = onnx.load(path)
    if remaining := sum(node.op_type == _BATCH_NORM for node in model.graph.node):
        raise ExportError(f"{remaining} batch normalisations were not folded", hint=_REPORT_HINT)
    axes = {_batch_axis(value) for value in (*model.graph.input, *model.graph.output)}
    if len(axes) != 1 or "" in axes:
        raise ExportError("the batch axis is not symbolic on input and output", hint=_REPORT_HINT)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return opset, len(model.graph.node), axes.pop()


def _batch_axis(value: onnx.ValueInfoProto) -> str:
    name: str = value.type.tensor_type.shape.dim[0].dim_param
    return name
