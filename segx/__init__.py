"""segx: which runtime, precision and batch size to deploy, and are the masks still the same?

Names are loaded on first use: importing segx imports no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segx.bench.results import Results
    from segx.bench.run import bench
    from segx.errors import SegxError
    from segx.export import Exported, export_onnx
    from segx.model import load_model
    from segx.predict.run import PredictReport, predict
    from segx.runtimes import Runtime, RuntimeOptions, open_runtime
    from segx.spec import ModelSpec

__version__ = "0.1.0"

__all__ = [
    "Exported",
    "ModelSpec",
    "PredictReport",
    "Results",
    "Runtime",
    "RuntimeOptions",
    "SegxError",
    "__version__",
    "bench",
    "export_onnx",
    "load_model",
    "open_runtime",
    "predict",
]

_HOMES = {
    "Exported": "segx.export",
    "ModelSpec": "segx.spec",
    "PredictReport": "segx.predict.run",
    "Results": "segx.bench.results",
    "Runtime": "segx.runtimes",
    "RuntimeOptions": "segx.runtimes",
    "SegxError": "segx.errors",
    "bench": "segx.bench.run",
    "export_onnx": "segx.export",
    "load_model": "segx.model",
    "open_runtime": "segx.runtimes",
    "predict": "segx.predict.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
