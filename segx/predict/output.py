"""Write masks, probabilities and overlays into a locked output folder in which no file is ever incomplete."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import io
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import cv2
import numpy as np
from PIL import Image

from segx.errors import ImageError, OutputError, UsageError
from segx.masks.folders import PREDICTION_NAME, escaped
from segx.masks.preprocess import (
    FloatArray,
    MaskArray,
    PixelArray,
    colour_of,
    full_brightness,
    masks_from_logits,
    resize_mask,
    to_image,
)
from segx.model.spec import ModelSpec
from segx.predict.options import OutputOptions
from segx.predict.sources import MASK_SUFFIX, Item
from segx.system.files import LOCK_NAME, holds_lock, lock_folder, output_errors, unlock_folder, write_bytes

MANIFEST_NAME = "manifest.jsonl"
SETTINGS_NAME = PREDICTION_NAME
LEGEND_NAME = "classes.json"
PARTIAL_NAME = ".segx-partial"
OVERLAY_SUFFIX = ".overlay.jpg"
PROBABILITIES_SUFFIX = ".probabilities.npy"

_RESERVED_NAMES = frozenset((MANIFEST_NAME, SETTINGS_NAME, LEGEND_NAME, LOCK_NAME, PARTIAL_NAME))
_LONGEST_NAME = 255  # bytes, on all common file systems
# Errors that concern one path and not the disk: the other images can go on.
PATH_ERRORS = {
    errno.EISDIR: "a folder has that name",
    errno.ENOTDIR: "a file has that name",
    errno.EEXIST: "a file has that name",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EILSEQ: "the file system does not allow that name",
    errno.EINVAL: "the file system does not allow that name",
    errno.ELOOP: "a link there points to itself",
}
TAKEN = "it existed before, or an image is given twice"
# Of file systems that have no hard links.
_WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
# Writes a file, given its path in the output and its content, completely or not at all; see ``Together.write``.
Write = Callable[[str, bytes], None]
# Outlines are one or two pixels wide: halved chroma would wash out their colour.
_JPEG_SETTINGS = (
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)
# Runs of equal pixels make up a mask: without filters, it is a quarter smaller than by default, and quicker to write.
_MASK_SETTINGS = (
    cv2.IMWRITE_PNG_COMPRESSION,
    1,
    cv2.IMWRITE_PNG_FILTER,
    cv2.IMWRITE_PNG_FILTER_NONE,
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_RLE,
)


@dataclass(frozen=True)
class Postprocessed:
    """The outputs for one image.

    Attributes:
        mask: (H, W) uint8: 0 and 255 for a model with one class, else class indices; for a multilabel model (K, H, W)
            of 0 and 255.
        probabilities: (H, W) float32 for a model with one class, else (K, H, W); None if not requested. They are
            resized to the nearest, like the mask, so that cutting them at the threshold gives the mask.
    """

    mask: MaskArray
    probabilities: FloatArray | None


def postprocess(
    logits: FloatArray, original_size: tuple[int, int], spec: ModelSpec, options: OutputOptions
) -> Postprocessed:
    """Turn logits, (K, H, W) float32, into a mask and, if requested, probabilities of the size that ``options`` say.

    ``original_size`` is (width, height) of the image in pixels.
    """
    width, height = original_size if options.size == "original" else options.size

    def resized(output: Any) -> Any:
        return resize_mask(to_image(output, original_size[::-1], spec), (height, width))

    mask = masks_from_logits(logits[None], spec)[0]
    if not spec.exclusive:
        mask *= np.uint8(255)
    probabilities = None
    if options.probabilities:
        planes = resized(_probabilities(logits, spec))
        probabilities = planes[0] if len(planes) == 1 else planes
    return Postprocessed(resized(mask), probabilities)


def _probabilities(logits: FloatArray, spec: ModelSpec) -> FloatArray:
    """Return the softmax for exclusive classes, else the sigmoid, without overflow."""
    if not spec.exclusive:
        small = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    powers = np.exp(logits - logits.max(axis=0))
    result: FloatArray = powers / powers.sum(axis=0)
    return result


def draw_outline(image: PixelArray, mask: MaskArray, *, white_level: float | None = None) -> MaskArray:
    """Draw the outline of a mask into a copy of its image.

    Args:
        image: (H, W, C), any size: of more bands than three the first three are shown, of two the first.
        mask: (height, width) uint8, in which 0 is background and every other value has its own colour, or masks
            (K, height, width), each in a colour.
        white_level: see ``ModelSpec``.

    Returns:
        (height, width, 3) uint8 in BGR order, as OpenCV encodes it.
    """
    height, width = mask.shape[-2:]
    pixels: Any = image[..., : 3 if image.shape[2] >= 3 else 1]
    if white_level is not None or image.dtype != np.uint8:
        pixels = np.clip(pixels * (255 / full_brightness(image, white_level)), 0, 255).astype(np.uint8)
    if image.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    code = cv2.COLOR_GRAY2BGR if image.shape[2] < 3 else cv2.COLOR_RGB2BGR
    picture = np.ascontiguousarray(cv2.cvtColor(pixels, code))
    thickness = max(1, round(min(height, width) / 300))
    values = np.flatnonzero(np.bincount(mask.ravel())[1:]) + 1
    areas = dict(enumerate(mask, 1)) if mask.ndim == 3 else {int(value): mask == value for value in values}
    for value, area in areas.items():
        found, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, found, -1, colour_of(value)[::-1], thickness, cv2.LINE_8)
    return picture


class OutputFolder:
    """An output folder locked by one run, as a context manager.

    Entering creates the folder with its parents, and removes the incomplete files of a killed run.

    A user's file is never replaced. Each new file has a second link in the folder ``.segx-partial`` until the manifest
    has the image's line: what a killed run leaves there tells which files are its own.

    Attributes:
        fsync: whether files are on the disk once they are written.
        lost: names of images, with a line but without all of their masks, whose other files may be replaced; the
            manifest sets them.

    Raises:
        OutputError: on entering, if the folder cannot be created or written, or another run uses it.
    """

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        self.path, self.fsync = path, fsync
        self.lost: Collection[str] = ()
        self._partial = path / PARTIAL_NAME

    def __enter__(self) -> Self:
        with output_errors(self.path), contextlib.ExitStack() as on_failure:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.path)
            on_failure.callback(unlock_folder, self.path, self._lock)
            if self._partial.is_symlink():
                raise OutputError(f"{self._partial} is a link", hint="remove it, or choose another folder")
            self._partial.mkdir(exist_ok=True)
            self._unrecorded = {}  # by device and inode
            for path in self._partial.iterdir():
                facts = path.lstat()
                if facts.st_nlink > 1:
                    self._unrecorded[facts.st_dev, facts.st_ino] = path
                else:
                    path.unlink()
            numbers = [int(path.name) for path in self._unrecorded.values() if path.name.isdecimal()]
            self._numbers = itertools.count(max(numbers, default=0) + 1)
            on_failure.pop_all()
        self._root = os.path.realpath(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if holds_lock(self.path, self._lock):
            with contextlib.suppress(OSError):  # a killed run's file is still unrecorded
                self._partial.rmdir()
        unlock_folder(self.path, self._lock)

    def path_of(self, relative: str) -> Path:
        """Return the path of a file in this folder; ``relative`` has ``/``, as ``Item.mask`` does.

        Raises:
            ImageError: the path would be outside the folder (absolute, ``..``, a link), or its name is reserved.
        """
        check_relative(relative)
        return checked_path(self.path, self._root, relative)

    def write(self, relative: str, data: bytes) -> None:
        """Write one file; see ``Together.write``."""
        with self.together() as write:
            write(relative, data)

    @contextlib.contextmanager
    def together(self, name: str = "") -> Iterator[Write]:
        """Give what writes the files of the image ``name``, of which none is left if the block fails. Thread-safe."""
        files = Together(self, replaces=name in self.lost)
        try:
            yield files.write
        except BaseException:
            files.undo()
            raise
        finally:
            for temporary in files.written:
                temporary.unlink(missing_ok=True)

    def new_temporary(self) -> Path:
        """Return a path in ``.segx-partial``."""
        return self._partial / str(next(self._numbers))

    def take_unrecorded(self, path: Path) -> Path | None:
        """Return the link to a file that a killed run wrote without a line, once; None for any other file."""
        facts = path.lstat()
        return self._unrecorded.pop((facts.st_dev, facts.st_ino), None)


class Together:
    """Files of an output folder that are kept together; see ``OutputFolder.together``.

    ``written`` has the path of each by the path of its temporary link.
    """

    def __init__(self, folder: OutputFolder, *, replaces: bool) -> None:
        self.written: dict[Path, Path] = {}
        self._folder, self._replaces = folder, replaces

    def write(self, relative: str, data: bytes) -> None:
        """Write a file completely or not at all, creating the folders in its path, which has ``/``.

        Raises:
            ImageError: this path cannot be written, or is taken; others can be written.
            OutputError: nothing can be written any more: the disk is full, or the folder is gone.
        """
        target = self._folder.path_of(relative)
        temporary = self._folder.new_temporary()
        try:
            with output_errors(self._folder.path / relative):
                try:
                    with temporary.open("xb") as stream:
                        stream.write(data)
                        stream.flush()
                        if self._folder.fsync:
                            os.fsync(stream.fileno())
                    self._place(temporary, target, relative)
                except FileNotFoundError as error:
                    hint = "choose another folder, or find out what removes it"
                    raise OutputError(f"the output folder {self._folder.path} is gone", hint=hint) from error
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self.written[temporary] = target

    def undo(self) -> None:
        """Remove the files again."""
        for temporary, target in self.written.items():
            with contextlib.suppress(OSError):
                if target.samefile(temporary):
                    target.unlink()

    def _place(self, temporary: Path, target: Path, relative: str) -> None:
        try:
            try:
                self._link(temporary, target, relative)
            except FileNotFoundError:
                if not temporary.exists():
                    raise  # the output folder itself is not created again
                target.parent.mkdir(parents=True, exist_ok=True)
                self._link(temporary, target, relative)
        except OSError as error:
            if error.errno in PATH_ERRORS:
                raise refusal(relative, PATH_ERRORS[error.errno]) from error
            raise

    def _link(self, temporary: Path, target: Path, relative: str) -> None:
        try:
            place_new(temporary, target)
        except FileExistsError as error:
            if target.is_dir():
                raise refusal(relative, PATH_ERRORS[errno.EISDIR]) from error
            unrecorded = self._folder.take_unrecorded(target)
            # Without hard links, and after a power failure, what a run wrote can only be told by its content.
            own = unrecorded or self._replaces
            own = own or (not target.is_symlink() and filecmp.cmp(temporary, target, shallow=False))
            if not own:
                raise refusal(relative, TAKEN) from error
            spare = self._folder.new_temporary()
            place_new(temporary, spare)
            spare.replace(target)
            if unrecorded:
                unrecorded.unlink()


def place_new(temporary: Path, path: Path) -> None:
    """Give a complete file its path, without replacing anything; it loses its temporary one if there are no hard links.

    Raises:
        FileExistsError: something has that path.
    """
    try:
        os.link(temporary, path)  # refuses to replace, unlike a rename
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        temporary.replace(path)


def check_relative(relative: str) -> None:
    """Raise ImageError for a path that would be outside the output folder (absolute, ``..``), or is reserved there."""
    parts = relative.split("/")
    if relative.startswith("/") or ".." in parts or "\0" in relative:
        raise refusal(relative, "it would be outside the output folder")
    if parts[0] in _RESERVED_NAMES:
        raise refusal(relative, "the output folder reserves that name")
    if parts[-1] in ("", "."):
        raise refusal(relative, "it is not the path of a file")


def checked_path(folder: Path, root: str, relative: str) -> Path:
    """Return a path in a folder, whose path without links is ``root``; raises ImageError if a link leads out of it."""
    path = folder / relative
    parent = os.path.realpath(path.parent)
    if parent != root and not parent.startswith(root.removesuffix("/") + "/"):
        raise refusal(relative, "a link there leads out of the output folder")
    return path


def refusal(relative: str, reason: str) -> ImageError:
    """Return the error for a file that cannot be written while others can."""
    return ImageError(f"cannot write {escaped(relative)}: {reason}", hint="rename the image, or choose another folder")


def owned(relative: str, owner: str) -> ImageError:
    """Return the error for an image whose mask would be that of another, ``owner``."""
    reason = f"{escaped(relative)} is the mask of {escaped(owner)}, which an earlier run segmented"
    return ImageError(reason, hint="rename the image, or choose another output folder")


def pending(
    items: Iterable[Item], finished: Mapping[str, Collection[str]], options: OutputOptions, spec: ModelSpec
) -> Iterator[Item]:
    """Yield the images that are not ``finished``, which has masks by image; one that would get one of these fails."""
    owners = {mask: name for name, masks in finished.items() for mask in masks}
    for item in items:
        if item.name in finished:
            continue
        taken = next(filter(owners.__contains__, files_of(item, options, spec)), None)
        yield replace(item, fault=owned(taken, owners[taken])) if taken else item


def class_masks(mask: str, names: tuple[str, ...], spec: ModelSpec) -> dict[str, str]:
    """Return the path of the mask of each class, in a folder of its name or number; empty if there is one mask."""
    folders = (names or map(str, range(spec.classes))) if spec.multilabel else ()
    return {folder: f"{folder}/{mask}" for folder in folders}


def files_of(item: Item, options: OutputOptions, spec: ModelSpec) -> tuple[str, ...]:
    """Return the paths of all files that an image gets, the masks last."""
    stem = item.mask.removesuffix(MASK_SUFFIX)
    others = (stem + OVERLAY_SUFFIX,) * options.overlay + (stem + PROBABILITIES_SUFFIX,) * options.probabilities
    return *others, *(class_masks(item.mask, options.class_names, spec).values() or (item.mask,))


def legend(names: tuple[str, ...], spec: ModelSpec) -> list[dict[str, Any]]:
    """Return value, name and colour of each class, the background first; of a multilabel model, without background.

    Raises:
        UsageError: there is not one name for each value of a mask, or for each mask, where it also names a folder.
    """
    if spec.multilabel:
        unfit = [name for name in names if not _names_a_folder(name)]
        if unfit or len({*names}) != len(names) or len(names) != spec.classes:
            raise UsageError(
                f"class names {', '.join(map(repr, names))} do not name {spec.classes} folders",
                hint=f"give {spec.classes} different names that can be those of folders",
            )
        return [
            {"channel": i, "name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour_of(i + 1))}
            for i, name in enumerate(names)
        ]
    values = [0, 255] if spec.classes == 1 else list(range(spec.classes))
    if len(names) != len(values):
        raise UsageError(
            f"{len(names)} class name{'s' * (len(names) != 1)} for masks of {len(values)} values ({', '.join(names)})",
            hint="give a name for each value, the background first",
        )
    return [
        {"value": value, "name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour_of(value))}
        for value, name in zip(values, names, strict=True)
    ]


def _names_a_folder(name: str) -> bool:
    try:
        fits = len(os.fsencode(name)) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False
    return fits and not {"/", "\0"} & {*name} and name not in ("", ".", "..", *_RESERVED_NAMES)


def legend_file(content: list[dict[str, Any]]) -> bytes:
    """Return the content of ``classes.json``."""
    return f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode(errors="backslashreplace")


def write_legend(folder: OutputFolder, content: list[dict[str, Any]], *, resume: bool) -> None:
    """Write ``classes.json``; a resumed run has written it before.

    Raises:
        OutputError: a file of that name existed before, or it cannot be written.
    """
    path, data = folder.path / LEGEND_NAME, legend_file(content)
    if os.path.lexists(path) and not (resume and path.is_file() and path.read_bytes() == data):
        raise OutputError(f"{path} already exists", hint="rename it, or choose another folder")
    write_bytes(path, data)


def _with_palette(mask: MaskArray) -> bytes:
    image = Image.fromarray(mask)
    image.putpalette([part for value in range(256) for part in colour_of(value)])
    stream = io.BytesIO()
    image.save(stream, "PNG", bits=8, compress_level=1)
    return stream.getvalue()


def write_outputs(
    write: Write,
    item: Item,
    image: PixelArray | None,
    outputs: Postprocessed,
    *,
    white_level: float | None = None,
    palette: bool = False,
    masks: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the files of one image; the mask comes last, so that where it exists, everything does.

    ``image`` is (H, W, C) pixels for the overlay, which gets the mask's size; None for no overlay. ``masks`` are the
    paths of ``class_masks``.

    Raises:
        ImageError: this image's files cannot be written; others can.
        OutputError: nothing can be written any more.
    """
    stem = item.mask.removesuffix(MASK_SUFFIX)
    mask = outputs.mask
    if image is not None:
        overlay = _encode(".jpg", draw_outline(image, mask, white_level=white_level), item, _JPEG_SETTINGS)
        write(stem + OVERLAY_SUFFIX, overlay)
    if outputs.probabilities is not None:
        stream = io.BytesIO()
        np.save(stream, outputs.probabilities, allow_pickle=False)
        write(stem + PROBABILITIES_SUFFIX, stream.getvalue())
    for path, plane in zip(masks.values(), mask, strict=True) if masks else [(item.mask, mask)]:
        encoded = _with_palette(plane) if palette else _encode(MASK_SUFFIX, plane, item, _MASK_SETTINGS)
        write(path, encoded)


def _encode(suffix: str, pixels: MaskArray, item: Item, settings: tuple[int, ...]) -> bytes:
    reason = "it is too large"  # JPEG allows 65,500 pixels a side
    try:
        encoded, data = cv2.imencode(suffix, pixels, settings)
    except cv2.error as error:
        encoded, reason = False, error.err
    if not encoded:
        hint = "make it smaller with --size, or leave the overlay out"
        raise ImageError(f"cannot encode {item.shown} as {suffix}: {reason}", hint=hint)
    return data.tobytes()
