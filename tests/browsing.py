"""A real Chromium for tests of pages, as fixtures that conftest.py imports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from segx.errors import RuntimeUnavailable
from segx.web.browser import find_browser

_AXE = Path(__file__).parent / "npm" / "node_modules" / "axe-core" / "axe.min.js"


def chromium() -> str:
    """Return the path of the browser that segx would start."""
    try:
        return find_browser()
    except RuntimeUnavailable as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as driver:
        # As root, in a container, Chromium has no sandbox.
        window = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield window
        window.close()


def invalid_charts(page: Page) -> list[str]:
    """What the Plotly of an open report refuses in the charts of the page."""
    told: list[str] = page.evaluate(
        """() => Object.values(JSON.parse(document.getElementById("segx-data").textContent).charts)
            .flatMap(({ data, frames, layout }) => (data.length ? [data] : Object.values(frames))
                .flatMap((traces) => Plotly.validate(traces, layout) ?? []))
            .filter(({ code }) => code !== "unused").map(({ msg }) => msg)"""
    )
    return told


@pytest.fixture(scope="session")
def violations() -> Callable[[Page], list[str]]:
    """What axe-core finds on an open page: each kind with the first element."""
    if not _AXE.exists():
        pytest.skip(f"axe-core is missing: run npm ci in {_AXE.parents[2]}")
    script = _AXE.read_text(encoding="utf-8")

    def found(page: Page) -> list[str]:
        page.evaluate(script)
        told = page.evaluate("async () => (await axe.run()).violations.map(each => [each.id, each.nodes[0].html])")
        return [f"{kind}: {element}" for kind, element in told]

    return found
