"""TensorRT as a runtime, on a double of it and of CUDA; and what it says where they are missing, for real."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_double as double

from segx.errors import ArtifactError, ExportError, InferenceError, OutOfMemory, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions, open_runtime
from segx.runtimes import tensorrt as runtime_module
from segx.runtimes.base import CountsDeviceMemory, TimesItself
from segx.runtimes.tensorrt import (
    EngineFacts,
    Environment,
    Recipe,
    TensorRt,
    cache_name,
    precision_problem,
    timing_cache_path,
)
from segx.system import machine
from segx.system.derived import manifest_path, read_manifest
from segx.system.files import sha256_of

SPEC = ModelSpec(height=32, width=32)
OPTIONS = RuntimeOptions(threads=2)


@pytest.fixture
def cache(tensorrt: Any, tmp_path: Path) -> Path:
    """Where the doubled machine keeps engines."""
    return tmp_path / f"tensorrt-{tensorrt.version}"


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).random((5, 1, 32, 32), dtype=np.float32)


def opened(path: Path, cache: Path, precision: Any = "fp32") -> TensorRt:
    return TensorRt(path, SPEC, dataclasses.replace(OPTIONS, precision=precision), cache=cache)


def engines(cache: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in cache.glob("*.engine"))


def wanted(batch: np.ndarray) -> np.ndarray:
    return (batch - np.float32(0.5)) * np.float32(20)


def test_every_attribute_of_tensorrt_is_in_both_versions_of_the_bindings() -> None:
    shown = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
    added = {"ProfilingVerbosity", "Runtime", "OnnxParser"}  # present in the wheels of 10.16 and 11.4 too
    used = set(re.findall(r"\btrt\.([A-Z]\w+)", Path(runtime_module.__file__).read_text()))
    assert used
    for names in shown.values():
        assert used <= set(names) | added


def test_logits_are_those_of_onnx_runtime(plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    reference = open_runtime("onnxruntime-cpu", plain_onnx, spec=SPEC, options=OPTIONS)
    runtime = opened(plain_onnx, cache)
    for size in (1, 2, 5, 1):
        logits = runtime.infer(images[:size])
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, reference.infer(images[:size]), atol=1e-5)
    runtime.close()


def test_results_are_the_callers_own_and_inputs_stay(plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    runtime = opened(plain_onnx, cache)
    batch = images[:2].copy()
    first = runtime.infer(batch)
    kept = first.copy()
    runtime.infer(images[2:4])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(batch, images[:2])
    runtime.close()


def test_batches_need_not_be_contiguous(plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    runtime = opened(plain_onnx, cache)
    np.testing.assert_array_equal(runtime.infer(images[::-1]), wanted(images[::-1]))
    runtime.close()


@pytest.mark.parametrize("shape", [(1, 1, 32, 16), (1, 3, 32, 32), (0, 1, 32, 32)])
def test_other_shapes_are_refused(plain_onnx: Path, cache: Path, shape: tuple[int, ...]) -> None:
    runtime = opened(plain_onnx, cache)
    with pytest.raises(InferenceError, match="shape"):
        runtime.infer(np.zeros(shape, dtype=np.float32))
    runtime.close()


def test_on_the_device_the_run_is_timed_alone(plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    runtime = opened(plain_onnx, cache)
    assert isinstance(runtime, TimesItself)
    logits, seconds = runtime.infer_timed(images)
    np.testing.assert_array_equal(logits, wanted(images))
    assert 0 < seconds < 1
    runtime.close()


def test_device_memory_is_exact_and_of_the_largest_batch(plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    runtime = opened(plain_onnx, cache)
    assert isinstance(runtime, CountsDeviceMemory)
    runtime.infer(images)
    runtime.infer(images[:1])
    image_bytes = 32 * 32 * 4
    assert runtime.peak_device_bytes()[0] == 1000 + 5 * 100 + 5 * 2 * image_bytes
    runtime.close()


def test_one_batch_size_at_a_time_is_on_the_device(plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    runtime = opened(plain_onnx, cache)
    held = len(double.CONTROL[-1].held)
    for size in (5, 2, 1):
        runtime.infer(images[:size])
        assert len(double.CONTROL[-1].held) == held
    runtime.close()


def test_a_graph_gives_the_same(tensorrt: Any, plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    runtime = TensorRt(plain_onnx, SPEC, dataclasses.replace(OPTIONS, engine_options={"cuda_graph": "1"}), cache=cache)
    assert runtime.facts["cuda graph"] == "on"
    for size in (1, 3):
        for _ in range(2):
            np.testing.assert_array_equal(runtime.infer(images[:size]), wanted(images[:size]))
    logits, _ = runtime.infer_timed(images[:3])
    np.testing.assert_array_equal(logits, wanted(images[:3]))
    # One run before each of the two recordings; the rest were launches.
    assert tensorrt.runs == 2 + 1 + 2 * 2 + 1
    runtime.close()


def test_facts_are_read_back(plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    runtime = opened(plain_onnx, cache)
    runtime.infer(images[:2])
    facts = runtime.facts
    assert facts["tensorrt"] == "10.16.1.11"
    assert facts["device"] == "Fake GPU"
    assert facts["compute capability"] == "9.0"
    assert (facts["threads"], facts["tf32"], facts["profile"]) == ("2", "off", "batch 2")
    assert facts["layer types"] == "2 FLOAT, 1 INT64"
    runtime.close()


def test_an_engine_is_built_once_for_each_batch_size_and_kept(
    tensorrt: Any, plain_onnx: Path, cache: Path, images: np.ndarray
) -> None:
    for _ in range(2):
        runtime = opened(plain_onnx, cache)
        runtime.infer(images[:4])
        runtime.close()
    assert [build["batch_sizes"] for build in tensorrt.builds] == [[1], [4]]
    assert engines(cache) == ["plain-fp32-b1", "plain-fp32-b4"]


def test_tf32_is_left_on_only_where_it_is_asked_for(tensorrt: Any, plain_onnx: Path, cache: Path) -> None:
    for precision, tf32 in (("fp32", False), ("tf32", True)):
        runtime = opened(plain_onnx, cache, precision)
        assert tensorrt.builds[-1]["tf32"] is tf32
        assert runtime.facts["tf32"] == ("on" if tf32 else "off")
        runtime.close()
    assert engines(cache) == ["plain-fp32-b1", "plain-tf32-b1"]


@pytest.mark.parametrize("change", ["version", "model", "damage", "no manifest", "old manifest"])
def test_a_kept_engine_that_does_not_fit_is_built_again(
    tensorrt: Any, plain_onnx: Path, cache: Path, tmp_path: Path, change: str
) -> None:
    model = tmp_path / plain_onnx.name
    model.write_bytes(plain_onnx.read_bytes())
    opened(model, cache).close()
    (engine,) = cache.glob("*.engine")
    match change:
        case "version":
            tensorrt.version = "11.4.0.106"
        case "model":
            model.write_bytes(plain_onnx.read_bytes() + b"\n")
        case "damage":
            engine.write_bytes(engine.read_bytes() + b" ")
        case "no manifest":
            manifest_path(engine).unlink()
        case "old manifest":
            values = json.loads(manifest_path(engine).read_text())
            manifest_path(engine).write_text(json.dumps({**values, "schema_version": 0}))
    opened(model, cache).close()
    assert len(tensorrt.builds) == 2


def test_what_builds_measured_is_kept_for_the_next(tensorrt: Any, plain_onnx: Path, cache: Path) -> None:
    for precision in ("fp32", "tf32"):
        opened(plain_onnx, cache, precision).close()
    assert [build["timings"] for build in tensorrt.builds] == ["", "+"]
    (timings,) = cache.glob("timings-*.cache")
    assert timings.read_bytes() == b"++"


@pytest.mark.parametrize("content", [b"damaged", b"foreign"])
def test_timings_that_cannot_be_used_are_started_anew(
    tensorrt: Any, plain_onnx: Path, cache: Path, content: bytes
) -> None:
    opened(plain_onnx, cache).close()
    (timings,) = cache.glob("timings-*.cache")
    timings.write_bytes(content)
    opened(plain_onnx, cache, "tf32").close()
    assert tensorrt.builds[-1]["timings"] == ""
    assert timings.read_bytes() == b"+"


def test_threads_reach_the_builder(tensorrt: Any, plain_onnx: Path, cache: Path) -> None:
    opened(plain_onnx, cache).close()
    assert tensorrt.builds[0]["threads"] == 2


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "HALF"), ("bf16", "BF16"), ("int8", "INT8")])
def test_precision_comes_from_the_file_and_is_checked(
    tensorrt: Any, plain_onnx: Path, cache: Path, precision: str, kind: str
) -> None:
    with pytest.raises(
        ExportError,
        match=f"{precision} was requested, but no layer has it: 2 layers in FLOAT",
    ):
        opened(plain_onnx, cache, precision)
    assert not list(cache.glob("*.engine"))
    assert not tensorrt.builds, "it is found before minutes are spent"
    tensorrt.types = ("FLOAT", kind)
    opened(plain_onnx, cache, precision).close()
    assert not tensorrt.builds[-1]["tf32"]
    with pytest.raises(ExportError, match="fp32 was requested, but the network is narrower"):
        opened(plain_onnx, cache, "fp32")


def test_precision_problems_in_words() -> None:
    assert precision_problem("fp32", {"FLOAT": 3, "INT64": 1}) is None
    assert precision_problem("tf32", {"FLOAT": 3}) is None
    assert precision_problem("int8", {"FLOAT": 3, "INT8": 9}) is None
    assert precision_problem("fp16", {"FLOAT": 3, "BF16": 9}) == (
        "fp16 was requested, but no layer has it: 9 layers in BF16, 3 layers in FLOAT"
    )
    assert precision_problem("tf32", {"FLOAT": 3, "FP8": 9}) is not None


def test_each_of_the_parsers_errors_is_told(
    tensorrt: Any, plain_onnx: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensorrt.parser_errors = ("no such\noperator", "wrong\nshape")
    with caplog.at_level(logging.ERROR), pytest.raises(ExportError, match=r"cannot read .*wrong shape") as caught:
        opened(plain_onnx, cache)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("segx")]
    assert [line.partition("UNSUPPORTED_NODE: ")[2] for line in lines] == ["no such operator", "wrong shape"]
    assert len(caught.value.__notes__) == 2
    assert "\n" not in caught.value.message


def test_a_model_of_another_shape_is_refused(tensorrt: Any, plain_onnx: Path, cache: Path) -> None:
    tensorrt.input_shape = (1, 1, 64, 64)
    with pytest.raises(ExportError, match=r"inputs of shapes \[\(1, 1, 64, 64\)\], not one of \(-1, 1, 32, 32\)"):
        opened(plain_onnx, cache)


def test_a_model_that_does_not_give_float32_is_refused(tensorrt: Any, plain_onnx: Path, cache: Path) -> None:
    tensorrt.output_dtype = "HALF"
    with pytest.raises(ArtifactError, match=r"HALF.*not float32"):
        opened(plain_onnx, cache)
    assert not list(cache.glob("*.engine"))


@pytest.mark.parametrize(
    ("refuse", "error", "words"),
    [
        ("builder", InferenceError, "does not start"),
        ("build", ExportError, "cannot build"),
        ("profile", ExportError, "refuses a profile"),
        ("deserialize", InferenceError, "does not accept the engine"),
        ("context", InferenceError, "cannot make an execution context"),
        ("execute", InferenceError, "cannot run"),
    ],
)
def test_what_tensorrt_refuses_is_an_error_in_its_words(
    tensorrt: Any, plain_onnx: Path, cache: Path, refuse: str, error: type[Exception], words: str
) -> None:
    tensorrt.refuse = refuse
    tensorrt.says = "" if refuse == "profile" else "Error Code 4:\n it will not"
    with pytest.raises(error, match=words) as caught:
        opened(plain_onnx, cache)
    if tensorrt.says:
        assert caught.value.message.endswith(": Error Code 4: it will not")
        tensorrt.says = "[defaultAllocator.cpp] Error Code 1: Cuda Runtime (out of memory)"
        with pytest.raises(OutOfMemory, match=words):
            opened(plain_onnx, cache)


def test_device_memory_that_runs_out_is_told_apart(plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    runtime = opened(plain_onnx, cache)
    double.CONTROL[-1].limit = 4 * 32 * 32 * 4
    runtime.infer(images[:4])
    with pytest.raises(OutOfMemory, match="out of memory"):
        runtime.infer(images)
    double.CONTROL[-1].limit = 2**62
    np.testing.assert_array_equal(runtime.infer(images), wanted(images))
    runtime.close()


def test_a_failing_gpu_is_an_inference_error(plain_onnx: Path, cache: Path, images: np.ndarray) -> None:
    runtime = opened(plain_onnx, cache)
    double.CONTROL[-1].failures["cudaStreamSynchronize"] = 719
    with pytest.raises(InferenceError, match="cudaStreamSynchronize, status 719"):
        runtime.infer(images[:1])
    double.CONTROL[-1].failures.clear()
    runtime.close()


ENVIRONMENT = Environment(
    tensorrt="10.16.1.11",
    gpu="GPU",
    compute_capability="9.0",
    system="Linux x86_64",
    cuda_runtime="13.2",
    cuda_driver="13.0",
)
RECIPE = Recipe(onnx_sha256="0" * 64, precision="fp32", input_shape=(1, 8, 8), output_shape=(1, 8, 8), batch_sizes=(1,))


def test_a_kept_engines_name_changes_with_all_that_it_depends_on() -> None:
    recipes = [
        RECIPE,
        dataclasses.replace(RECIPE, onnx_sha256="1" * 64),
        dataclasses.replace(RECIPE, precision="tf32"),
        dataclasses.replace(RECIPE, batch_sizes=(2,)),
        dataclasses.replace(RECIPE, workspace_bytes=1),
        dataclasses.replace(RECIPE, input_shape=(3, 8, 8)),
    ]
    environments = [
        ENVIRONMENT,
        *(
            dataclasses.replace(ENVIRONMENT, **{name: "other"})
            for name in ("tensorrt", "gpu", "compute_capability", "system")
        ),
    ]
    names = [cache_name(Path("m.onnx"), recipe, ENVIRONMENT) for recipe in recipes]
    names += [cache_name(Path("m.onnx"), RECIPE, here) for here in environments[1:]]
    names.append(cache_name(Path("m.onnx"), RECIPE, ENVIRONMENT, "onnxruntime 1.31.1"))
    assert len(set(names)) == len(names)
    assert len({timing_cache_path(Path(), here) for here in environments}) == len(environments)
    newer_driver = dataclasses.replace(ENVIRONMENT, cuda_driver="14.0", cuda_runtime="14.0")
    assert cache_name(Path("m.onnx"), RECIPE, newer_driver) == names[0]


def test_the_manifest_beside_a_kept_engine_tells_what_it_is(plain_onnx: Path, cache: Path) -> None:
    opened(plain_onnx, cache).close()
    (engine,) = cache.glob("*.engine")
    manifest = read_manifest(engine, EngineFacts)
    assert manifest
    assert manifest.proof.recipe.onnx_sha256 == sha256_of(plain_onnx)
    assert manifest.artifact_sha256 == sha256_of(engine)
    assert manifest.proof.environment.gpu == "Fake GPU"


def test_a_version_that_is_too_old_is_unavailable(tensorrt: Any) -> None:
    tensorrt.version = "10.13.2.6"
    with pytest.raises(RuntimeUnavailable, match=r"TensorRT 10\.13\.2\.6 is older than 10\.16"):
        TensorRt.check(OPTIONS)


@pytest.mark.usefixtures("tensorrt")
def test_a_gpu_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(RuntimeUnavailable, match="no CUDA device 3; there are 1"):
        TensorRt.check(RuntimeOptions(threads=1, device_index=3))


def test_this_machine_says_why_it_cannot_run_tensorrt() -> None:
    """For real: neither driver nor package are doubled."""
    if (problem := machine.cuda_problem()) is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeUnavailable) as caught:
        TensorRt.check(OPTIONS)
    assert caught.value.message == problem
    assert "NVIDIA GPU" in caught.value.hint


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segx.system.machine.cuda_problem", lambda: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailable, match="tensorrt") as caught:
        TensorRt.check(OPTIONS)
    assert "pip install 'tensorrt-cu13~=10.16'" in caught.value.hint
