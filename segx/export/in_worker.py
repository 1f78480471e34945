"""Exports in processes of their own: the one that asks imports no framework. Files that are up to date stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segx.export.half import export_fp16
from segx.export.int8 import export_int8
from segx.export.qdq import Engine
from segx.export.to_onnx import default_output, export_onnx
from segx.parity import LIMITS
from segx.processes import Workers
from segx.runtimes.base import FloatArray
from segx.spec import ModelSpec

_TIMEOUT_S = 1800.0


def make_onnx(workers: Workers, checkpoint: Path, spec: ModelSpec, *, threads: int) -> Path:
    """``export_onnx`` to the usual place; gives the file. Raises as that does."""
    path = default_output(checkpoint, "logits")
    arguments = {"checkpoint": checkpoint, "spec": spec, "output": path, "threads": threads}
    workers.call(_export_onnx, arguments, torch=True, timeout_s=_TIMEOUT_S)
    return path


def make_fp16(workers: Workers, source: Path, batch: FloatArray) -> Path:
    """``export_fp16``; gives the file. Raises as that does."""
    path: Path = workers.call(export_fp16, {"source": source, "batch": batch}, torch=False, timeout_s=_TIMEOUT_S)
    return path


def make_int8(
    workers: Workers,
    source: Path,
    engine: Engine,
    *,
    threads: int,
    calibration: str | None = None,
    min_iou: float | None = None,
) -> Path:
    """``export_int8``; gives the file. Raises as that does.

    Args:
        workers: starts the process.
        source: as there.
        engine: as there.
        threads: as there.
        calibration: as there.
        min_iou: lowest IoU of any held-out mask, and of their mean; None for the usual limits.
    """
    limits = LIMITS["int8"]
    arguments = {
        "source": source,
        "engine": engine,
        "calibration": calibration,
        "threads": threads,
        "min_iou_worst": limits.iou if min_iou is None else min_iou,
        "min_iou_mean": limits.mean_iou if min_iou is None else min_iou,
    }
    path: Path = workers.call(_export_int8, arguments, torch=False, timeout_s=_TIMEOUT_S)
    return path


def _export_onnx(**arguments: Any) -> None:
    export_onnx(**arguments)


def _export_int8(**arguments: Any) -> Path:
    return export_int8(**arguments).path
