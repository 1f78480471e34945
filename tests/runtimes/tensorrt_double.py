"""TensorRT for tests: its classes as segx uses them and Polygraphy's backend use them, on ``FakeCudart``.

An engine computes 20 (x - 0.5), as the model of ``plain_onnx`` does. Only names and arguments of the real bindings
occur (``test_the_double_has_the_names_of_the_bindings``).
"""

# ruff: noqa: ARG001, ARG002 - its arguments are those of the bindings

from __future__ import annotations

import ctypes
import enum
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from segx.runtimes import cuda
from tests.runtimes.fake_cudart import FakeCudart


@dataclass
class Script:
    """What TensorRT shall do, and what it was asked."""

    version: str = "10.16.1.11"
    types: Sequence[str] = ("FLOAT", "FLOAT", "INT64")
    parser_errors: Sequence[str] = ()
    input_shape: tuple[int, ...] = (-1, 1, 32, 32)
    refuse: str = ""
    says: str = ""
    output_dtype: str = "FLOAT"
    builds: list[dict[str, Any]] = field(default_factory=list)
    runs: int = 0


SCRIPT = Script()
CONTROL: list[FakeCudart] = []


def refused(name: str, logger: Any) -> bool:
    if SCRIPT.refuse != name:
        return False
    if SCRIPT.says:
        logger.log(Logger.ERROR, SCRIPT.says)
    return True


DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT8 INT64")
TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
EngineStat = enum.Enum("EngineStat", "TOTAL_WEIGHTS_SIZE")
ErrorCode = enum.Enum("ErrorCode", "UNSUPPORTED_NODE")
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED")
DeviceType = enum.Enum("DeviceType", "GPU DLA")
BuilderFlag = enum.Enum("BuilderFlag", "TF32")
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})


class ILogger:
    """Base of loggers."""


class Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    return True


class ITensor:
    is_shape_tensor = False

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.name, self.shape, self.dtype = "image", shape, DataType[dtype]


class ILayer:
    num_outputs = 1

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def get_output(self, index: int) -> ITensor:
        return ITensor((1,), self._dtype)


class INetworkDefinition:
    num_inputs = 1

    def __iter__(self) -> Iterator[ILayer]:
        return map(ILayer, SCRIPT.types)

    @property
    def num_layers(self) -> int:
        return len(SCRIPT.types)

    def get_input(self, index: int) -> ITensor:
        return ITensor(SCRIPT.input_shape, "FLOAT")

    def get_layer(self, index: int) -> ILayer:
        return ILayer(SCRIPT.types[index])


class ParserError:
    def __init__(self, words: str) -> None:
        self._words = words

    def __str__(self) -> str:
        return f"In node 12 with name: conv_3 and operator: Conv (parse): UNSUPPORTED_NODE: {self._words}"

    def node(self) -> int:
        return 12

    def node_name(self) -> str:
        return "conv_3"

    def node_operator(self) -> str:
        return "Conv"

    def desc(self) -> str:
        return self._words

    def code(self) -> Any:
        return ErrorCode.UNSUPPORTED_NODE


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self.num_errors = len(SCRIPT.parser_errors)

    def parse_from_file(self, model: str) -> bool:
        assert Path(model).is_file()
        return not SCRIPT.parser_errors

    def get_error(self, index: int) -> ParserError:
        return ParserError(SCRIPT.parser_errors[index])


class IOptimizationProfile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002 - as the bindings have them
        assert input == "image"
        self._shapes = (min, opt, max)


class IHostMemory(bytes):
    """Bytes, as the bindings' own class can be read."""


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._content + b"+")


class IBuilderConfig:
    DLA_core = -1
    default_device_type = DeviceType.GPU
    profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache

    def __init__(self) -> None:
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[IOptimizationProfile] = []
        self._workspace: int | None = None
        self._cache: ITimingCache | None = None

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._workspace = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if SCRIPT.refuse == "profile":
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        return None if serialized_timing_cache == b"damaged" else ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache._content == b"foreign":
            return False
        self._cache = cache
        return True


class Builder:
    max_threads = 0

    def __init__(self, logger: Any) -> None:
        if refused("builder", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 2
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        if refused("build", self._logger):
            return None
        shapes = [profile._shapes for profile in config._profiles]
        assert all(least == opt == most for least, opt, most in shapes)
        assert config._cache
        asked = {
            "batch_sizes": [opt[0] for _, opt, _ in shapes],
            "shape": list(shapes[0][1][1:]),
            "tf32": BuilderFlag.TF32 in config._flags,
            "workspace": config._workspace,
            "timings": config._cache._content.decode(),
            "threads": self.max_threads,
        }
        SCRIPT.builds.append(asked)
        return IHostMemory(json.dumps(asked).encode())


class IExecutionContext:
    def __init__(self, plan: dict[str, Any], logger: Any) -> None:
        self._plan, self._logger = plan, logger
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return shape == (self._plan["batch_sizes"][0], *self._plan["shape"])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return bool(memory)

    def infer_shapes(self) -> list[str]:
        return sorted({"image", "logits"} - set(self._addresses))

    def execute_async_v3(self, stream_handle: int) -> bool:
        if refused("execute", self._logger):
            return False
        if CONTROL[-1].capturing:
            CONTROL[-1].recorded.append(self._compute)
        else:
            self._compute()
        return True

    def _compute(self) -> None:
        SCRIPT.runs += 1
        count = int(np.prod(self._shape))
        image, logits = (
            np.ctypeslib.as_array((ctypes.c_float * count).from_address(self._addresses[name]))
            for name in ("image", "logits")
        )
        logits[:] = (image - np.float32(0.5)) * np.float32(20)


class ICudaEngine:
    num_layers = 2
    num_io_tensors = 2

    def __init__(self, plan: dict[str, Any], logger: Any) -> None:
        self._plan, self._logger = plan, logger

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType["FLOAT" if name == "image" else SCRIPT.output_dtype]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self._plan["shape"])

    def get_engine_stat(self, stat: Any = EngineStat.TOTAL_WEIGHTS_SIZE) -> int:
        return 1000

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 100 * int(self._plan["batch_sizes"][profile_index])

    def create_execution_context(self) -> IExecutionContext | None:
        return None if refused("context", self._logger) else IExecutionContext(self._plan, self._logger)


class Runtime:
    max_threads = 0

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        return (
            None if refused("deserialize", self._logger) else ICudaEngine(json.loads(serialized_engine), self._logger)
        )


CLASSES = {
    name: value
    for name, value in globals().items()
    if isinstance(value, type) and value.__module__ == __name__ and value is not Script
}


class Double(ModuleType):
    """The package."""

    def __init__(self) -> None:
        super().__init__("tensorrt")
        vars(self).update(CLASSES, init_libnvinfer_plugins=init_libnvinfer_plugins)

    @property
    def __version__(self) -> str:
        return SCRIPT.version


@pytest.fixture
def fake_cudart(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCudart]:
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    cuda.bindings.cache_clear()
    yield fake
    cuda.bindings.cache_clear()


DOUBLE = Double()  # one, since Polygraphy keeps the module that it imported


@pytest.fixture
def tensorrt(fake_cudart: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """A machine with a GPU and TensorRT, as segx sees it."""
    pytest.importorskip("polygraphy")
    SCRIPT.__init__()
    monkeypatch.setitem(sys.modules, "tensorrt", DOUBLE)
    monkeypatch.setattr("segx.system.machine.cuda_problem", lambda: None)
    CONTROL.append(fake_cudart)
    yield SCRIPT
    assert not fake_cudart.held, "a CUDA resource was not released"
