"""What an export gave, as text: the file, and what was checked."""

from __future__ import annotations

import json
from pathlib import Path

from segx.export.import_onnx import ImportedModel
from segx.export.int8 import Int8Export
from segx.export.onnx import Exported
from segx.export.tensorrt import ExportedEngine
from segx.reporting.text import aligned
from segx.results.types import Parity
from segx.system.files import sha256_of

_FIGURES = ("max |diff|", "of range", "flipped px", "of pixels", "worst IoU")


def to_text(exported: Exported) -> str:
    """What was made, and the proof."""
    artifact, proof = exported.artifact, exported.proof
    size = artifact.path.stat().st_size / 2**20
    verb = "exported" if exported.rebuilt else "up to date"
    about = f"{size:.1f} MiB, opset {proof.opset}, {proof.nodes} nodes, batch axis {proof.batch_axis!r}"
    if proof.size_multiple is not None:
        about += f", sizes in multiples of {proof.size_multiple}"
    titles = ["batch", "size", *_FIGURES]
    rows = [
        [
            str(row.batch_size),
            f"{row.width}x{row.height}",
            *_figures(row.parity),
        ]
        for row in proof.rows
    ]
    lines = (
        f"{verb}  {artifact.path}  ({about})",
        f"model     {artifact.spec}, output {artifact.output_kind}",
        f"weights   {artifact.checkpoint}, sha256 {artifact.weights_sha256[:12]}",
        "",
        "proof: ONNX Runtime against PyTorch on generated samples",
        aligned(titles, rows),
    )
    return "\n".join(lines) + "\n"


def adopted_text(adopted: ImportedModel) -> str:
    """What became of a file that was not exported here."""
    artifact = adopted.artifact
    lines = [
        f"taken in  {artifact.path}  ({artifact.path.stat().st_size / 2**20:.1f} MiB)",
        f"model     {artifact.spec}",
        f"made of   {artifact.checkpoint}, sha256 {artifact.weights_sha256[:12]}",
    ]
    if adopted.removed:
        lines.append(f"left out  the {adopted.removed} at its end: masks are cut and compared on logits")
    if artifact.batch_size is not None:
        lines.append(f"batch     {artifact.batch_size} alone")
    return "\n".join(lines) + "\n"


def made_text(path: Path, source: Path, about: str, parity: Parity) -> str:
    """A file made of an exported one, and how far its masks are from that one's."""
    lines = (
        f"made      {path}  ({path.stat().st_size / 2**20:.1f} MiB, {about})",
        f"made of   {source}",
        "",
        f"check: both files in ONNX Runtime on {parity.images} generated samples",
        aligned(_FIGURES, [_figures(parity)]),
    )
    return "\n".join(lines) + "\n"


def made_json(path: Path, source: Path, about: str, parity: Parity | None) -> str:
    """The same as JSON."""
    values = {
        "path": str(path),
        "sha256": sha256_of(path),
        "source": str(source),
        "source_sha256": sha256_of(source),
        "about": about,
        "flipped_pixels": parity.flipped_pixels if parity else None,
        "pixels": parity.pixels if parity else None,
        "worst_iou": parity.worst_iou if parity else None,
    }
    return json.dumps(values, indent=1) + "\n"


def int8_text(exported: Int8Export) -> str:
    """What was made, and what each stage put back to float and gained."""
    size = exported.path.stat().st_size / 2**20
    verb = "quantised" if exported.rebuilt else "up to date"
    titles = ["stage", "int8 layers", "float layers", "flipped px", "mean IoU", "worst IoU"]
    rows = [
        [
            str(number),
            str(stage.int8_layers),
            str(len(stage.float_layers)),
            str(stage.parity.flipped_pixels),
            f"{stage.parity.mean_iou:.4f}",
            f"{stage.parity.worst_iou:.4f}",
        ]
        for number, stage in enumerate(exported.stages, start=1)
    ]
    lines = (
        f"{verb}  {exported.path}  ({size:.1f} MiB, for {exported.engine})",
        f"in float   {', '.join(exported.float_layers) or 'none'}",
        "",
        f"masks of {exported.parity.images} held-out images against the float file",
        aligned(titles, rows),
    )
    return "\n".join(lines) + "\n"


def engine_text(built: ExportedEngine) -> str:
    """A TensorRT engine, and the command that builds the same."""
    recipe = built.manifest.recipe
    verb = "built" if built.rebuilt else "up to date"
    lines = (
        f"{verb}  {built.path}  ({built.path.stat().st_size / 2**20:.1f} MiB)",
        f"holds     {recipe.precision}, batch sizes {', '.join(map(str, recipe.batch_sizes))}",
        "",
        "the same by trtexec:",
        built.trtexec,
    )
    return "\n".join(lines) + "\n"


def engine_json(built: ExportedEngine) -> str:
    """The same as JSON."""
    recipe = built.manifest.recipe
    values = {
        "path": str(built.path),
        "sha256": sha256_of(built.path),
        "precision": recipe.precision,
        "batch_sizes": list(recipe.batch_sizes),
        "trtexec": built.trtexec,
    }
    return json.dumps(values, indent=1) + "\n"


def _figures(parity: Parity) -> list[str]:
    return [
        f"{parity.max_abs_diff:.1e}",
        f"{parity.relative_diff:.1e}",
        str(parity.flipped_pixels),
        str(parity.pixels),
        f"{parity.worst_iou:.4f}",
    ]
