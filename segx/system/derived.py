"""Files made from others by a recipe: the manifest beside each, and the cache built on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from segx.errors import OutputError
from segx.system import machine
from segx.system.files import refuse_inputs, sha256_of, write_text, written_whole

MANIFEST_VERSION = 1

P = TypeVar("P")


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


def why_without_manifest(_: Path, has_manifest: bool) -> str:
    """Return why a file was not written by segx, empty if it was: a damaged one still has its manifest."""
    return "" if has_manifest else "no manifest beside it can be read"


def cached(
    path: Path,
    recipe: Mapping[str, Any],
    make: Callable[[Path], P],
    *,
    source: Path,
    proof: type[P],
    why_foreign: Callable[[Path, bool], str] | None = why_without_manifest,
    force: bool = False,
) -> tuple[Manifest[P], bool]:
    """Provide the file that a recipe makes of ``source``; return its manifest and whether it had to be made.

    The file and its manifest are written whole or not at all. A damaged file is made again. The recipe holds JSON
    values; ``make`` writes the file at the path it is given, and returns what it verified, of type ``proof``.
    ``why_foreign`` says why a file in its place was not written by segx, by its path and whether a manifest is beside
    it; None for a place in which everything may be replaced.

    Raises:
        OutputError: the file cannot be written, or in its place is the source, or a file that segx did not write.
    """
    refuse_inputs(path, [source])
    if not force and (manifest := read_manifest(path, proof)) and manifest.recipe == dict(recipe):
        return manifest, False
    if why_foreign:
        _refuse_foreign(path, why_foreign)
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
    """Return the manifest beside a file, of whatever content that is; None if it is missing or damaged."""
    try:
        manifest = msgspec.json.decode(manifest_path(artifact).read_bytes(), type=Manifest[proof])  # type: ignore[valid-type]
    except (OSError, RecursionError, ValueError):
        return None
    return manifest if manifest.schema_version == MANIFEST_VERSION else None


def _refuse_foreign(path: Path, why_foreign: Callable[[Path, bool], str]) -> None:
    """Raise OutputError if a file at ``path``, or in the place of its manifest, was not written by segx."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder", hint="give the name of a file")
    has_manifest, beside = _stored_manifest(path, object) is not None, manifest_path(path)
    found, reason = path, ""
    if path.exists():
        reason = "" if read_manifest(path, object) else why_foreign(path, has_manifest)
    elif os.path.lexists(beside) and not has_manifest:
        found, reason = beside, "it is no manifest"
    if reason:
        hint = "remove it, or choose another file with --output"
        raise OutputError(f"{found} exists and was not written by segx ({reason})", hint=hint)
