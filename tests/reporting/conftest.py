"""Synthetic results and pictures, and a browser that opens their page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from segx.masks.agreement import MARGIN_EDGES, MarginHistogram
from segx.reporting.renderers.html.page import bench_page
from segx.results.pictures import ParityPicture, Role
from segx.results.types import (
    Cell,
    HostMemory,
    Parity,
    Peaks,
    Results,
    Round,
    Work,
)
from segx.runtimes import RUNTIMES, Variant
from tests import builders
from tests.builders import image_parity

MIB = 2**20


def every_variant() -> list[Variant]:
    """Return every variant of the runtime table, in its order."""
    return [Variant(name, precision) for name, info in RUNTIMES.items() for precision in info.precisions]


def parity(flipped: int = 0, **changes: Any) -> Parity:
    return builders.parity(
        image_parity("a.png"),
        image_parity(
            "b.png",
            flipped_pixels=flipped,
            benign_flips=flipped // 3,
            iou=1.0 - flipped / 2048,
            flip_distance_px=1.0 if flipped else None,
        ),
        image_parity("c.png"),
        image_parity("d.png"),
        **changes,
    )


def cell(variant: Variant, batch_size: int, *, speed: float = 1.0, runs: int = 24, flipped: int = 0) -> Cell:
    """Return a measured cell: 10 ms per call and 20 ms per image at speed 1, every fourth call 3% slower."""
    call_s = (0.010 + 0.020 * batch_size) / speed
    return Cell(
        runtime=variant.runtime,
        precision=variant.precision,
        scope=variant.scope,
        batch_size=batch_size,
        status="ok",
        samples_s=tuple(call_s * (1 + 0.01 * (i % 4)) for i in range(runs)),
        rounds=tuple(Round(number=i, runs=2) for i in range(runs // 2)),
        stopped="settled",
        import_s=0.5 * speed,
        load_s=0.25,
        first_s=0.125,
        facts={"threads": "2"},
        host_memory=HostMemory(0, 0, (100 + 25 * batch_size) * MIB, "synthetic"),
        parity=parity(flipped),
    )


def results_of(cells: Sequence[Cell], **changes: Any) -> Results:
    sizes = sorted({each.batch_size for each in cells if each.batch_size})
    options = dataclasses.replace(
        builders.OPTIONS,
        runtimes=tuple(dict.fromkeys(each.runtime for each in cells)),
        batch_sizes=tuple(sizes) or (1,),
    )
    return builders.results(*cells, options=options, **{"command": "segx bench --quick", **changes})


def with_roofline(results: Results) -> Results:
    """Return results with the machine's peak rates and the network's work."""
    work = Work(operations=10**9, weight_bytes=10**7, activation_bytes=10**8, operators=60)
    peaks = Peaks(
        device="cpu", operations_per_s={"fp32": 1e12, "int8": 4e12}, copy_bytes_per_s=2e10, method="synthetic"
    )
    return dataclasses.replace(results, model=dataclasses.replace(results.model, work=work), peaks=(peaks,))


def picture(variant: Variant, role: Role = "worst", name: str = "a.png", size: int = 64) -> ParityPicture:
    """Return a bright square whose mask is one pixel wider than the reference's, with half of the flips benign."""
    image = np.full((size, size, 1), 30, dtype=np.uint8)
    reference, mask, flips = (np.zeros((size, size), dtype=np.uint8) for _ in range(3))
    image[16:48, 16:48] = 200
    reference[16:48, 16:48] = 1
    mask[16:48, 16:49] = 1
    flips[16:32, 48], flips[32:48, 48] = 1, 2
    bins = len(MARGIN_EDGES) - 1
    some = tuple(16 if i == 12 else 0 for i in range(bins))
    return ParityPicture(
        variant=str(variant),
        batch_size=1,
        role=role,
        name=name,
        iou=32 / 33,
        flipped_pixels=32,
        benign_flips=16,
        noise_band=1e-6,
        classes=1,
        image=image,
        reference=reference,
        mask=mask,
        flips=flips,
        histogram=MarginHistogram(pixels=tuple(10 * (i + 1) for i in range(bins)), benign=some, real=some),
    )


@pytest.fixture(scope="session")
def results() -> Results:
    """PyTorch, one variant twice and one four times as fast, one unavailable and one out of memory."""
    pytorch, onnx, openvino = Variant("pytorch-cpu"), Variant("onnxruntime-cpu"), Variant("openvino-cpu", "int8")
    cells = [cell(pytorch, size) for size in (1, 2, 4, 8)]
    cells += [cell(onnx, size, speed=2.0) for size in (1, 2, 4)]
    cells += [cell(openvino, size, speed=4.0, flipped=32) for size in (1, 2, 4, 8)]
    broken = {"status": "out of memory", "reason": "it is full", "remedy": "use less"}
    cells.append(Cell(runtime="onnxruntime-cpu", precision="fp32", batch_size=8, **broken))
    missing = {"status": "unavailable", "reason": "no driver", "remedy": "get one"}
    cells.append(Cell(runtime="pytorch-cuda", precision="fp32", batch_size=None, **missing))
    return with_roofline(results_of(cells))


def many_results(variants: int, sizes: Sequence[int], *, step: float = 1.2) -> Results:
    """Return a bench of so many variants, each ``step`` times as fast as the last, and one that was not measured.

    Every third changes masks.
    """
    chosen = [each for each in every_variant() if RUNTIMES[each.runtime].device == "cpu"][:variants]
    cells = [
        cell(each, size, speed=step**i, flipped=32 * (i % 3 == 1)) for i, each in enumerate(chosen) for size in sizes
    ]
    missing = {"status": "unavailable", "reason": "no driver", "remedy": "get one"}
    cells.append(Cell(runtime="pytorch-cuda", precision="fp32", batch_size=None, **missing))
    return with_roofline(results_of(cells))


@pytest.fixture
def many() -> Callable[..., Results]:
    return many_results


def pictures_of(results: Results) -> list[ParityPicture]:
    """Return three pictures of each variant of a bench; those of identical masks have no changed pixel."""
    roles: tuple[tuple[Role, str], ...] = (("worst", "b.png"), ("median", "c.png"), ("typical", "d.png"))
    found = []
    for variant, parity in {cell.variant: cell.parity for cell in results.cells if cell.parity}.items():
        for role, name in roles:
            made = picture(variant, role, name)
            same = {"mask": made.reference, "flips": made.flips * 0, "flipped_pixels": 0, "benign_flips": 0, "iou": 1.0}
            found.append(made if parity.flipped_pixels else dataclasses.replace(made, **same))
    return found


Bench = tuple[Results, list[ParityPicture]]


@pytest.fixture(scope="session")
def eight() -> Bench:
    """Eight variants at two batch sizes, with pictures."""
    results = many_results(8, (1, 4))
    return results, pictures_of(results)


@pytest.fixture(scope="session")
def fourteen() -> Bench:
    """Fourteen variants at six batch sizes, with pictures."""
    results = many_results(14, (1, 2, 4, 8, 16, 32))
    return results, pictures_of(results)


@pytest.fixture(scope="session")
def pictures() -> tuple[ParityPicture, ...]:
    roles: tuple[tuple[Role, str], ...] = (("worst", "a.png"), ("median", "b.png"), ("typical", "c.png"))
    variants = (Variant("onnxruntime-cpu"), Variant("openvino-cpu", "int8"))
    return tuple(picture(variant, role, name) for variant in variants for role, name in roles)


@dataclasses.dataclass
class Opened:
    """An open page, with its console messages and requests."""

    page: Page
    console: list[str]
    requests: list[str]


class Open(Protocol):
    def __call__(
        self, results: Results, pictures: Sequence[ParityPicture] = (), *, width: int = 1280, scheme: str = "light"
    ) -> Opened: ...


def _opened(browser: Browser, file: Path, text: str, width: int = 1280, scheme: str = "light") -> Opened:
    file.write_text(text, encoding="utf-8")
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
        permissions=["clipboard-read", "clipboard-write"],
        reduced_motion="reduce",
    )
    page = context.new_page()
    console: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    return Opened(page, console, requests)


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Write a page to a file and open it."""
    contexts: list[BrowserContext] = []

    def opened(
        results: Results, pictures: Sequence[ParityPicture] = (), *, width: int = 1280, scheme: str = "light"
    ) -> Opened:
        found = _opened(browser, tmp_path / "report.html", bench_page(results, pictures=pictures), width, scheme)
        contexts.append(found.page.context)
        return found

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def opened(
    browser: Browser, results: Results, pictures: Sequence[ParityPicture], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    """Open one page for all tests of a module that do not change it."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    found = _opened(browser, file, bench_page(results, pictures=pictures))
    yield found
    found.page.context.close()
