"""Pages that run a model in the browser: their files, the server that gives them out, the browser that opens them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segx.errors import RuntimeUnavailable
from segx.web.server import HEADERS

_HERE = Path(__file__).parent
_PACKAGES = _HERE / "node_modules"
_ENGINE, _DECODER = "onnxruntime-web", "@jsquash/png"
# The builds onnxruntime-web/wasm and onnxruntime-web/webgpu, each with the WebAssembly that it loads, and the decoder.
PACKAGE_FILES: Mapping[str, tuple[str, ...]] = {
    _ENGINE: (
        "package.json",
        "dist/ort.wasm.min.mjs",
        "dist/ort-wasm-simd-threaded.mjs",
        "dist/ort-wasm-simd-threaded.wasm",
        "dist/ort.webgpu.min.mjs",
        "dist/ort-wasm-simd-threaded.asyncify.mjs",
        "dist/ort-wasm-simd-threaded.asyncify.wasm",
    ),
    _DECODER: ("codec/pkg/squoosh_png.js", "codec/pkg/squoosh_png_bg.wasm"),
}
_REMEDY = "run npm ci --prefix segx/web in the clone; the wheel of a release has them"


def static_files() -> dict[str, Path]:
    """Return the files of the pages by their path in a URL, such as ``/session.js``."""
    return {f"/{path.name}": path for path in (_HERE / "static").iterdir()}


def site_files() -> dict[str, Path]:
    """Return all files of the page that segments images, but the model's, by their path in a URL.

    Raises:
        RuntimeUnavailable: see ``engine_files``.
    """
    page = {path: file for path, file in static_files().items() if not path.startswith("/bench.")}
    page["/index.html"] = page.pop("/demo.html")
    return {**page, **engine_files(), **decoder_files()}


def site_readme() -> str:
    """Return the README of a site that holds the page, as Markdown."""
    text = (_HERE / "site.md").read_text(encoding="utf-8")
    return text.replace("VERSION", engine_version()).replace("POLICY", HEADERS["Content-Security-Policy"])


def engine_files() -> dict[str, Path]:
    """Return the files of onnxruntime-web by their path in a URL, such as ``/ort/ort.wasm.min.mjs``.

    Raises:
        RuntimeUnavailable: they are missing, or of another version than segx is made for.
    """
    engine_version()
    return _files_of(_ENGINE, "ort")


def decoder_files() -> dict[str, Path]:
    """Return the files of @jsquash/png, which reads 16 bits and alpha, as ``/png/squoosh_png.js``.

    Raises:
        RuntimeUnavailable: they are missing.
    """
    return _files_of(_DECODER, "png")


def engine_version() -> str:
    """Return the version of onnxruntime-web; raise as ``engine_files``."""
    _files_of(_ENGINE, "ort")
    wanted = _read(_HERE / "package.json")["dependencies"][_ENGINE]
    version: str = _read(_PACKAGES / _ENGINE / "package.json")["version"]
    if version != wanted:
        raise RuntimeUnavailable(f"{_ENGINE} is {version}, but segx needs {wanted}", hint=_REMEDY)
    return version


def _files_of(package: str, folder: str) -> dict[str, Path]:
    """Return the files of a package as if they lay in one folder."""
    files = {f"/{folder}/{Path(name).name}": _PACKAGES / package / name for name in PACKAGE_FILES[package]}
    if not all(path.is_file() for path in files.values()):
        raise RuntimeUnavailable(f"{package}'s files are missing", hint=_REMEDY)
    return files


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
