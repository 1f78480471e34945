"""Images in, masks out, all stages at once: read, decode, preprocess, infer, postprocess, encode overlap."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from segx.errors import ImageError, InferenceError, SegxError
from segx.masks.image_io import PixelArray, preprocess
from segx.model.spec import ModelSpec
from segx.predict.batching import Batch, Batcher, Stopped
from segx.predict.crew import Crew
from segx.predict.dispatch import Dispatcher
from segx.predict.engine import Engine, EngineTask
from segx.predict.item import Item
from segx.predict.manifest import Ledger, Line
from segx.predict.outcome import PipelineReport, Standing
from segx.predict.output import OutputFolder
from segx.predict.outputs import Wishes, finish, write_outputs
from segx.predict.slots import Layout
from segx.predict.sources import decode, fetch
from segx.predict.stages import LOADING, STORING, StageClock
from segx.runtimes import RuntimeOptions
from segx.system import machine

OnError = Literal["skip", "stop"]

_TICK_S = 0.1
_JOIN_S = 3.0
# Rows beyond the batch that is computed: the next one is filled and the last one is read meanwhile.
_LEAST_SLOTS, _SPARE_ROWS = 4, 8


@dataclass(frozen=True, slots=True)
class _Ticket:
    """An image on its way."""

    item: Item
    pixels: PixelArray | None
    size: tuple[int, int]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where masks go.

    Attributes:
        folder: the output folder.
        ledger: its list of what is done.
        wishes: what is written.
    """

    folder: OutputFolder
    ledger: Ledger
    wishes: Wishes


def run_pipeline(
    items: Iterable[Item],
    destination: Destination,
    *,
    engine: Engine,
    model: Path,
    spec: ModelSpec,
    options: RuntimeOptions,
    batch_size: int = 1,
    on_error: OnError = "skip",
    retry: bool = True,
    tell: Callable[[Standing], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> PipelineReport:
    """Segment images with an engine that is starting or ready; memory does not grow with their number.

    Args:
        items: the images; those that the ledger knows as done are passed over.
        destination: where masks and the manifest's lines go.
        engine: its process; still open afterwards, unless the job was broken off.
        model: the file that it takes.
        spec: the model's description; its threshold cuts the masks.
        options: threads and precision of the engine.
        batch_size: images per call; the last call has what is left.
        on_error: whether an image that cannot be segmented is passed over or ends the job.
        retry: whether a call that fails is repeated image by image, to find the one that makes it fail; else its error
            ends the job. The repetition is slower than what was asked for, which who measures must not overlook.
        tell: told now and then how far it is.
        warn: told of each image that is passed over.

    Raises:
        ImageError, InferenceError: an image cannot be segmented, and ``on_error`` is ``stop``.
        OutputError: a mask cannot be written; nothing goes on then.
        RuntimeUnavailable, ArtifactError, InferenceError: the engine cannot be started, or fails again and again.
        KeyboardInterrupt: interrupted; what was written is whole, and the manifest is right.
    """
    job = _Job(items, destination, engine, spec, on_error, warn, retry=retry)
    return job.run(engine_task(model, spec, options, batch_size), tell)


def engine_task(model: Path, spec: ModelSpec, options: RuntimeOptions, batch_size: int) -> EngineTask:
    """What ``run_pipeline`` opens its engine with; who opens it before finds it loaded then."""
    layout = Layout(
        slots=max(_LEAST_SLOTS, -(-_SPARE_ROWS // batch_size)),
        batch_size=batch_size,
        input_shape=spec.input_shape,
        output_shape=spec.output_shape,
    )
    return EngineTask(model=model, spec=spec, options=options, layout=layout)


class _Job:
    def __init__(
        self,
        items: Iterable[Item],
        destination: Destination,
        engine: Engine,
        spec: ModelSpec,
        on_error: OnError,
        warn: Callable[[str], None],
        *,
        retry: bool,
    ) -> None:
        self._items: Iterator[Item] = iter(items)
        self._items_lock = threading.Lock()
        self._to = destination
        self._engine = engine
        self._spec = spec
        self._on_error = on_error
        self._warn = warn
        self._retry = retry
        self._clock = StageClock()
        self._cores = machine.usable_cores()
        self._counts_lock = threading.Lock()
        self._done = self._failed = 0
        self._first_failure = ""
        self._first_mask_s: float | None = None
        self._results: queue.SimpleQueue[tuple[Batch[_Ticket], int, float] | None] = queue.SimpleQueue()
        self._stopping = False
        self._failure: BaseException | None = None
        self._ended = threading.Event()

    def run(self, task: EngineTask, tell: Callable[[Standing], None]) -> PipelineReport:
        self._begun = time.perf_counter()
        cv2.setNumThreads(1)  # the images are what is done side by side; the engine needs the processors
        self._slots = self._engine.open(task)
        self._batcher: Batcher[_Ticket] = Batcher(self._slots, task.layout.batch_size)
        dispatcher = Dispatcher(
            self._engine,
            self._batcher,
            self._clock,
            deliver=self._deliver,
            give_up=self._engine_failed,
            retry=self._retry,
        )
        self._loaders = Crew("load", self._load, when_over=self._batcher.finish, when_failed=self._fail)
        self._writers = Crew("write", self._store, when_over=self._ended.set, when_failed=self._fail)
        inference = threading.Thread(target=self._infer, args=(dispatcher,), name="infer", daemon=True)
        try:
            self._loaders.resize(self._cores)
            self._writers.resize(1)
            inference.start()
            while not self._ended.wait(_TICK_S):
                self._divide_threads()
                tell(self._standing(dispatcher))
        finally:
            self._stop(inference)
        if self._failure:
            raise self._failure
        tell(self._standing(dispatcher))
        return PipelineReport(
            images=self._done,
            failed=self._failed,
            first_failure=self._first_failure,
            seconds=time.perf_counter() - self._begun,
            ready_s=(dispatcher.ready_at or self._begun) - self._begun,
            first_mask_s=self._first_mask_s,
            stages=self._clock.times(),
            facts=dispatcher.facts,
            restarts=dispatcher.restarts,
            loaders=self._loaders.size,
            writers=self._writers.size,
        )

    def _standing(self, dispatcher: Dispatcher[_Ticket]) -> Standing:
        seconds = time.perf_counter() - dispatcher.ready_at if dispatcher.ready_at else 0.0
        return Standing(done=self._done, failed=self._failed, seconds=seconds)

    def _divide_threads(self) -> None:
        """As many threads in each stage as keep up with the engine, by what was measured so far."""
        for crew, stages in ((self._loaders, LOADING), (self._writers, STORING)):
            if wanted := self._clock.threads_for(stages, self._cores):
                crew.resize(wanted)

    def _stop(self, inference: threading.Thread) -> None:
        """Send all threads home; a mask that is being written is finished, and so is its line."""
        if self._ended.is_set() and not self._failure:
            inference.join(_JOIN_S)  # all was inferred: it is about to end, and the engine may be wanted again
        self._stopping = True
        self._batcher.stop()
        self._results.put(None)
        give_up = time.perf_counter() + _JOIN_S
        while inference.is_alive() and time.perf_counter() < give_up:
            self._engine.interrupt()  # again, where it was just being started again
            inference.join(_TICK_S)
        self._writers.join(_JOIN_S)
        self._loaders.join(_JOIN_S)

    def _fail(self, error: BaseException) -> None:
        """The job is over, with its first error."""
        with self._counts_lock:
            self._failure = self._failure or error
        self._ended.set()

    # What the threads do.

    def _load(self) -> bool:
        item = self._next_item()
        if item is None:
            return False
        cpu_s, marks = time.thread_time(), [time.perf_counter()]
        try:
            data = fetch(item)
            marks.append(time.perf_counter())
            pixels = decode(data, item, self._spec.in_channels)
            marks.append(time.perf_counter())
            image = preprocess(pixels, self._spec)
            marks.append(time.perf_counter())
        except SegxError as error:
            self._pass_over(item, error)
            return True
        except MemoryError:
            self._pass_over(item, ImageError(f"{item.shown} does not fit into memory", hint="make it smaller"))
            return True
        self._clock.add(LOADING, _spent(LOADING, marks), cpu_s=time.thread_time() - cpu_s)
        kept = pixels if self._to.wishes.overlay else None
        size = pixels.shape[1], pixels.shape[0]
        self._batcher.place(image, _Ticket(item, kept, size, marks[-1] - marks[0]))
        return True

    def _next_item(self) -> Item | None:
        # The source may be a pipe that is silent for long: whoever waits behind its reader must be able to leave.
        while not self._items_lock.acquire(timeout=_TICK_S):
            if self._stopping:
                raise Stopped
        try:
            for item in self._items:
                if self._stopping:
                    raise Stopped
                if item.name not in self._to.ledger.done:
                    return item
        finally:
            self._items_lock.release()
        return None

    def _infer(self, dispatcher: Dispatcher[_Ticket]) -> None:
        # A process that is started from here shall not be reached by Ctrl-C while it imports: it inherits this.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            dispatcher.run()
        except Stopped:
            pass
        except SegxError as error:
            if not self._stopping:
                self._fail(error)
        finally:
            self._results.put(None)

    def _deliver(self, batch: Batch[_Ticket], rows: range, infer_s: float) -> None:
        for row in rows:
            self._results.put((batch, row, infer_s / len(rows)))

    def _engine_failed(self, batch: Batch[_Ticket], row: int, error: SegxError) -> None:
        item = batch.tickets[row].item
        self._batcher.release(batch)
        self._pass_over(item, error)

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
        logits = self._slots.outputs[batch.slot][row]
        sound = bool(np.isfinite(logits).all())
        finished = finish(logits, ticket.size, self._spec, self._to.wishes) if sound else None
        self._batcher.release(batch)
        marks.append(time.perf_counter())
        if finished is None:
            reason = InferenceError("logits are not finite", hint="try another runtime or precision")
            self._pass_over(ticket.item, reason)
            return True
        try:
            written = write_outputs(self._to.folder, ticket.item, ticket.pixels, finished)
        except ImageError as error:
            self._pass_over(ticket.item, error)
            return True
        marks.append(time.perf_counter())
        self._clock.add(STORING, _spent(STORING, marks), cpu_s=time.thread_time() - cpu_s)
        spent_s = ticket.seconds + infer_s + marks[-1] - marks[0]
        self._to.ledger.append(Line.done(ticket.item, ticket.size, written, 1e3 * spent_s))
        with self._counts_lock:
            self._done += 1
            if self._first_mask_s is None:
                self._first_mask_s = time.perf_counter() - self._begun
        return True

    def _pass_over(self, item: Item, error: SegxError) -> None:
        """An image without a mask: a line in the manifest, and the end where that was asked for."""
        self._to.ledger.append(Line.failed(item, error))
        with self._counts_lock:
            self._failed += 1
            self._first_failure = self._first_failure or f"{item.shown}: {error.message}"
        if self._on_error == "stop":
            raise error
        self._warn(f"skipped {item.shown}: {error.message}")


def _spent(stages: tuple[str, ...], marks: list[float]) -> dict[str, float]:
    return dict(zip(stages, np.diff(marks).tolist(), strict=True))
