"""Make the pictures and figures of the docs from a bench: python docs/images/remake.py RESULTS. Needs a Chromium."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from segx.cli.options import SHIPPED_WEIGHTS
from segx.demo import serve
from segx.export.variants import resolve_model
from segx.reporting.bench_document import bench_document, terminal_document
from segx.reporting.renderers.markdown import to_markdown
from segx.reporting.renderers.text import to_text
from segx.results.store import load_results
from segx.results.types import Results
from segx.system import machine

_HERE = Path(__file__).parent
_README = _HERE.parents[1] / "README.md"
_BEGIN, _END = "<!-- figures: made by docs/images/remake.py -->\n", "<!-- end of figures -->"
# File, theme, and the parts of the page in the picture.
_PICTURES = (
    ("report-decision.png", "light", "body > header, nav, #decision, #variants"),
    ("report-charts.png", "dark", "#waiting"),
    ("report-masks.png", "light", "#masks .controls, [data-gallery]:not([hidden]) > :is(h3, .picture)"),
)


def main(results: str) -> None:
    """Put the figures of some results into the README, and make its pictures."""
    loaded = load_results(results)
    before, _, rest = _README.read_text().partition(_BEGIN)
    _README.write_text(before + _BEGIN + figures(loaded) + _END + rest.partition(_END)[2])
    _draw_terminal(loaded)
    _take_pictures(results)


def figures(results: Results) -> str:
    """Return the table of variants in Markdown, and what it was measured on."""
    document = bench_document(results)
    table = to_markdown(document).partition("## All variants, fastest first\n\n")[2].partition("\n\n")[0]
    facts = dict(document.facts)
    return f"{table}\n\n{facts['images']}; run on {facts['run on']}.\n"


def _draw_terminal(results: Results) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=80, file=io.StringIO())
    console.print(Text.from_ansi(to_text(terminal_document(results), columns=80, color=True)), soft_wrap=True)
    # Without the font that it would load from the network.
    drawing = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="segx bench"), flags=re.DOTALL)
    (_HERE / "terminal.svg").write_text(drawing)


def _take_pictures(results: str) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        report = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "segx", "report", results, "--output", str(report)], check=True)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, scheme, selector in _PICTURES:
            page = browser.new_page(viewport={"width": 1200, "height": 1000}, color_scheme=scheme)
            page.goto(report.as_uri())
            page.wait_for_function("() => window.Plotly")
            _screenshot(page, name, selector)
        take_demo(browser)
        browser.close()


def take_demo(browser: Browser) -> None:
    """Take the picture of the page of ``segx demo``."""
    with serve(resolve_model(SHIPPED_WEIGHTS, None, None), threads=machine.usable_cores()) as server:
        page = browser.new_page(viewport={"width": 900, "height": 1000})
        page.goto(server.url)
        flips = page.locator("#flips")
        expect(flips).to_contain_text("pixels differ", timeout=120_000)
        box = flips.bounding_box()
        assert box
        clip = {"x": 0, "y": 0, "width": 900, "height": box["y"] + box["height"] + 12}
        picture = Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True)))
        picture.quantize(256, dither=Image.Dither.NONE).save(_HERE / "demo.png", optimize=True)


def _screenshot(page: Page, name: str, selector: str) -> None:
    """Take one screenshot of everything that matches a selector, with a margin."""
    for button in page.get_by_role("button", name="Next change").all():
        button.click()
    found = page.locator(selector).all()
    for element in found:
        element.scroll_into_view_if_needed()
        for plot in element.locator(".plot").all():
            plot.locator(".main-svg").first.wait_for()
    page.evaluate("() => scrollTo({ top: 0, behavior: 'instant' })")
    boxes = [box for element in found if (box := element.bounding_box())]
    left, top = min(box["x"] for box in boxes) - 24, max(0, min(box["y"] for box in boxes) - 8)
    right = max(box["x"] + box["width"] for box in boxes) + 24
    bottom = max(box["y"] + box["height"] for box in boxes) + 8
    clip = {"x": max(0, left), "y": top, "width": right - max(0, left), "height": bottom - top}
    page.screenshot(path=_HERE / name, clip=clip, full_page=True)


if __name__ == "__main__":
    main(sys.argv[1])
