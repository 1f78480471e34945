"""The reference: the masks that all others are judged against, and how far it differs from itself."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segx.bench.inputs import collect_outputs
from segx.bench.plan import CellTask
from segx.bench.worker import CellWorkers
from segx.errors import InferenceError, OutputError
from segx.masks.agreement import classify_flips, compare_logits, other_threads, rounding_band
from segx.masks.metrics import overlap_with_truth
from segx.masks.preprocess import masks_from_logits, unprocess
from segx.results.pictures import ParityPicture, Role, save_pictures
from segx.results.types import NoiseProbe, Parity, ReferenceMasks
from segx.runtimes.base import FloatArray
from segx.system.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Outputs of the reference.

    Attributes:
        logits: (N, K, H, W) float32, image by image.
        noise: comparisons of the reference with itself, run in other ways.
        noise_band: largest of these differences in logits; at least ``rounding_band``.
        masks: what its masks are like.
    """

    logits: FloatArray
    noise: tuple[NoiseProbe, ...]
    noise_band: float
    masks: ReferenceMasks


def run_reference(
    workers: CellWorkers,
    task: CellTask,
    *,
    noise_images: int,
    any_batch: bool,
    timeout_s: float,
    progress: Progress,
) -> Reference:
    """Run the reference image by image, then the first images again in one batch and with another thread count.

    ``task`` is the reference at batch 1, or at the only batch size it takes (then ``any_batch`` is false).
    ``noise_images`` is the number of images to run again.

    Raises:
        SegxError: the reference cannot be run, so nothing can be judged.
    """
    names, spec = task.inputs.names, task.spec
    total, done = len(names) + 2 * noise_images, 0

    def run(step: CellTask, images: int) -> FloatArray:
        nonlocal done
        with workers.cell(step, timeout_s=timeout_s) as worker:
            worker.load()
            for _ in range(math.ceil(images / step.batch_size)):
                worker.sample(0.0)
                done += step.batch_size
                progress.reach(0.0, f"{min(done, total)} of {total} images")
        return collect_outputs(step.outputs, spec)[:images]

    progress.say(f"computing the reference masks with {task.runtime}")
    logits = run(task, len(names))
    noise = []
    for change, step in _other_ways(task, noise_images, any_batch=any_batch).items():
        progress.say(f"checking {task.runtime} against itself: {change}")
        try:
            again = run(step, noise_images)
        except InferenceError as error:
            logger.warning("the noise floor lacks %s: %s", change, error.message)
            continue
        if not np.isfinite(again).all():
            logger.warning("the noise floor lacks %s: logits are not finite", change)
            continue
        parity = compare_logits(logits[:noise_images], again, spec, names[:noise_images])
        noise.append(
            NoiseProbe(
                change=change,
                images=noise_images,
                max_abs_diff=parity.max_abs_diff,
                flipped_pixels=parity.flipped_pixels,
            )
        )
    progress.reach(0.0)
    band = max([rounding_band(logits), *(probe.max_abs_diff for probe in noise)])
    return Reference(logits, tuple(noise), band, _describe_masks(logits, task))


def _describe_masks(logits: FloatArray, task: CellTask) -> ReferenceMasks:
    spec, truth = task.spec, task.inputs.true_masks()
    empty = full = 0
    ious = []
    for index, each in enumerate(logits):
        mask = masks_from_logits(each[None], spec)
        if (mask == mask.flat[0]).all():
            empty, full = (empty + 1, full) if mask.flat[0] == 0 else (empty, full + 1)
        if truth is not None:
            ious.append(overlap_with_truth(truth[index : index + 1], mask, spec.classes).ious[0])
    return ReferenceMasks(images=len(logits), empty=empty, full=full, truth_iou=float(np.mean(ious)) if ious else None)


def _other_ways(task: CellTask, images: int, *, any_batch: bool) -> dict[str, CellTask]:
    """Return the same work in another batch size and with other threads: other kernels, other orders of addition."""
    threads = task.options.threads
    other = other_threads(threads)
    options = dataclasses.replace(task.options, threads=other)
    ways = {f"threads {other} against {threads}": dataclasses.replace(task, options=options)}
    if any_batch and images > 1:
        ways[f"batch {images} against 1"] = dataclasses.replace(task, batch_size=images)
    return ways


def judge_outputs(task: CellTask, reference: Reference, *, pictures: Path | None, run: str) -> Parity:
    """Compare the outputs of the timed calls with the reference, image by image.

    Deletes the file of outputs. Saves pictures of the masks in the folder of results ``pictures``, if there is one;
    ``run`` identifies the bench.
    """
    # Images that filled up a last batch have been run before.
    logits = collect_outputs(task.outputs, task.spec)[: len(task.inputs.names)]
    count, truth = len(logits), task.inputs.true_masks()
    parity = compare_logits(
        reference.logits[:count],
        logits,
        task.spec,
        task.inputs.names[:count],
        noise_band=reference.noise_band,
        truth=None if truth is None else truth[:count],
    )
    if pictures:
        chosen = parity_pictures(task, reference.logits, logits, parity)
        try:
            save_pictures(pictures, str(task.variant), chosen, flipped_pixels=parity.flipped_pixels, run=run)
        except OutputError as error:  # the measurement is complete without them
            logger.warning("no pictures of %s: %s", task.variant, error.message)
    return parity


def parity_pictures(
    task: CellTask, reference: FloatArray, logits: FloatArray, parity: Parity
) -> Iterator[tuple[int, ParityPicture]]:
    """Yield the worst, the median and a typical image of a variant, each with a number that tells it from others."""
    for role, index in chosen_images(parity).items():
        ours, theirs, spec, image, number = reference[index], logits[index], task.spec, parity.per_image[index], index
        if spec.multilabel:  # the mask that differs most, as that of a model of one class
            spec = dataclasses.replace(spec, classes=1, multilabel=False)
            names = [f"{image.name}, channel {channel}" for channel in range(len(ours))]
            masks = compare_logits(ours[:, None], theirs[:, None], spec, names, noise_band=parity.noise_band).per_image
            channel = min(range(len(masks)), key=lambda i: (masks[i].iou, -masks[i].flipped_pixels))
            ours, theirs, image = ours[[channel]], theirs[[channel]], masks[channel]
            number = index * len(masks) + channel
        flips = classify_flips(ours, theirs, spec, parity.noise_band)
        yield (
            number,
            ParityPicture(
                variant=str(task.variant),
                batch_size=task.batch_size,
                role=role,
                name=image.name,
                iou=image.iou,
                flipped_pixels=image.flipped_pixels,
                benign_flips=image.benign_flips,
                noise_band=parity.noise_band,
                classes=spec.classes,
                image=unprocess(task.inputs.read(index, 1)[0], task.spec),
                reference=flips.reference,
                mask=flips.mask,
                flips=flips.kinds,
                histogram=flips.histogram,
            ),
        )


def chosen_images(parity: Parity) -> dict[Role, int]:
    """Return the images to show by role, as indices; fewer roles with one or two images.

    Images of equal IoU are ordered by flipped pixels, then by index.
    """
    images = parity.per_image
    order = sorted(range(len(images)), key=lambda i: (images[i].iou, -images[i].flipped_pixels, i))
    chosen: dict[Role, int] = {}
    if order:
        chosen["worst"] = order[0]
    if len(order) > 1:
        chosen["median"] = order[len(order) // 2]
    if rest := [i for i in order if i not in chosen.values()]:
        chosen["typical"] = min(rest, key=lambda i: abs(images[i].iou - parity.mean_iou))
    return chosen
