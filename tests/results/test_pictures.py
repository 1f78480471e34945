"""Pictures come back from disk as they were saved."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segx.bench.inputs import Inputs
from segx.bench.plan import CellTask
from segx.bench.reference import parity_pictures
from segx.errors import OutputError, ResultsError
from segx.masks.agreement import SAME, classify_flips, compare_logits
from segx.masks.preprocess import FloatArray, unprocess
from segx.model.spec import ModelSpec
from segx.results.pictures import load_pictures, save_pictures
from segx.results.types import Parity
from segx.runtimes import RuntimeOptions
from tests.builders import SIZE, noisy, small_spec

MakeParity = Callable[..., Parity]
Script = Callable[..., None]

# Files


@dataclasses.dataclass
class Kept:
    """A folder of results, and what is saved there."""

    folder: Path
    spec: ModelSpec
    images: FloatArray
    path: Path

    def save(self, runtime: str = "fake", size: int = 1, noise: float = 0.1, run: str = "today", seed: int = 0) -> None:
        reference, logits = noisy(self.spec.classes, len(self.images), noise, seed)
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
        pictures = parity_pictures(task, reference, logits, parity)
        save_pictures(self.folder, str(task.variant), pictures, flipped_pixels=parity.flipped_pixels, run=run)


def kept_in(folder: Path, spec: ModelSpec, count: int = 5) -> Kept:
    images = np.random.default_rng(1).random((count, *spec.input_shape), dtype=np.float32)
    path = folder / "inputs.f32"
    images.tofile(path)
    return Kept(folder / "out", spec, images, path)


@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (1, 3), (4, 3), (200, 1)])
def test_pictures_come_back_as_they_were(classes: int, channels: int, tmp_path: Path) -> None:
    spec = small_spec(classes, in_channels=channels)
    kept = kept_in(tmp_path, spec)
    kept.save()
    pictures = load_pictures(kept.folder)
    assert [picture.role for picture in pictures] == ["worst", "median", "typical"]
    reference, logits = noisy(classes, 5, 0.1)
    for picture in pictures:
        index = int(picture.name[3])
        expected = classify_flips(reference[index], logits[index], spec, 0.05)
        assert (picture.reference == expected.reference).all()
        assert (picture.mask == expected.mask).all()
        assert (picture.flips == expected.kinds).all()
        assert picture.histogram == expected.histogram
        assert picture.image.shape == (SIZE, SIZE, channels)
        assert (picture.image == unprocess(kept.images[index], spec)).all()
        assert (picture.flipped_pixels, picture.classes, picture.noise_band) == (
            (expected.kinds != SAME).sum(),
            classes,
            0.05,
        )
    assert pictures[0].iou <= pictures[1].iou


def test_variants_stand_beside_each_other_and_share_their_inputs(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, small_spec(1), count=3)
    kept.save("fake")
    kept.save("onnxruntime-cpu", seed=1)
    assert [p.variant for p in load_pictures(kept.folder)] == ["fake:fp32"] * 3 + ["onnxruntime-cpu:fp32"] * 3
    assert len(list((kept.folder / "pictures").glob("input-*.png"))) == 3


def test_the_batch_size_with_the_most_flips_is_shown(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, small_spec(1))
    shown = []
    for size, noise in ((1, 0.1), (2, 0.01), (4, 0.1), (8, 0.4)):
        kept.save(size=size, noise=noise)
        shown.append({picture.batch_size for picture in load_pictures(kept.folder)})
    assert shown == [{1}, {1}, {1}, {8}]


def test_pictures_of_another_run_are_thrown_away_and_nothing_else(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, small_spec(1))
    kept.save("fake", run="yesterday")
    (kept.folder / "pictures" / "holiday.png").write_bytes(b"mine")
    kept.save("onnxruntime-cpu", run="today")
    assert {picture.variant for picture in load_pictures(kept.folder)} == {"onnxruntime-cpu:fp32"}
    assert not list((kept.folder / "pictures").glob("fake*"))
    assert (kept.folder / "pictures" / "holiday.png").exists()


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, small_spec(1))
    kept.save("fake", run="yesterday")
    elsewhere = (kept.folder / "pictures").rename(tmp_path / "elsewhere")
    (kept.folder / "pictures").symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    with pytest.raises(OutputError, match="is a link"):
        kept.save("fake", run="today")
    assert sorted(elsewhere.iterdir()) == before


def test_without_pictures_there_are_none(tmp_path: Path) -> None:
    assert load_pictures(tmp_path) == ()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"variants": {"a": {"pictures": [{}]}}}'])
def test_a_damaged_index_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "index.json").write_text(text)
    with pytest.raises(ResultsError, match="damaged"):
        load_pictures(tmp_path)


def test_a_damaged_index_is_replaced_by_the_next_bench(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, small_spec(1))
    (kept.folder / "pictures").mkdir(parents=True)
    (kept.folder / "pictures" / "index.json").write_text("{")
    kept.save()
    assert len(load_pictures(kept.folder)) == 3


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "a/b.png", ".."])
def test_an_index_from_elsewhere_leads_to_no_other_file(tmp_path: Path, name: str) -> None:
    kept = kept_in(tmp_path, small_spec(1))
    kept.save(run="yesterday")
    victim = tmp_path / "secret.png"
    shutil.copy(next((kept.folder / "pictures").glob("input-*.png")), victim)
    file = kept.folder / "pictures" / "index.json"
    index = json.loads(file.read_text())
    index["variants"]["fake:fp32"]["pictures"][0]["image"] = name
    file.write_text(json.dumps(index))
    with pytest.raises(ResultsError, match="not a plain file name"):
        load_pictures(kept.folder)
    kept.save(run="today")
    assert victim.exists()


def test_a_missing_picture_is_told(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, small_spec(1))
    kept.save()
    next((kept.folder / "pictures").glob("*-mask.png")).unlink()
    with pytest.raises(ResultsError, match="damaged"):
        load_pictures(kept.folder)


def test_an_unwritable_folder_is_an_output_error(tmp_path: Path) -> None:
    kept = kept_in(tmp_path, small_spec(1))
    kept.folder.mkdir()
    (kept.folder / "pictures").write_text("a file is in the way")
    with pytest.raises(OutputError):
        kept.save()
