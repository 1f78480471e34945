"""Reports on exported files: what was made, and how it was verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segx.reporting.columns import Field, figures, iou, memory, table_of
from segx.reporting.document import Block, Column, Command, Datum, Document, Section, Table, number
from segx.results.types import Parity
from segx.system.files import sha256_of

if TYPE_CHECKING:
    from segx.export.import_onnx import ImportedModel
    from segx.export.int8 import Int8Export
    from segx.export.onnx import Exported
    from segx.export.tensorrt import ExportedEngine

_PARITY: list[Field[Parity]] = [
    figures("max |diff|", lambda parity: parity.max_abs_diff, form="{:.1e}"),
    figures("of range", lambda parity: parity.relative_diff, form="{:.1e}"),
    figures("flipped px", lambda parity: parity.flipped_pixels, form="{}"),
    figures("of pixels", lambda parity: parity.pixels, form="{}"),
    (Column("worst IoU"), lambda parity: Datum(iou(parity.worst_iou), parity.worst_iou)),
]


def exported_document(exported: Exported) -> Document:
    """Describe an exported file and its verification."""
    artifact, proof = exported.artifact, exported.proof
    about = f"opset {proof.opset}, {proof.nodes} nodes, batch axis {proof.batch_axis!r}"
    if proof.size_multiple is not None:
        about += f", sizes in multiples of {proof.size_multiple}"
    facts = (
        _file("exported" if exported.rebuilt else "up to date", artifact.path, about),
        ("model", f"{artifact.spec}, output {artifact.output_kind}"),
        ("weights", f"{artifact.checkpoint}, sha256 {artifact.weights_sha256[:12]}"),
    )
    rows = tuple(
        (
            number(row.batch_size, "{}"),
            Datum(f"{row.width}x{row.height}", row.width * row.height),
            *(value(row.parity) for _, value in _PARITY),
        )
        for row in proof.rows
    )
    columns = (Column("batch"), Column("size"), *(column for column, _ in _PARITY))
    return _document(facts, Table("Verified: ONNX Runtime against PyTorch on generated samples", columns, rows))


def imported_document(imported: ImportedModel) -> Document:
    """Describe a file that was not exported by segx."""
    artifact = imported.artifact
    facts = [
        _file("imported", artifact.path),
        ("model", str(artifact.spec)),
        ("made of", f"{artifact.checkpoint}, sha256 {artifact.weights_sha256[:12]}"),
    ]
    if imported.removed:
        facts.append(("removed", f"the final {imported.removed}: masks are computed and compared on logits"))
    if artifact.batch_size is not None:
        facts.append(("batch", f"only {artifact.batch_size}"))
    return _document(facts)


def derived_document(path: Path, source: Path, about: str, parity: Parity) -> Document:
    """Describe a file made of an exported one, and how far its masks are from that file's."""
    caption = f"Check: both files in ONNX Runtime on {parity.images} generated samples"
    facts = (_file("made", path, about), ("made of", str(source)))
    return _document(facts, table_of(caption, [parity], _PARITY))


def int8_document(exported: Int8Export) -> Document:
    """Describe a quantised file: per stage, the layers kept in float and the masks."""
    columns = tuple(map(Column, ("stage", "int8 layers", "float layers", "flipped px", "mean IoU", "worst IoU")))
    rows = tuple(
        (
            *(number(n, "{}") for n in (i, stage.int8_layers, len(stage.float_layers), stage.parity.flipped_pixels)),
            *(Datum(iou(value), value) for value in (stage.parity.mean_iou, stage.parity.worst_iou)),
        )
        for i, stage in enumerate(exported.stages, start=1)
    )
    facts = (
        _file("quantised" if exported.rebuilt else "up to date", exported.path, f"for {exported.engine}"),
        ("in float", ", ".join(exported.float_layers) or "none"),
    )
    caption = f"Masks of {exported.parity.images} held-out images against the float file"
    return _document(facts, Table(caption, columns, rows))


def engine_document(built: ExportedEngine) -> Document:
    """Describe a TensorRT engine, with the command that builds the same one."""
    recipe = built.manifest.recipe
    facts = (
        _file("built" if built.rebuilt else "up to date", built.path),
        ("holds", f"{recipe.precision}, batch sizes {', '.join(map(str, recipe.batch_sizes))}"),
    )
    trtexec = Section(key="trtexec", title="The same with trtexec", blocks=(Command(built.trtexec),))
    return Document("segx export", facts, (trtexec,))


def derived_data(path: Path, source: Path, about: str, parity: Parity | None) -> dict[str, Any]:
    """Return what was made, for JSON."""
    return {
        "path": str(path),
        "sha256": sha256_of(path),
        "source": str(source),
        "source_sha256": sha256_of(source),
        "about": about,
        "flipped_pixels": parity.flipped_pixels if parity else None,
        "pixels": parity.pixels if parity else None,
        "worst_iou": parity.worst_iou if parity else None,
    }


def engine_data(built: ExportedEngine) -> dict[str, Any]:
    """Return what was built, for JSON."""
    recipe = built.manifest.recipe
    return {
        "path": str(built.path),
        "sha256": sha256_of(built.path),
        "precision": recipe.precision,
        "batch_sizes": list(recipe.batch_sizes),
        "trtexec": built.trtexec,
    }


def _file(verb: str, path: Path, about: str = "") -> tuple[str, str]:
    return verb, f"{path} ({', '.join(filter(None, (memory(path.stat().st_size), about)))})"


def _document(facts: Sequence[tuple[str, str]], *blocks: Block) -> Document:
    return Document("segx export", tuple(facts), (Section(key="verified", blocks=blocks),) if blocks else ())
