"""Checkpoint to artifact: export to ONNX and derived files, each verified before it is used."""

from __future__ import annotations

from segx.export.artifact import Artifact, OutputKind, read_artifact
from segx.export.import_onnx import ImportedModel, import_model
from segx.export.onnx import Exported, default_output, export_onnx
from segx.export.site import Site
from segx.export.tensorrt import ExportedEngine
from segx.export.variants import Derived, derive, export_file, open_runtime
from segx.export.verify import compare_files

__all__ = [
    "Artifact",
    "Derived",
    "Exported",
    "ExportedEngine",
    "ImportedModel",
    "OutputKind",
    "Site",
    "compare_files",
    "default_output",
    "derive",
    "export_file",
    "export_onnx",
    "import_model",
    "open_runtime",
    "read_artifact",
]
