from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segx.results.types import Results
from tests.benching import quick_bench, run_in_process

Bench = Callable[..., Results]


@pytest.fixture
def real_bench(plain_onnx: Path) -> Bench:
    """Return a short bench of the scripted runtime, with worker processes."""

    def run(**options: Any) -> Results:
        return quick_bench(**{"model": plain_onnx, "runtimes": ["fake"], "batch_sizes": (1, 2), **options})

    return run


@pytest.fixture
def bench(real_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a short bench of the scripted runtime that starts no worker process, but engines in the pipeline scope."""
    run_in_process(monkeypatch)
    return real_bench
