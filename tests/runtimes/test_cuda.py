"""CUDA calls, on a fake of cuda-bindings and, as far as possible, on the real package."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from segx.errors import InferenceError, OutOfMemory, RuntimeUnavailable
from segx.runtimes import cuda
from segx.system import machine
from tests.runtimes.fake_cudart import FakeCudart


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCudart]:
    module = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
    cuda.bindings.cache_clear()
    yield module
    cuda.bindings.cache_clear()
    assert not module.held, "a resource was not released"


def test_a_device_has_a_name_and_a_capability(fake: FakeCudart) -> None:
    assert cuda.device(0) == cuda.Device("Fake GPU", "9.0")
    assert (cuda.runtime_version(), cuda.driver_version()) == ("13.2", "13.1")
    with pytest.raises(RuntimeUnavailable, match="no CUDA device 1; there are 1"):
        cuda.device(1)
    assert not fake.held


def test_bytes_go_to_the_device_and_back(fake: FakeCudart) -> None:
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    stream, buffer, received = cuda.Stream(), cuda.DeviceBuffer(sent.nbytes), cuda.PinnedArray((2, 3))
    buffer.upload(sent, stream)
    buffer.download(received.array, stream)
    stream.synchronize()
    np.testing.assert_array_equal(received.array, sent)
    with pytest.raises(InferenceError, match="28 bytes"):
        buffer.upload(np.zeros(7, dtype=np.float32), stream)
    with pytest.raises(InferenceError, match="cannot copy"):
        buffer.download(np.zeros((2, 2), dtype=np.float32)[:, 0], stream)
    assert len(fake.held) == 3
    for resource in (buffer, received, stream, stream):
        resource.close()


@pytest.mark.usefixtures("fake")
def test_events_measure_seconds() -> None:
    stream, start, end = cuda.Stream(), cuda.Event(), cuda.Event()
    start.record(stream)
    time.sleep(0.05)
    end.record(stream)
    assert 0.05 <= end.seconds_since(start) < 5
    for resource in (start, end, stream):
        resource.close()


def test_a_graph_replays_recorded_work(fake: FakeCudart) -> None:
    runs: list[int] = []
    stream = cuda.Stream()
    graph = stream.capture(lambda: fake.recorded.append(lambda: runs.append(1)))
    assert (runs, fake.capturing) == ([], False)
    graph.launch(stream)
    graph.launch(stream)
    assert runs == [1, 1]
    graph.close()
    stream.close()


def test_a_failed_capture_ends_and_raises_its_own_error(fake: FakeCudart) -> None:
    def fail() -> None:
        raise InferenceError("the engine refuses", hint="none")

    stream = cuda.Stream()
    with pytest.raises(InferenceError, match="the engine refuses"):
        stream.capture(fail)
    assert not fake.capturing
    fake.failures["cudaGraphInstantiate"] = 719
    with pytest.raises(InferenceError, match="cudaGraphInstantiate"):
        stream.capture(lambda: None)
    stream.close()


def test_out_of_memory_has_its_own_error(fake: FakeCudart) -> None:
    fake.limit = 1000
    with pytest.raises(OutOfMemory, match=r"out of memory \(cudaMalloc, status 2\)"):
        cuda.DeviceBuffer(1001)
    with pytest.raises(OutOfMemory):
        cuda.PinnedArray((1001,))


@pytest.mark.parametrize("code", [35, 100])
def test_an_unusable_driver_is_unavailable(fake: FakeCudart, code: int) -> None:
    fake.failures["cudaGetDeviceCount"] = code
    with pytest.raises(RuntimeUnavailable, match="CUDA cannot be used") as caught:
        cuda.device(0)
    assert "driver" in caught.value.hint


def test_any_other_status_is_an_inference_error(fake: FakeCudart) -> None:
    stream, start, buffer = cuda.Stream(), cuda.Event(), cuda.DeviceBuffer(4)
    array = np.zeros(1, dtype=np.float32)
    graph = stream.capture(lambda: None)
    calls: dict[str, Any] = {
        "cudaSetDevice": lambda: cuda.select(0),
        "cudaGetDeviceCount": lambda: cuda.device(0),
        "cudaGetDeviceProperties": lambda: cuda.device(0),
        "cudaRuntimeGetVersion": cuda.runtime_version,
        "cudaDriverGetVersion": cuda.driver_version,
        "cudaMalloc": lambda: cuda.DeviceBuffer(1),
        "cudaMallocHost": lambda: cuda.PinnedArray((1,)),
        "cudaMemcpyAsync": lambda: buffer.upload(array, stream),
        "cudaStreamCreateWithFlags": cuda.Stream,
        "cudaStreamSynchronize": stream.synchronize,
        "cudaEventCreate": cuda.Event,
        "cudaEventRecord": lambda: start.record(stream),
        "cudaEventSynchronize": lambda: start.seconds_since(start),
        "cudaEventElapsedTime": lambda: start.seconds_since(start),
        "cudaStreamBeginCapture": lambda: stream.capture(lambda: None),
        "cudaStreamEndCapture": lambda: stream.capture(lambda: None),
        "cudaGraphInstantiate": lambda: stream.capture(lambda: None),
        "cudaGraphLaunch": lambda: graph.launch(stream),
    }
    for name, call in calls.items():
        fake.failures = {name: 719}
        with pytest.raises(InferenceError, match=rf"the fake fails \({name}, status 719\)") as caught:
            call()
        assert not isinstance(caught.value, OutOfMemory)
    fake.failures = {}
    for resource in (graph, buffer, start, stream):
        resource.close()


def test_without_the_package_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    cuda.bindings.cache_clear()
    with pytest.raises(RuntimeUnavailable, match="cuda-bindings") as caught:
        cuda.bindings()
    assert "pip install cuda-bindings" in caught.value.hint


@pytest.fixture
def real() -> Any:
    cuda.bindings.cache_clear()
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")


def test_the_fake_has_the_names_and_arguments_of_the_package(real: Any) -> None:
    for name in (name for name in vars(FakeCudart) if name.startswith("cuda")):
        assert hasattr(real, name), name
        ours = vars(FakeCudart)[name]
        if isinstance(ours, type):
            assert all(int(member) == int(getattr(getattr(real, name), member.name)) for member in ours)
        elif callable(ours) and ours is not FakeCudart._free:
            inside = re.match(r"\w+\((.*?)\)", getattr(real, name).__doc__.strip())
            assert inside, name
            arguments = [part.partition(":")[0].split()[-1] for part in inside[1].split(",") if part.strip()]
            assert arguments == list(ours.__code__.co_varnames[1 : ours.__code__.co_argcount]), name


def test_the_package_without_a_driver_is_unavailable(real: Any) -> None:
    if machine.cuda_problem() is None:
        pytest.skip("this machine has a GPU")
    assert real
    assert re.fullmatch(r"1[2-9]\.\d+", cuda.runtime_version())
    for ask in (lambda: cuda.device(0), cuda.Stream, lambda: cuda.DeviceBuffer(1)):
        with pytest.raises(RuntimeUnavailable, match="CUDA cannot be used"):
            ask()


@pytest.mark.gpu
def test_the_package_with_a_gpu(real: Any) -> None:
    if problem := machine.cuda_problem():
        pytest.skip(problem)
    assert real
    assert re.fullmatch(r"\d+\.\d", cuda.device(0).compute_capability)
    cuda.select(0)
    sent = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    received = cuda.PinnedArray(sent.shape)
    stream, buffer, start, end = cuda.Stream(), cuda.DeviceBuffer(sent.nbytes), cuda.Event(), cuda.Event()
    start.record(stream)
    buffer.upload(sent, stream)
    buffer.download(received.array, stream)
    end.record(stream)
    stream.synchronize()
    np.testing.assert_array_equal(received.array, sent)
    assert 0 < end.seconds_since(start) < 1
    for resource in (end, start, buffer, received, stream):
        resource.close()


def test_it_needs_no_framework() -> None:
    source = importlib.util.find_spec("segx.runtimes.cuda")
    assert source
    assert not re.search(r"import (torch|onnxruntime|tensorrt)", source.loader.get_source("segx.runtimes.cuda"))  # type: ignore[union-attr]
