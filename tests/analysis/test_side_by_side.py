"""Several runs in one table: what differs is said, and what does not compare has no ratio."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segx.analysis.compare import Run, SideBySide, labelled, side_by_side
from segx.errors import UsageError
from segx.model.spec import ModelSpec
from segx.reporting import data, markdown
from segx.reporting.compare_document import letters, side_by_side_document
from segx.reporting.text import to_text
from segx.results.types import Cell, Parity, Results, Round

MakeResults = Callable[..., Results]
MakeParity = Callable[..., Parity]


def cell(batch_size: int, call_s: float, runtime: str = "onnxruntime-cpu", **changes: Any) -> Cell:
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
    before = make_results(cell(1, 0.2, parity=parity), cell(2, 0.4, parity=parity), GONE)
    after = make_results(
        cell(1, 0.1, parity=make_parity(flipped_pixels=50)),
        cell(2, 0, status="crashed", samples_s=(), rounds=(), reason="bang", remedy="look"),
        cell(1, 0.01, "tensorrt"),
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


def test_what_differs_is_said(two: SideBySide) -> None:
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
def test_what_casts_doubt_on_figures_is_said_on_top(
    make_results: MakeResults, change: dict[str, dict[str, Any]], warning: str, ratios: bool, masks: bool
) -> None:
    before = make_results(cell(1, 0.2))
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
        "A  old: segx 0.1.0, 2026-01-01T00:00:00+00:00, A CPU, 2 cores",
        "B  new: segx 0.2.0, 2026-01-01T00:00:00+00:00, A CPU, 2 cores",
    ]
    assert "    1         5.00    10.00  2.00x ±0.00  identical / broken" in text
    assert "    2         5.00  crashed            –  identical" in text
    assert "    1  unavailable   100.00            –  –" in text
    assert "- B: onnxruntime-cpu:fp32 batch 2: crashed: bang; look" in text
    assert max(map(len, text.splitlines())) <= 80


def test_all_forms_have_the_same_figures(two: SideBySide) -> None:
    text = re.sub(" +", " ", markdown.to_markdown(side_by_side_document(two)))
    assert "| onnxruntime-cpu:fp32 | 1 | 5.00 | 10.00 | 2.00x ±0.00 | identical / broken |" in text
    rows = list(csv.DictReader(io.StringIO(data.to_csv(data.side_by_side_rows(two)))))
    found = {(row["run"], row["runtime"], row["batch_size"]): row for row in rows}
    assert len(rows) == 6
    assert float(found["new", "onnxruntime-cpu", "1"]["vs_first"]) == pytest.approx(2.0)
    assert found["old", "onnxruntime-cpu", "1"]["vs_first"] == ""
    assert found["new", "onnxruntime-cpu", "2"]["status"] == "crashed"
    values = json.loads(data.to_json(data.side_by_side_data(two)))
    assert [run["label"] for run in values["runs"]] == ["old", "new"]
    one = next(row for row in values["rows"] if row["runtime"] == "onnxruntime-cpu" and row["batch_size"] == 1)
    assert one["cells"][1]["vs_first"] == pytest.approx(2.0)
    assert one["cells"][1]["masks"] == "broken"
    assert values["masks_compare"] is True


def test_runs_are_named_by_as_much_of_their_folders_as_it_takes(make_results: MakeResults) -> None:
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
    runs = [Run(f"run-{i}", make_results(cell(1, 0.1 + i / 100))) for i in range(30)]
    text = to_text(side_by_side_document(side_by_side(runs)))
    assert max(map(len, text.splitlines())) <= 80
    assert "AD vs A" in text
    assert letters(28)[-3:] == ["Z", "AA", "AB"]


def test_text_of_the_runs_cannot_act_on_the_terminal_or_the_page(make_results: MakeResults) -> None:
    spoilt = dataclasses.replace(make_results(cell(1, 0.1)), segx="\x1b[2J|<b>")
    compared = side_by_side([Run("\x1b[31m", spoilt), Run("b|<script>", make_results(cell(1, 0.1)))])
    document = side_by_side_document(compared)
    for shown in (to_text(document), markdown.to_markdown(document), data.to_csv(data.side_by_side_rows(compared))):
        assert "\x1b" not in shown
    assert "<script" not in markdown.to_markdown(document).replace("\\<", "")
