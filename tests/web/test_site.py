from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from onnx import helper
from playwright.sync_api import Browser, expect

from segx.errors import OutputError, UsageError
from segx.export import read_artifact
from segx.export import site as site_module
from segx.export.site import MANIFEST_NAME, page_content, write_site
from segx.export.variants import export_site
from segx.model.spec import ModelSpec
from segx.web import site_readme
from segx.web.server import HEADERS
from tests.builders import exported_onnx


@pytest.fixture
def site(plain_onnx: Path, page_files: dict[str, Path], tmp_path: Path) -> Path:
    assert page_files
    return write_site(tmp_path / "out" / "site", {"fp32": plain_onnx}, read_artifact(plain_onnx).spec).path


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_site_holds_the_model_and_all_that_the_page_loads(site: Path, plain_onnx: Path) -> None:
    files = _files(site)
    assert files["fp32.onnx"] == plain_onnx.read_bytes()
    model = json.loads(files["model.json"])
    assert (model["native"], model["name"]) == ([], "plain")
    assert {"index.html", "demo.js", "ort/ort.wasm.min.mjs", "png/squoosh_png.js", *model["samples"]} < files.keys()
    assert files["README.md"].decode().startswith("# plain in the browser\n\nUnetPlusPlus(")
    assert set(json.loads(files[MANIFEST_NAME])["files"]) == files.keys() - {MANIFEST_NAME}
    assert [path.name for path in site.parent.iterdir()] == ["site"]


@pytest.mark.parametrize(
    "change", ["new", "new folder", "edited", "link", "without manifest", "file", "working folder"]
)
def test_a_folder_with_anything_else_is_left_as_it_is(
    site: Path, plain_onnx: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "new":
        (site / "samples" / "mine.txt").write_text("mine")
    elif change == "new folder":
        (site / "mine").mkdir()
    elif change == "edited":
        (site / "index.html").write_text("mine")
    elif change == "link":
        (site / "link").symlink_to("index.html")
    elif change == "without manifest":
        (site / MANIFEST_NAME).unlink()
    elif change == "working folder":
        monkeypatch.chdir(site / "samples")
    else:
        site.rename(site.with_name("elsewhere"))
        site.write_text("mine")
    before = _files(site.parent)
    with pytest.raises(OutputError, match=r"was not written by segx|is a file|is the working folder"):
        write_site(site, {"fp32": plain_onnx}, read_artifact(plain_onnx).spec)
    assert _files(site.parent) == before


def test_a_file_that_is_saved_while_a_new_site_is_written_is_kept(
    site: Path, plain_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(folder: Path) -> None:
        (folder / "mine.txt").write_text("mine")

    before = _files(site)
    monkeypatch.setattr(site_module, "check_site", check)
    with pytest.raises(OutputError, match=f"{site / 'mine.txt'} was not written by segx"):
        write_site(site, {"fp32": plain_onnx}, read_artifact(plain_onnx).spec)
    assert _files(site) == {**before, "mine.txt": b"mine"}


def test_a_site_is_replaced_by_a_new_one_or_stays_whole(
    site: Path, plain_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _files(site)
    with monkeypatch.context() as patch:
        patch.setattr(site_module, "sha256_of", lambda path: 1 / 0 if "new" in path.parts else before[path.name])
        patch.setattr(site_module, "check_site", lambda _: None)
        with pytest.raises(ZeroDivisionError):
            write_site(site, {"fp32": plain_onnx}, read_artifact(plain_onnx).spec)
    assert _files(site) == before
    write_site(site, {"fp32": plain_onnx, "int8": plain_onnx}, read_artifact(plain_onnx).spec)
    assert _files(site).keys() == before.keys() | {"int8.onnx"}
    assert [path.name for path in site.parent.iterdir()] == ["site"]


def test_the_readme_names_the_headers_of_the_server(page_files: dict[str, Path]) -> None:
    assert page_files
    text = site_readme()
    for name in HEADERS.keys() - {"Cross-Origin-Resource-Policy", "Referrer-Policy", "Cache-Control"}:
        assert f"| `{name}` | `{HEADERS[name]}` |" in text
    assert text.count(HEADERS["Content-Security-Policy"]) == 3  # in the table, for nginx and for Caddy


def test_a_model_that_browsers_have_no_images_for_is_refused(
    make_model: Callable[[ModelSpec], Path], page_files: dict[str, Path]
) -> None:
    assert page_files
    spec = ModelSpec(in_channels=6)
    with pytest.raises(UsageError, match="the model takes 6 channels"):
        page_content({"fp32": make_model(spec)}, spec)


def test_what_is_said_of_the_model_holds_in_the_page(
    plain_onnx: Path, page_files: dict[str, Path], tmp_path: Path
) -> None:
    assert page_files
    site = export_site(tmp_path / "site", None, model=plain_onnx, overrides={"white_level": 4095.0})
    assert site.models == ("fp32",)
    assert json.loads((site.path / "model.json").read_bytes())["spec"]["white_level"] == 4095


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


# An image, black all over.
_DARK = cv2.imencode(".png", np.zeros((32, 32), np.uint8))[1].tobytes()


@contextlib.contextmanager
def _served(site: Path) -> Iterator[str]:
    """Serve a site in a subfolder as any web server does, without headers for threads."""
    handler = functools.partial(_Quiet, directory=str(site.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/site/"
        server.shutdown()


@pytest.fixture
def plain_server(site: Path) -> Iterator[str]:
    with _served(site) as url:
        yield url


@pytest.mark.slow
def test_a_site_without_the_headers_runs_with_one_thread_and_says_so(plain_server: str, browser: Browser) -> None:
    page = browser.new_page()
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: found.append(request.url))
    page.goto(plain_server)
    expect(page.locator("#start")).to_contain_text("The first mask was there")
    expect(page.locator("#share")).to_contain_text("% of pixels in the mask")
    expect(page.locator("#engine")).to_contain_text("1 thread (the server does not send the headers")
    expect(page.locator("#model")).to_contain_text("It runs in this browser; images do not leave it.")
    for name in ("native-field", "native-figure"):
        expect(page.locator(f"#{name}")).to_be_hidden()
    assert [each for each in found if not each.startswith((plain_server, "data:", "blob:"))] == []
    page.close()


def test_another_file_segments_what_is_shown_also_after_an_image_that_was_refused(
    plain_onnx: Path, page_files: dict[str, Path], browser: Browser, tmp_path: Path
) -> None:
    assert page_files
    spec = read_artifact(plain_onnx).spec
    nodes = [helper.make_node("Sub", ["half", "image"], ["logits"])]
    inverse = exported_onnx(tmp_path / "inverse.onnx", spec, nodes, {"half": np.float32(0.5)})
    site = write_site(tmp_path / "site", {"fp32": plain_onnx, "int8": inverse}, spec).path
    with _served(site) as url:
        page = browser.new_page()
        page.goto(url)
        page.locator("#file").set_input_files({"name": "dark.png", "mimeType": "", "buffer": _DARK})
        expect(page.locator("#share")).to_have_text("· 0.0% of pixels in the mask")
        for file, share in (("int8", "100.0"), ("fp32", "0.0")):
            page.locator("#file").set_input_files({"name": "notes.txt", "mimeType": "", "buffer": b"text"})
            expect(page.locator("#problem")).to_contain_text("notes.txt: not an image")
            page.locator("#precision").select_option(file)
            expect(page.locator("#share")).to_have_text(f"· {share}% of pixels in the mask")
            expect(page.locator("#state")).to_have_text("dark.png: 32x32 pixels.")
        # The file is changed before the image is refused.
        page.evaluate(
            """() => {
                const transfer = new DataTransfer();
                transfer.items.add(new File(["text"], "more.txt"));
                document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
                document.getElementById("precision").value = "int8";
                document.getElementById("precision").dispatchEvent(new Event("change"));
            }"""
        )
        expect(page.locator("#share")).to_have_text("· 100.0% of pixels in the mask")
        expect(page.locator("#problem")).to_contain_text("more.txt: not an image")
        page.close()


def test_a_page_that_cannot_load_its_model_says_so(site: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    expect(page.locator("#problem")).to_contain_text("run python3 -m http.server in its folder")
    expect(page.locator("#state")).to_be_empty()
    (site / "model.json").unlink()
    with _served(site) as url:
        page.goto(url)
        expect(page.locator("#problem")).to_contain_text("model.json: status 404 (check that the server runs")
        expect(page.locator("#state")).to_be_empty()
    page.close()
