"""The inputs that every runtime gets, with digest and ground truth, and the outputs of timed runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segx.errors import ImageError
from segx.masks.folders import PassedOver, list_images
from segx.masks.image_io import EXTENSIONS, Remarks, read_image, read_mask
from segx.masks.preprocess import MaskArray, model_inputs, preprocess, to_model
from segx.model.spec import ModelSpec
from segx.runtimes.base import FloatArray
from segx.system.files import output_errors

SAMPLE_SEED = 0

# Images that are not measured calibrate int8 if there are this many; else some of those to measure are set aside.
_ENOUGH, _ASIDE_EVERY, _LEAST = 12, 3, 2

_InputImage = tuple[str, FloatArray, MaskArray | None]


@dataclass(frozen=True)
class Inputs:
    """Preprocessed images on disk.

    Attributes:
        path: raw float32, (N, C, H, W) in C order.
        shape: (C, H, W) of one image.
        names: N names, relative to their folder.
        digest: SHA-256 of the float32 bytes.
        truth: ground truth masks as raw uint8, (N, H, W) or (N, K, H, W) in C order; None if there are none.
        folder: of the images; None for generated scenes.
        doubt: see ``InputFacts``.
    """

    path: Path
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    digest: str
    source: str
    truth: Path | None = None
    truth_source: str = ""
    folder: Path | None = None
    doubt: str = ""

    def true_masks(self) -> MaskArray | None:
        """Return the ground truth in the form of ``masks_from_logits``; None if there is none."""
        if self.truth is None:
            return None
        masks = np.fromfile(self.truth, dtype=np.uint8).reshape(len(self.names), -1, *self.shape[1:])
        return masks[:, 0] if masks.shape[1] == 1 else masks

    def read(self, first: int, count: int) -> FloatArray:
        """Read ``count`` images from ``first`` on, wrapping around at the end, into a new array."""
        size = math.prod(self.shape)
        chosen = [(first + i) % len(self.names) for i in range(count)]
        batch = np.empty((count, *self.shape), dtype=np.float32)
        with self.path.open("rb") as stream:
            for row, index in enumerate(chosen):
                stream.seek(index * size * 4)
                batch[row] = np.fromfile(stream, dtype=np.float32, count=size).reshape(self.shape)
        return batch


def set_aside(folder: Path, count: int) -> list[Path]:
    """Return the images of a folder to calibrate on if ``count`` of the others are measured; empty if it has too few.

    Those after the first ``count`` if they are enough, else every third one.

    Raises:
        ImageError: the folder has no images.
    """
    images = list_images(folder)
    rest = images[count:] if len(images) - count >= _ENOUGH else images[_ASIDE_EVERY - 1 :: _ASIDE_EVERY]
    return rest if len(rest) >= _LEAST else []


def unlike(images: FloatArray, others: FloatArray) -> str:
    """Return in what two sets of preprocessed (N, C, H, W) images differ much, empty for nothing.

    That is a mean that is off by more than the others' standard deviation, or a standard deviation that differs by more
    than a factor of two, in any channel.
    """
    (mean, std), (other_mean, other_std) = ((each.mean((0, 2, 3)), each.std((0, 2, 3))) for each in (images, others))
    off = np.abs(mean - other_mean) > other_std
    off |= np.maximum(std, other_std) > 2 * np.minimum(std, other_std)
    found = [
        f"channel {i}: mean {mean[i]:.2g}, std {std[i]:.2g} against {other_mean[i]:.2g}, {other_std[i]:.2g}"
        for i in np.flatnonzero(off)[:1]
    ]
    return "".join(found)


def prepare_inputs(
    path: Path,
    spec: ModelSpec,
    *,
    folder: Path | None,
    count: int,
    masks: Path | None = None,
    without: Collection[Path] = (),
    warn: Callable[[str], None] = lambda _: None,
) -> Inputs:
    """Preprocess images once and write them to ``path``, and their ground truth next to it.

    Takes the first ``count`` images of ``folder`` in order, but for those in ``without``; None generates scenes, which
    have ground truth. ``masks`` is a folder of ground truth under the same names, in any image format; for a multilabel
    model it has such a folder for each channel: 0, 1, …. ``warn`` is told what to know about the images.

    Raises:
        ImageError: the folder has no images, one cannot be read, or it has no mask.
        OutputError: ``path`` cannot be written.
    """
    if folder:
        images = _from_folder(folder, spec, count=count, without=without, masks=masks, warn=warn)
    else:
        images = _generated(count, spec)
    digest = hashlib.sha256()
    names = []
    truth_path = path.with_name(f"{path.name}.truth")
    has_truth = False
    with output_errors(path), path.open("wb") as stream, truth_path.open("wb") as truth_stream:
        for name, image, truth in images:
            data = image.tobytes()
            digest.update(data)
            stream.write(data)
            names.append(name)
            if truth is not None:
                has_truth = True
                truth_stream.write(to_model(truth, spec).tobytes())
    source = f"{len(names)} images of {folder.name or folder}" if folder else f"{len(names)} generated samples"
    truth_source = (f"masks of {masks.name or masks}" if masks else "generated") if has_truth else ""
    return Inputs(
        path,
        spec.input_shape,
        tuple(names),
        digest.hexdigest(),
        source,
        truth=truth_path if has_truth else None,
        truth_source=truth_source,
        folder=folder,
    )


def _from_folder(
    folder: Path,
    spec: ModelSpec,
    *,
    count: int,
    without: Collection[Path],
    masks: Path | None,
    warn: Callable[[str], None],
) -> Iterable[_InputImage]:
    remarks, passed_over = Remarks(spec.white_level), PassedOver()
    chosen = [image for image in list_images(folder, passed_over) if image not in without]
    for path in chosen[:count]:
        name = path.relative_to(folder)
        truth = _true_mask(name, masks, spec) if masks else None
        pixels = read_image(path, spec.in_channels, white_level=spec.white_level, remarks=remarks)
        yield name.as_posix(), preprocess(pixels, spec), truth
    for line in filter(None, (passed_over.line, *remarks.lines())):
        warn(line)


def _true_mask(name: Path, masks: Path, spec: ModelSpec) -> MaskArray:
    if not spec.multilabel:
        return read_mask(_mask_of(name, masks), spec.classes)
    return np.stack([read_mask(_mask_of(name, masks / str(channel)), 1) for channel in range(spec.classes)])


def _mask_of(name: Path, masks: Path) -> Path:
    candidates = [masks / name, *((masks / name).with_suffix(suffix) for suffix in EXTENSIONS)]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise ImageError(
            f"{masks} has no mask for {name.as_posix()}",
            hint=f"add {name.with_suffix('.png').as_posix()}, or leave out the image",
        )
    return found


def _generated(count: int, spec: ModelSpec) -> Iterable[_InputImage]:
    for scene, image in model_inputs(spec, count, seed=SAMPLE_SEED):
        # Scenes show one kind of object, so there is no ground truth for several classes.
        yield scene.name, image, scene.mask.astype(np.uint8) if spec.classes == 1 else None


class BatchFiles:
    """Read the inputs of timed runs from a file and append the first output of each batch to another.

    Plain file reads and writes keep the inputs and outputs of all images out of the runtime's memory figures. A last
    batch that is not full is filled from the first images, so that all runs have the same shape.
    """

    def __init__(self, inputs: Inputs, batch_size: int, outputs: Path) -> None:
        self._inputs = inputs
        self._batch_size = batch_size
        self._outputs = outputs
        self.full_pass = math.ceil(len(inputs.names) / batch_size)
        outputs.write_bytes(b"")

    def take(self, run: int) -> FloatArray:
        """Return the images of run ``run``, (B, C, H, W) float32."""
        return self._inputs.read((run % self.full_pass) * self._batch_size, self._batch_size)

    def keep(self, run: int, logits: FloatArray) -> None:
        """Append the output, if it is the first of its batch."""
        if run < self.full_pass:
            with output_errors(self._outputs), self._outputs.open("ab") as stream:
                stream.write(np.ascontiguousarray(logits, dtype=np.float32).tobytes())


def collect_outputs(path: Path, spec: ModelSpec) -> FloatArray:
    """Return all stored outputs, (M, K, H, W) float32, and delete their file; row i belongs to image i modulo N.

    They stay on the disk, in a memory map: those of many large images would not fit into memory.
    """
    if not path.stat().st_size:
        logits = np.empty((0, *spec.output_shape), dtype=np.float32)
    else:
        logits = np.memmap(path, dtype=np.float32, mode="r").reshape(-1, *spec.output_shape)
    path.unlink()
    return logits
