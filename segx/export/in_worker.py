"""Exports in processes of their own: the one that asks imports no framework. Files that are up to date stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segx.export.onnx import default_output, export_onnx
from segx.export.variants import Derived, Form, derive
from segx.model.spec import ModelSpec
from segx.system.processes import Workers

_TIMEOUT_S = 1800.0


def make_onnx(workers: Workers, checkpoint: Path, spec: ModelSpec, *, threads: int) -> Path:
    """``export_onnx`` to the usual place; gives the file. Raises as that does."""
    path = default_output(checkpoint, "logits")
    arguments = {"checkpoint": checkpoint, "spec": spec, "output": path, "threads": threads}
    workers.call(_export_onnx, arguments, torch=True, timeout_s=_TIMEOUT_S)
    return path


def make_form(
    workers: Workers,
    source: Path,
    form: Form,
    *,
    threads: int,
    calibration: str | None = None,
    min_iou: float | None = None,
) -> Derived:
    """``derive`` to the usual place; raises as that does."""
    arguments = {
        "source": source,
        "form": form,
        "calibration": None if calibration is None else Path(calibration),
        "min_iou": min_iou,
        "threads": threads,
    }
    made: Derived = workers.call(derive, arguments, torch=False, timeout_s=_TIMEOUT_S)
    return made


def _export_onnx(**arguments: Any) -> None:
    export_onnx(**arguments)
