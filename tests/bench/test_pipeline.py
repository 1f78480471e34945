"""``--scope pipeline``: the whole path is measured as it is, its masks are judged, and what fails is a row."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import segx
from segx.analysis.capacity import Demand, plan_capacity
from segx.analysis.figures import seconds_for, verdict_of
from segx.bench.inputs import Inputs
from segx.bench.pipeline import judge_mask_files
from segx.bench.plan import CellTask
from segx.errors import ImageError, InferenceError
from segx.masks.agreement import compare_images, compare_masks
from segx.masks.image_io import write_png
from segx.masks.preprocess import FloatArray, MaskArray
from segx.model.spec import ModelSpec
from segx.predict.options import OutputOptions
from segx.predict.output import class_masks, postprocess
from segx.predict.sources import Item
from segx.results.store import load_results
from segx.results.types import STAGES, Parity, Results
from segx.runtimes import RuntimeOptions
from segx.system.progress import Progress
from tests.benching import quick_bench
from tests.forms import to_csv, to_markdown, to_text

Script = Callable[..., None]
Bench = Callable[..., Results]

COUNT = 12
BRIGHT = 254


def write_images(folder: Path, *, bright: int | None = None) -> Path:
    """Noise of different sizes and shapes, one of them in a folder of its own."""
    chance = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = chance.integers(0, 256, (40 + number, 60 - number), dtype=np.uint8)
        if number == bright:
            pixels[...] = BRIGHT
        write_png(folder / ("more" if number == 3 else "") / f"{number:02}.png", pixels)
    return folder


def pipeline_bench(run: Bench, folder: Path) -> Bench:
    def run_pipeline(**options: Any) -> Results:
        if "images" not in options:
            options["images"] = write_images(folder / "images")
        return run(**{"scopes": ("pipeline",), "batch_sizes": (1,), "num_images": COUNT, "warmup": 1, **options})

    return run_pipeline


@pytest.fixture
def bench(bench: Bench, tmp_path: Path) -> Bench:
    """Return a short bench of the pipeline scope; the cells of other scopes and the reference run in this process."""
    return pipeline_bench(bench, tmp_path)


@pytest.fixture
def real_bench(real_bench: Bench, tmp_path: Path) -> Bench:
    """Return a short bench of the pipeline scope with all its processes."""
    return pipeline_bench(real_bench, tmp_path)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_pass_takes_at_least_what_the_engine_takes_and_is_counted_per_image(
    bench: Bench, script: Script, batch_size: int
) -> None:
    script(seconds_per_image=0.02)
    results = bench(batch_sizes=(batch_size,))
    (cell,) = results.cells
    assert cell.status == "ok", cell.reason
    assert [turn.runs for turn in cell.rounds] == [1] * len(cell.samples_s)
    assert len(cell.samples_s) >= 3
    assert tuple(cell.stages) == STAGES
    assert cell.stages["infer"] >= 0.02
    assert cell.seconds_per_image >= 0.02
    # What the engine did and what it waited lie within the passes.
    passes_s = results.spent_s(cell)
    assert (cell.stages["infer"] + cell.stages["wait"]) * COUNT <= sum(passes_s) / len(passes_s)
    assert cell.seconds_per_image == pytest.approx(statistics.median(passes_s) / COUNT)
    assert seconds_for(cell, COUNT) == (pytest.approx(sum(passes_s) / len(passes_s)), True)
    assert results.wall
    assert results.wall.sampling == pytest.approx(sum(passes_s))


def test_variants_take_turns_pass_by_pass_after_the_forward_cells(bench: Bench, script: Script) -> None:
    script()
    results = bench(runtimes=["fake", "onnxruntime-cpu"], scopes=("pipeline", "forward"), batch_sizes=(1, 2))
    kinds = [(cell.batch_size, cell.runtime, cell.scope, cell.status) for cell in results.cells]
    assert kinds == [
        (size, runtime, scope, "ok")
        for size in (1, 2)
        for runtime in ("fake", "onnxruntime-cpu")
        for scope in ("pipeline", "forward")
    ]
    for size in (1, 2):
        numbers = {
            (cell.scope, cell.runtime): [turn.number for turn in cell.rounds]
            for cell in results.cells
            if cell.batch_size == size
        }
        assert numbers["pipeline", "fake"][:3] == numbers["pipeline", "onnxruntime-cpu"][:3]
        assert min(numbers["pipeline", "fake"]) > max(numbers["forward", "fake"])


def test_masks_are_judged_at_the_size_of_their_images(bench: Bench, script: Script, tmp_path: Path) -> None:
    script(flipped_pixels=5, flips_from=9)  # the reference's noise is measured with eight images
    for number in range(9):
        scale = 1 + number % 2
        tile = np.random.default_rng(number).integers(0, 120, (32 * scale, 32 * scale), dtype=np.uint8)
        write_png(tmp_path / "squares" / f"{number}.png", tile)
    results = bench(images=tmp_path / "squares", batch_sizes=(1, 9))
    clean, broken = results.cells
    assert clean.parity
    assert (clean.status, clean.parity.flipped_pixels, clean.parity.worst_iou) == ("ok", 0, 1.0)
    assert broken.parity
    assert broken.status == "parity broken"
    assert [image.flipped_pixels for image in broken.parity.per_image] == [5, 20, 5, 20, 5, 20, 5, 20, 5]
    assert (broken.parity.images, broken.parity.pixels) == (9, 5 * 32**2 + 4 * 64**2)
    assert verdict_of(results, broken) == "FAILED"


@pytest.mark.parametrize(
    ("fault", "status", "word"),
    [
        ("killed_from", "crashed", "SIGKILL"),
        ("out_of_memory_from", "out of memory", "no memory"),
    ],
)
def test_a_call_that_fails_ends_its_cell_and_not_the_others(
    real_bench: Bench, script: Script, fault: str, status: str, word: str
) -> None:
    """Nothing is repeated image by image, which would be timed as the batch size that it is not."""
    script(**{fault: 2})
    results = real_bench(runtimes=["fake", "onnxruntime-cpu"], batch_sizes=(1, 2))
    assert [(cell.runtime, cell.status) for cell in results.cells] == [
        ("fake", "ok"),
        ("onnxruntime-cpu", "ok"),
        ("fake", status),
        ("onnxruntime-cpu", "ok"),
    ]
    assert word in results.cells[2].reason
    assert results.cells[2].remedy
    assert not results.cells[2].samples_s
    assert status in to_text(results)
    assert status in to_markdown(results)


@pytest.mark.parametrize("fault", ["fails_above", "killed_above", "not_finite_above"])
def test_an_image_without_a_mask_fails_the_cell(real_bench: Bench, script: Script, tmp_path: Path, fault: str) -> None:
    script(**{fault: 0.95})
    images = write_images(tmp_path / "with a bright one", bright=5)
    results = real_bench(runtimes=["onnxruntime-cpu", "fake"], images=images)
    assert [cell.status for cell in results.cells] == ["ok", "crashed" if fault == "killed_above" else "failed"]
    assert results.cells[1].reason
    assert results.cells[1].remedy


def test_images_that_fill_no_batch_are_a_row_that_says_so(bench: Bench, script: Script) -> None:
    script()
    (cell,) = bench(batch_sizes=(COUNT + 1,)).cells
    assert (cell.status, cell.batch_size) == ("failed", COUNT + 1)
    assert "--num-images 13" in cell.remedy


def test_an_unavailable_runtime_is_said_once(bench: Bench, script: Script) -> None:
    script(unavailable="taken away by the script")
    results = bench(runtimes=["onnxruntime-cpu", "fake"], scopes=("forward", "pipeline"))
    assert {cell.status for cell in results.cells if cell.runtime == "fake"} == {"unavailable"}
    assert to_text(results, columns=200, details=True).count("taken away by the script") == 1


def test_results_keep_the_stages(bench: Bench, script: Script, tmp_path: Path) -> None:
    script()
    results = bench(output=tmp_path / "out")
    assert load_results(tmp_path / "out") == results
    (cell,) = results.cells
    header, line = to_csv(results).splitlines()
    columns = dict(zip(header.split(","), line.split(","), strict=True))
    assert float(columns["infer_s_per_image"]) == cell.stages["infer"]


def test_results_without_stages_load(bench: Bench, script: Script, tmp_path: Path) -> None:
    script()
    results = bench(output=tmp_path / "out", scopes=("forward",))
    file = tmp_path / "out" / "results.json"
    values = json.loads(file.read_text())
    for cell in values["cells"]:
        assert cell.pop("stages") == {}
    file.write_text(json.dumps(values))
    assert load_results(file) == results


class Interrupting(Progress):
    """Presses Ctrl-C once so many parts of the whole path are done."""

    def __init__(self, after: int) -> None:
        self._left = after
        self._whole_path = False

    def say(self, text: str) -> None:
        """Notes when the forward cells are over."""
        self._whole_path = "sampling" in text and "(pipeline)" in text

    def reach(self, _done: float, _text: str = "") -> None:
        """Counts."""
        self._left -= self._whole_path
        if self._left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_bench_goes_on_where_it_was(bench: Bench, script: Script, tmp_path: Path) -> None:
    script()
    out = tmp_path / "out"
    options: dict[str, Any] = {"output": out, "scopes": ("forward", "pipeline"), "batch_sizes": (1, 2)}
    with pytest.raises(KeyboardInterrupt):
        # Three passes and the end of batch 1, then two passes at batch 2.
        bench(**options, progress=Interrupting(6))
    before = load_results(out)
    assert [(cell.scope, cell.batch_size, cell.stopped == "interrupted") for cell in before.cells] == [
        ("forward", 1, False),
        ("pipeline", 1, False),
        ("forward", 2, False),
        ("pipeline", 2, True),
    ]
    assert to_text(before)
    images = tmp_path / "images"
    after = bench(**options, images=images, resume=True)
    assert after.complete
    assert after.cells[:3] == before.cells[:3]
    assert len(after.cells[3].samples_s) >= 3
    assert after.cells[3].stages


def test_nothing_is_written_among_the_images(bench: Bench, script: Script, tmp_path: Path) -> None:
    script()
    images = write_images(tmp_path / "untouched")
    before = sorted(path.name for path in images.rglob("*"))
    bench(images=images)
    assert sorted(path.name for path in images.rglob("*")) == before


def test_the_budget_is_of_passes_as_they_are(bench: Bench, script: Script) -> None:
    script(seconds_per_image=0.02)
    results = bench(batch_sizes=(1, 2), budget_s=0.6, max_time_s=100.0)
    assert [cell.stopped for cell in results.cells] == ["budget spent"] * 2
    # At batch 1 half of it: a pass takes 0.24 s, so that the second one passes 0.3 s.
    assert len(results.cells[0].samples_s) <= 2


def test_the_table_has_the_share_of_forward_and_the_stages(bench: Bench, script: Script) -> None:
    script()
    results = bench(scopes=("forward", "pipeline"))
    forward, whole = results.cells
    made = dataclasses.replace(
        results,
        cells=(
            dataclasses.replace(forward, samples_s=(0.010,) * 8, rounds=()),
            dataclasses.replace(
                whole,
                samples_s=(0.0125,) * 8,
                rounds=(),
                stages={**dict.fromkeys(STAGES, 0.001), "infer": 0.0115, "wait": 0.0005},
            ),
        ),
    )
    text = to_text(made, columns=200, details=True)
    line = next(line.split() for line in text.splitlines() if "80%" in line)
    assert line[:6] == ["fake:fp32", "1", "80.0", "!0.0%", "80%", "infer"]
    assert line[-8:] == ["1.00", "1.00", "1.00", "11.5", "1.00", "1.00", "0.500", "identical"]
    assert text.count("scope pipeline") == 0
    row = next(line for line in to_markdown(made).splitlines() if "80%" in line)
    assert [cell.strip() for cell in row.split("|")][1:4] == ["fake:fp32", "1", "80.0"]


def test_a_real_engine_writes_the_masks_of_the_reference(tiny_onnx: Path, tmp_path: Path) -> None:
    results = quick_bench(
        model=tiny_onnx,
        runtimes=["onnxruntime-cpu"],
        scopes=("forward", "pipeline"),
        batch_sizes=(2,),
        num_images=6,
        warmup=1,
        min_runs=3,
        output=tmp_path / "out",
    )
    forward, whole = results.cells
    assert (forward.status, whole.status) == ("ok", "ok"), whole.reason
    assert whole.parity
    assert (whole.parity.images, whole.parity.flipped_pixels) == (6, 0)
    assert all(whole.stages[stage] > 0 for stage in STAGES if stage != "wait")
    assert whole.facts == forward.facts


def test_as_a_command(plain_onnx: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segx", "bench", "--model", str(plain_onnx), "--runtime", "fake", "--quick"]
    options = ["--scope", "forward,pipeline", "--batch-size", "1", "--min-time", "0.01s", "--max-time", "0.01s"]
    done = subprocess.run(
        [*command, *options, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "From image file to mask file" in done.stdout
    assert [cell.scope for cell in load_results(tmp_path / "out").cells] == ["forward", "pipeline"]
    assert "From image file to mask file" in (tmp_path / "out" / "table.md").read_text()


# Mask files

SPEC = ModelSpec(height=16, width=16)
CLASSES = ModelSpec(height=16, width=16, classes=3)
OVERLAPPING = ModelSpec(height=16, width=16, classes=3, multilabel=True)
SIZES = ((16, 16), (32, 48), (20, 9))  # (height, width)
NAMES = ("a", "b", "c")


class Pass:
    """Images of different sizes, and masks as the reference would have written them."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        chance = np.random.default_rng(0)
        self.logits: FloatArray = chance.normal(0, 5, (3, *spec.output_shape)).astype(np.float32)
        self.masks: list[MaskArray] = []
        for name, (height, width), logits in zip(NAMES, SIZES, self.logits, strict=True):
            write_png(folder / "images" / f"{name}.png", np.zeros((height, width), np.uint8))
            self.masks.append(postprocess(logits, (width, height), spec, OutputOptions()).mask)
        items = tuple(Item(f"{name}.png", folder / "images" / f"{name}.png") for name in NAMES)
        inputs = Inputs(folder / "inputs.f32", spec.input_shape, NAMES, "", "images")
        self._task = CellTask(
            runtime="fake",
            model=Path("none"),
            spec=spec,
            options=RuntimeOptions(threads=1, scope="pipeline"),
            batch_size=1,
            inputs=inputs,
            outputs=folder / "masks",
            memory_limit_bytes=None,
            items=items,
        )
        self.written = folder / "masks"

    def judge(self, noise_band: float = 0.0) -> Parity:
        for name, mask in zip(NAMES, self.masks, strict=True):
            files = class_masks(f"{name}.png", (), self._task.spec).values() or [f"{name}.png"]
            for file, plane in zip(files, mask.reshape(-1, *mask.shape[-2:]), strict=True):
                write_png(self.written / file, plane)
        return judge_mask_files(self._task, self.logits, noise_band)


@pytest.mark.parametrize("spec", [SPEC, CLASSES, OVERLAPPING])
def test_the_references_own_masks_are_identical_at_any_size(tmp_path: Path, spec: ModelSpec) -> None:
    made = Pass(tmp_path, spec)
    parity = made.judge()
    assert (parity.images, parity.flipped_pixels, parity.worst_iou, parity.mean_iou) == (3, 0, 1.0, 1.0)
    assert parity.pixels == sum(height * width for height, width in SIZES) * (3 if spec.multilabel else 1)
    assert len(parity.classes) == (0 if spec is SPEC else 3)
    assert not made.written.exists()


@pytest.mark.parametrize("spec", [SPEC, CLASSES, OVERLAPPING])
def test_every_flip_is_counted_on_its_image(tmp_path: Path, spec: ModelSpec) -> None:
    made = Pass(tmp_path, spec)
    mask = made.masks[1][2] if spec.multilabel else made.masks[1]
    mask[3, 5:9] = (mask[3, 5:9] + 1) % 3 if spec.exclusive else 255 - mask[3, 5:9]
    parity = made.judge()
    assert [image.flipped_pixels for image in parity.per_image] == [0, 4, 0]
    assert (parity.flipped_pixels, parity.benign_flips, parity.worst_image) == (4, 0, "b")
    assert parity.worst_iou < 1.0


@pytest.mark.parametrize("spec", [SPEC, CLASSES, OVERLAPPING])
def test_a_flip_within_the_noise_is_benign_at_any_size(tmp_path: Path, spec: ModelSpec) -> None:
    made = Pass(tmp_path, spec)
    # Of image b every pixel of the model is 2 x 3 pixels of the mask: row 4 of it comes from row 2 of the logits.
    if not spec.exclusive:
        made.logits[1, 0, 2, 2] = 0.001
        (made.masks[1][0] if spec.multilabel else made.masks[1])[4:6, 6:9] = 0
    else:
        made.logits[1, :, 2, 2] = (1.0, 0.999, -5.0)
        made.masks[1][4:6, 6:9] = 1
    parity = made.judge(noise_band=0.01)
    assert (parity.flipped_pixels, parity.benign_flips, parity.noise_band) == (6, 6, 0.01)


def test_a_value_that_no_mask_has_is_a_flip(tmp_path: Path) -> None:
    made = Pass(tmp_path, SPEC)
    made.masks[0][0, 0] = 1  # neither 0 nor 255
    assert made.judge().flipped_pixels == 1


def test_a_mask_of_another_size_is_an_error(tmp_path: Path) -> None:
    made = Pass(tmp_path, SPEC)
    made.masks[1] = made.masks[0]
    with pytest.raises(InferenceError, match=r"b\.png has 16x16 pixels, its image 48x32"):
        made.judge()


def test_a_missing_mask_is_an_error(tmp_path: Path) -> None:
    made = Pass(tmp_path, SPEC)
    for name, mask in zip(NAMES[:2], made.masks, strict=False):
        write_png(made.written / f"{name}.png", mask)
    with pytest.raises(ImageError, match=r"c\.png"):
        judge_mask_files(made._task, made.logits, 0.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([1, 3]))
def test_images_of_different_sizes_are_judged_as_each_alone(seed: int, count: int, classes: int) -> None:
    spec = ModelSpec(height=8, width=8, classes=classes)
    chance = np.random.default_rng(seed)
    names = [str(number) for number in range(count)]
    images = []
    for number in range(count):
        reference = chance.integers(0, max(2, classes), (8, 8 + number), dtype=np.uint8)
        mask = np.where(chance.random(reference.shape) < 0.1, 0, reference).astype(np.uint8)
        images.append((reference, mask, np.zeros(reference.shape, dtype=np.bool_)))
    together = compare_images(iter(images), spec, names)
    alone = [compare_masks(a[None], b[None], spec, [name]) for (a, b, _), name in zip(images, names, strict=True)]
    assert together.images == count
    assert together.per_image == tuple(parity.per_image[0] for parity in alone)
    assert together.pixels == sum(parity.pixels for parity in alone)
    assert together.flipped_pixels == sum(parity.flipped_pixels for parity in alone)
    assert together.mean_iou == pytest.approx(np.mean([parity.mean_iou for parity in alone]))
    assert together.mean_dice == pytest.approx(np.mean([parity.mean_dice for parity in alone]))
    worst = min(alone, key=lambda parity: parity.worst_iou)
    assert (together.worst_iou, together.worst_image) == (worst.worst_iou, worst.worst_image)
    distances = [parity.flip_distance_px for parity in alone if parity.flip_distance_px is not None]
    assert together.flip_distance_px == max(distances, default=None)
    for index, entry in enumerate(together.classes):
        present = [parity.classes[index] for parity in alone if parity.classes[index].iou is not None]
        least = min(present, key=lambda found: found.worst_iou or 0.0, default=None)
        assert entry.iou == (pytest.approx(np.mean([found.iou or 0.0 for found in present])) if present else None)
        assert (entry.worst_iou, entry.worst_image) == ((least.worst_iou, least.worst_image) if least else (None, ""))


@pytest.mark.slow
@pytest.mark.serial
def test_a_plan_holds_for_a_run_that_it_has_not_seen(real_bench: Bench, script: Script, tmp_path: Path) -> None:
    script(seconds_per_call=0.1)
    results = real_bench()
    images = tmp_path / "others"
    for number in range(3 * COUNT):
        write_png(images / f"{number:02}.png", np.full((70, 50), 5 * number, np.uint8))
    (fleet,) = plan_capacity(results, Demand(images=3 * COUNT, deadline_s=3600.0)).fleets
    assert (fleet.machines, fleet.basis) == (1, "measured")
    assert results.model.onnx
    request = segx.RuntimeRequest("fake", batch_size=1)
    report = segx.segment(images, tmp_path / "masks", model=results.model.onnx, runtime=request)
    assert report.pipeline.images == 3 * COUNT
    assert report.pipeline.seconds - report.pipeline.ready_s == pytest.approx((fleet.hours or 0.0) * 3600, rel=0.1)
