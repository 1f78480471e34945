"""Command-line values with units, and the options that several commands share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segx.errors import UsageError
from segx.model.spec import ModelSpec

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # older versions of click cannot be subscripted

SHIPPED_WEIGHTS = Path(__file__).resolve().parents[2] / "weights" / "weights_001.safetensors"

_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class _Quantity(_ParamType):
    """A number with a unit."""

    def __init__(self, name: str, units: dict[str, float], example: str) -> None:
        self.name = name
        self._units = units
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Text to a number in the base unit."""
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)", value.strip())
        if not match or match[2].lower() not in self._units:
            self.fail(f"{value!r} is no {self.name}; write it like {self._example}", param, ctx)
        return float(match[1]) * self._units[match[2].lower()]


class _Share(_ParamType):
    """A percentage."""

    name = "percentage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Text to a share."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*%", value.strip())
        if not match:
            self.fail(f"{value!r} is no percentage; write it like 5%", param, ctx)
        return float(match[1]) / 100


class _NumberList(_ParamType):
    """Numbers separated by commas."""

    def __init__(self, name: str, number: type[int | float], least: float | None = None) -> None:
        self.name = name
        self._number = number
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Text to numbers."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._number(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers; write it like 1,2,4", param, ctx)
        if self._least is not None and min(numbers) < self._least:
            self.fail(f"{value!r}: each must be at least {self._least:g}", param, ctx)
        return numbers


class _Size(_ParamType):
    """A square, or width x height."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Text to (width, height)."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", value.strip().lower())
        if not match:
            self.fail(f"{value!r} is no size; write it like 256 or 640x480 (width x height)", param, ctx)
        return int(match[1]), int(match[2] or match[1])


class _SizeOrOriginal(_Size):
    """The same, or the size that something has."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text to (width, height), or ``original``."""
        return value if value == "original" else super().convert(value, param, ctx)


class _Argument(_ParamType):
    """NAME=VALUE, the value as JSON or plain text."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Text to (name, value)."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


SECONDS = _Quantity("duration", _SECONDS, "5s, 500ms or 2m")
BYTES = _Quantity("amount of memory", dict(_BYTES), "2GB or 512MiB")
POSITIVE_INTEGERS = _NumberList("integers", int, least=1)
NUMBERS = _NumberList("numbers", float)
SIZE = _Size()
SIZE_OR_ORIGINAL = _SizeOrOriginal()
SHARE = _Share()
NAME_VALUE = _Argument()

weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Checkpoint: .safetensors, .pt/.pth state dict, or a save_pretrained folder.  [default: the shipped UNet++]",
)

calibration_option = click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder of images to quantise on, for int8.  [default: generated samples]",
)
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")

_MODEL_OPTIONS = (
    click.option("--arch", help="Architecture, as segmentation_models_pytorch names it: UnetPlusPlus, FPN, …"),
    click.option("--encoder", "encoder_name", help="Encoder the model was trained with: resnet34, …"),
    click.option("--encoder-depth", type=click.IntRange(1), help="Encoder stages the decoder uses."),
    click.option("--decoder-channels", type=POSITIVE_INTEGERS, help="Channels of the decoder stages: 256,128,64,32."),
    click.option("--in-channels", type=click.IntRange(1), help="1 for gray images, 3 for RGB."),
    click.option("--classes", type=click.IntRange(1), help="Output channels; 1 is a binary mask."),
    click.option("--input-size", type=SIZE, help="Model input in pixels, as 256 or 640x480 (width x height)."),
    click.option("--threshold", type=float, help="Probability from which a pixel is in the mask."),
    click.option("--mean", type=NUMBERS, help="Subtracted per channel from images in [0, 1]."),
    click.option("--std", type=NUMBERS, help="Divides per channel after --mean."),
    click.option(
        "--model-arg",
        "model_args",
        type=NAME_VALUE,
        multiple=True,
        help="Further constructor argument, as decoder_attention_type=scse. Repeatable.",
    ),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Everything that describes a model, for what a checkpoint does not say of itself."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


def spec_overrides(
    *,
    encoder_depth: int | None,
    decoder_channels: tuple[int, ...] | None,
    input_size: tuple[int, int] | None,
    model_args: tuple[tuple[str, Any], ...],
    **plain: Any,
) -> dict[str, Any]:
    """The model options that were given, as fields of ``ModelSpec``."""
    overrides = {name: value for name, value in plain.items() if value is not None}
    arguments = dict(model_args)
    if encoder_depth is not None:
        arguments["encoder_depth"] = encoder_depth
    if decoder_channels is not None:
        arguments["decoder_channels"] = list(decoder_channels)
    if input_size is not None:
        overrides["width"], overrides["height"] = input_size
    return {**overrides, "arguments": arguments} if arguments else overrides


def resolve_weights(weights: Path | None) -> Path:
    """The checkpoint to use: the one given, else the shipped one.

    Raises:
        UsageError: none was given, and this installation ships none.
    """
    if weights is not None:
        return weights
    if SHIPPED_WEIGHTS.is_file():
        return SHIPPED_WEIGHTS
    raise UsageError("no checkpoint given", hint="pass yours with --weights FILE")


def resolve_spec(checkpoint: Path | None, overrides: dict[str, Any], *, onnx: Path | None = None) -> ModelSpec:
    """What the checkpoint, or else the exported file, says of the model, with what the user says on top."""
    from segx.model.checkpoint import spec_in_checkpoint

    said = spec_in_checkpoint(checkpoint) if checkpoint else None
    if said is None and onnx:
        from segx.export import read_artifact

        said = read_artifact(onnx).spec
    return ModelSpec.with_overrides(said, overrides)
