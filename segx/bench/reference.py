"""The reference: the masks that all others are judged against, and how much they waver by themselves."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segx.bench.inputs import collect_outputs
from segx.bench.processes import Workers
from segx.bench.worker import CellTask
from segx.errors import InferenceError
from segx.masks.agreement import compare_logits
from segx.model.spec import ModelSpec
from segx.results.types import NoiseProbe
from segx.runtimes.base import FloatArray
from segx.system.progress import Progress

logger = logging.getLogger(__name__)

# Two float32 engines that add in other orders came to differ by 4 steps of the largest logit on the shipped model,
# where PyTorch did not differ from itself at all.
_ROUNDING_STEPS = 8


@dataclass(frozen=True)
class Reference:
    """What the reference gave.

    Attributes:
        logits: (N, K, H, W) float32, image by image.
        noise: the same images run in other ways.
        noise_band: the largest difference of these from the first, in logits; at least what rounding makes of it.
    """

    logits: FloatArray
    noise: tuple[NoiseProbe, ...]
    noise_band: float


def run_reference(
    workers: Workers,
    task: CellTask,
    *,
    spec: ModelSpec,
    noise_images: int,
    any_batch: bool,
    timeout_s: float,
    progress: Progress,
    when_run: Callable[[float], None],
) -> Reference:
    """Run the reference image by image, then the first images once more in one batch, and with one thread.

    Args:
        workers: starts the processes.
        task: the reference at batch 1, or at the one that it takes.
        spec: the model's description.
        noise_images: how many images to run again.
        any_batch: whether it takes other batch sizes too.
        timeout_s: seconds after which a silent worker is given up on.
        progress: told what is being done.
        when_run: told how much of it is done, 0 to 1.

    Raises:
        SegxError: the reference cannot be run; nothing can be judged then.
    """
    names = task.inputs.names
    total, done = len(names) + 2 * noise_images, 0

    def run(step: CellTask, images: int) -> FloatArray:
        nonlocal done
        with workers.cell(step, timeout_s=timeout_s) as worker:
            worker.load()
            for _ in range(math.ceil(images / step.batch_size)):
                worker.sample(0.0)
                done += step.batch_size
                when_run(min(1.0, done / total))
        return collect_outputs(step.outputs, spec)[:images]

    progress.say(f"computing the reference masks with {task.runtime}")
    logits = run(task, len(names))
    noise = []
    for change, step in _other_ways(task, noise_images, any_batch=any_batch).items():
        progress.say(f"how much they waver: {change}")
        try:
            again = run(step, noise_images)
        except InferenceError as error:
            logger.warning("the noise floor lacks %s: %s", change, error.message)
            continue
        parity = compare_logits(logits[:noise_images], again, spec, names[:noise_images])
        if not np.isfinite(again).all():
            logger.warning("the noise floor lacks %s: logits are not finite", change)
            continue
        noise.append(
            NoiseProbe(
                change=change,
                images=noise_images,
                max_abs_diff=parity.max_abs_diff,
                flipped_pixels=parity.flipped_pixels,
            )
        )
    when_run(1.0)
    rounding = _ROUNDING_STEPS * float(np.spacing(np.abs(logits).max()))
    return Reference(logits, tuple(noise), max([rounding, *(probe.max_abs_diff for probe in noise)]))


def _other_ways(task: CellTask, images: int, *, any_batch: bool) -> dict[str, CellTask]:
    """The same work in another batch and by another number of threads: other kernels, other orders of addition."""
    threads = task.options.threads
    other = 1 if threads > 1 else 2
    ways = {
        f"threads {other} against {threads}": dataclasses.replace(
            task, options=dataclasses.replace(task.options, threads=other)
        )
    }
    if any_batch and images > 1:
        ways[f"batch {images} against 1"] = dataclasses.replace(task, batch_size=images)
    return ways
