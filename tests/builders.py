"""Records that several test files build on."""

from __future__ import annotations

from typing import Any

from segx.results.types import ImageParity, Parity


def image_parity(name: str = "a.png", **changes: Any) -> ImageParity:
    """Build one image of 65,536 pixels with an identical mask, apart from the changes."""
    same = {"pixels": 65536, "flipped_pixels": 0, "benign_flips": 0, "stray_pixels": 0, "iou": 1.0, "dice": 1.0}
    return ImageParity(name=name, **{**same, "max_diff": 0.0, "mean_diff": 0.0, **changes})


def parity(*images: ImageParity, **changes: Any) -> Parity:
    """Build a parity that sums up these images, apart from the changes.

    Without images there are four, and those of the changes that belong to an image are those of ``b.png``.
    """
    if not images:
        names = {"flipped_pixels": 0, "benign_flips": 0, "worst_iou": 1.0, "flip_distance_px": None}
        flipped, benign, iou, distance = (changes.get(name, default) for name, default in names.items())
        if flipped > benign and distance is None:
            distance = 1.0
        changed = image_parity(
            changes.get("worst_image", "b.png"),
            flipped_pixels=flipped,
            benign_flips=benign,
            iou=iou,
            flip_distance_px=distance,
        )
        images = (image_parity("a.png"), changed, image_parity("c.png"), image_parity("d.png"))
    worst = min(images, key=lambda image: (image.iou, -image.flipped_pixels))
    summed = {
        "images": len(images),
        "pixels": sum(image.pixels for image in images),
        "flipped_pixels": sum(image.flipped_pixels for image in images),
        "benign_flips": sum(image.benign_flips for image in images),
        "mean_iou": sum(image.iou for image in images) / len(images),
        "worst_iou": worst.iou,
        "worst_image": worst.name,
        "mean_dice": sum(image.dice for image in images) / len(images),
        "max_abs_diff": 1e-6,
        "mean_abs_diff": 1e-7,
        "logit_range": 40.0,
        "noise_band": 1e-6,
        "flip_distance_px": max((image.flip_distance_px or 0.0 for image in images), default=0.0) or None,
        "per_image": images,
    }
    return Parity(**{**summed, **changes})
