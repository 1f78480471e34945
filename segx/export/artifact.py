"""Exported files: the metadata inside an ONNX file, the manifest beside each file, and the cache built on it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, TypeVar

import msgspec

from segx.errors import ArtifactError, ExportError, OutputError, SegxError, first_line
from segx.model.spec import METADATA_KEY, ModelSpec
from segx.results.types import Parity
from segx.system import machine
from segx.system.files import refuse_inputs, sha256_of, write_text, written_whole

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OutputKind = Literal["logits", "probabilities", "mask"]
ARTIFACTS = Path("artifacts")
REPORT_HINT = "report it with the model's arguments and the versions that `segx doctor` prints"

MANIFEST_VERSION = 1

_VERSIONS = "segx.versions"

_Size = Annotated[int, msgspec.Meta(ge=1, le=2**16)]

P = TypeVar("P")


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
                f"{self.path} is {self.precision} already, and other files are made from the fp32 file",
                hint="pass the fp32 file that `segx export` wrote, and choose the precision with --precision",
            )
        return self

    def require_logits(self) -> Self:
        """Return the artifact; raises ``ArtifactError`` if it has another output."""
        if self.output_kind != "logits":
            raise ArtifactError(
                f"{self.path} returns {self.output_kind}, not logits, by which masks are compared",
                hint="export it with --output-kind logits",
            )
        return self

    def takes(self, spec: ModelSpec) -> bool:
        """Return True if the file holds the model of a spec and takes images of its size.

        The white level is a matter of the images alone.
        """
        spec = dataclasses.replace(spec, white_level=self.spec.white_level)
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


@dataclass(frozen=True)
class Manifest(Generic[P]):
    """Content of ``NAME.json`` beside the file ``NAME``; infinities are null in JSON."""

    schema_version: int
    created: str  # ISO 8601 in UTC
    artifact_sha256: str
    recipe: dict[str, Any]  # everything that decides what the file holds
    proof: P  # what was verified when the file was made; None if nothing was


def manifest_path(artifact: Path) -> Path:
    """Return the path of a file's manifest."""
    return artifact.with_name(f"{artifact.name}.json")


def cached(
    path: Path,
    recipe: Mapping[str, Any],
    make: Callable[[Path], P],
    *,
    source: Path,
    proof: type[P],
    force: bool = False,
) -> tuple[Manifest[P], bool]:
    """Provide the file that a recipe makes of ``source``; return its manifest and whether it had to be made.

    The file and its manifest are written whole or not at all. A damaged file is made again. The recipe holds JSON
    values; ``make`` writes the file at the path it is given, and returns what it verified, of type ``proof``.

    Raises:
        OutputError: the file cannot be written, or in its place is the source, or a file that segx did not write.
    """
    refuse_inputs(path, [source])
    if not force and (manifest := read_manifest(path, proof)) and manifest.recipe == dict(recipe):
        return manifest, False
    _refuse_foreign(path)
    with written_whole(path) as temporary:
        verified = make(temporary)
        sha256 = sha256_of(temporary)
    manifest = Manifest(MANIFEST_VERSION, machine.now(), sha256, dict(recipe), verified)
    write_text(manifest_path(path), msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode() + "\n")
    return manifest, True


def read_manifest(artifact: Path, proof: type[P]) -> Manifest[P] | None:
    """Return the manifest of a file; None if the file or manifest is missing or damaged, or they do not match."""
    manifest = _stored_manifest(artifact, proof)
    try:
        return manifest if manifest and manifest.artifact_sha256 == sha256_of(artifact) else None
    except OSError:
        return None


def _stored_manifest(artifact: Path, proof: type[P]) -> Manifest[P] | None:
    try:
        manifest = msgspec.json.decode(manifest_path(artifact).read_bytes(), type=Manifest[proof])  # type: ignore[valid-type]
    except (OSError, RecursionError, ValueError):
        return None
    return manifest if manifest.schema_version == MANIFEST_VERSION else None


def _refuse_foreign(path: Path) -> None:
    """Raise OutputError if a file at ``path`` was not written by segx; a damaged one was, if it has a manifest."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder", hint="give the name of a file, such as model.onnx")
    has_manifest = _stored_manifest(path, object) is not None
    if not path.exists():
        if os.path.lexists(beside := manifest_path(path)) and not has_manifest:
            hint = "remove it, or choose another file with --output"
            raise OutputError(f"{beside} exists and was not written by segx", hint=hint)
        return
    if read_manifest(path, object):
        return
    try:
        model = load_onnx(path, weights=False)
    except ArtifactError as error:
        written_by_segx, reason = has_manifest, first_line(error)
    else:
        described = any(entry.key == METADATA_KEY for entry in model.metadata_props)
        written_by_segx = described or (has_manifest and not model.graph.node)
        reason = "its metadata does not describe a model"
    if not written_by_segx:
        hint = "remove it, or choose another file with --output"
        raise OutputError(f"{path} exists and was not written by segx ({reason})", hint=hint)
