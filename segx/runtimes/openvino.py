"""OpenVINO on the CPU: one request that uses all threads, or a queue of requests that share them."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segx.errors import ArtifactError, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes.base import FloatArray, RuntimeOptions, engine_errors
from segx.system import machine

_CPU = "CPU"
_LAYERS = ("Convolution", "Deconvolution")  # as the compiled model names them
# Types of numbers in float layers. The engine's default is bf16 where the CPU has it.
_HINTS = {"bf16": "bf16", "fp16": "f16"}
_KERNELS = {"int8": "I8", "bf16": "BF16", "fp16": "F16"}  # precisions and how their kernels' names end
# Timed calls of each number of requests; one is enough if it takes long.
_TRIALS, _LONG_S = 2, 0.3


class _OpenVino:
    """The compiled model, its checks and facts, shared by both runtimes."""

    def __init__(
        self,
        name: str,
        hint: Literal["LATENCY", "THROUGHPUT"],
        path: Path,
        spec: ModelSpec,
        options: RuntimeOptions,
        *,
        batch_size: int | None,
        **settings: Any,
    ) -> None:
        _package()
        self.name = name
        self._path, self._spec, self._options, self._batch_size = path, spec, options, batch_size
        self._settings = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": options.threads,
            # In an int8 file this sets only the type of the float layers.
            "INFERENCE_PRECISION_HINT": _HINTS.get(options.precision, "f32"),
            "EXECUTION_MODE_HINT": "ACCURACY",
            **settings,
        }
        self._turn = threading.Lock()
        self._compiled = self._compile()

    def _compile(self, **settings: Any) -> Any:
        openvino = _package()
        with _mapped_errors():
            core = openvino.Core()
            model = core.read_model(self._path)
            if self._batch_size is not None:
                model.reshape([self._batch_size, *self._spec.input_shape])
            return core.compile_model(model, _CPU, {**self._settings, **settings})

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Load the CPU plugin; return the version and the device.

        Raises:
            RuntimeUnavailable: the package is missing or cannot be loaded, or the CPU would emulate the precision.
        """
        openvino = _package()
        if options.precision != "int8" and (lacking := machine.cpu_lacks(options.precision)):
            raise RuntimeUnavailable(
                f"this CPU has no {lacking}", hint=f"use fp32: {options.precision} would be emulated, which is slower"
            )
        with _mapped_errors():
            device = str(openvino.Core().get_property(_CPU, "FULL_DEVICE_NAME"))
        return {"openvino": openvino.__version__.partition("-")[0], "device": device}  # the rest is the build

    def _read_facts(self) -> Mapping[str, str]:
        """Return the settings in force; call it after the first inference, which chooses the kernels.

        Raises:
            ArtifactError: the file has another precision than requested.
        """
        precision = self._options.precision
        with _mapped_errors():
            kernels = _convolution_kernels(self._compiled)
            narrow = {kind: sum(k.endswith(f"_{end}") for k in kernels) for kind, end in _KERNELS.items()}
            int8_layers, layers = narrow["int8"], len(kernels)
            get = self._compiled.get_property
            facts = {
                **self.check(self._options),
                "threads": str(get("INFERENCE_NUM_THREADS")),
                "streams": str(get("NUM_STREAMS")),
                "requests": str(get("OPTIMAL_NUMBER_OF_INFER_REQUESTS")),
                "hint": str(get("PERFORMANCE_HINT")),
                "float precision": get("INFERENCE_PRECISION_HINT").to_string(),
                **{f"{kind} layers": f"{count} of {layers}" for kind, count in narrow.items()},
            }
        if precision == "int8" and not int8_layers:
            raise ArtifactError(f"{self._path} has no int8 layers", hint="use a file quantised to int8")
        if precision != "int8" and int8_layers:
            raise ArtifactError(
                f"{self._path} computes {int8_layers} of {layers} layers in int8",
                hint="request int8, or use the fp32 file",
            )
        if precision in _HINTS and not narrow[precision]:
            raise RuntimeUnavailable(
                f"OpenVINO computes no layer of this model in {precision}", hint="use fp32 or int8"
            )
        return facts


class OpenVinoCpu(_OpenVino):
    """OpenVINO on the CPU with all threads in one request, for the lowest latency."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        # The batch stays symbolic, which is no slower in steady state.
        super().__init__("openvino-cpu", "LATENCY", path, spec, options, batch_size=None)
        with _mapped_errors():
            self._request: Any = self._compiled.create_infer_request()
        batch = self._compiled.input(0).partial_shape[0]
        self.infer(np.zeros((1 if batch.is_dynamic else batch.get_length(), *spec.input_shape), dtype=np.float32))
        self.facts = self._read_facts()

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``."""
        if not len(batch):
            return np.empty((0, *self._spec.output_shape), dtype=np.float32)
        with self._turn, _mapped_errors():
            try:
                # The input is only used during the call; the output is copied, since the request reuses its buffer.
                logits: FloatArray = self._request.infer({0: batch}, share_inputs=True, share_outputs=False)[0]
            except Exception:
                # A request that failed may fail ever after.
                self._request = self._compiled.create_infer_request()
                raise
        return logits

    def close(self) -> None:
        """See ``Runtime.close``."""
        self._request = self._compiled = None


class OpenVinoCpuThroughput(_OpenVino):
    """OpenVINO on the CPU with one request per image and the threads shared among requests, for the highest throughput.

    How many requests share the threads is found by trying, with each batch that is larger than those before.
    """

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("openvino-cpu-throughput", "THROUGHPUT", path, spec, options, batch_size=1, NUM_STREAMS=1)
        self._output_shape = tuple(self._compiled.output(0).shape)[1:]
        self._queue: Any = _package().AsyncInferQueue(self._compiled, 1)
        self._requests = self._largest = 1
        self._tried = ""
        self.infer(np.zeros((1, *spec.input_shape), dtype=np.float32))
        self._read_facts()

    @property
    def facts(self) -> Mapping[str, str]:
        """See ``Runtime.facts``; the number of requests is that for the largest batch so far."""
        return {**self._read_facts(), "requests tried": self._tried}

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``."""
        with self._turn, _mapped_errors():
            self._open_queue(self._requests or 1)  # it is closed after a failure to open another
            if len(batch) > self._largest:
                self._share_threads(batch)
            try:
                return self._run(batch)
            except Exception:
                # A request that could not be started stays taken, and later calls would wait for it.
                self._queue = _package().AsyncInferQueue(self._compiled, self._requests)
                raise

    def _share_threads(self, batch: FloatArray) -> None:
        """Share the threads among as many requests as run a batch fastest: one, …, half as many as threads, or all."""
        self._largest = len(batch)
        threads = self._options.threads
        counts = [n for power in range(threads.bit_length()) if (n := threads >> power) <= len(batch)]
        if len(counts) == 1:
            return
        # Compiling takes long: begin with the queue that is open, and end with the most requests, often the fastest.
        counts.sort(key=lambda count: (count != self._requests, count))
        seconds = {count: self._seconds_with(count, batch) for count in counts}
        self._open_queue(min(counts, key=seconds.__getitem__))
        self._tried = ", ".join(f"{n}: {spent / len(batch) * 1e3:.1f} ms/image" for n, spent in seconds.items())

    def _seconds_with(self, requests: int, batch: FloatArray) -> float:
        self._open_queue(requests)
        self._run(batch)  # the first one is slower
        least = math.inf
        for _ in range(_TRIALS):
            start = time.perf_counter()
            self._run(batch)
            least = min(least, time.perf_counter() - start)
            if least > _LONG_S:
                break
        return least

    def _open_queue(self, requests: int) -> None:
        if requests == self._requests:
            return
        self._queue = self._compiled = None  # the memory of two compiled models would be measured
        self._requests = 0
        self._compiled = self._compile(NUM_STREAMS=requests)
        self._queue = _package().AsyncInferQueue(self._compiled, requests)
        self._requests = requests

    def _run(self, batch: FloatArray) -> FloatArray:
        logits = np.empty((len(batch), *self._output_shape), dtype=np.float32)
        # No callback: it needs the GIL, which the queue holds while it waits and closes.
        rows: dict[int, FloatArray] = {}
        for image, row in zip(batch, logits, strict=True):
            request = self._queue.get_idle_request_id()  # start_async uses this one next
            self._fetch(request, rows)
            self._queue.start_async({0: image[None]})
            rows[request] = row
        self._queue.wait_all()
        for request in list(rows):
            self._fetch(request, rows)
        return logits

    def _fetch(self, request: int, rows: dict[int, FloatArray]) -> None:
        """Copy the pending result of a finished request before the request is reused."""
        if (row := rows.pop(request, None)) is not None:
            row[...] = self._queue[request].get_output_tensor(0).data[0]

    def close(self) -> None:
        """See ``Runtime.close``."""
        self._queue = self._compiled = None


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


def _convolution_kernels(compiled: Any) -> list[str]:
    """Return the kernel of each convolution in capitals, such as BRGCONV_AVX512_AMX_I8; its end is the type."""
    nodes = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    return [str(info["primitiveType"].value).upper() for info in nodes if info["layerType"].value in _LAYERS]


def _reason(error: Exception) -> str:
    """Return the last line of an error of OpenVINO; those before it say where the error was raised."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


_mapped_errors = functools.partial(engine_errors, "OpenVINO", reason=_reason)
