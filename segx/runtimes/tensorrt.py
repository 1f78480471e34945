"""TensorRT: engines built through Polygraphy and cached per batch size, and their execution."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import json
import logging
import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segx.errors import ArtifactError, ExportError, InferenceError, OutOfMemory, RuntimeUnavailable, SegxError
from segx.model.spec import ModelSpec
from segx.runtimes import cuda
from segx.runtimes.base import FloatArray, Precision, RuntimeOptions
from segx.system.derived import Manifest, cached, why_without_manifest
from segx.system.files import sha256_of, write_bytes
from segx.system.progress import SILENT, Progress

logger = logging.getLogger(__name__)

# Engines and timing caches built on demand; everything in it can be deleted.
CACHE_FOLDER = Path("artifacts") / "tensorrt-cache"

# The oldest version that has every name used here.
_OLDEST = (10, 16)

# TensorRT's names of the types that layers of a network in each precision must, or must not, output.
_NARROW = frozenset({"HALF", "BF16", "INT8", "FP8", "INT4", "FP4"})
_REQUIRED: Mapping[Precision, str] = {"fp16": "HALF", "bf16": "BF16", "int8": "INT8"}

_INSTALL = "pip install 'tensorrt-cu13~=10.16' (its libraries come from NVIDIA's own package index)"


def bindings() -> Any:
    """Import ``tensorrt``.

    Raises:
        RuntimeUnavailable: it is missing or too old, or its libraries cannot be loaded.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"the package {error.name} is not installed", hint=_INSTALL) from error
    except (ImportError, OSError) as error:
        raise RuntimeUnavailable(f"TensorRT's libraries cannot be loaded: {error}", hint=_INSTALL) from error
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise RuntimeUnavailable(f"TensorRT {trt.__version__} is older than {oldest}", hint=_INSTALL)
    return trt


def version() -> str:
    """Return TensorRT's version, such as 10.16.1.11; see ``bindings`` for errors."""
    return str(bindings().__version__)


class _MessageLog(logging.Handler):
    """Forward TensorRT's messages to our logger, and keep errors, which neither results nor exceptions carry."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # Called from threads of TensorRT, where an exception would end the process.
        text = " ".join(record.getMessage().split())
        if record.levelno == logging.ERROR:
            self.errors.append(text)
        logger.debug("TensorRT: %s", text)


_messages = _MessageLog()


@functools.cache
def polygraphy() -> Any:
    """Import Polygraphy's TensorRT backend, without automatic installation, and log through ``logging``.

    Raises:
        RuntimeUnavailable: the package is missing.
    """
    try:
        config: Any = importlib.import_module("polygraphy.config")
        config.AUTOINSTALL_DEPS = False  # would run pip
        config.USE_TENSORRT_RTX = False  # would import another package than ``bindings``
        backend = importlib.import_module("polygraphy.backend.trt")
        log = importlib.import_module("polygraphy.logger").G_LOGGER
    except ImportError as error:
        raise RuntimeUnavailable(f"the package {error.name} is not installed", hint="pip install polygraphy") from error
    log.colors = log.letter = False
    log.use_python_logging_system = True  # else it prints to stdout
    log.module_severity = log.VERBOSE
    log.python_logger.setLevel(log.VERBOSE)
    log.python_logger.propagate = False
    log.python_logger.addHandler(_messages)
    return backend


def _failure(kind: type[SegxError], message: str) -> SegxError:
    """Make an error with TensorRT's last words; it reports running out of memory only in words."""
    errors = _messages.errors
    text = f"{message}: {errors[-1][:200]}" if errors else message
    if any(sign in " ".join(errors).lower() for sign in ("out of memory", "outofmemory", "out_of_memory")):
        return OutOfMemory(text, hint="use a smaller batch size, or a lower workspace limit")
    return kind(text, hint="run with --debug to see TensorRT's messages")


@contextlib.contextmanager
def _mapped_errors(kind: type[SegxError], message: str) -> Iterator[None]:
    """Turn exceptions of Polygraphy, and constructors of TensorRT that return null, into ``kind``."""
    _messages.errors.clear()
    try:
        yield
    except importlib.import_module("polygraphy.exception").PolygraphyException as error:
        raise _failure(kind, message) from error
    except TypeError as error:  # pybind11's answer to a null pointer
        if "nullptr" not in str(error):
            raise
        raise _failure(InferenceError, "TensorRT does not start") from error


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Versions and hardware that an engine is tied to; those of CUDA are only informative."""

    tensorrt: str
    gpu: str
    compute_capability: str
    system: str  # and architecture
    cuda_runtime: str
    cuda_driver: str  # the highest that it supports

    def key(self) -> str:
        """Return a digest that is equal for environments that can share engines."""
        return _digest({"tensorrt": self.tensorrt, "gpu": self.gpu, "cc": self.compute_capability, "os": self.system})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything but the environment that determines an engine: one with a profile for each batch size.

    Shapes are (C, H, W) of one image and (K, H, W) of its logits; a workspace of None has no limit.
    """

    onnx_sha256: str
    precision: Precision
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    batch_sizes: tuple[int, ...]
    workspace_bytes: int | None = None

    @classmethod
    def of(
        cls, onnx: Path, spec: ModelSpec, precision: Precision, batch_sizes: tuple[int, ...], workspace: int | None
    ) -> Recipe:
        """Make the recipe for an ONNX file."""
        return cls(
            onnx_sha256=sha256_of(onnx),
            precision=precision,
            input_shape=spec.input_shape,
            output_shape=spec.output_shape,
            batch_sizes=batch_sizes,
            workspace_bytes=workspace,
        )

    def key(self) -> str:
        """Return a digest that is equal for equal recipes."""
        return _digest(asdict(self))


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What the manifest of an engine has as proof."""

    recipe: Recipe
    environment: Environment
    layer_types: dict[str, int]  # number of layers of the network by output type
    tf32: bool  # whether it was allowed, read back from the builder


def environment_here(device_index: int, tensorrt: str) -> Environment:
    """Describe the environment that engines built by this version of TensorRT are tied to.

    Raises:
        RuntimeUnavailable: CUDA cannot be used.
    """
    device = cuda.device(device_index)
    return Environment(
        tensorrt=tensorrt,
        gpu=device.name,
        compute_capability=device.compute_capability,
        system=f"{platform.system()} {platform.machine()}",
        cuda_runtime=cuda.runtime_version(),
        cuda_driver=cuda.driver_version(),
    )


def cache_name(onnx: Path, recipe: Recipe, here: Environment, builder: str = "") -> str:
    """Return the name without suffix of a cached engine; engines of equal names are interchangeable.

    ``builder`` is the name and version of the caller of TensorRT, unless it is segx.
    """
    sizes = "-".join(map(str, recipe.batch_sizes))
    return f"{onnx.stem}-{recipe.precision}-b{sizes}-{_digest([recipe.key(), here.key(), builder])}"


def timing_cache_path(folder: Path, here: Environment) -> Path:
    """Return the path of the timing cache for an environment."""
    return folder / f"timings-{here.key()}.cache"


def provide_engine(
    path: Path,
    onnx: Path,
    recipe: Recipe,
    here: Environment,
    *,
    timings: Path,
    threads: int,
    why_foreign: Callable[[Path, bool], str] | None = why_without_manifest,
    force: bool = False,
    progress: Progress = SILENT,
) -> tuple[Manifest[EngineFacts], bool]:
    """Provide the engine that was built here by this recipe; see ``cached``. Building takes minutes.

    TensorRT computes in the model's types (strong typing). Each batch size gets a profile that allows only that size.
    The timing cache is read if it exists, and updated.

    Raises:
        RuntimeUnavailable: TensorRT cannot be used.
        ExportError: TensorRT cannot read or build the model, or the model has another precision than the recipe.
        ArtifactError: the output of the model is not float32 logits.
        OutOfMemory: memory ran out.
        OutputError: a file cannot be written, or is one that segx did not write.
    """

    def make(new: Path) -> EngineFacts:
        sizes = ", ".join(map(str, recipe.batch_sizes))
        told = f"building a TensorRT engine for batch sizes {sizes}: this takes minutes"
        logger.info(told)
        progress.say(told)
        return _build(onnx, recipe, here, output=new, timings=timings, threads=threads)

    keys = {"recipe": recipe.key(), "environment": here.key()}
    return cached(path, keys, make, source=onnx, proof=EngineFacts, why_foreign=why_foreign, force=force)


def _build(onnx: Path, recipe: Recipe, here: Environment, *, output: Path, timings: Path, threads: int) -> EngineFacts:
    trt, backend = bindings(), polygraphy()
    builder, network = _parse(onnx)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    layer_types = dict(Counter(layer.get_output(0).dtype.name for layer in layers if layer.num_outputs))
    if problem := precision_problem(recipe.precision, layer_types):
        raise ExportError(f"{onnx}: {problem}", hint=f"export the model in {recipe.precision}")
    image = _only_input(network, onnx, recipe)
    shapes = [(size, *recipe.input_shape) for size in recipe.batch_sizes]
    profiles = [backend.Profile().add(image, shape, shape, shape) for shape in shapes]
    limit = recipe.workspace_bytes
    try:
        known_timings = timings.read_bytes()
    except OSError:
        known_timings = b""
    builder.max_threads = threads
    with _mapped_errors(ExportError, f"TensorRT cannot build {onnx}"):
        config = backend.create_config(
            builder,
            network,
            profiles=profiles,
            tf32=recipe.precision == "tf32",
            memory_pool_limits=None if limit is None else {trt.MemoryPoolType.WORKSPACE: limit},
            load_timing_cache=_ReadOnlyBytes(known_timings),
            profiling_verbosity=trt.ProfilingVerbosity.LAYER_NAMES_ONLY,  # TensorRT's default, not Polygraphy's
        )
        if config.num_optimization_profiles != len(profiles):
            raise _failure(ExportError, f"TensorRT refuses a profile for batch sizes {recipe.batch_sizes}")
        if config.get_timing_cache() is None:
            logger.info("the timing cache belongs to another GPU or version, or is damaged: starting a new one")
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        plan = bytes(backend.engine_bytes_from_network((builder, network), config=config))
    _, engine = _deserialize(plan, threads=threads)
    input_and_output(engine, recipe)  # an engine that cannot be used is not worth keeping
    output.write_bytes(plan)
    # Not by Polygraphy's save_timing_cache, which overwrites in place.
    write_bytes(timings, bytes(config.get_timing_cache().serialize()))
    return EngineFacts(
        recipe=recipe, environment=here, layer_types=layer_types, tf32=bool(config.get_flag(trt.BuilderFlag.TF32))
    )


class _ReadOnlyBytes(io.BytesIO):
    mode = "rb"  # Polygraphy asks for it, and would leave a lock file beside a path


def _parse(onnx: Path) -> tuple[Any, Any]:
    """Return a builder and the strongly typed network of an ONNX file."""
    try:
        with _mapped_errors(ExportError, f"TensorRT cannot read {onnx}"):
            builder, network, _ = polygraphy().network_from_onnx_path(str(onnx), strongly_typed=True)
    except ExportError as failure:
        failure.hint = "export it again with `segx export`; TensorRT takes int8 only with zero points of 0"
        for error in _messages.errors:
            logger.error("%s: %s", onnx, error)
            failure.add_note(error)
        raise
    return builder, network


def _only_input(network: Any, onnx: Path, recipe: Recipe) -> str:
    """Return the name of the network's only input, which must have the recipe's shape and a free batch size (-1)."""
    shapes = [tuple(network.get_input(index).shape) for index in range(network.num_inputs)]
    if shapes != [wanted := (-1, *recipe.input_shape)]:
        raise ExportError(
            f"{onnx} has inputs of shapes {shapes}, not one of {wanted}", hint="export it again with `segx export`"
        )
    return str(network.get_input(0).name)


def _deserialize(plan: bytes, *, threads: int) -> tuple[Any, Any]:
    """Return TensorRT's runtime, which must outlive the engine, and the engine of a plan.

    Not by Polygraphy's engine_from_bytes, which allows the plan to carry host code.
    """
    trt = bindings()
    with _mapped_errors(InferenceError, "TensorRT does not accept the engine"):
        runtime = trt.Runtime(polygraphy().get_trt_logger())
        runtime.max_threads = threads
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise _failure(InferenceError, "TensorRT does not accept the engine")
    return runtime, engine


def input_and_output(engine: Any, recipe: Recipe) -> tuple[str, str]:
    """Return the names of an engine's input and output.

    Raises:
        ArtifactError: they are not one each, float32, and of the recipe's shapes.
    """
    trt = bindings()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    names.sort(key=lambda name: engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT)
    found = [(engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))[1:]) for name in names]
    if found != [("FLOAT", recipe.input_shape), ("FLOAT", recipe.output_shape)]:
        raise ArtifactError(
            f"the engine's input and output are {found}, not float32 {recipe.input_shape} and {recipe.output_shape}",
            hint="export the model with --output-kind logits and float32 input and output",
        )
    return names[0], names[1]


def precision_problem(precision: Precision, layer_types: Mapping[str, int]) -> str | None:
    """Say why a network of these layer types does not compute in a precision; None if it does.

    A strongly typed network computes in its own types; TensorRT does not complain if they are wider than requested.
    """
    found = ", ".join(f"{count} layers in {name}" for name, count in sorted(layer_types.items()))
    narrow = sorted(_NARROW.intersection(layer_types))
    if precision in _REQUIRED:
        return None if _REQUIRED[precision] in narrow else f"{precision} was requested, but no layer has it: {found}"
    return f"{precision} was requested, but the network is narrower: {found}" if narrow else None


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class TensorRt:
    """TensorRT on one GPU; a call includes the copies to and from it.

    Holds resources for one batch size at a time, so that another one does not count in its figures.
    """

    name = "tensorrt"

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions, *, cache: Path = CACHE_FOLDER) -> None:
        """Load or build the engine for one image and run it once.

        Args:
            path: an ONNX file; each batch size gets an engine of its own.
            spec: spec of the model.
            options: the precision must be that of the file, except for TF32; the engine option ``cuda_graph`` records
                each inference as a CUDA graph.
            cache: folder for engines and timing caches.

        Raises:
            RuntimeUnavailable: there is no driver, GPU or TensorRT.
            ArtifactError: the output of the model is not float32 logits.
            ExportError: TensorRT cannot build an engine from the file.
            OutOfMemory, InferenceError: see ``infer``.
        """
        versions = self.check(options)
        self._path = path
        self._spec = spec
        self._options = options
        self._cache = cache
        self._cuda_graph = options.engine_options.get("cuda_graph") == "1"
        cuda.select(options.device_index)
        self._here = environment_here(options.device_index, versions["tensorrt"])
        self._recipe = Recipe.of(path, spec, options.precision, (1,), None)
        self._stream = cuda.Stream()
        self._turn = threading.Lock()
        self._ready: _Execution | None = None
        self._peak_bytes = 0
        try:
            self.infer(np.zeros((1, *spec.input_shape), dtype=np.float32))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Return the versions and the device name.

        Raises:
            RuntimeUnavailable: there is no driver, GPU, GPU of that index, TensorRT, Polygraphy or cuda-bindings.
        """
        cuda.check_driver()
        tensorrt = version()
        polygraphy()
        device = cuda.device(options.device_index)
        return {"tensorrt": tensorrt, "cuda": cuda.runtime_version(), "device": device.name}

    @property
    def facts(self) -> Mapping[str, str]:
        """Settings in force for the batch size of the last call."""
        ready = self._current()
        built = ready.manifest.proof
        return {
            "tensorrt": self._here.tensorrt,
            "cuda": self._here.cuda_runtime,
            "device": self._here.gpu,
            "compute capability": self._here.compute_capability,
            "threads": str(ready.threads),
            "tf32": "on" if built.tf32 else "off",
            "layer types": ", ".join(f"{count} {name}" for name, count in sorted(built.layer_types.items())),
            "engine": f"{ready.layers} layers, {ready.weights_bytes / 2**20:.1f} MiB of weights",
            "engine built": ready.manifest.created,
            "profile": f"batch {ready.batch_size}",
            "cuda graph": "on" if self._cuda_graph else "off",
        }

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``; a new batch size is prepared first, see ``prepare``."""
        with self._turn:
            ready = self._prepared(batch)
            ready.upload(batch)
            ready.enqueue()
            return ready.download()

    def infer_timed(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """See ``TimesItself.infer_timed``."""
        ready = self._prepared(batch)
        with contextlib.closing(cuda.Event()) as start, contextlib.closing(cuda.Event()) as end:
            ready.upload(batch)
            self._stream.synchronize()
            start.record(self._stream)
            ready.enqueue()
            end.record(self._stream)
            logits = ready.download()
            return logits, end.seconds_since(start)

    def peak_device_bytes(self) -> tuple[int, str]:
        """Return the exact device memory of the largest batch size."""
        return self._peak_bytes, "TensorRT: weights, activations, input, output"

    def close(self) -> None:
        """See ``Runtime.close``."""
        self._release()
        self._stream.close()

    def prepare(self, batch_size: int) -> None:
        """Load or build the engine for a batch size, which may take minutes, and allocate buffers.

        Raises:
            ArtifactError: the output of the model is not float32 logits.
            ExportError: TensorRT cannot build an engine from the ONNX file.
            OutOfMemory, InferenceError: see ``infer``.
        """
        if self._ready and self._ready.batch_size == batch_size:
            return
        self._release()
        recipe = replace(self._recipe, batch_sizes=(batch_size,))
        file = self._cache / f"{cache_name(self._path, recipe, self._here)}.engine"
        timings, threads = timing_cache_path(self._cache, self._here), self._options.threads
        manifest, _ = provide_engine(
            file, self._path, recipe, self._here, timings=timings, threads=threads, why_foreign=None
        )
        self._ready = _Execution(
            file.read_bytes(), manifest, self._stream, threads=threads, cuda_graph=self._cuda_graph
        )
        self._peak_bytes = max(self._peak_bytes, self._ready.device_bytes)

    def _prepared(self, batch: FloatArray) -> _Execution:
        if not len(batch) or batch.shape[1:] != self._spec.input_shape:
            wanted = ("batch", *self._spec.input_shape)
            raise InferenceError(f"TensorRT got images of shape {batch.shape}, not {wanted}", hint="use that shape")
        self.prepare(len(batch))
        return self._current()

    def _current(self) -> _Execution:
        assert self._ready  # set until close
        return self._ready

    def _release(self) -> None:
        if self._ready:
            self._ready.close()
            self._ready = None


class _Execution:
    """An execution context and buffers of an engine for one batch size, perhaps with a CUDA graph."""

    def __init__(
        self, plan: bytes, manifest: Manifest[EngineFacts], stream: cuda.Stream, *, threads: int, cuda_graph: bool
    ) -> None:
        self.manifest = manifest
        recipe = manifest.proof.recipe
        (self.batch_size,) = recipe.batch_sizes
        self._stream = stream
        self._runtime, engine = _deserialize(plan, threads=threads)
        self._engine = engine
        image, logits = input_and_output(engine, recipe)
        self.threads = int(self._runtime.max_threads)  # read back
        self.layers = int(engine.num_layers)  # after fusion
        self.weights_bytes = int(engine.get_engine_stat(bindings().EngineStat.TOTAL_WEIGHTS_SIZE))
        input_shape, output_shape = (self.batch_size, *recipe.input_shape), (self.batch_size, *recipe.output_shape)
        with contextlib.ExitStack() as resources:
            self._input = resources.enter_context(contextlib.closing(cuda.PinnedArray(input_shape)))
            self._output = resources.enter_context(contextlib.closing(cuda.PinnedArray(output_shape)))
            self._images = resources.enter_context(contextlib.closing(cuda.DeviceBuffer(self._input.array.nbytes)))
            self._logits = resources.enter_context(contextlib.closing(cuda.DeviceBuffer(self._output.array.nbytes)))
            addresses = {image: self._images.handle, logits: self._logits.handle}
            self._context = self._new_context(image, input_shape, addresses)
            self._graph: cuda.Graph | None = None
            if cuda_graph:
                # The first run with a shape does work that a graph may not contain.
                self._execute()
                stream.synchronize()
                self._graph = resources.enter_context(contextlib.closing(stream.capture(self._execute)))
            self._resources = resources.pop_all()
        activations = int(engine.get_device_memory_size_for_profile_v2(0))
        self.device_bytes = self.weights_bytes + activations + self._images.size_bytes + self._logits.size_bytes

    def _new_context(self, image: str, shape: tuple[int, ...], addresses: Mapping[str, int]) -> Any:
        context = self._engine.create_execution_context()  # of the only profile
        if context is None:
            raise _failure(InferenceError, "TensorRT cannot make an execution context")
        if not context.set_input_shape(image, shape):
            raise _failure(InferenceError, f"TensorRT refuses inputs of shape {shape}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise _failure(InferenceError, f"TensorRT refuses the address of {name}")
        if missing := context.infer_shapes():
            raise _failure(InferenceError, f"TensorRT lacks {', '.join(missing)}")
        return context

    def upload(self, batch: FloatArray) -> None:
        """Enqueue the copy of a batch to the GPU."""
        np.copyto(self._input.array, batch)
        self._images.upload(self._input.array, self._stream)

    def enqueue(self) -> None:
        """Enqueue one inference."""
        if self._graph:
            self._graph.launch(self._stream)
        else:
            self._execute()

    def download(self) -> FloatArray:
        """Wait for the logits and return a copy, (N, K, H, W) float32."""
        self._logits.download(self._output.array, self._stream)
        self._stream.synchronize()
        return self._output.array.copy()

    def close(self) -> None:
        """Release the context first, then the buffers that it uses."""
        del self._context
        self._resources.close()

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise _failure(InferenceError, "TensorRT cannot run")
