"""Checkpoint -> ONNX file, put in place only with its proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segx.errors import ExportError, OutputError
from segx.export.artifact import Artifact, OutputKind
from segx.export.manifest import Manifest, fresh_manifest, write_manifest
from segx.export.verify import Proof, prove
from segx.model.checkpoint import checkpoint_digest, spec_in_checkpoint
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, open_runtime
from segx.system import machine
from segx.system.files import sha256_of, written_whole
from segx.system.silence import quiet

if TYPE_CHECKING:
    import torch

# Pinned, so that files do not move with torch's default; below 18 the exporter would convert down.
OPSET = 20
INPUT_NAME = "image"

_EXAMPLE_STEPS = (4, 6)

_TOOLS = ("segx", "torch", "segmentation-models-pytorch", "onnx", "onnxscript")


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Attributes:
        artifact: the file and what it says of itself.
        proof: what was checked before it was put in place.
        rebuilt: False where a file of the same recipe was there already.
    """

    artifact: Artifact
    proof: Proof
    rebuilt: bool


def default_output(checkpoint: Path, kind: OutputKind, *, dynamic_size: bool = False) -> Path:
    """``artifacts/NAME.onnx``; other outputs than logits carry their kind in the name, symbolic sizes ``dynamic``."""
    suffix = ("" if kind == "logits" else f"-{kind}") + ("-dynamic" if dynamic_size else "")
    return Path("artifacts") / f"{checkpoint.stem}{suffix}.onnx"


def export_onnx(
    checkpoint: Path | str,
    *,
    spec: ModelSpec | None = None,
    output: Path | str | None = None,
    output_kind: OutputKind = "logits",
    dynamic_size: bool = False,
    force: bool = False,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Export a trained model to one self-contained ONNX file with a symbolic batch axis.

    Nothing is done when the file exists and was made from the same weights, spec and tool versions.

    Args:
        checkpoint: trained weights; see ``load_model``.
        spec: the model's description; None takes what the checkpoint says of itself, else the defaults.
        output: where to write; None means ``artifacts/NAME.onnx``.
        output_kind: ``logits`` (N, K, H, W) float32; ``probabilities`` the same after sigmoid (softmax for several
            classes); ``mask`` (N, H, W) uint8.
        dynamic_size: make height and width symbolic too, in multiples of what the model divides images by; it is proven
            at the spec's size and at another.
        force: export again although nothing changed.
        threads: processors to use for the proof; None means all that are usable.
        tell: called with one line per step.

    Raises:
        CheckpointError: the weights cannot be read or do not fit.
        ExportError: the exporter failed, or the proof did; no file is left then.
        OutputError: the file cannot be written.
    """
    checkpoint = Path(checkpoint)
    spec = spec or spec_in_checkpoint(checkpoint) or ModelSpec()
    path = Path(output) if output else default_output(checkpoint, output_kind, dynamic_size=dynamic_size)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder", hint="give the name of a file, as model.onnx")
    digest, versions = checkpoint_digest(checkpoint), _tool_versions()
    recipe = _recipe(digest, spec, output_kind, dynamic_size=dynamic_size)
    artifact = Artifact(
        path=path,
        spec=spec,
        output_kind=output_kind,
        checkpoint=checkpoint.name,
        weights_sha256=digest,
        versions=versions,
        created=machine.now(),
    )
    if not force and (manifest := fresh_manifest(path, recipe)):
        artifact = dataclasses.replace(artifact, created=manifest.created, size_multiple=manifest.proof.size_multiple)
        return Exported(artifact, manifest.proof, rebuilt=False)
    tell("loading PyTorch and the checkpoint")
    module = _load_with_output(checkpoint, spec, output_kind)
    if dynamic_size:
        artifact = dataclasses.replace(artifact, size_multiple=_size_multiple(module))
    with written_whole(path) as temporary:
        tell("exporting to ONNX")
        _write_onnx(module, artifact, temporary)
        tell("proving the file against PyTorch")
        options = RuntimeOptions(threads=threads or machine.usable_cores())
        proof = prove(
            temporary,
            artifact,
            reference=lambda images: _run(module, images),
            open_exported=lambda: open_runtime("onnxruntime-cpu", temporary, spec=spec, options=options),
        )
        sha256 = sha256_of(temporary)
    write_manifest(path, Manifest(recipe, sha256, artifact.created, proof))
    return Exported(artifact, proof, rebuilt=True)


def exported_already(checkpoint: Path, weights_sha256: str, spec: ModelSpec) -> Path | None:
    """The exported file of a checkpoint's logits, if ``export_onnx`` would find it up to date; imports no PyTorch."""
    path = default_output(checkpoint, "logits")
    return path if fresh_manifest(path, _recipe(weights_sha256, spec, "logits", dynamic_size=False)) else None


def _tool_versions() -> dict[str, str]:
    installed = machine.package_versions()
    return {name: installed[name] for name in _TOOLS if name in installed}


def _recipe(weights_sha256: str, spec: ModelSpec, kind: OutputKind, *, dynamic_size: bool) -> dict[str, Any]:
    """Everything that decides what the file holds."""
    return {
        "weights_sha256": weights_sha256,
        "spec": spec.to_json(),
        "output_kind": kind,
        "dynamic_size": dynamic_size,
        "opset": OPSET,
        "versions": _tool_versions(),
    }


def _load_with_output(checkpoint: Path, spec: ModelSpec, kind: OutputKind) -> torch.nn.Module:
    """The model with its logits turned into what the file shall give."""
    import torch

    from segx.model.smp import load_model

    class WithOutput(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(image)
            if kind == "logits":
                return logits
            if kind == "probabilities":
                return torch.sigmoid(logits) if spec.classes == 1 else torch.softmax(logits, dim=1)
            if spec.classes == 1:
                return (logits[:, 0] >= spec.logit_threshold).to(torch.uint8)
            return logits.argmax(dim=1).to(torch.uint8)

    return WithOutput(load_model(checkpoint, spec)).eval()


def _size_multiple(module: torch.nn.Module) -> int:
    """By what height and width of an image must be divisible, as the model's encoder says."""
    encoder: Any = module.get_submodule("model.encoder")
    return int(encoder.output_stride)


def _run(module: torch.nn.Module, images: Any) -> Any:
    import torch

    with torch.inference_mode():
        return module(torch.from_numpy(images)).numpy()


def _write_onnx(module: torch.nn.Module, artifact: Artifact, path: Path) -> None:
    import onnx
    import torch

    from segx.runtimes.precision import as_at_start

    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    channels, height, width = artifact.spec.input_shape
    if (multiple := artifact.size_multiple) is not None:
        axes |= {axis: multiple * torch.export.Dim(name, min=1) for axis, name in ((2, "rows"), (3, "columns"))}
        # Where the smallest feature map has a side of 1, or two equal ones, torch takes that for a constant.
        height, width = (multiple * steps for steps in _EXAMPLE_STEPS)
    # Two images: with one, some versions of torch take the batch for a constant (pytorch/pytorch#133653).
    example = torch.zeros(2, channels, height, width)
    try:
        with quiet(), as_at_start():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                optimize=True,
                verbose=False,
                dynamic_shapes=(axes,),
                input_names=[INPUT_NAME],
                output_names=[artifact.output_kind],
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise ExportError(
            f"torch.onnx cannot export {artifact.spec.arch}{' with symbolic sizes' if artifact.size_multiple else ''}: "
            f"{' '.join(str(error).split())[:200]}",
            hint="see the whole error with --debug; another version of torch may export it",
        ) from error
    assert program is not None  # dynamo=True always gives a program
    if artifact.size_multiple is not None:
        _fold_what_is_left(program.model)
    model = program.model_proto
    for key, value in artifact.metadata().items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)


def _fold_what_is_left(model: Any) -> None:
    """Fold batch normalisations that the exporter left since the size of their input is asked for too.

    Args:
        model: an ``onnx_ir.Model``.
    """
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules.common import fuse_batchnorm_into_conv_rule

    for node in list(model.graph):
        if node.op_type != "BatchNormalization":
            continue
        for use in list(node.inputs[0].uses()):
            if use.node.op_type == "Shape":  # what comes out has the same
                use.node.replace_input_with(use.idx, node.outputs[0])
    model.graph.sort()
    RewriteRuleSet([fuse_batchnorm_into_conv_rule]).apply_to_model(model)
