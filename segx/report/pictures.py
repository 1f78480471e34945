"""Parity in pictures: layers of an SVG per image, those that several variants share only once."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from segx.bench.margins import BENIGN, REAL
from segx.bench.pictures import ParityPicture
from segx.report.margins import margins
from segx.report.theme import LINES
from segx.report.view import Chart

# Bytes of all inputs together, and of all masks: with more images they are made smaller.
_INPUT_BYTES, _MASK_BYTES = 1_200_000, 900_000
# Flips are drawn as shapes while they are few enough to be told apart, else as pixels.
_MOST_SHAPES = 1000

_Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Flips:
    """Flipped pixels of one kind.

    Attributes:
        kind: ``real`` or ``benign``.
        count: how many.
        path: their outlines as an SVG path; empty where they are too many for shapes.
        image: the same as a picture; empty where there is a path.
    """

    kind: str
    count: int
    path: str
    image: str


@dataclass(frozen=True, kw_only=True)
class View:
    """One image under one variant, as the page shows it.

    Attributes:
        key: its id on the page.
        title: which image it is, and how far its masks agree.
        details: the figures.
        width: of the image, in pixels.
        height: likewise.
        shared: key of what it has in common with other variants: input, reference mask, its boundary.
        mask: the variant's mask as a picture.
        boundary: of that, as an SVG path.
        flips: real and benign ones.
        focus: the part of the image that holds all flips, as an SVG view box; empty without flips.
        chart: histogram of the margins.
    """

    key: str
    title: str
    details: str
    width: int
    height: int
    shared: str
    mask: str
    boundary: str
    flips: tuple[Flips, ...]
    focus: str
    chart: Chart


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What one image has in common under all variants.

    Attributes:
        input: the image as a picture.
        reference: the reference's mask as a picture.
        boundary: of that, as an SVG path.
        width: of the image, in pixels.
        height: likewise.
    """

    input: str
    reference: str
    boundary: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All pictures of a page.

    Attributes:
        shared: key -> what variants have in common.
        views: variant -> its images.
        first: the variant to show first: that with the most flips.
    """

    shared: Mapping[str, Shared]
    views: Mapping[str, Sequence[View]]
    first: str


def gallery(pictures: Sequence[ParityPicture]) -> Gallery:
    """Lay the pictures of a bench out."""
    keys = {name: f"image-{i}" for i, name in enumerate(dict.fromkeys(picture.name for picture in pictures))}
    masks = _encoded([_colored(picture.mask, picture.classes) for picture in pictures], _MASK_BYTES, "PNG")
    views: dict[str, list[View]] = {}
    for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        views.setdefault(picture.variant, []).append(_view(f"picture-{number}", keys[picture.name], picture, mask))
    most = max(pictures, key=lambda picture: picture.flipped_pixels, default=None)
    by_key = {keys[picture.name]: picture for picture in pictures}
    return Gallery(shared=_shared(by_key), views=views, first=most.variant if most else "")


def _shared(pictures: Mapping[str, ParityPicture]) -> dict[str, Shared]:
    inputs = _encoded([Image.fromarray(np.squeeze(each.image)) for each in pictures.values()], _INPUT_BYTES, "JPEG")
    references = _encoded([_colored(each.reference, each.classes) for each in pictures.values()], _MASK_BYTES, "PNG")
    return {
        key: Shared(
            input=image,
            reference=reference,
            boundary=boundary_path(picture.reference),
            width=picture.reference.shape[1],
            height=picture.reference.shape[0],
        )
        for (key, picture), image, reference in zip(pictures.items(), inputs, references, strict=True)
    }


def _view(key: str, shared: str, picture: ParityPicture, mask: str) -> View:
    height, width = picture.reference.shape
    flips, pixels, benign = picture.flipped_pixels, picture.reference.size, picture.benign_flips
    differ = f"{flips:,} of {pixels:,} pixels differ: {flips - benign:,} real, {benign:,} benign"
    same = f"all {pixels:,} pixels are the same"
    iou = f"IoU {int(picture.iou * 10_000) / 10_000:.4f}"
    return View(
        key=key,
        title=f"{picture.role.capitalize()} image: {picture.name}",
        details=f"{iou}; {differ if flips else same}; batch {picture.batch_size}.",
        width=width,
        height=height,
        shared=shared,
        mask=mask,
        boundary=boundary_path(picture.mask),
        flips=tuple(_flips(picture.flips, kind, name) for kind, name in ((BENIGN, "benign"), (REAL, "real"))),
        focus=_focus(picture.flips),
        chart=margins(f"margins-{key}", picture),
    )


def _flips(kinds: _Pixels, kind: int, name: str) -> Flips:
    chosen = kinds == kind
    count = int(chosen.sum())
    path = pixel_path(chosen)
    if path.count("z") <= _MOST_SHAPES:
        return Flips(name, count, path, "")
    (image,) = _encoded([_stencil(chosen, name)], _MASK_BYTES, "PNG")
    return Flips(name, count, "", image)


def _stencil(chosen: npt.NDArray[np.bool_], name: str) -> Image.Image:
    """Some pixels in their colour, the others transparent."""
    colors = {"real": (0xE0, 0x45, 0x7B, 255), "benign": (0x2F, 0x9F, 0xD8, 255)}
    pixels = np.zeros((*chosen.shape, 4), dtype=np.uint8)
    pixels[chosen] = colors[name]
    return Image.fromarray(pixels)


def pixel_path(chosen: npt.NDArray[np.bool_]) -> str:
    """The outlines of some pixels as an SVG path: one box per run of a row.

    Args:
        chosen: (H, W) bool.
    """
    padded = np.pad(chosen.astype(np.int8), ((0, 0), (1, 1)))
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return "".join(f"M{x} {y}h{end - x}v1h{x - end}z" for y, x, end in zip(rows, starts, ends, strict=True))


def boundary_path(mask: _Pixels) -> str:
    """The lines between pixels of different classes, as an SVG path.

    Args:
        mask: (H, W) uint8.
    """
    upright, level = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    down = "".join(f"M{x + 1} {y}v{end - y}" for x, y, end in _runs(upright.T))
    across = "".join(f"M{x} {y + 1}h{end - x}" for y, x, end in _runs(level))
    return down + across


def _runs(chosen: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Row, start and end of each run of True."""
    steps = np.diff(np.pad(chosen.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))


def _focus(kinds: _Pixels) -> str:
    """A square about all flips with room around it, inside the image."""
    rows, columns = np.nonzero(kinds)
    if not len(rows):
        return ""
    height, width = kinds.shape
    side = max(np.ptp(rows), np.ptp(columns)) + 17
    across, down = min(side, width), min(side, height)
    left = np.clip((columns.min() + columns.max() + 1 - across) / 2, 0, width - across)
    top = np.clip((rows.min() + rows.max() + 1 - down) / 2, 0, height - down)
    return f"{left:g} {top:g} {across} {down}"


def _colored(mask: _Pixels, classes: int) -> Image.Image:
    """A mask as a palette picture: black and white, or a colour per class."""
    image = Image.fromarray(mask, mode="P")
    colors = ["#111417", "#f4f5f6"] if classes == 1 else ["#111417", *LINES * math.ceil(classes / len(LINES))]
    image.putpalette([int(color[i : i + 2], 16) for color in colors[:256] for i in (1, 3, 5)])
    return image


def _encoded(images: Sequence[Image.Image], budget: int, kind: str) -> list[str]:
    """Pictures as data URIs, made smaller until all together keep the budget."""
    data = [_bytes_of(image, kind) for image in images]
    size = sum(map(len, data))
    if size > budget:
        scale = math.sqrt(budget / size)
        data = [_bytes_of(_smaller(image, scale), kind) for image in images]
    return [f"data:image/{kind.lower()};base64,{base64.b64encode(each).decode()}" for each in data]


def _smaller(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if image.mode == "P" else Image.Resampling.LANCZOS)


def _bytes_of(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return stream.getvalue()
