"""Tables from hand-made results: every figure can be checked by head."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from segx.bench.memory import HostMemory
from segx.bench.report import to_csv, to_markdown, to_text
from segx.bench.results import BenchOptions, Cell, InputFacts, ModelFacts, Results, load_results, to_json
from segx.errors import ResultsError
from segx.machine import Machine
from segx.parity import Parity
from segx.spec import ModelSpec


def cell(runtime: str, batch_size: int, call_s: float, runs: int = 4, flipped: int = 0, mebibytes: int = 100) -> Cell:
    return Cell(
        runtime=runtime,
        precision="fp32",
        batch_size=batch_size,
        status="ok",
        samples_s=(call_s,) * runs,
        stopped="complete",
        import_s=0.1,
        load_s=0.2,
        first_s=0.3,
        facts={"threads": "2", "tf32": "off"},
        host_memory=HostMemory(0, 0, mebibytes * 2**20, "made up"),
        parity=Parity(4, 4 * 65536, flipped, 1.0 - flipped / 1000, "b.png", 1e-6, 40.0),
    )


@pytest.fixture
def results() -> Results:
    return Results(
        created="2026-01-01T00:00:00+00:00",
        segx="0.1.0",
        command="segx bench",
        options=BenchOptions(
            runtimes=("pytorch-cpu", "pytorch-cuda", "onnxruntime-cpu"),
            batch_sizes=(1, 2, 4),
            warmup=1,
            min_time_s=1.0,
            min_runs=4,
            threads=2,
            tf32=False,
            budget_s=None,
            timeout_s=60.0,
            memory_limit_bytes=None,
        ),
        model=ModelFacts(spec=ModelSpec(), weights_sha256="ab" * 32, checkpoint="w.pth", onnx=None, onnx_sha256=None),
        inputs=InputFacts(source="4 images of photos", sha256="cd" * 32, names=("a.png", "b.png", "c.png", "d.png")),
        reference="pytorch-cpu:fp32",
        machine=Machine("A CPU", (), 8, 2, 2**34, 2**33, (), 0.5, "Linux", "3.12", {"torch": "2.15"}),
        complete=True,
        cells=(
            cell("pytorch-cpu", 1, 0.4),
            Cell(
                runtime="pytorch-cuda",
                precision="fp32",
                batch_size=None,
                status="unavailable",
                reason="no driver",
                remedy="get one",
            ),
            cell("onnxruntime-cpu", 1, 0.2),
            cell("pytorch-cpu", 2, 0.8),
            cell("onnxruntime-cpu", 2, 0.32),
            cell("pytorch-cpu", 4, 2.0),
            Cell(
                runtime="onnxruntime-cpu",
                precision="fp32",
                batch_size=4,
                status="out of memory",
                reason="it is full",
                remedy="use less",
            ),
        ),
    )


def test_terminal_table(results: Results) -> None:
    assert to_text(results) == (Path(__file__).parent / "expected_table.txt").read_text()


def test_ratios_are_of_images_per_second(results: Results) -> None:
    rows = {(r["runtime"], r["batch_size"]): r for r in csv.DictReader(io.StringIO(to_csv(results)))}
    row = rows["onnxruntime-cpu", "2"]  # 0.16 s per image, after 0.2 at batch 1; PyTorch takes 0.4
    assert float(row["vs_batch_1"]) == pytest.approx(1.25)
    assert float(row["vs_previous"]) == pytest.approx(1.25)
    assert float(row["vs_pytorch"]) == pytest.approx(2.5)
    assert float(rows["pytorch-cpu", "4"]["vs_previous"]) == pytest.approx(0.8)


def test_a_failed_row_is_skipped_by_vs_previous(results: Results) -> None:
    last = cell("onnxruntime-cpu", 8, 0.8)
    options = dataclasses.replace(results.options, batch_sizes=(1, 2, 4, 8))
    longer = dataclasses.replace(results, options=options, cells=(*results.cells, last))
    row = list(csv.DictReader(io.StringIO(to_csv(longer))))[-1]
    assert float(row["vs_previous"]) == pytest.approx(0.16 / 0.1)
    assert row["vs_pytorch"] == ""


def test_time_for_all_images_is_measured_or_marked_as_projected(results: Results) -> None:
    assert "≈" not in to_text(results)
    short = dataclasses.replace(results, cells=(cell("pytorch-cpu", 1, 0.4, runs=3),))
    assert "≈1.6 s" in to_text(short)
    assert "≈ projected" in to_text(short)


def test_an_iou_below_one_is_never_rounded_up_to_one(results: Results) -> None:
    nearly = dataclasses.replace(results.cells[0], parity=Parity(1, 1, 1, 0.99999, "a", 0, 1))
    assert "0.9999" in to_text(dataclasses.replace(results, cells=(nearly,)))


def test_p95_only_with_enough_runs(results: Results) -> None:
    few, many = cell("pytorch-cpu", 1, 0.4, runs=129), cell("pytorch-cpu", 1, 0.4, runs=130)
    assert few.p95_s is None
    assert many.p95_s == pytest.approx(0.4)
    assert "--min-runs 130" in to_text(dataclasses.replace(results, cells=(few,)))
    assert "--min-runs 130" not in to_text(dataclasses.replace(results, cells=(many,)))


def test_p95_is_the_nearest_rank() -> None:
    measured = dataclasses.replace(cell("pytorch-cpu", 1, 0.4), samples_s=tuple(i / 1000 for i in range(1, 201)))
    assert measured.p95_s == 0.190


def test_markdown_has_the_same_figures(results: Results) -> None:
    markdown = to_markdown(results)
    assert "| 2 | 0.64 s | 160.0 | 6.25 | 320.0 | – | 100 MiB | 1.25x | 1.25x | 2.50x | 0 | 1.0000 |" in markdown
    assert "### pytorch-cuda\n\nunavailable: no driver; get one" in markdown
    assert "| 4 | out of memory: it is full; use less |" in markdown


def test_csv_has_a_line_per_cell_and_blanks_for_what_is_unknown(results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert len(rows) == len(results.cells)
    assert rows[1]["status"] == "unavailable"
    assert not rows[1]["p50_s"]
    assert rows[0]["device_peak_bytes"] == ""
    assert float(rows[0]["host_private_peak_bytes"]) == 100 * 2**20


def test_results_round_trip(results: Results, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(to_json(results))
    assert load_results(tmp_path) == results
    assert json.loads(to_json(results))["schema_version"] == 1


def test_infinite_differences_survive_a_round_trip(results: Results, tmp_path: Path) -> None:
    parity = Parity(1, 1, 1, 0.0, "a", float("inf"), 1.0)
    broken = dataclasses.replace(results, cells=(dataclasses.replace(results.cells[0], parity=parity),))
    (tmp_path / "r.json").write_text(to_json(broken))
    assert load_results(tmp_path / "r.json") == broken


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no segx results"),
        ("[]", "no segx results"),
        ("{}", "no segx results"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', "damaged"),
    ],
)
def test_foreign_results_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=complaint):
        load_results(tmp_path)


def test_missing_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="missing"):
        load_results(tmp_path)
