"""What ONNX Runtime may leave on the CPU when another provider was asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from segx.errors import InferenceError, RuntimeUnavailable
from segx.model.spec import ModelSpec
from segx.runtimes import RuntimeOptions
from segx.runtimes.onnxruntime import OnnxRuntimeCuda, mapped_errors, nodes_on_the_cpu
from segx.system import machine

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def session(**parts: list[str]) -> Any:
    """Return a double of a session: the operators of each provider."""

    def part(provider: str, operators: list[str]) -> SimpleNamespace:
        nodes = [SimpleNamespace(op_type=operator) for operator in operators]
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

    found = [part(provider, operators) for provider, operators in parts.items()]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: found)


def test_all_of_a_model_on_the_gpu_leaves_nothing() -> None:
    assert nodes_on_the_cpu(session(CUDAExecutionProvider=["Conv", "Relu"]), CUDA) == ()


def test_what_computes_shapes_may_stay_on_the_cpu_and_is_named() -> None:
    graph = session(CUDAExecutionProvider=["Conv", "Resize"], CPUExecutionProvider=["Shape", "Gather", "Gather", "Mul"])
    assert nodes_on_the_cpu(graph, CUDA) == ("Gather", "Mul", "Shape")


def test_a_layer_on_the_cpu_is_a_fallback_that_is_refused_by_name() -> None:
    graph = session(CUDAExecutionProvider=["Relu"], CPUExecutionProvider=["Shape", "Resize", "Conv"])
    with pytest.raises(RuntimeUnavailable, match="Conv, Resize would run on the CPU"):
        nodes_on_the_cpu(graph, CUDA)


def test_a_real_session_says_who_runs_what(tiny_onnx: Any) -> None:
    import onnxruntime as ort

    from segx.runtimes.onnxruntime import session_options

    opened = ort.InferenceSession(str(tiny_onnx), session_options(1), providers=[CPU])
    assert nodes_on_the_cpu(opened, CPU) == ()
    with pytest.raises(RuntimeUnavailable, match="CUDAExecutionProvider does not run all of the model"):
        nodes_on_the_cpu(opened, CUDA)


def test_a_session_without_its_libraries_is_one_error_and_no_log(
    tiny_onnx: Any, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("segx.runtimes.cuda.check_driver", lambda: None)
    if machine.cuda_problem() is None:
        pytest.skip("the libraries can be loaded")
    with pytest.raises(RuntimeUnavailable, match="fell back to CPUExecutionProvider"):
        OnnxRuntimeCuda(tiny_onnx, tiny_spec, RuntimeOptions(threads=1))
    assert "onnxruntime" not in capfd.readouterr().err


def test_an_image_count_beyond_a_kernels_index_asks_for_a_smaller_batch() -> None:
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Resize node. Name:'upsample' "
        "Status Message: resize_impl.cu:729 ResizeNearestImpl: output element count exceeds int range."
    )
    with (
        pytest.raises(InferenceError, match="failed: resize_impl") as caught,
        mapped_errors(),
    ):
        raise ort_errors.Fail(text)
    assert caught.value.hint == "use a smaller batch size"
