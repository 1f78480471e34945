"""How long a report takes in headless Chromium from opening to its first chart.

    uv run python tests/benchmarks/page_opening.py artifacts/bench/report.html

The page draws a chart when it comes into view, so the script scrolls to the first one at once. Times include the start
of a new tab; the browser runs already.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path

import click
from playwright.sync_api import sync_playwright


@click.command()
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--times", default=7, show_default=True, help="How often the page is opened.")
def main(report: Path, times: int) -> None:
    """Print the median and the range of the times to the text and to the first chart of REPORT."""
    texts, charts = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for _ in range(times):
            started = time.perf_counter()
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(report.resolve().as_uri(), wait_until="domcontentloaded")
            texts.append(time.perf_counter() - started)
            chart = page.locator(".plot:visible").first
            chart.scroll_into_view_if_needed()
            chart.locator(".main-svg").first.wait_for()
            charts.append(time.perf_counter() - started)
            page.close()
        browser.close()
    for what, seconds in (("text", texts), ("first chart", charts)):
        click.echo(f"{what}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
