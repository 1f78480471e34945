"""Which variants a bench compares, and which pairs of runtime, precision and scope make no sense."""

from __future__ import annotations

from segx.errors import RuntimeUnavailable
from segx.results.types import BenchOptions
from segx.runtimes import Variant, runtime_info


def variants_of(options: BenchOptions) -> list[Variant]:
    """Every runtime in each precision and scope that was asked for.

    Of several precisions or scopes each runtime has those that it can, and the notes name the others; of a single one
    that it cannot, there is a row (see ``unsuited``).
    """
    return [
        Variant(name, precision, scope)
        for name in options.runtimes
        for precision in options.precisions
        for scope in options.scopes
        if not (len(options.scopes) > 1 and scope not in runtime_info(name).scopes)
        if not (len(options.precisions) > 1 and precision not in runtime_info(name).precisions)
    ]


def unsuited(variant: Variant) -> RuntimeUnavailable | None:
    """Why a variant cannot be, whatever the machine; None where it can."""
    info = runtime_info(variant.runtime)
    if variant.precision not in info.precisions:
        return RuntimeUnavailable(
            f"{info.name} does not compute in {variant.precision}",
            hint=f"it has {', '.join(info.precisions)}",
        )
    if variant.scope not in info.scopes:
        return RuntimeUnavailable(
            f"{info.name} has no memory of its own: its input and output are on the host already",
            hint=f"its scopes are {' and '.join(info.scopes)}",
        )
    return None
