"""Export of a checkpoint to ONNX; the file is put in place only after verification against PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from segx.errors import ExportError, InferenceError, UsageError, first_line, lacks_memory
from segx.export.artifact import (
    ARTIFACTS,
    Artifact,
    OutputKind,
    Proof,
    content_key,
    read_artifact,
    versions_of,
    why_no_export,
)
from segx.export.verify import verify_export
from segx.model.checkpoint import checkpoint_digest, model_spec
from segx.model.spec import ModelSpec
from segx.system import machine
from segx.system.derived import cached, read_manifest
from segx.system.files import named_path
from segx.system.progress import SILENT, Progress
from segx.system.silence import quiet

if TYPE_CHECKING:
    import torch

# Pinned, so that files do not change with torch's default; below 18 the exporter would convert down.
OPSET = 20
INPUT_NAME = "image"

# Multiples of the stride. torch takes a feature map's side of 1, or two equal sides, for constants, and PAN pools the
# last feature map to an eighth.
_EXAMPLE_STEPS = (16, 24)

_TOOLS = ("segx", "torch", "segmentation-models-pytorch", "onnx", "onnxscript")


@dataclass(frozen=True)
class Exported:
    """Result of ``export_onnx``; ``rebuilt`` is False if an up-to-date file existed."""

    artifact: Artifact
    proof: Proof
    rebuilt: bool


def default_output(
    checkpoint: Path, weights_sha256: str, spec: ModelSpec, kind: OutputKind = "logits", *, dynamic_size: bool = False
) -> Path:
    """Return ``artifacts/NAME-WIDTHxHEIGHT-KEY.onnx``; the key differs for other weights and other specs.

    The name also has the kind of other outputs than logits, and ``dynamic``.
    """
    key = content_key(weights_sha256, spec.to_json())
    suffix = ("" if kind == "logits" else f"-{kind}") + ("-dynamic" if dynamic_size else "")
    return ARTIFACTS / f"{checkpoint.resolve().stem}-{spec.width}x{spec.height}-{key}{suffix}.onnx"


def export_onnx(
    checkpoint: Path | str,
    *,
    spec: ModelSpec | None = None,
    output: Path | str | None = None,
    output_kind: OutputKind = "logits",
    dynamic_size: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Exported:
    """Export a trained model to one self-contained ONNX file with a symbolic batch axis.

    Returns the existing file if it was made from the same weights, spec and tool versions, unless forced. The default
    spec is the checkpoint's own or ``ModelSpec()``, the default output that of ``default_output``. Its outputs are
    ``logits`` (N, K, H, W) float32, ``probabilities`` (the same after sigmoid, or softmax for several classes) or
    ``mask`` (N, H, W) uint8. ``dynamic_size`` makes height and width symbolic too, in multiples of the encoder's
    output stride; the file is then verified at a second size.

    Raises:
        UsageError: the kind of output is unknown.
        CheckpointError: the weights cannot be read or do not fit.
        ExportError: the exporter or the verification failed; no file is left then.
        OutputError: the file cannot be written, or segx did not write the file in its place.
    """
    checkpoint = Path(checkpoint)
    if output_kind not in get_args(OutputKind):
        raise UsageError(f"output_kind {output_kind!r} is not known", hint=f"give {', '.join(get_args(OutputKind))}")
    spec = spec or model_spec(checkpoint)
    digest = checkpoint_digest(checkpoint)
    default = default_output(checkpoint, digest, spec, output_kind, dynamic_size=dynamic_size)
    path = default if output is None else named_path(output)

    def make(temporary: Path) -> Proof:
        progress.say("loading PyTorch and the checkpoint")
        module = _load_with_output(checkpoint, spec, output_kind)
        encoder: Any = module.get_submodule("model.encoder")
        artifact = Artifact(
            path=temporary,
            spec=spec,
            output_kind=output_kind,
            checkpoint=checkpoint.name,
            weights_sha256=digest,
            versions=versions_of(*_TOOLS),
            size_multiple=int(encoder.output_stride) if dynamic_size else None,
        )
        progress.say("exporting to ONNX")
        try:
            _write_onnx(module, artifact)
            progress.say("verifying the file against PyTorch")
            cores = threads or machine.usable_cores()
            return verify_export(artifact, lambda images: _run(module, images), threads=cores)
        except (ExportError, InferenceError) as error:
            if not dynamic_size or lacks_memory(error):
                raise
            raise ExportError(
                f"{spec.arch} does not export with symbolic sizes: {error.message}", hint="leave --dynamic-size out"
            ) from error

    recipe = _recipe(digest, spec, output_kind, dynamic_size=dynamic_size)
    manifest, rebuilt = cached(
        path, recipe, make, source=checkpoint, proof=Proof, why_foreign=why_no_export, force=force
    )
    return Exported(read_artifact(path), manifest.proof, rebuilt)


def existing_export(checkpoint: Path, weights_sha256: str, spec: ModelSpec) -> Path | None:
    """Return the exported logits of a checkpoint if ``export_onnx`` would find them up to date; imports no torch."""
    path = default_output(checkpoint, weights_sha256, spec)
    manifest = read_manifest(path, Proof)
    recipe = _recipe(weights_sha256, spec, "logits", dynamic_size=False)
    return path if manifest and manifest.recipe == recipe else None


def _recipe(weights_sha256: str, spec: ModelSpec, kind: OutputKind, *, dynamic_size: bool) -> dict[str, Any]:
    return {
        "weights_sha256": weights_sha256,
        "spec": spec.to_json(),
        "output_kind": kind,
        "dynamic_size": dynamic_size,
        "opset": OPSET,
        "versions": versions_of(*_TOOLS),
    }


def _load_with_output(checkpoint: Path, spec: ModelSpec, kind: OutputKind) -> torch.nn.Module:
    """Return the model with its logits turned into the output of the file."""
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
                return torch.softmax(logits, dim=1) if spec.exclusive else torch.sigmoid(logits)
            if spec.exclusive:
                return logits.argmax(dim=1).to(torch.uint8)
            masks = (logits >= spec.logit_threshold).to(torch.uint8)
            return masks if spec.multilabel else masks[:, 0]

    return WithOutput(load_model(checkpoint, spec)).eval()


def _run(module: torch.nn.Module, images: Any) -> Any:
    import torch

    with torch.inference_mode():
        return module(torch.from_numpy(images)).numpy()


def _write_onnx(module: torch.nn.Module, artifact: Artifact) -> None:
    import onnx
    import torch

    from segx.runtimes.pytorch import default_fp32_precision

    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    channels, height, width = artifact.spec.input_shape
    if (multiple := artifact.size_multiple) is not None:
        axes |= {axis: multiple * torch.export.Dim(name, min=1) for axis, name in ((2, "rows"), (3, "columns"))}
        height, width = (multiple * steps for steps in _EXAMPLE_STEPS)
    # Two images: with one, some versions of torch make the batch constant (pytorch/pytorch#133653).
    example = torch.zeros(2, channels, height, width)
    try:
        with quiet(), default_fp32_precision():
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
            f"torch.onnx cannot export {artifact.spec.arch}: {first_line(error.__cause__ or error)}",
            hint="see the full error with --debug; another version of torch may export it",
        ) from error
    assert program is not None  # dynamo=True always returns a program
    if artifact.size_multiple is not None:
        _fold_batch_norms(program.model)
    model = program.model_proto
    for key, value in artifact.metadata().items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, artifact.path)


def _fold_batch_norms(model: Any) -> None:
    """Fold batch normalisations that the exporter left because the size of their input is used too."""
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules.common import fuse_batchnorm_into_conv_rule

    for node in list(model.graph):
        if node.op_type != "BatchNormalization":
            continue
        for use in list(node.inputs[0].uses()):
            if use.node.op_type == "Shape":  # the output has the same shape
                use.node.replace_input_with(use.idx, node.outputs[0])
    model.graph.sort()
    RewriteRuleSet([fuse_batchnorm_into_conv_rule]).apply_to_model(model)
