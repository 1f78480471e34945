"""The page in a real browser: charts, controls, dark mode, print, and no network requests."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from segx.results.pictures import ParityPicture
from segx.results.types import Cell, DerivedFile, Results
from tests.browsing import invalid_charts

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.reporting.conftest import Bench, Open, Opened

Pictures = tuple[ParityPicture, ...]
HOSTILE = '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script><b>bold</b>{{7*7}}\'"&%{x}'


def unfold(page: Page) -> None:
    page.evaluate("for (const fold of document.querySelectorAll('.fold')) fold.open = true")


def draw_all(page: Page) -> Locator:
    """Unfold everything and scroll through the page so that every visible plot is drawn, and return the plots."""
    unfold(page)
    plots = page.locator(".plot:visible")
    for i in range(plots.count()):
        plots.nth(i).scroll_into_view_if_needed()
        plots.nth(i).locator(".main-svg").first.wait_for()
    return plots


def test_the_page_opens_without_errors_or_requests(
    opened: Opened,
) -> None:
    plots = draw_all(opened.page)
    assert plots.count() == 10  # nine charts of the cells, and the margins of the masks
    for i in range(plots.count()):
        shapes = plots.nth(i).locator("g.cartesianlayer").locator("path.point, g.point path, path.js-line")
        assert shapes.count() > 0, plots.nth(i).get_attribute("data-chart")
    assert opened.console == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert sum(url.startswith("file:") for url in opened.requests) == 1


def test_plotly_accepts_every_chart(opened: Opened) -> None:
    draw_all(opened.page)
    assert invalid_charts(opened.page) == []


def test_axes_have_titles(opened: Opened) -> None:
    plots = draw_all(opened.page)
    for i in range(plots.count()):
        for axis in (".xtitle", ".ytitle"):
            assert (plots.nth(i).locator(axis).text_content() or "").strip()


def test_hovering_shows_figures(opened: Opened) -> None:
    page = opened.page
    draw_all(page)
    plot = page.locator('[data-chart="waiting"]')
    plot.scroll_into_view_if_needed()
    point = plot.locator("path.point").first.bounding_box()
    assert point
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    told = plot.locator(".hoverlayer .hovertext").first.text_content() or ""
    assert "openvino-cpu:int8, batch 1" in told
    assert re.search(r"131 images/s", told)
    assert re.search(r"7\.61 ms per call", told)


def test_a_legend_entry_hides_and_shows_a_variant_in_all_charts(open_page: Open, results: Results) -> None:
    page = open_page(results).page
    draw_all(page)
    charts = ("waiting", "throughput", "roofline", "distribution", "drift", "cost", "memory", "cold", "break-even")

    def shown() -> set[str]:
        script = """charts => charts.filter(key => document.querySelector(`.plot[data-chart="${key}"]`)
            ._fullData.some(trace => trace.legendgroup === "onnxruntime-cpu:fp32" && trace.visible))"""
        return set(page.evaluate(script, list(charts)))

    assert shown() == set(charts)
    button = page.locator('.legend [data-variant="onnxruntime-cpu:fp32"]')
    button.click()
    assert shown() == set()
    assert page.locator('.legend [data-variant="onnxruntime-cpu:fp32"][aria-pressed="true"]').count() == 0
    button.press("Enter")
    assert shown() == set(charts)
    assert button.get_attribute("aria-pressed") == "true"


@pytest.mark.slow
def test_a_double_click_on_a_legend_entry_shows_only_that_variant(open_page: Open, results: Results) -> None:
    page = open_page(results).page
    draw_all(page)
    button = page.locator('.legend [data-variant="onnxruntime-cpu:fp32"]')
    pressed = page.locator('.legend [aria-pressed="true"]')
    button.dblclick()
    assert pressed.all_inner_texts() == ["onnxruntime-cpu:fp32"]
    button.dblclick()
    assert pressed.count() == 3


def test_tables_sort_by_value_in_both_directions_with_missing_values_last(open_page: Open, results: Results) -> None:
    page = open_page(results).page
    unfold(page)
    table = page.locator("#all .table").first
    titles = table.locator("thead th").all_inner_texts()

    def texts(title: str) -> list[str]:
        return [
            cell.strip()
            for cell in table.locator(f"tbody tr > :nth-child({titles.index(title) + 1})").all_inner_texts()
        ]

    heading = table.get_by_role("button", name="images/s")
    heading.click()
    rising = texts("images/s")
    numbers = [float(value) for value in rising if value != "–"]
    assert numbers == sorted(numbers)
    assert len(numbers) == len(rising) - 2
    assert "–" not in rising[:-2]
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"

    heading.click()
    falling = texts("images/s")
    assert [float(value) for value in falling[:-2]] == numbers[::-1]

    (ratio,) = [title for title in titles if "PyTorch" in title]
    table.get_by_role("button", name=ratio).click()
    ratios = [value.split()[0].removesuffix("x") for value in texts(ratio)]
    known = [float(value) for value in ratios if value not in {"–", "tied"}]
    assert known == sorted(known)


@pytest.mark.slow
def test_copy_buttons_copy_tables_and_the_command(open_page: Open, results: Results) -> None:
    page = open_page(results).page
    unfold(page)
    table = page.locator("#all .table >> nth=0")
    table.get_by_role("button", name="Copy").click()
    page.get_by_role("status").get_by_text("Copied").wait_for(state="attached")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].startswith("variant\tbatch\tstatus")
    assert len(lines) == 1 + len(results.cells)
    assert lines[1].split("\t")[0] == table.locator("tbody th").first.inner_text()

    page.locator("#reproduce [data-copy]").click()
    assert page.evaluate("navigator.clipboard.readText()") == "segx bench --quick"


@pytest.mark.slow
def test_a_batch_size_applies_to_both_charts_of_calls(open_page: Open, results: Results) -> None:
    page = open_page(results).page
    draw_all(page)
    page.locator('[data-frame-of="distribution"]').select_option("8")
    for key in ("distribution", "drift"):
        drawn = page.evaluate(
            'key => document.querySelector(`.plot[data-chart="${key}"]`)._fullData.map(trace => trace.name)', key
        )
        assert set(drawn) == {"openvino-cpu:int8", "pytorch-cpu:fp32"}  # the third ran out of memory there
    assert page.locator('[data-frame-of="drift"]').input_value() == "8"


@pytest.fixture
def hostile(results: Results, pictures: Pictures) -> tuple[Results, Pictures]:
    """Markup in every text that comes from outside."""
    bad = {"status": "failed", "reason": HOSTILE, "remedy": HOSTILE}
    failed = Cell(runtime="openvino-cpu", precision="fp32", batch_size=1, **bad)
    cells = [
        dataclasses.replace(
            each,
            facts={HOSTILE: HOSTILE},
            stopped=HOSTILE,
            parity=each.parity and dataclasses.replace(each.parity, worst_image=HOSTILE),
            host_memory=each.host_memory and dataclasses.replace(each.host_memory, method=HOSTILE),
        )
        for each in results.cells
    ]
    changed = dataclasses.replace(
        results,
        cells=(*cells, failed),
        command=HOSTILE,
        model=dataclasses.replace(
            results.model,
            checkpoint=HOSTILE,
            onnx=HOSTILE,
            derived={HOSTILE: DerivedFile(path=HOSTILE, sha256=HOSTILE)},
        ),
        inputs=dataclasses.replace(results.inputs, source=HOSTILE, names=(HOSTILE, *results.inputs.names[1:])),
        machine=dataclasses.replace(results.machine, cpu=HOSTILE, versions={HOSTILE: HOSTILE}),
    )
    return changed, tuple(dataclasses.replace(picture, name=HOSTILE) for picture in pictures)


@pytest.mark.slow
def test_markup_in_names_and_errors_stays_text(open_page: Open, hostile: tuple[Results, Pictures]) -> None:
    opened = open_page(*hostile)
    page = opened.page
    draw_all(page)
    assert page.evaluate("window.hit") is None
    assert page.locator("img, b, td script, main script").count() == 0
    assert HOSTILE in page.locator("h1").inner_text()
    assert page.locator("#variants td").get_by_text(HOSTILE, exact=True).count() == 2
    assert page.locator("#reproduce code").inner_text() == HOSTILE
    assert HOSTILE in page.locator("[data-gallery] h3").first.inner_text()
    assert opened.console == []


@pytest.mark.slow
def test_the_policy_blocks_injected_scripts(open_page: Open, results: Results) -> None:
    """The content security policy guards against a gap in the escaping."""
    opened = open_page(results)
    opened.page.evaluate(
        """() => {
            document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="window.hit = 1">');
            const script = document.createElement("script");
            script.textContent = "window.hit = 2";
            document.body.append(script);
        }"""
    )
    opened.page.wait_for_function("() => document.images[0].complete")
    assert opened.page.evaluate("window.hit") is None
    assert any("Content Security Policy" in line for line in opened.console)


@pytest.mark.slow
def test_pictures_of_a_row_zoom_together(open_page: Open, results: Results, pictures: Pictures) -> None:
    page = open_page(results, pictures).page
    row = page.locator(".picture:visible").first

    def boxes() -> set[str | None]:
        return {panel.get_attribute("viewBox") for panel in row.locator(".panel svg").all()}

    assert boxes() == {"0 0 64 64"}
    row.get_by_role("button", name="Next change").click()
    (box,) = boxes()
    x, _, width, height = map(float, (box or "").split())
    assert 0 < width == height < 64
    assert x <= 48 < x + width  # the column of the flips
    row.get_by_role("button", name="Next change").click()
    assert boxes() != {box}
    row.get_by_role("button", name="Whole image").click()
    assert boxes() == {"0 0 64 64"}
    row.locator(".panel svg").last.press("+")
    assert boxes() == {"16 16 32 32"}
    row.locator(".panel svg").last.press("ArrowRight")
    assert boxes() == {"20 16 32 32"}
    row.locator(".panel svg").last.press("0")
    assert boxes() == {"0 0 64 64"}


@pytest.mark.slow
def test_layers_of_flips_can_be_hidden(open_page: Open, results: Results, pictures: Pictures) -> None:
    page = open_page(results, pictures).page
    overlay = page.locator(".picture:visible").first.locator(".panel svg").last
    for kind in ("real", "benign"):
        assert overlay.locator(f".{kind}").get_attribute("d")
        page.locator(f'[data-layer="{kind}"]').uncheck()
        assert overlay.locator(f".{kind}").is_hidden()
        page.locator(f'[data-layer="{kind}"]').check()
        assert overlay.locator(f".{kind}").is_visible()


@pytest.mark.slow
def test_pictures_of_another_variant_can_be_chosen(open_page: Open, results: Results, pictures: Pictures) -> None:
    page = open_page(results, pictures).page
    choice = page.get_by_label("Pictures of")
    assert choice.input_value() == "openvino-cpu:int8"  # the recommended one
    draw_all(page)
    for name in ("openvino-cpu:int8", "onnxruntime-cpu:fp32"):
        choice.select_option(name)
        titles = page.locator("[data-gallery] h3:visible").all_inner_texts()
        assert [title.split(":")[0].split()[0] for title in titles] == ["Worst", "Median", "Typical"]
        assert all(name in title for title in titles)


def test_dark_mode_applies_to_page_and_charts_and_follows_a_change(open_page: Open, results: Results) -> None:
    page = open_page(results, scheme="dark").page
    draw_all(page)
    ground = "getComputedStyle(document.body).backgroundColor"
    title = "getComputedStyle(document.querySelector('[data-chart=waiting] .xtitle')).fill"
    assert page.evaluate(ground) == "rgb(21, 24, 29)"
    assert page.evaluate(title) == "rgb(232, 235, 239)"
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"() => {title} === 'rgb(27, 31, 36)'")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_the_page_never_scrolls_sideways(open_page: Open, results: Results, pictures: Pictures, width: int) -> None:
    page = open_page(results, pictures, width=width).page
    draw_all(page)
    for summary in page.locator("summary:visible").all():
        if summary.is_visible():
            summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.slow
def test_print_shows_every_chart_in_light_colours(open_page: Open, results: Results, pictures: Pictures) -> None:
    page = open_page(results, pictures, scheme="dark").page
    page.wait_for_function("() => window.Plotly")
    unfold(page)
    page.evaluate(
        """() => addEventListener("beforeprint", () => { window.onPaper = [...document.querySelectorAll(".plot")]
            .filter(plot => plot.offsetParent)
            .map(plot => [plot.querySelectorAll(".main-svg").length > 0, plot._fullLayout?.width,
                          plot._fullLayout?.font.color]); })"""
    )
    assert page.pdf(format="A4").startswith(b"%PDF")
    drawn = page.evaluate("window.onPaper")
    assert len(drawn) == 10
    assert all(there and width <= 660 and color == "#1b1f24" for there, width, color in drawn)


def test_all_controls_have_names_and_can_be_focused(opened: Opened) -> None:
    page = opened.page
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, a, select, input")].filter(control =>
            !(control.textContent.trim() || control.ariaLabel || control.labels?.length)
            || (control.tabIndex < 0 && !control.closest("[role=toolbar]"))).map(control => control.outerHTML)"""
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("[...document.querySelectorAll('.plot')].every(plot => plot.ariaLabel.length > 40)")
    assert page.evaluate("[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('table'))")


@pytest.mark.slow
def test_a_bench_without_measured_cells_says_why(open_page: Open, results: Results) -> None:
    failed = tuple(each for each in results.cells if not each.measured)
    opened = open_page(dataclasses.replace(results, cells=failed))
    assert "no cell was measured" in opened.page.locator("#decision").inner_text()
    assert "no driver" in opened.page.locator("#variants").inner_text()
    assert opened.page.locator(".plot").count() == 0
    assert opened.console == []


_TAB = """() => {
    const reached = document.activeElement;
    if (reached === document.body || window.reached.has(reached)) return false;
    return Boolean(window.reached.add(reached));
}"""


@pytest.mark.parametrize("bench", ["eight", "fourteen"])
def test_the_page_is_short_and_has_few_stops_of_the_tab_key(
    open_page: Open, bench: str, request: pytest.FixtureRequest
) -> None:
    page = open_page(*request.getfixturevalue(bench)).page
    page.locator(".plot .main-svg").first.wait_for()
    if bench == "eight":
        assert page.evaluate("document.documentElement.scrollHeight") <= 3500
    unfold(page)
    cut = "each => !each.closest('.data') && each.scrollWidth > each.clientWidth"
    assert page.evaluate(f"[...document.querySelectorAll('.scroll')].filter({cut}).length") == 0
    page.evaluate("for (const fold of document.querySelectorAll('.fold')) fold.open = false")
    page.evaluate("window.reached = new Set()")
    stops = 0
    while page.keyboard.press("Tab") or page.evaluate(_TAB):
        stops += 1
    assert 20 < stops <= 60


def test_on_a_phone_the_speed_of_every_variant_is_in_view(open_page: Open, eight: Bench) -> None:
    variants = open_page(*eight, width=390).page.locator("#variants")
    heading = variants.get_by_role("heading").bounding_box()
    copy = variants.get_by_role("button", name="Copy").first.bounding_box()
    rate = variants.get_by_role("button", name="images/s").bounding_box()
    assert heading
    assert copy
    assert rate
    assert heading["y"] + heading["height"] <= copy["y"]
    assert copy["x"] + copy["width"] <= 374
    assert rate["x"] + rate["width"] <= 374


@pytest.mark.slow
@pytest.mark.parametrize("bench", ["eight", "fourteen"])
def test_the_page_prints_on_six_sheets_at_most(open_page: Open, bench: str, request: pytest.FixtureRequest) -> None:
    page = open_page(*request.getfixturevalue(bench)).page
    page.wait_for_function("() => window.Plotly")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(format="A4"))) <= 6


def test_a_row_opens_the_batch_sizes_of_its_variant(open_page: Open, results: Results) -> None:
    page = open_page(results).page
    button = page.get_by_role("button", name="onnxruntime-cpu:fp32").first
    sizes = page.locator(f"#{button.get_attribute('aria-controls')}")
    assert not sizes.is_visible()
    button.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    titles = sizes.locator("thead th").all_inner_texts()
    assert titles[:8] == ["batch", "4 images", "ms/image", "images/s", "±", "memory", "vs batch 1", "vs previous"]
    assert sizes.locator("tbody th").all_inner_texts() == ["1", "2", "4", "8"]
    assert "out of memory" in sizes.locator("tbody tr").last.inner_text()
    # What a row opens moves with it.
    page.locator("#variants").get_by_role("button", name="images/s").click()
    rows = page.locator("#variants .table").first.locator("tr:visible").all_inner_texts()
    names = [text.split()[0] for text in rows if ":" in text]
    assert names == ["pytorch-cpu:fp32", "onnxruntime-cpu:fp32", "onnxruntime-cpu:fp32,", "openvino-cpu:int8"]


@pytest.mark.parametrize("sizes", [(1, 4), (1, 2, 4, 8, 16, 32)])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("step", [1.2, 1.01])
def test_the_names_of_fourteen_variants_stand_at_their_points_without_overlap(
    open_page: Open, many: Callable[..., Results], step: float, width: int, sizes: tuple[int, ...]
) -> None:
    page = open_page(many(14, sizes, step=step), width=width).page
    page.locator("[data-chart=waiting] .annotation-text").nth(13).wait_for()
    boxes = page.evaluate(
        """() => [...document.querySelectorAll("[data-chart=waiting] .annotation-text")]
            .filter(text => text.textContent.includes(":")).map(text => text.getBoundingClientRect())
            .map(box => [box.left, box.top, box.right, box.bottom])"""
    )
    assert len(boxes) == 14
    for (left, top, right, bottom), (x0, y0, x1, y1) in itertools.combinations(boxes, 2):
        assert right <= x0 + 1 or x1 <= left + 1 or bottom <= y0 + 1 or y1 <= top + 1


def test_a_link_to_something_folded_opens_it(open_page: Open, results: Results) -> None:
    machine = dataclasses.replace(results.machine, load_average_1min=9.0)
    page = open_page(dataclasses.replace(results, machine=machine)).page
    plot = page.locator("[data-chart=drift]")
    assert not plot.is_visible()
    page.get_by_role("link", name="Did the machine disturb the run?").click()
    plot.locator(".main-svg").first.wait_for()


def test_arrow_keys_move_within_the_legend(open_page: Open, results: Results) -> None:
    page = open_page(results).page
    buttons = page.locator(".legend button")
    buttons.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.variant") == buttons.nth(1).get_attribute("data-variant")
    assert [button.get_attribute("tabindex") for button in buttons.all()] == ["-1", "0", "-1"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_no_violation_folded_or_open(
    open_page: Open, eight: Bench, width: int, scheme: str, violations: Callable[[Page], list[str]]
) -> None:
    page = open_page(*eight, width=width, scheme=scheme).page
    page.locator(".plot .main-svg").first.wait_for()
    assert violations(page) == []
    draw_all(page)
    for button in page.locator(".open").all():
        button.click()
    assert violations(page) == []
