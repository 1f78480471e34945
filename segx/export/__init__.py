"""Checkpoint -> artifact: export to ONNX, with the proof that the file is the model."""

from __future__ import annotations

from segx.export.artifact import OUTPUT_KINDS, Artifact, OutputKind, read_artifact
from segx.export.half import export_fp16
from segx.export.int8 import Int8Export, export_int8
from segx.export.to_onnx import Exported, default_output, export_onnx

__all__ = [
    "OUTPUT_KINDS",
    "Artifact",
    "Exported",
    "Int8Export",
    "OutputKind",
    "default_output",
    "export_fp16",
    "export_int8",
    "export_onnx",
    "read_artifact",
]
