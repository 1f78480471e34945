"""TensorRT by itself: an engine for each batch size, built when first asked for and kept, or one that was exported."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segx.errors import ArtifactError, InferenceError, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes.base import FloatArray, RuntimeOptions
from segx.runtimes.cuda import Graph, Stream, cuda
from segx.runtimes.tensorrt_api import Engine, version
from segx.runtimes.tensorrt_engine import (
    CACHE_FOLDER,
    EngineManifest,
    Recipe,
    build_engine,
    cache_name,
    cached_timings,
    check_fit,
    environment_here,
    fresh_engine,
    input_and_output,
    read_engine,
    read_manifest,
    with_batch_size,
)
from segx.system import machine

ENGINE_SUFFIX = ".engine"


class TensorRt:
    """TensorRT on one GPU; a call includes the copies there and back.

    Holds one batch size at a time: what another one took is given back before the next is made ready, so that it does
    not stand in that one's figures.
    """

    name = "tensorrt"

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        options: RuntimeOptions,
        *,
        cache: Path = CACHE_FOLDER,
        workspace_bytes: int | None = None,
    ) -> None:
        """Find or build the engine for one image (of an exported engine: its smallest batch size) and run it once.

        Args:
            path: an exported engine (``.engine``), which holds certain batch sizes; or an ONNX file, for any.
            spec: the model's description.
            options: device, precision and threads. Whatever is not TF32 comes from the file, and is checked. The
                engine option ``cuda_graph`` has each inference recorded once and started as one piece, which saves the
                host work.
            cache: folder for engines that are built from an ONNX file, and for what building them measured.
            workspace_bytes: limit for the builder; None for none.

        Raises:
            RuntimeUnavailable: no driver, no GPU, no TensorRT.
            ArtifactError: the file is missing, foreign or stale.
            ExportError: TensorRT cannot build an engine from the file.
            OutOfMemory, InferenceError: as ``infer``.
        """
        versions = self.check(options)
        if not path.is_file():
            raise ArtifactError(f"no model at {path}", hint="make it with `segx export`")
        self._path = path
        self._spec = spec
        self._options = options
        self._cache = cache
        self._cuda_graph = options.engine_options.get("cuda_graph") == "1"
        cuda().select(options.device_index)
        self._here = environment_here(options.device_index, versions["tensorrt"])
        self._recipe = (
            None if path.suffix == ENGINE_SUFFIX else Recipe.of(path, spec, options.precision, (1,), workspace_bytes)
        )
        self._stream = cuda().stream()
        self._ready: _Ready | None = None
        self._peak_bytes = 0
        try:
            self.infer(np.zeros((self._smallest_batch(), *spec.input_shape), dtype=np.float32))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Ask the driver, then TensorRT, then the CUDA runtime library.

        Raises:
            RuntimeUnavailable: no driver, no GPU, no such GPU, no TensorRT.
        """
        if problem := machine.cuda_problem():
            raise RuntimeUnavailable(problem, hint="run on a machine with an NVIDIA GPU and its driver")
        tensorrt = version()
        device = cuda().device(options.device_index)
        return {"tensorrt": tensorrt, "cuda": cuda().runtime_version(), "device": device.name}

    @property
    def facts(self) -> Mapping[str, str]:
        """What is in force for the batch size of the last call."""
        ready = self._made_ready()
        return {
            "tensorrt": self._here.tensorrt,
            "cuda": self._here.cuda_runtime,
            "device": self._here.gpu,
            "compute capability": self._here.compute_capability,
            "threads": str(ready.engine.threads),
            "tf32": "on" if ready.manifest.tf32 else "off",
            "layer types": ", ".join(f"{count} {name}" for name, count in sorted(ready.manifest.layer_types.items())),
            "engine": f"{ready.engine.layers} layers, {ready.engine.weights_bytes / 2**20:.1f} MiB of weights",
            "engine built": ready.manifest.created,
            "profile": f"batch {ready.batch_size}",
            "cuda graph": "on" if self._cuda_graph else "off",
        }

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``; a batch size other than the last one's is made ready first, see ``prepare``."""
        ready = self._prepared(batch)
        ready.upload(batch)
        ready.enqueue()
        return ready.download()

    def infer_on_device(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """As ``infer``, and the seconds of the run between the two copies, by events on its stream."""
        ready = self._prepared(batch)
        with contextlib.closing(cuda().event()) as start, contextlib.closing(cuda().event()) as end:
            ready.upload(batch)
            start.record(self._stream)
            ready.enqueue()
            end.record(self._stream)
            logits = ready.download()
            return logits, end.seconds_since(start)

    def peak_device_bytes(self) -> tuple[int, str]:
        """Device memory of the batch size that took most, exact: weights, activations, input and output."""
        return self._peak_bytes, "TensorRT: weights, activations, input, output"

    def close(self) -> None:
        """Release the engine, its buffers and the stream."""
        self._release()
        self._stream.close()

    def prepare(self, batch_size: int) -> None:
        """Find or build the engine for a batch size, which may take minutes, and allocate; what ``infer`` does first.

        Raises:
            ArtifactError: an exported engine was not made for this batch size.
            ExportError: TensorRT cannot build an engine from the ONNX file.
            OutOfMemory, InferenceError: as ``infer``.
        """
        if self._ready and self._ready.batch_size == batch_size:
            return
        self._release()
        file = self._path if self._recipe is None else self._kept_engine(with_batch_size(self._recipe, batch_size))
        plan, manifest = read_engine(file, self._here)
        check_fit(file, manifest, self._spec, self._options.precision)
        engine = Engine(plan, threads=self._options.threads)
        if batch_size not in (sizes := manifest.recipe.batch_sizes):
            raise ArtifactError(
                f"{file} was built for batch sizes {', '.join(map(str, sizes))}, not for {batch_size}",
                hint="build it again for this one too, or give the ONNX file",
            )
        self._ready = _Ready(engine, manifest, batch_size, self._stream, cuda_graph=self._cuda_graph)
        self._peak_bytes = max(self._peak_bytes, self._ready.device_bytes)

    def _prepared(self, batch: FloatArray) -> _Ready:
        if not len(batch) or batch.shape[1:] != self._spec.input_shape:
            wanted = ("batch", *self._spec.input_shape)
            raise InferenceError(f"TensorRT got images of shape {batch.shape}, not {wanted}", hint="give that shape")
        self.prepare(len(batch))
        return self._made_ready()

    def _made_ready(self) -> _Ready:
        assert self._ready  # from building on until close
        return self._ready

    def _smallest_batch(self) -> int:
        if self._recipe is not None:
            return 1
        return min(read_manifest(self._path).recipe.batch_sizes)

    def _kept_engine(self, recipe: Recipe) -> Path:
        file = self._cache / f"{cache_name(self._path, recipe, self._here)}{ENGINE_SUFFIX}"
        if not fresh_engine(file, recipe, self._here):
            build_engine(
                self._path,
                recipe,
                self._here,
                output=file,
                timings=cached_timings(self._cache, self._here),
                threads=self._options.threads,
            )
        return file

    def _release(self) -> None:
        if self._ready:
            self._ready.close()
            self._ready = None


class _Ready:
    """All that one batch size needs: an engine with a profile, buffers on both sides, perhaps a graph."""

    def __init__(
        self, engine: Engine, manifest: EngineManifest, batch_size: int, stream: Stream, *, cuda_graph: bool
    ) -> None:
        self.engine = engine
        self.manifest = manifest
        self.batch_size = batch_size
        self._stream = stream
        image, logits = input_and_output(engine, manifest.recipe)
        profile = engine.batch_sizes(image.name).index(batch_size)
        input_shape = (batch_size, *manifest.recipe.input_shape)
        with contextlib.ExitStack() as held:
            self._given = held.enter_context(contextlib.closing(cuda().pinned(input_shape)))
            self._got = held.enter_context(
                contextlib.closing(cuda().pinned((batch_size, *manifest.recipe.output_shape)))
            )
            self._image = held.enter_context(contextlib.closing(cuda().buffer(self._given.array.nbytes)))
            self._logits = held.enter_context(contextlib.closing(cuda().buffer(self._got.array.nbytes)))
            self._context = engine.context(
                profile,
                input_name=image.name,
                shape=input_shape,
                addresses={image.name: self._image.handle, logits.name: self._logits.handle},
                stream=stream.handle,
            )
            self._graph = held.enter_context(contextlib.closing(self._recorded())) if cuda_graph else None
            self._held = held.pop_all()
        buffers = self._image.size_bytes + self._logits.size_bytes
        self.device_bytes = engine.weights_bytes + engine.activation_bytes(profile) + buffers

    def upload(self, batch: FloatArray) -> None:
        """Give the stream the copy of a batch to the GPU."""
        np.copyto(self._given.array, batch)
        self._stream.copy_to_device(self._image, self._given.array)

    def enqueue(self) -> None:
        """Give the stream one inference."""
        if self._graph:
            self._graph.launch(self._stream)
        else:
            self._context.enqueue(self._stream.handle)

    def download(self) -> FloatArray:
        """Copy the logits back and wait for them; (N, K, H, W) float32, the caller's own."""
        self._stream.copy_to_host(self._got.array, self._logits)
        self._stream.synchronize()
        return self._got.array.copy()

    def close(self) -> None:
        """Give everything back: first what uses the buffers."""
        del self._context
        self._held.close()

    def _recorded(self) -> Graph:
        # The first run after a change of profile or shape does work that no graph may hold.
        self._context.enqueue(self._stream.handle)
        self._stream.synchronize()
        return self._stream.captured(lambda: self._context.enqueue(self._stream.handle))
