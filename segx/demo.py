"""Serve the page that segments images in the browser, beside a native runtime that segments the same images."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from segx.errors import SegxError, UsageError
from segx.export.site import MAX_IMAGE_BYTES, check_page, page_content
from segx.export.variants import ModelFiles, existing_form, form_of, with_form
from segx.masks.image_io import decode_image
from segx.masks.preprocess import FloatArray, preprocess
from segx.predict.engine import Engine, EngineTask, Rows
from segx.runtimes import RUNTIMES, Precision, RuntimeOptions, Variant, precision_support, resolve_name
from segx.runtimes.registry import Support
from segx.system import machine
from segx.system.processes import Workers
from segx.system.progress import SILENT, Progress
from segx.web.server import Request, Response, Route, Server


@contextlib.contextmanager
def serve(
    files: ModelFiles,
    *,
    threads: int,
    runtime: str = "onnxruntime",
    threshold: float | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    progress: Progress = SILENT,
) -> Iterator[Server]:
    """Serve the page of a model until the context is left; the exported file is made unless there is one.

    ``runtime`` is the native runtime that the page compares with first, by a name as on the command line, and
    ``threshold`` that of the first masks, None for the model's own.

    Raises:
        UsageError: the address cannot be bound, browsers cannot read images with that many channels, the runtime
            cannot be chosen, or the threshold would have no effect.
        CheckpointError, ArtifactError, ExportError, RuntimeUnavailable: the model cannot be exported or shown.
    """
    workers = Workers(threads=threads)
    name, _, precision = resolve_name(runtime).partition(":")
    chosen = Variant(name, cast("Precision", precision or "fp32"))
    if form_of(chosen) == "checkpoint":
        files.file_for(chosen)  # raises without a checkpoint
    if chosen not in (possible := _native_variants(files)):
        names = ", ".join(map(str, possible))
        raise UsageError(f"the page cannot compare with {chosen}", hint=f"use one of {names}")
    spec = files.spec.cut_at(threshold)
    check_page(spec)
    served: dict[str, Path | bytes] = {}
    routes: dict[str, Route] = {}
    with Server(served, routes, host=host, port=port) as server, contextlib.ExitStack() as resources:
        files = with_form(workers, files, "onnx", threads=threads, progress=progress)
        files = with_form(workers, files, form_of(chosen), threads=threads, any_int8=True, progress=progress)
        assert files.onnx
        onnx = files.onnx
        fast = [each for each, support in possible.items() if support == "native"]
        made = [each for each in fast if each.precision != "int8" or existing_form(onnx, form_of(each))]
        variants = {str(each): each for each in (chosen, *made)}
        int8 = existing_form(onnx, "int8-onnxruntime")
        content = page_content(
            {"fp32": onnx, **({"int8": int8.path} if int8 else {})},
            spec,
            native=tuple(variants),
            threads=threads,
        )
        native = resources.enter_context(contextlib.closing(Native(workers, files, variants, threads=threads)))
        routes["/native"] = Route(native.segment, max_body_bytes=MAX_IMAGE_BYTES)
        served.update({"/": content["index.html"], **{f"/{name}": file for name, file in content.items()}})
        yield server


def _native_variants(files: ModelFiles) -> dict[Variant, Support]:
    """Return what the runtimes compute here that need no minutes to start, and whether the machine is made for it."""
    devices = ("cpu", "cuda") if machine.gpus() else ("cpu",)
    infos = [info for info in RUNTIMES.values() if info.device in devices and not (info.compiles or info.builds_engine)]
    return {
        Variant(info.name, precision): support
        for info in infos
        if not info.in_browser and info.least_batch == 1 and (info.takes == "onnx" or files.checkpoint)
        for precision, support in precision_support(info).items()
        if support != "no"
    }


class Native:
    """Native variants by their names, of which one is loaded at a time, in a process of its own."""

    def __init__(self, workers: Workers, files: ModelFiles, variants: Mapping[str, Variant], *, threads: int) -> None:
        self._workers = workers
        self._files = files
        self._variants = variants
        self._threads = threads
        self._lock = threading.Lock()
        self._loaded: Variant | None = None
        self._engine: Engine | None = None

    def segment(self, request: Request) -> Response:
        """Return the logits, (K, H, W) float32, of the image file that is the body.

        Raises:
            UsageError: there is no such variant.
            SegxError: the image cannot be read, or the variant cannot run; the next request loads it again.
        """
        name, spec = request.query.get("variant", ""), self._files.spec
        if name not in self._variants:
            raise UsageError(f"no variant {name!r}", hint=f"give one of {', '.join(self._variants)}")
        with self._lock:
            begun = time.perf_counter()
            pixels = decode_image(request.body, "the image", spec.in_channels, white_level=spec.white_level)
            decoded = time.perf_counter()
            image = preprocess(pixels, spec)
            prepared = time.perf_counter()
            logits, run_s = self._run(self._variants[name], image)
        times = {"decode": decoded - begun, "prepare": prepared - decoded, "run": run_s}
        timing = ", ".join(f"{stage};dur={seconds * 1e3:.3f}" for stage, seconds in times.items())
        return Response(logits, headers={"Server-Timing": timing})

    def close(self) -> None:
        """End the process of the runtime."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _run(self, variant: Variant, image: FloatArray) -> tuple[bytes, float]:
        """Return the logits of one image, and the seconds of the run."""
        if variant != self._loaded:
            self.close()
        if self._engine is None:
            form = form_of(variant)
            self._files = with_form(self._workers, self._files, form, threads=self._threads, any_int8=True)
            self._engine, self._loaded = Engine(self._workers, variant.runtime), variant
        task = EngineTask(
            model=self._files.file_for(variant),
            spec=self._files.spec,
            options=RuntimeOptions(threads=self._threads, precision=variant.precision),
            batch_size=self._files.batch_size or 1,
            fills_batches=self._files.batch_size is not None,
        )
        try:
            buffers = self._engine.load(task)
            self._engine.wait_until_ready()
            buffers.inputs[0, 0] = image
            self._engine.send(Rows(0, 0, 1))
            times = self._engine.receive()
        except SegxError:
            self.close()
            raise
        return buffers.outputs[0, 0].tobytes(), times.infer_s
