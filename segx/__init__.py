"""segx: which runtime, precision and batch size to deploy, and are the masks still the same?

Names are loaded on first use: importing segx imports no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segx.bench.api import (
        BenchOutput,
        DataOptions,
        EngineOptions,
        Gate,
        Limits,
        SamplingOptions,
        benchmark,
    )
    from segx.errors import SegxError
    from segx.export import Exported, export_onnx
    from segx.model.smp import load_model
    from segx.model.spec import ModelSpec
    from segx.predict import OutputOptions
    from segx.predict.api import PredictReport, segment
    from segx.results.store import load_results
    from segx.results.types import Results
    from segx.runtimes import Runtime, RuntimeOptions, open_runtime

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
    "Results",
    "Runtime",
    "RuntimeOptions",
    "SamplingOptions",
    "SegxError",
    "__version__",
    "benchmark",
    "export_onnx",
    "load_model",
    "load_results",
    "open_runtime",
    "segment",
]

_HOMES = {
    "BenchOutput": "segx.bench.api",
    "DataOptions": "segx.bench.api",
    "EngineOptions": "segx.bench.api",
    "Exported": "segx.export",
    "Gate": "segx.bench.api",
    "Limits": "segx.bench.api",
    "ModelSpec": "segx.model.spec",
    "OutputOptions": "segx.predict",
    "PredictReport": "segx.predict.api",
    "Results": "segx.results.types",
    "Runtime": "segx.runtimes",
    "RuntimeOptions": "segx.runtimes",
    "SamplingOptions": "segx.bench.api",
    "SegxError": "segx.errors",
    "benchmark": "segx.bench.api",
    "export_onnx": "segx.export",
    "load_model": "segx.model.smp",
    "load_results": "segx.results.store",
    "open_runtime": "segx.runtimes",
    "segment": "segx.predict.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
