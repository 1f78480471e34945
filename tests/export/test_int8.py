"""The int8 file: made once, again when something changed, and used by the bench."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import segx
from segx.errors import ArtifactError, UsageError
from segx.export import export_int8, read_artifact
from segx.export.artifact import cached, manifest_path
from segx.export.int8 import Stage, _made_by, default_int8_output, existing_int8
from segx.masks.agreement import compare_masks
from segx.masks.image_io import write_png
from segx.model.spec import ModelSpec
from segx.reporting.export_document import int8_text
from tests.benching import quick_bench

LENIENT = {"min_iou": 0.0, "threads": 2}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    choose = np.random.default_rng(0)
    for number in range(6):
        write_png(tmp_path / "photos" / f"{number}.png", choose.integers(0, 256, size=(40, 40), dtype=np.uint8))
    return tmp_path / "photos"


def test_nothing_is_made_again_while_nothing_changed(tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    def export(**changes: object) -> segx.export.Int8Export:
        options = {"engine": "onnxruntime", "calibration": photos, "output": tmp_path / "out.onnx", **LENIENT}
        return export_int8(tiny_onnx, **{**options, **changes})

    first = export()
    assert first.rebuilt
    assert read_artifact(first.path).precision == "int8"
    again = export()
    assert not again.rebuilt
    assert again.stages == first.stages
    assert export(min_iou=0.01).rebuilt  # another gate
    write_png(photos / "7.png", np.zeros((8, 8), np.uint8))
    assert export(min_iou=0.01).rebuilt  # another image
    first.path.write_bytes(b"damaged")
    assert export(min_iou=0.01).rebuilt
    assert export(min_iou=0.01, force=True).rebuilt
    assert "for onnxruntime" in int8_text(again)


def test_an_existing_int8_file_is_reused_only_if_it_was_made_from_this_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path("model.onnx")
    source.write_bytes(b"weights")
    path = default_int8_output(source, "openvino")
    assert existing_int8(source, "openvino") is None
    same = np.zeros((1, 2, 2), np.uint8)
    stage = Stage((), 1, compare_masks(same, same, ModelSpec(height=2, width=2), ["a"]))

    def make(temporary: Path) -> tuple[Stage, ...]:
        temporary.write_bytes(b"in 8 bits")
        return (stage,)

    cached(path, {**_made_by(source, "openvino"), "images_sha256": "any"}, make, proof=tuple[Stage, ...])
    found = existing_int8(source, "openvino")
    assert found
    assert (found.path, found.stages, found.rebuilt) == (path, (stage,), False)
    assert existing_int8(source, "onnxruntime") is None
    path.write_bytes(b"tampered with")
    assert existing_int8(source, "openvino") is None
    path.write_bytes(b"in 8 bits")
    assert existing_int8(source, "openvino")
    manifest_path(path).write_text("{}")
    assert existing_int8(source, "openvino") is None
    source.write_bytes(b"other weights")
    assert existing_int8(source, "openvino") is None


def test_one_image_cannot_both_calibrate_and_judge(tiny_onnx: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "one" / "a.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UsageError, match="one image"):
        export_int8(tiny_onnx, engine="onnxruntime", calibration=tmp_path / "one", output=tmp_path / "out.onnx")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., segx.results.types.Results]:
    monkeypatch.chdir(tmp_path)
    return lambda **options: quick_bench(**{"num_images": 2, "batch_sizes": (1,), **options})


def test_the_bench_makes_the_int8_file_that_a_runtime_takes(
    bench: Callable[..., segx.results.types.Results], tiny_onnx: Path, photos: Path
) -> None:
    """An untrained model's masks are all noise: judged by no gate."""
    results = bench(
        model=tiny_onnx, runtimes=["onnxruntime-cpu"], precisions=("fp32", "int8"), calibration=photos, min_iou=0.0
    )
    by_precision = {cell.precision: cell for cell in results.cells}
    assert list(results.model.derived) == [f"{tiny_onnx.stem}-int8-onnxruntime.onnx"]
    assert by_precision["int8"].parity
    assert by_precision["int8"].parity.max_abs_diff > by_precision["fp32"].parity.max_abs_diff


def test_what_cannot_be_quantised_is_a_row_and_the_others_go_on(
    bench: Callable[..., segx.results.types.Results], plain_onnx: Path, script: Callable[..., None]
) -> None:
    script()
    results = bench(model=plain_onnx, runtimes=["fake", "onnxruntime-cpu"], precisions=("fp32", "int8"))
    rows = {(cell.runtime, cell.precision): cell.status for cell in results.cells}
    assert rows["fake", "fp32"] == rows["onnxruntime-cpu", "fp32"] == "ok"
    assert len(rows) == 4


def test_an_int8_file_is_no_start_for_a_bench(
    bench: Callable[..., segx.results.types.Results], tiny_onnx: Path, photos: Path, tmp_path: Path
) -> None:
    export_int8(tiny_onnx, engine="onnxruntime", calibration=photos, output=tmp_path / "int8.onnx", **LENIENT)
    with pytest.raises(ArtifactError, match="is int8"):
        bench(model=tmp_path / "int8.onnx", runtimes=["onnxruntime-cpu"])
