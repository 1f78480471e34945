"""What people see, as files to look at: made from committed results, in every form.

``SEGX_GOLDEN=write`` writes the files again; look at what changed before you commit it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from segx.analysis.compare import Run, compare, side_by_side
from segx.analysis.history import History, grouped
from segx.reporting.bench_document import bench_document, terminal_document
from segx.reporting.document import Document
from segx.reporting.renderers.markdown import summary, to_markdown
from segx.reporting.renderers.text import to_text
from segx.reporting.runs_document import comparison_document, history_document, side_by_side_document
from segx.results.store import load_results

GOLDEN = Path(__file__).parent / "golden"
TESTS = Path(__file__).parents[1]
COMMITTED = {
    "cpu": TESTS / "results" / "results.json",
    "eight": TESTS / "results" / "eight.json",
    "gpu": TESTS.parent / "docs" / "results" / "h100-2026-11-26" / "results.json",
}


def _golden(name: str, shown: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SEGX_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == shown, f"{path.name} differs: SEGX_GOLDEN=write writes it again"


def _runs(faster: float = 1.2) -> list[Run]:
    """Return a committed bench twice, the second time faster in all cells and newer."""
    before = load_results(COMMITTED["eight"])
    cells = tuple(
        dataclasses.replace(cell, samples_s=tuple(seconds / faster for seconds in cell.samples_s))
        for cell in before.cells
    )
    after = dataclasses.replace(before, created="2026-11-27T08:00:00+00:00", cells=cells)
    return [Run("monday", before), Run("today", after)]


def _history() -> Document:
    runs = [(Path(run.label), run.results) for run in _runs(1.5)]
    return history_document(History(Path("benches"), tuple(grouped(runs)), (), 0.05))


def _compared() -> Document:
    before, after = runs = _runs()
    return comparison_document(compare(before.results, after.results), runs)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMITTED)
@pytest.mark.parametrize("details", [False, True])
def test_a_bench_on_a_terminal(name: str, columns: int, *, details: bool) -> None:
    document = terminal_document(load_results(COMMITTED[name]), details=details)
    shown = to_text(document, columns=columns)
    assert max(map(len, shown.splitlines())) <= columns
    _golden(f"bench-{name}{'-details' * details}-{columns}.txt", shown)


def test_eight_variants_at_two_batch_sizes_take_at_most_40_lines() -> None:
    results = load_results(COMMITTED["eight"])
    loaded = dataclasses.replace(results.machine, load_average_1min=12.3)
    assert len({cell.variant for cell in results.cells if cell.measured}) == 8
    assert results.options.batch_sizes == (1, 4)
    assert len(to_text(terminal_document(dataclasses.replace(results, machine=loaded))).splitlines()) <= 40


@pytest.mark.parametrize("name", COMMITTED)
def test_a_bench_as_markdown(name: str) -> None:
    results = load_results(COMMITTED[name])
    document = bench_document(results).without("all")
    shown = to_markdown(document)
    assert shown == summary(document)
    _golden(f"bench-{name}.md", shown)


def test_a_history_of_30_runs_with_changes_is_a_table_of_80_columns() -> None:
    before, after = _runs(1.5)
    many = [(Path(f"run {i}"), (after if 10 <= i < 20 else before).results) for i in range(30)]
    dated = [
        (path, dataclasses.replace(each, created=f"2026-11-{i + 1:02}T08:00:00+00:00"))
        for i, (path, each) in enumerate(many)
    ]
    shown = to_text(history_document(History(Path("benches"), tuple(grouped(dated)), (), 0.05)))
    assert re.search(r"^batch  images/s by run  .* changes at run$", shown, flags=re.MULTILINE)
    assert "faster 11, slower 21" in shown


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("compare", _compared),
        ("history", _history),
        ("side-by-side", lambda: side_by_side_document(side_by_side(_runs()))),
    ],
)
def test_several_benches(name: str, columns: int, document: Callable[[], Document]) -> None:
    shown = to_text(document(), columns=columns)
    assert max(map(len, shown.splitlines())) <= columns
    _golden(f"{name}-{columns}.txt", shown)
    _golden(f"{name}.md", to_markdown(document()))
