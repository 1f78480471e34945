"""The contract of every runtime; skipped with the reason where one is unavailable."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from segx.errors import RuntimeUnavailable, SegxError, UsageError
from segx.model.spec import ModelSpec
from segx.reporting.bench_document import short_names
from segx.runtimes import (
    RUNTIMES,
    Device,
    Runtime,
    RuntimeInfo,
    RuntimeOptions,
    Variant,
    check_runtime,
    open_runtime,
    resolve_names,
    runtime_info,
)
from segx.runtimes.base import TimesItself

OPTIONS = RuntimeOptions(threads=2)


def _marks(info: RuntimeInfo) -> list[pytest.MarkDecorator]:
    if info.device == "cuda":
        return [pytest.mark.gpu]
    return [pytest.mark.slow] if info.compiles or info.in_browser else []


NAMES = [pytest.param(name, marks=_marks(info)) for name, info in RUNTIMES.items()] + ["fake"]


@dataclass(frozen=True)
class Model:
    spec: ModelSpec
    files: dict[str, Path]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let torch.compile reuse what an earlier test compiled; an empty cache for each would cost minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        patch.setattr("segx.runtimes.torch_compile._empty_cache", contextlib.nullcontext)
        yield


@pytest.fixture(scope="module")
def model(tiny_spec: ModelSpec, tiny_checkpoint: Path, tiny_onnx: Path) -> Model:
    return Model(tiny_spec, {"checkpoint": tiny_checkpoint, "onnx": tiny_onnx})


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest, model: Model) -> Iterator[Runtime]:
    name: str = request.param
    try:
        opened = open_runtime(name, model.files[runtime_info(name).takes], spec=model.spec, options=OPTIONS)
    except RuntimeUnavailable as error:
        pytest.skip(f"{name}: {error}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def images(tiny_spec: ModelSpec) -> np.ndarray:
    return np.random.default_rng(0).random((5, *tiny_spec.input_shape), dtype=np.float32)


def test_logits_have_the_right_shape_and_type(runtime: Runtime, model: Model, images: np.ndarray) -> None:
    for size in (1, 2, 5):
        logits = runtime.infer(images[:size])
        assert logits.shape == (size, *model.spec.output_shape)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()


def test_each_image_has_its_own_result(runtime: Runtime, images: np.ndarray) -> None:
    together = runtime.infer(images)
    for i, image in enumerate(images):
        np.testing.assert_allclose(runtime.infer(image[None])[0], together[i], atol=1e-4)
    np.testing.assert_allclose(runtime.infer(images[::-1].copy())[::-1], together, atol=1e-4)
    assert not np.allclose(together[0], together[1])


def test_results_are_not_overwritten_by_later_calls(runtime: Runtime, images: np.ndarray) -> None:
    first = runtime.infer(images[:1])
    kept = first.copy()
    runtime.infer(images[1:2])
    np.testing.assert_array_equal(first, kept)


def test_inputs_are_not_changed(runtime: Runtime, images: np.ndarray) -> None:
    batch = images[:2].copy()
    runtime.infer(batch)
    np.testing.assert_array_equal(batch, images[:2])


def test_repeating_a_call_gives_the_same(runtime: Runtime, images: np.ndarray) -> None:
    np.testing.assert_array_equal(runtime.infer(images), runtime.infer(images))


def test_threads_may_share_it(runtime: Runtime, images: np.ndarray) -> None:
    batches = [images[index % 4 : index % 4 + 2] for index in range(16)]
    expected = [runtime.infer(batch) for batch in batches[:4]]
    with ThreadPoolExecutor(4) as threads:
        for index, logits in enumerate(threads.map(runtime.infer, batches)):
            np.testing.assert_allclose(logits, expected[index % 4], atol=1e-4)


def test_closing_it_twice_is_harmless(runtime: Runtime) -> None:
    runtime.close()
    runtime.close()


def test_name_and_threads_are_those_asked_for(runtime: Runtime) -> None:
    assert runtime.name in {*RUNTIMES, "fake"}
    assert runtime.facts["threads"] == "2"
    assert {type(value) for value in runtime.facts.values()} == {str}  # torch.__version__ is of a subclass


def test_tf32_is_off_unless_asked_for(runtime: Runtime) -> None:
    assert runtime.facts.get("tf32", "off") == "off"


@pytest.mark.parametrize("name", NAMES)
def test_in_the_device_scope_logits_are_the_same_and_the_time_is_the_devices(
    name: str, model: Model, images: np.ndarray
) -> None:
    info = runtime_info(name)
    if "device" not in info.scopes:
        pytest.skip(f"{name}: computes where its input is")
    try:
        plain, on_device = (
            open_runtime(
                name, model.files[info.takes], spec=model.spec, options=dataclasses.replace(OPTIONS, scope=scope)
            )
            for scope in ("forward", "device")
        )
    except RuntimeUnavailable as error:
        pytest.skip(f"{name}: {error}")
    assert isinstance(on_device, TimesItself)
    for _ in range(2):
        start = time.perf_counter()
        logits, seconds = on_device.infer_timed(images)
        assert 0.0 <= seconds <= time.perf_counter() - start
        np.testing.assert_allclose(logits, plain.infer(images), atol=1e-4)


def test_the_low_memory_profile_is_in_force_and_changes_no_result(model: Model, images: np.ndarray) -> None:
    default, low = (
        open_runtime(
            "onnxruntime-cpu",
            model.files["onnx"],
            spec=model.spec,
            options=dataclasses.replace(OPTIONS, memory_profile=profile),
        )
        for profile in ("default", "low")
    )
    assert (default.facts["memory arena"], low.facts["memory arena"]) == ("on", "off")
    np.testing.assert_array_equal(default.infer(images), low.infer(images))


@pytest.mark.parametrize("name", NAMES)
def test_masks_agree_with_pytorch(name: str, model: Model, images: np.ndarray) -> None:
    if name == "fake":
        pytest.skip("fake: computes no model")
    reference = open_runtime("pytorch-cpu", model.files["checkpoint"], spec=model.spec, options=OPTIONS)
    try:
        other = open_runtime(name, model.files[runtime_info(name).takes], spec=model.spec, options=OPTIONS)
    except RuntimeUnavailable as error:
        pytest.skip(f"{name}: {error}")
    expected, got = reference.infer(images), other.infer(images)
    assert np.abs(expected - got).max() <= 1e-4 * max(1.0, float(np.ptp(expected)))


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_missing_file_is_a_clear_error(name: str, model: Model, tmp_path: Path) -> None:
    with pytest.raises(SegxError) as caught:
        open_runtime(name, tmp_path / "missing", spec=model.spec, options=OPTIONS)
    if isinstance(caught.value, RuntimeUnavailable):
        pytest.skip(f"{name}: {caught.value}")
    assert "missing" in caught.value.message


@pytest.mark.parametrize("name", [name for name, info in RUNTIMES.items() if info.device == "cuda"])
def test_cuda_without_a_gpu_says_why_and_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segx.system.machine.cuda_problem", lambda: "no driver here")
    with pytest.raises(RuntimeUnavailable, match="no driver here") as caught:
        check_runtime(name, OPTIONS)
    assert "NVIDIA" in caught.value.hint


@pytest.mark.parametrize("name", [name for name, i in RUNTIMES.items() if i.device == "cpu" and not i.in_browser])
def test_cpu_runtimes_are_ready_and_name_their_version(name: str) -> None:
    assert check_runtime(name, OPTIONS)


_REPORT = """
import json, os, sys
from pathlib import Path
from segx.model.spec import ModelSpec
from segx.reporting.bench_document import short_names
from segx.runtimes import RuntimeOptions, open_runtime
name, path, spec = sys.argv[1:]
open_runtime(name, path, spec=ModelSpec.from_json(spec), options=RuntimeOptions(threads=1)).close()
tasks = Path("/proc/self/task").iterdir()
links = []
for link in Path("/proc/self/fd").iterdir():
    try:
        links.append(os.readlink(link))
    except OSError:  # the descriptor of the listing itself
        continue
print(json.dumps({
    "children": " ".join((task / "children").read_text() for task in tasks).split(),
    "sockets": [link for link in links if link.startswith("socket:")],
    "home": [str(path) for path in Path.home().rglob("*") if path.is_file()],
}))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino-cpu", "pytorch-cpu"])
def test_an_engine_reports_to_nobody(name: str, model: Model, tmp_path: Path) -> None:
    """No child process, no socket, and no identifier in the home folder."""
    path = model.files[runtime_info(name).takes]
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", _REPORT, name, str(path), model.spec.to_json()],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {"children": [], "sockets": [], "home": []}


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_library_that_is_imported_after_segx_reports_to_nobody(name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    code = f"import segx, {name}"
    subprocess.run([sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []


def test_onnxruntime_refuses_a_fall_back_to_the_cpu(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that lies, ONNX Runtime itself must not run on the CPU in CUDA's name."""
    from segx.system import machine

    if machine.cuda_problem() is None:
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr("segx.system.machine.cuda_problem", lambda: None)
    with pytest.raises(SegxError):
        open_runtime("onnxruntime-cuda", model.files["onnx"], spec=model.spec, options=OPTIONS)


def test_a_file_that_is_no_onnx_is_a_clear_error(model: Model, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_text("junk")
    with pytest.raises(SegxError, match="ONNX Runtime"):
        open_runtime("onnxruntime-cpu", tmp_path / "junk.onnx", spec=model.spec, options=OPTIONS)


def test_onnxruntime_takes_a_wrong_shape_as_an_error(model: Model) -> None:
    runtime = open_runtime("onnxruntime-cpu", model.files["onnx"], spec=model.spec, options=OPTIONS)
    with pytest.raises(SegxError, match="ONNX Runtime"):
        runtime.infer(np.zeros((1, 3, 32, 32), dtype=np.float32))


def test_tf32_policy_reaches_torch(model: Model) -> None:
    # Not by its name: the table offers TF32 on CUDA alone, and the switch is the same.
    from segx.runtimes.pytorch import PyTorchCpu

    def tf32(*, asked: bool) -> str:
        options = RuntimeOptions(threads=2, precision="tf32" if asked else "fp32")
        return PyTorchCpu(model.files["checkpoint"], model.spec, options).facts["tf32"]

    assert tf32(asked=True) == "on"
    assert tf32(asked=False) == "off"


def test_all_means_every_runtime_but_the_fake() -> None:
    assert resolve_names(["all"]) == list(RUNTIMES)
    assert "fake" not in RUNTIMES


def test_names_may_be_separated_repeated_and_doubled() -> None:
    wanted = ["onnxruntime-cpu", "pytorch-cpu"]
    assert resolve_names(["onnxruntime-cpu,pytorch-cpu"]) == wanted
    assert resolve_names(["onnxruntime-cpu", " pytorch-cpu , onnxruntime-cpu"]) == wanted
    assert resolve_names("onnxruntime-cpu,pytorch-cpu") == wanted


def test_an_unknown_name_lists_the_valid_ones_and_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_names(["onnxruntime-cpuu"])

    assert all(name in caught.value.message for name in RUNTIMES)
    assert "onnxruntime-cpu?" in caught.value.hint


@pytest.mark.parametrize(
    ("asked", "device", "meant"),
    [
        ("openvino", None, ["openvino-cpu"]),
        ("ort", None, ["onnxruntime-cpu", "onnxruntime-cuda"]),
        ("onnx", "cpu", ["onnxruntime-cpu"]),
        ("torch", "cuda", ["pytorch-cuda"]),
        ("torch-cpu-channels-last", None, ["pytorch-cpu-channels-last"]),
        ("trt", None, ["tensorrt"]),
        ("torch-compile", "cpu", ["torch-compile-cpu"]),
        ("openvino-cpu:int8", None, ["openvino-cpu:int8"]),
        ("openvino:int8,ort", "cpu", ["openvino-cpu:int8", "onnxruntime-cpu"]),
        ("all", "cpu", [name for name, info in RUNTIMES.items() if info.device == "cpu"]),
    ],
)
def test_the_names_that_people_use(asked: str, device: Device | None, meant: list[str]) -> None:
    assert resolve_names([asked], device) == meant


@pytest.mark.parametrize(
    ("asked", "device", "complaint"),
    [("openvino", "cuda", "openvino does not run on cuda"), ("openvino:int7", None, "no precision 'int7'")],
)
def test_names_that_mean_nothing_are_refused(asked: str, device: Device | None, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        resolve_names([asked], device)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_name_as_reports_print_it_can_be_typed(name: str) -> None:
    for variant in (Variant(name, precision) for precision in RUNTIMES[name].precisions):
        (short,) = short_names([variant]).values()
        assert resolve_names([str(variant)]) == [str(variant)]
        assert str(variant) in resolve_names([short])


@pytest.mark.parametrize("nothing", [[], [""], [" , "]])
def test_no_name_at_all_is_refused(nothing: list[str]) -> None:
    with pytest.raises(UsageError, match="no runtime"):
        resolve_names(nothing)
