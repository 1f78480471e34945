"""ONNX Runtime on the CPU and on CUDA, without silent fallback from one to the other."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from segx.errors import ArtifactError, RuntimeUnavailable, first_line
from segx.model.spec import PRECISION_KEY, ModelSpec
from segx.runtimes import cuda
from segx.runtimes.base import FloatArray, RuntimeOptions, engine_errors

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_ONLY_FATAL = 4  # errors arrive as exceptions
# A session's own level does not cover loading a provider, nor the plans that cuDNN tries and discards.
ort.set_default_logger_severity(_ONLY_FATAL)
# Effective options of the CUDA provider that decide speed and memory.
_REPORTED_OPTIONS = (
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "arena_extend_strategy",
    "prefer_nhwc",
    "enable_cuda_graph",
)

# What shapes are computed with.
_SHAPE_OPERATORS = {
    "Add", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather",
    "Identity", "Max", "Min", "Mul", "Range", "ReduceProd", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze",
    "Where",
}  # fmt: skip

ENGINE_ERRORS: tuple[type[Exception], ...] = (
    MemoryError,
    *(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


def reason_of(error: Exception) -> str:
    """Return what ONNX Runtime says, without the place in its source and the name of the node."""
    text = str(error).rpartition("Status Message: ")[2]
    if newer := re.search(r"Opset (\d+) is under development.* till opset (\d+)", text, re.DOTALL):
        return f"it has opset {newer[1]}, and onnxruntime {ort.__version__} knows versions up to {newer[2]}"
    place = r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|/\S+\.(cc|h):\d+ .*?\) (?=[A-Z])"
    return first_line(RuntimeError(re.sub(place, "", text)))


mapped_errors = functools.partial(engine_errors, "ONNX Runtime", ENGINE_ERRORS, reason=reason_of)


def session_options(threads: int) -> ort.SessionOptions:
    """Return options for a session that records which provider runs which node; see ``nodes_on_the_cpu``."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads  # 0 would mean all cores of the host, ignoring the quota
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = _ONLY_FATAL
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return settings


def check_provider(session: ort.InferenceSession, provider: str, libraries: str) -> None:
    """Raise RuntimeUnavailable if a session fell back to another provider because of missing libraries."""
    if (active := session.get_providers()[0]) != provider:
        raise RuntimeUnavailable(
            f"ONNX Runtime fell back to {active}",
            hint=f"check `segx doctor`; its {libraries} libraries could not be loaded",
        )


def nodes_on_the_cpu(session: Any, provider: str) -> tuple[str, ...]:
    """Return the operators that a session of another provider leaves on the CPU, each once.

    ONNX Runtime computes shapes on the CPU by design, where the host needs them; that is not a fallback.

    Raises:
        RuntimeUnavailable: other operators are there too.
    """
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != provider]
    operators = sorted({node.op_type for part in parts for node in part.get_nodes()})
    if others := [operator for operator in operators if operator not in _SHAPE_OPERATORS]:
        raise RuntimeUnavailable(
            f"{provider} does not run all of the model: {', '.join(others)} would run on the CPU",
            hint="use onnxruntime-cpu, or pytorch-cuda with the checkpoint",
        )
    return tuple(operators)


def no_provider(name: str) -> RuntimeUnavailable:
    """Return the error for an onnxruntime package without the CUDA or the TensorRT provider."""
    return RuntimeUnavailable(
        f"onnxruntime {ort.__version__} has no {name} provider",
        hint="replace it: pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'",
    )


class _OnnxRuntime:
    """The session, its checks and inference, shared by both devices."""

    def __init__(
        self,
        name: str,
        provider: str,
        provider_options: dict[str, Any],
        path: Path,
        spec: ModelSpec,
        options: RuntimeOptions,
    ) -> None:
        self.name = name
        settings = session_options(options.threads)
        # The arena keeps the peak of all calls; without it, each call frees its memory.
        settings.enable_cpu_mem_arena = options.memory_profile == "default"
        with mapped_errors():
            self._session: Any = ort.InferenceSession(str(path), settings, providers=[(provider, provider_options)])
        check_provider(self._session, provider, "CUDA")
        on_cpu = nodes_on_the_cpu(self._session, provider)
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        effective = self._session.get_provider_options().get(provider, {})
        self.facts: Mapping[str, str] = {
            "onnxruntime": ort.__version__,
            "provider": provider,
            "threads": str(self._session.get_session_options().intra_op_num_threads),
            "tf32": "on" if effective.get("use_tf32") == "1" else "off",
            "memory arena": "on" if self._session.get_session_options().enable_cpu_mem_arena else "off",
            **{name: effective[name] for name in _REPORTED_OPTIONS if name in effective},
            **({"operators on the CPU": ", ".join(on_cpu)} if on_cpu else {}),
        }
        # A session computes in the file's types, except for TF32.
        computes_in = self._session.get_modelmeta().custom_metadata_map.get(PRECISION_KEY, "fp32")
        asked = options.precision
        if computes_in != ("fp32" if asked == "tf32" else asked):
            raise ArtifactError(f"{path} computes in {computes_in}, not in {asked}", hint=f"use the {asked} file")
        batch_size = self._session.get_inputs()[0].shape[0]
        fixed = batch_size if isinstance(batch_size, int) else 1
        self.infer(np.zeros((fixed, *spec.input_shape), dtype=np.float32))

    def infer(self, batch: FloatArray) -> FloatArray:
        with mapped_errors():
            logits: FloatArray = self._session.run([self._output], {self._input: batch})[0]
        return logits

    def close(self) -> None:
        self._session = None


class OnnxRuntimeCpu(_OnnxRuntime):
    """ONNX Runtime with the CPU execution provider."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("onnxruntime-cpu", _CPU, {}, path, spec, options)

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Return the version."""
        return {"onnxruntime": ort.__version__}


class OnnxRuntimeCuda(_OnnxRuntime):
    """ONNX Runtime with the CUDA provider; a call includes the copies."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        self.check(options)
        chosen = options.engine_options
        self._graph = chosen.get("cuda_graph") == "1"
        provider_options = {
            "device_id": str(options.device_index),
            "use_tf32": "1" if options.precision == "tf32" else "0",
            # EXHAUSTIVE, the default, pays again for each new shape; DEFAULT can be far slower
            # (microsoft/onnxruntime#22705).
            "cudnn_conv_algo_search": chosen.get("cudnn_conv_algo_search", "HEURISTIC"),
            # On an H100, NHWC takes 10 to 29 % less time where tensor cores compute and up to 51 % more in fp32.
            "prefer_nhwc": chosen.get("prefer_nhwc", "0" if options.precision == "fp32" else "1"),
            "enable_cuda_graph": "1" if self._graph else "0",
        }
        if options.memory_profile == "low":
            provider_options |= {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_use_max_workspace": "0"}
        self._device_index = options.device_index
        self._spec = spec
        self._bound: dict[int, Bound] = {}
        self._turn = threading.Lock()
        self._stream: cuda.Stream | None = None
        if options.scope == "device":
            # Events must be recorded on the stream that does the work, and the provider's own stream is not exposed.
            cuda.select(options.device_index)
            self._stream = cuda.Stream()
            self._events = cuda.Event(), cuda.Event()
            provider_options["user_compute_stream"] = str(self._stream.handle)
        super().__init__("onnxruntime-cuda", _CUDA, provider_options, path, spec, options)

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``; a CUDA graph needs buffers at fixed addresses."""
        if not self._graph:
            return super().infer(batch)
        with self._turn, mapped_errors():
            bound = self._buffers(len(batch))
            bound.upload(batch)
            bound.run()
            bound.wait()
            return bound.download()

    def infer_timed(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """See ``TimesItself.infer_timed``."""
        assert self._stream  # opened for this scope
        start, end = self._events
        with mapped_errors():
            bound = self._buffers(len(batch))
            bound.upload(batch)
            self._stream.synchronize()
            start.record(self._stream)
            bound.run()
            end.record(self._stream)
            seconds = end.seconds_since(start)
            return bound.download(), seconds

    def close(self) -> None:
        """See ``Runtime.close``."""
        self._bound.clear()
        super().close()

    def _buffers(self, batch_size: int) -> Bound:
        if batch_size not in self._bound:
            self._bound[batch_size] = Bound(self._session, self._spec, batch_size, "cuda", self._device_index)
        return self._bound[batch_size]

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Load the CUDA libraries installed by pip and return the versions.

        Raises:
            RuntimeUnavailable: there is no driver or GPU, or the package has no CUDA provider.
        """
        cuda.check_driver()
        if _CUDA not in ort.get_available_providers():
            raise no_provider("CUDA")
        ort.preload_dlls()  # only prints on failure; a missing library is found when the session is created
        return {"onnxruntime": ort.__version__, "cuda": ort.cuda_version}


class Bound:
    """Device buffers for the input and output of one batch size, bound to a session."""

    def __init__(
        self, session: ort.InferenceSession, spec: ModelSpec, batch_size: int, device: str, device_index: int
    ) -> None:
        def buffer(shape: tuple[int, ...]) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type([batch_size, *shape], np.float32, device, device_index)

        self._session = session
        self._images, self._logits = buffer(spec.input_shape), buffer(spec.output_shape)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._images)
        self._binding.bind_ortvalue_output(session.get_outputs()[0].name, self._logits)
        self._options = ort.RunOptions()
        # The call must not wait for the device by itself: events time the work alone, and the download waits for it.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        # With CUDA graphs, one graph per batch size.
        self._options.add_run_config_entry("gpu_graph_id", str(batch_size))

    def upload(self, batch: FloatArray) -> None:
        """Copy (N, C, H, W) float32 images to the device and wait."""
        self._images.update_inplace(batch)
        self._binding.synchronize_inputs()

    def run(self) -> None:
        """Run the session."""
        self._session.run_with_iobinding(self._binding, self._options)

    def wait(self) -> None:
        """Wait until the output is there."""
        self._binding.synchronize_outputs()

    def download(self) -> FloatArray:
        """Copy the logits to the host, (N, K, H, W) float32."""
        logits: FloatArray = self._logits.numpy()
        return logits
