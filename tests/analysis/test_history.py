"""A series over time: real changes are found, noise is not."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segx.analysis.figures import log_rounds
from segx.analysis.history import Change, Group, History, grouped, read_history
from segx.analysis.stats import pooled_process_sd
from segx.errors import ResultsError
from segx.reporting.renderers import csv_json, markdown
from segx.reporting.renderers.text import to_text
from segx.reporting.runs_document import history_document
from segx.results.store import to_json
from segx.results.types import Cell, Parity, Results, Round

MakeResults = Callable[..., Results]
MakeParity = Callable[..., Parity]


def cell(call_s: float, *, seed: int = 0, spread: float = 0.01, runs: int = 12, size: int = 1, **changes: Any) -> Cell:
    """A cell whose rounds, of one call each, vary by some percent."""
    factors = np.exp(np.random.default_rng(seed).normal(0.0, spread, size=runs))
    made = Cell(
        runtime="onnxruntime-cpu",
        precision="fp32",
        batch_size=size,
        status="ok",
        samples_s=tuple(float(call_s * factor) for factor in factors),
        rounds=tuple(Round(number=i, runs=1) for i in range(runs)),
    )
    return dataclasses.replace(made, **changes)


CRASHED = cell(1.0, status="crashed", samples_s=(), rounds=(), reason="bang", remedy="look")


def day(make_results: MakeResults, number: int, *cells: Cell, **changes: Any) -> tuple[Path, Results]:
    results = dataclasses.replace(make_results(*cells), created=f"2026-01-{number:02}T00:00:00+00:00")
    return Path(f"day-{number:02}"), dataclasses.replace(results, **changes)


def series_of(make_results: MakeResults, cells: Sequence[Cell]) -> Group:
    (group,) = grouped([day(make_results, number, each) for number, each in enumerate(cells, start=1)])
    return group


def changes_of(make_results: MakeResults, cells: Sequence[Cell]) -> tuple[Change, ...]:
    (series,) = series_of(make_results, cells).series
    return series.changes


def test_a_step_is_found_where_it_is(make_results: MakeResults) -> None:
    times = [0.1, 0.101, 0.099, 0.1, 0.13, 0.131, 0.129, 0.13]
    (change,) = changes_of(make_results, [cell(time, seed=i) for i, time in enumerate(times)])
    assert (change.kind, change.before, change.after) == ("slower", 3, 4)
    assert change.speedup
    assert change.speedup.ratio == pytest.approx(1 / 1.3, rel=0.05)
    assert change.p_value is not None
    assert change.p_value < 0.001


def test_a_step_to_shorter_times_is_faster(make_results: MakeResults) -> None:
    (change,) = changes_of(make_results, [cell(0.1), cell(0.08, seed=1)])
    assert change.kind == "faster"


@pytest.mark.parametrize(("from_run_to_run", "most"), [(0.0, 0.0), (0.02, 0.025), (0.05, 0.025)])
def test_noise_is_not_marked(make_results: MakeResults, from_run_to_run: float, most: float) -> None:
    """Of 20 series of 20 runs without a change; what lies beyond three standard deviations cannot be told from one."""
    chance = np.random.default_rng(1)
    marked = steps = 0
    for number in range(20):
        times = 0.1 * np.exp(chance.normal(0, from_run_to_run, size=20))
        cells = [cell(float(time), seed=number * 100 + i, spread=0.02) for i, time in enumerate(times)]
        marked += len(changes_of(make_results, cells))
        steps += len(cells) - 1
    assert marked <= most * steps


@pytest.mark.parametrize("step", [1.0, 1.3])
def test_processes_that_differ_are_no_change(make_results: MakeResults, step: float) -> None:
    """Eight cells, each of two processes that differ by 3%; in the later run the first cell may be 30% slower."""
    chance = np.random.default_rng(3)

    def run(number: int, first: float) -> tuple[Path, Results]:
        cells = []
        for size in range(1, 9):
            factors = [float(np.exp(chance.normal(0, 0.03))) for _ in range(2)]
            halves = [
                cell(0.1 * factor * (first if size == 1 else 1.0), seed=int(chance.integers(1 << 30)), runs=10)
                for factor in factors
            ]
            rounds = tuple(Round(number=i, runs=1, process=i // 10) for i in range(20))
            cells.append(cell(0.1, size=size, samples_s=halves[0].samples_s + halves[1].samples_s, rounds=rounds))
        process_sd = pooled_process_sd([log_rounds(each) for each in cells])
        return day(make_results, number, *(dataclasses.replace(each, process_sd=process_sd) for each in cells))

    marked = found = 0
    for _ in range(30):
        (group,) = grouped([run(1, 1.0), run(2, step)])
        changed = [series.batch_size for series in group.series if series.changes]
        found += 1 in changed
        marked += bool({*changed} - {1})
    assert marked <= 0.05 * 30
    assert found <= 0.05 * 30 if step == 1.0 else found >= 0.9 * 30


def test_on_a_noisy_machine_only_large_steps_are_marked(make_results: MakeResults) -> None:
    """Every step is significant by itself: nothing varies within a run. Only one is larger than the others."""
    times = [0.1, 0.11, 0.1, 0.109, 0.1, 0.11, 0.2, 0.21, 0.2]
    found = changes_of(make_results, [cell(time, spread=0.0001, seed=i) for i, time in enumerate(times)])
    assert [(change.kind, change.after) for change in found] == [("slower", 6)]


@pytest.mark.parametrize("per_run", [0.01, -0.01])
def test_a_slow_drift_is_found(make_results: MakeResults, per_run: float) -> None:
    """No step of 1% is worth acting on, but 15 of them are."""
    times = [0.1 * (1 + per_run) ** i for i in range(16)]
    cells = [cell(time, seed=i, spread=0.01) for i, time in enumerate(times)]
    (change,) = changes_of(make_results, cells)
    assert (change.kind, change.before, change.after) == ("drift", 0, 15)
    assert change.description.startswith("0.86x over 16 runs" if per_run > 0 else "1.1")
    text = " ".join(to_text(history_document(History(Path(), (series_of(make_results, cells),), (), 0.025))).split())
    assert "drift: " in text
    assert "adds up to at least 2.5%" in text
    assert changes_of(make_results, cells[:6]) == ()  # too short, and too little


def test_a_drift_is_looked_for_after_the_last_change_of_speed(make_results: MakeResults) -> None:
    times = [0.2] * 4 + [0.1 * 1.01**i for i in range(12)]
    kinds = [
        (c.kind, c.before, c.after) for c in changes_of(make_results, [cell(t, seed=i) for i, t in enumerate(times)])
    ]
    assert kinds == [("faster", 3, 4), ("drift", 4, 15)]


def test_a_change_too_small_to_act_on_is_not_marked(make_results: MakeResults) -> None:
    loaded = [day(make_results, i + 1, cell(time, spread=0.001, seed=i)) for i, time in enumerate((0.1, 0.104))]
    assert not grouped(loaded)[0].series[0].changes
    assert grouped(loaded, least_change=0.03)[0].series[0].changes


def test_medians_that_disagree_on_the_direction_are_not_marked(make_results: MakeResults) -> None:
    """Most calls became slower, but most rounds faster: a round may hold many calls."""
    rounds = tuple(Round(number=i, runs=100 if i < 2 else 1) for i in range(12))
    old = cell(0.1, samples_s=(0.1,) * 210, rounds=rounds)
    new = cell(0.1, samples_s=(0.2,) * 200 + (0.05,) * 10, rounds=rounds)
    assert changes_of(make_results, [old, new]) == ()


def test_too_few_rounds_are_not_tested_and_are_counted(make_results: MakeResults) -> None:
    cells = [cell(0.1, runs=5), cell(0.2, runs=5)]
    group = series_of(make_results, cells)
    assert group.series[0].changes == ()
    assert group.untested == 1
    assert "1 step with fewer than 6 rounds" in to_text(history_document(History(Path(), (group,), (), 0.05)))


def test_cells_that_stop_working_and_changed_masks_are_marked(
    make_results: MakeResults, make_parity: MakeParity
) -> None:
    same, other = make_parity(), make_parity(flipped_pixels=1)
    cells = [cell(0.1, parity=same), CRASHED, cell(0.1, parity=same), cell(0.1, parity=other)]
    found = changes_of(make_results, cells)
    assert [(change.kind, change.after, change.description) for change in found] == [
        ("lost", 1, "ok → crashed (bang)"),
        ("back", 2, "crashed → ok"),
        ("masks", 3, "identical → edges only"),
    ]


def test_a_run_without_the_cell_is_skipped(make_results: MakeResults) -> None:
    runs = [day(make_results, 1, cell(0.1)), day(make_results, 2, cell(0.5, size=2)), day(make_results, 3, cell(0.2))]
    (group,) = grouped(runs)
    batch_1 = group.series[0]
    assert batch_1.cells[1] is None
    assert [(change.before, change.after) for change in batch_1.changes] == [(0, 2)]


def test_incomparable_runs_are_in_separate_groups(make_results: MakeResults) -> None:
    first = day(make_results, 3, cell(0.1))
    host = dataclasses.replace(first[1].machine, cpu="Another")
    loaded = [first, day(make_results, 1, cell(0.1)), day(make_results, 5, cell(0.9), machine=host)]
    groups = grouped(loaded)
    assert [[run.label for run in group.runs] for group in groups] == [["day-05"], ["day-01", "day-03"]]
    assert not any(series.changes for group in groups for series in group.series)


def test_runs_are_ordered_by_time_across_time_zones(make_results: MakeResults) -> None:
    times = ["2026-01-01T12:00:00+02:00", "2026-01-01T11:00:00", "2026-01-01T09:00:00Z"]
    loaded = [
        (Path(f"run-{i}"), dataclasses.replace(make_results(cell(0.1)), created=time)) for i, time in enumerate(times)
    ]
    assert [run.label for run in grouped(loaded)[0].runs] == ["run-2", "run-0", "run-1"]


# Reading


def save(folder: Path, results: Results) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(to_json(results))
    return folder / "results.json"


def test_a_folder_is_read_at_any_depth_and_foreign_files_are_listed(make_results: MakeResults, tmp_path: Path) -> None:
    for number, each in ((2, tmp_path / "b"), (1, tmp_path / "deep" / "er" / "a")):
        save(each, day(make_results, number, cell(0.1 * number))[1])
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "results.json").write_bytes((tmp_path / "b" / "results.json").read_bytes())
    for name, text in (("empty", ""), ("foreign", '{"a": 1}'), ("newer", '{"schema_version": 99}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    save(tmp_path / "undated", dataclasses.replace(make_results(), created="yesterday"))
    (tmp_path / "other.json").write_text("{}")
    save(tmp_path / ".results.json-x1", make_results())
    found = read_history(tmp_path)
    assert [[run.label for run in group.runs] for group in found.groups] == [["a", "b"]]
    reasons = {path.parent.name: reason for path, reason in found.skipped}
    assert set(reasons) == {"copy", "empty", "foreign", "newer", "undated"}
    assert reasons["copy"] == f"the same file as {tmp_path / 'b' / 'results.json'}"
    assert reasons["newer"].startswith("has schema version 99")
    assert "yesterday" in reasons["undated"]


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no results below"):
        read_history(tmp_path)
    with pytest.raises(ResultsError, match="is not a folder"):
        read_history(tmp_path / "missing")
    (tmp_path / "results.json").write_text("no")
    with pytest.raises(ResultsError, match="none of 1 files can be read"):
        read_history(tmp_path)


# Forms


@pytest.fixture
def history(make_results: MakeResults) -> History:
    times = [0.1, 0.1, 0.2, 0.2]
    loaded = [day(make_results, i + 1, cell(time, seed=i)) for i, time in enumerate(times)]
    host = dataclasses.replace(loaded[2][1].machine, versions={"torch": "2.16"})
    loaded[2:] = [(path, dataclasses.replace(results, machine=host)) for path, results in loaded[2:]]
    loaded.append(day(make_results, 5, CRASHED, machine=host))
    return History(Path("benches"), tuple(grouped(loaded)), ((Path("bad\x1b[31m"), "damaged | <b>"),), 0.05)


def test_text_shows_the_series_the_changes_and_what_else_differs(history: History) -> None:
    text = to_text(history_document(history))
    assert "██▅▅×" in text
    assert "slower 3, lost 5" in text
    assert "run 3: what else differs from run 2: torch 2.15 → 2.16" in text
    assert "0.50x" in text
    assert "run 5: what else differs from run 4: nothing that was recorded" in text
    assert "lost: ok → crashed (bang)" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_data_has_every_point_and_change(history: History) -> None:
    assert json.loads(csv_json.to_json(csv_json.history_data(history))) == csv_json.history_data(history)
    (group,) = csv_json.history_data(history)["groups"]
    (series,) = group["series"]
    assert [point["run"] for point in series["points"]] == [0, 1, 2, 3, 4]
    assert series["points"][4]["s_per_image"] is None
    assert series["points"][0]["s_per_image_low"] <= series["points"][0]["s_per_image"]
    assert [(change["kind"], change["after"]) for change in series["changes"]] == [("slower", 2), ("lost", 4)]
    assert series["changes"][0]["ratio_low"] < 0.51 < series["changes"][0]["ratio_high"] + 0.05


def test_csv_has_a_row_per_run_and_cell(history: History) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_json.to_csv(csv_json.history_rows(history)))))
    assert [row["changes"] for row in rows] == ["", "", "slower", "", "lost"]
    assert float(rows[2]["ratio"]) == pytest.approx(0.5, rel=0.05)
    assert rows[4]["status"] == "crashed"


def test_markdown_is_escaped(history: History) -> None:
    text = markdown.to_markdown(history_document(history))
    assert "| slower 3, lost 5 |" in text
    assert "damaged \\| \\<b>" in text
    assert "\x1b" not in text


def test_a_long_series_shows_its_latest_runs(make_results: MakeResults) -> None:
    loaded = [
        (
            Path(f"run-{i:03}"),
            dataclasses.replace(make_results(cell(0.1, seed=i)), created=f"2026-01-01T{i // 60:02}:{i % 60:02}:00"),
        )
        for i in range(100)
    ]
    text = to_text(history_document(History(Path("x"), tuple(grouped(loaded)), (), 0.05)))
    assert max(map(len, text.splitlines())) <= 80
    assert "█" * 15 in text.replace("▇", "█")
    assert "and 98 more" in text
    assert "run 1    run-000, 2026-01-01 00:00, segx" in text
    assert "run 100  run-099, 2026-01-01 01:39, segx" in text
