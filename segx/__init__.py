"""segx: which runtime, precision and batch size to deploy, and are the masks still the same?

Names are loaded on first use: importing segx imports no framework.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segx.bench.api import BenchOutput, DataOptions, EngineOptions, Gate, Limits, SamplingOptions, benchmark
    from segx.errors import SegxError
    from segx.export import Exported, export_onnx, open_runtime
    from segx.masks.image_io import read_inputs
    from segx.masks.preprocess import masks_from_logits
    from segx.model.smp import load_model
    from segx.model.spec import ModelSpec
    from segx.predict.api import PredictReport, segment
    from segx.predict.options import OutputOptions, RuntimeRequest
    from segx.results.store import load_results
    from segx.results.types import Results
    from segx.runtimes import Runtime, RuntimeOptions
    from segx.system.progress import Progress

# Nothing may leave the machine. Libraries must be told before they load: ONNX Runtime looks up where to report to and
# leaves an identifier in the home folder; OpenVINO starts a process that reports its use, unless this import fails.
os.environ.update(
    ORT_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", RAY_USAGE_STATS_ENABLED="0"
)
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = "0.1.0"

__all__ = [
    "BenchOutput",
    "DataOptions",
    "EngineOptions",
    "Exported",
    "Gate",
    "Limits",
    "ModelSpec",
    "OutputOptions",
    "PredictReport",
    "Progress",
    "Results",
    "Runtime",
    "RuntimeOptions",
    "RuntimeRequest",
    "SamplingOptions",
    "SegxError",
    "__version__",
    "benchmark",
    "export_onnx",
    "load_model",
    "load_results",
    "masks_from_logits",
    "open_runtime",
    "read_inputs",
    "segment",
]

_MODULES = {
    "segx.bench.api": ("BenchOutput", "DataOptions", "EngineOptions", "Gate", "Limits", "SamplingOptions", "benchmark"),
    "segx.errors": ("SegxError",),
    "segx.export": ("Exported", "export_onnx", "open_runtime"),
    "segx.masks.image_io": ("read_inputs",),
    "segx.masks.preprocess": ("masks_from_logits",),
    "segx.model.smp": ("load_model",),
    "segx.model.spec": ("ModelSpec",),
    "segx.predict.options": ("OutputOptions", "RuntimeRequest"),
    "segx.predict.api": ("PredictReport", "segment"),
    "segx.results.store": ("load_results",),
    "segx.results.types": ("Results",),
    "segx.runtimes": ("Runtime", "RuntimeOptions"),
    "segx.system.progress": ("Progress",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
