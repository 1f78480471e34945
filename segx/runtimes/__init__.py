"""Engines that turn images into logits: one file per engine, imported only when opened."""

from segx.runtimes.base import MemoryProfile, Precision, Runtime, RuntimeOptions, Scope, Variant
from segx.runtimes.registry import (
    ALL,
    RUNTIMES,
    Device,
    RuntimeInfo,
    check_runtime,
    open_runtime,
    precision_support,
    resolve_name,
    resolve_names,
    runtime_info,
)

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
    "precision_support",
    "resolve_name",
    "resolve_names",
    "runtime_info",
]
