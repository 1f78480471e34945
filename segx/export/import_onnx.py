"""Import of any segmentation model in ONNX: a copy with segx's input, output and metadata."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segx.errors import ArtifactError, InferenceError, UsageError
from segx.export.artifact import ARTIFACTS, Artifact, content_key, load_onnx, read_artifact, versions_of, why_no_export
from segx.model.mistakes import kind_of
from segx.model.spec import READING, ModelSpec
from segx.system import machine
from segx.system.derived import cached
from segx.system.files import named_path, sha256_of
from segx.system.memory import limit_this_process
from segx.system.processes import WorkerDied, Workers
from segx.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from onnx import TensorProto

_TIMEOUT_S = 300.0  # a loop of the graph may have no end
# Fields of a spec that a file of others has no use for, or that are found out.
_NOT_TOLD = ("arch", "encoder_name", "arguments", "checkpoint_key", "class_map")


@dataclass(frozen=True)
class ImportedModel:
    """Result of ``import_model``; a file that segx exported is its own source.

    ``changes`` has a sentence for everything that was done to the graph, and for what was found out about it;
    ``rebuilt`` is False if no copy had to be made.
    """

    artifact: Artifact
    source: Path
    changes: tuple[str, ...] = ()
    rebuilt: bool = False

    @property
    def is_foreign(self) -> bool:
        """Whether the file is a copy."""
        return self.artifact.path != self.source


def overrides_of(spec: ModelSpec) -> dict[str, Any]:
    """Return the overrides for ``import_model`` that make a copy of this spec."""
    left_out = _NOT_TOLD if spec.has_threshold else (*_NOT_TOLD, "threshold")
    told = {name: value for name, value in vars(spec).items() if name not in left_out}
    return {name: value for name, value in told.items() if value not in (None, ())}


def import_model(
    path: Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: Path | str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ImportedModel:
    """Make a copy of a model that segx did not export, with one float32 input (N, C, H, W) and float32 logits.

    What the file has instead is wrapped in its graph: channels last, other types of numbers, logits of lower
    resolution, class maps. Probabilities become logits, since masks are compared by logits. Old opsets are lifted.
    Weights in files beside it become part of the copy, by default ``artifacts/NAME-KEY.onnx``. A file that segx
    exported is returned as it is, and so is an up-to-date copy, unless forced. The graph runs in a worker process: a
    script must guard its main part with ``if __name__ == "__main__":``, as ``multiprocessing`` requires.

    ``overrides`` gives the fields of ``ModelSpec`` that the file lacks, and how to read it where it does not tell:
    ``output_name`` is one of several outputs, ``output_channel`` one of several channels that may overlap, from 0,
    ``layout`` is ``nchw`` or ``nhwc``, and ``output_range`` is what the output holds, ``logits`` or probabilities in
    ``0-1`` or ``0-255``. ``progress`` is warned of what was done to the file.

    Raises:
        ArtifactError: the file is missing, not ONNX, or not a segmentation of images, or ONNX Runtime cannot run it.
        UsageError: an override is missing, or contradicts the file; or segx exported it, and ``output`` or ``force`` is
            given.
        OutputError: the copy cannot be written, or segx did not write the file in its place.
    """
    path, overrides = Path(path), dict(overrides or {})
    _check_overrides(overrides)
    if not path.is_file():
        problem = f"{path} is a folder" if path.is_dir() else f"no ONNX file at {path}"
        raise ArtifactError(problem, hint="give the path of an ONNX file")
    if kind := _kind_of(path):
        what, hint = kind
        raise ArtifactError(f"{path} is {what}, not an ONNX model", hint=hint)
    with contextlib.suppress(ArtifactError):  # raised below with hints for foreign files
        artifact = read_artifact(path)
        useless = [*sorted(overrides.keys() & READING), *["output"] * (output is not None), *["force"] * force]
        if useless:
            option = f"--{useless[0].replace('_', '-')}"
            raise UsageError(
                f"{option} has no effect on {path}, which segx exported",
                hint="leave it out: the file is taken as it is",
            )
        return ImportedModel(artifact, path)
    sha256 = sha256_of(path)
    if beside := [sha256_of(path.parent / name) for name in _weights_beside(path)]:
        sha256 = hashlib.sha256("\n".join([sha256, *beside]).encode()).hexdigest()
    recipe = {
        "source": path.name,
        "weights_sha256": sha256,
        "overrides": {name: list(v) if isinstance(v, tuple) else v for name, v in overrides.items()},
        "versions": versions_of("segx", "onnx", "onnxruntime", "onnxruntime-gpu"),
    }
    key = content_key(sha256, json.dumps(recipe["overrides"], sort_keys=True))
    copy = named_path(output) if output is not None else ARTIFACTS / f"{path.stem}-{key}.onnx"

    def make(temporary: Path) -> tuple[str, ...]:
        arguments = {"path": path, "overrides": overrides, "copy": temporary, "weights_sha256": sha256}
        workers = Workers(threads=machine.usable_cores())
        try:
            done: tuple[str, ...] = workers.call(_convert, arguments, torch=False, timeout_s=_TIMEOUT_S)
        except InferenceError as error:  # of the worker, or whatever the libraries raise on damaged files
            hint = "pass an undamaged ONNX file whose loops end and whose weights are plain files"
            raise ArtifactError(
                f"reading and running {path} failed: {error.message}",
                hint=error.hint if isinstance(error, WorkerDied) else hint,
            ) from error
        return done

    manifest, rebuilt = cached(
        copy, recipe, make, source=path, proof=tuple[str, ...], why_foreign=why_no_export, force=force
    )
    if manifest.proof:
        progress.warn(f"{path}: {'; '.join(manifest.proof)}")
    return ImportedModel(read_artifact(copy), path, manifest.proof, rebuilt)


def _weights_beside(path: Path) -> list[str]:
    """Return the files that hold weights of a model, as far as they are in its folder or below."""
    try:
        tensors = _tensors_in(load_onnx(path, weights=False))
        named = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    except (ArtifactError, UnicodeDecodeError):
        return []  # not ONNX, which is told when it is read
    found = sorted(name for name in named if not Path(name).is_absolute() and ".." not in Path(name).parts)
    return [name for name in found if (path.parent / name).is_file()]


def _tensors_in(message: Any) -> Iterator[TensorProto]:
    """Yield all tensors of a model: initializers and attributes, in branches, loops and functions too."""
    from onnx import TensorProto

    for field, value in message.ListFields():
        if field.message_type:
            for each in [value] if hasattr(value, "ListFields") else value:
                if isinstance(each, TensorProto):
                    yield each
                else:
                    yield from _tensors_in(each)


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    for name, known in READING.items():
        if known and overrides.get(name) not in (None, *known):
            raise UsageError(f"{name} {overrides[name]!r} is unknown", hint=f"use {', '.join(known)}")


def _convert(path: Path, overrides: Mapping[str, Any], copy: Path, weights_sha256: str) -> tuple[str, ...]:
    from segx.export.foreign import convert  # imports onnx_ir, which takes seconds

    limit_this_process(machine.memory_available_bytes())
    return convert(path, overrides, copy, weights_sha256)


def _kind_of(path: Path) -> tuple[str, str] | None:
    """Return what a file is by its first bytes, and what to do; None if it may be ONNX."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty", "copy or download it again"
    is_checkpoint = start.startswith(b"\x80") or start[8:10] == b'{"'  # a pickle or safetensors
    if start.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_checkpoint = any(name.endswith("data.pkl") for name in archive.namelist())
    if is_checkpoint:
        return "a PyTorch checkpoint, or another pickle or safetensors file", "pass a checkpoint with --weights"
    return kind_of(start)
