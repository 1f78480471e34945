"""Checkpoint -> artifact: export to ONNX, with the proof that the file is the model."""

from __future__ import annotations

from segx.export.artifact import OUTPUT_KINDS, Artifact, OutputKind, read_artifact
from segx.export.fp16 import export_fp16
from segx.export.import_onnx import Adopted, adopt_onnx
from segx.export.int8 import Int8Export, export_int8
from segx.export.onnx import Exported, default_output, export_onnx
from segx.export.tuned import export_tuned

__all__ = [
    "OUTPUT_KINDS",
    "Adopted",
    "Artifact",
    "Exported",
    "Int8Export",
    "OutputKind",
    "adopt_onnx",
    "default_output",
    "export_fp16",
    "export_int8",
    "export_onnx",
    "export_tuned",
    "read_artifact",
]
