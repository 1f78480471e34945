"""The bench from end to end, with the scripted runtime and ONNX Runtime on a trivial model."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import segx
from segx.bench.results import Results, load_results
from segx.errors import ArtifactError, NotComparable, OutputError, ResultsError, UsageError

Script = Callable[..., None]


@pytest.fixture
def bench(plain_onnx: Path) -> Callable[..., Results]:
    """A bench that takes a moment."""

    def run(**options: Any) -> Results:
        quick: dict[str, Any] = {
            "model": plain_onnx,
            "runtimes": ["fake"],
            "batch_sizes": (1, 2),
            "num_images": 4,
            "warmup": 0,
            "min_time_s": 0.0,
            "min_runs": 1,
            "max_time_s": 0.0,
        }
        results: Results = segx.bench(**{**quick, **options})
        return results

    return run


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


def test_threads_are_equal_and_in_force(bench: Callable[..., Results], script: Script) -> None:
    script()
    results = bench(runtimes=["fake", "onnxruntime-cpu"], threads=1)
    assert {cell.facts["threads"] for cell in results.cells} == {"1"}


def test_a_full_pass_is_run_even_when_the_minima_are_lower(bench: Callable[..., Results], script: Script) -> None:
    script()
    results = bench(batch_sizes=(1, 3), num_images=4, min_runs=1)
    assert [cell.seconds_for(4)[1] for cell in results.cells] == [True, True]
    assert [len(cell.samples_s) >= runs for cell, runs in zip(results.cells, (4, 2), strict=True)] == [True, True]
    # A last batch that the images do not fill is filled from the first ones, and those are judged again.
    assert [cell.parity.images for cell in results.cells if cell.parity] == [4, 6]


def test_the_budget_stops_early_and_the_time_is_a_projection(bench: Callable[..., Results], script: Script) -> None:
    script(seconds_per_call=0.02)
    results = bench(batch_sizes=(1,), num_images=64, budget_s=0.05)
    (cell,) = results.cells
    assert cell.stopped == "budget spent"
    assert len(cell.samples_s) < 64
    seconds, measured = cell.seconds_for(64)
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


def test_a_memory_limit_turns_a_real_allocation_into_a_row(bench: Callable[..., Results], script: Script) -> None:
    script(bytes_per_image=200_000_000)
    results = bench(batch_sizes=(1, 4), num_images=1, memory_limit_bytes=500_000_000)
    assert [cell.status for cell in results.cells] == ["ok", "out of memory"]


def test_memory_is_measured(bench: Callable[..., Results], script: Script) -> None:
    script(bytes_per_image=100_000_000)
    results = bench(batch_sizes=(1, 3), num_images=3)
    needed = [cell.host_memory.needed_bytes for cell in results.cells if cell.host_memory]
    assert needed == [pytest.approx(100e6, rel=0.05), pytest.approx(300e6, rel=0.05)]


def test_a_killed_worker_is_a_row_that_names_the_signal(bench: Callable[..., Results], script: Script) -> None:
    script(killed_from=2)
    results = bench()
    assert [cell.status for cell in results.cells] == ["ok", "crashed"]
    assert "SIGKILL" in results.cells[1].reason


def test_a_hung_worker_is_given_up_on(bench: Callable[..., Results], script: Script) -> None:
    script(hangs_from=2)
    results = bench(timeout_s=3.0)
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
    script(flipped_pixels=7, flips_from=2)  # of 1024
    results = bench(num_images=2, **gates)
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
    results = bench(runtimes=["fake", "pytorch-cpu"], batch_sizes=(1,))
    (row,) = [cell for cell in results.cells if cell.runtime == "pytorch-cpu"]
    assert row.status == "unavailable"
    assert "--weights" in row.remedy


def test_results_are_saved_after_every_cell_and_load_again(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script(killed_from=2)
    folder = tmp_path / "new" / "folder"
    results = bench(output=folder, command="segx bench")
    assert load_results(folder) == results
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "table.csv", "table.md"]
    rows = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [row["status"] for row in rows] == ["ok", "crashed"]
    assert float(rows[0]["s_per_image"]) == pytest.approx(results.cells[0].seconds_per_image)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker through /proc")
def test_a_kill_leaves_the_results_of_finished_cells_and_no_worker(plain_onnx: Path, tmp_path: Path) -> None:
    options = "--runtime fake --batch-size 1,2 --num-images 1 --warmup 0 --min-time 0 --max-time 0 --min-runs 1"
    command = [sys.executable, "-m", "segx", "bench", "--model", str(plain_onnx), *options.split()]
    command += ["--output", str(tmp_path / "out")]
    environment = {**os.environ, "SEGX_FAKE_SCRIPT": '{"hangs_from": 2}'}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        wait_for((tmp_path / "out" / "results.json").is_file)
        time.sleep(2.0)  # into the call that hangs
        workers = [Path(f"/proc/{pid}") for pid in children.read_text().split()]
    finally:
        process.kill()
        process.wait()
    saved = load_results(tmp_path / "out")
    assert statuses(saved) == [("fake", 1, "ok")]
    assert not saved.complete
    assert workers
    wait_for(lambda: not any(worker.exists() for worker in workers))


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
        {"warmup": -1},
        {"min_runs": 0},
        {"num_images": 0},
        {"runtimes": ["fakes"]},
    ],
)
def test_wrong_options_are_refused(bench: Callable[..., Results], script: Script, wrong: dict[str, Any]) -> None:
    script()
    with pytest.raises(UsageError):
        bench(**wrong)


def test_other_weights_than_the_exported_files_are_refused(
    bench: Callable[..., Results], script: Script, tmp_path: Path
) -> None:
    script()
    (tmp_path / "other.pth").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="other weights"):
        bench(checkpoint=tmp_path / "other.pth")


def test_another_spec_than_the_exported_files_is_refused(bench: Callable[..., Results], script: Script) -> None:
    script()
    with pytest.raises(ArtifactError, match="1x64x64"):
        bench(spec=segx.ModelSpec(height=64, width=64))


def test_an_interrupted_run_is_resumed_without_repeating_anything(
    bench: Callable[..., Results], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segx.bench import job as job_module

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    script()
    whole = {"batch_sizes": (1, 2, 3), "runtimes": ["fake", "onnxruntime-cpu"], "output": tmp_path / "out"}
    calls = 0
    really_run = job_module.run_rounds

    def third_time_interrupted(*arguments: Any, **keywords: Any) -> None:
        nonlocal calls
        calls += 1
        (interrupt if calls == 3 else really_run)(*arguments, **keywords)

    monkeypatch.setattr(job_module, "run_rounds", third_time_interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench(**whole)
    cut_off = load_results(tmp_path / "out")
    assert [cell.batch_size for cell in cut_off.cells] == [1, 1, 2, 2]
    resumed = bench(**whole, resume=True)
    assert resumed.complete
    assert resumed.cells[:4] == cut_off.cells
    assert [cell.batch_size for cell in resumed.cells] == [1, 1, 2, 2, 3, 3]
    assert load_results(tmp_path / "out") == resumed


@pytest.mark.parametrize(
    ("change", "field"), [({"min_runs": 2}, "min_runs"), ({"num_images": 3}, "inputs"), ({"threads": 1}, "threads")]
)
def test_a_run_that_was_another_is_not_resumed(
    bench: Callable[..., Results], script: Script, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    script()
    bench(output=tmp_path / "out", threads=2)
    with pytest.raises(NotComparable, match=f"another {field}"):
        bench(**{"threads": 2, **change}, output=tmp_path / "out", resume=True)


def test_there_must_be_something_to_resume(bench: Callable[..., Results], script: Script, tmp_path: Path) -> None:
    script()
    with pytest.raises(ResultsError, match="missing"):
        bench(output=tmp_path / "out", resume=True)


def test_nothing_to_bench_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to bench"):
        segx.bench()


def test_the_callers_environment_and_threads_are_left_alone(bench: Callable[..., Results], script: Script) -> None:
    script()
    before, threads = dict(os.environ), threading.active_count()
    bench()
    assert dict(os.environ) == before
    assert threading.active_count() == threads
