"""Which file a variant runs: the one that is there and up to date, or else one that is made now, by a worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segx.bench.plan import unsuited
from segx.errors import RuntimeUnavailable, UsageError
from segx.export.in_worker import make_form, make_onnx
from segx.export.onnx import exported_already
from segx.export.subject import Subject
from segx.export.variants import form_already, form_of
from segx.runtimes import Variant, runtime_info
from segx.system.processes import Workers


def model_file(
    workers: Workers, subject: Subject, variant: Variant, *, threads: int, tell: Callable[[str], None]
) -> Path:
    """The file that a variant takes; where it is up to date no framework is imported anywhere.

    Raises:
        UsageError: the runtime does not compute in that precision.
        RuntimeUnavailable: it takes a checkpoint, and there is none.
        ExportError, ArtifactError, CheckpointError, OutputError: the file cannot be made.
    """
    if reason := unsuited(variant):
        raise UsageError(reason.message, hint=reason.hint)
    form, info = form_of(variant), runtime_info(variant.runtime)
    if form == "checkpoint":
        if subject.checkpoint is None:
            raise RuntimeUnavailable(
                f"{info.name} runs a checkpoint, and only an exported file was given",
                hint="pass the checkpoint with --weights",
            )
        return subject.checkpoint
    source = _exported(workers, subject, threads, tell)
    if form == "onnx":
        return source
    if made := form_already(source, form):
        return made.path
    tell(f"making the {form} form of {source.name}" + (", which takes minutes, once" if "int8" in form else ""))
    return make_form(workers, source, form, threads=threads).path


def _exported(workers: Workers, subject: Subject, threads: int, tell: Callable[[str], None]) -> Path:
    if subject.onnx is not None:
        return subject.onnx
    assert subject.checkpoint  # a subject has one of the two
    if made := exported_already(subject.checkpoint, subject.weights_sha256, subject.spec):
        return made
    tell(f"exporting {subject.checkpoint.name}, once")
    return make_onnx(workers, subject.checkpoint, subject.spec, threads=threads)
