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

from segx.masks.margins import BENIGN as BENIGN_FLIP
from segx.masks.margins import REAL as REAL_FLIP
from segx.reporting.document import Chart
from segx.reporting.html.margins import margins
from segx.reporting.html.theme import BENIGN, LINES, REAL, REFERENCE, VARIANT
from segx.results.pictures import ParityPicture

# Bytes of all inputs, of all masks, of all lines and flips: with more or larger images they are made coarser.
_INPUT_BYTES, _MASK_BYTES, _LAYER_BYTES = 1_000_000, 450_000, 450_000

_COARSEST = 0.05
# Pixels across of a part that is shown large, and how many parts at most.
_PLACE, _MOST_PLACES = 48, 12

_Pixels = npt.NDArray[np.uint8]
_Chosen = npt.NDArray[np.bool_]
_COLORS = {"real": REAL, "benign": BENIGN, "edge": REFERENCE, "own": VARIANT}


@dataclass(frozen=True)
class Layer:
    """Something that is drawn on an image, as shapes or, where these would be too many, as pixels.

    Attributes:
        kind: ``real`` or ``benign`` flips; ``edge``, the boundary of the reference's mask; ``own``, that of the
            variant's where it is another.
        path: as an SVG path; empty where there is none, or too much.
        image: the same as a picture; empty where there is a path.
    """

    kind: str
    path: str
    image: str


@dataclass(frozen=True, kw_only=True)
class View:
    """One image under one variant, as the page shows it.

    Attributes:
        key: its id on the page.
        title: which image it is.
        details: how far its masks agree.
        width: of the image, in pixels.
        height: likewise.
        shared: key of what it has in common with other variants.
        mask: the variant's mask as a picture.
        layers: the variant's boundary and its flips, as they are drawn.
        places: the parts of the image that hold flips; see ``places``.
        chart: histogram of the margins.
    """

    key: str
    title: str
    details: str
    width: int
    height: int
    shared: str
    mask: str
    layers: tuple[Layer, ...]
    places: Sequence[str]
    chart: Chart


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What one image has in common under all variants.

    Attributes:
        input: the image as a picture.
        reference: the reference's mask as a picture.
        boundary: of that.
        width: of the image, in pixels.
        height: likewise.
    """

    input: str
    reference: str
    boundary: Layer
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
        layers = _layers(picture, _LAYER_BYTES // (3 * len(pictures)))
        view = _view(f"picture-{number}", keys[picture.name], picture, mask, layers)
        views.setdefault(picture.variant, []).append(view)
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
            boundary=_boundary("edge", *edges(picture.reference), _LAYER_BYTES // len(pictures)),
            width=picture.reference.shape[1],
            height=picture.reference.shape[0],
        )
        for (key, picture), image, reference in zip(pictures.items(), inputs, references, strict=True)
    }


def _view(key: str, shared: str, picture: ParityPicture, mask: str, layers: tuple[Layer, ...]) -> View:
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
        layers=layers,
        places=places(picture.flips),
        chart=margins(f"margins-{key}", picture),
    )


def _layers(picture: ParityPicture, most: int) -> tuple[Layer, ...]:
    """The variant's boundary where it is not the reference's, and the flips."""
    reference, variant = edges(picture.reference), edges(picture.mask)
    own = [theirs & ~ours for theirs, ours in zip(variant, reference, strict=True)]
    benign, real = picture.flips == BENIGN_FLIP, picture.flips == REAL_FLIP
    return (
        _boundary("own", own[0], own[1], most),
        _layer("benign", benign, pixel_path(benign), most),
        _layer("real", real, pixel_path(real), most),
    )


def _boundary(kind: str, upright: _Chosen, level: _Chosen, most: int) -> Layer:
    beside = np.pad(upright, ((0, 0), (1, 0))) | np.pad(level, ((1, 0), (0, 0)))
    return _layer(kind, beside, boundary_path(upright, level), most)


def _layer(kind: str, chosen: _Chosen, path: str, most: int) -> Layer:
    if len(path) <= most:
        return Layer(kind, path, "")
    image = _with_palette(chosen.astype(np.uint8))
    image.putpalette([0, 0, 0, *(int(_COLORS[kind][i : i + 2], 16) for i in (1, 3, 5))])
    image.info["transparency"] = 0
    return Layer(kind, "", _encoded([image], most, "PNG")[0])


def pixel_path(chosen: _Chosen) -> str:
    """The outlines of some pixels as an SVG path: one box per run of a row.

    Args:
        chosen: (H, W) bool.
    """
    return "".join(f"M{x} {y}h{end - x}v1h{x - end}z" for y, x, end in _runs(chosen))


def edges(mask: _Pixels) -> tuple[_Chosen, _Chosen]:
    """Where neighbours are of different classes.

    Args:
        mask: (H, W) uint8.

    Returns:
        (H, W - 1) bool between a pixel and the one on its right, and (H - 1, W) bool between it and the one below.
    """
    return mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]


def boundary_path(upright: _Chosen, level: _Chosen) -> str:
    """Edges as lines between pixels, as an SVG path; see ``edges``."""
    down = "".join(f"M{x + 1} {y}v{end - y}" for x, y, end in _runs(upright.T))
    across = "".join(f"M{x} {y + 1}h{end - x}" for y, x, end in _runs(level))
    return down + across


def _runs(chosen: _Chosen) -> list[tuple[int, int, int]]:
    """Row, start and end of each run of True."""
    steps = np.diff(np.pad(chosen.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))


def places(kinds: _Pixels) -> list[str]:
    """Parts of an image that hold flips, those with most first, as SVG view boxes of equal size.

    Args:
        kinds: (H, W) uint8, not 0 where a pixel flipped.

    Returns:
        As many as it takes to see all flips, up to a limit; empty without flips.
    """
    height, width = kinds.shape
    across, down = min(_PLACE, width), min(_PLACE, height)
    # Flips within half a place of each other are seen at once.
    cells: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, x in np.argwhere(kinds).tolist():
        cells.setdefault((y * 2 // down, x * 2 // across), []).append((y, x))
    found = []
    for flips in sorted(cells.values(), key=len, reverse=True)[:_MOST_PLACES]:
        middle_y, middle_x = np.mean(flips, axis=0) + 0.5
        left = np.clip(round(middle_x - across / 2), 0, width - across)
        top = np.clip(round(middle_y - down / 2), 0, height - down)
        found.append(f"{left} {top} {across} {down}")
    return list(dict.fromkeys(found))


def _colored(mask: _Pixels, classes: int) -> Image.Image:
    """A mask as a palette picture: black and white, or a colour per class."""
    image = _with_palette(mask)
    colors = ["#111417", "#f4f5f6"] if classes == 1 else ["#111417", *LINES * math.ceil(classes / len(LINES))]
    image.putpalette([int(color[i : i + 2], 16) for color in colors[:256] for i in (1, 3, 5)])
    return image


def _with_palette(values: _Pixels) -> Image.Image:
    """(H, W) uint8 as a picture whose colours are yet to be given."""
    return Image.frombytes("P", (values.shape[1], values.shape[0]), values.tobytes())


def _encoded(images: Sequence[Image.Image], budget: int, kind: str) -> list[str]:
    """Pictures as data URIs, made smaller until all together keep the budget."""
    data = [_bytes_of(image, kind) for image in images]
    scale = 1.0
    while (size := sum(map(len, data))) > budget and scale > _COARSEST:
        scale *= 0.95 * math.sqrt(budget / size)
        data = [_bytes_of(_smaller(image, scale), kind) for image in images]
    return [f"data:image/{kind.lower()};base64,{base64.b64encode(each).decode()}" for each in data]


def _smaller(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if image.mode == "P" else Image.Resampling.LANCZOS)


def _bytes_of(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return stream.getvalue()
