"""Checkpoint to artifact: export to ONNX and derived files, each verified before it is used."""

from __future__ import annotations

from segx.export.artifact import OUTPUT_KINDS, Artifact, OutputKind, read_artifact
from segx.export.import_onnx import ImportedModel, import_model
from segx.export.int8 import Int8Export, export_int8
from segx.export.onnx import Exported, default_output, export_onnx
from segx.export.variants import derive
from segx.export.verify import compare_files

__all__ = [
    "OUTPUT_KINDS",
    "Artifact",
    "Exported",
    "ImportedModel",
    "Int8Export",
    "OutputKind",
    "compare_files",
    "default_output",
    "derive",
    "export_int8",
    "export_onnx",
    "import_model",
    "read_artifact",
]
