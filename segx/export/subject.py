"""What is benched: a trained model, as the checkpoint and the exported file of the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segx.errors import ArtifactError, UsageError
from segx.export import Artifact, read_artifact
from segx.export.variants import Derived, Form, form_of
from segx.model.checkpoint import checkpoint_digest, spec_in_checkpoint
from segx.model.spec import ModelSpec
from segx.results.types import ModelFacts, Work
from segx.runtimes import Variant
from segx.system.files import sha256_of


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model in every form that runtimes take.

    Attributes:
        spec: its description.
        weights_sha256: digest of the weights it comes from.
        checkpoint: trained weights; None where only an exported file was given.
        onnx: the exported file; None where it does not exist yet.
        derived: files made of that, by form.
        batch_size: the one number of images that the exported file takes; None where it takes any.
        work: what it has to compute and to move; None where it was not counted.
    """

    spec: ModelSpec
    weights_sha256: str
    checkpoint: Path | None = None
    onnx: Path | None = None
    derived: Mapping[Form, Derived] = field(default_factory=dict)
    batch_size: int | None = None
    work: Work | None = None

    def file_for(self, variant: Variant) -> Path | None:
        """The file that a variant takes."""
        form = form_of(variant)
        if form == "checkpoint":
            return self.checkpoint
        if form == "onnx":
            return self.onnx
        return self.derived[form].path if form in self.derived else None

    def facts(self) -> ModelFacts:
        """What the results say of it."""
        return ModelFacts(
            spec=self.spec,
            weights_sha256=self.weights_sha256,
            checkpoint=self.checkpoint.name if self.checkpoint else None,
            onnx=self.onnx.name if self.onnx else None,
            onnx_sha256=sha256_of(self.onnx) if self.onnx else None,
            derived={made.path.name: sha256_of(made.path) for made in self.derived.values()},
            float_layers={made.path.name: made.float_layers for made in self.derived.values() if made.float_layers},
            work=self.work,
        )


def resolve_subject(checkpoint: Path | None, onnx: Path | None, spec: ModelSpec | None) -> Subject:
    """Put together what the user gave; nothing is exported here.

    Raises:
        UsageError: neither file was given.
        CheckpointError: the checkpoint is missing or broken.
        ArtifactError: the exported file is missing, foreign, of other weights or spec, or gives no logits.
    """
    digest = checkpoint_digest(checkpoint) if checkpoint else None
    if onnx:
        artifact = read_artifact(onnx)
        _check_fit(artifact, digest, spec)
        return Subject(
            spec=spec or artifact.spec,
            weights_sha256=artifact.weights_sha256,
            checkpoint=checkpoint,
            onnx=onnx,
            batch_size=artifact.batch_size,
        )
    if checkpoint is None or digest is None:
        raise UsageError("nothing to bench", hint="give a checkpoint or an exported model")
    return Subject(
        spec=spec or spec_in_checkpoint(checkpoint) or ModelSpec(), weights_sha256=digest, checkpoint=checkpoint
    )


def _check_fit(artifact: Artifact, weights_sha256: str | None, spec: ModelSpec | None) -> None:
    if artifact.output_kind != "logits":
        raise ArtifactError(
            f"{artifact.path} gives {artifact.output_kind}, and runtimes are compared by logits",
            hint="export it with --output-kind logits",
        )
    if artifact.precision != "fp32":
        raise ArtifactError(
            f"{artifact.path} is {artifact.precision}, and the bench starts from the fp32 file",
            hint=f"give that with --model, and --precision {artifact.precision}",
        )
    if weights_sha256 and artifact.weights_sha256 != weights_sha256:
        raise ArtifactError(
            f"{artifact.path} was made from other weights ({artifact.checkpoint}, {artifact.weights_sha256[:12]}…) "
            f"than those given ({weights_sha256[:12]}…)",
            hint="export these weights, or leave --model out",
        )
    if spec and not artifact.takes(spec):
        raise ArtifactError(
            f"{artifact.path} was exported as {artifact.spec}, which differs from the options given ({spec})",
            hint="leave the model options out, or export again with them"
            if artifact.size_multiple is None
            else f"leave them out, or give an --input-size in multiples of {artifact.size_multiple}",
        )
