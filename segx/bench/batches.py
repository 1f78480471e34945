"""The one sequence of inputs that every runtime gets, as a file with a digest, and the outputs of timed runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segx import samples
from segx.files import output_errors
from segx.images import list_images, preprocess, read_image
from segx.runtimes.base import FloatArray
from segx.spec import ModelSpec

_SAMPLE_SEED = 0


@dataclass(frozen=True)
class Inputs:
    """Preprocessed images on disk.

    Attributes:
        path: raw float32, (N, C, H, W) in C order.
        shape: (C, H, W) of one image.
        names: N names, relative to the folder they came from.
        digest: SHA-256 of the float32 bytes.
        source: where they came from, in words.
    """

    path: Path
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    digest: str
    source: str

    def read(self, first: int, count: int) -> FloatArray:
        """Read ``count`` images from ``first`` on, wrapping round at the end, into memory of their own."""
        size = math.prod(self.shape)
        chosen = [(first + i) % len(self.names) for i in range(count)]
        batch = np.empty((count, *self.shape), dtype=np.float32)
        with self.path.open("rb") as stream:
            for row, index in enumerate(chosen):
                stream.seek(index * size * 4)
                batch[row] = np.fromfile(stream, dtype=np.float32, count=size).reshape(self.shape)
        return batch


def prepare_inputs(path: Path, spec: ModelSpec, *, folder: Path | None, count: int) -> Inputs:
    """Preprocess images once and write them to ``path``.

    Args:
        path: file to write.
        spec: input size, channels and normalisation.
        folder: images to take, the first ones in order; None generates scenes.
        count: how many, or as many as the folder holds where that is fewer.

    Raises:
        ImageError: the folder holds no images, or one cannot be read.
        OutputError: ``path`` cannot be written.
    """
    images = _from_folder(folder, count, spec) if folder else _generated(count, spec)
    digest = hashlib.sha256()
    names = []
    with output_errors(path), path.open("wb") as stream:
        for name, image in images:
            data = image.tobytes()
            digest.update(data)
            stream.write(data)
            names.append(name)
    source = f"{len(names)} images of {folder.name or folder}" if folder else f"{len(names)} generated samples"
    return Inputs(path, spec.input_shape, tuple(names), digest.hexdigest(), source)


def _from_folder(folder: Path, count: int, spec: ModelSpec) -> Iterable[tuple[str, FloatArray]]:
    for path in list_images(folder)[:count]:
        yield path.relative_to(folder).as_posix(), preprocess(read_image(path, spec.in_channels), spec)


def _generated(count: int, spec: ModelSpec) -> Iterable[tuple[str, FloatArray]]:
    height, width = (max(n, samples.MIN_SIZE) for n in (spec.height, spec.width))
    for scene in samples.series(count, seed=_SAMPLE_SEED, height=height, width=width):
        yield scene.name, preprocess(np.repeat(scene.image[..., None], spec.in_channels, axis=2), spec)


class BatchFiles:
    """Feeds timed runs from the input file and keeps the first output of each batch in another file.

    Through plain file reads and writes: inputs and outputs of all images would otherwise count as the runtime's memory.
    A last batch that the images do not fill is filled from the first ones, so that every run has the same shape.
    """

    def __init__(self, inputs: Inputs, batch_size: int, outputs: Path) -> None:
        self._inputs = inputs
        self._batch_size = batch_size
        self._outputs = outputs
        self.full_pass = math.ceil(len(inputs.names) / batch_size)
        self.kept = 0
        outputs.write_bytes(b"")

    def take(self, run: int) -> FloatArray:
        """(B, C, H, W) float32: the images of run ``run``."""
        return self._inputs.read((run % self.full_pass) * self._batch_size, self._batch_size)

    def keep(self, run: int, logits: FloatArray) -> None:
        """Append the first output of each batch; later passes repeat them."""
        if run < self.full_pass:
            with self._outputs.open("ab") as stream:
                stream.write(np.ascontiguousarray(logits, dtype=np.float32).tobytes())
            self.kept += len(logits)


def collect_outputs(path: Path, spec: ModelSpec) -> FloatArray:
    """Read all kept outputs and delete their file.

    Returns:
        (M, K, H, W) float32; row i belongs to image i modulo the number of images.
    """
    logits = np.fromfile(path, dtype=np.float32).reshape(-1, *spec.output_shape)
    path.unlink()
    return logits
