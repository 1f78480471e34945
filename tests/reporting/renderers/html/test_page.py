"""The page as text, without a browser: its content, size and policy."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segx.analysis.recommend import Constraints
from segx.reporting import columns
from segx.reporting.renderers.html import page as page_module
from segx.reporting.renderers.html import startup, theme
from segx.reporting.renderers.html.charts import round_off, wrapped
from segx.reporting.renderers.html.distribution import shown_samples
from segx.reporting.renderers.html.page import bench_page
from segx.reporting.renderers.html.pictures import boundary_path, edges, flip_regions, pixel_path
from segx.results.pictures import ParityPicture
from segx.results.types import Cell, Results, Round
from tests import builders


def _load_builders() -> ModuleType:
    """Load the functions of conftest.py, which cannot be imported by name."""
    path = Path(__file__).parents[2] / "conftest.py"
    spec = importlib.util.spec_from_file_location("report_builders", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make = _load_builders()


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="segx-data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_every_chart_has_titles_on_its_axes(results: Results, pictures: tuple[ParityPicture, ...]) -> None:
    page = bench_page(results, constraints=Constraints(max_latency_s=0.05), pictures=pictures)
    charts = data_of(page)["charts"]
    assert {
        "waiting", "throughput", "roofline", "distribution", "drift", "cost", "memory", "cold", "break-even", "margins",
    } == charts.keys()  # fmt: skip
    for key, chart in charts.items():
        assert chart["layout"]["xaxis"]["title"]["text"], key
        assert chart["layout"]["yaxis"]["title"]["text"], key


def test_plotly_is_as_published() -> None:
    published = Path(__file__).parents[3] / "npm" / "node_modules" / "plotly.js-basic-dist-min"
    if not published.is_dir():
        pytest.skip("the published Plotly is missing: run npm ci in tests/npm")
    ours = Path(page_module.__file__).parent / "templates"
    for name, original in (("plotly-basic.min.js", "plotly-basic.min.js"), ("plotly.LICENSE", "LICENSE")):
        assert (ours / name).read_bytes() == (published / original).read_bytes()


def test_policy_allows_only_the_two_scripts_of_the_page(results: Results) -> None:
    page = bench_page(results)
    scripts = re.findall(r"<script(.*?)>(.*?)</script>", page, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [
        ' type="application/json" id="segx-data"', ' type="text/plain" id="plotly"', "",
    ]  # fmt: skip
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    digest = base64.b64encode(hashlib.sha256(scripts[2][1].encode()).digest()).decode()
    assert f"sha256-{digest}" in policy[1]
    assert "default-src" in policy[1]
    assert "http" not in policy[1]


def test_foreign_text_is_shown_as_in_the_other_forms(results: Results, pictures: tuple[ParityPicture, ...]) -> None:
    foreign, shown = "a\u202eb\u2028\nc\ud800.pth", r"a\u202eb c\ud800.pth"
    changed = dataclasses.replace(
        results,
        command=foreign,
        model=dataclasses.replace(results.model, checkpoint=foreign),
        machine=dataclasses.replace(results.machine, cpu=foreign),
        cells=tuple(dataclasses.replace(cell, facts={foreign: foreign}) for cell in results.cells),
    )
    page = bench_page(changed, pictures=[dataclasses.replace(picture, name=foreign) for picture in pictures])
    page.encode()
    assert not {"\u202e", "\u2028"} & {*page}
    for found in (r"<title>(.*?)</title>", r"<h1>(.*?)</h1>", r'id="reproduce-1">(.*?)</code>', r"<h3>(.*?)</h3>"):
        assert any(shown in re.sub("<.*?>", "", text) for text in re.findall(found, page, re.DOTALL)), found


def test_charts_show_the_figures_of_the_results(results: Results) -> None:
    charts = data_of(bench_page(results))["charts"]
    by_name = {trace["legendgroup"]: trace for trace in charts["throughput"]["data"]}
    cells = [cell for cell in results.cells if cell.measured and cell.runtime == "onnxruntime-cpu"]
    trace = by_name["onnxruntime-cpu:fp32"]
    assert trace["x"] == [1, 2, 4]
    assert trace["y"] == pytest.approx([1 / cell.seconds_per_image for cell in cells], rel=1e-4)
    samples = charts["distribution"]["frames"]["2"]
    box, calls = (trace for trace in samples if trace["legendgroup"] == "onnxruntime-cpu:fp32")
    assert calls["x"] == pytest.approx([s * 1e3 for s in cells[1].samples_s], rel=1e-3)
    assert min(box["x"]) == pytest.approx(min(calls["x"]), rel=1e-3)
    assert max(box["x"]) == pytest.approx(max(calls["x"]), rel=1e-3)
    assert columns.digits(cells[1].median_s * 1e3) in box["text"]


def test_a_slow_pass_is_explained_by_the_time_that_the_whole_pass_took() -> None:
    """What the CPU quota took is little of it, although more than a share of the time for one of its batches."""
    samples_s = (1.0,) * 9 + (2.0,)
    rounds = tuple(Round(number=number, runs=1) for number in range(10))
    cell = Cell(
        runtime="onnxruntime-cpu",
        precision="fp32",
        scope="pipeline",
        batch_size=1,
        status="ok",
        samples_s=samples_s,
        rounds=(*rounds[:-1], dataclasses.replace(rounds[-1], throttled_s=0.1)),
    )
    made = builders.results(cell)
    page = bench_page(dataclasses.replace(made, machine=dataclasses.replace(made.machine, cores_usable=1)))
    assert "nothing that was watched explains them" in page
    assert "cgroup throttling" not in page


@pytest.mark.parametrize(
    ("ours", "base", "told"),
    [
        ((5.0, 0.1), (1.0, 0.2), "from image 40 on"),
        ((5.0, 0.1), (0.96, 0.2), "from image 41 on"),
        ((1.0, 0.1), (5.0, 0.2), "from image 1 on"),
        ((1.0, 0.2), (5.0, 0.1), "before image 40"),
        ((5.0, 0.2), (1.0, 0.1), "never"),
        ((5.0, 0.1), (1.0, 0.1), "never"),
    ],
)
def test_the_table_says_at_which_images_a_variant_is_ahead(
    ours: tuple[float, float], base: tuple[float, float], told: str
) -> None:
    cells = [
        Cell(
            runtime="onnxruntime-cpu",
            precision="fp32",
            batch_size=1,
            status="ok",
            samples_s=(per_image,) * 4,
            import_s=cold_s,
            load_s=0.0,
            first_s=0.0,
        )
        for cold_s, per_image in (ours, base)
    ]
    assert startup._ahead(*cells) == told


def test_limits_change_the_recommendation_and_are_listed(results: Results) -> None:
    fast = bench_page(results)
    assert "Use openvino-cpu:int8, batch 8<" in fast
    limited = bench_page(results, constraints=Constraints(max_latency_s=0.02, max_memory_bytes=2 * 10**9, min_iou=0.9))
    assert "a call takes at most 20 ms" in limited
    assert "memory at most 1.863 GiB" in limited
    assert "IoU of the worst image at least 0.9" in limited
    assert "Use openvino-cpu:int8, batch 2<" in limited
    nothing = bench_page(results, constraints=Constraints(max_latency_s=1e-9))
    assert "Nothing fits" in nothing


def test_the_page_lists_every_variant_and_says_that_pictures_are_missing(results: Results) -> None:
    page = bench_page(results)
    assert all(f">{cell.variant}<" in page for cell in results.cells)
    assert "kept no pictures" in page


@pytest.mark.slow
def test_two_hundred_cells_with_pictures_stay_below_8_mb() -> None:
    random = np.random.default_rng(0)
    variants = make.every_variant()[:25]
    cells = [
        dataclasses.replace(
            make.cell(variant, size, speed=1 + i, flipped=i, runs=800),
            samples_s=tuple((0.03 * random.lognormal(0, 0.1, 800)).tolist()),
        )
        for i, variant in enumerate(variants)
        for size in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    # Noise is the worst case of every encoder.
    noise = random.integers(0, 255, (128, 128, 3), dtype=np.uint8)
    masks = random.integers(0, 2, (2, 128, 128), dtype=np.uint8)
    flips = (masks[0] != masks[1]) * np.uint8(2)
    noisy = {"image": noise, "reference": masks[0], "mask": masks[1], "flips": flips}
    pictures = [
        dataclasses.replace(make.picture(variant, role, f"{i}-{role}.png", 128), **noisy)
        for i, variant in enumerate(variants)
        for role in ("worst", "median", "typical")
    ]
    page = bench_page(make.results_of(cells), pictures=pictures)
    assert len(cells) == 200
    assert len(page.encode()) < 8_000_000
    assert all(f">{variant}<" in page for variant in variants)


_STATUS = st.sampled_from(["ok", "parity broken", "failed", "out of memory", "crashed", "timed out"])


@st.composite
def odd_cells(draw: st.DrawFn) -> Cell:
    """Build extreme cells: times of one clock tick, a single call, missing figures."""
    variant = draw(st.sampled_from(make.every_variant()))
    made: Cell = make.cell(variant, draw(st.sampled_from([1, 2, 3, 64])), runs=4)
    samples = draw(st.lists(st.floats(1e-9, 1e4), max_size=12) | st.just(list(made.samples_s)))
    return dataclasses.replace(
        made,
        status=draw(_STATUS),
        samples_s=tuple(samples),
        rounds=made.rounds if len(samples) == sum(turn.runs for turn in made.rounds) else (),
        import_s=draw(st.none() | st.floats(0, 100)),
        load_s=draw(st.none() | st.floats(0, 100)),
        first_s=draw(st.none() | st.floats(0, 100)),
        host_memory=draw(st.sampled_from([None, made.host_memory])),
        parity=draw(st.sampled_from([None, made.parity, make.parity(5, max_abs_diff=math.inf, worst_iou=0.0)])),
    )


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(odd_cells(), max_size=6, unique_by=lambda cell: (cell.variant, cell.batch_size)), st.booleans())
def test_extreme_results_render_finite_figures(cells: list[Cell], peaks: bool) -> None:
    results = make.results_of(cells)
    page = bench_page(make.with_roofline(results) if peaks else results, constraints=Constraints(max_latency_s=0.1))
    assert "Infinity" not in json.dumps(data_of(page))
    assert "NaN" not in json.dumps(data_of(page))


def _luminance(color: str) -> float:
    """Relative luminance by WCAG 2.2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    darker, lighter = sorted((_luminance(a), _luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colors", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_colours_meet_wcag_contrast(colors: dict[str, str]) -> None:
    for ground in (colors["ground"], colors["raised"]):
        assert _contrast(colors["text"], ground) >= 7
        for name in ("muted", "accent", "warn"):
            assert _contrast(colors[name], ground) >= 4.5, name
        assert _contrast(colors["edge"], ground) >= 3
        for line in theme.LINES:
            assert _contrast(line, ground) >= 3, line


def test_every_variant_looks_different_without_colours() -> None:
    names = [*map(str, make.every_variant()), *(f"other-{i}" for i in range(77))][:77]
    looks = theme.line_styles(names).values()
    assert len({(look.symbol, look.dash) for look in looks}) == len(looks)
    assert all(look.svg_symbol and look.svg_dash for look in looks)


masks = st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).integers(0, 3, (9, 13)).astype(np.uint8))


@given(masks)
def test_a_pixel_path_covers_exactly_those_pixels(mask: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    covered = np.zeros(mask.shape, dtype=bool)
    for x, y, width, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", pixel_path(mask == 1)):
        assert width == back
        assert not covered[int(y), int(x) : int(x) + int(width)].any()
        covered[int(y), int(x) : int(x) + int(width)] = True
    assert np.array_equal(covered, mask == 1)


@given(masks)
def test_a_boundary_separates_all_neighbours_that_differ(mask: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    upright, level = np.zeros((9, 12), dtype=bool), np.zeros((8, 13), dtype=bool)
    for x, y, kind, length in re.findall(r"M(\d+) (\d+)([vh])(\d+)", boundary_path(*edges(mask))):
        if kind == "v":
            upright[int(y) : int(y) + int(length), int(x) - 1] = True
        else:
            level[int(y) - 1, int(x) : int(x) + int(length)] = True
    assert np.array_equal(upright, mask[:, 1:] != mask[:, :-1])
    assert np.array_equal(level, mask[1:] != mask[:-1])


@given(masks)
def test_flip_regions_are_inside_the_image_and_contain_flips(mask: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    kinds = np.kron(mask == 2, np.pad(np.ones((1, 1)), ((9, 9), (9, 9)))).astype(np.uint8)
    boxes = [tuple(map(int, box.split())) for box in flip_regions(kinds)]
    assert bool(boxes) == bool(kinds.any())
    for x, y, width, height in boxes:
        assert 0 <= x <= x + width <= kinds.shape[1]
        assert 0 <= y <= y + height <= kinds.shape[0]
        assert kinds[y : y + height, x : x + width].any()


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=400), st.integers(10, 100))
def test_shown_samples_keep_their_order_and_the_slowest(samples: list[float], most: int) -> None:
    chosen = shown_samples(samples, most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most or len(samples) <= most
    assert samples[int(np.argmax(samples))] in [samples[i] for i in chosen]
    if len(samples) <= most:
        assert chosen == list(range(len(samples)))


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_rounding_changes_a_figure_by_less_than_can_be_seen(value: float) -> None:
    assert round_off(value) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (columns.digits, 1234.5, "1,234"),
        (columns.digits, 37.06, "37.1"),
        (columns.digits, 0.00123, "0.00123"),
        (columns.digits, 0, "0"),
        (columns.digits, 9.999, "10.00"),
        (columns.seconds, 0.0371, "37.1 ms"),
        (columns.seconds, 2.5e-5, "25.0 µs"),
        (columns.seconds, 3.0, "3.00 s"),
        (columns.memory, 47.4 * 2**20, "47.4 MiB"),
        (columns.memory, 3 * 2**30, "3.00 GiB"),
        (columns.literal, "<b>&", "&lt;b&gt;&amp;"),
        (wrapped, "openvino-cpu-throughput:int8", "openvino-cpu-<br>throughput:int8"),
        (wrapped, "<i>", "&lt;i&gt;"),
    ],
)
def test_formatted_figures(function: Callable[[Any], str], value: Any, text: str) -> None:
    assert function(value) == text


def test_variants_are_in_the_order_of_their_speed(results: Results) -> None:
    page = bench_page(results)
    names = ("openvino-cpu:int8", "onnxruntime-cpu:fp32", "pytorch-cpu:fp32")
    for before in ('data-variant="', "</svg>"):
        places = [page.index(f"{before}{name}") for name in names]
        assert places == sorted(places)


def test_fourteen_variants_have_fourteen_colours(fourteen: tuple[Results, list[ParityPicture]]) -> None:
    colors = re.findall(r'<svg class="swatch" viewBox="0 0 12 12".*?fill="(.*?)"', bench_page(fourteen[0]))
    assert len(colors) == len(set(colors)) == 14


def test_a_single_batch_size_needs_no_charts_by_batch_size() -> None:
    charts = data_of(bench_page(make.many_results(3, (1,))))["charts"]
    assert charts.keys().isdisjoint({"waiting", "throughput", "memory", "cost"})
    assert "cost" not in data_of(bench_page(make.many_results(3, (1, 4))))["charts"]


def test_doubts_stand_above_everything_and_lead_to_the_chart_that_shows_them(results: Results) -> None:
    noisy = dataclasses.replace(
        results, complete=False, machine=dataclasses.replace(results.machine, load_average_1min=9.0)
    )
    before, _, after = bench_page(noisy).partition("<main>")
    assert "Noisy run" in before
    assert "Noisy run" not in after
    assert "Not complete" in before
    assert '<a href="#drift">Did the machine disturb the run?</a>' in before


def test_only_masks_that_changed_have_pictures_the_recommended_first(
    eight: tuple[Results, list[ParityPicture]],
) -> None:
    results, pictures = eight
    page = bench_page(results, pictures=pictures)
    changed = {str(cell.variant) for cell in results.cells if cell.parity and cell.parity.flipped_pixels}
    recommended = re.search(r'id="use">Use (.*?), batch', page)
    assert recommended
    assert set(re.findall('data-gallery="(.*?)"', page)) == changed
    (shown,) = re.findall(r'data-gallery="([^"]*)">', page)
    assert shown == recommended[1]


def test_only_masks_with_pictures_can_be_seen(eight: tuple[Results, list[ParityPicture]]) -> None:
    results, pictures = eight
    assert ">see them<" in bench_page(results, pictures=pictures)
    assert ">see them<" not in bench_page(results)
    same = [picture for picture in pictures if not picture.flipped_pixels]
    assert ">see them<" not in bench_page(results, pictures=same)


def test_the_title_names_model_and_machine(results: Results) -> None:
    machine = dataclasses.replace(results.machine, cpu="Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", cores_usable=1)
    page = bench_page(dataclasses.replace(results, machine=machine))
    assert "<h1>What to deploy for w on Intel Xeon Platinum 8488C, 1 core</h1>" in page
