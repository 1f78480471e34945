"""What runs where that is left to segx."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from segx.errors import ResultsError, RuntimeUnavailable, UsageError
from segx.export.variants import ModelFiles
from segx.model.spec import ModelSpec
from segx.predict import choose as module
from segx.predict.choose import Choice, choose, fastest_measured, probe_variants
from segx.predict.options import RuntimeRequest
from segx.results.provenance import describe_machine
from segx.results.store import remember_bench, to_json
from segx.results.types import Cell, DerivedFile, ModelFacts
from segx.runtimes import Precision, Variant
from segx.system import machine
from segx.system.files import sha256_of
from segx.system.processes import Workers
from segx.system.progress import SILENT, Progress, Told
from tests import builders

WEIGHTS = "ab" * 32
MODEL = ModelFiles(spec=ModelSpec(), weights_sha256=WEIGHTS, checkpoint=Path("w.pth"))


def cell(runtime: str, precision: Precision, batch_size: int, seconds: float, *, status: str = "ok") -> Cell:
    return Cell(
        runtime=runtime,
        precision=precision,
        batch_size=batch_size,
        status=status,  # type: ignore[arg-type]
        samples_s=(seconds * batch_size,) * 3,
    )


CELLS = (
    cell("pytorch-cpu", "fp32", 1, 0.4),
    cell("onnxruntime-cpu", "fp32", 1, 0.2),
    cell("onnxruntime-cpu", "fp32", 8, 0.15),
    cell("openvino-cpu", "fp32", 4, 0.1),
    cell("openvino-cpu", "int8", 2, 0.05),
    cell("openvino-cpu", "int8", 1, 0.06),
    cell("onnxruntime-cpu", "int8", 1, 0.01, status="parity broken"),
)


def model_facts(folder: Path, **changes: object) -> ModelFacts:
    """Describe a model whose files are in a folder."""
    files = {form: folder / f"w-{form}.onnx" for form in ("onnx", "openvino", "int8-onnxruntime", "int8-openvino")}
    for form, path in files.items():
        path.write_text(form)
    made = {form: DerivedFile(path=str(path), sha256=sha256_of(path)) for form, path in files.items()}
    exported = made.pop("onnx")
    facts = ModelFacts(
        spec=ModelSpec(),
        weights_sha256=WEIGHTS,
        checkpoint=None,
        onnx=exported.path,
        onnx_sha256=exported.sha256,
        derived=made,
    )
    return dataclasses.replace(facts, **changes)  # type: ignore[arg-type]


def write_results(folder: Path, *cells: Cell, age_s: float = 0.0, **changes: object) -> None:
    folder.mkdir(parents=True)
    results = builders.results(*cells, **{"machine": describe_machine(), "model": model_facts(folder), **changes})
    file = folder / "results.json"
    file.write_text(to_json(results))
    stamp = file.stat().st_mtime - age_s
    os.utime(file, (stamp, stamp))


def no_probe(variants: Sequence[Variant], sizes: Sequence[int]) -> list[Choice]:
    raise AssertionError(f"{variants} at {sizes} need no probe")


def chosen(folder: Path, asked: RuntimeRequest, files: ModelFiles = MODEL) -> Choice:
    return choose(asked, files, folder=folder, threads=2, probe=no_probe)


@pytest.mark.parametrize(
    ("asked", "variant", "batch_size"),
    [
        (RuntimeRequest(), "openvino-cpu:int8", 2),
        (RuntimeRequest(precision="fp32"), "openvino-cpu:fp32", 4),
        (RuntimeRequest(batch_size=1), "openvino-cpu:int8", 1),
        (RuntimeRequest("onnxruntime-cpu"), "onnxruntime-cpu:fp32", 8),
        (RuntimeRequest("openvino-cpu", "int8"), "openvino-cpu:int8", 2),
        (RuntimeRequest("onnxruntime-cpu", "int8"), "onnxruntime-cpu:int8", 1),  # as named, though its masks differ
        (RuntimeRequest("onnxruntime-cpu", batch_size=3), "onnxruntime-cpu:fp32", 3),
        (RuntimeRequest("pytorch-cpu", "bf16"), "pytorch-cpu:bf16", 1),  # not measured: one image at a time
    ],
)
def test_the_fastest_that_was_measured_and_met_its_gate(
    tmp_path: Path, asked: RuntimeRequest, variant: str, batch_size: int
) -> None:
    write_results(tmp_path / "bench-1", *CELLS)
    choice = chosen(tmp_path, asked)
    assert (str(choice.variant), choice.batch_size) == (variant, batch_size)


def test_a_browser_is_not_chosen_even_if_nothing_else_was_measured(tmp_path: Path) -> None:
    write_results(tmp_path / "bench-1", cell("onnxruntime-web", "fp32", 1, 0.01))
    with pytest.raises(AssertionError, match="need no probe"):
        chosen(tmp_path, RuntimeRequest())


def test_masks_can_be_required_of_what_is_chosen(tmp_path: Path) -> None:
    same, edges = builders.parity(), builders.parity(flipped_pixels=50, worst_iou=0.999)
    slow = dataclasses.replace(cell("onnxruntime-cpu", "fp32", 1, 0.2), parity=same)
    fast = dataclasses.replace(cell("openvino-cpu", "int8", 1, 0.05), parity=edges)
    write_results(tmp_path / "bench-1", slow, fast, cell("openvino-cpu", "fp32", 1, 0.01))
    assert str(chosen(tmp_path, RuntimeRequest(require="edges")).variant) == "openvino-cpu:int8"
    assert str(chosen(tmp_path, RuntimeRequest(require="noise")).variant) == "onnxruntime-cpu:fp32"
    assert str(chosen(tmp_path, RuntimeRequest(require="identical")).variant) == "onnxruntime-cpu:fp32"


def test_what_a_bench_requires_of_masks_holds_for_auto(tmp_path: Path) -> None:
    edges = builders.parity(flipped_pixels=50, worst_iou=0.999)
    slow = dataclasses.replace(cell("onnxruntime-cpu", "fp32", 1, 0.2), parity=builders.parity())
    fast = dataclasses.replace(cell("openvino-cpu", "int8", 4, 0.05), parity=edges)
    options = dataclasses.replace(builders.results(slow, fast).options, require="identical")
    write_results(tmp_path / "bench-1", slow, fast, options=options)
    assert str(chosen(tmp_path, RuntimeRequest()).variant) == "onnxruntime-cpu:fp32"
    assert str(chosen(tmp_path, RuntimeRequest(require="edges")).variant) == "openvino-cpu:int8"
    assert chosen(tmp_path, RuntimeRequest("openvino-cpu", "int8")).batch_size == 4


def test_without_a_bench_nothing_meets_a_requirement_on_masks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no benchmark of these weights") as caught:
        chosen(tmp_path, RuntimeRequest(require="identical"))
    assert "segx bench" in caught.value.hint


def test_the_reason_names_the_bench_and_its_figure(tmp_path: Path) -> None:
    write_results(tmp_path / "bench-1", *CELLS)
    expected = "the fastest in bench-1, 20 images/s at batch 2; masks: not judged"
    assert chosen(tmp_path, RuntimeRequest()).reason == expected


def test_the_reason_says_how_the_masks_are(tmp_path: Path) -> None:
    changed = builders.parity(flipped_pixels=50, worst_iou=0.999)
    write_results(tmp_path / "bench-1", dataclasses.replace(cell("openvino-cpu", "int8", 1, 0.05), parity=changed))
    assert chosen(tmp_path, RuntimeRequest()).reason.endswith(f"masks: edges only (50 of {changed.pixels} pixels)")


@pytest.mark.parametrize(
    ("asked", "fixed", "reason"),
    [
        (RuntimeRequest("pytorch-cpu", batch_size=3), None, "as requested"),
        (RuntimeRequest("pytorch-cpu"), None, "as requested; one image at a time, as no bench says what is faster"),
        (RuntimeRequest("pytorch-cpu"), 4, "as requested; the file takes only batches of 4"),
        (RuntimeRequest("pytorch-cpu", batch_size=4), 4, "as requested"),
        (RuntimeRequest(precision="int8", batch_size=4), None, "the only one here without PyTorch"),
    ],
)
def test_what_was_not_requested_is_not_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: RuntimeRequest, fixed: int | None, reason: str
) -> None:
    monkeypatch.setattr(module, "candidates", lambda *_: [Variant("openvino-cpu", "int8")])
    assert chosen(tmp_path, asked, dataclasses.replace(MODEL, batch_size=fixed)).reason == reason


def test_the_very_file_that_was_measured_is_taken(tmp_path: Path) -> None:
    write_results(tmp_path / "bench-1", *CELLS)
    assert chosen(tmp_path, RuntimeRequest()).file == tmp_path / "bench-1" / "w-int8-openvino.onnx"
    assert chosen(tmp_path, RuntimeRequest("pytorch-cpu")).file == MODEL.checkpoint
    assert chosen(tmp_path, RuntimeRequest("onnxruntime-cpu")).file == tmp_path / "bench-1" / "w-onnx.onnx"


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("made anew")], ids=["gone", "changed"])
def test_a_file_that_is_not_the_measured_one_is_passed_over_and_said(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    write_results(tmp_path / "bench-1", *CELLS)
    change(tmp_path / "bench-1" / "w-int8-openvino.onnx")
    said: list[str] = []
    choice = choose(RuntimeRequest(), MODEL, folder=tmp_path, threads=2, probe=no_probe, warn=said.append)
    assert str(choice.variant) == "openvino-cpu:fp32"
    assert "bench-1 measured openvino-cpu:int8 with a file that is gone or has changed" in said[0]


def test_a_bench_in_another_folder_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "elsewhere", *CELLS)
    remember_bench(tmp_path / "elsewhere")
    assert str(chosen(tmp_path / "artifacts", RuntimeRequest()).variant) == "openvino-cpu:int8"


def test_the_bench_that_is_asked_for_is_the_only_one(tmp_path: Path) -> None:
    write_results(tmp_path / "bench-1", cell("onnxruntime-cpu", "fp32", 1, 0.2), age_s=100)
    write_results(tmp_path / "bench-2", *CELLS)
    assert str(chosen(tmp_path, RuntimeRequest(bench=tmp_path / "bench-1")).variant) == "onnxruntime-cpu:fp32"
    with pytest.raises(UsageError, match=r"nothing in .*bench-1 fits"):
        chosen(tmp_path, RuntimeRequest(bench=tmp_path / "bench-1", precision="int8"))
    named = RuntimeRequest("onnxruntime-cpu", batch_size=8, bench=tmp_path / "bench-2")
    assert chosen(tmp_path, named).file == tmp_path / "bench-2" / "w-onnx.onnx"
    with pytest.raises(ResultsError):
        chosen(tmp_path, RuntimeRequest(bench=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"weights_sha256": "00" * 32}, "other weights"),
        ({"spec": ModelSpec(height=512)}, "another model"),
        ({"spec": ModelSpec(mean=(0.5,))}, r"images prepared otherwise \(gray \[0, 1\], mean 0.5; now"),
    ],
)
def test_a_bench_of_something_else_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], obstacle: str
) -> None:
    write_results(tmp_path / "bench-1", *CELLS)
    facts = dataclasses.replace(builders.results().model, **changes)  # type: ignore[arg-type]
    write_results(tmp_path / "other", *CELLS, model=facts)
    with pytest.raises(UsageError, match=obstacle):
        chosen(tmp_path, RuntimeRequest(bench=tmp_path / "other"))


def test_a_bench_whose_images_were_prepared_otherwise_is_a_warning(tmp_path: Path) -> None:
    """Once, and not where exports have told it already."""
    for name in ("bench-1", "bench-2"):
        write_results(tmp_path / name, *CELLS, model=builders.results().model)
    said: list[str] = []
    other = dataclasses.replace(MODEL, spec=ModelSpec(mean=(0.5,), std=(0.2,)))
    assert fastest_measured(RuntimeRequest(), other, folder=tmp_path, threads=2, warn=said.append) is None
    told = dataclasses.replace(other, other_pixels=(ModelSpec().pixels,))
    assert fastest_measured(RuntimeRequest(), told, folder=tmp_path, threads=2, warn=said.append) is None
    assert len(said) == 1
    assert "images prepared otherwise (gray [0, 1], no mean/std; now gray [0, 1], mean 0.5 std 0.2)" in said[0]


def test_the_newest_bench_of_this_model_on_this_machine_counts(tmp_path: Path) -> None:
    here = describe_machine()
    write_results(tmp_path / "bench-1", cell("onnxruntime-cpu", "fp32", 1, 0.5), age_s=100)
    write_results(tmp_path / "bench-2", cell("pytorch-cpu", "fp32", 1, 0.4), age_s=50)
    other = {
        "bench-3": {"machine": dataclasses.replace(here, cpu="another")},
        "bench-4": {"machine": dataclasses.replace(here, cores_usable=999)},
        "bench-5": {
            "model": ModelFacts(
                spec=ModelSpec(), weights_sha256="00" * 32, checkpoint=None, onnx=None, onnx_sha256=None
            )
        },
        "bench-6": {
            "model": ModelFacts(
                spec=ModelSpec(height=512), weights_sha256=WEIGHTS, checkpoint=None, onnx=None, onnx_sha256=None
            )
        },
    }
    for name, changes in other.items():
        write_results(tmp_path / name, *CELLS, **changes)
    (tmp_path / "bench-7").mkdir()
    (tmp_path / "bench-7" / "results.json").write_text("{")
    write_results(tmp_path / "bench-8", cell("openvino-cpu", "fp32", 1, 0.1, status="parity broken"))
    assert str(chosen(tmp_path, RuntimeRequest()).variant) == "pytorch-cpu:fp32"
    only_exported = dataclasses.replace(MODEL, checkpoint=None, onnx=Path("w.onnx"))
    assert str(chosen(tmp_path, RuntimeRequest(), only_exported).variant) == "onnxruntime-cpu:fp32"
    assert fastest_measured(RuntimeRequest(), MODEL, folder=tmp_path, threads=3) is None


def test_another_threshold_costs_no_time_and_changes_no_choice(tmp_path: Path) -> None:
    write_results(tmp_path / "bench-1", *CELLS)
    files = dataclasses.replace(MODEL, spec=ModelSpec(threshold=0.3))
    assert str(chosen(tmp_path, RuntimeRequest(), files).variant) == "openvino-cpu:int8"


def test_without_a_bench_a_probe_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_problem", lambda: "none")
    asked: list[tuple[list[str], tuple[int, ...]]] = []

    def probe(variants: Sequence[Variant], sizes: Sequence[int]) -> list[Choice]:
        asked.append(([str(variant) for variant in variants], tuple(sizes)))
        return [
            Choice(variant, sizes[0], images_per_s=rate)
            for variant, rate in zip(variants, (3.0, 8.0, 5.0), strict=False)
        ]

    choice = choose(RuntimeRequest(), MODEL, folder=tmp_path, threads=2, probe=probe)
    assert asked == [
        (["onnxruntime-cpu:fp32", "openvino-cpu:fp32"], (1,)),  # the throughput mode takes several images
    ]
    assert str(choice.variant) == "openvino-cpu:fp32"
    assert "short probe, 8 images/s" in choice.reason


def test_on_a_gpu_its_runtimes_are_probed_at_several_batch_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cuda_problem", lambda: None)
    asked: list[tuple[list[str], tuple[int, ...]]] = []

    def probe(variants: Sequence[Variant], sizes: Sequence[int]) -> list[Choice]:
        asked.append(([str(variant) for variant in variants], tuple(sizes)))
        return [Choice(variants[0], size, images_per_s=float(size)) for size in sizes]

    assert choose(RuntimeRequest(), MODEL, folder=tmp_path, threads=2, probe=probe).batch_size == 16
    assert choose(RuntimeRequest("tensorrt"), MODEL, folder=tmp_path, threads=2, probe=probe).batch_size == 16
    assert asked == [(["onnxruntime-cuda:fp32"], (1, 4, 16)), (["tensorrt:fp32"], (1, 4, 16))]


@pytest.mark.parametrize("wrong", [{"batch_size": 1.5}, {"batch_size": 0}, {"threads": "2"}])
def test_numbers_of_images_and_threads_are_whole(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is too small or not whole"):
        RuntimeRequest("onnxruntime-cpu", **wrong)


def test_a_precision_that_no_runtime_without_pytorch_has_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cuda_problem", lambda: "none")
    with pytest.raises(RuntimeUnavailable, match="tf32"):
        chosen(tmp_path, RuntimeRequest(precision="tf32"))


def run_probe(variants: Sequence[Variant], progress: Progress = SILENT) -> list[Choice]:
    return probe_variants(
        Workers(threads=1),
        variants,
        (1, 4),
        spec=ModelSpec(height=16, width=16),
        file_for=lambda _: Path("none"),
        threads=1,
        progress=progress,
    )


def test_a_probe_measures_what_the_runtime_takes(script: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIN_PROBE_S", 0.0)
    script(seconds_per_call=0.02, seconds_per_image=0.01)
    one, four = run_probe([Variant("fake")])
    assert (one.batch_size, four.batch_size) == (1, 4)
    assert 10 < one.images_per_s <= 1 / 0.03 + 0.1
    assert 20 < four.images_per_s <= 4 / 0.06 + 0.1


def test_a_runtime_that_does_not_work_is_left_out_and_none_is_an_error(script: Callable[..., None]) -> None:
    script(unavailable="no such device")
    told: list[str] = []
    with pytest.raises(RuntimeUnavailable, match="no such device"):
        run_probe([Variant("fake")], Told(told.append))
    assert told == ["trying fake:fp32", "fake:fp32: no such device"]
