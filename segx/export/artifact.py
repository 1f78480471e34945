"""Exported files: the metadata inside an ONNX file, the manifest beside each file, and the cache built on it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgspec

from segx.errors import ArtifactError, ExportError, SegxError, first_line
from segx.model.spec import METADATA_KEY, ModelSpec
from segx.results.types import Parity
from segx.system import machine

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OutputKind = Literal["logits", "probabilities", "mask"]
ARTIFACTS = Path("artifacts")
REPORT_HINT = "report it with the model's arguments and the versions that `segx doctor` prints"

_VERSIONS = "segx.versions"

_Size = Annotated[int, msgspec.Meta(ge=1, le=2**16)]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported ONNX file, as its metadata describes it.

    The model takes images of any height and width divisible by ``size_multiple`` (None: only of the spec's size), and
    only ``batch_size`` of them at once (None: any number).
    """

    path: Path
    spec: ModelSpec
    output_kind: OutputKind
    checkpoint: str  # name of the weights file
    weights_sha256: str
    versions: Mapping[str, str]
    precision: str = "fp32"
    size_multiple: _Size | None = None
    batch_size: _Size | None = None

    def metadata(self) -> dict[str, str]:
        """Return the entries for the file's ``metadata_props``: ``segx.NAME`` for each field."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["path"]
        return {
            METADATA_KEY: fields.pop("spec").to_json(),
            _VERSIONS: json.dumps(dict(fields.pop("versions")), sort_keys=True),
            **{f"segx.{name}": str(value) for name, value in fields.items() if value is not None},
        }

    def require_fp32(self) -> Self:
        """Return the artifact; raises ``ArtifactError`` if it is in another precision."""
        if self.precision != "fp32":
            raise ArtifactError(
                f"{self.path} is already {self.precision}, and other files are made from the fp32 file",
                hint="pass the fp32 file that `segx export` wrote, and choose the precision with --precision",
            )
        return self

    def require_logits(self) -> Self:
        """Return the artifact; raises ``ArtifactError`` if it has another output."""
        if self.output_kind != "logits":
            raise ArtifactError(
                f"{self.path} returns {self.output_kind}, but masks are compared by logits",
                hint="export it with --output-kind logits",
            )
        return self

    def takes(self, spec: ModelSpec) -> bool:
        """Return True if the file holds the model of a spec and takes images of its size.

        The white level is a matter of the images alone, and the threshold may have no effect.
        """
        threshold = spec.threshold if spec.has_threshold else self.spec.threshold
        spec = dataclasses.replace(spec, white_level=self.spec.white_level, threshold=threshold)
        multiple = self.size_multiple
        if multiple is None or spec.height % multiple or spec.width % multiple:
            return spec == self.spec
        return dataclasses.replace(spec, height=self.spec.height, width=self.spec.width) == self.spec


@dataclass(frozen=True)
class ProofRow:
    """Comparison of an exported file with PyTorch at one batch size and image size; height and width in pixels."""

    batch_size: int
    height: int
    width: int
    parity: Parity


@dataclass(frozen=True)
class Proof:
    """What was verified before an exported file was put in place: its graph, and its output against PyTorch's."""

    opset: int
    nodes: int
    batch_axis: str
    size_multiple: int | None
    rows: tuple[ProofRow, ...]


def content_key(*facts: str) -> str:
    """Return eight hexadecimal digits for the name of a file, which differ where its content would."""
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def read_artifact(path: Path) -> Artifact:
    """Read the metadata of an exported ONNX file.

    Raises:
        ArtifactError: the file does not exist, is not ONNX, or was not exported by segx.
    """
    model = load_onnx(path, weights=False)
    try:
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        fields: dict[str, Any] = {key.removeprefix("segx."): value for key, value in metadata.items()}
        spec, versions = ModelSpec.from_json(metadata[METADATA_KEY]), json.loads(metadata[_VERSIONS])
        return msgspec.convert({**fields, "path": path, "spec": spec, "versions": versions}, Artifact, strict=False)
    except (KeyError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} was not exported by segx: its metadata does not describe the model",
            hint="import it with `segx export --model FILE`, or export your checkpoint with `segx export`",
        ) from error


def other_pixels(weights_sha256: str, spec: ModelSpec) -> tuple[str, ...]:
    """Return what exports of the same weights in ``artifacts`` do to pixels (``ModelSpec.pixels``), if not the same.

    Copies of foreign files count too; their spec is in the file alone.
    """
    found = set()
    for manifest in ARTIFACTS.glob("*.onnx.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError, SegxError):
            recipe = msgspec.json.decode(manifest.read_bytes())["recipe"]
            if recipe["weights_sha256"] == weights_sha256:
                told = recipe.get("spec")
                earlier = ModelSpec.from_json(told) if told else read_artifact(manifest.with_suffix("")).spec
                found.add(earlier.pixels)
    return tuple(sorted(found - {spec.pixels}))


def load_onnx(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Load an ONNX file, with weights from files beside it unless ``weights`` is False.

    Raises:
        ArtifactError: the file does not exist or is not ONNX.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ArtifactError(f"no ONNX file at {path}", hint="export one with `segx export`")
    try:
        return onnx.load(path, load_external_data=weights)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ArtifactError(
            f"{path} cannot be read as ONNX: {first_line(error)}", hint="export it again with `segx export`"
        ) from error


def save_model(model: ir.Model, path: Path, metadata: Mapping[str, str], *, check_failure: str | None = None) -> None:
    """Write a model with only these metadata.

    Raises:
        ExportError: ``check_failure`` is given and the ONNX checker rejects the model; the message starts with it.
    """
    import onnx
    import onnx_ir as ir

    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    proto = ir.to_proto(model)
    if check_failure:
        check_onnx(proto, check_failure)
    onnx.save(proto, path)


def check_onnx(model: onnx.ModelProto | str, failure: str) -> None:
    """Raise ``ExportError`` with the message ``failure`` if the ONNX checker rejects a model or file."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{failure}: {' '.join(str(error).split())[:200]}", hint=REPORT_HINT) from error


def versions_of(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    installed = machine.package_versions()
    return {name: installed[name] for name in packages if name in installed}


def why_no_export(path: Path, has_manifest: bool) -> str:
    """Return why a file was not written by segx, empty if it was; a damaged one was, if it has a manifest."""
    try:
        model = load_onnx(path, weights=False)
    except ArtifactError as error:
        return "" if has_manifest else first_line(error)
    described = any(entry.key == METADATA_KEY for entry in model.metadata_props)
    return "" if described or (has_manifest and not model.graph.node) else "its metadata does not describe a model"
