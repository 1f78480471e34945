"""The reference, its noise floor, and the pictures of masks compared with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import numpy as np
import pytest

from segx.bench.inputs import Inputs
from segx.bench.plan import CellTask
from segx.bench.reference import Reference, chosen_images, parity_pictures, run_reference
from segx.bench.worker import CellWorkers
from segx.errors import InferenceError, OutOfMemory, OutputError, RuntimeUnavailable, SegxError
from segx.masks.agreement import SAME, compare_logits, rounding_band
from segx.masks.preprocess import unprocess
from segx.model.spec import ModelSpec
from segx.results.pictures import load_pictures
from segx.results.types import Parity, Results
from segx.runtimes import RuntimeOptions
from segx.runtimes.base import FloatArray
from segx.system.progress import Progress
from tests.builders import image_parity

SPEC = ModelSpec(height=2, width=3)

# What a worker gives for image i, by the batch size and the number of threads it runs with.
Logits = Callable[[int, CellTask], FloatArray]


class Worker:
    """Write the outputs of calls where a real worker does."""

    def __init__(self, task: CellTask, logits: Logits) -> None:
        self._task, self._logits, self._next = task, logits, 0
        task.outputs.write_bytes(b"")

    def load(self) -> None:
        pass

    def sample(self, _slice_s: float) -> list[float]:
        with self._task.outputs.open("ab") as stream:
            for _ in range(self._task.batch_size):
                logits = self._logits(self._next % len(self._task.inputs.names), self._task)
                stream.write(np.asarray(logits, np.float32).tobytes())
                self._next += 1
        return [1.0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class Fakes:
    """Double of ``CellWorkers``."""

    def __init__(self, logits: Logits, fails: Callable[[CellTask], SegxError | None] = lambda _: None) -> None:
        self.tasks: list[tuple[int, int]] = []
        self._logits, self._fails = logits, fails

    def cell(self, task: CellTask, *, timeout_s: float) -> Worker:
        assert timeout_s == 5.0
        self.tasks.append((task.batch_size, task.options.threads))
        if error := self._fails(task):
            raise error
        return Worker(task, self._logits)


def _numbered(image: int, _: CellTask) -> FloatArray:
    return np.full((1, 2, 3), image + 1, np.float32)


def _run(
    folder: Path,
    fakes: Fakes,
    *,
    images: int = 5,
    noise_images: int = 3,
    threads: int = 4,
    any_batch: bool = True,
) -> Reference:
    task = CellTask(
        runtime="fake",
        model=Path("model.onnx"),
        spec=SPEC,
        options=RuntimeOptions(threads=threads),
        batch_size=1,
        inputs=Inputs(Path("in"), (1, 2, 3), tuple(str(i) for i in range(images)), "", ""),
        outputs=folder / "out",
        memory_limit_bytes=None,
    )
    return run_reference(
        cast("CellWorkers", fakes),
        task,
        noise_images=noise_images,
        any_batch=any_batch,
        timeout_s=5.0,
        progress=Progress(),
    )


def test_every_image_is_run_by_itself_and_in_order(tmp_path: Path) -> None:
    fakes = Fakes(_numbered)
    reference = _run(tmp_path, fakes)
    assert reference.logits.shape == (5, 1, 2, 3)
    assert [float(logits.max()) for logits in reference.logits] == [1, 2, 3, 4, 5]
    assert fakes.tasks[0] == (1, 4)


@pytest.mark.parametrize(
    ("threads", "noise_images", "ways", "changes"),
    [
        (4, 3, [(1, 1), (3, 4)], ["threads 1 against 4", "batch 3 against 1"]),
        (1, 3, [(1, 2), (3, 1)], ["threads 2 against 1", "batch 3 against 1"]),
        (4, 1, [(1, 1)], ["threads 1 against 4"]),
    ],
)
def test_it_is_run_again_by_other_threads_and_in_another_batch(
    tmp_path: Path, threads: int, noise_images: int, ways: list[tuple[int, int]], changes: list[str]
) -> None:
    fakes = Fakes(_numbered)
    reference = _run(tmp_path, fakes, threads=threads, noise_images=noise_images)
    assert fakes.tasks[1:] == ways
    assert [probe.change for probe in reference.noise] == changes
    assert {(probe.images, probe.max_abs_diff, probe.flipped_pixels) for probe in reference.noise} == {
        (noise_images, 0.0, 0)
    }


def test_a_file_of_one_batch_size_is_run_in_no_other(tmp_path: Path) -> None:
    reference = _run(tmp_path, Fakes(_numbered), any_batch=False)
    assert [probe.change for probe in reference.noise] == ["threads 1 against 4"]


def test_the_band_is_the_largest_difference_that_was_seen(tmp_path: Path) -> None:
    def noisy(image: int, task: CellTask) -> FloatArray:
        logits = _numbered(image, task)
        logits[0, 0, 0] = 0.0
        if task.batch_size > 1:
            logits[0, 0, 0] -= 0.5  # falls out of the mask
        elif task.options.threads == 1:
            logits[0, 1, 1] += 0.25
        return logits

    reference = _run(tmp_path, Fakes(noisy))
    assert [(probe.max_abs_diff, probe.flipped_pixels) for probe in reference.noise] == [(0.25, 0), (0.5, 3)]
    assert reference.noise_band == 0.5


def test_the_band_of_a_reference_without_noise_is_that_of_rounding(tmp_path: Path) -> None:
    """A share of its largest logit, whatever its sign."""

    def negative(image: int, task: CellTask) -> FloatArray:
        return -_numbered(image, task)

    for logits in (_numbered, negative):
        reference = _run(tmp_path, Fakes(logits))
        assert reference.noise_band == rounding_band(reference.logits) == 5.0 / 2**15


@pytest.mark.parametrize("error", [InferenceError("no", hint="try"), OutOfMemory("full", hint="use less")])
@pytest.mark.parametrize(("failing", "left"), [((3, 4), "threads 1 against 4"), ((1, 1), "batch 3 against 1")])
def test_a_probe_that_fails_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: SegxError, failing: tuple[int, int], left: str
) -> None:
    fakes = Fakes(_numbered, lambda task: error if (task.batch_size, task.options.threads) == failing else None)
    reference = _run(tmp_path, fakes)
    assert [probe.change for probe in reference.noise] == [left]
    assert error.message in caplog.text


@pytest.mark.parametrize("error", [InferenceError("no", hint="try"), RuntimeUnavailable("no", hint="get one")])
def test_a_reference_that_cannot_be_run_ends_it_all(tmp_path: Path, error: SegxError) -> None:
    with pytest.raises(type(error)):
        _run(tmp_path, Fakes(_numbered, lambda _: error))


def test_a_probe_that_is_not_finite_makes_no_flip_benign(tmp_path: Path) -> None:
    def failing(image: int, task: CellTask) -> FloatArray:
        return np.full((1, 2, 3), math.nan if task.batch_size > 1 else image, np.float32)

    reference = _run(tmp_path, Fakes(failing))
    assert reference.noise_band < 0.001
    assert [probe.change for probe in reference.noise] == ["threads 1 against 4"]


# Pictures


def judged(make_parity: Callable[..., Parity], *ious: float) -> Parity:
    images = tuple(image_parity(f"{i}", iou=iou, dice=iou) for i, iou in enumerate(ious))
    return make_parity(per_image=images, mean_iou=sum(ious) / max(1, len(ious)))


@pytest.mark.parametrize(
    ("ious", "chosen"),
    [
        ((), {}),
        ((0.9,), {"worst": 0}),
        ((0.9, 0.8), {"worst": 1, "median": 0}),
        ((1.0, 0.2, 0.9, 0.7, 0.95), {"worst": 1, "median": 2, "typical": 3}),  # mean 0.75
        ((1.0, 1.0, 1.0), {"worst": 0, "median": 1, "typical": 2}),
    ],
)
def test_worst_median_and_typical_are_different_images(
    make_parity: Callable[..., Parity], ious: tuple[float, ...], chosen: dict[str, int]
) -> None:
    assert chosen_images(judged(make_parity, *ious)) == chosen


def test_of_equal_iou_the_one_with_most_flips_is_the_worst(make_parity: Callable[..., Parity]) -> None:
    parity = judged(make_parity, 0.9, 0.9, 1.0)
    second = dataclasses.replace(parity.per_image[1], flipped_pixels=5)
    parity = dataclasses.replace(parity, per_image=(parity.per_image[0], second, parity.per_image[2]))
    assert chosen_images(parity)["worst"] == 1


def test_a_picture_shows_the_one_of_several_masks_that_differs_most(tmp_path: Path) -> None:
    spec = ModelSpec(height=8, width=8, classes=3, multilabel=True)
    inputs = Inputs(tmp_path / "in", spec.input_shape, ("a.png", "b.png"), "", "")
    np.zeros((2, *spec.input_shape), np.float32).tofile(inputs.path)
    task = CellTask(
        runtime="fake",
        model=Path("none"),
        spec=spec,
        options=RuntimeOptions(threads=1),
        batch_size=1,
        inputs=inputs,
        outputs=tmp_path / "out",
        memory_limit_bytes=None,
    )
    reference = np.full((2, *spec.output_shape), 9, np.float32)
    other = reference.copy()
    other[0, 2, :2, :2], other[0, 1, 0, 0] = -9, -9
    parity = compare_logits(reference, other, spec, inputs.names)
    pictures = dict(parity_pictures(task, reference, other, parity))
    assert {number: picture.name for number, picture in pictures.items()} == {
        2: "a.png, channel 2",
        3: "b.png, channel 0",
    }
    assert (pictures[2].classes, pictures[2].flipped_pixels, int((pictures[2].mask == 0).sum())) == (1, 4, 4)


def test_the_model_sees_pixels_without_their_normalisation() -> None:
    spec = ModelSpec(height=24, width=24, in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24)).astype(np.float32)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (spec.mean, spec.std))
    assert (unprocess((pixels / 255 - mean) / std, spec) == np.moveaxis(pixels, 0, 2)).all()


def test_a_bench_keeps_pictures_where_it_keeps_results(
    bench: Callable[..., Results], tmp_path: Path, script: Callable[..., None]
) -> None:
    script(flipped_pixels=3, flips_from=2)
    bench(output=tmp_path / "out", batch_sizes=(1, 2))
    pictures = load_pictures(tmp_path / "out")
    assert {(picture.variant, picture.batch_size) for picture in pictures} == {("fake:fp32", 2)}
    assert all((picture.flips != SAME).sum() == 3 == picture.flipped_pixels for picture in pictures)


def test_a_cell_is_measured_although_its_pictures_cannot_be_kept(
    bench: Callable[..., Results],
    tmp_path: Path,
    script: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutputError("the disk is full", hint="free some space")

    script()
    monkeypatch.setattr("segx.bench.reference.save_pictures", fail)
    results = bench(output=tmp_path, batch_sizes=(1,))
    assert [cell.status for cell in results.cells] == ["ok"]
    assert results.complete
    assert "no pictures of fake:fp32" in caplog.text


def test_empty_and_full_masks_and_the_overlap_with_the_truth_are_recorded(
    bench: Callable[..., Results], script: Callable[..., None]
) -> None:
    script()
    masks = bench(num_images=3).reference_masks
    assert masks
    assert (masks.images, masks.empty, masks.full) == (3, 0, 0)
    assert masks.truth_iou is not None
    assert 0 < masks.truth_iou < 1


@pytest.mark.parametrize(("value", "empty", "full"), [(-1.0, 2, 0), (1.0, 0, 2)])
def test_masks_of_one_value_are_counted(tmp_path: Path, value: float, empty: int, full: int) -> None:
    reference = _run(tmp_path, Fakes(lambda *_: np.full((1, 2, 3), value, np.float32)), images=2, noise_images=2)
    assert (reference.masks.empty, reference.masks.full) == (empty, full)
    assert reference.masks.truth_iou is None
