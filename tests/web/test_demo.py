"""The page of ``segx demo`` in a real browser, beside the native runtime of its server."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Download, Page, expect

from segx import demo
from segx.demo import Native, serve
from segx.errors import InferenceError, SegxError, UsageError
from segx.export.variants import open_runtime, resolve_model
from segx.masks.image_io import decode_image
from segx.masks.preprocess import preprocess
from segx.model.spec import ModelSpec
from segx.predict.options import OutputOptions
from segx.predict.output import postprocess
from segx.runtimes import Variant
from segx.system.processes import Workers
from segx.web.server import Request, Server
from tests.browsing import chromium


@pytest.fixture(scope="module")
def server(plain_onnx: Path, page_files: dict[str, Path]) -> Iterator[Server]:
    """Serve a model that takes bright pixels for the mask."""
    assert page_files
    with serve(resolve_model(None, plain_onnx, None), threads=2) as running:
        yield running


@dataclasses.dataclass
class Opened:
    page: Page
    console: list[str]  # errors
    requests: list[str]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    contexts: list[BrowserContext] = []

    def opened(url: str, **options: Any) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        found = Opened(page, [], [])
        page.on("console", lambda message: found.console.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: found.console.append(str(error)))
        page.on("request", lambda request: found.requests.append(request.url))
        page.goto(url)
        return found

    yield opened
    for context in contexts:
        context.close()


def _gradient(width: int = 61, height: int = 47) -> bytes:
    """Return a PNG from black on the left to white on the right."""
    row = np.linspace(0, 255, width).round().astype(np.uint8)
    return cv2.imencode(".png", np.tile(row, (height, 1)))[1].tobytes()


def _give(page: Page, name: str, data: bytes) -> None:
    expect(page.locator("#file")).to_be_enabled()
    page.locator("#file").set_input_files({"name": name, "mimeType": "", "buffer": data})


def _share(page: Page) -> float:
    found = re.search(r"([\d.]+)% of pixels", page.locator("#share").inner_text())
    assert found
    return float(found[1])


def _shown(page: Page, name: str) -> None:
    """Wait until an image is segmented, here and natively."""
    expect(page.locator("#state")).to_contain_text(f"{name}: ")
    expect(page.locator("#flips")).to_contain_text("pixels differ")


def _drop(page: Page, name: str, data: bytes) -> None:
    """Drop a file on the page, as a file manager does."""
    transfer = page.evaluate_handle(
        """([name, text]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.fromBase64(text)], name));
            return transfer;
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})


def test_a_dropped_image_is_segmented_here_and_natively(server: Server, open_page: Callable[..., Opened]) -> None:
    opened = open_page(server.url)
    page = opened.page
    expect(page.locator("#state")).to_contain_text("sample_00000.png: 32x32 pixels")  # the page opens with a sample
    _drop(page, "gradient.png", _gradient())
    expect(page.locator("#state")).to_have_text("gradient.png: 61x47 pixels.")
    expect(page.locator("#flips")).to_have_text("0 of 1,024 pixels differ from onnxruntime-cpu:fp32.")
    assert _share(page) == pytest.approx(50, abs=2)
    page.locator("#threshold").fill("0.99")
    expect(page.locator("#threshold-value")).to_have_text("0.99")
    assert _share(page) < 40
    expect(page.locator("#flips")).to_contain_text("0 of 1,024")
    assert "2 threads" in page.locator("#engine").inner_text()
    times = {row.split("\t")[0]: row.split("\t")[1:] for row in page.locator("#times tr").all_inner_texts()}
    assert all(re.fullmatch(r"\d+(\.\d)?", value) for value in (*times["run the model"], *times["in all"]))

    _give(page, "broken.png", _gradient()[:200])
    expect(page.locator("#problem")).to_contain_text("broken.png: not an image that this browser reads")
    _give(page, "notes.txt", b"text")
    expect(page.locator("#problem")).to_contain_text("notes.txt: not an image")
    _give(page, "again.png", _gradient(20, 30))
    expect(page.locator("#state")).to_have_text("again.png: 20x30 pixels.")
    expect(page.locator("#problem")).to_be_hidden()
    assert opened.console == []
    assert [url for url in opened.requests if not url.startswith((server.url, "data:", "blob:"))] == []


def test_a_page_whose_server_does_not_answer_says_so(server: Server, open_page: Callable[..., Opened]) -> None:
    page = open_page(server.url).page
    _shown(page, "sample_00000.png")
    page.context.set_offline(True)
    page.locator("#sample").click()
    problem, told = page.locator("#problem"), "the server does not answer (restart segx demo)"
    expect(problem).to_have_text(f"sample_00001.png: {told}")
    _give(page, "gradient.png", _gradient())
    expect(problem).to_have_text(f"onnxruntime-cpu:fp32: {told}")
    page.locator("#precision").dispatch_event("change")
    expect(problem).to_contain_text(f"the page's worker cannot be loaded: {told}")
    expect(page.locator("#state")).to_have_text("gradient.png: 61x47 pixels.")


@pytest.mark.slow
def test_the_page_works_by_keyboard_and_by_paste_and_shows_names_as_text(
    server: Server, open_page: Callable[..., Opened]
) -> None:
    opened = open_page(server.url)
    page = opened.page
    _shown(page, "sample_00000.png")
    for expected in ("file", "sample", "camera", "threshold"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == expected
    page.keyboard.press("ArrowRight")
    expect(page.locator("#threshold-value")).to_have_text("0.51")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    _shown(page, "sample_00001.png")
    hostile = "<img src=x onerror=alert(1)>.png"
    page.evaluate(
        """([name, text]) => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([Uint8Array.fromBase64(text)], name));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }""",
        [hostile, base64.b64encode(_gradient()).decode()],
    )
    _shown(page, hostile)
    assert page.locator("img").count() == 0
    assert opened.console == []


@pytest.mark.slow
def test_what_is_too_large_is_refused_and_the_page_goes_on(server: Server, open_page: Callable[..., Opened]) -> None:
    opened = open_page(server.url)
    page = opened.page
    _give(page, "wide.png", _png_of_zeros(60_000, 60_000))
    expect(page.locator("#problem")).to_have_text("wide.png: 60000x60000 pixels, more than 67,108,864; downscale it")
    page.evaluate(
        """() => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(70 * 2 ** 20)], "long.png"));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }"""
    )
    expect(page.locator("#problem")).to_have_text("long.png: 70 MiB, more than 64; downscale it")
    page.locator("#native").select_option("openvino-cpu:fp32")
    _give(page, "gradient.png", _gradient())
    _give(page, "newer.png", _gradient(30, 30))  # before the first one is done
    _shown(page, "newer.png")
    expect(page.locator("#flips")).to_contain_text("pixels differ from openvino-cpu:fp32")
    assert opened.console == []


def _png_of_zeros(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(height=32, width=32, resize="letterbox"),
        ModelSpec(in_channels=3, classes=4, height=40, width=32, mean=(0.5, 0.4, 0.3)),
        ModelSpec(in_channels=4, classes=3, height=32, width=32, multilabel=True),
    ],
    ids=["one class", "classes", "labels"],
)
def test_saved_masks_are_those_of_segx(
    make_model: Callable[[ModelSpec], Path],
    page_files: dict[str, Path],
    open_page: Callable[..., Opened],
    spec: ModelSpec,
) -> None:
    assert page_files
    bands = np.random.default_rng(1).integers(0, 256, size=(45, 70, 4), dtype=np.uint8)
    image = cv2.imencode(".png", cv2.GaussianBlur(bands, (0, 0), 3))[1].tobytes()
    model = make_model(spec)
    count = spec.classes if spec.multilabel else 1
    with serve(resolve_model(None, model, None), threads=2) as server:
        page = open_page(server.url).page
        _give(page, "bands.png", image)
        _shown(page, "bands.png")
        expect(page.locator("#flips")).to_contain_text("0 of ")
        expect(page.locator("#threshold-field")).to_be_visible(visible=not spec.exclusive)
        expect(page.locator("#legend")).to_be_visible(visible=spec.classes > 1)
        expect(page.locator("h1")).to_have_text("<b>sums")
        saved: list[Download] = []
        page.on("download", lambda download: saved.append(download))  # noqa: PLW0108 - playwright marks the function
        page.locator("#save-mask").click()
        while len(saved) < count:
            page.wait_for_timeout(50)
        with page.expect_download() as overlay:
            page.locator("#save-overlay").click()
        assert cv2.imread(str(overlay.value.path())).shape == (45, 70, 3)
    pixels = decode_image(image, "image", spec.in_channels)
    logits = open_runtime(model).infer(preprocess(pixels, spec)[None])[0]
    expected = postprocess(logits, (70, 45), spec, OutputOptions()).mask
    found = [cv2.imread(str(each.path()), cv2.IMREAD_UNCHANGED) for each in saved[:count]]
    np.testing.assert_array_equal(np.squeeze(found), expected)
    names = [each.suggested_filename for each in saved[:count]]
    assert names == ([f"bands.mask-{k}.png" for k in range(3)] if spec.multilabel else ["bands.mask.png"])


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_no_violation_and_nothing_is_cut_off(
    server: Server, open_page: Callable[..., Opened], violations: Callable[[Page], list[str]], width: int, scheme: str
) -> None:
    page = open_page(server.url, viewport={"width": width, "height": 800}, color_scheme=scheme).page
    _shown(page, "sample_00000.png")
    assert violations(page) == []
    _give(page, "broken.png", b"")
    expect(page.locator("#problem")).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.slow
def test_a_picture_of_the_camera_is_segmented(server: Server, browser: Browser) -> None:
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    window = browser.browser_type.launch(executable_path=chromium(), args=arguments)
    page = window.new_page()
    page.goto(server.url)
    page.locator("#camera").click()
    page.get_by_role("button", name="Take a picture").click()
    _shown(page, "camera.png")
    expect(page.locator("#camera-dialog")).to_be_hidden()
    assert page.evaluate("document.querySelector('video').srcObject.active") is False
    # The browser asks for permission and gets no answer.
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => new Promise(() => {}); }")
    page.locator("#camera").click()
    expect(page.locator("#camera")).to_be_disabled()
    window.close()


def test_the_native_endpoint_refuses_what_it_cannot_use(server: Server) -> None:
    def ask(query: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", f"/native{query}", body, headers)
        response = connection.getresponse()
        return response.status, response.read()

    status, answer = ask("?variant=onnxruntime-cpu:fp32", _gradient())
    assert (status, len(answer)) == (200, 32 * 32 * 4)
    for query, body, expected in [
        ("?variant=fake:fp32", _gradient(), "no variant 'fake:fp32'"),
        ("", _gradient(), "no variant ''"),
        ("?variant=onnxruntime-cpu:fp32", b"nothing", "the image is not an image of a known format"),
    ]:
        status, answer = ask(query, body)
        assert (status, json.loads(answer)["error"]) == (422, expected)
    assert ask("?variant=onnxruntime-cpu:fp32", _gradient(), Origin="http://evil.example")[0] == 403
    assert ask("?variant=onnxruntime-cpu:fp32", b"", **{"Content-Length": str(2**40)})[0] == 413
    assert ask("?variant=onnxruntime-cpu:fp32", _gradient())[0] == 200


def test_what_can_be_checked_at_once_is_checked_before_a_file_is_made(
    server: Server, plain_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "with_form", lambda *_, **__: pytest.fail("it makes a file"))
    files = resolve_model(None, plain_onnx, None)
    with pytest.raises(UsageError, match=f"port {server.port}"), serve(files, threads=1, port=server.port):
        pass
    six = dataclasses.replace(files, spec=dataclasses.replace(files.spec, in_channels=6))
    with pytest.raises(UsageError, match="the model takes 6 channels"), serve(six, threads=1):
        pass


@pytest.mark.parametrize(
    ("runtime", "problem", "remedy"),
    [
        ("ort,openvino", "ort,openvino is several runtimes", "give one"),
        ("all:fp32", "all:fp32 is several runtimes", "give one"),
        ("openvinos", "no runtime 'openvinos'", "did you mean openvino-cpu?"),
        ("x", "no runtime 'x'", "use one of them"),
        ("torch", "pytorch-cpu runs a checkpoint, and only an exported file was given", "with --weights"),
        ("onnxruntime-web", "the page cannot compare with", "use one of onnxruntime-cpu:fp32, "),
    ],
)
def test_what_cannot_be_compared_with_is_refused_with_the_reason(
    plain_onnx: Path, runtime: str, problem: str, remedy: str
) -> None:
    files = resolve_model(None, plain_onnx, None)
    with pytest.raises(SegxError, match=problem) as caught, serve(files, threads=1, runtime=runtime):
        pass
    assert remedy in caught.value.hint
    assert "all" not in caught.value.hint.split()


def test_what_builds_an_engine_for_minutes_is_not_compared_with(
    plain_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.machine, "gpus", lambda: [None])
    monkeypatch.setattr(demo, "precision_support", lambda info: dict.fromkeys(info.precisions, "native"))
    names = {variant.runtime for variant in demo._native_variants(resolve_model(None, plain_onnx, None))}
    assert names == {"onnxruntime-cpu", "openvino-cpu", "onnxruntime-cuda"}


def test_a_runtime_that_is_killed_is_started_again(plain_onnx: Path) -> None:
    files = resolve_model(None, plain_onnx, None)
    request = Request({"variant": "ort"}, _gradient(), lambda: None)
    with contextlib.closing(
        Native(Workers(threads=1), files, {"ort": Variant("onnxruntime-cpu")}, threads=1)
    ) as native:
        before = native.segment(request)
        assert native._engine
        native._engine.interrupt()
        with pytest.raises(InferenceError):
            native.segment(request)
        assert native.segment(request).body == before.body
