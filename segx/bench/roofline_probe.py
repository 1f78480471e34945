"""The roofline of a bench: the network's work, counted from its graph, and the peaks of the devices, measured."""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segx.errors import ArtifactError, RuntimeUnavailable, SegxError, first_line
from segx.results.types import Peaks, Work
from segx.system.processes import Workers

logger = logging.getLogger(__name__)

# A product of one size, ready to be computed repeatedly; it is done when it returns.
_Product = Callable[[], object]

# In passes over all that is measured, since a disturbance may outlast one of them.
_PASSES, _SECONDS_EACH, _MIN_CALLS = 3, 0.05, 3
# Small products fit into caches and between the turns of other programs: on two busy cores the large ones lost up to
# three quarters, these nothing. The larger ones suit many cores and GPUs; they are skipped where one takes over 20 ms.
_SIZES, _LARGER, _LARGER_MAX_S = (256, 384, 512, 1024), (2048, 4096, 8192), 0.02
# Convolutions of OpenVINO, enough of them to make quantising the input negligible.
_CHANNELS, _IMAGE, _LAYERS = 256, 32, 4
# Larger than the last cache of all but the largest servers, and on a GPU long beside the start of a copy.
_COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 1024 * 2**20}
_PRECISIONS = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp32", "tf32", "fp16", "bf16", "int8")}

_Shape = tuple[int, ...]
_FLOAT_BYTES = 4
_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def measure_roofline(
    workers: Workers, onnx: Path | None, *, gpu: int | None, threads: int, timeout_s: float
) -> tuple[Work | None, tuple[Peaks, ...]]:
    """Count the work and measure the peaks in worker processes. What fails is left out, with a warning.

    Nothing is measured without an exported file, or if no operation of the network counts. PyTorch measures the
    processors only where OpenVINO is not installed. ``gpu`` is the index of the GPU of the bench, None if it uses none.
    """
    if onnx is None:
        return None, ()
    work: Work | None = None
    peaks: list[Peaks] = []
    try:
        work = workers.call(network_work, {"path": onnx}, torch=False, timeout_s=timeout_s)
        if not work.operations:
            return None, ()
        arguments: dict[str, Any] = {"threads": threads}
        if importlib.util.find_spec("openvino"):
            peaks.append(workers.call(openvino_peaks, arguments, torch=False, timeout_s=timeout_s))
        else:
            peaks.append(workers.call(torch_peaks, {**arguments, "device": "cpu"}, torch=True, timeout_s=timeout_s))
        if gpu is not None:
            arguments |= {"device": "cuda", "device_index": gpu}
            peaks.append(workers.call(torch_peaks, arguments, torch=True, timeout_s=timeout_s))
    except SegxError as error:
        logger.warning("the roofline is not known: %s", error.message)
    return work, tuple(peaks)


def torch_peaks(device: Literal["cpu", "cuda"], *, threads: int, device_index: int = 0) -> Peaks:
    """Measure the processors, with ``threads`` threads, or a GPU with PyTorch; takes some seconds.

    An engine's own kernels may be faster.

    Raises:
        RuntimeUnavailable: PyTorch sees no GPU.
    """
    import torch

    if device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeUnavailable("PyTorch sees no GPU", hint="see `segx doctor`")
        torch.cuda.set_device(device_index)
    source = torch.ones(_COPY_BYTES[device] // _FLOAT_BYTES, dtype=torch.float32, device=device)
    copy = _finished(device, partial(torch.empty_like(source).copy_, source))
    rates: dict[str, float] = {}
    missing: dict[str, str] = {}
    copy_s = math.inf
    for used in _thread_counts(threads) if device == "cpu" else [threads] * _PASSES:
        torch.set_num_threads(used)
        for precision in _PRECISIONS[device]:
            try:
                rate = _best_rate(partial(_torch_product, device, precision))
            except RuntimeError as error:  # how PyTorch says that a device has no such product
                missing[precision] = f"PyTorch has no such product here: {first_line(error)}"
            else:
                rates[precision] = max(rate, rates.get(precision, 0.0))
        copy_s = min(copy_s, _least_seconds(copy))
    return Peaks(
        device=device,
        operations_per_s=_at_least_fp32(rates),
        copy_bytes_per_s=2 * _COPY_BYTES[device] / copy_s,
        method=f"matrix products and copy of {_COPY_BYTES[device] >> 20} MiB by PyTorch"
        + (f", 1 or {threads} threads" if device == "cpu" else ""),
        missing={precision: why for precision, why in missing.items() if precision not in rates},
    )


def openvino_peaks(*, threads: int) -> Peaks:
    """Measure the processors with convolutions in OpenVINO, whose kernels in 8 bits use AMX where there is one.

    The copy is NumPy's. Takes about a second.
    """
    source = np.ones(_COPY_BYTES["cpu"] // _FLOAT_BYTES, np.float32)
    target = np.empty_like(source)
    rates = dict.fromkeys(_PRECISIONS["cpu"], 0.0)
    copy_s = math.inf
    for used in _thread_counts(threads):
        for precision in rates:
            rates[precision] = max(rates[precision], _openvino_rate(precision, used))
        copy_s = min(copy_s, _numpy_copy_s(target, source, used))
    return Peaks(
        device="cpu",
        operations_per_s=_at_least_fp32(rates),
        copy_bytes_per_s=2 * _COPY_BYTES["cpu"] / copy_s,
        method=f"convolutions by OpenVINO and copy of {_COPY_BYTES['cpu'] >> 20} MiB by NumPy, 1 or {threads} threads",
    )


def _numpy_copy_s(target: npt.NDArray[np.float32], source: npt.NDArray[np.float32], threads: int) -> float:
    parts = np.array_split(target, threads), np.array_split(source, threads)
    with ThreadPoolExecutor(threads) as pool:  # NumPy copies without holding the GIL
        return _least_seconds(lambda: list(pool.map(np.copyto, *parts)))


def _thread_counts(threads: int) -> tuple[int, ...]:
    """Return the numbers to try: on a busy machine one thread may be faster than several that wait for each other."""
    return (1, *[threads] * _PASSES)


def _openvino_rate(precision: str, threads: int) -> float:
    import openvino
    from openvino import opset15 as opset

    image = opset.parameter([1, _CHANNELS, _IMAGE, _IMAGE], openvino.Type.f32)
    values = np.random.default_rng(0).integers(-127, 127, (_CHANNELS, _CHANNELS, 3, 3), dtype=np.int8)
    scale = opset.constant(np.full((_CHANNELS, 1, 1, 1), 1e-3, np.float32))
    layer = image
    for _ in range(_LAYERS):
        if precision == "int8":
            low, high = np.float32(-4), np.float32(4)
            layer = opset.fake_quantize(layer, low, high, low, high, levels=256)
            weights = opset.multiply(opset.convert(opset.constant(values), openvino.Type.f32), scale)
        else:
            weights = opset.constant(values * np.float32(1e-3))
        layer = opset.convolution(layer, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(openvino.Model([layer], [image]), "CPU", settings)
    request, inputs = compiled.create_infer_request(), [np.zeros((1, _CHANNELS, _IMAGE, _IMAGE), np.float32)]
    operations = 2 * _LAYERS * _CHANNELS**2 * 3 * 3 * _IMAGE**2
    return operations / _least_seconds(lambda: request.infer(inputs))


def _at_least_fp32(rates: Mapping[str, float]) -> dict[str, float]:
    """Raise the peaks of narrower numbers to that of fp32: they can be computed as fp32."""
    return {name: max(rate, rates.get("fp32", 0.0)) for name, rate in rates.items()}


def _torch_product(device: Literal["cpu", "cuda"], precision: str, size: int) -> _Product:
    import torch

    from segx.runtimes.pytorch import set_tf32

    set_tf32(precision == "tf32")
    if precision == "int8":
        left, right = (torch.randint(-99, 99, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        multiply: Callable[[], torch.Tensor] = partial(torch._int_mm, left, right)  # noqa: SLF001 - the only one there is
    else:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
        left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        multiply = partial(torch.mm, left, right)
    return _finished(device, multiply)


def _finished(device: Literal["cpu", "cuda"], call: Callable[[], object]) -> Callable[[], object]:
    """Have a call return only once the device is done."""
    import torch

    if device == "cpu":
        return call

    def wait() -> None:
        call()
        torch.cuda.synchronize()

    return wait


def _best_rate(make: Callable[[int], _Product]) -> float:
    """Return operations per second of the fastest size: a disturbance only makes products slower."""
    best = 0.0
    for size in (*_SIZES, *_LARGER):
        operations = 2 * size**3
        if size in _LARGER and operations / best > _LARGER_MAX_S:
            break
        best = max(best, operations / _least_seconds(make(size)))
    return best


def _least_seconds(call: Callable[[], object]) -> float:
    call()  # the first call prepares
    least, started, calls = float("inf"), time.perf_counter(), 0
    while calls < _MIN_CALLS or time.perf_counter() - started < _SECONDS_EACH:
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
        calls += 1
    return least


def network_work(path: Path, batch: int = 1) -> Work:
    """Count the operations and bytes of an exported fp32 file.

    A multiply-accumulate counts as two operations. Convolutions, transposed convolutions and matrix products are
    counted as written; everything between them (activations, sums, concatenation, upsampling) is assumed to be fused
    into them, and neither its operations nor its bytes count. The figures are per image for every ``batch``.

    Raises:
        ArtifactError: there is no file, it is not ONNX, or its shapes cannot be inferred.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        _fix_batch(model.graph, batch)
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (OSError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(
            f"the operations of {path} cannot be counted: {error}", hint="export it again with `segx export`"
        ) from error
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    shapes = weights | {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    operations = moved = operators = 0
    for node in graph.node:
        if node.op_type in _COUNTED:
            names = (*node.input[:2], node.output[0])
            operations += 2 * _multiply_accumulates(node, *(_known(name, shapes, path) for name in names))
            moved += _FLOAT_BYTES * sum(math.prod(shapes[name]) for name in names if name not in weights)
            operators += 1
    return Work(
        operations=operations // batch,
        weight_bytes=_FLOAT_BYTES * sum(math.prod(weights[name]) for name in floats),
        activation_bytes=moved // batch,
        operators=operators,
    )


def _fix_batch(graph: Any, batch: int) -> None:
    """Set the batch size of the inputs, and delete the shapes inferred for another."""
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _shape(value: Any) -> _Shape:
    """Return the shape; 0 stands for an unknown size."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _known(name: str, shapes: dict[str, _Shape], path: Path) -> _Shape:
    shape = shapes.get(name, ())
    if not shape or not all(shape):
        raise ArtifactError(
            f"the operations of {path} cannot be counted: the shape of {name} cannot be inferred",
            hint="export it again with `segx export`",
        )
    return shape


def _multiply_accumulates(node: Any, left: _Shape, right: _Shape, output: _Shape) -> int:
    match node.op_type:
        case "Conv":  # a kernel per output value; weights are (out, in / groups, kernel…)
            return math.prod(output) * math.prod(right[1:])
        case "ConvTranspose":  # a kernel per input value; weights are (in, out / groups, kernel…)
            return math.prod(left) * math.prod(right[1:])
        case "Gemm":
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            return math.prod(output) * left[0 if transposed else 1]
        case _:
            return math.prod(output) * left[-1]
