"""What a device can do at best: arithmetic by large matrix products, traffic by copying a large array."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np

from segx.errors import RuntimeUnavailable, first_line
from segx.results.types import Peaks

# A product of one size, ready to be computed again and again; done when it returns.
_Product = Callable[[], object]

# In two passes, since a disturbance may outlast one.
_PASSES, _SECONDS_EACH, _FEWEST_CALLS = 2, 0.05, 3
# Small ones fit into caches and between other programs' turns: on two busy cores the large ones lost up to three
# quarters, these nothing. The larger ones suit many cores and GPUs, and are left out where one takes longer than that.
_SIZES, _LARGER = (256, 384, 512, 1024), (2048, 4096, 8192)
_GLANCE_S = 0.02
# Larger than the last cache of all but the largest servers.
_COPY_BYTES = 256 * 2**20
_NO_TORCH = "such products are timed with PyTorch, which this bench did not start"


def cpu_peaks(*, torch: bool, threads: int) -> Peaks:
    """Measure the processors; takes one to two seconds.

    fp32 is the faster of NumPy's BLAS and PyTorch, where that may be imported; narrower numbers are PyTorch's alone.
    An engine's own kernels may be faster than both.

    Args:
        torch: whether PyTorch may be imported.
        threads: of PyTorch; NumPy's are what the environment said when it was loaded.
    """
    rates = {"fp32": _best_rate(_numpy_product)}
    missing = dict.fromkeys(("bf16", "int8"), _NO_TORCH)
    if torch:
        import torch as library

        library.set_num_threads(threads)
        by_torch, missing = _torch_rates("cpu", ("fp32", "bf16", "int8"))
        rates = {**by_torch, "fp32": max(rates["fp32"], by_torch["fp32"])}
    source = np.ones(_COPY_BYTES // 4, dtype=np.float32)
    target = np.empty_like(source)
    libraries = "NumPy's BLAS and PyTorch" if torch else "NumPy's BLAS"
    return Peaks(
        device="cpu",
        operations_per_s=_at_least_fp32(rates),
        copy_bytes_per_s=2 * _COPY_BYTES / _least_seconds(lambda: np.copyto(target, source)),
        method=f"matrix products of {libraries}, {threads} threads; copy of {_COPY_BYTES >> 20} MiB by NumPy",
        missing=missing,
    )


def cuda_peaks(*, device_index: int) -> Peaks:
    """Measure a GPU with PyTorch; untested on a GPU so far.

    Raises:
        RuntimeUnavailable: PyTorch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeUnavailable("PyTorch sees no GPU", hint="see `segx doctor`")
    torch.cuda.set_device(device_index)
    rates, missing = _torch_rates("cuda", ("fp32", "tf32", "fp16", "bf16", "int8"))
    source = torch.ones(_COPY_BYTES, dtype=torch.float32, device="cuda")  # four times what a CPU copies
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return Peaks(
        device="cuda",
        operations_per_s=_at_least_fp32(rates),
        copy_bytes_per_s=2 * 4 * _COPY_BYTES / _least_seconds(copy),
        method=f"matrix products of PyTorch; copy of {4 * _COPY_BYTES >> 20} MiB by PyTorch",
        missing=missing,
    )


def _torch_rates(
    device: Literal["cpu", "cuda"], precisions: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, str]]:
    """Operations per second by precision, and why there are none."""
    found: dict[str, float] = {}
    missing: dict[str, str] = {}
    for precision in precisions:
        try:
            found[precision] = _best_rate(partial(_torch_product, device, precision))
        except RuntimeError as error:  # PyTorch's way to say that a device has no such product
            missing[precision] = f"PyTorch has no such product here: {first_line(error)}"
    return found, missing


def _at_least_fp32(rates: Mapping[str, float]) -> dict[str, float]:
    """Narrower numbers can be computed as fp32, so that their peak is never below that, however slow their products."""
    return {name: max(rate, rates["fp32"]) for name, rate in rates.items()}


def _numpy_product(size: int) -> _Product:
    generator = np.random.default_rng(0)
    left, right = (generator.random((size, size), dtype=np.float32) for _ in range(2))
    return partial(np.matmul, left, right, out=np.empty_like(left))


def _torch_product(device: Literal["cpu", "cuda"], precision: str, size: int) -> _Product:
    import torch

    from segx.runtimes.precision import set_tf32

    set_tf32(precision == "tf32")
    if precision == "int8":
        left, right = (torch.randint(-99, 99, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        multiply: Callable[[], torch.Tensor] = partial(torch._int_mm, left, right)  # noqa: SLF001 - the only one there is
    else:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
        left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        multiply = partial(torch.mm, left, right)
    if device == "cpu":
        return multiply

    def product() -> None:
        multiply()
        torch.cuda.synchronize()

    return product


def _best_rate(make: Callable[[int], _Product]) -> float:
    """Operations per second of the size that suits best: what disturbs a product only slows it."""
    best = 0.0
    for _ in range(_PASSES):
        for size in (*_SIZES, *_LARGER):
            operations = 2 * size**3
            if size in _LARGER and operations / best > _GLANCE_S:
                break
            best = max(best, operations / _least_seconds(make(size)))
    return best


def _least_seconds(call: Callable[[], object]) -> float:
    call()  # the first one prepares
    least, begun, calls = float("inf"), time.perf_counter(), 0
    while calls < _FEWEST_CALLS or time.perf_counter() - begun < _SECONDS_EACH:
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
        calls += 1
    return least
