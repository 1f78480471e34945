"""What the fork server of torch workers imports once; multiprocessing preloads modules, so this is one."""

from __future__ import annotations

import importlib
import time

# Importing these starts no thread that a fork would lose, and does not touch CUDA.
_start = time.perf_counter()
for _name in ("torch", "segmentation_models_pytorch", "segx.bench.worker", "segx.model.smp", "segx.runtimes.pytorch"):
    importlib.import_module(_name)

# Seconds that a worker would have spent on these imports itself.
IMPORT_S = time.perf_counter() - _start
