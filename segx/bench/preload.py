"""What the fork server of torch workers imports once; multiprocessing preloads modules, so this is one."""

from __future__ import annotations

import gc
import importlib
import time

_start = time.perf_counter()
# While modules are imported, collections take a quarter of the time and find nothing; one at the end spares each worker
# its first.
gc.disable()
# Importing these starts no thread that a fork would lose, and does not touch CUDA.
for _name in ("torch", "segmentation_models_pytorch", "segx.bench.worker", "segx.model.smp", "segx.runtimes.pytorch"):
    importlib.import_module(_name)
gc.enable()
gc.collect()

# Seconds that a worker would have spent on these imports itself.
IMPORT_S = time.perf_counter() - _start
