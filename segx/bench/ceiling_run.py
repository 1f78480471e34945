"""The ceiling of a bench: its network's work and its devices' peaks, each found in a worker."""

from __future__ import annotations

import logging
from pathlib import Path

from segx.bench.network_work import network_work
from segx.bench.processes import Workers
from segx.bench.roofline_probe import cpu_peaks, cuda_peaks
from segx.errors import SegxError
from segx.results.types import Peaks, Work
from segx.system.memory import offer_to_oom_killer

logger = logging.getLogger(__name__)

Found = tuple[Work | None, tuple[Peaks, ...]]


def measure_ceiling(
    workers: Workers, onnx: Path | None, *, torch: bool, gpu: int | None, threads: int, timeout_s: float
) -> Found:
    """Count the work, measure the peaks. What fails is left out, with a warning: a bench goes on without.

    Args:
        workers: starts the processes.
        onnx: the exported fp32 file; None where there is none, and so nothing to set against a peak.
        torch: whether the bench starts PyTorch anyway.
        gpu: index of the GPU that is benched; None where none is.
        threads: of the processors.
        timeout_s: seconds after which a silent worker is given up on.

    Returns:
        The work and the peaks of each device; None and nothing where the network has no operations that count.
    """
    if onnx is None:
        return None, ()
    work, peaks = None, []
    try:
        arguments = {"onnx": onnx, "torch": torch, "threads": threads}
        work, cpu = workers.call(_work_and_cpu_peaks, arguments, torch=torch, timeout_s=timeout_s)
        peaks = [cpu] if cpu else []
        if work and gpu is not None:
            peaks.append(workers.call(cuda_peaks, {"device_index": gpu}, torch=True, timeout_s=timeout_s))
    except SegxError as error:
        logger.warning("the ceiling is not known: %s", error.message)
    return work, tuple(peaks)


def _work_and_cpu_peaks(onnx: Path, *, torch: bool, threads: int) -> tuple[Work | None, Peaks | None]:
    offer_to_oom_killer()
    work = network_work(onnx)
    return (work, cpu_peaks(torch=torch, threads=threads)) if work.operations else (None, None)
