"""The reference, its noise floor, and the pictures of masks compared with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from segx.bench import reference as reference_module
from segx.bench.inputs import Inputs, collect_outputs, prepare_inputs
from segx.bench.plan import CellTask
from segx.bench.reference import Reference, ReferenceRun, chosen_images, parity_pictures
from segx.bench.worker import CellWorkers
from segx.errors import InferenceError, OutOfMemory, OutputError, RuntimeUnavailable, SegxError
from segx.export.artifact import read_artifact
from segx.masks.agreement import SAME, compare_logits, rounding_band
from segx.masks.preprocess import unprocess
from segx.model.spec import ModelSpec
from segx.results.pictures import load_pictures
from segx.results.types import Parity, Results
from segx.runtimes import RuntimeOptions
from segx.runtimes.base import FloatArray
from segx.system import machine
from segx.system.processes import WorkerDied
from segx.system.progress import SILENT, Progress, Told
from tests.benching import InProcessCall, run_in_process
from tests.builders import image_parity

SPEC = ModelSpec(height=2, width=3)

# What a worker gives for image i, by the batch size and the number of threads it runs with.
Logits = Callable[[int, CellTask], FloatArray]


class Call(InProcessCall):
    """Write the outputs of a worker's calls where a real one does."""

    def __init__(self, task: CellTask, images: int, logits: Logits, error: SegxError | None) -> None:
        self._task, self._images, self._logits, self._error = task, images, logits, error

    def result(self, progress: Progress = SILENT) -> float:  # noqa: ARG002
        if self._error:
            raise self._error
        stored = [
            np.asarray(self._logits(image % len(self._task.inputs.names), self._task), np.float32).tobytes()
            for image in range(math.ceil(self._images / self._task.batch_size) * self._task.batch_size)
        ]
        self._task.outputs.write_bytes(b"".join(stored))
        return 1.0 / self._task.batch_size


class Fakes:
    """Double of ``CellWorkers``."""

    def __init__(self, logits: Logits, fails: Callable[[CellTask], SegxError | None] = lambda _: None) -> None:
        self.tasks: list[tuple[int, int]] = []
        self._logits, self._fails = logits, fails

    def begin(self, _: Any, arguments: dict[str, Any], *, torch: bool, timeout_s: float, tells: bool) -> Call:
        assert (torch, timeout_s, tells) == (False, 5.0, True)
        task = arguments["task"]
        self.tasks.append((task.batch_size, task.options.threads))
        return Call(task, arguments["images"], self._logits, self._fails(task))


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
    meanwhile: Callable[[], None] = lambda: None,
    **changes: Any,
) -> Reference:
    model = folder / "model.onnx"
    if not model.exists():
        model.write_bytes(b"a model")
    task = CellTask(
        runtime="fake",
        model=model,
        spec=SPEC,
        options=RuntimeOptions(threads=threads),
        batch_size=1,
        inputs=Inputs(Path("in"), (1, 2, 3), tuple(str(i) for i in range(images)), "", ""),
        outputs=folder / "out",
        memory_limit_bytes=None,
    )
    with ReferenceRun(
        cast("CellWorkers", fakes),
        dataclasses.replace(task, **changes),
        noise_images=noise_images,
        any_batch=any_batch,
        timeout_s=5.0,
        progress=Progress(),
    ) as run:
        meanwhile()
        return run.result()


def test_every_image_is_run_by_itself_and_in_order(tmp_path: Path) -> None:
    fakes = Fakes(_numbered)
    reference = _run(tmp_path, fakes)
    assert reference.logits.shape == (5, 1, 2, 3)
    assert [float(logits.max()) for logits in reference.logits] == [1, 2, 3, 4, 5]
    assert fakes.tasks[0] == (1, 4)


def test_beside_other_work_no_larger_batches_are_run(tmp_path: Path) -> None:
    fakes, before = Fakes(_numbered), []
    _run(tmp_path, fakes, meanwhile=lambda: before.extend(fakes.tasks))
    assert before == [(1, 4), (1, 1)]
    assert fakes.tasks == [*before, (3, 4)]


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


@pytest.mark.parametrize("failing", [(1, 4), (1, 1), (3, 4)])
@pytest.mark.parametrize("error", [OutOfMemory("full", hint="use less"), WorkerDied("killed", hint="see dmesg")])
def test_a_worker_that_dies_beside_others_is_followed_by_another(
    tmp_path: Path, failing: tuple[int, int], error: SegxError
) -> None:
    errors = [error]
    fakes = Fakes(
        _numbered, lambda task: errors.pop() if errors and (task.batch_size, task.options.threads) == failing else None
    )
    reference = _run(tmp_path, fakes)
    assert [float(logits.max()) for logits in reference.logits] == [1, 2, 3, 4, 5]
    assert len(reference.noise) == 2
    assert fakes.tasks.count(failing) == 2


def test_a_probe_whose_worker_cannot_be_started_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin = Fakes.begin

    def failing(self: Fakes, function: Any, arguments: dict[str, Any], **options: Any) -> Call:
        if arguments["task"].batch_size > 1:
            raise WorkerDied("a worker cannot be started", hint="see ulimit -u")
        return begin(self, function, arguments, **options)

    monkeypatch.setattr(Fakes, "begin", failing)
    assert [probe.change for probe in _run(tmp_path, Fakes(_numbered)).noise] == ["threads 1 against 4"]
    assert "a worker cannot be started" in caplog.text


def test_a_worker_tells_its_fastest_call_and_no_more_than_its_pipe_holds(
    tmp_path: Path, plain_onnx: Path, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_process(monkeypatch)
    script(seconds_per_call=0.002)
    spec = read_artifact(plain_onnx).spec
    task = CellTask(
        runtime="fake",
        model=plain_onnx,
        spec=spec,
        options=RuntimeOptions(threads=1),
        batch_size=2,
        inputs=prepare_inputs(tmp_path / "inputs", spec, folder=None, count=4),
        outputs=tmp_path / "out",
        memory_limit_bytes=None,
    )
    said: list[str] = []
    assert 0.001 <= reference_module._run_images(task, 1000, Told(said.append)) < 0.002
    assert 50 <= len(said) <= 110
    assert collect_outputs(task.outputs, spec).shape == (4, *spec.output_shape)


def test_a_probe_that_is_not_finite_makes_no_flip_benign(tmp_path: Path) -> None:
    def failing(image: int, task: CellTask) -> FloatArray:
        return np.full((1, 2, 3), math.nan if task.batch_size > 1 else image, np.float32)

    reference = _run(tmp_path, Fakes(failing))
    assert reference.noise_band < 0.001
    assert [probe.change for probe in reference.noise] == ["threads 1 against 4"]


# Keeping it for the next bench


def _kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-reference-*"))


def test_the_next_bench_of_the_same_uses_the_reference_again(tmp_path: Path, references: Path) -> None:
    first = _run(tmp_path, Fakes(_numbered))
    again = Fakes(_numbered)
    second = _run(tmp_path, again)
    assert not again.tasks
    assert np.array_equal(second.logits, first.logits)
    assert dataclasses.replace(second, logits=first.logits) == first
    assert [path.suffix for path in _kept(references)] == [".f32", ".json"]


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2},
        {"noise_images": 2},
        {"any_batch": False},
        {"spec": dataclasses.replace(SPEC, threshold=0.25)},
        {"inputs": Inputs(Path("in"), (1, 2, 3), tuple("01234"), "other pixels", "")},
        {"options": RuntimeOptions(threads=4, memory_profile="low")},
    ],
)
def test_another_bench_computes_its_own_and_keeps_that_instead(
    tmp_path: Path, references: Path, change: dict[str, Any]
) -> None:
    _run(tmp_path, Fakes(_numbered))
    fakes = Fakes(lambda image, task: _numbered(image, task) + 100)
    assert float(_run(tmp_path, fakes, **change).logits[0].max()) == 101
    assert len(_kept(references)) == 2
    assert float(_run(tmp_path, Fakes(_numbered), **change).logits[0].max()) == 101


@pytest.mark.parametrize("name", ["cpu_flags", "variables", "package_versions"])
def test_another_machine_computes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _run(tmp_path, Fakes(_numbered))
    monkeypatch.setattr(machine, name, lambda: {"other": "1"})
    fakes = Fakes(_numbered)
    _run(tmp_path, fakes)
    assert fakes.tasks


def test_other_ground_truth_for_the_same_images_counts(tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    inputs = Inputs(Path("in"), (1, 2, 3), tuple("01234"), "", "", truth=truth, truth_source="masks of truth")
    np.ones((5, 2, 3), np.uint8).tofile(truth)
    assert _run(tmp_path, Fakes(_numbered), inputs=inputs).masks.truth_iou == 1.0
    np.eye(2, 3, dtype=np.uint8)[None].repeat(5, axis=0).tofile(truth)
    again = Fakes(_numbered)
    assert _run(tmp_path, again, inputs=inputs).masks.truth_iou == pytest.approx(2 / 6)
    assert not again.tasks


def test_another_model_of_that_name_computes_its_own(tmp_path: Path) -> None:
    _run(tmp_path, Fakes(_numbered))
    (tmp_path / "model.onnx").write_bytes(b"trained further")
    fakes = Fakes(_numbered)
    _run(tmp_path, fakes)
    assert fakes.tasks


@pytest.mark.parametrize("damage", [b"", b"\0" * 120])
def test_a_damaged_reference_is_computed_again(tmp_path: Path, references: Path, damage: bytes) -> None:
    first = _run(tmp_path, Fakes(_numbered))
    _kept(references)[0].write_bytes(damage)
    assert np.array_equal(_run(tmp_path, Fakes(_numbered)).logits, first.logits)


def test_a_reference_whose_noise_is_not_known_in_full_is_not_kept(tmp_path: Path, references: Path) -> None:
    full = InferenceError("no", hint="try")
    _run(tmp_path, Fakes(_numbered, lambda task: full if task.batch_size > 1 else None))
    assert not _kept(references)
    assert len(_run(tmp_path, Fakes(_numbered)).noise) == 2


def test_a_reference_that_another_bench_replaces_meanwhile_stays_that_of_this_bench(tmp_path: Path) -> None:
    _run(tmp_path, Fakes(_numbered))

    def other_bench() -> None:
        _run(tmp_path, Fakes(lambda image, task: _numbered(image, task) + 100), noise_images=2)

    assert float(_run(tmp_path, Fakes(_numbered), meanwhile=other_bench).logits[-1].max()) == 5


def test_what_a_killed_bench_left_in_its_place_is_replaced(tmp_path: Path, references: Path) -> None:
    _run(tmp_path, Fakes(_numbered))
    logits, manifest = _kept(references)
    manifest.unlink()
    logits.write_bytes(b"half of it")
    _run(tmp_path, Fakes(_numbered))
    again = Fakes(_numbered)
    _run(tmp_path, again)
    assert not again.tasks


def test_a_large_reference_is_not_kept(tmp_path: Path, references: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_module, "_MOST_KEPT_BYTES", 5 * 6 * 4 - 1)
    _run(tmp_path, Fakes(_numbered))
    assert not _kept(references)


def test_a_reference_that_cannot_be_kept_is_used_all_the_same(tmp_path: Path, references: Path) -> None:
    references.parent.mkdir(parents=True, exist_ok=True)
    references.write_bytes(b"a file where the folder should be")
    assert len(_run(tmp_path, Fakes(_numbered)).logits) == 5


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
