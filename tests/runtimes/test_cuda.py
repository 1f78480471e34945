"""The wrapper of CUDA's runtime library: on a fake one made here, and as far as it goes on the real one."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segx.errors import InferenceError, OutOfMemory, RuntimeUnavailable
from segx.runtimes import cuda as wrapper
from segx.runtimes.cuda import Cuda, cuda
from segx.system import machine

SOURCE = Path(__file__).parent / "fake_cudart.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler (cc) to make the fake CUDA runtime with")
    path = tmp_path_factory.mktemp("cuda") / "libcudart.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture
def fake(library: Path) -> Iterator[ctypes.CDLL]:
    """What tests say to the fake and ask of it."""
    control = ctypes.CDLL(str(library))
    control.fake_fail.argtypes = [ctypes.c_char_p, ctypes.c_int]
    control.fake_limit.argtypes = [ctypes.c_size_t]
    yield control
    control.fake_fail(None, 0)
    control.fake_limit(2**62)
    control.fake_on_launch(None)


@pytest.fixture
def lib(library: Path, fake: ctypes.CDLL) -> Iterator[Cuda]:
    before = fake.fake_held()
    yield Cuda(library)
    assert fake.fake_held() == before, "something was not given back"


def test_a_device_is_told_by_name_and_capability(lib: Cuda) -> None:
    assert lib.device(0) == wrapper.Device("Fake GPU", "9.0")
    assert (lib.runtime_version(), lib.driver_version()) == ("13.2", "13.1")
    lib.select(0)


def test_a_device_that_is_not_there_is_unavailable(lib: Cuda) -> None:
    with pytest.raises(RuntimeUnavailable, match="no CUDA device 1; there are 1"):
        lib.device(1)


def test_bytes_go_to_the_device_and_back(lib: Cuda) -> None:
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = np.empty_like(sent)
    stream, buffer = lib.stream(), lib.buffer(sent.nbytes)
    stream.copy_to_device(buffer, sent)
    stream.copy_to_host(got, buffer)
    stream.synchronize()
    np.testing.assert_array_equal(got, sent)
    buffer.close()
    stream.close()


def test_copies_that_would_leave_their_buffer_are_refused(lib: Cuda) -> None:
    stream, buffer = lib.stream(), lib.buffer(8)
    with pytest.raises(InferenceError, match="12 bytes"):
        stream.copy_to_device(buffer, np.zeros(3, dtype=np.float32))
    with pytest.raises(InferenceError, match="cannot be copied"):
        stream.copy_to_host(np.zeros((2, 2), dtype=np.float32)[:, 0], buffer)
    buffer.close()
    stream.close()


def test_pinned_memory_is_an_array(lib: Cuda) -> None:
    pinned = lib.pinned((2, 1, 3))
    pinned.array[:] = 7
    assert pinned.array.shape == (2, 1, 3)
    assert pinned.array.dtype == np.float32
    assert pinned.array.sum() == 42
    pinned.close()


def test_events_tell_seconds(lib: Cuda) -> None:
    stream, start, end = lib.stream(), lib.event(), lib.event()
    start.record(stream)
    time.sleep(0.05)
    end.record(stream)
    assert 0.05 <= end.seconds_since(start) < 5
    for held in (start, end, stream):
        held.close()


def test_work_can_be_recorded_and_started_again(lib: Cuda, fake: ctypes.CDLL) -> None:
    launches, captured = [], []
    on_launch = ctypes.CFUNCTYPE(None)(lambda: launches.append(1))
    fake.fake_on_launch(on_launch)
    stream = lib.stream()
    graph = stream.captured(lambda: captured.append(fake.fake_is_capturing()))
    assert captured == [1]
    assert not fake.fake_is_capturing()
    graph.launch(stream)
    graph.launch(stream)
    assert len(launches) == 2
    graph.close()
    stream.close()


def test_a_failed_recording_ends_and_leaves_its_own_error(lib: Cuda, fake: ctypes.CDLL) -> None:
    def fail() -> None:
        raise InferenceError("the engine refuses", hint="none")

    stream = lib.stream()
    with pytest.raises(InferenceError, match="the engine refuses"):
        stream.captured(fail)
    assert not fake.fake_is_capturing()
    stream.close()


def test_no_graph_is_lost_where_it_cannot_be_made_ready(lib: Cuda, fake: ctypes.CDLL) -> None:
    stream = lib.stream()
    fake.fake_fail(b"cudaGraphInstantiateWithFlags", 1)
    with pytest.raises(InferenceError, match="cudaGraphInstantiateWithFlags"):
        stream.captured(lambda: None)
    stream.close()


def test_memory_that_runs_out_is_told_apart(lib: Cuda, fake: ctypes.CDLL) -> None:
    fake.fake_limit(1000)
    with pytest.raises(OutOfMemory, match=r"out of memory \(cudaMalloc, status 2\)"):
        lib.buffer(1001)
    with pytest.raises(OutOfMemory):
        lib.pinned((1001,))
    lib.buffer(1000).close()


@pytest.mark.parametrize("code", [35, 100])
def test_no_usable_driver_is_unavailable(lib: Cuda, fake: ctypes.CDLL, code: int) -> None:
    fake.fake_fail(b"cudaGetDeviceCount", code)
    with pytest.raises(RuntimeUnavailable, match="CUDA cannot be used") as caught:
        lib.device(0)
    assert "driver" in caught.value.hint


def test_every_other_status_is_an_error_in_cudas_own_words(lib: Cuda, fake: ctypes.CDLL) -> None:
    stream, start, end, buffer = lib.stream(), lib.event(), lib.event(), lib.buffer(4)
    array = np.zeros(1, dtype=np.float32)
    graph = stream.captured(lambda: None)
    calls: dict[str, Any] = {
        "cudaSetDevice": lambda: lib.select(0),
        "cudaGetDeviceCount": lambda: lib.device(0),
        "cudaGetDeviceProperties": lambda: lib.device(0),
        "cudaDeviceGetAttribute": lambda: lib.device(0),
        "cudaRuntimeGetVersion": lib.runtime_version,
        "cudaDriverGetVersion": lib.driver_version,
        "cudaMalloc": lambda: lib.buffer(1),
        "cudaMallocHost": lambda: lib.pinned((1,)),
        "cudaMemcpyAsync": lambda: stream.copy_to_device(buffer, array),
        "cudaStreamCreateWithFlags": lib.stream,
        "cudaStreamSynchronize": stream.synchronize,
        "cudaEventCreate": lib.event,
        "cudaEventRecord": lambda: start.record(stream),
        "cudaEventSynchronize": lambda: end.seconds_since(start),
        "cudaEventElapsedTime": lambda: end.seconds_since(start),
        "cudaStreamBeginCapture": lambda: stream.captured(lambda: None),
        "cudaStreamEndCapture": lambda: stream.captured(lambda: None),
        "cudaGraphInstantiateWithFlags": lambda: stream.captured(lambda: None),
        "cudaGraphLaunch": lambda: graph.launch(stream),
    }
    for name, call in calls.items():
        fake.fake_fail(name.encode(), 719)
        with pytest.raises(InferenceError, match=rf"the fake fails \({name}, status 719\)") as caught:
            call()
        assert not isinstance(caught.value, OutOfMemory)
    fake.fake_fail(None, 0)
    released = {"cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaEventDestroy", "cudaGraphExecDestroy"}
    assert set(wrapper._FUNCTIONS) - set(calls) == released | {"cudaGraphDestroy", "cudaGetLastError"}
    for held in (graph, buffer, start, end, stream):
        held.close()


def test_giving_back_twice_or_after_a_failure_is_quiet(lib: Cuda, fake: ctypes.CDLL) -> None:
    buffer, stream = lib.buffer(4), lib.stream()
    buffer.close()
    buffer.close()
    handle = stream.handle
    fake.fake_fail(b"cudaStreamDestroy", 719)
    stream.close()
    stream.close()
    fake.fake_fail(None, 0)
    lib.call("cudaStreamDestroy", handle)


def test_a_library_that_is_missing_or_no_cuda_is_unavailable(tmp_path: Path, library: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"missing\.so") as caught:
        Cuda(tmp_path / "missing.so")
    assert "pip install nvidia-cuda-runtime" in caught.value.hint
    other = tmp_path / library.name
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(other), "-x", "c", "/dev/null"], check=True)
    with pytest.raises(RuntimeUnavailable, match="cudaGetDeviceCount"):
        Cuda(other)


def test_the_newest_library_of_pips_packages_is_taken_first() -> None:
    found = [path for path in wrapper._candidates() if "/" in path]
    if not found:
        pytest.skip("pip has installed no CUDA runtime here")
    assert found[0] == max(found, key=lambda path: Path(path).name)
    assert Path(found[0]).is_file()


def test_the_real_library_without_a_driver_is_unavailable() -> None:
    if machine.cuda_problem() is None:
        pytest.skip("this machine has a GPU")
    try:
        real = cuda()
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    assert re.fullmatch(r"1[2-9]\.\d+", real.runtime_version())
    for ask in (lambda: real.device(0), real.stream, lambda: real.buffer(1)):
        with pytest.raises(RuntimeUnavailable, match="CUDA cannot be used"):
            ask()


@pytest.mark.gpu
def test_the_real_library_with_a_gpu() -> None:
    if problem := machine.cuda_problem():
        pytest.skip(problem)
    real = cuda()
    assert re.fullmatch(r"\d+\.\d", real.device(0).compute_capability)
    real.select(0)
    sent = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    got = real.pinned(sent.shape)
    stream, buffer, start, end = real.stream(), real.buffer(sent.nbytes), real.event(), real.event()
    start.record(stream)
    stream.copy_to_device(buffer, sent)
    stream.copy_to_host(got.array, buffer)
    end.record(stream)
    stream.synchronize()
    np.testing.assert_array_equal(got.array, sent)
    assert 0 < end.seconds_since(start) < 1
    for held in (end, start, buffer, got, stream):
        held.close()


@pytest.fixture(scope="module")
def headers() -> Path:
    """Folder of NVIDIA's headers, where pip has brought them."""
    folders = [Path(path).parents[1] / "include" for path in wrapper._candidates() if "/" in path]
    found = [folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()]
    if not found:
        pytest.skip("no CUDA headers here: pip install nvidia-cuda-runtime")
    return found[0]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("cudaErrorMemoryAllocation", wrapper._MEMORY_ALLOCATION),
        ("cudaErrorInsufficientDriver", wrapper._INSUFFICIENT_DRIVER),
        ("cudaErrorNoDevice", wrapper._NO_DEVICE),
        ("cudaMemcpyHostToDevice", wrapper._HOST_TO_DEVICE),
        ("cudaMemcpyDeviceToHost", wrapper._DEVICE_TO_HOST),
        ("cudaStreamNonBlocking", wrapper._STREAM_NON_BLOCKING),
        ("cudaStreamCaptureModeThreadLocal", wrapper._CAPTURE_THREAD_LOCAL),
        ("cudaDevAttrComputeCapabilityMajor", wrapper._CAPABILITY_MAJOR),
        ("cudaDevAttrComputeCapabilityMinor", wrapper._CAPABILITY_MINOR),
    ],
)
def test_numbers_are_those_of_the_header(headers: Path, name: str, number: int) -> None:
    text = (headers / "driver_types.h").read_text(errors="replace")
    declared = re.search(rf"\b{name}\s*=?\s*(0x[0-9a-f]+|\d+)", text)
    assert declared
    assert int(declared[1], 0) == number


def test_the_name_comes_first_among_the_properties_of_a_device(headers: Path) -> None:
    text = (headers / "driver_types.h").read_text(errors="replace")
    first = re.search(r"struct \w* ?cudaDeviceProp\s*\{\s*(.*?);", text, flags=re.DOTALL)
    assert first
    assert re.fullmatch(rf"char\s+name\[{wrapper._NAME_BYTES}\]", first[1])


@pytest.mark.parametrize("name", wrapper._FUNCTIONS)
def test_arguments_are_those_of_the_header(headers: Path, name: str) -> None:
    text = (headers / "cuda_runtime_api.h").read_text(errors="replace")
    declared = re.search(rf"CUDARTAPI {name}\(([^;]*)\);", text)
    assert declared, f"{name} is not in the header"
    arguments = [argument.partition("__dv")[0].strip() for argument in declared[1].split(",")]
    assert wrapper._FUNCTIONS[name] == [kind for argument in arguments if (kind := _kind(argument))]


def _kind(argument: str) -> Any:
    """The ctypes type that passes an argument of a C declaration."""
    if argument in ("void", ""):
        return None
    if re.search(r"\b(int|float) \*", argument):
        return ctypes.POINTER(ctypes.c_float if "float" in argument else ctypes.c_int)
    if "**" in argument or re.search(r"\bcuda(Stream|Event|Graph|GraphExec)_t \*", argument):
        return ctypes.POINTER(ctypes.c_void_p)
    if "*" in argument or re.search(r"\bcuda(Stream|Event|Graph|GraphExec)_t\b", argument):
        return ctypes.c_void_p
    scalars = {"unsigned long long": ctypes.c_ulonglong, "unsigned int": ctypes.c_uint, "size_t": ctypes.c_size_t}
    return next((kind for word, kind in scalars.items() if word in argument), ctypes.c_int)


def test_it_needs_no_framework() -> None:
    code = (
        "import sys, segx.runtimes.cuda as c\nlist(c._candidates())\nprint({'torch', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
