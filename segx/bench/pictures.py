"""Parity in pictures: for each variant the worst, the median and one typical image, kept beside the results."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segx.bench.worker import CellTask
from segx.errors import ImageError, OutputError, ResultsError
from segx.masks.image_io import FloatArray, MaskArray, read_image, write_png
from segx.masks.margins import MarginHistogram, classed_flips
from segx.model.spec import ModelSpec
from segx.results.types import Parity
from segx.runtimes import Variant
from segx.system.files import write_text

logger = logging.getLogger(__name__)

Role = Literal["worst", "median", "typical"]

_FOLDER = "pictures"
_INDEX = "index.json"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ParityPicture:
    """One image under one variant.

    Attributes:
        variant: as ``str(Variant)`` writes it.
        batch_size: the one that it was run at: that with the most flips.
        role: ``worst``: lowest IoU. ``median``: the middle one by IoU. ``typical``: of the others the one whose IoU is
            nearest to the mean.
        name: of the image.
        iou: of both masks; several classes count by their worst.
        flipped_pixels: mask pixels that differ.
        benign_flips: of those, how many lie inside the noise band.
        noise_band: half-width of that band, in logits.
        classes: the model's; 1 means masks of 0 and 1.
        image: (H, W, C) uint8, what the model sees, C 1 or 3.
        reference: (H, W) uint8, the reference's mask.
        mask: (H, W) uint8, the variant's mask.
        flips: (H, W) uint8: ``SAME``, ``BENIGN`` or ``REAL`` of ``segx.masks.margins``.
        histogram: of the margins.
    """

    variant: str
    batch_size: int
    role: Role
    name: str
    iou: float
    flipped_pixels: int
    benign_flips: int
    noise_band: float
    classes: int
    image: npt.NDArray[np.uint8]
    reference: MaskArray
    mask: MaskArray
    flips: MaskArray
    histogram: MarginHistogram


# Fields of a picture that are files of their own; the others stand in the index.
_IN_FILES = ("image", "reference", "mask", "flips")


def chosen_images(parity: Parity) -> dict[Role, int]:
    """Which images are shown: role -> index among those compared. With one or two images there are fewer roles.

    Images of equal IoU are ordered by their flipped pixels, then as they come.
    """
    images = parity.per_image
    order = sorted(range(len(images)), key=lambda i: (images[i].iou, -images[i].flipped_pixels, i))
    chosen: dict[Role, int] = {}
    if order:
        chosen["worst"] = order[0]
    if len(order) > 1:
        chosen["median"] = order[len(order) // 2]
    if rest := [i for i in order if i not in chosen.values()]:
        chosen["typical"] = min(rest, key=lambda i: abs(images[i].iou - parity.mean_iou))
    return chosen


def save_pictures(
    output: Path, task: CellTask, reference: FloatArray, logits: FloatArray, parity: Parity, *, run: str
) -> None:
    """Keep the pictures of a variant, unless another batch size of it with as many flips has some already.

    Never fails a bench: what cannot be written is a warning. A few files per variant; inputs and reference masks are
    shared by the variants.

    Args:
        output: folder of the results; the pictures go into its ``pictures``.
        task: what was run.
        reference: (N, K, H, W) float32 logits.
        logits: (N, K, H, W) float32 logits of the same images.
        parity: of the two.
        run: identifies the bench; pictures of another one in that folder are thrown away.
    """
    folder = output / _FOLDER
    variant = Variant(task.runtime, task.options.precision, task.options.scope)
    try:
        variants = _variants_of(folder, run)
        kept = variants.get(str(variant))
        if kept and kept["flipped_pixels"] >= parity.flipped_pixels:
            return
        variants[str(variant)] = {
            "flipped_pixels": parity.flipped_pixels,
            "pictures": [
                _write(folder, _picture(variant, task, role, index, reference[index], logits[index], parity), index)
                for role, index in chosen_images(parity).items()
            ],
        }
        write_text(folder / _INDEX, json.dumps({"version": _VERSION, "run": run, "variants": variants}))
    except OutputError as error:
        logger.warning("no pictures of %s: %s", variant, error.message)


def load_pictures(results_folder: Path) -> tuple[ParityPicture, ...]:
    """Read the pictures beside some results; none where the bench kept none.

    Raises:
        ResultsError: they are damaged; the results are whole without them.
    """
    folder = results_folder / _FOLDER
    file = folder / _INDEX
    if not file.is_file():
        return ()
    try:
        variants = json.loads(file.read_text(encoding="utf-8"))["variants"]
        return tuple(_read(folder, entry) for kept in variants.values() for entry in kept["pictures"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImageError) as error:
        raise ResultsError(
            f"{folder} is damaged: {error}", hint=f"remove {folder}; the results are whole without it"
        ) from error


def _variants_of(folder: Path, run: str) -> dict[str, Any]:
    """What the index has of this bench; of another one the files go, so that no picture outlives its results."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if index["version"] == _VERSION and index["run"] == run:
            return dict(index["variants"])
        stale = [entry[name] for kept in index["variants"].values() for entry in kept["pictures"] for name in _IN_FILES]
        for name in {_plain(name) for name in stale}:
            (folder / name).unlink(missing_ok=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.debug("no pictures to go on with: %s", error)
    return {}


def _picture(
    variant: Variant,
    task: CellTask,
    role: Role,
    index: int,
    reference: FloatArray,
    logits: FloatArray,
    parity: Parity,
) -> ParityPicture:
    flips = classed_flips(reference, logits, task.spec, parity.noise_band)
    judged = parity.per_image[index]
    return ParityPicture(
        variant=str(variant),
        batch_size=task.batch_size,
        role=role,
        name=judged.name,
        iou=judged.iou,
        flipped_pixels=judged.flipped_pixels,
        benign_flips=judged.benign_flips,
        noise_band=parity.noise_band,
        classes=task.spec.classes,
        image=as_pixels(task.inputs.read(index, 1)[0], task.spec),
        reference=flips.reference,
        mask=flips.mask,
        flips=flips.kinds,
        histogram=flips.histogram,
    )


def as_pixels(image: FloatArray, spec: ModelSpec) -> npt.NDArray[np.uint8]:
    """Turn a model input back into pixels, without its normalisation.

    Args:
        image: (C, H, W) float32.
        spec: gives mean and standard deviation.

    Returns:
        (H, W, C) uint8.
    """
    values = image.astype(np.float64)
    if spec.std:
        values *= np.asarray(spec.std)[:, None, None]
    if spec.mean:
        values += np.asarray(spec.mean)[:, None, None]
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, 0, 2))


def _write(folder: Path, picture: ParityPicture, index: int) -> dict[str, Any]:
    """Write the files of a picture; gives its entry in the index."""
    own = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in picture.variant.replace(" ", ""))
    names = {
        "image": f"input-{index:05d}.png",
        "reference": f"reference-{index:05d}.png",
        "mask": f"{own}-{picture.role}-mask.png",
        "flips": f"{own}-{picture.role}-flips.png",
    }
    for field, name in names.items():
        pixels = getattr(picture, field)
        if field in ("mask", "flips") or not (folder / name).exists():
            write_png(folder / name, pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    values = {field.name: getattr(picture, field.name) for field in dataclasses.fields(picture)}
    return values | names | {"channels": picture.image.shape[2], "histogram": dataclasses.asdict(picture.histogram)}


def _read(folder: Path, entry: dict[str, Any]) -> ParityPicture:
    values = dict(entry)
    image = read_image(folder / _plain(values["image"]), values.pop("channels"))
    masks = {name: read_image(folder / _plain(values[name]), 1)[..., 0] for name in _IN_FILES if name != "image"}
    counts = {name: tuple(numbers) for name, numbers in values["histogram"].items()}
    return ParityPicture(**{**values, **masks, "image": image, "histogram": MarginHistogram(**counts)})


def _plain(name: str) -> str:
    """A file name from the index, which may come from someone else.

    Raises:
        ValueError: it leads elsewhere.
    """
    if Path(name).name != name or name == "..":
        raise ValueError(f"{name} is no plain file name")
    return name
