"""Engines that turn images into logits: one file per engine, imported only when opened."""

import os
import sys

from segx.runtimes.base import MemoryProfile, Precision, Runtime, RuntimeOptions, Scope, Variant
from segx.runtimes.registry import (
    ALL,
    RUNTIMES,
    Device,
    RuntimeInfo,
    check_runtime,
    open_runtime,
    resolve_names,
    runtime_info,
)

# Nothing may leave the machine. Unless this import fails, OpenVINO starts a process that reports its use; ONNX Runtime
# looks up where to report to and leaves an identifier in the home folder. Both must be told before they load.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = [
    "ALL",
    "RUNTIMES",
    "Device",
    "MemoryProfile",
    "Precision",
    "Runtime",
    "RuntimeInfo",
    "RuntimeOptions",
    "Scope",
    "Variant",
    "check_runtime",
    "open_runtime",
    "resolve_names",
    "runtime_info",
]
