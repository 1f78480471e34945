"""OpenVINO on the CPU: one request that uses all threads, or a queue of requests that share them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segx.errors import ArtifactError, InferenceError, OutOfMemory, RuntimeUnavailable, lacks_memory
from segx.model.spec import ModelSpec
from segx.runtimes.base import FloatArray, RuntimeOptions
from segx.system import machine

_CPU = "CPU"
_LAYERS = ("Convolution", "Deconvolution")  # as the compiled model names them
_SMALLER = "use a smaller batch size"


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
    ) -> None:
        openvino = _package()
        self.name = name
        if not path.is_file():
            raise ArtifactError(f"no ONNX file at {path}", hint="make it with `segx export`")
        settings = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": options.threads,
            # The default is bf16 where the CPU has it. In an int8 file this sets only the type of the float layers.
            "INFERENCE_PRECISION_HINT": "bf16" if options.precision == "bf16" else "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
        }
        with _mapped_errors():
            core = openvino.Core()
            model = core.read_model(path)
            if batch_size is not None:
                model.reshape([batch_size, *spec.input_shape])
            self._compiled = core.compile_model(model, _CPU, settings)

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Load the CPU plugin; return the version and the device.

        Raises:
            RuntimeUnavailable: the package is missing or cannot be loaded, or the CPU would emulate the precision.
        """
        openvino = _package()
        if options.precision == "bf16" and (problem := machine.bf16_problem()):
            raise RuntimeUnavailable(problem, hint="use fp32: bf16 would be emulated, which is slower")
        with _mapped_errors():
            device = str(openvino.Core().get_property(_CPU, "FULL_DEVICE_NAME"))
        return {"openvino": openvino.__version__.partition("-")[0], "device": device}  # the rest is the build

    def _read_facts(self, path: Path, options: RuntimeOptions) -> Mapping[str, str]:
        """Return the settings in force; call it after the first inference, which chooses the kernels.

        Raises:
            ArtifactError: the file has another precision than requested.
        """
        with _mapped_errors():
            kernels = _convolution_kernels(self._compiled)
            narrow = {kind: sum(kernel.endswith(f"_{kind}") for kernel in kernels) for kind in ("I8", "BF16")}
            int8_layers, layers = narrow["I8"], len(kernels)
            get = self._compiled.get_property
            facts = {
                **self.check(options),
                "threads": str(get("INFERENCE_NUM_THREADS")),
                "streams": str(get("NUM_STREAMS")),
                "requests": str(get("OPTIMAL_NUMBER_OF_INFER_REQUESTS")),
                "hint": str(get("PERFORMANCE_HINT")),
                "float precision": get("INFERENCE_PRECISION_HINT").to_string(),
                "int8 layers": f"{int8_layers} of {layers}",
                "bf16 layers": f"{narrow['BF16']} of {layers}",
            }
        if options.precision == "int8" and not int8_layers:
            raise ArtifactError(f"{path} has no int8 layers", hint="use a file quantised to int8")
        if options.precision != "int8" and int8_layers:
            raise ArtifactError(
                f"{path} computes {int8_layers} of {layers} layers in int8", hint="request int8, or use the fp32 file"
            )
        if options.precision == "bf16" and not narrow["BF16"]:
            raise RuntimeUnavailable("OpenVINO computes no layer of this model in bf16", hint="use fp32 or int8")
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
        self.facts = self._read_facts(path, options)

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``."""
        with _mapped_errors():
            # The input is only used during the call; the output is copied, since the request reuses its buffer.
            logits: FloatArray = self._request.infer({0: batch}, share_inputs=True, share_outputs=False)[0]
        return logits

    def close(self) -> None:
        """See ``Runtime.close``."""
        del self._request, self._compiled


class OpenVinoCpuThroughput(_OpenVino):
    """OpenVINO on the CPU with one request per image and the threads shared among them, for the highest throughput.

    With a batch of one, all but one request are idle.
    """

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("openvino-cpu-throughput", "THROUGHPUT", path, spec, options, batch_size=1)
        with _mapped_errors():
            self._queue: Any = _package().AsyncInferQueue(self._compiled)  # OpenVINO chooses the number of requests
        self._output_shape = tuple(self._compiled.output(0).shape)[1:]
        self.infer(np.zeros((len(self._queue), *spec.input_shape), dtype=np.float32))
        self.facts = self._read_facts(path, options)

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``."""
        logits = np.empty((len(batch), *self._output_shape), dtype=np.float32)
        # No callback: it needs the GIL, which the queue holds while it waits and closes.
        rows: dict[int, FloatArray] = {}
        with _mapped_errors():
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
        del self._queue, self._compiled


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


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # the only classes OpenVINO raises
        if lacks_memory(error):
            raise OutOfMemory("OpenVINO could not allocate memory", hint=_SMALLER) from error
        # The last line is the reason; those before it say where the error was raised.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise InferenceError(
            f"OpenVINO failed: {reason}", hint="export the model again; --debug shows the whole error"
        ) from error
