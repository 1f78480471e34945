"""Which file a variant runs: the one that is there and up to date, or else one that is made now, by a worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segx.bench.plan import unsupported
from segx.errors import UsageError
from segx.export.variants import ModelFiles, form_of, with_form
from segx.runtimes import Variant
from segx.system.processes import Workers


def model_file(
    workers: Workers, files: ModelFiles, variant: Variant, *, threads: int, tell: Callable[[str], None]
) -> Path:
    """The file that a variant takes; where it is up to date no framework is imported anywhere.

    Raises:
        UsageError: the runtime does not compute in that precision.
        RuntimeUnavailable: it takes a checkpoint, and there is none.
        ExportError, ArtifactError, CheckpointError, OutputError: the file cannot be made.
    """
    if reason := unsupported(variant):
        raise UsageError(reason.message, hint=reason.hint)
    return with_form(workers, files, form_of(variant), threads=threads, any_int8=True, tell=tell).file_for(variant)
