"""``segx.predict`` with a real engine and a real checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import segx
from segx.demo import serve
from segx.errors import NotComparable, OutOfMemory, OutputError, RuntimeUnavailable, UsageError
from segx.export import import_model
from segx.export.variants import resolve_model
from segx.masks.image_io import read_image
from segx.masks.preprocess import preprocess
from segx.model.spec import ModelSpec
from segx.predict.options import OutputOptions, RuntimeRequest
from segx.predict.output import postprocess
from segx.system.processes import Workers
from segx.system.progress import Progress, Told
from tests.builders import exported_onnx, read_manifest


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images in colour, larger than the model's input; the working directory is elsewhere than the sources."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(5):
        small = chance.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.jpg"), cv2.resize(small, (70 + number, 50)))
    return folder


class Reached(Progress):
    """Keeps what is said about how far the work is."""

    def __init__(self) -> None:
        self.reached: list[tuple[float, str]] = []

    def reach(self, done: float, text: str = "") -> None:
        self.reached.append((done, text.split(",", maxsplit=1)[0]))


def test_a_checkpoint_is_exported_once_and_gives_the_masks_of_its_model(
    tiny_checkpoint: Path, tiny_spec: ModelSpec, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = segx.segment(
        photos, "masks", checkpoint=tiny_checkpoint, runtime=RuntimeRequest("onnxruntime-cpu", batch_size=2)
    )
    assert (report.pipeline.images, report.pipeline.failed) == (5, 0)
    assert report.pipeline.facts["provider"] == "CPUExecutionProvider"
    (exported,) = (tmp_path / "artifacts").glob("tiny-*.onnx")
    engine = segx.open_runtime(exported, "onnxruntime-cpu", options=segx.RuntimeOptions(threads=1))
    for number in range(5):
        pixels = read_image(photos / f"{number}.jpg", tiny_spec.in_channels)
        logits = engine.infer(preprocess(pixels, tiny_spec)[None])[0]
        wanted = postprocess(logits, (pixels.shape[1], pixels.shape[0]), tiny_spec, OutputOptions()).mask
        mask: Any = cv2.imread(str(tmp_path / "masks" / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == wanted.shape
        assert (mask != wanted).mean() < 0.01  # threads and batches add in other orders

    def no_call(*_: object, **__: object) -> None:
        raise AssertionError("nothing is exported again")

    monkeypatch.setattr(Workers, "call", no_call)
    again = segx.segment(photos, "again", checkpoint=tiny_checkpoint, runtime="onnxruntime-cpu", threshold=0.25)
    assert again.pipeline.images == 5


def test_a_resumed_run_goes_on_with_its_runtime_wherever_it_is(plain_onnx: Path, photos: Path) -> None:
    segx.segment(photos, "masks", model=plain_onnx, runtime=RuntimeRequest("onnxruntime-cpu", batch_size=1))
    (photos / "0.jpg").rename(photos / "new.jpg")
    request, options = RuntimeRequest(device="cuda", batch_size=1), OutputOptions(resume=True)
    report = segx.segment(photos, "masks", model=plain_onnx, runtime=request, options=options)
    assert (report.choice.variant.runtime, report.pipeline.images) == ("onnxruntime-cpu", 1)


@pytest.mark.parametrize(("moved", "told"), [(0, "1 of 1"), (1, "1 done"), (3, "1 done")])
def test_a_resumed_run_tells_how_many_images_are_left_unless_finished_ones_are_gone(
    plain_onnx: Path, photos: Path, moved: int, told: str
) -> None:
    request, progress = RuntimeRequest("onnxruntime-cpu", batch_size=1), Reached()
    segx.segment(photos, "masks", model=plain_onnx, runtime=request)
    (photos / "new.jpg").write_bytes((photos / "0.jpg").read_bytes())
    for number in range(moved):
        (photos / f"{number}.jpg").unlink()
    options = OutputOptions(resume=True)
    segx.segment(photos, "masks", model=plain_onnx, runtime=request, options=options, progress=progress)
    assert progress.reached[-1] == (1, told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mean": (0.5,), "std": (0.25,)}, r"mean \[\], and this run has \[0.5\]"),
        ({"height": 64, "width": 96}, "height 32, and this run has 64"),
        ({"input_range": "0-255"}, "input_range 0-1, and this run has 0-255"),
    ],
)
def test_a_run_is_not_resumed_with_other_images_for_the_model(
    tiny_checkpoint: Path, tiny_spec: ModelSpec, photos: Path, changes: dict[str, Any], told: str
) -> None:
    """PyTorch runs the same checkpoint whatever is done to its images."""
    request = RuntimeRequest("pytorch-cpu", threads=1)
    segx.segment(photos, "masks", checkpoint=tiny_checkpoint, spec=tiny_spec, runtime=request)
    (photos / "0.jpg").rename(photos / "new.jpg")
    other, options = dataclasses.replace(tiny_spec, **changes), OutputOptions(resume=True)
    with pytest.raises(NotComparable, match=told):
        segx.segment(photos, "masks", checkpoint=tiny_checkpoint, spec=other, runtime=request, options=options)


def test_a_resume_with_another_runtime_names_the_runtime(
    tiny_checkpoint: Path, tiny_spec: ModelSpec, photos: Path
) -> None:
    """Not the digests of the files that they run."""
    segx.segment(photos, "masks", checkpoint=tiny_checkpoint, spec=tiny_spec, runtime="pytorch-cpu")
    options = OutputOptions(resume=True)
    with pytest.raises(NotComparable, match="runtime pytorch-cpu, and this run has onnxruntime-cpu"):
        segx.segment(
            photos, "masks", checkpoint=tiny_checkpoint, spec=tiny_spec, runtime="onnxruntime-cpu", options=options
        )


def test_pytorch_runs_the_checkpoint_itself(tiny_checkpoint: Path, photos: Path) -> None:
    report = segx.segment(photos, "masks", checkpoint=tiny_checkpoint, runtime=RuntimeRequest("pytorch-cpu", threads=1))
    assert report.pipeline.images == 5
    assert not Path("artifacts").exists()


def test_a_file_of_one_batch_size_gets_whole_batches(photos: Path) -> None:
    import onnx.parser

    text = """<ir_version: 8, opset_import: ["": 17]> g (float[4,3,16,24] x) => (float[4,1,16,24] y)
        <float[1,3,1,1] w = {3, 3, 3}, float[1] b = {-4}> { y = Conv (x, w, b) }"""
    onnx.save(onnx.parser.parse_model(text), "four.onnx")
    model = import_model("four.onnx").artifact
    report = segx.segment(photos, "masks", model=model.path, runtime="onnxruntime-cpu")
    assert (report.choice.batch_size, report.pipeline.images, report.pipeline.failed) == (4, 5, 0)
    for number in range(5):
        pixels = read_image(photos / f"{number}.jpg", 3)
        logits = preprocess(pixels, model.spec).sum(axis=0, keepdims=True) * np.float32(3) - np.float32(4)
        wanted = postprocess(logits, (pixels.shape[1], pixels.shape[0]), model.spec, OutputOptions()).mask
        mask: Any = cv2.imread(f"masks/{number}.png", cv2.IMREAD_UNCHANGED)
        assert (mask != wanted).mean() < 0.01
    with pytest.raises(UsageError, match="only takes batches of 4"):
        segx.segment(photos, "other", model=model.path, runtime=RuntimeRequest(batch_size=1))
    results = segx.benchmark(
        model=model.path,
        runtimes=["onnxruntime-cpu"],
        scopes=["pipeline"],
        batch_sizes=[4],
        data=segx.DataOptions(images=photos),
        sampling=segx.SamplingOptions(min_time_s=0.0, min_runs=1, max_time_s=0.1, processes=1),
    )
    assert [(cell.status, cell.reason) for cell in results.cells] == [("ok", "")]


def test_a_foreign_file_is_taken_as_by_the_command_line(photos: Path) -> None:
    import onnx.parser

    text = """<ir_version: 8, opset_import: ["": 17]> g (float[n,3,h,w] x) => (float[n,1,h,w] y)
        <float[1,3,1,1] w = {3, 3, 3}, float[1] b = {-4}> { z = Conv (x, w, b) y = Sigmoid (z) }"""
    onnx.save(onnx.parser.parse_model(text), "other.onnx")
    spec = ModelSpec(in_channels=3, height=16, width=24, threshold=0.4, input_range="0-255", mean=(8.0,))
    told: list[str] = []
    report = segx.segment(
        photos, "masks", model="other.onnx", spec=spec, runtime="onnxruntime-cpu", progress=Told(told.append)
    )
    assert report.pipeline.images == 5
    assert report.spec == dataclasses.replace(spec, arch="other", encoder_name="", arguments={})
    assert [line for line in told if line.startswith("other.onnx: removed the final Sigmoid")]
    results = segx.benchmark(
        model="other.onnx",
        spec=spec,
        runtimes=["onnxruntime-cpu"],
        precisions=["fp32"],
        batch_sizes=[1],
        sampling=segx.SamplingOptions(min_time_s=0.0, min_runs=1, max_time_s=0.1, processes=1),
    )
    assert results.model.spec == report.spec
    assert [cell.status for cell in results.cells] == ["ok"]
    with pytest.raises(UsageError, match="takes 3 channels, not 1"):
        segx.segment(photos, "other", model="other.onnx", spec=ModelSpec(), runtime="onnxruntime-cpu")


def test_an_exported_file_alone_cannot_be_run_by_pytorch(plain_onnx: Path, photos: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="runs a checkpoint"):
        segx.segment(photos, "masks", model=plain_onnx, runtime="pytorch-cpu")
    assert not Path("masks").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "fake", "batch_size": 0}, "batch size 0"),
        ({"runtime": "fake", "threads": 0}, "threads 0"),
        ({"runtime": "fake", "precision": "fp16"}, "fp16"),
        ({"precision": "int4"}, "int4"),
        ({"device": "tpu"}, "tpu"),
        ({"require": "equal"}, "equal"),
        ({"runtime": "none"}, "none"),
        ({"runtime": "fake", "require": "edges"}, "require chooses among runtimes"),
    ],
)
def test_options_that_make_no_sense(plain_onnx: Path, photos: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        segx.segment(photos, "masks", model=plain_onnx, runtime=RuntimeRequest(**options))
    assert not Path("masks").exists()


def test_pixels_are_not_averaged_for_a_model_that_was_trained_without(
    tiny_checkpoint: Path, tiny_spec: ModelSpec, photos: Path
) -> None:
    spec, options = dataclasses.replace(tiny_spec, resize="linear"), OutputOptions(scaled_decoding=True)
    with pytest.raises(UsageError, match="averages pixels"):
        segx.segment(photos, "masks", checkpoint=tiny_checkpoint, spec=spec, runtime="fake", options=options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (0, 4)}, "size 0x4"),
        ({"on_error": "wait"}, "wait"),
        ({"overlay": True, "scaled_decoding": True}, "overlay"),
    ],
)
def test_output_options_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        segx.OutputOptions(**values)


def test_a_threshold_without_effect_is_refused(tiny_spec: ModelSpec, tmp_path: Path, photos: Path) -> None:
    from onnx import helper

    spec = dataclasses.replace(tiny_spec, classes=2, threshold=0.4)
    path = exported_onnx(
        tmp_path / "two.onnx", spec, [helper.make_node("Concat", ["image", "image"], ["logits"], axis=1)], {}
    )
    with pytest.raises(UsageError, match="2 classes exclude each other"):
        segx.segment(photos, "masks", model=path, runtime="fake", threshold=0.9)
    with (
        pytest.raises(UsageError, match="2 classes exclude each other"),
        serve(resolve_model(None, path, None), threads=1, threshold=0.9),
    ):
        pass
    assert segx.segment(photos, "masks", model=path, runtime="fake", threshold=0.4).pipeline.images == 5


def test_neither_checkpoint_nor_model(photos: Path) -> None:
    with pytest.raises(UsageError):
        segx.segment(photos, "masks", runtime="fake")


@pytest.mark.parametrize("batch_size", [10**13, 10**16, 10**40])
def test_a_batch_that_no_memory_holds(plain_onnx: Path, photos: Path, batch_size: int) -> None:
    with pytest.raises(OutOfMemory, match=r"cannot allocate \d+ MiB for batches"):
        segx.segment(photos, "masks", model=plain_onnx, runtime=RuntimeRequest("fake", batch_size=batch_size))
    assert segx.segment(photos, "masks", model=plain_onnx, runtime="fake").pipeline.images == 5


def test_the_threads_of_opencv_are_those_of_before(plain_onnx: Path, photos: Path) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        segx.segment(photos, "masks", model=plain_onnx, runtime="fake")
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_no_engine_is_left_after_an_early_refusal(plain_onnx: Path, photos: Path, script: Callable[..., None]) -> None:
    import multiprocessing

    script()
    segx.segment(photos, "masks", model=plain_onnx, runtime="fake")
    with pytest.raises(OutputError, match="earlier run"):
        segx.segment(photos, "masks", model=plain_onnx, runtime="fake")
    assert multiprocessing.active_children() == []


def test_a_video_is_segmented_frame_by_frame(plain_onnx: Path, photos: Path) -> None:
    video = photos.parent / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 40))
    assert writer.isOpened()
    for number in range(6):
        writer.write(np.full((40, 48, 3), 40 * number, dtype=np.uint8))
    writer.release()
    report = segx.segment(video, "masks", model=plain_onnx, runtime=RuntimeRequest("fake", batch_size=4))
    assert report.pipeline.images == 6
    lines = sorted(read_manifest(Path("masks/manifest.jsonl")), key=lambda line: line.input)
    assert [line.mask_share for line in lines] == [0, 0, 0, 0, 1, 1]
