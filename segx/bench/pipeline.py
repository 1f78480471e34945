"""The pipeline scope: a timed run is a pass of ``segx predict``'s pipeline over all images, image file to mask file."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segx.bench.inputs import SAMPLE_SEED, Inputs
from segx.bench.worker import CellTask, Finished, Loaded
from segx.errors import UsageError
from segx.masks.image_io import write_png
from segx.model.scenes import model_inputs
from segx.model.spec import ModelSpec
from segx.predict.engine import Engine
from segx.predict.item import Item, mask_name
from segx.predict.manifest import Ledger
from segx.predict.outcome import PipelineReport
from segx.predict.output import OutputFolder
from segx.predict.outputs import Wishes
from segx.predict.pipeline import Destination, engine_task, run_pipeline
from segx.system.processes import Workers

# So many passes give a median that one disturbed pass does not carry away.
FEWEST_PASSES = 3


def image_files(inputs: Inputs, spec: ModelSpec, folder: Path) -> tuple[Item, ...]:
    """The images of a bench as files, in its order.

    Args:
        inputs: the images as arrays; those from a folder are taken from there as they are.
        spec: the model's description, for generated scenes.
        folder: where generated scenes are written, as PNG.

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
    """Does the work of a cell in the pipeline scope: its engine is a process of its own, the other stages run here.

    Between its turns nothing of it computes: the engine waits for the next call.
    """

    def __init__(self, workers: Workers, task: CellTask, *, timeout_s: float) -> None:
        """Starts the engine's process.

        Args:
            workers: starts it.
            task: ``outputs`` is the folder where the masks of the last pass are found.
            timeout_s: seconds after which a silent engine is given up on.
        """
        self._task = task
        self._engine_task = engine_task(task.model, task.spec, task.options, task.batch_size)
        self._seconds: Counter[str] = Counter()
        self._images = 0
        self._engine = Engine(workers, task.runtime, timeout_s=timeout_s)

    def load(self) -> Loaded:
        """Load the model into the engine.

        Raises:
            UsageError: the images do not fill a single batch.
            SegxError: it cannot be loaded.
        """
        count, size = len(self._task.items), self._task.batch_size
        if count < size:
            raise UsageError(f"{count} images do not fill a batch of {size}", hint=f"give --num-images {size} or more")
        self._engine.open(self._engine_task)
        return Loaded(import_s=None, load_s=None, first_s=None, facts=self._engine.wait_until_ready())

    def warm_up(self, runs: int) -> None:
        """A pass over the images of so many batches."""
        if images := self._task.items[: runs * self._task.batch_size]:
            self._pass(images)

    def pause(self) -> None:
        """Nothing: it is idle between passes."""

    def resume(self) -> None:
        """Nothing."""

    def sample(self, _slice_s: float) -> list[float]:
        """One pass over all images; gives its seconds, from the first file to the last mask.

        Raises:
            SegxError: an image or a call failed; nothing is repeated, as that would not be the batch size asked for.
        """
        report = self._pass(self._task.items)
        self._seconds.update(dataclasses.asdict(report.stages))
        self._images += report.images
        return [report.seconds - report.ready_s]

    def finish(self) -> Finished:
        """The mean seconds per image in each stage, over all timed passes."""
        stages = {stage: seconds / self._images for stage, seconds in self._seconds.items()}
        return Finished(memory=None, device_memory=None, kept=self._images, stages=stages)

    def close(self) -> None:
        """End the engine's process."""
        self._engine.close()

    def kill(self) -> None:
        """Likewise, and forget the masks."""
        self._engine.close()
        shutil.rmtree(self._task.outputs, ignore_errors=True)

    def _pass(self, items: Sequence[Item]) -> PipelineReport:
        task = self._task
        shutil.rmtree(task.outputs, ignore_errors=True)
        with OutputFolder(task.outputs) as folder, Ledger.open(folder, {}, resume=False) as ledger:
            return run_pipeline(
                items,
                Destination(folder=folder, ledger=ledger, wishes=Wishes()),
                engine=self._engine,
                model=task.model,
                spec=task.spec,
                options=task.options,
                batch_size=task.batch_size,
                on_error="stop",
                retry=False,
            )
