"""The whole path with the fake runtime: every image gets its own mask, and what fails is found."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segx.errors import ImageError, InferenceError, OutOfMemory, OutputError, RuntimeUnavailable
from segx.masks.image_io import read_image
from segx.masks.preprocess import preprocess
from segx.model.spec import ModelSpec
from segx.predict.api import PredictReport
from segx.predict.choose import Choice
from segx.predict.engine import Engine, EngineTask
from segx.predict.manifest import Entry, Manifest
from segx.predict.output import OutputFolder, OutputOptions, pending, postprocess
from segx.predict.pipeline import Pipeline, PipelineReport
from segx.predict.sources import Item, open_source
from segx.reporting.command_documents import predict_document
from segx.reporting.renderers.text import to_text
from segx.runtimes import RuntimeOptions, Variant
from segx.system.processes import _SERVERS, Worker, WorkerDied, Workers
from tests.builders import read_manifest

SPEC = ModelSpec(height=16, width=24)
DARK, BRIGHT = 60, 254


def write_images(folder: Path, count: int, *, bright: tuple[int, ...] = ()) -> None:
    """Noise of different sizes; those that are bright are brighter than any other."""
    folder.mkdir(exist_ok=True)
    chance = np.random.default_rng(0)
    for number in range(count):
        shape = (20 + number % 7, 30 + number % 5)
        pixels = chance.integers(0, 256, shape, dtype=np.uint8)
        if number in bright:
            pixels = np.full(shape, BRIGHT, dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{number:04}.png"), pixels)


def task_for(spec: ModelSpec, batch_size: int) -> EngineTask:
    return EngineTask(model=Path("none"), spec=spec, options=RuntimeOptions(threads=1), batch_size=batch_size)


class Run:
    """A run into ``masks``, from ``images``."""

    def __init__(self, tmp_path: Path) -> None:
        self.images, self.masks = tmp_path / "images", tmp_path / "masks"
        self.engine: Engine | None = None

    def __call__(
        self,
        items: Any = None,
        *,
        batch_size: int = 1,
        spec: ModelSpec = SPEC,
        outputs: OutputOptions = OutputOptions(),  # noqa: B008 - frozen
        **options: Any,
    ) -> PipelineReport:
        self.engine = Engine(Workers(threads=1), "fake")
        try:
            with OutputFolder(self.masks) as folder, Manifest.open(folder, {}, resume=outputs.resume) as manifest:
                images = open_source(str(self.images)) if items is None else items
                pipeline = Pipeline(
                    items=pending(images, manifest.masks, outputs, spec),
                    together=folder.together,
                    append=manifest.append,
                    engine=self.engine,
                    task=task_for(spec, batch_size),
                    outputs=outputs,
                    **options,
                )
                return pipeline.run()
        finally:
            self.engine.close()

    @property
    def lines(self) -> dict[str, Entry]:
        lines = list(read_manifest(self.masks / "manifest.jsonl"))
        named = {line.input: line for line in lines}
        assert len(named) == len(lines)
        return named

    @property
    def failed(self) -> list[str]:
        return sorted(name for name, line in self.lines.items() if line.status == "failed")

    def assert_masks_are_right(self) -> None:
        """Against the same functions, called one after the other."""
        for name, line in self.lines.items():
            if line.status == "failed":
                continue
            pixels = read_image(self.images / name, 1)
            logits = (preprocess(pixels, SPEC) - np.float32(0.5)) * np.float32(20)
            height, width = pixels.shape[:2]
            wanted = postprocess(logits, (width, height), SPEC, OutputOptions()).mask
            mask = cv2.imread(str(self.masks / str(line.mask)), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(mask, wanted)
            assert (line.width, line.height, line.mask_area) == (width, height, int((wanted > 0).sum()))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_image_gets_its_own_mask_at_its_own_size(run: Run, batch_size: int) -> None:
    write_images(run.images, 25)
    report = run(batch_size=batch_size)
    assert (report.images, report.failed, report.restarts) == (25, 0, 0)
    assert len(run.lines) == 25
    run.assert_masks_are_right()
    assert report.first_mask_s is not None
    assert report.ready_s <= report.first_mask_s <= report.seconds
    assert all(report.stages[stage] > 0 for stage in ("read", "decode", "infer", "encode"))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_image_that_kills_the_engine_is_found_and_the_others_get_their_masks(
    run: Run, script: Callable[..., None], batch_size: int
) -> None:
    script(killed_above=0.95)
    write_images(run.images, 12, bright=(5, 6))
    warnings: list[str] = []
    report = run(batch_size=batch_size, warn=warnings.append)
    assert run.failed == ["0005.png", "0006.png"]
    assert (report.images, report.failed) == (10, 2)
    assert report.restarts >= 2
    assert all("SIGKILL" in str(run.lines[name].error) for name in run.failed)
    assert len(warnings) == 2
    run.assert_masks_are_right()


@pytest.mark.parametrize("fault", ["fails_above", "not_finite_above"])
def test_an_image_that_the_engine_cannot_infer_fails_alone(run: Run, script: Callable[..., None], fault: str) -> None:
    script(**{fault: 0.95})
    write_images(run.images, 10, bright=(3,))
    report = run(batch_size=4)
    assert run.failed == ["0003.png"]
    assert (report.images, report.restarts) == (9, 0)
    assert report.first_failure.startswith("0003.png: ")
    run.assert_masks_are_right()


def test_an_engine_runs_job_after_job_with_its_model_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    infer = Pipeline._infer

    def slow_to_end(*arguments: Any) -> None:
        infer(*arguments)
        time.sleep(0.05)  # the last mask is written, and the thread that inferred is not gone yet

    monkeypatch.setattr(Pipeline, "_infer", slow_to_end)
    jobs = Run(tmp_path)
    write_images(jobs.images, 9)
    engine = Engine(Workers(threads=1), "fake")
    try:
        process = engine._worker.pid
        for number in range(3):
            jobs.masks = tmp_path / f"masks {number}"
            with OutputFolder(jobs.masks) as folder, Manifest.open(folder, {}, resume=False) as manifest:
                pipeline = Pipeline(
                    items=open_source(str(jobs.images)),
                    together=folder.together,
                    append=manifest.append,
                    engine=engine,
                    task=task_for(SPEC, 2),
                    outputs=OutputOptions(),
                )
                report = pipeline.run()
            assert (report.images, report.restarts, report.facts) == (9, 0, {"threads": "1"})
            jobs.assert_masks_are_right()
        assert engine.alive
        assert engine._worker.pid == process
    finally:
        engine.close()


@pytest.mark.parametrize("fault", ["killed_from", "out_of_memory_from"])
def test_without_retry_the_first_call_that_fails_ends_the_job(
    run: Run, script: Callable[..., None], fault: str
) -> None:
    script(**{fault: 2})
    write_images(run.images, 6)
    assert run(batch_size=2).images == 6  # one by one
    run.masks = run.masks.with_name("again")
    with pytest.raises(InferenceError if fault == "killed_from" else OutOfMemory):
        run(batch_size=2, retry=False)


def test_an_engine_that_is_killed_from_outside_costs_no_image(run: Run, script: Callable[..., None]) -> None:
    script(seconds_per_image=0.01)
    write_images(run.images, 40)
    kill_at, killed = 10, threading.Event()

    def items() -> Iterator[Item]:
        for number, item in enumerate(open_source(str(run.images))):
            if number == kill_at:
                assert run.engine
                os.kill(run.engine._worker.pid, signal.SIGKILL)
                killed.set()
            yield item

    report = run(items(), batch_size=2)
    assert killed.is_set()
    assert (report.images, report.failed) == (40, 0)
    run.assert_masks_are_right()


@pytest.fixture
def kill_starts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """Return a function that has the engines of these starts, counted from 1, killed at once."""

    def schedule(first: int, last: int) -> list[int]:
        start, starts = Engine._start, []

        def start_and_kill(engine: Engine) -> Worker:
            worker = start(engine)
            starts.append(worker.pid)
            if first <= len(starts) <= last:
                os.kill(worker.pid, signal.SIGKILL)
            return worker

        monkeypatch.setattr(Engine, "_start", start_and_kill)
        return starts

    return schedule


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 2), (2, 2), (2, 3)])
def test_an_engine_that_is_killed_while_it_starts_is_started_again(
    run: Run, script: Callable[..., None], kill_starts: Callable[[int, int], list[int]], first: int, last: int
) -> None:
    script(killed_above=0.95)
    kill_starts(first, last)
    write_images(run.images, 12, bright=(5,))
    assert run(batch_size=2).images == 11
    assert run.failed == ["0005.png"]


@pytest.mark.parametrize("for_memory", [False, True])
def test_an_engine_that_cannot_be_started_again_costs_only_the_images_of_its_call(
    run: Run,
    script: Callable[..., None],
    kill_starts: Callable[[int, int], list[int]],
    for_memory: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if for_memory:  # each time that the kernel's count is read, it has killed another process
        monkeypatch.setattr("segx.system.processes.oom_kills", itertools.count().__next__)
    script(killed_above=0.95)
    kill_starts(2, 4)
    write_images(run.images, 12, bright=(5,))
    assert run(batch_size=2).images == 10
    assert "0005.png" in run.failed


def test_an_engine_that_is_always_killed_while_it_starts_ends_the_run(
    run: Run, kill_starts: Callable[[int, int], list[int]]
) -> None:
    starts = kill_starts(1, 99)
    write_images(run.images, 3)
    with pytest.raises(WorkerDied):
        run()
    assert len(starts) in {3, 4}  # the first may be seen to be dead before it is waited for
    assert run.lines == {}


def test_an_engine_whose_fork_server_is_killed_costs_no_image(run: Run, script: Callable[..., None]) -> None:
    script(killed_above=0.95)
    write_images(run.images, 12, bright=(5,))

    def items() -> Iterator[Item]:
        for number, item in enumerate(open_source(str(run.images))):
            if number == 1:
                os.kill(_SERVERS[False]._forkserver_pid, signal.SIGKILL)
            yield item

    assert run(items(), batch_size=2).images == 11
    assert run.failed == ["0005.png"]


def test_an_engine_that_always_fails_ends_the_run(run: Run, script: Callable[..., None]) -> None:
    script(fails_above=-1.0)
    write_images(run.images, 30)
    with pytest.raises(InferenceError):
        run()
    assert len(run.failed) <= 10


def test_an_engine_that_cannot_start_ends_the_run_with_its_reason(run: Run, script: Callable[..., None]) -> None:
    script(unavailable="no such device")
    write_images(run.images, 3)
    with pytest.raises(RuntimeUnavailable, match="no such device"):
        run()
    assert run.lines == {}


def test_broken_images_are_lines_and_the_others_go_on(run: Run) -> None:
    write_images(run.images, 8)
    (run.images / "0002.png").write_bytes(b"no image")
    (run.images / "0003.png").write_bytes(b"")
    (run.images / "0004.png").unlink()
    (run.images / "0004.png").symlink_to("nowhere")
    (run.images / "0005.png").unlink()
    (run.images / "0005.png").mkdir()
    report = run(batch_size=3)
    assert {"0002.png", "0003.png", "0004.png"} <= set(run.failed)
    assert report.images == 4
    run.assert_masks_are_right()


def test_an_image_that_vanishes_after_the_listing_fails_alone(run: Run) -> None:
    write_images(run.images, 5)

    def items() -> Iterator[Item]:
        for item in open_source(str(run.images)):
            if item.name == "0003.png":
                item.path.unlink()
            yield item

    report = run(items())
    assert (report.images, run.failed) == (4, ["0003.png"])


def test_stop_ends_at_the_first_failure_with_its_line(run: Run, script: Callable[..., None]) -> None:
    script(seconds_per_image=0.02)
    write_images(run.images, 200)
    (run.images / "0003.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"0003\.png"):
        run(outputs=OutputOptions(on_error="stop"))
    assert run.failed == ["0003.png"]
    assert len(run.lines) < 100
    run.assert_masks_are_right()


def test_a_full_disk_ends_the_run_at_once_with_nothing_half_written(
    run: Run, monkeypatch: pytest.MonkeyPatch, script: Callable[..., None]
) -> None:
    script(seconds_per_image=0.005)
    write_images(run.images, 300)
    real, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 20:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("segx.predict.output.os.fsync", fsync)
    with pytest.raises(OutputError, match="No space left"):
        run()
    assert len(run.lines) < 100
    masks = {path.relative_to(run.masks).as_posix() for path in run.masks.rglob("*.png")}
    assert masks == {line.mask for line in run.lines.values()}
    run.assert_masks_are_right()


def test_a_folder_that_goes_away_ends_the_run(run: Run, script: Callable[..., None], tmp_path: Path) -> None:
    script(seconds_per_image=0.005)
    write_images(run.images, 300)

    def items() -> Iterator[Item]:
        for number, item in enumerate(open_source(str(run.images))):
            if number == 30:
                run.masks.rename(tmp_path / "moved")
            yield item

    with pytest.raises(OutputError):
        run(items())


def test_a_multilabel_model_writes_a_mask_of_each_class_and_goes_on(run: Run) -> None:
    spec = dataclasses.replace(SPEC, classes=2, multilabel=True)
    write_images(run.images, 3)
    outputs = OutputOptions(class_names=("one", "two"))
    assert run(spec=spec, outputs=outputs).images == 3
    names = [f"{folder}/{number:04}.png" for folder in ("one", "two") for number in range(3)]
    assert sorted(str(path.relative_to(run.masks)) for path in run.masks.rglob("*.png")) == names
    assert run.lines["0001.png"].files == ("one/0001.png", "two/0001.png")
    (run.masks / "two" / "0001.png").unlink()
    assert run(spec=spec, outputs=dataclasses.replace(outputs, resume=True)).images == 1
    assert (run.masks / "two" / "0001.png").exists()


def test_resuming_does_what_is_missing_and_nothing_twice(run: Run) -> None:
    write_images(run.images, 20)
    (run.images / "0007.png").write_bytes(b"no image")
    first = run(item for item in open_source(str(run.images)) if int(item.name[:4]) < 12)
    assert (first.images, first.failed) == (11, 1)
    done = {name for name, line in run.lines.items() if line.status == "done"}
    stamps = {name: (run.masks / str(run.lines[name].mask)).stat().st_mtime_ns for name in done}
    write_images(run.images, 20)  # the broken one is whole again
    second = run(outputs=OutputOptions(resume=True))
    assert (second.images, second.failed) == (9, 0)
    lines = list(read_manifest(run.masks / "manifest.jsonl"))
    finished = [line.input for line in lines if line.status == "done"]
    assert sorted(finished) == [f"{number:04}.png" for number in range(20)]
    for name, stamp in stamps.items():
        assert (run.masks / name).stat().st_mtime_ns == stamp


@pytest.mark.parametrize("lines", [True, False], ids=["interrupted", "killed before its first line"])
def test_a_file_that_the_first_run_refused_to_replace_is_never_replaced(run: Run, lines: bool) -> None:
    write_images(run.images, 4)
    run.masks.mkdir()
    (run.masks / "0001.png").write_text("the user's")
    assert run().failed == 1
    if not lines:
        (run.masks / "manifest.jsonl").write_bytes(b"")
    write_images(run.images, 6)
    report = run(outputs=OutputOptions(resume=True))
    assert report.failed == 1
    assert "it existed before" in report.first_failure
    assert (run.masks / "0001.png").read_text() == "the user's"
    assert (run.masks / "0005.png").stat().st_size > 100


def test_an_image_added_later_does_not_take_the_mask_of_another(run: Run) -> None:
    run.images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    cv2.imwrite(str(run.images / "a.jpg"), pixels)
    run()
    before = (run.masks / "a.png").read_bytes()
    cv2.imwrite(str(run.images / "a.png"), 255 - pixels)
    report = run(outputs=OutputOptions(resume=True))
    assert "a.png is the mask of a.jpg" in report.first_failure
    assert (run.masks / "a.png").read_bytes() == before


def test_a_slow_source_gets_its_masks_as_it_goes(run: Run) -> None:
    """The next image comes only once the mask of the one before is there, although a batch would hold four."""
    write_images(run.images, 3)

    def items() -> Iterator[Item]:
        for item in open_source(str(run.images)):
            yield item
            give_up = time.monotonic() + 60
            while not (run.masks / item.mask).exists():
                assert time.monotonic() < give_up
                time.sleep(0.01)

    assert run(items(), batch_size=4).images == 3


def test_what_the_listing_raises_ends_the_run(run: Run) -> None:
    run.images.mkdir()
    with pytest.raises(ImageError, match="has no images"):
        run()


def test_overlay_and_probabilities_are_written_where_wished(run: Run) -> None:
    write_images(run.images, 2)
    run(outputs=OutputOptions(size=(10, 12), probabilities=True, overlay=True))
    assert sorted(path.name for path in run.masks.iterdir() if path.name.startswith("0001")) == [
        "0001.overlay.jpg",
        "0001.png",
        "0001.probabilities.npy",
    ]
    assert cv2.imread(str(run.masks / "0001.png"), cv2.IMREAD_UNCHANGED).shape == (12, 10)
    assert np.load(run.masks / "0001.probabilities.npy").shape == (12, 10)


def test_no_thread_and_no_process_is_left(run: Run, script: Callable[..., None]) -> None:
    script(seconds_per_image=0.01)
    write_images(run.images, 50)
    before = threading.active_count()
    run()

    def items() -> Iterator[Item]:
        yield from open_source(str(run.images))
        raise OutputError("gone", hint="look")

    with pytest.raises(OutputError, match="gone"):
        run(items(), outputs=OutputOptions(resume=True))
    assert threading.active_count() == before
    assert run.engine
    assert not run.engine.alive


@pytest.mark.slow
@pytest.mark.serial
def test_memory_stays_flat_and_manifest_lines_are_whole(run: Run) -> None:
    write_images(run.images, 1)
    data = (run.images / "0000.png").read_bytes()
    for number in range(1, 3000):
        (run.images / f"{number:04}.png").write_bytes(data)
    resident: dict[int, int] = {}

    def items() -> Iterator[Item]:
        for number, item in enumerate(open_source(str(run.images))):
            if number in (1000, 2900):
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                resident[number] = pages * os.sysconf("SC_PAGESIZE")
            yield item

    assert run(items(), batch_size=8).images == 3000
    assert resident[2900] - resident[1000] < 8 * 2**20
    for text in (run.masks / "manifest.jsonl").read_text().splitlines():
        assert json.loads(text)["status"] == "done"


@pytest.mark.parametrize(("images", "seen"), [(3, 3), (20, 8)])
def test_a_doubt_of_how_images_are_prepared_is_said_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, images: int, seen: int
) -> None:
    asked: list[tuple[Any, ...]] = []

    def doubt(first: np.ndarray, _: ModelSpec, checkpoint: Path | None) -> str:
        asked.append((first.shape, checkpoint))
        return "images look odd"

    monkeypatch.setattr("segx.predict.pipeline.doubt_of_pixels", doubt)
    write_images(run.images, images)
    said: list[str] = []
    report = run(checkpoint=Path("w.pth"), warn=said.append)
    assert asked == [((seen, *SPEC.input_shape), Path("w.pth"))]
    assert said == [report.doubt] == ["images look odd"]


def test_masks_that_are_blank_in_nearly_all_images_are_noted(run: Run, tmp_path: Path) -> None:
    never = dataclasses.replace(SPEC, threshold=0.999999)
    write_images(run.images, 8, bright=(0,))
    for spec, blank, options in ((SPEC, 1, ""), (never, 8, "--normalize imagenet, --input-range 0-255")):
        run.masks = tmp_path / str(blank)
        done = run(spec=spec)
        assert done.blank == blank
        choice = Choice(Variant("fake"), 1)
        report = PredictReport(
            choice=choice, spec=spec, source="i", output=run.masks, before=0, notes=(), pipeline=done
        )
        shown = " ".join(to_text(predict_document(report)).split())
        told = f"note masks are blank in 8 of 8 images. Images are prepared as {spec.preprocessing}: check"
        assert (told in shown) is bool(options)
        assert options in shown
