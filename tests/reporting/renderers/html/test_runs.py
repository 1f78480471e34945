"""Pages of several runs: side by side, and a history."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from segx.analysis.compare import Run, side_by_side
from segx.analysis.history import History, grouped
from segx.reporting.renderers.html.page import compare_page, history_page
from segx.results.types import Cell, Results, Round
from tests.browsing import invalid_charts

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "<img src=x onerror=window.hit=1></script><script>window.hit=1</script>{{7*7}}"


def faster(results: Results, factor: float, **changes: Any) -> Results:
    """Return the results with all times divided by a factor, one round per call."""

    def one(cell: Cell) -> Cell:
        samples = tuple(second / factor for second in cell.samples_s)
        rounds = tuple(Round(number=i, runs=1) for i in range(len(samples)))
        return dataclasses.replace(cell, samples_s=samples, rounds=rounds)

    return dataclasses.replace(results, cells=tuple(map(one, results.cells)), **changes)


@pytest.fixture
def history(results: Results) -> History:
    speeds = (1.0, 1.0, 0.5, 0.5)
    loaded = [
        (Path(f"{HOSTILE.replace('/', '')}-{day}"), faster(results, speed, created=f"2026-01-0{day}T00:00:00+00:00"))
        for day, speed in enumerate(speeds, start=1)
    ]
    loaded.append((Path("other"), faster(results, 1.0, machine=dataclasses.replace(results.machine, cpu=HOSTILE))))
    return History(Path("benches"), tuple(grouped(loaded)), ((Path(HOSTILE), HOSTILE),), 0.05)


@pytest.fixture
def pages(results: Results, history: History) -> tuple[str, str]:
    runs = [Run("one", results), Run(HOSTILE, faster(results, 2.0, segx=HOSTILE))]
    return history_page(history), compare_page(side_by_side(runs))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="segx-data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_each_page_has_a_chart_of_images_per_second(pages: Sequence[str]) -> None:
    for page, count in zip(pages, (1, 1), strict=True):
        charts = data_of(page)["charts"]
        assert len(charts) == count
        for chart in charts.values():
            assert chart["layout"]["yaxis"]["title"]["text"] == "images per second"


def test_charts_show_foreign_text_as_the_other_forms_do(results: Results) -> None:
    runs = [Run("one", results), Run("a\u202eb\ud800", faster(results, 2.0))]
    page = compare_page(side_by_side(runs))
    told = json.dumps(data_of(page)["charts"], ensure_ascii=False)
    assert r"a\\u202eb\\ud800" in told
    assert "\u202e" not in page + told


def test_choices_keep_their_order(pages: Sequence[str]) -> None:
    """Batch 2 comes before batch 16, and variants are in the order of the bench."""
    for page in pages:
        for key, chart in data_of(page)["charts"].items():
            (select,) = re.findall(rf'<select data-frame-of="{key}">(.*?)</select>', page, re.DOTALL)
            assert re.findall("<option>(.*?)</option>", select) == list(chart["frames"])
    assert next(iter(data_of(pages[1])["charts"]["side-by-side"]["frames"])) == "pytorch-cpu:fp32"


def test_changes_are_marked_at_their_run(history: History, pages: Sequence[str]) -> None:
    (chart,) = data_of(pages[0])["charts"].values()
    marks = [trace for trace in chart["frames"]["1"] if trace["mode"] == "markers"]
    assert len(marks) == 3
    for trace in marks:
        assert trace["x"] == ["2026-01-03T00:00:00+00:00"]
        assert trace["marker"]["symbol"] == ["triangle-down-open"]
    changes = [change for series in history.groups[0].series for change in series.changes]
    assert {change.kind for change in changes} == {"slower"}
    assert pages[0].count("slower: 0.50x") >= len(changes)


def test_markup_stays_text(pages: Sequence[str]) -> None:
    for page in pages:
        assert "<img src=x" not in page
        assert "</script><script>window.hit" not in page
        assert "{{7*7}}" in page


def test_warnings_and_failures_are_listed(results: Results) -> None:
    other = dataclasses.replace(results, machine=dataclasses.replace(results.machine, cpu="Another"))
    page = compare_page(side_by_side([Run("a", results), Run("b", other)]))
    assert "the machines differ" in page.lower()
    assert "get one" in page  # the remedy of what is unavailable


@pytest.mark.slow
def test_pages_draw_on_a_phone_accessibly_and_run_no_other_script(
    pages: Sequence[str], browser: Browser, tmp_path: Path, violations: Callable[[Page], list[str]]
) -> None:
    for number, text in enumerate(pages):
        file = tmp_path / f"{number}.html"
        file.write_text(text, encoding="utf-8")
        page = browser.new_page(viewport={"width": 390, "height": 800})
        console: list[str] = []
        page.on("console", lambda message: console.append(message.text))  # noqa: B023  # both end within the round
        page.on("pageerror", lambda error: console.append(str(error)))  # noqa: B023  # likewise
        page.goto(file.as_uri())
        plot = page.locator(".plot").first
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
        assert plot.locator("path.point").count() > 0
        assert invalid_charts(page) == []
        second = page.locator("select option").nth(1).text_content()
        page.locator("select").first.select_option(second)
        plot.locator("path.point").first.wait_for()
        assert page.evaluate("window.hit") is None
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert violations(page) == []
        assert console == []
        page.close()
