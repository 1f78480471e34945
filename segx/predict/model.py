"""Which file a variant runs: the one that is there and up to date, or else one that is made now, by a worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from segx.bench.subject import Subject, form_of
from segx.bench.variants import unsuited
from segx.errors import RuntimeUnavailable, UsageError
from segx.export.in_worker import make_fp16, make_int8, make_onnx
from segx.export.int8 import int8_already
from segx.export.to_onnx import exported_already
from segx.processes import Workers
from segx.runtimes import Variant, runtime_info
from segx.scenes import model_inputs

# fp16 files are tried on so many generated scenes, of a series of their own.
_FP16_IMAGES, _FP16_SEED = 8, 9


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
    if form == "fp16":
        tell(f"making fp16 of {source.name}")
        scenes = model_inputs(subject.spec, _FP16_IMAGES, seed=_FP16_SEED)
        return make_fp16(workers, source, np.stack([image for _, image in scenes]))
    if form == "onnx" or info.int8_engine is None:
        return source
    if made := int8_already(source, info.int8_engine):
        return made
    tell(f"quantising {source.name} for {info.int8_engine} on generated samples; this takes minutes, once")
    return make_int8(workers, source, info.int8_engine, threads=threads)


def _exported(workers: Workers, subject: Subject, threads: int, tell: Callable[[str], None]) -> Path:
    if subject.onnx is not None:
        return subject.onnx
    assert subject.checkpoint  # a subject has one of the two
    if made := exported_already(subject.checkpoint, subject.weights_sha256, subject.spec):
        return made
    tell(f"exporting {subject.checkpoint.name}, once")
    return make_onnx(workers, subject.checkpoint, subject.spec, threads=threads)
