"""Mask parity as an assertion, for people's own tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from segx.errors import InferenceError, UsageError
from segx.export.variants import open_runtime, spec_of
from segx.masks.agreement import (
    breaches,
    changed_images,
    compare_logits,
    gate,
    largest_difference,
    meets,
    verdict,
)
from segx.masks.folders import images_of
from segx.masks.image_io import read_inputs
from segx.masks.preprocess import FloatArray, in_batches
from segx.model.spec import ModelSpec
from segx.results.types import Parity, Required

if TYPE_CHECKING:
    from segx.runtimes import Runtime

_SHOWN = 5


def assert_same_masks(
    model_a: Path | str | Runtime | Callable[[FloatArray], Any],
    model_b: Path | str | Runtime | Callable[[FloatArray], Any],
    images: Path | str | Sequence[Path | str] | FloatArray,
    *,
    min_iou: float = 0.99,
    max_flips: float = 1e-2,
    require: Required | None = "edges",
    spec: ModelSpec | None = None,
    batch_size: int = 1,
) -> Parity:
    """Assert that two models give the same masks, judged as in a bench.

    Args:
        model_a: the reference: a checkpoint, an ONNX file, an open runtime, or a function of (N, C, H, W) float32 that
            returns (N, K, H, W) logits; also a ``torch.nn.Module`` on the CPU.
        model_b: what is compared with it.
        images: a folder, a ``.txt`` list or a sequence of image files, or (N, C, H, W) float32 model input.
        min_iou: lowest IoU of an image's masks, 0 to 1, where more than a few pixels differ.
        max_flips: highest share of pixels that differ, 0 to 1.
        require: the masks may not differ at all (``identical``), within the reference's rounding only (``noise``), or
            within two pixels of the reference's outlines only (``edges``); None for no such limit.
        spec: description of the model; None takes the first file's own. Required if neither model is a file.
        batch_size: images per call.

    Returns:
        The comparison, image by image.

    Raises:
        AssertionError: the masks differ by more; the message says by how much and in which images.
        UsageError: the spec is missing, there is no image, or a limit makes no sense.
        InferenceError: a model's logits have another shape than the spec says.
        SegxError: a file or image cannot be read, or a model cannot be run.
    """
    for name, share in (("min_iou", min_iou), ("max_flips", max_flips)):
        if not 0 <= share <= 1:
            raise UsageError(f"{name} {share} is not a share", hint="give a number from 0 to 1")
    if require not in (None, *get_args(Required)):
        raise UsageError(f"require {require!r} is not known", hint=f"give {', '.join(get_args(Required))} or None")
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} is too small", hint="give at least 1")
    spec = spec or _spec_of(model_a) or _spec_of(model_b)
    if spec is None:
        raise UsageError("neither model is a file that says what images it takes", hint="pass spec=segx.ModelSpec(…)")
    names, inputs = _prepared(images, spec)
    expected = _logits("model_a", model_a, inputs, spec, batch_size)
    got = _logits("model_b", model_b, inputs, spec, batch_size)
    noise = largest_difference(expected[:1], _logits("model_a", model_a, inputs[:1], spec, batch_size))
    parity = compare_logits(expected, got, spec, names, noise_band=noise)
    limits = gate(min_iou=min_iou, max_flips=max_flips)
    found = verdict(parity, limits)
    if found == "FAILED" or not meets(found, require):
        problems = breaches(parity, limits) or [f"masks are required to be {require}, but there are {found}"]
        worst = sorted(changed_images(parity) or parity.per_image, key=lambda image: -image.flipped_pixels)[:_SHOWN]
        where = ", ".join(f"{image.name} ({image.flipped_pixels} px, IoU {image.iou:.4f})" for image in worst)
        raise AssertionError(
            f"masks differ: {'; '.join(problems)}; {parity.flipped_pixels} of {parity.pixels} pixels in all. "
            f"Most in {where}"
        )
    return parity


def _spec_of(model: Any) -> ModelSpec | None:
    return spec_of(Path(model)) if isinstance(model, (str, Path)) else None


def _prepared(images: Any, spec: ModelSpec) -> tuple[list[str], FloatArray]:
    """Return names and model input."""
    if isinstance(images, np.ndarray):
        if images.ndim != 4 or not len(images):
            raise UsageError(
                f"images of shape {images.shape} are no model input", hint="give (N, C, H, W) float32, N at least 1"
            )
        return [f"image {index}" for index in range(len(images))], images
    paths = images_of(Path(images)) if isinstance(images, (str, Path)) else [Path(path) for path in images]
    return [path.name for path in paths], read_inputs(paths, spec)


def _logits(name: str, model: Any, inputs: FloatArray, spec: ModelSpec, batch_size: int) -> FloatArray:
    """Return (N, K, H, W) float32."""
    opened = open_runtime(model, spec=spec) if isinstance(model, (str, Path)) else None
    infer = opened.infer if opened else getattr(model, "infer", model)
    with contextlib.closing(opened) if opened else contextlib.nullcontext():
        outputs = [np.asarray(_called(infer, batch), dtype=np.float32) for batch in in_batches(inputs, batch_size)]
    wanted = (batch_size, spec.classes, *inputs.shape[2:])
    if wrong := [output.shape for output in outputs if output.shape != wanted]:
        raise InferenceError(f"{name} returned logits of shape {wrong[0]}, not {wanted}", hint="return (N, K, H, W)")
    return np.concatenate(outputs)[: len(inputs)]


def _called(infer: Callable[[Any], Any], batch: FloatArray) -> Any:
    """Call a function of an array, or a PyTorch module without gradients."""
    if hasattr(infer, "parameters"):
        import torch

        with torch.inference_mode():
            return infer(torch.from_numpy(batch)).numpy()
    return infer(batch)
