"""Mask files against the masks that the reference's logits give: images of any size, pixel by pixel."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence

import cv2
import numpy as np

from segx.bench.worker import CellTask
from segx.errors import InferenceError
from segx.masks.agreement import compare_masks, margins_to
from segx.masks.image_io import FloatArray, MaskArray, read_image
from segx.model.spec import ModelSpec
from segx.predict.outputs import Wishes, finish
from segx.results.types import ClassParity, Parity


def judge_masks(task: CellTask, reference: FloatArray, noise_band: float) -> Parity:
    """Compare the mask files of a pass with those that the reference would have given; the files are removed.

    Args:
        task: its items in the order of the reference, its masks in ``outputs``.
        reference: (N, K, H, W) float32 logits.
        noise_band: how far the reference's logits differ from its own, in logits; flips inside are benign.

    Raises:
        ImageError: a mask or an image cannot be read.
        InferenceError: a mask has another size than its image.
    """
    names = task.inputs.names
    judged = []
    for name, item, logits in zip(names, task.items, reference, strict=True):
        height, width = read_image(item.path, task.spec.in_channels).shape[:2]
        wanted = _values(finish(logits, (width, height), task.spec, Wishes()).mask, task.spec)
        mask = _values(read_image(task.outputs / item.mask, 1)[..., 0].astype(np.uint8), task.spec)
        if mask.shape != wanted.shape:
            raise InferenceError(
                f"the mask of {item.shown} has {mask.shape[1]}x{mask.shape[0]} pixels, its image {width}x{height}",
                hint="report this",
            )
        margins = margins_to(_resized(logits, (width, height))[None], wanted[None], mask[None], task.spec)
        judged.append(
            compare_masks(
                wanted[None],
                mask[None],
                task.spec,
                [name],
                wavering=margins <= noise_band,
                noise_band=noise_band,
            )
        )
    shutil.rmtree(task.outputs, ignore_errors=True)
    return joined(judged)


def _values(mask: MaskArray, spec: ModelSpec) -> MaskArray:
    """Class indices; of a model with one class 0 and 1 for 0 and 255, and 2, which no reference has, for all else."""
    if spec.classes > 1:
        return mask
    table = np.full(256, 2, dtype=np.uint8)
    table[0], table[255] = 0, 1
    values: MaskArray = table[mask]
    return values


def _resized(logits: FloatArray, size: tuple[int, int]) -> FloatArray:
    """As masks are: to the nearest, so that each pixel has the logits that its mask value came from."""
    planes = [cv2.resize(plane, size, interpolation=cv2.INTER_NEAREST_EXACT) for plane in logits]
    return np.asarray(planes, dtype=np.float32)


def joined(judged: Sequence[Parity]) -> Parity:
    """Several images, each compared by itself, as one comparison.

    Args:
        judged: of one image each, at least one of them, all with the same noise band and none with true masks.
    """
    images = [image for parity in judged for image in parity.per_image]
    worst = min(images, key=lambda image: image.iou)
    distances = [parity.flip_distance_px for parity in judged if parity.flip_distance_px is not None]
    return dataclasses.replace(
        judged[0],
        images=len(images),
        pixels=sum(parity.pixels for parity in judged),
        flipped_pixels=sum(parity.flipped_pixels for parity in judged),
        benign_flips=sum(parity.benign_flips for parity in judged),
        mean_iou=float(np.mean([image.iou for image in images])),
        worst_iou=worst.iou,
        worst_image=worst.name,
        mean_dice=float(np.mean([image.dice for image in images])),
        flip_distance_px=max(distances, default=None),
        classes=tuple(map(_one_class, zip(*(parity.classes for parity in judged), strict=True))),
        per_image=tuple(images),
    )


def _one_class(entries: Sequence[ClassParity]) -> ClassParity:
    """One class over all images."""
    present = [(entry.iou, entry.worst_image) for entry in entries if entry.iou is not None]
    if not present:
        return entries[0]
    worst_iou, worst_image = min(present, key=lambda pair: pair[0])
    mean = float(np.mean([iou for iou, _ in present]))
    return dataclasses.replace(entries[0], iou=mean, worst_iou=worst_iou, worst_image=worst_image)
