"""The int8 file: made once, again when something changed, and used by the bench."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import segx
from segx.errors import ArtifactError, UsageError
from segx.export import export_int8, read_artifact
from segx.masks.image_io import write_png
from segx.reporting.export_document import int8_document
from segx.reporting.text import to_text
from tests.benching import quick_bench

LENIENT = {"min_iou_worst": 0.0, "min_iou_mean": 0.0, "threads": 2}


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
    assert export(min_iou_mean=0.01).rebuilt  # another gate
    write_png(photos / "7.png", np.zeros((8, 8), np.uint8))
    assert export(min_iou_mean=0.01).rebuilt  # another image
    first.path.write_bytes(b"damaged")
    assert export(min_iou_mean=0.01).rebuilt
    assert export(min_iou_mean=0.01, force=True).rebuilt
    assert "for onnxruntime" in to_text(int8_document(again))


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
