"""What the page does to images and logits, in a real browser, against segx.masks and segx.predict."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import Browser, Error, Page

from segx.errors import ImageError
from segx.masks.image_io import decode_image
from segx.masks.preprocess import preprocess
from segx.model.spec import ModelSpec, Resize
from segx.predict.options import OutputOptions
from segx.predict.output import postprocess
from segx.web.server import Response, Route, Server

_TOLERANCE = 1e-4

_PREPARE = """async ([file, spec]) => {
    const [{ decodeImage }, { preprocess }] = await Promise.all([import("/images.js"), import("/preprocess.js")]);
    const image = await decodeImage(Uint8Array.fromBase64(file));
    return new Uint8Array(preprocess(image, spec).buffer).toBase64();
}"""

_MASKS = """async ([values, spec, size, threshold]) => {
    const { isExclusive, masksFromLogits, toImage } = await import("/masks.js");
    const { encodeGrayPng } = await import("/png.js");
    const { imageBox } = await import("/preprocess.js");
    const box = imageBox(size, spec);
    const masks = masksFromLogits(new Float32Array(Uint8Array.fromBase64(values).buffer), box, spec, threshold);
    return Promise.all(masks.map(async (plane) => {
        const mask = toImage(plane, box, size);
        const file = await encodeGrayPng(isExclusive(spec) ? mask : mask.map((value) => 255 * value), size);
        return new Uint8Array(await file.arrayBuffer()).toBase64();
    }));
}"""


@pytest.fixture(scope="module")
def page(browser: Browser, page_files: dict[str, Path]) -> Iterator[Page]:
    blank = Route(lambda _: Response(b"<!doctype html><link rel=icon href=data:,>", "text/html"))
    with Server(page_files, {"/": blank}) as server:
        opened = browser.new_page()
        opened.goto(server.url)
        yield opened
        opened.close()


def _pixels(height: int, width: int, bands: int = 3, *, bits: int = 8) -> npt.NDArray[Any]:
    """Return smooth pixels, so that lossy formats keep something."""
    noise = np.random.default_rng(height + width).normal(size=(height, width, bands))
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5).reshape(noise.shape)
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) / max(high - low, 1e-9) * (2**bits - 1)).round().astype(f"u{bits // 8}")


def _encoded(pixels: npt.NDArray[Any], kind: str, orientation: int | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif.tobytes()
    Image.fromarray(pixels.squeeze()).save(stream, kind, **options)
    return stream.getvalue()


def _png16(pixels: npt.NDArray[np.uint16]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _palette(*, transparent: bool) -> bytes:
    image = Image.fromarray(_pixels(19, 31)).quantize(16)
    stream = io.BytesIO()
    image.save(stream, "PNG", **({"transparency": 3} if transparent else {}))
    return stream.getvalue()


def _files() -> dict[str, bytes]:
    """Return files of every kind that browsers and segx read."""
    rgb, gray, rgba = _pixels(37, 41), _pixels(37, 41, 1), _pixels(37, 41, 4)
    files = {
        "gray.png": _encoded(gray, "PNG"),
        "gray with alpha.png": _encoded(_pixels(21, 13, 2), "PNG"),
        "bits.png": _encoded(gray > 128, "PNG"),
        "palette.png": _palette(transparent=False),
        "palette with alpha.png": _palette(transparent=True),
        "16 bits gray.png": _png16(_pixels(37, 41, 1, bits=16)),
        "16 bits.png": _png16(_pixels(29, 23, bits=16)),
        "16 bits with alpha.png": _png16(_pixels(29, 23, 4, bits=16)),
        "rgb.png": _encoded(rgb, "PNG"),
        "rgba.png": _encoded(rgba, "PNG"),
        "gray.jpg": _encoded(gray, "JPEG"),
        "rgb.jpg": _encoded(rgb, "JPEG", quality=80),
        "progressive.jpg": _encoded(rgb, "JPEG", progressive=True, subsampling=0),
        "rgb.webp": _encoded(rgb, "WEBP", quality=80),
        "rgba.webp": _encoded(rgba, "WEBP", lossless=True, exact=True),
        "rgb.bmp": _encoded(rgb, "BMP"),
        "rgb.gif": _encoded(rgb, "GIF"),
        "rgb.avif": _encoded(rgb, "AVIF"),
    }
    for orientation, kind in itertools.product(range(1, 10), ("PNG", "JPEG", "WEBP")):
        files[f"turned {orientation}.{kind.lower()}"] = _encoded(rgb, kind, orientation)
    return files


_SPECS = {
    "gray": ModelSpec(height=32, width=32),
    "imagenet": ModelSpec(
        in_channels=3, height=24, width=40, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), arch="Unet"
    ),
    "bgr": ModelSpec(
        in_channels=3, height=48, width=17, input_range="0-255", channel_order="bgr", mean=(103.9, 116.8, 123.7)
    ),
    "linear": ModelSpec(height=20, width=56, resize="linear"),
    "letterbox": ModelSpec(in_channels=3, height=33, width=64, resize="letterbox", mean=(0.5, 0.4, 0.3)),
}


def _check(page: Page, file: bytes, spec: ModelSpec, name: str) -> None:
    pixels = decode_image(file, name, spec.in_channels, white_level=spec.white_level)
    expected = preprocess(pixels, spec)
    answer = page.evaluate(_PREPARE, [base64.b64encode(file).decode(), _plain(spec)])
    found = np.frombuffer(base64.b64decode(answer), np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=_TOLERANCE, err_msg=name)


def _plain(spec: ModelSpec) -> dict[str, Any]:
    return dataclasses.asdict(spec)


@pytest.mark.parametrize("spec", _SPECS)
def test_input_is_that_of_segx_for_every_kind_of_file(page: Page, spec: str) -> None:
    for name, file in _files().items():
        _check(page, file, _SPECS[spec], name)


@pytest.mark.parametrize("resize", ["antialias", "linear", "letterbox"])
def test_input_is_that_of_segx_for_odd_sizes(page: Page, resize: Resize) -> None:
    spec = ModelSpec(in_channels=3, height=32, width=48, resize=resize)
    for width, height in [(1, 1), (1, 9), (7, 1), (2, 3), (47, 31), (96, 64), (301, 11), (5, 400), (48, 32), (48, 77)]:
        _check(page, _encoded(_pixels(height, width), "PNG"), spec, f"{width}x{height}")


def test_damaged_files_are_refused_as_by_segx(page: Page) -> None:
    for name, file in _files().items():
        if name.startswith("turned"):
            continue
        middle = len(file) // 2
        damaged = [file[:middle], file[:-2], file[:middle] + bytes([file[middle] ^ 0x55]) + file[middle + 1 :]]
        for data in damaged if name.endswith(".png") else damaged[:2]:
            with pytest.raises(ImageError):
                decode_image(data, name, 3)
            with pytest.raises(Error, match="not an image that this browser reads, or a damaged one"):
                page.evaluate(_PREPARE, [base64.b64encode(data).decode(), _plain(_SPECS["imagenet"])])


def test_input_is_that_of_segx_for_white_levels_and_four_bands(page: Page) -> None:
    dark = _png16(_pixels(37, 41, 1, bits=16) // 14)
    _check(page, dark, ModelSpec(height=32, width=32, white_level=4095), "12 bits")
    four = ModelSpec(in_channels=4, height=32, width=32)
    for name, file in _files().items():
        if "alpha" in name or name.startswith("rgba"):
            _check(page, file, four, name)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(height=32, width=24, threshold=0.3),
        ModelSpec(height=32, width=24, classes=5),
        ModelSpec(height=32, width=24, classes=3, multilabel=True, resize="letterbox"),
    ],
    ids=["one class", "classes", "labels"],
)
def test_masks_are_those_that_predict_writes(page: Page, spec: ModelSpec) -> None:
    """Their size is the image's, by nearest neighbour, where ties between two pixels are common."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=spec.output_shape).astype(np.float32)
    logits[:, :4] = np.float32(spec.logit_threshold)
    for width, height in [(24, 32), (60, 52), (168, 224), (7, 5), (1, 1), (101, 77)]:
        options = OutputOptions(size="original")
        expected = postprocess(logits, (width, height), spec, options).mask
        size = {"width": width, "height": height}
        given = [base64.b64encode(logits.tobytes()).decode(), _plain(spec), size, spec.threshold]
        files = [base64.b64decode(file) for file in page.evaluate(_MASKS, given)]
        found = [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED) for file in files]
        np.testing.assert_array_equal(np.squeeze(found), np.squeeze(expected), err_msg=f"{width}x{height}")
