"""Cells -> measured, judged, reported. The module can be called: ``segx.bench(...)`` is ``segx.bench.run.bench``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """Importing any submodule binds this module to ``segx.bench``, where the API has a function; so it is both."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        from segx.bench.run import bench

        return bench(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallableModule
