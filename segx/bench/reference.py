"""The reference: the masks that all others are judged against, and how far it differs from itself."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from segx.bench.inputs import collect_outputs
from segx.bench.plan import CellTask
from segx.bench.worker import CellServer, CellWorkers
from segx.errors import InferenceError, OutOfMemory, OutputError
from segx.export.artifact import ARTIFACTS, content_key
from segx.masks.agreement import classify_flips, compare_logits, other_threads, rounding_band
from segx.masks.metrics import overlap_with_truth
from segx.masks.preprocess import masks_from_logits, unprocess
from segx.model.checkpoint import checkpoint_digest
from segx.results.pictures import ParityPicture, Role, save_pictures
from segx.results.types import NoiseProbe, Parity, ReferenceMasks
from segx.runtimes import runtime_info
from segx.runtimes.base import FloatArray
from segx.system import machine
from segx.system.derived import cached, read_manifest
from segx.system.processes import Call, WorkerDied
from segx.system.progress import Progress, Told

logger = logging.getLogger(__name__)


# Larger logits are not kept for the next bench.
_MOST_KEPT_BYTES = 2**28
# What a worker says of its progress; it stops when some 280 messages wait to be read.
_MOST_SAID = 100


@dataclass(frozen=True)
class Reference:
    """Outputs of the reference.

    Attributes:
        logits: (N, K, H, W) float32, image by image.
        noise: comparisons of the reference with itself, run in other ways.
        noise_band: largest of these differences in logits; at least ``rounding_band``.
        masks: what its masks are like.
        seconds_per_image: of the fastest call.
    """

    logits: FloatArray
    noise: tuple[NoiseProbe, ...]
    noise_band: float
    masks: ReferenceMasks
    seconds_per_image: float


@dataclass(frozen=True)
class _Kept:
    """What is kept beside the logits."""

    noise: tuple[NoiseProbe, ...]
    seconds_per_image: float


class ReferenceRun:
    """The reference, image by image, then the first images again in one batch and with another thread count.

    Logits of up to 256 MiB are kept in ``artifacts``, one file for each model, and used again by a bench of the same
    weights, images, options, processor, packages and environment variables.
    """

    def __init__(
        self,
        workers: CellWorkers,
        task: CellTask,
        *,
        noise_images: int,
        any_batch: bool,
        timeout_s: float,
        progress: Progress,
    ) -> None:
        """Start to run the images in a worker, which goes on while the caller does other work.

        ``task`` is the reference at batch 1, or at the only batch size it takes (then ``any_batch`` is false).
        ``noise_images`` is the number of images to run again.

        Raises:
            WorkerDied: the worker cannot be started.
        """
        self._workers, self._task, self._timeout_s, self._progress = workers, task, timeout_s, progress
        self._ways = _other_ways(task, noise_images, any_batch=any_batch)
        self._noise_images = noise_images
        digest = checkpoint_digest(task.model)
        self._path = ARTIFACTS / f"{task.model.resolve().stem}-reference-{content_key(digest)}.f32"
        self._recipe = _recipe(task, digest, noise_images, list(self._ways))
        self._kept = self._read_kept()
        self._running = contextlib.ExitStack()
        self._call: Call | None = None
        self._calls: dict[str, Call] = {}
        if not self._kept:
            progress.say(f"starting {task.runtime} for the reference masks")
            self._call = self._begin(task, len(task.inputs.names))
            # Beside an export, which takes one processor. Larger batches take more memory: they wait for its end.
            self._begin_ways(lambda step: step.batch_size == task.batch_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers that are still running."""
        self._running.close()

    def result(self) -> Reference:
        """Wait for the reference masks, then run the images again.

        Raises:
            SegxError: the reference cannot be run, so nothing can be judged.
        """
        task = self._task
        if self._kept:
            self._progress.say(f"using the reference masks of an earlier bench ({self._path})")
            return self._reference(*self._kept)
        assert self._call  # begun where nothing was kept
        self._progress.say(f"computing the reference masks with {task.runtime}")
        logits, seconds = self._outputs(self._call, task, len(task.inputs.names))
        kept = _Kept(tuple(self._probe_noise(logits)), seconds)
        self._progress.reach(0.0)
        if len(kept.noise) == len(self._ways):
            self._keep(logits, kept)
        return self._reference(logits, kept)

    def _reference(self, logits: FloatArray, kept: _Kept) -> Reference:
        band = max([rounding_band(logits), *(probe.max_abs_diff for probe in kept.noise)])
        return Reference(logits, kept.noise, band, _describe_masks(logits, self._task), kept.seconds_per_image)

    def _probe_noise(self, logits: FloatArray) -> Iterator[NoiseProbe]:
        """Run the first images again, in all other ways side by side: a single one leaves processors idle."""
        task, images = self._task, self._noise_images
        self._progress.say(f"checking {task.runtime} against itself: {', '.join(self._ways)}")
        self._begin_ways(lambda _: True)
        for change, step in self._ways.items():
            try:
                again, _ = self._outputs(self._calls.get(change), step, images)
            except InferenceError as error:
                logger.warning("the noise floor lacks %s: %s", change, error.message)
                continue
            if not np.isfinite(again).all():
                logger.warning("the noise floor lacks %s: logits are not finite", change)
                continue
            parity = compare_logits(logits[:images], again, task.spec, task.inputs.names[:images])
            yield NoiseProbe(
                change=change,
                images=images,
                max_abs_diff=parity.max_abs_diff,
                flipped_pixels=parity.flipped_pixels,
            )

    def _begin_ways(self, which: Callable[[CellTask], bool]) -> None:
        """Start those that are not running yet."""
        for change, step in self._ways.items():
            if which(step) and change not in self._calls:
                with contextlib.suppress(WorkerDied):  # it is tried again alone
                    self._calls[change] = self._begin(step, self._noise_images)

    def _begin(self, task: CellTask, images: int) -> Call:
        on_torch = runtime_info(task.runtime).torch
        arguments = {"task": task, "images": images}
        call = self._workers.begin(_run_images, arguments, torch=on_torch, timeout_s=self._timeout_s, tells=True)
        self._running.callback(call.kill)
        return call

    def _outputs(self, call: Call | None, task: CellTask, images: int) -> tuple[FloatArray, float]:
        """Wait for a worker; return the logits that it stored, and the seconds per image of its fastest call.

        If it died, maybe because memory was short beside others, another one does its work.
        """

        def stored_by(worker: Call) -> tuple[FloatArray, float]:
            with worker:
                seconds = worker.result(Told(lambda text: self._progress.reach(0.0, text)))
            return collect_outputs(task.outputs, task.spec)[:images], seconds

        if call:
            with contextlib.suppress(OutOfMemory, WorkerDied):
                return stored_by(call)
        return stored_by(self._begin(task, images))

    def _read_kept(self) -> tuple[FloatArray, _Kept] | None:
        """Return what an earlier bench kept; its file may be replaced from now on."""
        manifest = read_manifest(self._path, _Kept)
        if not manifest or manifest.recipe != self._recipe:
            return None
        logits = np.memmap(self._path, dtype=np.float32, mode="r")
        return logits.reshape(-1, *self._task.spec.output_shape), manifest.proof

    def _keep(self, logits: FloatArray, kept: _Kept) -> None:
        def write(path: Path) -> _Kept:
            logits.tofile(path)
            return kept

        if logits.nbytes <= _MOST_KEPT_BYTES:
            try:
                cached(self._path, self._recipe, write, source=self._task.model, proof=_Kept, why_foreign=None)
            except OutputError as error:  # the next bench computes them again
                logger.debug("the reference is not kept: %s", error.message)


def _run_images(task: CellTask, images: int, progress: Progress) -> float:
    """Store the logits of the first images; return the seconds per image of the fastest call."""
    server = CellServer(task)
    seconds = [server.load(keep_first=True).first_s]
    every = max(1, images // _MOST_SAID)
    for number, done in enumerate(range(task.batch_size, images, task.batch_size)):
        if number % every == 0:
            progress.say(f"{done} of {images} images")
        seconds += server.sample(0.0)
    return min(filter(None, seconds)) / task.batch_size


def _recipe(task: CellTask, digest: str, noise_images: int, ways: Sequence[str]) -> dict[str, Any]:
    """Return what decides the logits and their noise."""
    return {
        "model_sha256": digest,
        "spec": task.spec.to_json(),
        "runtime": task.runtime,
        "options": dataclasses.asdict(task.options),
        "batch_size": task.batch_size,
        "inputs_sha256": task.inputs.digest,
        "images": len(task.inputs.names),
        "noise_images": noise_images,
        "ways": ways,
        "cpu": machine.cpu_name(),
        "cpu_flags": list(machine.cpu_flags()),
        "variables": machine.variables(),
        "versions": machine.package_versions(),
    }


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
    options, outputs = dataclasses.replace(task.options, threads=other), task.outputs
    step = dataclasses.replace(task, options=options, outputs=outputs.with_name(f"{outputs.name}-threads"))
    ways = {f"threads {other} against {threads}": step}
    if any_batch and images > 1:
        step = dataclasses.replace(task, batch_size=images, outputs=outputs.with_name(f"{outputs.name}-batch"))
        ways[f"batch {images} against 1"] = step
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
