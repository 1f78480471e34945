"""OpenVINO on the CPU: one request that uses every thread, or a queue of requests that shares them out.

The package is optional, so nothing here imports it before a runtime is checked or opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segx.errors import ArtifactError, InferenceError, OutOfMemory, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes.base import FloatArray, RuntimeOptions

_CPU = "CPU"
_LAYERS = ("Convolution", "Deconvolution")  # as the compiled model names them
_SMALLER = "use a smaller batch size"
_MEMORY_SIGNS = ("Failed to allocate", "bad_alloc", "bad allocation", "out of memory", "not enough memory")


class _OpenVino:
    """Shared by both ways to run: the compiled model, its checks, what is in force."""

    def __init__(
        self,
        name: str,
        hint: Literal["LATENCY", "THROUGHPUT"],
        path: Path,
        spec: ModelSpec,
        options: RuntimeOptions,
        *,
        batch_size: int | None,
    ) -> None:
        openvino = _package()
        self.name = name
        if not path.is_file():
            raise ArtifactError(f"no ONNX file at {path}", hint="make it with `segx export`")
        settings = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": options.threads,
            # The default is bf16 where the processor has it. An int8 file is computed in 8 bits under both settings:
            # they rule what is float in it.
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
        }
        with _mapped_errors():
            core = openvino.Core()
            self._device = str(core.get_property(_CPU, "FULL_DEVICE_NAME"))
            model = core.read_model(path)
            if batch_size is not None:
                model.reshape([batch_size, *spec.input_shape])
            self._compiled = core.compile_model(model, _CPU, settings)

    def _read_facts(self, path: Path, options: RuntimeOptions) -> Mapping[str, str]:
        """What the compiled model says of itself, after its first inference: only then every kernel is chosen.

        Raises:
            ArtifactError: the file was made for another precision than the one asked for.
        """
        with _mapped_errors():
            in_8_bits, layers = _int8_layers(self._compiled)
            get = self._compiled.get_property
            facts = {
                **_versions(),
                "device": self._device,
                "threads": str(get("INFERENCE_NUM_THREADS")),
                "streams": str(get("NUM_STREAMS")),
                "requests": str(get("OPTIMAL_NUMBER_OF_INFER_REQUESTS")),
                "hint": str(get("PERFORMANCE_HINT")),
                "float precision": get("INFERENCE_PRECISION_HINT").to_string(),
                "int8 layers": f"{in_8_bits} of {layers}",
            }
        if options.precision == "int8" and not in_8_bits:
            raise ArtifactError(f"{path} has no layer in 8 bits", hint="give a file that was quantised to int8")
        if options.precision == "fp32" and in_8_bits:
            raise ArtifactError(
                f"{path} computes {in_8_bits} of {layers} layers in 8 bits", hint="ask for int8, or give the fp32 file"
            )
        return facts


class OpenVinoCpu(_OpenVino):
    """OpenVINO on the CPU, with all threads in one request: the shortest time for one call."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        # The batch stays symbolic: that is no slower at steady state, and one runtime serves every size.
        super().__init__("openvino-cpu", "LATENCY", path, spec, options, batch_size=None)
        with _mapped_errors():
            self._request: Any = self._compiled.create_infer_request()
        batch = self._compiled.input(0).partial_shape[0]
        self.infer(np.zeros((1 if batch.is_dynamic else batch.get_length(), *spec.input_shape), dtype=np.float32))
        self.facts = self._read_facts(path, options)

    def infer(self, batch: FloatArray) -> FloatArray:
        """As ``Runtime.infer``."""
        with _mapped_errors():
            # The input may be shared, as the call outlasts its use. Outputs are copied unless they are asked to be
            # shared; the request writes the next result over its own.
            logits: FloatArray = self._request.infer({0: batch}, share_inputs=True, share_outputs=False)[0]
        return logits

    def close(self) -> None:
        """As ``Runtime.close``."""
        del self._request, self._compiled

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Ready where the package is; gives its version.

        Raises:
            RuntimeUnavailable: the package is missing or cannot be loaded.
        """
        return _versions()


class OpenVinoCpuThroughput(_OpenVino):
    """OpenVINO on the CPU, with the threads shared out to requests that run side by side: the most images per second.

    Each image of a batch is a request of its own. One image alone keeps one request busy and leaves the others idle.
    """

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("openvino-cpu-throughput", "THROUGHPUT", path, spec, options, batch_size=1)
        with _mapped_errors():
            self._queue: Any = _package().AsyncInferQueue(self._compiled)  # as many requests as it finds best
        self._output_shape = tuple(self._compiled.output(0).shape)[1:]
        self.infer(np.zeros((len(self._queue), *spec.input_shape), dtype=np.float32))
        self.facts = self._read_facts(path, options)

    def infer(self, batch: FloatArray) -> FloatArray:
        """As ``Runtime.infer``."""
        logits = np.empty((len(batch), *self._output_shape), dtype=np.float32)
        # Not by a callback of the queue's: that takes Python's lock, which the queue holds while it closes and waits.
        rows: dict[int, FloatArray] = {}
        with _mapped_errors():
            for image, row in zip(batch, logits, strict=True):
                request = self._queue.get_idle_request_id()  # the one that is started next
                self._fetch(request, rows)
                self._queue.start_async({0: image[None]})
                rows[request] = row
            self._queue.wait_all()
            for request in list(rows):
                self._fetch(request, rows)
        return logits

    def _fetch(self, request: int, rows: dict[int, FloatArray]) -> None:
        """Keep the result of a request that is done, if it has one, before it is used again."""
        if (row := rows.pop(request, None)) is not None:
            row[...] = self._queue[request].get_output_tensor(0).data[0]

    def close(self) -> None:
        """As ``Runtime.close``."""
        del self._queue, self._compiled

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """As ``OpenVinoCpu.check``."""
        return _versions()


def _package() -> Any:
    try:
        import openvino
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        raise RuntimeUnavailable(
            "the package openvino is not installed" if missing else f"OpenVINO cannot be loaded: {error}",
            hint="pip install openvino" if missing else "pip install --force-reinstall openvino",
        ) from error
    return openvino


def _versions() -> dict[str, str]:
    version: str = _package().__version__
    return {"openvino": version.partition("-")[0]}  # the rest names the build


def _int8_layers(compiled: Any) -> tuple[int, int]:
    """How many convolutions run in 8-bit kernels, and how many there are."""
    nodes = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    kernels = [str(info["primitiveType"].value) for info in nodes if info["layerType"].value in _LAYERS]
    return sum(kernel.upper().endswith("_I8") for kernel in kernels), len(kernels)


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory("OpenVINO could not allocate memory", hint=_SMALLER) from error
    except RuntimeError as error:  # all that OpenVINO raises
        if any(sign in str(error) for sign in _MEMORY_SIGNS):
            raise OutOfMemory("OpenVINO could not allocate memory", hint=_SMALLER) from error
        raise InferenceError(
            f"OpenVINO failed: {_reason(error)}", hint="export the model again; --debug shows the whole error"
        ) from error


def _reason(error: BaseException) -> str:
    """The last line: those before it say where the error was raised."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]
