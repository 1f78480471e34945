"""The bench from end to end, with the scripted runtime and ONNX Runtime on a trivial model."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

import segx
from segx.analysis.figures import quality_of, seconds_for, verdict_of, versus_batch_1
from segx.analysis.outliers import find_outliers
from segx.bench import api, session
from segx.bench.cell import CellRun
from segx.bench.sampling import run_rounds
from segx.bench.worker import CellWorkers
from segx.errors import ArtifactError, ExportError, ImageError, NotComparable, OutputError, ResultsError, UsageError
from segx.masks.image_io import write_png
from segx.predict.pipeline import Pipeline
from segx.results.store import load_results
from segx.results.types import Results
from segx.system.processes import Call, Worker
from segx.system.progress import Progress, Told
from tests.forms import to_markdown, to_text, with_details

Script = Callable[..., None]


def statuses(results: Results) -> list[tuple[str, int | None, str]]:
    return [(cell.runtime, cell.batch_size, cell.status) for cell in results.cells]


def test_every_cell_is_measured_and_agrees(bench: Callable[..., Results], script: Script) -> None:
    script()
    results = bench(runtimes=["fake", "onnxruntime-cpu"], batch_sizes=(1, 3))
    assert statuses(results) == [
        ("fake", 1, "ok"),
        ("onnxruntime-cpu", 1, "ok"),
        ("fake", 3, "ok"),
        ("onnxruntime-cpu", 3, "ok"),
    ]
    for cell in results.cells:
        assert cell.parity
        assert cell.parity.flipped_pixels == 0
        assert cell.parity.worst_iou == 1.0
    assert results.complete
    assert results.reference == "fake:fp32"


def test_a_reference_that_runs_a_derived_file_has_it(bench: Callable[..., Results]) -> None:
    """Without a checkpoint the reference is the first runtime of the exported file."""
    results = bench(runtimes=["openvino-cpu", "onnxruntime-cpu"], batch_sizes=(1,))
    assert results.reference == "openvino-cpu:fp32"
    assert statuses(results) == [("openvino-cpu", 1, "ok"), ("onnxruntime-cpu", 1, "ok")]


@pytest.mark.parametrize(
    ("flags", "precisions", "expected"),
    [
        (("avx2",), ("auto",), {"pytorch-cpu": ["fp32"], "fake": ["fp32"]}),
        (("avx512_bf16", "avx512_vnni"), ("auto",), {"pytorch-cpu": ["fp32", "bf16"], "fake": ["fp32"]}),
        (("amx_bf16", "amx_fp16"), ("native",), {"pytorch-cpu": ["fp32", "fp16", "bf16"], "fake": ["fp32"]}),
        (("avx2",), ("bf16", "native"), {"pytorch-cpu": ["bf16", "fp32"], "fake": ["fp32"]}),
        (("avx512_bf16",), ("fp32",), {"pytorch-cpu": ["fp32"], "fake": ["fp32"]}),
    ],
)
def test_by_default_each_runtime_computes_in_what_the_machine_has_instructions_for(
    bench: Callable[..., Results],
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    precisions: tuple[str, ...],
    expected: dict[str, list[str]],
) -> None:
    script()
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: flags)
    # No checkpoint is given, so that PyTorch's rows only say so.
    results = bench(runtimes=["pytorch-cpu", "fake"], precisions=precisions, batch_sizes=(1,))
    found: dict[str, list[str]] = {}
    for cell in results.cells:
        found.setdefault(cell.runtime, []).append(cell.precision)
    assert {name: sorted(each) for name, each in found.items()} == {n: sorted(each) for n, each in expected.items()}


@pytest.mark.parametrize("precisions", [("native", "fp61"), ("fp61",), ("fp32", "fp61")])
def test_an_unknown_precision_is_wrong_usage(bench: Callable[..., Results], precisions: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="unknown precision fp61"):
        bench(runtimes=["fake", "onnxruntime-cpu:fp32"], precisions=precisions)


@pytest.mark.parametrize(("given", "expected"), [(12, ["fp32", "int8"]), (1, ["fp32"]), (0, ["fp32"])])
def test_int8_is_measured_by_default_if_there_are_images_to_calibrate_it_on(
    bench: Callable[..., Results],
    tiny_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: int,
    expected: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: ("avx2", "avx_vnni"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(given):
        write_png(photos / f"{index}.png", np.random.default_rng(index).integers(0, 255, (32, 32), dtype=np.uint8))
    images = {"images": photos} if given else {}
    options = {"model": tiny_onnx, "runtimes": ["onnxruntime-cpu"], "precisions": ("auto",), "batch_sizes": (1,)}
    results = bench(**options, **images, min_iou=0.0)
    assert [cell.precision for cell in results.cells] == expected
    assert all(cell.measured for cell in results.cells)


def test_int8_that_nobody_asked_for_is_given_up_after_a_while(
    real_bench: Callable[..., Results], tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: ("avx2", "avx_vnni"))
    monkeypatch.setattr("segx.bench.api._AUTO_INT8_S", 0.05)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(6):
        write_png(photos / f"{index}.png", np.full((32, 32), 40 * index, np.uint8))
    options = {"model": tiny_onnx, "runtimes": ["onnxruntime-cpu"], "precisions": ("auto",), "batch_sizes": (1,)}
    results = real_bench(**options, images=photos)
    (late,) = [cell for cell in results.cells if cell.precision == "int8"]
    assert late.reason == "preparing int8 for ONNX Runtime takes longer than 0.05 s"
    assert late.remedy == "request it with --precision int8"
    assert not [path for path in (tmp_path / "artifacts").iterdir() if "int8" in path.name]


def test_a_runtime_of_several_images_at_a_time_is_no_choice_at_batch_1(bench: Callable[..., Results]) -> None:
    both = bench(runtimes=["openvino-cpu-throughput", "onnxruntime-cpu"], precisions=("fp32",), batch_sizes=(1, 2))
    assert statuses(both) == [
        ("onnxruntime-cpu", 1, "ok"),
        ("openvino-cpu-throughput", 2, "ok"),
        ("onnxruntime-cpu", 2, "ok"),
    ]
    alone = bench(runtimes=["openvino-cpu-throughput"], precisions=("fp32",), batch_sizes=(1,))
    assert statuses(alone) == [("openvino-cpu-throughput", None, "unavailable")]
    assert alone.cells[0].remedy == "use a batch size of 2 or more"


def test_threads_are_equal_and_in_force(bench: Callable[..., Results], script: Script) -> None:
    script()
    results = bench(runtimes=["fake", "onnxruntime-cpu"], threads=1)
    assert {cell.facts["threads"] for cell in results.cells} == {"1"}


def test_a_full_pass_is_run_even_when_the_minima_are_lower(bench: Callable[..., Results], script: Script) -> None:
    script()
    results = bench(batch_sizes=(1, 3), num_images=4, min_runs=1)
    assert [seconds_for(cell, 4)[1] for cell in results.cells] == [True, True]
    assert [len(cell.samples_s) >= runs for cell, runs in zip(results.cells, (4, 2), strict=True)] == [True, True]
    # A last batch that the images do not fill is filled from the first ones; those are judged once.
    assert [cell.parity.images for cell in results.cells if cell.parity] == [4, 4]


def test_the_budget_stops_early_and_the_time_is_a_projection(bench: Callable[..., Results], script: Script) -> None:
    script(seconds_per_call=0.02)
    results = bench(batch_sizes=(1,), num_images=64, budget_s=0.05)
    (cell,) = results.cells
    assert cell.stopped == "budget spent"
    assert len(cell.samples_s) < 64
    seconds, measured = seconds_for(cell, 64)
    assert not measured
    assert seconds == pytest.approx(64 * cell.median_s)


def test_out_of_memory_is_a_row_and_the_sweep_goes_on(bench: Callable[..., Results], script: Script) -> None:
    script(out_of_memory_from=2)
    results = bench(runtimes=["fake", "onnxruntime-cpu"], batch_sizes=(1, 2, 4))
    assert [s for s in statuses(results) if s[0] == "fake"] == [
        ("fake", 1, "ok"),
        ("fake", 2, "out of memory"),
        ("fake", 4, "out of memory"),
    ]
    assert all(cell.status == "ok" for cell in results.cells if cell.runtime == "onnxruntime-cpu")
    assert results.cells[2].remedy


def test_a_memory_limit_turns_a_real_allocation_into_a_row(real_bench: Callable[..., Results], script: Script) -> None:
    script(bytes_per_image=200_000_000)
    said: list[str] = []
    results = real_bench(
        runtimes=["fake", "onnxruntime-cpu"],
        batch_sizes=(1, 4),
        num_images=1,
        memory_limit_bytes=500_000_000,
        progress=Told(said.append),
    )
    assert [cell.status for cell in results.cells] == ["ok", "ok", "out of memory", "ok"]
    assert not [line for line in said if "again, alone" in line]


def test_the_reference_has_no_memory_limit(real_bench: Callable[..., Results], script: Script) -> None:
    """Without it nothing could be judged, and the bench would end."""
    script(bytes_per_image=200_000_000)
    results = real_bench(batch_sizes=(1,), num_images=1, memory_limit_bytes=100_000_000)
    assert [cell.status for cell in results.cells] == ["out of memory"]


@pytest.mark.serial
def test_memory_is_measured(real_bench: Callable[..., Results], script: Script) -> None:
    script(bytes_per_image=100_000_000)
    results = real_bench(batch_sizes=(1, 3), num_images=3)
    needed = [cell.host_memory.needed_bytes for cell in results.cells if cell.host_memory]
    assert needed == [pytest.approx(100e6, rel=0.05), pytest.approx(300e6, rel=0.05)]


def test_a_killed_worker_is_a_row_that_names_the_signal(real_bench: Callable[..., Results], script: Script) -> None:
    script(killed_from=2)
    results = real_bench()
    assert [cell.status for cell in results.cells] == ["ok", "crashed"]
    assert "SIGKILL" in results.cells[1].reason


def test_a_hung_worker_is_given_up_on(real_bench: Callable[..., Results], script: Script) -> None:
    script(hangs_from=2)
    results = real_bench(timeout_s=3.0)
    assert [cell.status for cell in results.cells] == ["ok", "timed out"]
    assert "3 s" in results.cells[1].reason


def test_flipped_pixels_are_counted_and_break_parity(bench: Callable[..., Results], script: Script) -> None:
    script(flipped_pixels=7, flips_from=2)
    results = bench(num_images=2)
    good, bad = results.cells
    assert good.status == "ok"
    assert bad.status == "parity broken"
    assert bad.parity
    assert bad.parity.flipped_pixels == 14
    assert bad.measured


@pytest.mark.parametrize(
    ("gates", "status"),
    [
        ({"max_flips": 0.01, "min_iou": 0.5}, "ok"),
        ({"max_flips": 0.001, "min_iou": 0.5}, "parity broken"),
        ({"max_flips": 0.01, "min_iou": 0.999}, "parity broken"),
    ],
)
def test_the_users_gates_replace_those_of_the_precision(
    bench: Callable[..., Results], script: Script, gates: dict[str, float], status: str
) -> None:
    script(flipped_pixels=7, flips_from=3)  # of 1024; the reference's noise is measured with two images
    results = bench(num_images=2, batch_sizes=(1, 3), **gates)
    assert [cell.status for cell in results.cells] == ["ok", status]


def test_an_unavailable_runtime_is_one_row(bench: Callable[..., Results], script: Script) -> None:
    script(unavailable="the script forbids it")
    results = bench(runtimes=["onnxruntime-cpu", "fake"], batch_sizes=(1, 2, 4))
    rows = [cell for cell in results.cells if cell.runtime == "fake"]
    assert [(cell.batch_size, cell.status, cell.reason) for cell in rows] == [
        (None, "unavailable", "the script forbids it")
    ]


def test_a_checkpoint_runtime_without_a_checkpoint_says_so(bench: Callable[..., Results], script: Script) -> None:
    script()
    results = bench(runtimes=["fake", "pytorch-cpu"], precisions=("fp32",), batch_sizes=(1,))
    (row,) = [cell for cell in results.cells if cell.runtime == "pytorch-cpu"]
    assert row.status == "unavailable"
    assert "--weights" in row.remedy


def test_results_are_saved_after_every_cell_and_load_again(
    real_bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script(killed_from=2)
    folder = tmp_path / "new" / "folder"
    saved: list[Results] = []
    results = real_bench(output=folder, command="segx bench", on_results=lambda _: saved.append(load_results(folder)))
    assert [[cell.status for cell in each.cells] for each in saved] == [["ok"], ["ok", "crashed"], ["ok", "crashed"]]
    assert saved[-1] == results
    assert results.command == "segx bench"
    assert sorted(path.name for path in folder.iterdir()) == ["pictures", "results.json"]


def test_a_path_as_output_is_the_folder_of_the_results(plain_onnx: Path, script: Script, tmp_path: Path) -> None:
    script()
    sampling = segx.SamplingOptions(min_time_s=0.0, min_runs=1, max_time_s=0.0)
    results = segx.benchmark(
        model=plain_onnx,
        runtimes=["fake"],
        batch_sizes=(1,),
        data=segx.DataOptions(num_images=1),
        sampling=sampling,
        output=tmp_path / "out",
    )
    assert load_results(tmp_path / "out") == results
    assert (results.options.warmup, results.options.budget_s) == (sampling.warmup, sampling.budget_s)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker through /proc")
def test_a_kill_leaves_the_results_of_finished_cells_and_no_worker(plain_onnx: Path, tmp_path: Path) -> None:
    options = "--runtime fake --batch-size 1,2 --num-images 1 --warmup 0 --min-time 0 --max-time 0 --min-runs 1"
    command = [sys.executable, "-m", "segx", "bench", "--model", str(plain_onnx), *options.split()]
    command += ["--output", str(tmp_path / "out")]
    environment = {**os.environ, "SEGX_FAKE_SCRIPT": '{"hangs_from": 2}'}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "out" / "results.json").is_file)
        time.sleep(2.0)  # into the call that hangs
        workers = [Path(f"/proc/{pid}") for pid in descendants(process.pid)]
    finally:
        process.kill()
        process.wait()
    saved = load_results(tmp_path / "out")
    assert statuses(saved) == [("fake", 1, "ok")]
    assert not saved.complete
    assert len(workers) > 2  # the fork server and the resource tracker, too
    wait_for(lambda: not any(worker.exists() for worker in workers))


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [other for child in children for other in descendants(child)]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def test_identical_inputs_have_identical_digests(bench: Callable[..., Results], script: Script) -> None:
    script()
    first, again = bench(batch_sizes=(1,)), bench(batch_sizes=(2,))
    assert first.inputs.sha256 == again.inputs.sha256
    assert first.inputs.sha256 != bench(num_images=3).inputs.sha256


def test_an_unwritable_output_is_found_before_anything_is_measured(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        bench(output=tmp_path / "file" / "folder")


@pytest.mark.parametrize("name", ["table.csv", "report.html", "pictures/index.json"])
def test_files_that_stand_in_the_folder_are_not_replaced(
    bench: Callable[..., Results], script: Script, tmp_path: Path, name: str
) -> None:
    script()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("the user's")
    with pytest.raises(OutputError, match="already exists"):
        bench(output=tmp_path)
    assert (tmp_path / name).read_text() == "the user's"


def test_a_folder_serves_one_bench_at_a_time(bench: Callable[..., Results], script: Script, tmp_path: Path) -> None:
    script()

    def second(_: Results) -> None:
        for resume in (False, True):
            with pytest.raises(OutputError, match=f"in use by another run, process {os.getpid()}"):
                bench(output=tmp_path / "out", resume=resume)

    bench(output=tmp_path / "out", on_results=second)
    assert not (tmp_path / "out" / ".segx.lock").exists()


def test_a_model_that_is_replaced_meanwhile_is_not_measured(
    plain_onnx: Path, bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script()
    model = Path(shutil.copy(plain_onnx, tmp_path))

    def replace(_: Results) -> None:
        (tmp_path / "new").write_bytes(model.read_bytes() + b"\x00")
        (tmp_path / "new").replace(model)

    results = bench(model=model, batch_sizes=(1, 2), output=tmp_path / "out", on_results=replace)
    assert [cell.status for cell in results.cells] == ["ok", "failed"]
    assert "has changed since this run began" in results.cells[1].reason


def test_an_empty_output_is_not_the_current_folder(bench: Callable[..., Results], script: Script) -> None:
    script()
    with pytest.raises(UsageError, match="a path is empty"):
        bench(output="")


def test_a_failed_preparation_leaves_no_folder(bench: Callable[..., Results], script: Script, tmp_path: Path) -> None:
    script(unavailable="no")
    with pytest.raises(segx.SegxError):
        bench(output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_sizes": (0,)},
        {"batch_sizes": ()},
        {"batch_sizes": (1, 10**11)},
        {"warmup": -1},
        {"min_runs": 0},
        {"num_images": 0},
        {"runtimes": ["fakes"]},
        {"min_time_s": math.nan},
        {"max_time_s": math.inf},
        {"budget_s": math.nan},
        {"timeout_s": math.inf},
        {"min_iou": 1.5},
        {"max_flips": 1.5},
        {"max_loss": -1.0},
        {"precisions": ("tf32", "bf16")},
        {"require": "equal"},
        {"require": "identical", "scopes": ["pipeline"]},
    ],
)
def test_wrong_options_are_refused(bench: Callable[..., Results], script: Script, wrong: dict[str, Any]) -> None:
    script()
    with pytest.raises(UsageError):
        bench(**wrong)


@pytest.mark.parametrize(
    ("wrong", "told", "hint"),
    [
        ({"max_time_s": 1e70}, "max_time_s cannot be 1e+70", "give a number of at most 1e+60"),
        ({"memory_limit_bytes": 2e9}, "memory_limit_bytes cannot be 2000000000.0", "give a whole number"),
        ({"seed": object()}, "an option has a wrong type", "plain"),
    ],
)
def test_options_that_cannot_be_recorded_are_refused_in_plain_words(
    bench: Callable[..., Results], script: Script, wrong: dict[str, Any], told: str, hint: str
) -> None:
    script()
    with pytest.raises(UsageError) as caught:
        bench(**wrong)
    assert told in caught.value.message
    assert hint in caught.value.hint


def test_numbers_of_numpy_are_taken(bench: Callable[..., Results], script: Script, tmp_path: Path) -> None:
    script()
    found = bench(batch_sizes=np.arange(1, 3), threads=np.int64(1), output=tmp_path / "out")
    assert found.options.batch_sizes == (1, 2)
    assert load_results(tmp_path / "out").options.batch_sizes == (1, 2)


def test_single_values_and_generators_are_lists(bench: Callable[..., Results], script: Script) -> None:
    script()
    options = bench(runtimes="fake", precisions="fp32", scopes="forward", batch_sizes=(n for n in (1, 2))).options
    assert (options.runtimes, options.precisions, options.scopes) == (("fake",), ("fp32",), ("forward",))
    assert options.batch_sizes == (1, 2)


def test_other_weights_than_the_exported_files_are_refused(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script()
    (tmp_path / "other.pth").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="other weights"):
        bench(checkpoint=tmp_path / "other.pth")


def test_another_spec_than_the_exported_files_is_refused(bench: Callable[..., Results], script: Script) -> None:
    script()
    with pytest.raises(ArtifactError, match="without --input-size 64x64"):
        bench(spec=segx.ModelSpec(height=64, width=64))


def test_an_interrupted_run_is_resumed_without_repeating_anything(
    bench: Callable[..., Results], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    script()
    whole = {"batch_sizes": (1, 2, 3), "runtimes": ["fake", "onnxruntime-cpu"], "output": tmp_path / "out"}
    calls = 0
    really_run = session.run_rounds

    def third_time_interrupted(*arguments: Any, **keywords: Any) -> None:
        nonlocal calls
        calls += 1
        (interrupt if calls == 3 else really_run)(*arguments, **keywords)

    monkeypatch.setattr(session, "run_rounds", third_time_interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench(**whole)
    cut_off = load_results(tmp_path / "out")
    assert [cell.batch_size for cell in cut_off.cells] == [1, 1, 2, 2]
    assert cut_off.wall
    assert cut_off.wall.sampling == pytest.approx(sum(sum(cell.samples_s) for cell in cut_off.cells))
    resumed = bench(**whole, resume=True)
    assert resumed.wall
    assert resumed.wall.sampling == pytest.approx(sum(sum(cell.samples_s) for cell in resumed.cells))
    assert resumed.wall.total > cut_off.wall.total
    assert all(vars(resumed.wall)[part] >= seconds for part, seconds in vars(cut_off.wall).items())
    assert resumed.complete
    assert resumed.cells[:4] == cut_off.cells
    assert [cell.batch_size for cell in resumed.cells] == [1, 1, 2, 2, 3, 3]
    assert load_results(tmp_path / "out") == resumed


def test_what_an_interrupt_cuts_short_is_saved_together_once_its_workers_are_gone(
    bench: Callable[..., Results], script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[CellRun] = []

    def interrupted(runs: Sequence[CellRun], **_: Any) -> None:
        loaded.extend(runs)
        for run in runs:
            run.sample_round(0)
        raise KeyboardInterrupt

    def save(results: Results) -> None:
        saved.append([cell.stopped for cell in results.cells])
        assert not any(run._worker for run in loaded)

    saved: list[list[str]] = []
    script()
    monkeypatch.setattr(session, "run_rounds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench(runtimes=["fake", "onnxruntime-cpu"], batch_sizes=(1,), min_runs=9, on_results=save)
    assert saved == [["interrupted", "interrupted"]]


@pytest.mark.parametrize(("scope", "where"), [("forward", (Worker, "receive")), ("pipeline", (Pipeline, "run"))])
def test_a_finished_cell_that_is_interrupted_in_a_further_turn_keeps_its_times(
    real_bench: Callable[..., Results],
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scope: str,
    where: tuple[type, str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupted(runs: Sequence[CellRun], **_: Any) -> None:
        for run in runs:
            while not run.is_done():
                run.sample_round(0)
        with monkeypatch.context() as patches:
            patches.setattr(*where, interrupt)
            runs[1].sample_round(1)

    script()
    monkeypatch.setattr(session, "run_rounds", interrupted)
    options: dict[str, Any] = {"runtimes": ["fake", "onnxruntime-cpu"], "scopes": (scope,), "batch_sizes": (1,)}
    with pytest.raises(KeyboardInterrupt):
        real_bench(**options, output=tmp_path / "out")
    first, second = load_results(tmp_path / "out").cells
    assert (first.status, bool(first.parity), first.stopped) == ("ok", True, "not settled")
    assert (second.status, second.parity, second.stopped) == ("ok", None, "interrupted")
    assert second.samples_s


def test_a_resumed_run_measures_what_lacks_a_process(
    bench: Callable[..., Results], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = itertools.count()

    def interrupted_in_the_last_process(*arguments: Any, **keywords: Any) -> None:
        if next(rounds) == 3:
            raise KeyboardInterrupt
        run_rounds(*arguments, **keywords)

    script()
    monkeypatch.setattr(session, "run_rounds", interrupted_in_the_last_process)
    with pytest.raises(KeyboardInterrupt):
        bench(output=tmp_path / "out", processes=2)
    whole, half = load_results(tmp_path / "out").cells
    assert [turn.process for turn in half.rounds] == [0] * len(half.rounds)
    resumed = bench(output=tmp_path / "out", processes=2, resume=True)
    assert resumed.cells[0].samples_s == whole.samples_s
    assert {turn.process for turn in resumed.cells[1].rounds} == {0, 1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"min_runs": 2}, "min_runs: 1; now 2"),
        ({"num_images": 3}, "inputs"),
        ({"threads": 1}, "threads: 2; now 1"),
        ({"batch_sizes": (1, 3)}, "batch_sizes: 1, 2; now 1, 3"),
        ({"max_flips": 0.5}, "max_flips: none; now 0.5"),
    ],
)
def test_a_run_that_was_another_is_not_resumed(
    bench: Callable[..., Results], script: Script, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    script()
    bench(output=tmp_path / "out", threads=2)
    with pytest.raises(NotComparable, match=f"a different {told}"):
        bench(**{"threads": 2, **change}, output=tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("package_versions", lambda: {"openvino": "2"}), "a different openvino: 1; now 2"),
        (("package_versions", dict), "a different openvino: 1; now none"),
        (("platform.python_version", lambda: "4.0"), "a different Python: .*; now 4.0"),
        (("platform.release", lambda: "7.0"), "a different system: .*; now Linux 7.0"),
        (("variables", lambda: {"OMP_NUM_THREADS": "1"}), "a different variable OMP_NUM_THREADS: none; now 1"),
    ],
)
def test_a_run_in_another_environment_is_not_resumed(
    bench: Callable[..., Results],
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: tuple[str, Callable[[], Any]],
    message: str,
) -> None:
    script()
    monkeypatch.setattr("segx.system.machine.package_versions", lambda: {"openvino": "1"})
    monkeypatch.setattr("segx.system.machine.variables", dict)
    monkeypatch.setattr("segx.system.machine.git_commit", lambda _: "before")
    before = bench(output=tmp_path)
    monkeypatch.setattr("segx.system.machine.git_commit", lambda _: "now")
    assert bench(output=tmp_path, resume=True).cells == before.cells
    monkeypatch.setattr(f"segx.system.machine.{changed[0]}", changed[1])
    with pytest.raises(NotComparable, match=message):
        bench(output=tmp_path, resume=True)


def test_a_resumed_run_may_have_other_limits_and_tries_failed_cells_again(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script(out_of_memory_from=2)
    limits = {"threads": 2, "timeout_s": 30.0, "budget_s": 50.0, "memory_limit_bytes": 2**33}
    before = bench(output=tmp_path / "out", **limits)
    assert statuses(before) == [("fake", 1, "ok"), ("fake", 2, "out of memory")]
    script()
    raised = {"threads": 2, "timeout_s": 60.0, "budget_s": 90.0, "memory_limit_bytes": 2**34, "require": "noise"}
    after = bench(output=tmp_path / "out", resume=True, **raised)
    assert statuses(after) == [("fake", 1, "ok"), ("fake", 2, "ok")]
    assert after.cells[0] == before.cells[0]
    assert (after.options.timeout_s, after.options.budget_s, after.options.require) == (60.0, 90.0, "noise")


def test_more_budget_continues_the_cells_that_it_cut_short(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script(seconds_per_call=0.005, spread=0.5)
    sampled = {"min_time_s": 0.1, "max_time_s": 0.3, "min_runs": 3, "threads": 2}
    before = bench(output=tmp_path / "out", budget_s=0.001, **sampled)
    assert {cell.stopped for cell in before.cells} == {"budget spent"}
    same = bench(output=tmp_path / "out", resume=True, budget_s=0.001, **sampled)
    assert same.cells == before.cells
    more = bench(output=tmp_path / "out", resume=True, budget_s=None, **sampled)
    assert "budget spent" not in {cell.stopped for cell in more.cells}


def test_a_cell_is_measured_in_several_processes(real_bench: Callable[..., Results], script: Script) -> None:
    script(seconds_per_call=0.002, spread=0.05)
    sampled = {"min_time_s": 0.2, "max_time_s": 0.4, "min_runs": 6, "num_images": 4}
    results = real_bench(processes=2, **sampled)
    assert statuses(results) == [("fake", 1, "ok"), ("fake", 2, "ok")]
    for cell in results.cells:
        assert {turn.process for turn in cell.rounds} == {0, 1}
        assert sum(turn.runs for turn in cell.rounds) == len(cell.samples_s)
        assert cell.process_sd == results.cells[0].process_sd is not None
    assert "ran in one process" not in with_details(results)
    assert "ran in one process" in with_details(real_bench(processes=1, **sampled))


def test_no_scope_is_refused() -> None:
    with pytest.raises(UsageError, match="no scope given"):
        segx.benchmark(model="model.onnx", runtimes=["fake"], scopes=())


def test_there_must_be_something_to_resume(bench: Callable[..., Results], script: Script, tmp_path: Path) -> None:
    script()
    with pytest.raises(ResultsError, match="does not exist"):
        bench(output=tmp_path / "out", resume=True)


def test_a_folder_that_is_no_bench_is_not_resumed(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script()
    (tmp_path / "photo.png").touch()
    with pytest.raises(ResultsError, match="does not exist"):
        bench(output=tmp_path, resume=True)


@pytest.mark.parametrize("left", [(), (".segx.lock",), (".segx.lock", "photo.png")])
def test_a_bench_that_was_killed_before_its_first_result_begins_anew(
    bench: Callable[..., Results], script: Script, tmp_path: Path, left: tuple[str, ...]
) -> None:
    script()
    for name in left:
        (tmp_path / name).touch()
    assert bench(output=tmp_path, resume=True).complete


@pytest.mark.parametrize("name", ["table.md", "table.csv", "report.html"])
def test_a_resumed_bench_replaces_its_own_files_only(
    bench: Callable[..., Results], script: Script, tmp_path: Path, name: str
) -> None:
    script()
    created = bench(output=tmp_path).created
    (tmp_path / name).write_text(f"of {created[:16].replace('T', ' ')}")
    assert bench(output=tmp_path, resume=True).complete
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name} already exists"):
        bench(output=tmp_path, resume=True)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(OutputError, match=f"{name} already exists"):
        bench(output=tmp_path, resume=True)


def test_a_resumed_bench_leaves_the_pictures_of_others_alone(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script()
    bench(output=tmp_path)
    assert bench(output=tmp_path, resume=True).complete
    for index in (tmp_path / "pictures").iterdir():
        index.unlink()
    (tmp_path / "pictures" / "input-00000.png").touch()
    with pytest.raises(OutputError, match="pictures already exists"):
        bench(output=tmp_path, resume=True)


def test_nothing_to_bench_is_refused() -> None:
    with pytest.raises(UsageError, match="no model given"):
        segx.benchmark()


def test_the_callers_environment_and_threads_are_left_alone(real_bench: Callable[..., Results], script: Script) -> None:
    script()
    before, threads = dict(os.environ), threading.active_count()
    real_bench()
    assert dict(os.environ) == before
    assert threading.active_count() == threads


@pytest.mark.serial
def test_a_known_latency_is_measured_back_with_its_outliers_explained(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    """Log-normal calls with a median of 40 ms; every 8th takes five times as long. A busy machine makes them longer.

    They spread so widely that only a stall that lasts as long as a call makes one more of them an outlier.
    """
    script(seconds_per_call=0.04, spread=0.1, slow_every=8, slow_factor=5.0, log_file=str(tmp_path / "log"))
    (cell,) = bench(batch_sizes=(1,), num_images=1, min_runs=80).cells
    took = [float(line) for line in (tmp_path / "log").read_text().splitlines()][-len(cell.samples_s) :]
    assert median(took) > 0.036
    assert cell.median_s == pytest.approx(median(took), rel=0.01)
    (found,) = find_outliers(cell.samples_s, cell.rounds, cores=10_000)
    slow = tuple(call for call, seconds in enumerate(took) if seconds > 0.08)
    assert found.indices == slow
    assert len(slow) >= 10
    assert found.worst == pytest.approx(max(took) / median(took), rel=0.02)
    assert found.causes == ("every 8th call",)
    assert max(cell.samples_s) > 0.12  # kept


@pytest.mark.serial
def test_each_scope_has_its_own_rows_and_ratios(bench: Callable[..., Results], script: Script) -> None:
    script(seconds_per_call=0.02, device_seconds_per_image=0.001)
    results = bench(scopes=("forward", "device"), batch_sizes=(1, 2))
    medians = {(cell.scope, cell.batch_size): cell.median_s for cell in results.cells}
    assert medians["device", 1] == 0.001
    assert medians["device", 2] == 0.002
    assert medians["forward", 1] > 0.015
    text = to_text(results)
    assert "fake:fp32 (device) · " in text
    assert all(cell.parity and cell.parity.flipped_pixels == 0 for cell in results.cells)
    against = versus_batch_1(results.cells[-1], results)
    assert results.cells[-1].scope == "device"
    assert against
    assert against.ratio == pytest.approx(1.0)


def test_a_scope_or_precision_that_a_runtime_lacks_is_a_row_that_says_so(
    bench: Callable[..., Results], script: Script
) -> None:
    script()
    results = bench(runtimes=["onnxruntime-cpu", "fake"], scopes=("device",), batch_sizes=(1,))
    assert statuses(results) == [("onnxruntime-cpu", None, "unavailable"), ("fake", 1, "ok")]
    results = bench(runtimes=["onnxruntime-cpu", "fake"], precisions=("tf32",), batch_sizes=(1,))
    assert statuses(results) == [("onnxruntime-cpu", None, "unavailable"), ("fake", None, "unavailable")]
    assert "fp32" in results.cells[0].remedy


def test_a_variant_is_measured_in_its_own_precision_only(bench: Callable[..., Results], script: Script) -> None:
    script()
    results = bench(runtimes=["onnxruntime-cpu", "fake:int8"], batch_sizes=(1,))
    assert {str(cell.variant) for cell in results.cells} == {"onnxruntime-cpu:fp32", "fake:int8"}


def test_of_several_precisions_each_runtime_has_those_it_can(bench: Callable[..., Results], script: Script) -> None:
    script()
    results = bench(runtimes=["onnxruntime-cpu"], precisions=("tf32", "fp32"), batch_sizes=(1,))
    assert [(cell.precision, cell.status) for cell in results.cells] == [("fp32", "ok")]
    assert "Not offered: tf32 by onnxruntime-cpu." in with_details(results)


def test_a_runtime_that_disappears_keeps_what_was_measured(bench: Callable[..., Results], script: Script) -> None:
    script(disappears_from=2)
    results = bench(runtimes=["fake", "onnxruntime-cpu"], batch_sizes=(1, 2), num_images=1)
    assert statuses(results) == [
        ("fake", 1, "ok"),
        ("onnxruntime-cpu", 1, "ok"),
        ("fake", 2, "unavailable"),
        ("onnxruntime-cpu", 2, "ok"),
    ]
    assert "takes the runtime away" in to_markdown(results)


@pytest.mark.serial
def test_a_budget_is_kept_and_cells_that_stopped_for_it_say_so(bench: Callable[..., Results], script: Script) -> None:
    script(seconds_per_call=0.02)
    results = bench(batch_sizes=(1, 2), num_images=2, min_runs=1000, budget_s=0.4)
    assert {cell.stopped for cell in results.cells} == {"budget spent"}
    assert sum(sum(cell.samples_s) for cell in results.cells) == pytest.approx(0.4, rel=0.2)


def test_the_reference_is_compared_with_itself(bench: Callable[..., Results], script: Script) -> None:
    script(flipped_pixels=7, flips_from=4)  # of 1024; the reference is the fake runtime itself
    results = bench(batch_sizes=(1,), num_images=4, threads=2)
    floor = {probe.change: probe for probe in results.noise}
    assert floor["batch 4 against 1"].flipped_pixels == 28
    assert floor["batch 4 against 1"].max_abs_diff > 0.1
    assert floor["threads 1 against 2"].max_abs_diff == 0.0
    (cell,) = results.cells
    assert cell.parity
    assert cell.parity.noise_band == pytest.approx(floor["batch 4 against 1"].max_abs_diff)


def test_flips_inside_the_noise_floor_are_benign(bench: Callable[..., Results], script: Script) -> None:
    script(flipped_pixels=7, flips_from=2)
    results = bench(batch_sizes=(2,), num_images=4, max_flips=0.5, min_iou=0.0)
    (cell,) = results.cells
    assert cell.parity
    assert (cell.parity.flipped_pixels, cell.parity.real_flips) == (28, 0)
    assert verdict_of(results, cell) == "noise only"
    calm = bench(batch_sizes=(2,), num_images=1, max_flips=0.5, min_iou=0.0)  # no second batch to differ in
    assert verdict_of(calm, calm.cells[0]) == "small changes"


@pytest.mark.parametrize(
    ("runtimes", "prepared"), [(["onnxruntime-cpu", "pytorch-cpu"], [True]), (["onnxruntime-cpu"], [])]
)
def test_pytorch_is_imported_while_the_images_are_read(
    real_bench: Callable[..., Results],
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtimes: list[str],
    prepared: list[bool],
) -> None:
    done: list[bool] = []

    def read(*_: Any, **__: Any) -> Any:
        assert done == prepared
        raise ImageError("no image", hint="take one")

    monkeypatch.setattr(CellWorkers, "prepare", lambda _, *, torch: done.append(torch))
    monkeypatch.setattr(api, "prepare_inputs", read)
    with pytest.raises(ImageError):
        real_bench(model=None, checkpoint=tiny_checkpoint, runtimes=runtimes)


def test_the_reference_runs_while_the_model_is_exported(
    real_bench: Callable[..., Results], script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(seconds_per_call=0.05)
    runs: list[Call] = []
    runs_meanwhile: list[bool] = []
    begin, provide = CellWorkers.begin, session.with_form

    def begun(*arguments: Any, **options: Any) -> Call:
        runs.append(begin(*arguments, **options))
        return runs[-1]

    def export(*arguments: Any, **options: Any) -> Any:
        runs_meanwhile.append(any(run.alive for run in runs))
        return provide(*arguments, **options)

    monkeypatch.setattr(CellWorkers, "begin", begun)
    monkeypatch.setattr(session, "with_form", export)
    real_bench(runtimes=["onnxruntime-cpu"], batch_sizes=(1,))
    assert runs_meanwhile[:2] == [False, True]  # its own file comes first
    assert not any(runs_meanwhile[2:])  # other files are not made beside it: int8 has limited time


def test_the_worker_of_the_reference_ends_if_the_export_fails(
    real_bench: Callable[..., Results], script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(seconds_per_call=60.0)

    def export(*_: Any, **__: Any) -> Any:
        raise ExportError("it cannot be exported", hint="export it elsewhere")

    monkeypatch.setattr(session.Session, "_export", export)
    with pytest.raises(ExportError):
        real_bench(runtimes=["onnxruntime-cpu"], batch_sizes=(1,))
    assert not multiprocessing.active_children()


def test_a_failing_noise_probe_does_not_stop_the_real_bench(real_bench: Callable[..., Results], script: Script) -> None:
    script(killed_from=4)
    results = real_bench(batch_sizes=(1,), num_images=4)
    assert [probe.change for probe in results.noise] == ["threads 1 against 2"]
    assert statuses(results) == [("fake", 1, "ok")]


def test_ground_truth_tells_a_loss_from_harmless_flips(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script(flipped_pixels=300, flips_from=2)
    write_pictures(tmp_path, count=8)
    given = {"images": tmp_path / "images", "masks": tmp_path / "masks", "num_images": 8, "max_flips": 1.0}
    results = bench(batch_sizes=(1, 2), **given, min_iou=0.0)
    same, worse = (cell.parity.truth for cell in results.cells if cell.parity)
    assert same
    assert worse
    assert same.iou == same.reference_iou == 1.0
    assert worse.iou < 0.9
    assert worse.loss == pytest.approx(1.0 - worse.iou)
    assert [quality_of(results, cell) for cell in results.cells] == ["no worse", "worse"]
    assert "masks of masks" in with_details(results)


def test_an_image_without_a_ground_truth_mask_is_named(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script()
    write_pictures(tmp_path, count=2)
    (tmp_path / "masks" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"no mask for 1\.png"):
        bench(images=tmp_path / "images", masks=tmp_path / "masks")


def test_masks_without_images_are_refused(bench: Callable[..., Results], script: Script, tmp_path: Path) -> None:
    script()
    with pytest.raises(UsageError, match="without images"):
        bench(masks=tmp_path)


def write_pictures(folder: Path, count: int) -> None:
    """Random images, and as masks what the fake runtime makes of them."""
    choose = np.random.default_rng(0)
    for number in range(count):
        pixels = choose.integers(0, 256, size=(32, 32), dtype=np.uint8)
        write_png(folder / "images" / f"{number}.png", pixels)
        write_png(folder / "masks" / f"{number}.png", (pixels > 127).astype(np.uint8) * np.uint8(255))


@pytest.mark.serial
def test_the_wall_time_is_accounted_for(bench: Callable[..., Results], script: Script) -> None:
    script(seconds_per_call=0.05)
    results = bench(batch_sizes=(1,), num_images=8, min_runs=20)
    wall = results.wall
    assert wall
    assert wall.sampling == pytest.approx(sum(results.cells[0].samples_s))
    assert wall.total > wall.sampling + wall.loading + wall.reference
    assert 0.0 < wall.overhead < 1.0
    assert results.load_after is not None


@pytest.mark.serial
def test_every_memory_figure_has_a_source_or_a_reason(real_bench: Callable[..., Results], script: Script) -> None:
    script(bytes_per_image=50_000_000)
    (cell,) = real_bench(batch_sizes=(2,), num_images=2).cells
    memory = cell.host_memory
    assert memory
    assert memory.loaded_bytes is not None
    assert memory.imported_bytes <= memory.loaded_bytes < memory.peak_bytes
    assert memory.steady_bytes < memory.peak_bytes
    assert "VmHWM" in memory.method
    assert cell.device_memory is None
    assert cell.device_memory_missing == "computes on the CPU"


def test_an_image_that_is_run_twice_is_no_further_evidence(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    """The same four images, with the same flips, once in batches of 4 and once four times over in a batch of 16."""
    script(flipped_pixels=300, flips_from=2)
    choose = np.random.default_rng(0)
    for number in range(4):
        pixels = choose.integers(0, 256, size=(32, 32), dtype=np.uint8)
        truth = (pixels > 127) ^ (choose.random(pixels.shape) < 0.1 * number)
        write_png(tmp_path / "images" / f"{number}.png", pixels)
        write_png(tmp_path / "masks" / f"{number}.png", truth.astype(np.uint8) * np.uint8(255))
    given = {"images": tmp_path / "images", "masks": tmp_path / "masks", "max_flips": 1.0, "min_iou": 0.0}
    results = bench(batch_sizes=(4, 16), **given)
    once, four_times = (cell.parity.truth for cell in results.cells if cell.parity)
    assert once
    assert four_times
    assert four_times.loss == pytest.approx(once.loss)
    widths = [score.loss_high - score.loss_low for score in (once, four_times)]
    assert widths[0] > 0.1
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


class Steps(Progress):
    """What is said, and the share of the work that is done then."""

    def __init__(self) -> None:
        self.total = self.share = 0.0
        self.said: list[tuple[str, float]] = []

    def say(self, text: str) -> None:
        self.said.append((text, self.share))

    def expect(self, total: float) -> None:
        self.total = total

    def reach(self, done: float, text: str = "") -> None:  # noqa: ARG002
        self.share = done / self.total if self.total else 0.0


@pytest.mark.slow
def test_progress_counts_seconds_of_loading_and_sampling(bench: Callable[..., Results], script: Script) -> None:
    script()
    steps = Steps()
    bench(runtimes=["fake", "onnxruntime-cpu", "onnxruntime-cuda"], min_time_s=3.0, max_time_s=0.01, progress=steps)
    shares = {text: share for text, share in steps.said if share}
    assert "loading" in next(iter(shares))  # nothing is done before the first model is loaded
    # Two runtimes at two batch sizes, a quarter of the work each; loading takes half of it.
    assert shares["batch 1: sampling 2 variants"] == pytest.approx(0.25, abs=0.02)
    assert shares["batch 2: loading fake:fp32"] == pytest.approx(0.5, abs=0.02)
    assert shares["batch 2: sampling 2 variants"] == pytest.approx(0.75, abs=0.02)
    assert steps.share == 1.0


def test_calibration_on_images_unlike_those_measured_is_a_warning(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script()
    chance = np.random.default_rng(0)
    for folder, brightness in (("bright", 200), ("dark", 20), ("alike", 25)):
        for number in range(3):
            pixels = chance.integers(brightness, brightness + 40, (16, 16)).astype(np.uint8)
            write_png(tmp_path / folder / f"{number}.png", pixels)
    for calibration, told in (("bright", True), ("alike", False)):
        said: list[str] = []
        bench(
            images=tmp_path / "dark",
            calibration=tmp_path / calibration,
            precisions=("int8",),
            batch_sizes=(1,),
            progress=Told(said.append),
        )
        assert any("are unlike those measured (channel 0: mean" in line for line in said) == told


@pytest.mark.parametrize("precision", ["fp32", "int8", "auto"])
def test_missing_calibration_images_are_refused(
    bench: Callable[..., Results], script: Script, tmp_path: Path, precision: str
) -> None:
    script()
    for missing in ("photos", "photos.txt"):
        with pytest.raises(ImageError, match="photos"):
            bench(calibration=tmp_path / missing, precisions=(precision,))


def test_calibration_images_without_int8_are_refused_or_a_warning(
    bench: Callable[..., Results], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script()
    monkeypatch.setattr("segx.system.machine.cpu_flags", lambda: ("avx2",))
    write_png(tmp_path / "photos" / "a.png", np.zeros((16, 16), np.uint8))
    for precisions in (("fp32",), ("native",)):
        with pytest.raises(UsageError, match="int8 is not measured"):
            bench(calibration=tmp_path / "photos", precisions=precisions)
    said: list[str] = []
    bench(calibration=tmp_path / "photos", precisions=("auto",), batch_sizes=(1,), progress=Told(said.append))
    assert any("--calibration has no effect" in line for line in said)


def test_a_doubt_of_how_images_are_prepared_is_said_and_recorded(
    bench: Callable[..., Results], script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script()
    seen: list[tuple[int, ...]] = []

    def doubt(images: np.ndarray, *_: object) -> str:
        seen.append(images.shape)
        return "images look odd"

    monkeypatch.setattr("segx.bench.api.doubt_of_pixels", doubt)
    said: list[str] = []
    results = bench(num_images=3, batch_sizes=(1,), progress=Told(said.append))
    assert seen == [(3, *results.model.spec.input_shape)]
    assert "images look odd" in said
    assert results.inputs.doubt == "images look odd"
