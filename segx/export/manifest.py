"""The manifest beside an exported file: from what it was made, its digest, and the proof that it is the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segx.export.verify import Proof
from segx.system.files import sha256_of, write_text

# 1: first version.
# 2: the proof tells benign flips, means and Dice.
# 3: the proof says at which image sizes.
SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Manifest:
    """What is written to ``NAME.onnx.json``.

    Attributes:
        recipe: everything that decides what the file holds; equal recipes make the same model.
        artifact_sha256: digest of the file this stands beside.
        created: ISO 8601 in UTC.
        proof: see ``Proof``.
    """

    recipe: Mapping[str, Any]
    artifact_sha256: str
    created: str
    proof: Proof


def manifest_path(artifact: Path) -> Path:
    """Where the manifest of a file stands."""
    return artifact.with_name(f"{artifact.name}.json")


def write_sidecar(artifact: Path, *, schema_version: int, created: str, recipe: Mapping[str, Any], **more: Any) -> None:
    """Write beside a file what it was made of, its digest, and more; whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    values = {
        "schema_version": schema_version,
        "created": created,
        "artifact_sha256": sha256_of(artifact),
        "recipe": dict(recipe),
        **more,
    }
    write_text(manifest_path(artifact), json.dumps(values, indent=2) + "\n")


def read_sidecar(artifact: Path, *, schema_version: int) -> dict[str, Any] | None:
    """What stands beside a file, if the file is there and unchanged since; else None."""
    try:
        values: dict[str, Any] = json.loads(manifest_path(artifact).read_text(encoding="utf-8"))
        known = values["schema_version"] == schema_version and isinstance(values["recipe"], dict)
        return values if known and values["artifact_sha256"] == sha256_of(artifact) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or not ours: the file is made again


def write_manifest(artifact: Path, manifest: Manifest) -> None:
    """Write the manifest beside its file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_sidecar(
        artifact,
        schema_version=SCHEMA_VERSION,
        created=manifest.created,
        recipe=manifest.recipe,
        proof=manifest.proof.to_dict(),
    )


def fresh_manifest(artifact: Path, recipe: Mapping[str, Any]) -> Manifest | None:
    """The manifest, if the file is there, is unchanged and was made by this recipe; else None."""
    values = read_sidecar(artifact, schema_version=SCHEMA_VERSION)
    if values is None or values["recipe"] != dict(recipe):
        return None
    try:
        return Manifest(
            values["recipe"], values["artifact_sha256"], values["created"], Proof.from_dict(values["proof"])
        )
    except (ValueError, KeyError, TypeError):
        return None
