"""What the server of torch workers imports once; nothing here may start a thread or touch a device."""

from __future__ import annotations

import importlib
import time

_start = time.perf_counter()
for _name in ("torch", "segmentation_models_pytorch", "segx.bench.worker", "segx.model.smp", "segx.runtimes.pytorch"):
    importlib.import_module(_name)

# Seconds that a process of its own would spend before it could load a model; its children were spared them.
IMPORT_S = time.perf_counter() - _start
