"""Which pixels are shown as flipped, which images are shown, and that they come back from disk as they were."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import segx
from segx.bench.inputs import Inputs
from segx.bench.pictures import as_pixels, chosen_images, load_pictures, save_pictures
from segx.bench.worker import CellTask
from segx.errors import ResultsError
from segx.masks.agreement import compare_logits
from segx.masks.image_io import FloatArray
from segx.masks.margins import BENIGN, MARGIN_EDGES, REAL, SAME, classed_flips
from segx.model.spec import ModelSpec
from segx.results.types import ImageParity, Parity
from segx.runtimes import RuntimeOptions

MakeParity = Callable[..., Parity]
Script = Callable[..., None]

SIZE = 24


def spec_for(classes: int, **changes: Any) -> ModelSpec:
    return ModelSpec(height=SIZE, width=SIZE, classes=classes, **changes)


def made_up(classes: int, count: int, noise: float, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    generator = np.random.default_rng(seed)
    reference = generator.normal(0, 1, (count, classes, SIZE, SIZE)).astype(np.float32)
    return reference, (reference + generator.normal(0, noise, reference.shape)).astype(np.float32)


# Flips


@given(st.integers(1, 4), st.floats(0.0, 0.5), st.floats(0.0, 0.3), st.integers(0, 99))
def test_flips_are_those_that_parity_counts(classes: int, noise: float, band: float, seed: int) -> None:
    spec = spec_for(classes)
    reference, logits = made_up(classes, 2, noise, seed)
    parity = compare_logits(reference, logits, spec, ["a", "b"], noise_band=band)
    for index, image in enumerate(parity.per_image):
        flips = classed_flips(reference[index], logits[index], spec, band)
        assert (flips.kinds == BENIGN).sum() == image.benign_flips
        assert (flips.kinds == REAL).sum() == image.flipped_pixels - image.benign_flips
        assert ((flips.reference != flips.mask) == (flips.kinds != SAME)).all()


@given(st.integers(1, 4), st.floats(0.0, 0.5), st.integers(0, 99))
def test_the_histogram_has_every_pixel_and_every_flip_once(classes: int, noise: float, seed: int) -> None:
    reference, logits = made_up(classes, 1, noise, seed)
    flips = classed_flips(reference[0], logits[0], spec_for(classes), 0.05)
    histogram = flips.histogram
    assert len(histogram.pixels) == len(MARGIN_EDGES) - 1
    assert sum(histogram.pixels) == SIZE * SIZE
    assert sum(histogram.benign) == (flips.kinds == BENIGN).sum()
    assert sum(histogram.real) == (flips.kinds == REAL).sum()
    assert all(b + r <= n for n, b, r in zip(histogram.pixels, histogram.benign, histogram.real, strict=True))
    # Inside the band and outside it are different bins but for the one that holds its edge.
    benign, real = (np.flatnonzero(counts) for counts in (histogram.benign, histogram.real))
    assert not (benign.size and real.size) or benign.max() <= real.min()


@pytest.mark.parametrize(
    ("margin", "edge"), [(0.0, 0.0), (1e-9, 0.0), (0.011, 1e-2), (50.0, 10**1.5), (5e4, MARGIN_EDGES[-2])]
)
def test_a_margin_is_the_distance_from_the_cut(margin: float, edge: float) -> None:
    spec = spec_for(1, threshold=0.7)
    reference = np.full((1, SIZE, SIZE), spec.logit_threshold + margin, dtype=np.float64).astype(np.float32)
    if margin == 0.0:
        reference[:] = np.float32(spec.logit_threshold)
    (filled,) = np.flatnonzero(classed_flips(reference, reference, spec, 0.0).histogram.pixels)
    assert MARGIN_EDGES[filled] == pytest.approx(edge)


def test_the_margin_of_several_classes_is_half_the_lead() -> None:
    reference = np.zeros((3, SIZE, SIZE), dtype=np.float32)
    reference[1], reference[2] = 5.0, 3.0
    (filled,) = np.flatnonzero(classed_flips(reference, reference, spec_for(3), 0.0).histogram.pixels)
    assert MARGIN_EDGES[filled] <= 1.0 < MARGIN_EDGES[filled + 1]
    flipped = reference.copy()
    flipped[0] = 9.0  # over the class it flipped to the lead is 5
    (filled,) = np.flatnonzero(classed_flips(reference, flipped, spec_for(3), 0.0).histogram.real)
    assert MARGIN_EDGES[filled] <= 2.5 < MARGIN_EDGES[filled + 1]


# Choice


def judged(make_parity: MakeParity, *ious: float) -> Parity:
    images = tuple(
        ImageParity(name=f"{i}", flipped_pixels=0, benign_flips=0, iou=iou, dice=iou, max_diff=0.0, mean_diff=0.0)
        for i, iou in enumerate(ious)
    )
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
    make_parity: MakeParity, ious: tuple[float, ...], chosen: dict[str, int]
) -> None:
    assert chosen_images(judged(make_parity, *ious)) == chosen


def test_of_equal_iou_the_one_with_most_flips_is_the_worst(make_parity: MakeParity) -> None:
    parity = judged(make_parity, 0.9, 0.9, 1.0)
    second = dataclasses.replace(parity.per_image[1], flipped_pixels=5)
    parity = dataclasses.replace(parity, per_image=(parity.per_image[0], second, parity.per_image[2]))
    assert chosen_images(parity)["worst"] == 1


# Files


@dataclasses.dataclass
class Kept:
    """A folder of results, and what is saved there."""

    folder: Path
    spec: ModelSpec
    images: FloatArray
    path: Path

    def save(self, runtime: str = "fake", size: int = 1, noise: float = 0.1, run: str = "today", seed: int = 0) -> None:
        reference, logits = made_up(self.spec.classes, len(self.images), noise, seed)
        names = tuple(f"<b>{i}</b>.png" for i in range(len(self.images)))
        task = CellTask(
            runtime=runtime,
            model=Path(),
            spec=self.spec,
            options=RuntimeOptions(threads=1),
            batch_size=size,
            inputs=Inputs(self.path, self.spec.input_shape, names, "", ""),
            outputs=Path(),
            memory_limit_bytes=None,
        )
        parity = compare_logits(reference, logits, self.spec, names, noise_band=0.05)
        save_pictures(self.folder, task, reference, logits, parity, run=run)


def kept_in(folder: Path, spec: ModelSpec, count: int = 5) -> Kept:
    images = np.random.default_rng(1).random((count, *spec.input_shape), dtype=np.float32)
    path = folder / "inputs.f32"
    images.tofile(path)
    return Kept(folder / "out", spec, images, path)


@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (1, 3), (4, 3), (200, 1)])
def test_pictures_come_back_as_they_were(classes: int, channels: int, tmp_path: Path) -> None:
    spec = spec_for(classes, in_channels=channels)
    kept = kept_in(tmp_path, spec)
    kept.save()
    pictures = load_pictures(kept.folder)
    assert [picture.role for picture in pictures] == ["worst", "median", "typical"]
    reference, logits = made_up(classes, 5, 0.1)
    for picture in pictures:
        index = int(picture.name[3])
        expected = classed_flips(reference[index], logits[index], spec, 0.05)
        assert (picture.reference == expected.reference).all()
        assert (picture.mask == expected.mask).all()
        assert (picture.flips == expected.kinds).all()
        assert picture.histogram == expected.histogram
        assert picture.image.shape == (SIZE, SIZE, channels)
        assert (picture.image == as_pixels(kept.images[index], spec)).all()
        assert (picture.flipped_pixels, picture.classes, picture.noise_band) == (
            (expected.kinds != SAME).sum(),
            classes,
            0.05,
        )
    assert pictures[0].iou <= pictures[1].iou


def test_variants_stand_beside_each_other_and_share_their_inputs(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, spec_for(1), count=3)
    kept.save("fake")
    kept.save("onnxruntime-cpu", seed=1)
    assert [p.variant for p in load_pictures(kept.folder)] == ["fake:fp32"] * 3 + ["onnxruntime-cpu:fp32"] * 3
    assert len(list((kept.folder / "pictures").glob("input-*.png"))) == 3


def test_the_batch_size_with_the_most_flips_is_shown(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, spec_for(1))
    shown = []
    for size, noise in ((1, 0.1), (2, 0.01), (4, 0.1), (8, 0.4)):
        kept.save(size=size, noise=noise)
        shown.append({picture.batch_size for picture in load_pictures(kept.folder)})
    assert shown == [{1}, {1}, {1}, {8}]


def test_pictures_of_another_run_are_thrown_away_and_nothing_else(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, spec_for(1))
    kept.save("fake", run="yesterday")
    (kept.folder / "pictures" / "holiday.png").write_bytes(b"mine")
    kept.save("onnxruntime-cpu", run="today")
    assert {picture.variant for picture in load_pictures(kept.folder)} == {"onnxruntime-cpu:fp32"}
    assert not list((kept.folder / "pictures").glob("fake*"))
    assert (kept.folder / "pictures" / "holiday.png").exists()


def test_without_pictures_there_are_none(tmp_path: Path) -> None:
    assert load_pictures(tmp_path) == ()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"variants": {"a": {"pictures": [{}]}}}'])
def test_a_damaged_index_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "index.json").write_text(text)
    with pytest.raises(ResultsError, match="damaged"):
        load_pictures(tmp_path)


def test_a_damaged_index_is_replaced_by_the_next_bench(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, spec_for(1))
    (kept.folder / "pictures").mkdir(parents=True)
    (kept.folder / "pictures" / "index.json").write_text("{")
    kept.save()
    assert len(load_pictures(kept.folder)) == 3


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "a/b.png", ".."])
def test_an_index_from_elsewhere_leads_to_no_other_file(tmp_path: Path, name: str) -> None:
    kept = kept_in(tmp_path, spec_for(1))
    kept.save(run="yesterday")
    victim = tmp_path / "secret.png"
    shutil.copy(next((kept.folder / "pictures").glob("input-*.png")), victim)
    file = kept.folder / "pictures" / "index.json"
    index = json.loads(file.read_text())
    index["variants"]["fake:fp32"]["pictures"][0]["image"] = name
    file.write_text(json.dumps(index))
    with pytest.raises(ResultsError, match="no plain file name"):
        load_pictures(kept.folder)
    kept.save(run="today")
    assert victim.exists()


def test_a_missing_picture_is_told(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, spec_for(1))
    kept.save()
    next((kept.folder / "pictures").glob("*-mask.png")).unlink()
    with pytest.raises(ResultsError, match="damaged"):
        load_pictures(kept.folder)


def test_what_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = kept_in(tmp_path, spec_for(1))
    kept.folder.mkdir()
    (kept.folder / "pictures").write_text("a file is in the way")
    kept.save()
    assert "no pictures of fake:fp32" in caplog.text


def test_the_model_sees_pixels_without_their_normalisation() -> None:
    spec = spec_for(1, in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE)).astype(np.float32)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (spec.mean, spec.std))
    assert (as_pixels((pixels / 255 - mean) / std, spec) == np.moveaxis(pixels, 0, 2)).all()


# In a bench


def run(plain_onnx: Path, output: Path | None, **options: Any) -> segx.bench.Results:
    quick: dict[str, Any] = {"min_time_s": 0.0, "min_runs": 1, "max_time_s": 0.0, "warmup": 0, "num_images": 4}
    return segx.benchmark(model=plain_onnx, runtimes=["fake"], output=output, **{**quick, **options})


def test_a_bench_keeps_pictures_where_it_keeps_results(plain_onnx: Path, tmp_path: Path, script: Script) -> None:
    script(flipped_pixels=3, flips_from=2)
    run(plain_onnx, tmp_path / "out", batch_sizes=(1, 2))
    pictures = load_pictures(tmp_path / "out")
    assert {(picture.variant, picture.batch_size) for picture in pictures} == {("fake:fp32", 2)}
    assert all((picture.flips != SAME).sum() == 3 == picture.flipped_pixels for picture in pictures)


def test_a_cell_is_measured_although_its_pictures_cannot_be_kept(
    plain_onnx: Path, tmp_path: Path, script: Script
) -> None:
    script()
    (tmp_path / "pictures").write_text("a file is in the way")
    results = run(plain_onnx, tmp_path, batch_sizes=(1,))
    assert [cell.status for cell in results.cells] == ["ok"]
    assert results.complete
