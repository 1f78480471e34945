"""Image files in, mask files out, at the speed of the runtime.

The module can be called: ``segx.predict(...)`` is ``segx.predict.run.predict``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """Importing any submodule binds this module to ``segx.predict``, where the API has a function; so it is both."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        from segx.predict.run import predict

        return predict(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallableModule
