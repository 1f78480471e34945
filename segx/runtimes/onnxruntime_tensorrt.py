"""ONNX Runtime with its TensorRT provider: explicit profiles, cached engines and timings, no other provider."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from segx.errors import InferenceError, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes import cuda
from segx.runtimes.base import FloatArray, RuntimeOptions
from segx.runtimes.onnxruntime import check_provider, mapped_errors, no_provider, session_options
from segx.runtimes.tensorrt import CACHE_FOLDER, Recipe, cache_name, environment_here
from segx.system.files import output_errors, write_text

_TENSORRT = "TensorrtExecutionProvider"
_INPUT = "image"  # as named by segx export; profiles need it before there is a session

_TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"

# Written last; a cache without it was left by an interrupted build.
_COMPLETE = "complete.json"

_PROVIDER_LIBRARY = "libonnxruntime_providers_tensorrt.so"
# In order of dependency.
_TENSORRT_LIBRARIES = ("libnvinfer.so", "libnvinfer_plugin.so", "libnvonnxparser.so")


class OnnxRuntimeTensorRt:
    """ONNX Runtime with only the TensorRT provider; a call includes the copies to and from the GPU.

    Holds one session for one batch size at a time. Its profile allows only that size, so that nothing is built in a
    timed call and other batch sizes do not count in its figures.
    """

    name = "onnxruntime-tensorrt"

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions, *, cache: Path = CACHE_FOLDER) -> None:
        """Load the engine for one image from ``cache``, or build it, and run it once.

        TensorRT computes in the types of the ONNX file, except for TF32.

        Raises:
            RuntimeUnavailable: there is no driver, no GPU, or no TensorRT of the version that ONNX Runtime needs.
            OutOfMemory, InferenceError: see ``infer``.
        """
        versions = self.check(options)
        self._path = path
        self._spec = spec
        self._options = options
        self._cache = cache
        self._tf32 = _settle_tf32(wanted=options.precision == "tf32")
        self._turn = threading.Lock()
        self._here = environment_here(options.device_index, versions["tensorrt"])
        self._recipe = Recipe.of(path, spec, options.precision, (1,), None)
        self.close()
        self.infer(np.zeros((1, *spec.input_shape), dtype=np.float32))

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Load the TensorRT that ONNX Runtime was linked with, and return the versions and the device name.

        Raises:
            RuntimeUnavailable: the driver, the GPU, the provider or TensorRT is missing.
        """
        cuda.check_driver()
        tensorrt = load_linked_tensorrt()
        ort.preload_dlls()  # only prints on failure; a missing library is found when the session is created
        device = cuda.device(options.device_index)
        return {"onnxruntime": ort.__version__, "tensorrt": tensorrt, "cuda": ort.cuda_version, "device": device.name}

    @property
    def facts(self) -> Mapping[str, str]:
        """Settings in force for the batch size of the last call."""
        effective = self._session.get_provider_options()[_TENSORRT]
        return {
            "onnxruntime": ort.__version__,
            "tensorrt": self._here.tensorrt,
            "device": self._here.gpu,
            "compute capability": self._here.compute_capability,
            "provider": self._session.get_providers()[0],
            "threads": str(self._session.get_session_options().intra_op_num_threads),
            "tf32": self._tf32,
            "profile": effective.get("trt_profile_opt_shapes", ""),
            "engine cache": effective.get("trt_engine_cache_path", ""),
        }

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``; a new batch size is prepared first, see ``prepare``."""
        with self._turn:
            self.prepare(len(batch))
            with mapped_errors():
                logits: FloatArray = self._session.run(None, {_INPUT: batch})[0]
        return logits

    def close(self) -> None:
        """See ``Runtime.close``."""
        self._session: Any = None
        self._batch_size = 0

    def prepare(self, batch_size: int) -> None:
        """Make the session for a batch size, which builds its engine unless it is cached.

        Raises:
            RuntimeUnavailable: ONNX Runtime assigned nodes to another provider.
            OutOfMemory, InferenceError: see ``infer``.
        """
        if batch_size == self._batch_size:
            return
        if not batch_size:
            raise InferenceError("TensorRT cannot run an empty batch", hint="pass at least one image")
        self.close()
        recipe = replace(self._recipe, batch_sizes=(batch_size,))
        folder = self._cache / cache_name(self._path, recipe, self._here, f"onnxruntime {ort.__version__}")
        with output_errors(folder):
            if not (folder / _COMPLETE).is_file():
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        with mapped_errors():
            self._session = self._new_session(folder, batch_size)
            # The provider builds the engine in the first run.
            image = np.zeros((batch_size, *self._spec.input_shape), dtype=np.float32)
            self._session.run(None, {_INPUT: image})
        kept = {"recipe": asdict(recipe), "environment": asdict(self._here), "onnxruntime": ort.__version__}
        write_text(folder / _COMPLETE, json.dumps(kept, indent=2) + "\n")
        self._batch_size = batch_size

    def _new_session(self, folder: Path, batch_size: int) -> Any:
        settings = session_options(self._options.threads)
        # Creation fails if a node would run on the CPU. Listing the CPU provider too would contradict this.
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = (_TENSORRT, provider_options(self._spec, batch_size, self._options.device_index, folder))
        try:
            # The fallback would print to stdout and make a CPU session.
            session = ort.InferenceSession(str(self._path), settings, providers=[provider], enable_fallback=0)
        except RuntimeError as error:  # the provider's library cannot be loaded
            raise RuntimeUnavailable(
                f"ONNX Runtime {ort.__version__} cannot load its TensorRT provider",
                hint="see its output; the CUDA libraries come with pip install 'onnxruntime-gpu[cuda,cudnn]'",
            ) from error
        check_provider(session, _TENSORRT, "TensorRT")
        if others := {part.ep_name for part in session.get_provider_graph_assignment_info()} - {_TENSORRT}:
            raise RuntimeUnavailable(
                f"TensorRT cannot run all of the model: parts went to {', '.join(sorted(others))}",
                hint="use onnxruntime-cuda",
            )
        return session


def provider_options(spec: ModelSpec, batch_size: int, device_index: int, folder: Path) -> dict[str, str]:
    """Return options of the TensorRT provider for one batch size, with engine and timings cached in ``folder``.

    Without ``trt_fp16_enable`` and ``trt_int8_enable``, the network is strongly typed and keeps the file's types; with
    either of them, TensorRT would choose.
    """
    shape = "x".join(map(str, (batch_size, *spec.input_shape)))
    return {
        "device_id": str(device_index),
        **{f"trt_profile_{which}_shapes": f"{_INPUT}:{shape}" for which in ("min", "opt", "max")},
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def load_linked_tensorrt() -> str:
    """Load the TensorRT libraries that ONNX Runtime's provider was linked with, and return their version.

    Once they are loaded, the provider finds them wherever pip installed them.

    Raises:
        RuntimeUnavailable: this ONNX Runtime has no TensorRT provider, or the libraries of that version are missing.
    """
    major = linked_major()
    install = f"pip install 'tensorrt-cu{ort.cuda_version.partition('.')[0]}=={major}.*'"
    try:
        libraries = [ctypes.CDLL(str(path)) for path in _library_paths(major)]
    except OSError as error:
        raise RuntimeUnavailable(
            f"onnxruntime {ort.__version__} needs TensorRT {major}: {error}",
            hint=f"{install} (its libraries come from NVIDIA's own package index)",
        ) from error
    number = int(libraries[0].getInferLibVersion())
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def linked_major() -> str:
    """Return the major version of TensorRT that ONNX Runtime's provider was linked with, read from its file.

    Raises:
        RuntimeUnavailable: this ONNX Runtime has no TensorRT provider.
    """
    library = Path(ort.__file__).parent / "capi" / _PROVIDER_LIBRARY
    found = re.search(rb"libnvinfer\.so\.(\d+)", library.read_bytes()) if library.is_file() else None
    if _TENSORRT not in ort.get_available_providers() or found is None:
        raise no_provider("TensorRT")
    return found[1].decode()


def _library_paths(major: str) -> Iterator[Path | str]:
    # find_spec does not import the package.
    package = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(folder) for folder in (package.submodule_search_locations or [])] if package else []
    for library in _TENSORRT_LIBRARIES:
        name = f"{library}.{major}"
        yield next((folder / name for folder in folders if (folder / name).is_file()), name)


def _settle_tf32(*, wanted: bool) -> str:
    """Allow or forbid TF32 by a variable that CUDA's libraries read on start, the only switch for this provider.

    Raises:
        RuntimeUnavailable: TF32 is requested, and the variable forbids it.
    """
    if not wanted:
        os.environ[_TF32_VARIABLE] = "0"
        return "off"
    if os.environ.get(_TF32_VARIABLE) == "0":
        raise RuntimeUnavailable(f"{_TF32_VARIABLE}=0 forbids TF32", hint=f"unset {_TF32_VARIABLE}")
    return "on"
