"""The pipeline scope: a timed run is a pass of ``segx predict``'s pipeline over all images, image file to mask file."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segx.bench.inputs import SAMPLE_SEED, Inputs
from segx.bench.plan import CellTask, Finished, Loaded
from segx.errors import InferenceError, UsageError
from segx.masks.agreement import ImageMasks, compare_images, flip_margins
from segx.masks.image_io import read_image, write_png
from segx.masks.preprocess import FloatArray, MaskArray, model_inputs, resize_mask, to_image
from segx.model.spec import ModelSpec
from segx.predict.engine import Engine, EngineTask
from segx.predict.manifest import Manifest
from segx.predict.options import OutputOptions
from segx.predict.output import OutputFolder, class_masks, postprocess
from segx.predict.pipeline import Pipeline, PipelineReport
from segx.predict.sources import Item, mask_name
from segx.results.types import Parity
from segx.system.processes import Workers


def image_files(inputs: Inputs, spec: ModelSpec, folder: Path) -> tuple[Item, ...]:
    """Return the images of a bench as files, in the same order; generated ones are written to ``folder`` as PNG.

    Raises:
        OutputError: they cannot be written.
    """
    if inputs.folder:
        names = set(inputs.names)
        return tuple(Item(name, inputs.folder / name, mask_name(name, names.__contains__)) for name in inputs.names)
    items = []
    for scene, _ in model_inputs(spec, len(inputs.names), seed=SAMPLE_SEED):
        path = folder / f"{scene.name}.png"
        write_png(path, scene.image)
        items.append(Item(path.name, path))
    return tuple(items)


class PipelineWorker:
    """Run a cell in the pipeline scope: the engine in a process of its own, the other stages in this one.

    Nothing computes between passes: the engine waits for the next call.
    """

    def __init__(self, workers: Workers, task: CellTask, *, timeout_s: float) -> None:
        """Start the engine's process; it is given up on after ``timeout_s`` seconds without an answer."""
        self._task = task
        self._engine_task = EngineTask(
            model=task.model,
            spec=task.spec,
            options=task.options,
            batch_size=task.batch_size,
            fills_batches=task.fills_batches,
        )
        self._seconds: Counter[str] = Counter()
        self._images = 0
        self._engine = Engine(workers, task.runtime, timeout_s=timeout_s)

    def load(self) -> Loaded:
        """Load the model into the engine.

        Raises:
            UsageError: there are fewer images than the batch size.
            SegxError: the model cannot be loaded.
        """
        count, size = len(self._task.items), self._task.batch_size
        if count < size:
            raise UsageError(f"{count} images do not fill a batch of {size}", hint=f"give --num-images {size} or more")
        self._engine.load(self._engine_task)
        return Loaded(import_s=None, load_s=None, first_s=None, facts=self._engine.wait_until_ready())

    def warm_up(self, runs: int) -> None:
        """Run a pass over the images of ``runs`` batches."""
        if images := self._task.items[: runs * self._task.batch_size]:
            self._pass(images)

    def pause(self) -> None:
        """Do nothing: the engine is idle between passes."""

    def resume(self) -> None:
        """Do nothing."""

    def sample(self, _slice_s: float) -> list[float]:
        """Run one pass over all images; return its seconds, from the first file to the last mask.

        Raises:
            SegxError: an image or a call failed. Nothing is repeated, since that would be another batch size.
        """
        report = self._pass(self._task.items)
        self._seconds.update(report.stages)
        self._images += report.images
        return [report.seconds - report.ready_s]

    def finish(self) -> Finished:
        """Return the mean seconds per image in each stage, over all timed passes."""
        stages = {stage: seconds / self._images for stage, seconds in self._seconds.items()}
        return Finished(memory=None, device_memory=None, stages=stages)

    def close(self) -> None:
        """End the engine's process."""
        self._engine.close()

    def kill(self) -> None:
        """End the engine's process and delete the masks."""
        self._engine.close()
        shutil.rmtree(self._task.outputs, ignore_errors=True)

    def _pass(self, items: Sequence[Item]) -> PipelineReport:
        task = self._task
        shutil.rmtree(task.outputs, ignore_errors=True)
        with OutputFolder(task.outputs) as folder, Manifest.open(folder, {}, resume=False) as manifest:
            pipeline = Pipeline(
                items=items,
                together=folder.together,
                append=manifest.append,
                engine=self._engine,
                task=self._engine_task,
                outputs=OutputOptions(on_error="stop"),
                retry=False,
            )
            return pipeline.run()


def judge_mask_files(task: CellTask, reference: FloatArray, noise_band: float) -> Parity:
    """Compare the mask files of a pass, pixel by pixel, with the masks of the reference's logits; delete the files.

    Differences inside ``noise_band``, in logits, are benign.

    Raises:
        ImageError: a mask or an image cannot be read.
        InferenceError: a mask does not have the size of its image.
    """
    images = _mask_pairs(task, reference, noise_band)
    parity = compare_images(images, task.spec, task.inputs.names, noise_band=noise_band)
    shutil.rmtree(task.outputs, ignore_errors=True)
    return parity


def _mask_pairs(task: CellTask, reference: FloatArray, noise_band: float) -> Iterator[ImageMasks]:
    """Yield each image's expected mask, the mask in its file, and where a flip is benign."""
    for item, logits in zip(task.items, reference, strict=True):
        height, width = read_image(item.path, task.spec.in_channels, white_level=task.spec.white_level).shape[:2]
        expected = _values(postprocess(logits, (width, height), task.spec, OutputOptions()).mask, task.spec)
        files = class_masks(item.mask, (), task.spec)
        planes = [read_image(task.outputs / path, 1)[..., 0].astype(np.uint8) for path in files.values() or [item.mask]]
        mask = _values(np.stack(planes) if files else planes[0], task.spec)
        if mask.shape != expected.shape:
            raise InferenceError(
                f"the mask of {item.shown} has {mask.shape[-1]}x{mask.shape[-2]} pixels, its image {width}x{height}",
                hint="report this as a bug",
            )
        # Resized as masks are, so that each pixel has the logits that its mask value came from.
        resized = resize_mask(to_image(logits, (height, width), task.spec), (height, width))
        margins = flip_margins(resized[None], expected[None], mask[None], task.spec)
        yield expected, mask, margins[0] <= noise_band


def _values(mask: MaskArray, spec: ModelSpec) -> MaskArray:
    """Return class indices; else 0 and 1 for 0 and 255, and 2, which no reference has, for other values."""
    if spec.exclusive:
        return mask
    table = np.full(256, 2, dtype=np.uint8)
    table[0], table[255] = 0, 1
    values: MaskArray = table[mask]
    return values
