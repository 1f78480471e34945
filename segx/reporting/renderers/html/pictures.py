"""Pictures of masks: layers of an SVG per image, shared between variants, and a histogram of margins."""

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
from segx.reporting.columns import Field, digits, figures, iou, table_of, words
from segx.reporting.document import Chart
from segx.reporting.renderers.html import charts
from segx.reporting.renderers.html.theme import LINES, OVERLAYS
from segx.results.pictures import ParityPicture

# Bytes of all inputs, of all masks, and of all boundaries and flips: more or larger images are scaled down.
_INPUT_BYTES, _MASK_BYTES, _LAYER_BYTES = 1_000_000, 450_000, 450_000
_SMALLEST_SCALE = 0.05
# Pixels across of a region that the next-change control shows, and how many regions at most.
_REGION, _MOST_REGIONS = 48, 12
# Count of the histogram -> name, colour and fill pattern of its bars.
_BARS = {
    "pixels": ("all pixels", "#87909b", ""),
    "benign": ("changed within rounding", OVERLAYS["benign"], "/"),
    "real": ("changed", OVERLAYS["real"], "x"),
}
_BINS = range(len(MARGIN_EDGES) - 1)

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
    """

    key: str
    title: str
    details: str
    image: str
    mask: str
    layers: tuple[Layer, ...]
    regions: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """All pictures of a page.

    Attributes:
        images: key -> what the views of one image share.
        views: variant -> its images, the worst first.
        first: the variant to show first.
        margins: histograms of the margins of the worst images; None without pictures.
    """

    images: Mapping[str, SharedImage]
    views: Mapping[str, Sequence[View]]
    first: str
    margins: Chart | None


def gallery(pictures: Sequence[ParityPicture], recommended: str) -> Gallery:
    """Return the pictures in which pixels changed, as they are drawn.

    The recommended variant comes first or, if its masks are identical, that with the most changed pixels.
    """
    pictures = [picture for picture in pictures if picture.flipped_pixels]
    keys = {name: f"image-{i}" for i, name in enumerate(dict.fromkeys(picture.name for picture in pictures))}
    masks = _encoded([_colored(picture.mask, picture.classes) for picture in pictures], _MASK_BYTES, "PNG")
    views: dict[str, list[View]] = {}
    for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        view = View(
            key=f"picture-{number}",
            title=f"{picture.role.capitalize()} image of {picture.variant}: {picture.name}",
            details=_details(picture),
            image=keys[picture.name],
            mask=mask,
            layers=_layers(picture, _LAYER_BYTES // (3 * len(pictures))),
            regions=flip_regions(picture.flips),
        )
        views.setdefault(picture.variant, []).append(view)
    most = max(pictures, key=lambda picture: (picture.variant == recommended, picture.flipped_pixels), default=None)
    worst = {picture.variant: picture for picture in reversed(pictures)}
    return Gallery(
        images=_shared_images({keys[picture.name]: picture for picture in pictures}),
        views=views,
        first=most.variant if most else "",
        margins=_margins_chart(list(worst.values())[::-1]) if worst else None,
    )


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
    within = f", {picture.benign_flips:,} of them within the reference's own rounding" if picture.benign_flips else ""
    return (
        f"{picture.flipped_pixels:,} of {picture.reference.size:,} pixels differ{within}; IoU {iou(picture.iou)}, "
        f"batch {picture.batch_size}."
    )


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


def _margins_chart(pictures: Sequence[ParityPicture]) -> Chart:
    """Return the histograms of the margins of one image of each variant, changed pixels as hatched bars in front."""
    counted = [i for i in _BINS if any(picture.histogram.pixels[i] for picture in pictures)]
    first, last = min(counted, default=0), max(counted, default=0)
    band = _position(max(picture.noise_band for picture in pictures))
    shown = range(max(1, min(first, math.floor(band))), last + 2)
    powers = [i for i in shown if math.isclose(math.log10(MARGIN_EDGES[i]) % 1, 0, abs_tol=1e-9)]
    x = {
        "title": {"text": "margin in logits (logarithmic)"},
        "tickvals": powers,
        "ticktext": [digits(MARGIN_EDGES[i], 1) for i in powers],
        "range": [min(first, band) - 0.5, last + 1.5],
    }
    y = {"title": {"text": "pixels (logarithmic)"}, "type": "log", "exponentformat": "none", "dtick": 1}
    fields: list[Field[tuple[ParityPicture, int]]] = [
        words("variant", lambda row: row[0].variant),
        words("image", lambda row: row[0].name),
        figures("margin from", lambda row: MARGIN_EDGES[row[1]]),
        figures("to", lambda row: MARGIN_EDGES[row[1] + 1]),
        figures("pixels", lambda row: row[0].histogram.pixels[row[1]], form="{:,}"),
        figures("changed within rounding", lambda row: row[0].histogram.benign[row[1]], form="{:,}"),
        figures("changed", lambda row: row[0].histogram.real[row[1]], form="{:,}"),
    ]
    return Chart(
        key="margins",
        title="How sure was the reference of the pixels that changed?",
        alt="Pixels of the worst image by the margin of the reference's logit, those that changed in front.",
        reading=(
            "Worst image. Margin: distance of the reference's logit from the threshold. Gray: all pixels. Hatched: "
            "changed within the reference's own rounding. Crossed: changed beyond it."
        ),
        frames={picture.variant: _margin_bars(picture, range(first, last + 1)) for picture in pictures},
        layout=charts.layout(x, y, barmode="overlay", bargap=0.05, **charts.guide("x", band, " rounding", dash="dot")),
        table=table_of("Margins of the worst images", [(each, i) for each in pictures for i in counted], fields),
        height=260,
    )


def _margin_bars(picture: ParityPicture, bins: Sequence[int]) -> list[charts.Trace]:
    bars = []
    for kind, (name, color, pattern) in _BARS.items():
        counts = [getattr(picture.histogram, kind)[i] for i in bins]
        bars.append(
            {
                "type": "bar",
                "name": name,
                "x": [i + 0.5 for i in bins],
                "y": counts,
                "marker": {
                    "color": color,
                    "opacity": 0.45 if kind == "pixels" else 1,
                    "pattern": {"shape": pattern, "size": 6, "solidity": 0.5, "fillmode": "replace"},
                },
                "hovertext": [
                    f"margin {digits(MARGIN_EDGES[i])} to {digits(MARGIN_EDGES[i + 1])}<br>{count:,} {name}"
                    for i, count in zip(bins, counts, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
    return bars


def _position(margin: float) -> float:
    """Return the position of a margin on the axis of bins."""
    if margin < MARGIN_EDGES[1]:
        return margin / MARGIN_EDGES[1]
    return 1 + math.log10(margin / MARGIN_EDGES[1]) / math.log10(MARGIN_EDGES[2] / MARGIN_EDGES[1])
