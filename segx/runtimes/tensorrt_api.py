"""Every call of TensorRT and nothing else: what to build and where to keep it is decided elsewhere.

Written for what 10.16 and 11.x have in common. There is no TensorRT where this is developed, so a test follows every
name, argument and enum member used here through the signatures of the real bindings (tests/runtimes). Running it is
untested: it takes a GPU.
"""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segx.errors import ExportError, InferenceError, OutOfMemory, RuntimeUnavailable, SegxError

if TYPE_CHECKING:
    import tensorrt

logger = logging.getLogger(__name__)

# The oldest that has every name used here.
_OLDEST = (10, 16)

_INSTALL = "pip install 'tensorrt-cu13~=10.16' (its libraries come from pypi.nvidia.com)"
_SMALLER = "use a smaller batch size, or a lower workspace limit"
_DEBUG = "see what TensorRT said with --debug"


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What an engine is built from.

    Attributes:
        onnx: a model with one float32 input (batch, C, H, W); the types inside it are those that TensorRT computes in.
        input_shape: (C, H, W) of one image.
        batch_sizes: each gets an optimisation profile of its own, in this order.
        tf32: allow 10-bit mantissas in float32 convolutions and matrix products.
        workspace_bytes: device memory that one layer may use beside its tensors; None for as much as there is.
        timing_cache: what earlier builds measured, as ``BuiltPlan.timing_cache`` gave it; empty for nothing.
        threads: processors that the builder may use.
    """

    onnx: Path
    input_shape: tuple[int, int, int]
    batch_sizes: tuple[int, ...]
    tf32: bool
    workspace_bytes: int | None
    timing_cache: bytes
    threads: int


@dataclass(frozen=True)
class BuiltPlan:
    """What a build gave.

    Attributes:
        plan: the serialised engine.
        timing_cache: what this build measured, and what it was given.
        layer_types: TensorRT's name of a type -> layers of the network that put it out.
        tf32: whether TF32 was allowed, read back.
    """

    plan: bytes
    timing_cache: bytes
    layer_types: Mapping[str, int]
    tf32: bool


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; a dimension that varies is -1."""

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]


def bindings() -> Any:
    """The ``tensorrt`` package, imported when first asked for.

    Raises:
        RuntimeUnavailable: it is not installed or too old, or its libraries cannot be loaded.
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
    """TensorRT's version, as 10.16.1.11; raises as ``bindings``."""
    trt = bindings()
    return str(trt.__version__)


def build(request: BuildRequest, *, check: Callable[[Mapping[str, int]], None]) -> BuiltPlan:
    """Build an engine for the selected GPU; takes minutes. Each profile allows exactly its batch size.

    Args:
        request: what to build.
        check: called with the types of the network, as in ``BuiltPlan``, before any time is spent; raises to stop.

    Raises:
        RuntimeUnavailable: as ``bindings``.
        ExportError: TensorRT cannot read the model, or cannot build it. Each of the parser's errors is logged.
        OutOfMemory: memory ran out while building.
        InferenceError: TensorRT does not start.
    """
    trt = bindings()
    log = _new_log()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # pybind11's answer to a null pointer
        raise _failure(InferenceError, "TensorRT's builder does not start", log) from error
    builder.max_threads = request.threads
    # A choice in 10.x, ignored in 11: every network is strongly typed there. As a bit, for its number differs.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(network, request.onnx, log)
    layer_types = _layer_types(network)
    check(layer_types)
    config = builder.create_builder_config()
    if not request.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    image = _only_input(network, request)
    for size in request.batch_sizes:
        profile = builder.create_optimization_profile()
        shape = (size, *request.input_shape)
        profile.set_shape(image, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise _failure(ExportError, f"TensorRT refuses a profile of shape {shape}", log)
    cache = config.create_timing_cache(request.timing_cache)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        logger.info("the timing cache is of another GPU or version, or damaged: starting a new one")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(ExportError, f"TensorRT cannot build {request.onnx}", log)
    return BuiltPlan(
        plan=bytes(plan),
        timing_cache=bytes(cache.serialize()),
        layer_types=layer_types,
        tf32=bool(config.get_flag(trt.BuilderFlag.TF32)),
    )


def _parse(network: tensorrt.INetworkDefinition, onnx: Path, log: Any) -> None:
    trt = bindings()
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(onnx)):  # by name: from bytes, external data would not be found
        return
    errors = [_described(parser.get_error(index)) for index in range(parser.num_errors)]
    for error in errors:
        logger.error("%s: %s", onnx, error)
    failure = ExportError(
        f"TensorRT cannot read {onnx}: {errors[0] if errors else 'it does not say why'} (errors: {len(errors)})",
        hint="export it again with `segx export`; TensorRT takes int8 only with zero points of 0",
    )
    for error in errors:
        failure.add_note(error)
    raise failure


def _described(error: tensorrt.ParserError) -> str:
    where = f"node {error.node()} {error.node_operator()} {error.node_name()}"
    return " ".join(f"{where}: {error.desc()} ({error.code().name})".split())


def _only_input(network: tensorrt.INetworkDefinition, request: BuildRequest) -> str:
    """Name of the input, which must be the only one of the model's shape and any batch size (-1)."""
    shapes = [tuple(network.get_input(index).shape) for index in range(network.num_inputs)]
    if shapes != [wanted := (-1, *request.input_shape)]:
        raise ExportError(
            f"{request.onnx} has inputs of shapes {shapes}, not one of {wanted}",
            hint="export it again with `segx export`",
        )
    return str(network.get_input(0).name)


def _layer_types(network: tensorrt.INetworkDefinition) -> Mapping[str, int]:
    """What the network computes in: with strong typing these types are binding."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return dict(Counter(layer.get_output(0).dtype.name for layer in layers if layer.num_outputs))


class Engine:
    """A plan brought to life on the selected GPU. Only for plans of our own: loading one runs code in it."""

    def __init__(self, plan: bytes, *, threads: int) -> None:
        """Deserialise it.

        Args:
            plan: see ``BuiltPlan``.
            threads: processors that TensorRT's runtime may use.

        Raises:
            RuntimeUnavailable: as ``bindings``.
            InferenceError: TensorRT does not start, or does not accept the plan.
            OutOfMemory: memory ran out.
        """
        trt = bindings()
        self._log = _new_log()
        try:
            self._runtime: tensorrt.Runtime = trt.Runtime(self._log)
        except TypeError as error:  # pybind11's answer to a null pointer
            raise _failure(InferenceError, "TensorRT's runtime does not start", self._log) from error
        self._runtime.max_threads = threads
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise _failure(InferenceError, "TensorRT does not accept the engine", self._log)
        self._engine: tensorrt.ICudaEngine = engine

    @property
    def threads(self) -> int:
        """Processors that it may use, read back."""
        return int(self._runtime.max_threads)

    @property
    def layers(self) -> int:
        """Layers that were left after TensorRT fused them."""
        return int(self._engine.num_layers)

    @property
    def weights_bytes(self) -> int:
        """Device memory of the weights: shows in which precision they are."""
        trt = bindings()
        return int(self._engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))

    def tensors(self) -> tuple[Tensor, ...]:
        """Inputs and outputs."""
        trt = bindings()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return tuple(
            Tensor(
                name=name,
                is_input=self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                dtype=self._engine.get_tensor_dtype(name).name,
                shape=tuple(self._engine.get_tensor_shape(name)),
            )
            for name in names
        )

    def batch_sizes(self, input_name: str) -> tuple[int, ...]:
        """For each profile the batch size that it was tuned for."""
        profiles = range(self._engine.num_optimization_profiles)
        optima = [self._engine.get_tensor_profile_shape(input_name, index)[1] for index in profiles]
        return tuple(int(shape[0]) for shape in optima)

    def activation_bytes(self, profile: int) -> int:
        """Device memory that a context with this profile takes."""
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def context(
        self, profile: int, *, input_name: str, shape: tuple[int, ...], addresses: Mapping[str, int], stream: int
    ) -> Context:
        """Make ready to run.

        Args:
            profile: which of the profiles.
            input_name: of the only input.
            shape: (N, C, H, W) of the input; one that the profile allows.
            addresses: name -> address on the device, of every input and output.
            stream: handle of the CUDA stream on which it will run.

        Raises:
            OutOfMemory: device memory ran out.
            InferenceError: TensorRT refuses the profile, the shape or an address.
        """
        trt = bindings()
        # Sized by the profile in use: the default is the largest of all profiles.
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise _failure(InferenceError, "TensorRT cannot make an execution context", self._log)
        if not context.set_optimization_profile_async(profile, stream):
            raise _failure(InferenceError, f"TensorRT refuses profile {profile}", self._log)
        if not context.set_input_shape(input_name, shape):
            raise _failure(InferenceError, f"TensorRT refuses inputs of shape {shape}", self._log)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise _failure(InferenceError, f"TensorRT refuses the address of {name}", self._log)
        if missing := context.infer_shapes():
            raise _failure(InferenceError, f"TensorRT lacks {', '.join(missing)}", self._log)
        return Context(context, self._log)


class Context:
    """An engine with a profile, a shape and buffers; see ``Engine.context``."""

    def __init__(self, context: tensorrt.IExecutionContext, log: Any) -> None:
        self._context = context
        self._log = log

    def enqueue(self, stream: int) -> None:
        """Give one inference to a CUDA stream and return at once.

        Raises:
            OutOfMemory: device memory ran out.
            InferenceError: TensorRT refused.
        """
        if not self._context.execute_async_v3(stream):
            raise _failure(InferenceError, "TensorRT cannot run", self._log)


def _new_log() -> Any:
    """Where TensorRT reports to: keeps errors, of which it tells the caller nothing; hands all on to Python's log."""
    trt = bindings()
    errors: list[str] = []

    def log(_: Any, severity: tensorrt.ILogger.Severity, msg: str) -> None:
        # Called from C++, where an exception would end the process: nothing here may fail.
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            errors.append(msg)
        logger.debug("TensorRT: %s", msg)

    # Not by a class statement: its base is only known now, and has no types.
    return type("Log", (trt.ILogger,), {"log": log, "errors": errors})()


def _failure(kind: type[SegxError], message: str, log: Any) -> SegxError:
    """The error to raise, with the last that TensorRT said of it; running out of memory is told from the words."""
    said = " ".join(log.errors[-1].split())[:200] if log.errors else ""
    text = f"{message}: {said}" if said else message
    if any(sign in " ".join(log.errors).lower() for sign in ("out of memory", "outofmemory", "out_of_memory")):
        return OutOfMemory(text, hint=_SMALLER)
    return kind(text, hint=_DEBUG)
