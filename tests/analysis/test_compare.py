"""Compare saved benches: two with verdicts, several side by side."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segx.analysis.compare import CellComparison, Run, SideBySide, compare, labelled, side_by_side
from segx.errors import NotComparable, UsageError
from segx.model.spec import ModelSpec
from segx.reporting.renderers import csv_json, markdown
from segx.reporting.renderers.text import to_text
from segx.reporting.runs_document import comparison_document, letters, side_by_side_document
from segx.results.settings import SETTINGS
from segx.results.store import to_json
from segx.results.types import Cell, Parity, Results, Round

MakeParity = Callable[..., Parity]
MakeResults = Callable[..., Results]


def noisy_cell(call_s: float, *, batch_size: int = 1, seed: int = 0, rounds: int = 20, noise: float = 0.01) -> Cell:
    factors = np.random.default_rng(seed).normal(1.0, noise, size=rounds).clip(0.1)
    samples = tuple(float(call_s * factor) for factor in factors)
    return Cell(
        runtime="onnxruntime-cpu",
        precision="fp32",
        batch_size=batch_size,
        status="ok",
        samples_s=samples,
        rounds=tuple(Round(number=i, runs=1) for i in range(rounds)),
    )


@pytest.fixture
def results(make_results: MakeResults) -> MakeResults:
    return make_results


def only(before: Results, after: Results) -> CellComparison:
    (comparison,) = compare(before, after).cells
    return comparison


@pytest.mark.parametrize(("after_s", "verdict"), [(0.1, "tied"), (0.11, "slower"), (0.09, "faster")])
def test_verdicts(after_s: float, verdict: str, results: MakeResults) -> None:
    comparison = only(results(noisy_cell(0.1, seed=1)), results(noisy_cell(after_s, seed=2)))
    assert comparison.verdict == verdict
    assert comparison.speedup
    assert comparison.speedup.ratio == pytest.approx(0.1 / after_s, rel=0.02)
    assert comparison.p_value is not None
    assert (comparison.p_value > 0.01) == (verdict == "tied")


def test_a_regression_must_be_sure_and_large_enough(results: MakeResults) -> None:
    slower = only(results(noisy_cell(0.1, seed=1)), results(noisy_cell(0.11, seed=2)))
    assert slower.regressed_by(0.05)
    assert not slower.regressed_by(0.15)
    noisy = only(results(noisy_cell(0.1, seed=1, noise=0.5)), results(noisy_cell(0.11, seed=2, noise=0.5)))
    assert noisy.verdict == "unsure"  # a change of 5% could be there
    assert not noisy.regressed_by(0.05)


def test_too_few_rounds_are_unsure_and_have_no_test(results: MakeResults) -> None:
    comparison = only(results(noisy_cell(0.1, rounds=5)), results(noisy_cell(0.2, rounds=5)))
    assert comparison.verdict == "unsure"
    assert comparison.p_value is None
    assert not comparison.regressed_by(0.0)


def test_cells_of_one_run_only_are_lost_or_gained(results: MakeResults) -> None:
    asked = {"batch_sizes": (1, 2), "runtimes": ("onnxruntime-cpu",)}
    before, after = results(noisy_cell(0.1), noisy_cell(0.2, batch_size=2), **asked), results(noisy_cell(0.1), **asked)
    assert [c.verdict for c in compare(before, after).cells] == ["tied", "lost"]
    assert [c.verdict for c in compare(after, before).cells] == ["tied", "gained"]
    assert compare(before, after).cells[1].regressed_by(0.5)


@pytest.mark.parametrize(
    "asked",
    [{"batch_sizes": (1,)}, {"runtimes": ("openvino-cpu",)}, {"precisions": ("int8",)}, {"scopes": ("device",)}],
)
def test_what_the_second_run_was_not_asked_for_is_not_lost(asked: dict[str, Any], results: MakeResults) -> None:
    all_of_it = {"batch_sizes": (1, 2), "runtimes": ("onnxruntime-cpu",)}
    before = results(noisy_cell(0.2, batch_size=2), **all_of_it)
    comparison = only(before, results(**{**all_of_it, **asked}))
    assert comparison.verdict == "not asked for"
    assert not comparison.regressed_by(0.0)


# The factor that all cells share


def drawn_run(
    choose: np.random.Generator, factors: Sequence[float], *, common: float = 1.0, between: float = 0.01
) -> list[Cell]:
    """Return cells of two processes: 1% between processes and, unless given, between runs, 2% from round to round."""
    cells = []
    for place, factor in enumerate(factors):
        run = choose.normal(0, between)
        rounds = [(p, run + shift + choose.normal(0, 0.02)) for p in (0, 1) for shift in [choose.normal(0, 0.01)] * 10]
        cells.append(
            Cell(
                runtime="onnxruntime-cpu",
                precision="fp32",
                batch_size=place + 1,
                status="ok",
                samples_s=tuple(0.1 * factor * common * float(np.exp(each)) for _, each in rounds),
                rounds=tuple(Round(number=i, runs=1, process=p) for i, (p, _) in enumerate(rounds)),
                process_sd=0.012,
            )
        )
    return cells


@pytest.mark.parametrize("common", [1.0, 1.17])
def test_runs_of_one_version_are_told_apart_in_at_most_5_percent(common: float, results: MakeResults) -> None:
    """Whatever all cells share; corrected for their number, so that a whole comparison seldom has a false mark."""
    choose = np.random.default_rng(3)
    marked = 0
    for _ in range(100):
        before, after = drawn_run(choose, [1.0] * 8), drawn_run(choose, [1.0] * 8, common=common)
        found = compare(results(*before), results(*after))
        marked += any(cell.verdict in ("faster", "slower") for cell in found.cells)
        assert found.common
    assert marked <= 5


def test_a_regression_of_one_cell_is_found_beyond_what_all_share(results: MakeResults) -> None:
    choose = np.random.default_rng(4)
    found = 0
    for _ in range(50):
        factors = [1.0] * 7 + [1.2]
        before, after = drawn_run(choose, [1.0] * 8), drawn_run(choose, factors, common=1.15)
        comparison = compare(results(*before), results(*after))
        assert comparison.common
        assert comparison.common.ratio == pytest.approx(1 / 1.15, rel=0.04)
        *others, last = comparison.cells
        assert not any(cell.regressed_by(0.05) for cell in others)
        found += last.regressed_by(0.05)
        assert last.beyond
        assert last.beyond.ratio == pytest.approx(1 / 1.2, rel=0.12)
    assert found >= 45


def test_a_shared_change_is_named_and_not_held_against_a_cell(results: MakeResults) -> None:
    before, after = (drawn_run(np.random.default_rng(5), [1.0] * 8, common=common) for common in (1.0, 1.17))

    def shown(*runs: Results) -> str:
        named = [Run(name, run) for name, run in zip(("monday", "today"), runs, strict=True)]
        return " ".join(to_text(comparison_document(compare(*runs), named)).split())

    moved = shown(results(*before), results(*after))
    assert "All 8 moved together, by 0.85x" in moved
    assert "Nothing that segx records differs: most likely it is the machine" in moved
    assert "0 faster, 0 slower" in moved
    assert "together" not in shown(results(*before), results(*before))
    newer = dataclasses.replace(results(*after), segx="0.2.0")
    assert "These differ: segx 0.1.0 → 0.2.0." in shown(results(*before), newer)


@pytest.mark.parametrize(
    ("factors", "noise", "least"),
    [
        ([1.3] * 8 + [0.7] * 6, 0.01, 0.98),
        ([1.3] * 9 + [1.0] * 5, 0.01, 0.98),
        ([1.2] * 4 + [1.0] * 4, 0.005, 0.9),
        ([1.3] * 6 + [1.0] * 2, 0.01, 0.98),
        ([1.3] * 7 + [1.0], 0.01, 0.98),
        ([1.3] * 2 + [1.0], 0.005, 0.7),
    ],
)
def test_cells_that_move_apart_are_judged_by_their_own_ratios(
    factors: list[float], noise: float, least: float, results: MakeResults
) -> None:
    """A regression of most cells is not taken for the machine: it is told, or at least does not pass."""
    choose = np.random.default_rng(7)
    right = 0
    for _ in range(20):
        plain = [1.0] * len(factors)
        before, after = (drawn_run(choose, each, between=noise) for each in (plain, factors))
        found = compare(results(*before), results(*after))
        regressed = [cell.regressed_by(0.05) for cell in found.cells]
        assert found.common is None
        assert found.apart
        assert any(regressed) or "unsure" in [cell.verdict for cell in found.cells]
        right += regressed == [factor > 1 for factor in factors]
    assert right >= least * 20


def test_a_cell_that_kept_its_speed_while_the_others_gained_is_found(results: MakeResults) -> None:
    """The machine may have become faster, and the cell slower."""
    choose = np.random.default_rng(8)
    before, after = drawn_run(choose, [1.0] * 8), drawn_run(choose, [0.8] * 7 + [1.0])
    found = compare(results(*before), results(*after))
    assert found.common
    assert [cell.together for cell in found.cells] == [True] * 7 + [False]
    assert [cell.regressed_by(0.05) for cell in found.cells] == [False] * 7 + [True]


@pytest.mark.parametrize(
    ("runtimes", "factors"),
    [
        (["onnxruntime-cpu"] * 8 + ["pytorch-cpu"] * 2, [0.9] * 8 + [1.0] * 2),
        (["onnxruntime-cpu"] * 12 + ["pytorch-cpu"] * 4, [0.85] * 12 + [1.0] * 4),
        (["onnxruntime-cpu"] * 12 + ["pytorch-cpu"] * 4, [0.85] * 12 + [1.0] * 2 + [0.95] * 2),
        (
            ["onnxruntime-cpu"] * 8 + ["pytorch-cpu"] * 4 + ["onnxruntime-cuda"] * 2 + ["pytorch-cuda"] * 2,
            [0.8] * 12 + [1.0] * 4,
        ),
    ],
    ids=["few", "many", "half of PyTorch's a little", "only the CPU's"],
)
def test_a_speed_up_that_pytorch_does_not_share_is_not_the_machines(
    runtimes: list[str], factors: list[float], results: MakeResults
) -> None:
    """PyTorch runs the checkpoint: what is exported otherwise leaves it alone."""
    choose = np.random.default_rng(8)
    alarms = 0
    for _ in range(40):
        drawn = drawn_run(choose, [1.0] * len(factors)), drawn_run(choose, factors)
        before, after = (list(map(ran_by, run, runtimes)) for run in drawn)
        found = compare(results(*before), results(*after))
        assert (found.common, found.apart) == (None, True)
        alarms += any(cell.regressed_by(0.05) for cell in found.cells)
    assert alarms <= 2


def ran_by(cell: Cell, runtime: str) -> Cell:
    return dataclasses.replace(cell, runtime=runtime)


@pytest.mark.parametrize("factors", [[0.8] * 10, [0.8] * 7 + [1.0] + [0.8] * 2, [0.8] * 9 + [1.0]])
def test_a_speed_up_that_pytorch_shares_is_the_machines(factors: list[float], results: MakeResults) -> None:
    """A single cell without it has regressed, even one of several of PyTorch."""
    choose = np.random.default_rng(8)
    runtimes = ["onnxruntime-cpu"] * 7 + ["pytorch-cpu"] * 3
    right = 0
    for _ in range(40):
        drawn = drawn_run(choose, [1.0] * 10), drawn_run(choose, factors)
        before, after = (list(map(ran_by, run, runtimes)) for run in drawn)
        found = compare(results(*before), results(*after))
        assert found.common
        slower = {cell.batch_size for cell in found.cells if cell.regressed_by(0.05)}
        right += slower == {place + 1 for place, factor in enumerate(factors) if factor == 1.0}
    assert right >= 36


def test_it_is_said_how_many_cells_moved_together(results: MakeResults) -> None:
    def shown(factors: Sequence[float]) -> str:
        before, after = (drawn_run(np.random.default_rng(9), each) for each in ([1.0] * len(factors), factors))
        runs = [Run(name, results(*cells)) for name, cells in (("a", before), ("b", after))]
        compared = compare(*(run.results for run in runs))
        text = to_text(comparison_document(compared, runs))
        assert json.loads(csv_json.to_json(dataclasses.asdict(compared)))["apart"] == ("did not move together" in text)
        return " ".join(text.split())

    apart = shown([1.3] * 8 + [0.7] * 6)
    assert "6 faster, 8 slower, 0 tied." in apart
    assert "The cells did not move together (0.77x to 1.43x): each is judged by its own ratio." in apart
    assert "beyond" not in apart
    assert "7 of 8 cells moved together, by 0.87x (0.87x to 0.87x)" in shown([1.15] * 7 + [1.4])


def test_two_cells_are_too_few_to_find_a_shared_factor(results: MakeResults) -> None:
    choose = np.random.default_rng(6)
    found = compare(results(*drawn_run(choose, [1.0] * 2)), results(*drawn_run(choose, [1.3] * 2)))
    assert found.common is None
    assert [cell.verdict for cell in found.cells] == ["slower", "slower"]


# Masks


def test_masks_that_met_their_gate_before_and_fail_now_are_marked(
    tmp_path: Path, results: MakeResults, make_parity: MakeParity
) -> None:
    same, edges = make_parity(), make_parity(flipped_pixels=3)
    failed = make_parity(flipped_pixels=5000, worst_iou=0.5)
    speeds = [noisy_cell(0.1, batch_size=size, seed=1) for size in (1, 2, 4)]
    broken = dataclasses.replace(speeds[0], status="parity broken", reason="IoU 0.5", parity=failed)
    kept = [dataclasses.replace(cell, parity=same) for cell in speeds]
    runs = [
        Run("before", results(*kept[:2], dataclasses.replace(broken, batch_size=4))),
        Run(
            "after",
            results(broken, dataclasses.replace(speeds[1], parity=edges), dataclasses.replace(broken, batch_size=4)),
        ),
    ]
    compared = compare(*(run.results for run in runs))
    assert [cell.verdict for cell in compared.cells] == ["tied"] * 3  # the speed
    assert [(cell.masks_before, cell.masks_after) for cell in compared.cells] == [
        ("identical", "FAILED"),
        ("identical", "edges only"),
        ("FAILED", "FAILED"),
    ]
    assert [cell.masks_broke for cell in compared.cells] == [True, False, False]
    unjudged = compare(results(dataclasses.replace(speeds[0], parity=None)), results(broken))
    assert [(cell.masks_before, cell.masks_broke) for cell in unjudged.cells] == [(None, False)]
    document = comparison_document(compared, runs)
    for shown in (to_text(document), markdown.to_markdown(document)):
        assert "identical → FAILED" in shown
        assert "identical → edges only" in shown
        assert "Masks met their gate before and fail now: onnxruntime:fp32 batch 1." in " ".join(shown.split())
    unchanged = comparison_document(compare(runs[0].results, runs[0].results), runs[:1] * 2)
    assert "masks" not in to_text(unchanged).lower()
    before, after = (tmp_path / f"{run.label}.json" for run in runs)
    for path, run in zip((before, after), runs, strict=True):
        path.write_text(to_json(run.results))
    done = segx(before, after, "--fail-on-regression", "5%")
    assert done.returncode == 3
    assert "masks fail now: onnxruntime-cpu:fp32 batch 1" in done.stderr
    assert segx(before, before, "--fail-on-regression", "5%").returncode == 0
    cells = json.loads(segx(before, after, "--json").stdout)["cells"]
    assert (cells[0]["masks_before"], cells[0]["masks_after"]) == ("identical", "FAILED")


@pytest.mark.parametrize("field", SETTINGS)
def test_differences_are_refused_by_name_with_both_values_unless_allowed(field: str, results: MakeResults) -> None:
    one = results(noisy_cell(0.1))
    other = {
        "weights": dataclasses.replace(one, model=dataclasses.replace(one.model, weights_sha256="c" * 64)),
        "spec": dataclasses.replace(one, model=dataclasses.replace(one.model, spec=ModelSpec(threshold=0.4))),
        "inputs": dataclasses.replace(one, inputs=dataclasses.replace(one.inputs, sha256="d" * 64)),
        "host": dataclasses.replace(one, machine=dataclasses.replace(one.machine, cpu="B CPU")),
        "instructions": dataclasses.replace(one, machine=dataclasses.replace(one.machine, cpu_flags=("amx_int8",))),
        "threads": dataclasses.replace(one, options=dataclasses.replace(one.options, threads=4)),
        "memory_profile": dataclasses.replace(one, options=dataclasses.replace(one.options, memory_profile="low")),
    }[field]
    with pytest.raises(NotComparable, match=f"differ in {field}: .+ against .+") as caught:
        compare(one, other)
    assert f"--allow {field}" in caught.value.hint
    if field == "spec":
        assert "threshold 0.5 against threshold 0.4" in caught.value.message
    assert compare(one, other, allow=[field]).cells


def segx(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segx", "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_gates_on_a_regression(tmp_path: Path, results: MakeResults) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(to_json(results(noisy_cell(0.1, seed=1))))
    after.write_text(to_json(results(noisy_cell(0.12, seed=2))))
    shown = segx(before, after)
    assert shown.returncode == 0
    assert "slower" in shown.stdout
    failed = segx(before, after, "--fail-on-regression", "5%")
    assert failed.returncode == 3
    assert "onnxruntime-cpu:fp32 batch 1" in failed.stderr
    assert segx(after, before, "--fail-on-regression", "5%").returncode == 0
    noisy = tmp_path / "noisy.json"
    noisy.write_text(to_json(results(noisy_cell(0.1, seed=3, noise=0.5))))
    unsure = segx(before, noisy, "--fail-on-regression", "5%")
    assert unsure.returncode == 3
    assert "no verdict: too noisy to tell 5%" in unsure.stderr
    assert "too noisy to tell 0.5%" in segx(before, noisy, "--fail-on-regression", "0.5%").stdout
    for share in ("0.5%", "2.25%", "7%"):
        assert f"slower by {share} or more" in segx(before, after, "--fail-on-regression", share).stderr
        assert f"too noisy to tell {share}:" in segx(before, noisy, "--fail-on-regression", share).stderr
    assert segx(before, tmp_path / "missing").returncode == 1
    assert segx(before, after, "--fail-on-regression", "fast").returncode == 2


@pytest.mark.parametrize(
    "cells", [(), (Cell(runtime="onnxruntime-cpu", precision="fp32", batch_size=2, status="crashed"),)]
)
def test_a_comparison_of_nothing_does_not_pass(cells: tuple[Cell, ...], tmp_path: Path, results: MakeResults) -> None:
    files = [tmp_path / f"{name}.json" for name in ("failed", "other", "measured")]
    for path, found in zip(files, (cells, cells, [noisy_cell(0.1)]), strict=True):
        path.write_text(to_json(results(*found)))
    failed, other, measured = files
    for pair in ((failed, other), (failed, measured)):
        shown = segx(*pair)
        assert shown.returncode == 0
        assert "Nothing was compared: no cell was measured in both runs." in " ".join(shown.stdout.split())
        done = segx(*pair, "--fail-on-regression", "5%")
        assert done.returncode == 3
        assert "nothing was compared: no cell was measured in both runs" in done.stderr


def steady_cell(batch_size: int, call_s: float, runtime: str = "onnxruntime-cpu", **changes: Any) -> Cell:
    made = Cell(
        runtime=runtime,
        precision="fp32",
        batch_size=batch_size,
        status="ok",
        samples_s=(call_s,) * 10,
        rounds=tuple(Round(number=i, runs=1) for i in range(10)),
    )
    return dataclasses.replace(made, **changes)


GONE = Cell(
    runtime="tensorrt", precision="fp32", batch_size=None, status="unavailable", reason="no driver", remedy="get one"
)


@pytest.fixture
def two(make_results: MakeResults, make_parity: MakeParity) -> SideBySide:
    """B is twice as fast at batch 1, has lost batch 2, and has TensorRT."""
    parity = make_parity()
    before = make_results(steady_cell(1, 0.2, parity=parity), steady_cell(2, 0.4, parity=parity), GONE)
    after = make_results(
        steady_cell(1, 0.1, parity=make_parity(flipped_pixels=50)),
        steady_cell(2, 0, status="crashed", samples_s=(), rounds=(), reason="bang", remedy="look"),
        steady_cell(1, 0.01, "tensorrt"),
    )
    after = dataclasses.replace(
        after, segx="0.2.0", machine=dataclasses.replace(after.machine, versions={"torch": "2.16", "openvino": "1"})
    )
    return side_by_side([Run("old", before), Run("new", after)])


def test_ratios_are_to_the_first_run_with_their_interval(two: SideBySide) -> None:
    rows = {(row.variant.runtime, row.batch_size): row for row in two.rows}
    ratio = rows["onnxruntime-cpu", 1].ratios[1]
    assert ratio
    assert ratio.ratio == pytest.approx(2.0)
    assert ratio.interval
    assert rows["onnxruntime-cpu", 1].ratios[0] is None
    assert rows["onnxruntime-cpu", 2].ratios[1] is None
    assert rows["tensorrt", 1].ratios[1] is None
    assert rows["tensorrt", 1].cells[0] == GONE


def test_differences_are_listed(two: SideBySide) -> None:
    assert two.differences == {"torch": ("2.15", "2.16"), "openvino": ("", "1"), "segx": ("0.1.0", "0.2.0")}
    assert two.warnings == ()
    assert two.same_masks
    text = to_text(side_by_side_document(two))
    assert re.search("torch +A 2.15, B 2.16", text)
    assert re.search("openvino +A –, B 1", text)


@pytest.mark.parametrize(
    ("change", "warning", "ratios", "masks"),
    [
        ({"machine": {"cpu": "Another"}}, "the machines differ", True, True),
        ({"options": {"threads": 8}}, "the threads differ", True, True),
        ({"inputs": {"sha256": "ff" * 32}}, "the images differ: the masks do not compare", True, False),
        ({"model": {"weights_sha256": "ff" * 32}}, "the weights differ", True, False),
        ({"model": {"spec": ModelSpec(height=512)}}, "no ratios are given", False, False),
        ({"model": {"spec": ModelSpec(threshold=0.4)}}, "no ratios are given", False, False),
    ],
)
def test_warnings_come_before_the_figures(
    make_results: MakeResults, change: dict[str, dict[str, Any]], warning: str, ratios: bool, masks: bool
) -> None:
    before = make_results(steady_cell(1, 0.2))
    changes: dict[str, Any] = {
        name: dataclasses.replace(getattr(before, name), **fields) for name, fields in change.items()
    }
    compared = side_by_side([Run("a", before), Run("b", dataclasses.replace(before, **changes))])
    assert [line for line in compared.warnings if warning in line]
    assert (compared.rows[0].ratios[1] is not None) == ratios
    assert compared.same_masks == masks
    text = to_text(side_by_side_document(compared), columns=200)
    assert text.index(warning) < text.index("batch")
    assert f"> **Warning**: {compared.warnings[0]}." in markdown.to_markdown(side_by_side_document(compared))


def test_the_table(two: SideBySide) -> None:
    text = to_text(side_by_side_document(two))
    assert text.splitlines()[:2] == [
        "A  old, 2026-01-01 00:00, segx 0.1.0; A, 2 cores",
        "B  new, 2026-01-01 00:00, segx 0.2.0; A, 2 cores",
    ]
    assert "    1         5.00     10.0    2.0x  identical / FAILED" in text
    assert "    2         5.00  crashed       –  identical" in text
    assert "    1  unavailable      100       –  –" in text
    assert "- B: onnxruntime-cpu:fp32 batch 2: crashed: bang; look" in text
    assert max(map(len, text.splitlines())) <= 80


def test_all_forms_have_the_same_figures(two: SideBySide) -> None:
    text = re.sub(" +", " ", markdown.to_markdown(side_by_side_document(two)))
    assert "| onnxruntime-cpu:fp32 | 1 | 5.00 | 10.0 | 2.0x | identical / FAILED |" in text
    rows = list(csv.DictReader(io.StringIO(csv_json.to_csv(csv_json.side_by_side_rows(two)))))
    found = {(row["run"], row["runtime"], row["batch_size"]): row for row in rows}
    assert len(rows) == 6
    assert float(found["new", "onnxruntime-cpu", "1"]["vs_first"]) == pytest.approx(2.0)
    assert found["old", "onnxruntime-cpu", "1"]["vs_first"] == ""
    assert found["new", "onnxruntime-cpu", "2"]["status"] == "crashed"
    values = json.loads(csv_json.to_json(csv_json.side_by_side_data(two)))
    assert [run["label"] for run in values["runs"]] == ["old", "new"]
    one = next(row for row in values["rows"] if row["runtime"] == "onnxruntime-cpu" and row["batch_size"] == 1)
    assert one["cells"][1]["vs_first"] == pytest.approx(2.0)
    assert one["cells"][1]["masks"] == "FAILED"
    assert values["masks_compare"] is True


def test_labels_have_as_many_parent_folders_as_needed(make_results: MakeResults) -> None:
    results = make_results()

    def labels(*paths: str) -> list[str]:
        return [run.label for run in labelled([(Path(path), results) for path in paths])]

    assert labels("a/one", "a/two") == ["one", "two"]
    assert labels("monday/bench", "tuesday/bench") == ["monday/bench", "tuesday/bench"]
    assert labels("/x/bench", "/x/bench", "y") == ["bench (1)", "bench (2)", "y"]


def test_a_file_is_named_by_its_folder(make_results: MakeResults, tmp_path: Path) -> None:
    file = tmp_path / "monday" / "results.json"
    file.parent.mkdir()
    file.write_text("{}")
    assert labelled([(file, make_results()), (tmp_path / "x", make_results())])[0].label == "monday"


def test_one_run_is_not_enough(make_results: MakeResults) -> None:
    with pytest.raises(UsageError, match="side by side"):
        side_by_side([Run("a", make_results())])


def test_many_runs_fit_80_columns(make_results: MakeResults) -> None:
    runs = [Run(f"run-{i}", make_results(steady_cell(1, 0.1 + i / 100))) for i in range(30)]
    text = to_text(side_by_side_document(side_by_side(runs)))
    assert max(map(len, text.splitlines())) <= 80
    assert "AD vs A" in text
    assert letters(28)[-3:] == ["Z", "AA", "AB"]


def test_text_of_the_runs_cannot_act_on_the_terminal_or_the_page(make_results: MakeResults) -> None:
    spoilt = dataclasses.replace(make_results(steady_cell(1, 0.1)), segx="\x1b[2J|<b>")
    compared = side_by_side([Run("\x1b[31m", spoilt), Run("b|<script>", make_results(steady_cell(1, 0.1)))])
    document = side_by_side_document(compared)
    for shown in (
        to_text(document),
        markdown.to_markdown(document),
        csv_json.to_csv(csv_json.side_by_side_rows(compared)),
    ):
        assert "\x1b" not in shown
    assert "<script" not in markdown.to_markdown(document).replace("\\<", "")
