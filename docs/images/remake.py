"""Take the pictures of the documentation from a report: python docs/images/remake.py RESULTS. Needs a Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

_HERE = Path(__file__).parent
# File, theme, and the parts of the page in the picture.
_PICTURES = (
    ("report-decision.png", "light", "body > header, nav, #decision, #variants"),
    ("report-charts.png", "dark", "#waiting"),
    ("report-masks.png", "light", "[data-gallery]:not([hidden]) > :is(h3, .picture)"),
)


def main(results: str) -> None:
    """Write the report of some results and take screenshots of it."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        report = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "segx", "report", results, "--output", str(report)], check=True)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, scheme, selector in _PICTURES:
            page = browser.new_page(viewport={"width": 1200, "height": 1000}, color_scheme=scheme)
            page.goto(report.as_uri())
            page.wait_for_function("() => window.Plotly")
            _screenshot(page, name, selector)
        browser.close()


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
    left, top = min(box["x"] for box in boxes) - 24, max(0, min(box["y"] for box in boxes) - 24)
    right = max(box["x"] + box["width"] for box in boxes) + 24
    bottom = max(box["y"] + box["height"] for box in boxes) + 8
    clip = {"x": max(0, left), "y": top, "width": right - max(0, left), "height": bottom - top}
    page.screenshot(path=_HERE / name, clip=clip, full_page=True)


if __name__ == "__main__":
    main(sys.argv[1])
