"""What an exported file says of itself: spec, weights, versions, in the metadata of the ONNX file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segx.errors import ArtifactError
from segx.model.spec import METADATA_KEY, PRECISION_KEY, ModelSpec

OutputKind = Literal["logits", "probabilities", "mask"]
OUTPUT_KINDS: tuple[OutputKind, ...] = ("logits", "probabilities", "mask")

_OUTPUT_KIND = "segx.output_kind"
_CHECKPOINT = "segx.model.checkpoint"
_WEIGHTS = "segx.weights_sha256"
_VERSIONS = "segx.versions"
_CREATED = "segx.created"
_SIZE_MULTIPLE = "segx.size_multiple"
_BATCH_SIZE = "segx.batch_size"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported ONNX file.

    Attributes:
        path: the file.
        spec: the model it holds.
        output_kind: what its output is.
        checkpoint: name of the weights file it was made from.
        weights_sha256: digest of that file.
        versions: package -> version that made it.
        created: when, ISO 8601 in UTC.
        precision: in which it computes.
        size_multiple: images of any size that this divides are taken; None where the spec's size alone is.
        batch_size: the one number of images that is taken; None where any is.
    """

    path: Path
    spec: ModelSpec
    output_kind: OutputKind
    checkpoint: str
    weights_sha256: str
    versions: Mapping[str, str]
    created: str
    precision: str = "fp32"
    size_multiple: int | None = None
    batch_size: int | None = None

    def metadata(self) -> dict[str, str]:
        """What goes into the file's ``metadata_props``."""
        limits = {_SIZE_MULTIPLE: self.size_multiple, _BATCH_SIZE: self.batch_size}
        return {
            METADATA_KEY: self.spec.to_json(),
            _OUTPUT_KIND: self.output_kind,
            _CHECKPOINT: self.checkpoint,
            _WEIGHTS: self.weights_sha256,
            _VERSIONS: json.dumps(dict(self.versions), sort_keys=True),
            _CREATED: self.created,
            PRECISION_KEY: self.precision,
            **{key: str(value) for key, value in limits.items() if value is not None},
        }

    def takes(self, spec: ModelSpec) -> bool:
        """Whether it is the model of a spec, at the size that the spec says."""
        multiple = self.size_multiple
        if multiple is None or spec.height % multiple or spec.width % multiple:
            return spec == self.spec
        return dataclasses.replace(spec, height=self.spec.height, width=self.spec.width) == self.spec


def read_artifact(path: Path) -> Artifact:
    """Read what an ONNX file says of itself.

    Raises:
        ArtifactError: there is no such file, it is no ONNX, or it was not exported by segx.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ArtifactError(f"no ONNX file at {path}", hint="make it with `segx export`")
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as ONNX: {error}", hint="export it again with `segx export`"
        ) from error
    return artifact_from_metadata(path, {entry.key: entry.value for entry in model.metadata_props})


def artifact_from_metadata(path: Path, metadata: Mapping[str, str]) -> Artifact:
    """Inverse of ``Artifact.metadata``.

    Raises:
        ArtifactError: the metadata is not segx's.
    """
    try:
        kind = next(k for k in OUTPUT_KINDS if k == metadata[_OUTPUT_KIND])
        return Artifact(
            path=path,
            spec=ModelSpec.from_json(metadata[METADATA_KEY]),
            output_kind=kind,
            checkpoint=metadata[_CHECKPOINT],
            weights_sha256=metadata[_WEIGHTS],
            versions=json.loads(metadata[_VERSIONS]),
            created=metadata[_CREATED],
            precision=metadata.get(PRECISION_KEY, "fp32"),
            size_multiple=int(metadata[_SIZE_MULTIPLE]) if _SIZE_MULTIPLE in metadata else None,
            batch_size=int(metadata[_BATCH_SIZE]) if _BATCH_SIZE in metadata else None,
        )
    except (KeyError, ValueError, StopIteration) as error:
        raise ArtifactError(
            f"{path} was not exported by segx: its metadata lacks the model's description",
            hint="take it in with `segx export --model FILE`, or export your checkpoint with `segx export`",
        ) from error
