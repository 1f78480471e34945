"""Run all stages at once: read, decode, preprocess, infer, postprocess and encode overlap, in bounded memory."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from segx.errors import ImageError, InferenceError, SegxError
from segx.masks.image_io import Remarks, jpeg_scale
from segx.masks.preprocess import FIRST_IMAGES, FloatArray, PixelArray, doubt_of_pixels, preprocess
from segx.predict.batching import (
    LOADING,
    MAX_THREADS,
    STORING,
    Batch,
    Batcher,
    Dispatcher,
    StageClock,
    Stopped,
)
from segx.predict.engine import Engine, EngineTask
from segx.predict.manifest import Entry
from segx.predict.options import OutputOptions
from segx.predict.output import Write, class_masks, postprocess, write_outputs
from segx.predict.sources import Item, decode, fetch
from segx.system import machine

_TICK_S = 0.1
_JOIN_TIMEOUT_S = 3.0


@dataclass(frozen=True, kw_only=True)
class PipelineReport:
    """What a run has done; seconds count from its start.

    Attributes:
        images: number of images with a mask.
        failed: number of images without one.
        first_failure: name and reason of the first of those, or an empty string.
        blank: number of masks with one value only.
        doubt: why images may be prepared otherwise than in the model's training, or an empty string.
        seconds: until now, including the loading of the model.
        ready_s: until the engine was ready; 0 before.
        first_mask_s: until the first mask was written; None if there is none.
        stages: seconds in each of ``STAGES``, summed over threads; stages overlap, so they may add up to more than the
            run took.
        facts: what is in effect in the engine; see ``Runtime.facts``.
        restarts: how often the engine was restarted.
        loaders: threads for reading, decoding and preprocessing.
        writers: threads for postprocessing and encoding.
    """

    images: int
    failed: int
    first_failure: str
    blank: int
    doubt: str
    seconds: float
    ready_s: float
    first_mask_s: float | None
    stages: Mapping[str, float]
    facts: Mapping[str, str]
    restarts: int
    loaders: int
    writers: int

    @property
    def images_per_s(self) -> float:
        """Throughput once the engine was ready."""
        return self.images / max(self.seconds - self.ready_s, 1e-9)


@dataclass(frozen=True, slots=True)
class _Ticket:
    """An image between loading and storing."""

    item: Item
    pixels: PixelArray | None
    size: tuple[int, int]
    seconds: float


class _Pool:
    """Daemon threads that repeat a step until it returns False; only the first ``size`` of them work.

    A step may raise Stopped to end its thread. The last thread calls ``done``, unless a step raised another error, with
    which ``failed`` is called.
    """

    def __init__(
        self, name: str, step: Callable[[], bool], done: Callable[[], None], failed: Callable[[BaseException], None]
    ) -> None:
        self.size = self._running = 0
        self._name, self._step, self._done, self._failed = name, step, done, failed
        self._threads: list[threading.Thread] = []
        self._over = False
        self._changed = threading.Condition()

    def resize(self, size: int) -> None:
        with self._changed:
            self.size = size
            while len(self._threads) < size and not self._over:
                thread = threading.Thread(target=self._run, args=(len(self._threads),), name=self._name, daemon=True)
                self._threads.append(thread)
                self._running += 1
                thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self, number: int) -> None:
        try:
            while not self._over:
                if number >= self.size:
                    with self._changed:
                        self._changed.wait_for(lambda: self._over or number < self.size)
                elif not self._step():
                    self.close()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - the thread that started the run raises it
            self._failed(error)
            return
        with self._changed:
            self._running -= 1
            last = self._running == 0
        if last:
            self._done()


@dataclass(kw_only=True, eq=False)
class Pipeline:
    """Segment images in memory that does not grow with their number; for one run.

    A pool loads images into batches, a thread runs the engine, a pool stores the masks.

    Args:
        items: the images; those of an earlier run are left out by ``pending``.
        together: gives what writes the files of an image, of which none is left if the block fails; see
            ``OutputFolder.together``. Called from several threads, as is ``append``.
        append: called with the entry of each image.
        engine: stays open unless the run ends early.
        task: what the engine runs, which may have been loaded before. The last batch may be smaller than its size.
        outputs: what to write, and whether to stop at the first image that fails.
        retry: infer the images of a failed call one by one, to find the one at fault. Without it, the error ends the
            run: a benchmark must not report the slower single calls as the batch size it measured.
        checkpoint: the first images are compared with those of its training.
        remarks: receives what is to be told once about all images.
        warn: called for each image that is skipped.

    Raises:
        OutOfMemory: the buffers of the batches cannot be allocated.
    """

    items: Iterable[Item]
    together: Callable[[str], AbstractContextManager[Write]]
    append: Callable[[Entry], None]
    engine: Engine
    task: EngineTask
    outputs: OutputOptions
    retry: bool = True
    checkpoint: Path | None = None
    remarks: Remarks | None = None
    warn: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self._begun = time.perf_counter()
        self._items, self._items_lock = iter(self.items), threading.Lock()
        self._clock = StageClock()
        self._buffers = self.engine.load(self.task)
        self._batcher: Batcher[_Ticket] = Batcher(self._buffers, self.task.batch_size)
        self._dispatcher: Dispatcher[_Ticket] = Dispatcher(
            self.engine, self._batcher, self._clock, deliver=self._deliver, give_up=self._give_up, retry=self.retry
        )
        self._cores = machine.usable_cores()
        self._results: queue.SimpleQueue[tuple[Batch[_Ticket], int, float] | None] = queue.SimpleQueue()
        self._counts_lock = threading.Lock()
        self._done = self._failed = self._blank = 0
        self._first: list[FloatArray] = []
        self._doubt: str | None = None
        self._first_failure = ""
        self._first_mask_s: float | None = None
        self._stopping = False
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._loaders = _Pool("segx-load", self._load, self._batcher.finish, self._fail)
        self._writers = _Pool("segx-write", self._store, self._ended.set, self._fail)

    def run(self, on_report: Callable[[PipelineReport], None] = lambda _: None) -> PipelineReport:
        """Segment the images, once; ``on_report`` is called several times a second with the report so far.

        Raises:
            ImageError, InferenceError: an image cannot be segmented, and ``on_error`` is ``stop``.
            OutputError: a mask cannot be written, which ends the run.
            RuntimeUnavailable, ArtifactError, InferenceError: the engine cannot be started, or fails again and again.
            KeyboardInterrupt: interrupted; every file is complete, and the manifest is right.
        """
        before = cv2.getNumThreads()
        cv2.setNumThreads(1)  # images are processed in parallel, and the engine needs the cores
        inference = threading.Thread(target=self._infer, name="segx-infer", daemon=True)
        try:
            self._loaders.resize(min(self._cores, MAX_THREADS))
            self._writers.resize(1)
            inference.start()
            while not self._ended.wait(_TICK_S):
                for pool, stages in ((self._loaders, LOADING), (self._writers, STORING)):
                    if threads := self._clock.threads_for(stages, self._cores):
                        pool.resize(threads)
                on_report(self._report())
                self._look(FIRST_IMAGES)
        finally:
            self._stop(inference)
            cv2.setNumThreads(before)
        if self._error:
            raise self._error
        self._look(1)
        report = self._report()
        on_report(report)
        return report

    def _look(self, least: int) -> None:
        """Compare the first images with those of the training, as soon as there are so many."""
        if self._doubt is None and len(self._first) >= least:
            self._doubt = doubt_of_pixels(np.stack(self._first), self.task.spec, self.checkpoint)
            if self._doubt:
                self.warn(self._doubt)
            self._first.clear()

    def _report(self) -> PipelineReport:
        return PipelineReport(
            images=self._done,
            failed=self._failed,
            first_failure=self._first_failure,
            blank=self._blank,
            doubt=self._doubt or "",
            seconds=time.perf_counter() - self._begun,
            ready_s=(self._dispatcher.ready_at or self._begun) - self._begun,
            first_mask_s=self._first_mask_s,
            stages=self._clock.times(),
            facts=self._dispatcher.facts,
            restarts=self._dispatcher.restarts,
            loaders=self._loaders.size,
            writers=self._writers.size,
        )

    def _stop(self, inference: threading.Thread) -> None:
        """End all threads; a mask that is being written is finished, and so is its line."""
        if self._ended.is_set() and not self._error:
            inference.join(_JOIN_TIMEOUT_S)  # about to end by itself, and the engine may be wanted again
        self._stopping = True
        self._batcher.stop()
        self._results.put(None)
        give_up = time.perf_counter() + _JOIN_TIMEOUT_S
        while inference.is_alive() and time.perf_counter() < give_up:
            self.engine.interrupt()  # repeatedly, because it may just be restarting
            inference.join(_TICK_S)
        for pool in (self._writers, self._loaders):
            pool.close()
            pool.join(_JOIN_TIMEOUT_S)

    def _fail(self, error: BaseException) -> None:
        """End the run with its first error."""
        with self._counts_lock:
            if not self._stopping:
                self._error = self._error or error
        self._ended.set()

    # The work of the threads, from the source to the mask

    def _load(self) -> bool:
        item = self._next_item()
        if item is None:
            return False
        cpu_s, marks = time.thread_time(), [time.perf_counter()]
        try:
            data = fetch(item)
            marks.append(time.perf_counter())
            scale = jpeg_scale(data, self.task.spec.input_shape[1:]) if self.outputs.scaled_decoding else 1
            pixels = decode(
                data,
                item,
                self.task.spec.in_channels,
                white_level=self.task.spec.white_level,
                ignore_orientation=self.outputs.ignore_orientation,
                scale=scale,
                remarks=self.remarks,
            )
            marks.append(time.perf_counter())
            image = preprocess(pixels, self.task.spec)
            marks.append(time.perf_counter())
        except SegxError as error:
            self._skip(item, error)
            return True
        except MemoryError:
            self._skip(item, ImageError(f"{item.shown} does not fit into memory", hint="make it smaller"))
            return True
        self._clock.add(LOADING, marks, cpu_s=time.thread_time() - cpu_s)
        size = pixels.shape[1] * scale, pixels.shape[0] * scale
        ticket = _Ticket(item, pixels if self.outputs.overlay else None, size, marks[-1] - marks[0])
        del pixels  # it may be large, and waiting for room in a batch take long
        if self._doubt is None and len(self._first) < FIRST_IMAGES:
            self._first.append(image)
        self._batcher.place(image, ticket)
        return True

    def _next_item(self) -> Item | None:
        # A source may be a silent pipe: threads that wait for the one that reads it must be able to end.
        while not self._items_lock.acquire(timeout=_TICK_S):
            if self._stopping:
                raise Stopped
        try:
            item = next(self._items, None)
        finally:
            self._items_lock.release()
        if self._stopping:
            raise Stopped
        return item

    def _infer(self) -> None:
        # A process started from this thread inherits the mask, so that Ctrl-C does not reach it while it imports.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._dispatcher.run()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - the thread that started the run raises it
            self._fail(error)
        finally:
            self._results.put(None)

    def _deliver(self, batch: Batch[_Ticket], rows: range, infer_s: float) -> None:
        for row in rows:
            self._results.put((batch, row, infer_s / len(rows)))

    def _give_up(self, batch: Batch[_Ticket], row: int, error: SegxError) -> None:
        self._batcher.release(batch)
        self._skip(batch.tickets[row].item, error)

    def _store(self) -> bool:
        result = self._results.get()
        if result is None:
            self._results.put(None)  # for the next thread
            return False
        if self._stopping:
            raise Stopped
        batch, row, infer_s = result
        ticket = batch.tickets[row]
        cpu_s, marks = time.thread_time(), [time.perf_counter()]
        logits = self._buffers.outputs[batch.buffer][row]
        finite = bool(np.isfinite(logits).all())
        outputs = postprocess(logits, ticket.size, self.task.spec, self.outputs) if finite else None
        self._batcher.release(batch)
        marks.append(time.perf_counter())
        if outputs is None:
            self._skip(ticket.item, InferenceError("logits are not finite", hint="try another runtime or precision"))
            return True
        masks = class_masks(ticket.item.mask, self.outputs.class_names, self.task.spec)
        try:
            with self.together(ticket.item.name) as write:
                write_outputs(
                    write,
                    ticket.item,
                    ticket.pixels,
                    outputs,
                    white_level=self.task.spec.white_level,
                    palette=self.outputs.palette,
                    masks=masks,
                )
                marks.append(time.perf_counter())
                self._clock.add(STORING, marks, cpu_s=time.thread_time() - cpu_s)
                seconds = ticket.seconds + infer_s + marks[-1] - marks[0]
                self.append(Entry.done(ticket.item, ticket.size, outputs.mask, 1e3 * seconds, masks))
        except ImageError as error:
            self._skip(ticket.item, error)
            return True
        blank = bool((outputs.mask == outputs.mask.flat[0]).all())
        with self._counts_lock:
            self._done += 1
            self._blank += blank
            if self._first_mask_s is None:
                self._first_mask_s = time.perf_counter() - self._begun
        return True

    def _skip(self, item: Item, error: SegxError) -> None:
        """Add the line of an image without a mask, and end the run if that was asked for."""
        self.append(Entry.failed(item, error))
        with self._counts_lock:
            self._failed += 1
            self._first_failure = self._first_failure or f"{item.shown}: {error.message}"
        if self.outputs.on_error == "stop":
            raise error
        self.warn(f"skipped {item.shown}: {error.message}; {error.hint}")
