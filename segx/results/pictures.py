"""Pictures of the masks of a bench, saved beside its results."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segx.errors import ImageError, OutputError, ResultsError, first_line
from segx.masks.agreement import MarginHistogram
from segx.masks.image_io import read_image, write_png
from segx.masks.preprocess import MaskArray
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
        role: ``worst``: lowest IoU. ``median``: the middle one by IoU. ``typical``: of the rest, the one whose IoU is
            nearest to the mean.
        iou: of both masks; the lowest over the classes.
        benign_flips: flipped pixels inside the noise band.
        noise_band: half-width of that band, in logits.
        classes: of the model; 1 means masks of 0 and 1.
        image: (H, W, C) uint8, the model's input, C 1 or 3.
        reference: (H, W) uint8, the reference's mask.
        mask: (H, W) uint8, the variant's mask.
        flips: (H, W) uint8: ``SAME``, ``BENIGN`` or ``REAL`` of ``segx.masks.agreement``.
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


# Fields of a picture saved as PNG files; the others are saved in the index.
_IN_FILES = ("image", "reference", "mask", "flips")


def save_pictures(
    results_folder: Path,
    variant: str,
    pictures: Iterable[tuple[int, ParityPicture]],
    *,
    flipped_pixels: int,
    run: str,
) -> None:
    """Save the pictures of a variant, unless another batch size of it with as many flips has some already.

    Variants share the files of inputs and reference masks.

    Args:
        results_folder: the pictures go into its folder ``pictures``.
        variant: as ``str(Variant)`` writes it.
        pictures: with a number for each image and reference mask; consumed only if they are saved.
        flipped_pixels: over all images.
        run: identifies the bench; pictures of another one in that folder are deleted.

    Raises:
        OutputError: the files cannot be written.
    """
    folder = results_folder / _FOLDER
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link: files elsewhere would be replaced", hint="remove it")
    variants = _saved_variants(folder, run)
    saved = variants.get(variant)
    if saved and saved["flipped_pixels"] >= flipped_pixels:
        return
    if not variants:
        _write_index(folder, run, variants)  # first, so that even a killed bench has named its pictures
    variants[variant] = {
        "flipped_pixels": flipped_pixels,
        "pictures": [_write(folder, picture, index) for index, picture in pictures],
    }
    _write_index(folder, run, variants)


def load_pictures(results_folder: Path) -> tuple[ParityPicture, ...]:
    """Read the pictures beside some results; empty if there are none.

    Raises:
        ResultsError: they are damaged; the results are complete without them.
    """
    folder = results_folder / _FOLDER
    file = folder / _INDEX
    if not file.is_file():
        return ()
    try:
        variants = json.loads(file.read_text(encoding="utf-8"))["variants"]
        return tuple(_read(folder, entry) for saved in variants.values() for entry in saved["pictures"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, ImageError) as error:
        raise ResultsError(
            f"{folder} is damaged: {first_line(error)}", hint=f"delete {folder}; the results are complete without it"
        ) from error


def _write_index(folder: Path, run: str, variants: dict[str, Any]) -> None:
    write_text(folder / _INDEX, json.dumps({"version": _VERSION, "run": run, "variants": variants}))


def _saved_variants(folder: Path, run: str) -> dict[str, Any]:
    """Return the index of this bench. Delete the files of another one, so that no picture outlives its results."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if index["version"] == _VERSION and index["run"] == run:
            return dict(index["variants"])
        saved = [entry for variant in index["variants"].values() for entry in variant["pictures"]]
        for name in {_file_name(entry[field]) for entry in saved for field in _IN_FILES}:
            (folder / name).unlink(missing_ok=True)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        logger.debug("no pictures to add to: %s", error)
    return {}


def _write(folder: Path, picture: ParityPicture, index: int) -> dict[str, Any]:
    """Write the files of a picture; return its entry in the index."""
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
    image = read_image(folder / _file_name(values["image"]), values.pop("channels"))
    masks = {name: read_image(folder / _file_name(values[name]), 1)[..., 0] for name in _IN_FILES if name != "image"}
    counts = {name: tuple(numbers) for name, numbers in values["histogram"].items()}
    return ParityPicture(**{**values, **masks, "image": image, "histogram": MarginHistogram(**counts)})


def _file_name(name: str) -> str:
    """Check a file name from an index that may come from someone else.

    Raises:
        ValueError: it points to another folder.
    """
    if Path(name).name != name or name == "..":
        raise ValueError(f"{name} is not a plain file name")
    return name
