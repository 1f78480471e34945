"""ONNX Runtime's TensorRT provider: options, caches and refusals, with a session that only says it is TensorRT's."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from segx.errors import InferenceError, OutputError, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, onnxruntime_tensorrt
from segx.runtimes.onnxruntime_tensorrt import OnnxRuntimeTensorRt, linked_major, load_linked_tensorrt, provider_options
from segx.system import machine

SPEC = ModelSpec(height=32, width=32)
OPTIONS = RuntimeOptions(threads=2)
TENSORRT = "TensorrtExecutionProvider"

needs_provider = pytest.mark.skipif(
    TENSORRT not in ort.get_available_providers(), reason="this onnxruntime has no TensorRT provider"
)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).random((5, 1, 32, 32), dtype=np.float32)


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TensorRT's libraries as pip installs them, with nothing in them but their version."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler (cc) to make empty TensorRT libraries with")
    folder = tmp_path / "site" / "tensorrt_libs"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it is looked up, and not imported')")
    source = folder / "version.c"
    source.write_text("int getInferLibVersion(void) { return 101601; }")
    for name in onnxruntime_tensorrt._TENSORRT_LIBRARIES:
        command = [compiler, "-shared", "-fPIC", "-o", str(folder / f"{name}.{linked_major()}"), str(source)]
        subprocess.run(command, check=True)
    monkeypatch.syspath_prepend(str(folder.parent))
    importlib.invalidate_caches()
    return folder


class Session:
    """ONNX Runtime on the CPU that says it is TensorRT; keeps what it was asked."""

    made: list[dict[str, str]] = []  # noqa: RUF012 - emptied by the fixture
    providers = [TENSORRT]  # noqa: RUF012 - changed by tests
    parts = [TENSORRT]  # noqa: RUF012 - changed by tests
    failure = ""

    def __init__(self, path: str, settings: ort.SessionOptions, *, providers: list[Any], enable_fallback: int) -> None:
        ((name, options),) = providers
        assert name == TENSORRT
        assert enable_fallback == 0
        assert settings.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        plain = ort.SessionOptions()
        plain.intra_op_num_threads = settings.intra_op_num_threads
        self._session = really_open(path, plain, providers=["CPUExecutionProvider"])
        self._options = options
        self.made.append(options)

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {TENSORRT: self._options}

    def get_session_options(self) -> Any:
        return self._session.get_session_options()

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in self.parts]

    def run(self, names: None, inputs: dict[str, np.ndarray]) -> Any:
        if self.failure:
            raise ort_errors.Fail(self.failure)
        (shape,) = {array.shape for array in inputs.values()}
        assert self._options["trt_profile_opt_shapes"] == f"image:{'x'.join(map(str, shape))}"
        (Path(self._options["trt_engine_cache_path"]) / "built.engine").write_text("engine")
        return self._session.run(names, inputs)


really_open = ort.InferenceSession
ort_errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")


@pytest.fixture
def cache(libraries: Path, fake_cudart: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a machine with a GPU and TensorRT keeps its caches."""
    assert libraries.is_dir()
    monkeypatch.setattr("segx.system.machine.cuda_problem", lambda: None)
    assert fake_cudart
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(Session, "made", [])
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    return tmp_path / "cache"


def opened(path: Path, cache: Path, precision: Any = "fp32") -> OnnxRuntimeTensorRt:
    return OnnxRuntimeTensorRt(path, SPEC, RuntimeOptions(threads=2, precision=precision), cache=cache)


def folders(cache: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in cache.iterdir())


@needs_provider
def test_each_batch_size_has_its_own_session_profile_and_cache(
    plain_onnx: Path, cache: Path, images: np.ndarray
) -> None:
    runtime = opened(plain_onnx, cache)
    for size in (1, 4, 4):
        logits = runtime.infer(images[:size])
        np.testing.assert_allclose(logits, (images[:size] - 0.5) * 20, atol=1e-5)
    assert [made["trt_profile_min_shapes"] for made in Session.made] == ["image:1x1x32x32", "image:4x1x32x32"]
    assert folders(cache) == ["plain-fp32-b1", "plain-fp32-b4"]
    assert runtime.facts["profile"] == "image:4x1x32x32"
    assert (runtime.facts["tensorrt"], runtime.facts["threads"]) == ("10.16.1", "2")
    runtime.close()


@needs_provider
def test_a_complete_cache_is_used_again_and_an_incomplete_one_thrown_away(plain_onnx: Path, cache: Path) -> None:
    opened(plain_onnx, cache).close()
    (folder,) = cache.iterdir()
    told = json.loads((folder / "complete.json").read_text())
    assert told["environment"]["gpu"] == "Fake GPU"
    assert told["onnxruntime"] == ort.__version__
    (folder / "kept").touch()
    opened(plain_onnx, cache).close()
    assert (folder / "kept").exists()
    (folder / "complete.json").unlink()
    opened(plain_onnx, cache).close()
    assert not (folder / "kept").exists()


@needs_provider
def test_a_build_that_fails_is_not_taken_for_complete(
    plain_onnx: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "failure", "TensorRT EP failed to create engine")
    with pytest.raises(InferenceError, match="failed to create engine"):
        opened(plain_onnx, cache)
    assert not list(cache.rglob("complete.json"))


@needs_provider
def test_another_version_of_onnx_runtime_has_another_cache(
    plain_onnx: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(plain_onnx, cache).close()
    monkeypatch.setattr(ort, "__version__", "9.9.9")
    opened(plain_onnx, cache).close()
    assert len(list(cache.iterdir())) == 2


@needs_provider
def test_tf32_is_forbidden_by_the_variable_unless_it_is_asked_for(
    plain_onnx: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(plain_onnx, cache, "tf32").facts["tf32"] == "on"
    assert opened(plain_onnx, cache, "fp32").facts["tf32"] == "off"
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    with pytest.raises(RuntimeUnavailable, match="NVIDIA_TF32_OVERRIDE=0 forbids TF32"):
        opened(plain_onnx, cache, "tf32")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    opened(plain_onnx, cache, "tf32").close()
    assert folders(cache) == ["plain-fp32-b1", "plain-tf32-b1"]


@needs_provider
@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("providers", ["CPUExecutionProvider"], "fell back to CPUExecutionProvider"),
        ("parts", [TENSORRT, "CUDAExecutionProvider"], "parts went to CUDAExecutionProvider"),
    ],
)
def test_work_that_goes_elsewhere_is_refused(
    plain_onnx: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, what: str, value: list[str], words: str
) -> None:
    monkeypatch.setattr(Session, what, value)
    with pytest.raises(RuntimeUnavailable, match=words):
        opened(plain_onnx, cache)


@needs_provider
def test_an_empty_batch_and_a_locked_cache_are_clear_errors(plain_onnx: Path, cache: Path, tmp_path: Path) -> None:
    runtime = opened(plain_onnx, cache)
    with pytest.raises(InferenceError, match="empty batch"):
        runtime.infer(np.zeros((0, 1, 32, 32), dtype=np.float32))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        opened(plain_onnx, tmp_path / "file")


def test_types_come_from_the_file(tmp_path: Path) -> None:
    options = provider_options(SPEC, 4, 1, tmp_path)
    assert options["device_id"] == "1"
    shapes = {options[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")}
    assert shapes == {"image:4x1x32x32"}
    # Either would make the network weakly typed.
    assert not {"trt_fp16_enable", "trt_int8_enable", "trt_bf16_enable"}.intersection(options)


@needs_provider
def test_the_provider_knows_every_option(tmp_path: Path) -> None:
    """By the names in its own file."""
    library = Path(ort.__file__).parent / "capi" / onnxruntime_tensorrt._PROVIDER_LIBRARY
    content = library.read_bytes()
    assert all(name.encode() in content for name in provider_options(SPEC, 1, 0, tmp_path))


@needs_provider
def test_the_linked_tensorrt_is_found_where_pip_puts_it(libraries: Path) -> None:
    assert (libraries / f"libnvinfer.so.{linked_major()}").is_file()
    assert load_linked_tensorrt() == "10.16.1"


@needs_provider
def test_without_that_version_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, unless this machine has TensorRT's libraries: one is asked for that nobody has."""
    monkeypatch.setattr("segx.system.machine.cuda_problem", lambda: None)
    monkeypatch.setattr(onnxruntime_tensorrt, "linked_major", lambda: "99")
    with pytest.raises(RuntimeUnavailable, match=r"needs TensorRT 99: libnvinfer\.so\.99") as caught:
        OnnxRuntimeTensorRt.check(OPTIONS)
    major = ort.cuda_version.partition(".")[0]
    assert f"pip install 'tensorrt-cu{major}==99.*'" in caught.value.hint


def test_a_package_without_the_provider_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeUnavailable, match="has no TensorRT provider") as caught:
        linked_major()
    assert "onnxruntime-gpu" in caught.value.hint


def test_without_a_driver_it_says_so_for_real() -> None:
    if (problem := machine.cuda_problem()) is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeUnavailable) as caught:
        OnnxRuntimeTensorRt.check(OPTIONS)
    assert caught.value.message == problem


@needs_provider
def test_onnxruntime_itself_does_not_run_on_the_cpu_in_tensorrts_name(
    plain_onnx: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the real ONNX Runtime, a driver that lies and empty TensorRT libraries."""
    monkeypatch.setattr(ort, "InferenceSession", really_open)
    with pytest.raises(RuntimeUnavailable, match="cannot load its TensorRT provider"):
        opened(plain_onnx, cache)
    assert "Falling back" not in capfd.readouterr().out
