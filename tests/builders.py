"""Records and files that several test files build on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segx.export.artifact import Artifact
from segx.masks.preprocess import FloatArray
from segx.model.spec import ModelSpec
from segx.predict.manifest import Entry, parse_entries
from segx.results.types import BenchOptions, Cell, ImageParity, InputFacts, Machine, ModelFacts, Parity, Results

OPTIONS = BenchOptions(
    runtimes=("onnxruntime-cpu",),
    precisions=("fp32",),
    scopes=("forward",),
    batch_sizes=(1, 2),
    warmup=1,
    min_time_s=1.0,
    min_runs=4,
    max_time_s=20.0,
    seed=0,
    processes=1,
    threads=2,
    memory_profile="default",
    budget_s=None,
    timeout_s=60.0,
    memory_limit_bytes=None,
)


def results(*cells: Cell, options: BenchOptions = OPTIONS, **changes: Any) -> Results:
    """Build a complete bench of these cells on four images, apart from the changes."""
    sizes = {*options.batch_sizes, *(cell.batch_size for cell in cells if cell.batch_size)}
    made = Results(
        created="2026-01-01T00:00:00+00:00",
        segx="0.1.0",
        command="segx bench",
        options=dataclasses.replace(options, batch_sizes=tuple(sorted(sizes))),
        model=ModelFacts(
            spec=ModelSpec(),
            weights_sha256="ab" * 32,
            checkpoint="/models/w.pth",
            onnx=None,
            onnx_sha256=None,
            arguments=("--weights", "/models/w.pth"),
        ),
        inputs=InputFacts(source="4 images of photos", sha256="cd" * 32, names=("a.png", "b.png", "c.png", "d.png")),
        reference="pytorch-cpu:fp32",
        machine=Machine("A CPU", (), 8, 2, 2**34, 2**33, (), 0.5, "Linux", "3.12", {"torch": "2.15"}),
        complete=True,
        cells=cells,
    )
    return dataclasses.replace(made, **changes)


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


def read_manifest(path: Path) -> list[Entry]:
    """Return the entries of the manifest of a prediction, without an incomplete last line."""
    with path.open("rb") as stream:
        return [entry for entry, _ in parse_entries(stream, str(path))]


SIZE = 24


def small_spec(classes: int, **changes: Any) -> ModelSpec:
    """Describe a model of images of ``SIZE`` by ``SIZE`` pixels."""
    return ModelSpec(height=SIZE, width=SIZE, classes=classes, **changes)


def noisy(classes: int, count: int, noise: float, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Make random logits for ``small_spec``, and the same with normal noise of this standard deviation."""
    generator = np.random.default_rng(seed)
    reference = generator.normal(0, 1, (count, classes, SIZE, SIZE)).astype(np.float32)
    return reference, (reference + generator.normal(0, noise, reference.shape)).astype(np.float32)


def exported_onnx(
    path: Path, spec: ModelSpec, nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, Any], **facts: Any
) -> Path:
    """Write a valid ONNX file with segx's metadata, whose nodes compute ``logits`` from ``image`` and these tensors."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *spec.input_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *spec.output_shape])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    known = {"output_kind": "logits", "checkpoint": "plain.safetensors", "weights_sha256": "0" * 64, "versions": {}}
    helper.set_model_props(model, Artifact(path=path, spec=spec, **{**known, **facts}).metadata())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
