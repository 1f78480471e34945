"""Parity in pictures: layers of an SVG per image, shared between variants, and a histogram of margins."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from segx.masks.agreement import BENIGN, MARGIN_EDGES, REAL
from segx.reporting.columns import Field, digits, figures, table_of
from segx.reporting.document import Chart
from segx.reporting.html import charts
from segx.reporting.html.theme import LINES, OVERLAYS
from segx.results.pictures import ParityPicture

# Bytes of all inputs, of all masks, and of all boundaries and flips: more or larger images are scaled down.
_INPUT_BYTES, _MASK_BYTES, _LAYER_BYTES = 1_000_000, 450_000, 450_000
_SMALLEST_SCALE = 0.05
# Pixels across of a region that the next-change control shows, and how many regions at most.
_REGION, _MOST_REGIONS = 48, 12
# Count of the histogram -> name, colour and fill pattern of its bars.
_BARS = {
    "pixels": ("all pixels", "#87909b", ""),
    "benign": ("benign flips", OVERLAYS["benign"], "/"),
    "real": ("real flips", OVERLAYS["real"], "x"),
}

_Pixels = npt.NDArray[np.uint8]
_Selection = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """A boundary or the flips of one kind, as an SVG path or, if that would be too long, as a picture.

    Attributes:
        kind: ``real``, ``benign``, ``reference`` (its boundary) or ``variant`` (its boundary where it differs).
        path: SVG path; empty if there is a picture, or nothing to draw.
        image: data URI; empty if there is a path.
    """

    kind: str
    path: str
    image: str


@dataclass(frozen=True)
class SharedImage:
    """What all variants show of one image: input and reference mask as data URIs, and the reference's boundary."""

    input: str
    reference: str
    boundary: Layer
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class View:
    """One image under one variant.

    Attributes:
        details: how well the masks agree.
        image: key of the shared image.
        mask: the variant's mask as a data URI.
        layers: the variant's boundary and its flips.
        regions: SVG view boxes of the regions with flips.
        chart: histogram of the margins.
    """

    key: str
    title: str
    details: str
    image: str
    mask: str
    layers: tuple[Layer, ...]
    regions: Sequence[str]
    chart: Chart


@dataclass(frozen=True)
class Gallery:
    """All pictures of a page: shared images by key, views by variant, and the variant to show first."""

    images: Mapping[str, SharedImage]
    views: Mapping[str, Sequence[View]]
    first: str

    @property
    def charts(self) -> list[Chart]:
        """Return the charts of all views."""
        return [view.chart for views in self.views.values() for view in views]


def gallery(pictures: Sequence[ParityPicture]) -> Gallery:
    """Return the pictures of a bench as they are drawn; the variant with the most flips comes first."""
    keys = {name: f"image-{i}" for i, name in enumerate(dict.fromkeys(picture.name for picture in pictures))}
    masks = _encoded([_colored(picture.mask, picture.classes) for picture in pictures], _MASK_BYTES, "PNG")
    views: dict[str, list[View]] = {}
    for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        view = View(
            key=f"picture-{number}",
            title=f"{picture.role.capitalize()} image: {picture.name}",
            details=_details(picture),
            image=keys[picture.name],
            mask=mask,
            layers=_layers(picture, _LAYER_BYTES // (3 * len(pictures))),
            regions=flip_regions(picture.flips),
            chart=_margins_chart(f"margins-picture-{number}", picture),
        )
        views.setdefault(picture.variant, []).append(view)
    most = max(pictures, key=lambda picture: picture.flipped_pixels, default=None)
    shared = _shared_images({keys[picture.name]: picture for picture in pictures})
    return Gallery(shared, views, most.variant if most else "")


def _shared_images(pictures: Mapping[str, ParityPicture]) -> dict[str, SharedImage]:
    inputs = _encoded([Image.fromarray(np.squeeze(each.image)) for each in pictures.values()], _INPUT_BYTES, "JPEG")
    references = _encoded([_colored(each.reference, each.classes) for each in pictures.values()], _MASK_BYTES, "PNG")
    return {
        key: SharedImage(
            image,
            reference,
            _boundary("reference", *edges(picture.reference), _LAYER_BYTES // len(pictures)),
            width=picture.reference.shape[1],
            height=picture.reference.shape[0],
        )
        for (key, picture), image, reference in zip(pictures.items(), inputs, references, strict=True)
    }


def _details(picture: ParityPicture) -> str:
    flips, pixels, benign = picture.flipped_pixels, picture.reference.size, picture.benign_flips
    differ = f"{flips:,} of {pixels:,} pixels differ: {flips - benign:,} real, {benign:,} benign"
    same = f"all {pixels:,} pixels are the same"
    iou = int(picture.iou * 10_000) / 10_000  # rounded down: 1.0000 means identical
    return f"IoU {iou:.4f}; {differ if flips else same}; batch {picture.batch_size}."


def _layers(picture: ParityPicture, max_bytes: int) -> tuple[Layer, ...]:
    reference, variant = edges(picture.reference), edges(picture.mask)
    own = [theirs & ~ours for theirs, ours in zip(variant, reference, strict=True)]
    benign, real = picture.flips == BENIGN, picture.flips == REAL
    return (
        _boundary("variant", own[0], own[1], max_bytes),
        _layer("benign", benign, pixel_path(benign), max_bytes),
        _layer("real", real, pixel_path(real), max_bytes),
    )


def _boundary(kind: str, vertical: _Selection, horizontal: _Selection, max_bytes: int) -> Layer:
    pixels = np.pad(vertical, ((0, 0), (1, 0))) | np.pad(horizontal, ((1, 0), (0, 0)))
    return _layer(kind, pixels, boundary_path(vertical, horizontal), max_bytes)


def _layer(kind: str, pixels: _Selection, path: str, max_bytes: int) -> Layer:
    if len(path) <= max_bytes:
        return Layer(kind, path, "")
    image = _with_palette(pixels.astype(np.uint8), ["#000000", OVERLAYS[kind]])
    image.info["transparency"] = 0
    return Layer(kind, "", _encoded([image], max_bytes, "PNG")[0])


def pixel_path(pixels: _Selection) -> str:
    """Return (H, W) bool pixels as an SVG path with one box per run of a row."""
    return "".join(f"M{x} {y}h{end - x}v1h{x - end}z" for y, x, end in _runs(pixels))


def edges(mask: _Pixels) -> tuple[_Selection, _Selection]:
    """Return where the classes of neighbours in an (H, W) uint8 mask differ.

    Returns:
        (H, W - 1) bool between each pixel and its right neighbour; (H - 1, W) bool between it and the one below.
    """
    return mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]


def boundary_path(vertical: _Selection, horizontal: _Selection) -> str:
    """Return the edges found by ``edges`` as an SVG path of lines between pixels."""
    down = "".join(f"M{x + 1} {y}v{end - y}" for x, y, end in _runs(vertical.T))
    return down + "".join(f"M{x} {y + 1}h{end - x}" for y, x, end in _runs(horizontal))


def _runs(pixels: _Selection) -> list[tuple[int, int, int]]:
    """Return row, start and end of each run of True."""
    steps = np.diff(np.pad(pixels.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))


def flip_regions(kinds: _Pixels) -> list[str]:
    """Return the regions of an image with flips, those with the most first, as SVG view boxes of equal size.

    Args:
        kinds: (H, W) uint8, not 0 where a pixel flipped.
    """
    height, width = kinds.shape
    across, down = min(_REGION, width), min(_REGION, height)
    # Flips within half a region of each other are shown together.
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, x in np.argwhere(kinds).tolist():
        groups.setdefault((y * 2 // down, x * 2 // across), []).append((y, x))
    found = []
    for flips in sorted(groups.values(), key=len, reverse=True)[:_MOST_REGIONS]:
        middle_y, middle_x = np.mean(flips, axis=0) + 0.5
        left = np.clip(round(middle_x - across / 2), 0, width - across)
        top = np.clip(round(middle_y - down / 2), 0, height - down)
        found.append(f"{left} {top} {across} {down}")
    return list(dict.fromkeys(found))


def _colored(mask: _Pixels, classes: int) -> Image.Image:
    """Return a mask in black and white, or with a colour per class."""
    colors = ["#111417", "#f4f5f6"] if classes == 1 else ["#111417", *LINES * math.ceil(classes / len(LINES))]
    return _with_palette(mask, colors[:256])


def _with_palette(values: _Pixels, colors: Sequence[str]) -> Image.Image:
    image = Image.frombytes("P", (values.shape[1], values.shape[0]), values.tobytes())
    image.putpalette([int(color[i : i + 2], 16) for color in colors for i in (1, 3, 5)])
    return image


def _encoded(images: Sequence[Image.Image], max_bytes: int, kind: str) -> list[str]:
    """Return pictures as data URIs, scaled down until all of them together fit."""
    data = [_file_bytes(image, kind, 1.0) for image in images]
    scale = 1.0
    while (size := sum(map(len, data))) > max_bytes and scale > _SMALLEST_SCALE:
        scale *= 0.95 * math.sqrt(max_bytes / size)
        data = [_file_bytes(image, kind, scale) for image in images]
    return [f"data:image/{kind.lower()};base64,{base64.b64encode(each).decode()}" for each in data]


def _file_bytes(image: Image.Image, kind: str, scale: float) -> bytes:
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.NEAREST if image.mode == "P" else Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return stream.getvalue()


def _margins_chart(key: str, picture: ParityPicture) -> Chart:
    """Return the histogram of the margins of an image, flips as hatched bars in front of all pixels."""
    histogram = picture.histogram
    filled = [i for i, count in enumerate(histogram.pixels) if count]
    first, last = min(filled, default=0), max(filled, default=0)
    bins = range(first, last + 1)
    band = _position(picture.noise_band)
    shown = range(max(1, min(first, math.floor(band))), last + 2)
    powers = [i for i in shown if math.isclose(math.log10(MARGIN_EDGES[i]) % 1, 0, abs_tol=1e-9)]
    x = {
        "title": {"text": "margin in logits (logarithmic)"},
        "tickvals": powers,
        "ticktext": [digits(MARGIN_EDGES[i], 1) for i in powers],
        "range": [min(first, band) - 0.5, last + 1.5],
    }
    y = {"title": {"text": "pixels (logarithmic)"}, "type": "log", "exponentformat": "none", "dtick": 1}
    traces = []
    for kind, (name, color, pattern) in _BARS.items():
        counts = [getattr(histogram, kind)[i] for i in bins]
        fill = {"shape": pattern, "size": 6, "solidity": 0.5, "fillmode": "replace"}
        labels = [
            f"margin {digits(MARGIN_EDGES[i])} to {digits(MARGIN_EDGES[i + 1])}<br>{count:,} {name}"
            for i, count in zip(bins, counts, strict=True)
        ]
        traces.append(
            {
                "type": "bar",
                "name": name,
                "x": [i + 0.5 for i in bins],
                "y": counts,
                "marker": {"color": color, "opacity": 0.45 if kind == "pixels" else 1, "pattern": fill},
                "hovertext": labels,
                "hoverinfo": "text",
            }
        )
    fields: list[Field[int]] = [
        figures("margin from", lambda i: MARGIN_EDGES[i]),
        figures("to", lambda i: MARGIN_EDGES[i + 1]),
        figures("pixels", lambda i: histogram.pixels[i], form="{:,}"),
        figures("benign flips", lambda i: histogram.benign[i], form="{:,}"),
        figures("real flips", lambda i: histogram.real[i], form="{:,}"),
    ]
    counted = [i for i in bins if histogram.pixels[i] or histogram.benign[i] or histogram.real[i]]
    return Chart(
        key=key,
        title="Margins of its pixels",
        alt=f"Pixels over the margin of the reference's logit: {picture.flipped_pixels} flipped.",
        reading=(
            "Margin: distance of the reference's logit from the threshold. Gray: all pixels. Hatched: benign flips, "
            "inside the noise band. Crossed: real flips."
        ),
        data=traces,
        layout=charts.layout(
            x, y, barmode="overlay", bargap=0.05, **charts.guide("x", band, " noise band", dash="dot")
        ),
        table=table_of(f"Margins of {picture.name}", counted, fields),
        height=260,
    )


def _position(margin: float) -> float:
    """Return the position of a margin on the axis of bins."""
    if margin < MARGIN_EDGES[1]:
        return margin / MARGIN_EDGES[1]
    return 1 + math.log10(margin / MARGIN_EDGES[1]) / math.log10(MARGIN_EDGES[2] / MARGIN_EDGES[1])
