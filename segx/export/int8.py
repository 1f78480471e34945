"""Exported file -> int8 file for one engine, made again only when something changed, with the stages it took."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segx.errors import UsageError
from segx.export.artifact import read_artifact
from segx.export.manifest import read_sidecar, write_sidecar
from segx.export.qdq import Engine, needs_narrow_weights
from segx.export.quantize import Stage, quantize_onnx
from segx.masks.agreement import LIMITS, parity_from_dict
from segx.masks.image_io import FloatArray, list_images, preprocess, read_image
from segx.model.scenes import model_inputs
from segx.model.spec import ModelSpec
from segx.system import machine
from segx.system.files import sha256_of

# 1: first version.
SCHEMA_VERSION = 1

_TOOLS = ("segx", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino")
# Other series than those that a bench generates: what was calibrated on must not be judged on.
_CALIBRATION_SEED, _HELD_OUT_SEED = 7, 8
_CALIBRATION_IMAGES, _HELD_OUT_IMAGES = 64, 32
# Of a user's folder, so many images are held out to judge the masks on.
_HELD_OUT_SHARE = 1 / 3


@dataclass(frozen=True)
class Int8Export:
    """What an int8 export gave.

    Attributes:
        path: the file.
        engine: for which it was made.
        stages: one per attempt; the last is the file.
        rebuilt: False where a file of the same recipe was there already.
    """

    path: Path
    engine: Engine
    stages: tuple[Stage, ...]
    rebuilt: bool


def default_int8_output(source: Path, engine: Engine) -> Path:
    """``artifacts/NAME-int8-ENGINE.onnx``."""
    return Path("artifacts") / f"{source.stem}-int8-{engine}.onnx"


def export_int8(
    source: Path | str,
    *,
    engine: Engine,
    calibration: Path | str | None = None,
    output: Path | str | None = None,
    min_iou_worst: float = LIMITS["int8"].iou,
    min_iou_mean: float = LIMITS["int8"].mean_iou,
    force: bool = False,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Int8Export:
    """Quantise an exported file to 8 bits for one engine; see ``quantize_onnx``.

    Nothing is done when the file exists and was made from the same source, images, limits and tool versions.

    Args:
        source: a file of ``export_onnx`` that gives logits.
        engine: for which the file is made.
        calibration: folder of images like those to come; a third of them are held out to judge the masks on. None
            generates scenes.
        output: where to write; None means ``artifacts/NAME-int8-ENGINE.onnx``.
        min_iou_worst: lowest IoU with the float file's mask that any held-out image may have, 0 to 1.
        min_iou_mean: lowest mean of them, 0 to 1.
        force: quantise again although nothing changed.
        threads: processors to use; None means all that are usable.
        tell: called with one line per step.

    Raises:
        ArtifactError, UsageError, RuntimeUnavailable, ExportError, OutputError: as ``quantize_onnx``.
        ImageError: the folder holds no images, or one cannot be read.
    """
    source = Path(source)
    path = Path(output) if output else default_int8_output(source, engine)
    artifact = read_artifact(source)
    tell("reading calibration images")
    images, held_out = _images(artifact.spec, Path(calibration) if calibration else None)
    recipe = {
        **_made_by(source, engine),
        "images_sha256": hashlib.sha256(images.tobytes() + held_out.tobytes()).hexdigest(),
        "min_iou_worst": min_iou_worst,
        "min_iou_mean": min_iou_mean,
    }
    if not force and (stages := _fresh_stages(path, recipe)):
        return Int8Export(path, engine, stages, rebuilt=False)
    quantized = quantize_onnx(
        source,
        images,
        held_out,
        artifact.spec,
        output=path,
        engine=engine,
        min_iou_worst=min_iou_worst,
        min_iou_mean=min_iou_mean,
        threads=threads,
        tell=tell,
    )
    stages = tuple(_without_images(stage) for stage in quantized.stages)
    write_sidecar(
        path,
        schema_version=SCHEMA_VERSION,
        created=machine.now(),
        recipe=recipe,
        stages=[dataclasses.asdict(stage) for stage in stages],
    )
    return Int8Export(path, engine, stages, rebuilt=True)


def int8_already(source: Path, engine: Engine) -> Int8Export | None:
    """The 8-bit file of a source and engine, if it was made of that source by these tools, on whatever images."""
    path, made_by = default_int8_output(source, engine), _made_by(source, engine)
    values = read_sidecar(path, schema_version=SCHEMA_VERSION)
    if values is None or not made_by.items() <= values["recipe"].items():
        return None
    stages = _stages(values)
    return Int8Export(path, engine, stages, rebuilt=False) if stages else None


def _made_by(source: Path, engine: Engine) -> dict[str, object]:
    """What decides what the file holds, but for the images and the limits."""
    installed = machine.package_versions()
    return {
        "source_sha256": sha256_of(source),
        "engine": engine,
        "narrow_weights": needs_narrow_weights(),
        "versions": {name: installed[name] for name in _TOOLS if name in installed},
    }


def _images(spec: ModelSpec, folder: Path | None) -> tuple[FloatArray, FloatArray]:
    """For calibration, and held out: (N, C, H, W) float32."""
    if folder is None:
        calibration, held_out = (
            np.stack([image for _, image in model_inputs(spec, count, seed=seed)])
            for seed, count in ((_CALIBRATION_SEED, _CALIBRATION_IMAGES), (_HELD_OUT_SEED, _HELD_OUT_IMAGES))
        )
        return calibration, held_out
    paths = list_images(folder)
    if len(paths) < 2:
        raise UsageError(f"{folder} holds one image", hint="give at least two: one is held out to judge the masks on")
    # Spread over the folder, as its order may mean something.
    step = round(1 / _HELD_OUT_SHARE)
    judged = paths[step - 1 :: step] or paths[-1:]
    kept = [path for path in paths if path not in set(judged)]
    chosen = kept[:_CALIBRATION_IMAGES], judged[:_HELD_OUT_IMAGES]
    calibration, held_out = (
        np.stack([preprocess(read_image(path, spec.in_channels), spec) for path in group]) for group in chosen
    )
    return calibration, held_out


def _fresh_stages(path: Path, recipe: Mapping[str, object]) -> tuple[Stage, ...]:
    """The stages of the file, if it is there, is unchanged and was made by this recipe; else none."""
    values = read_sidecar(path, schema_version=SCHEMA_VERSION)
    return _stages(values) if values is not None and values["recipe"] == recipe else ()


def _stages(values: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Those of a manifest; none where it is not ours, and the file is made again."""
    try:
        return tuple(
            Stage(tuple(stage["float_layers"]), stage["int8_layers"], parity_from_dict(stage["parity"]))
            for stage in values["stages"]
        )
    except (KeyError, TypeError, ValueError):
        return ()


def _without_images(stage: Stage) -> Stage:
    return dataclasses.replace(stage, parity=dataclasses.replace(stage.parity, per_image=()))
