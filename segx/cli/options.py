"""Option values with units, and the options that several commands share."""

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
        """Convert text to a number in the base unit."""
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)", value.strip())
        if not match or match[2].lower() not in self._units:
            self.fail(f"{value!r} is not a valid {self.name}; write it like {self._example}", param, ctx)
        return float(match[1]) * self._units[match[2].lower()]


class _Share(_ParamType):
    """A percentage."""

    name = "percentage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert a percentage to a fraction."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*%", value.strip())
        if not match:
            self.fail(f"{value!r} is not a percentage; write it like 5%", param, ctx)
        return float(match[1]) / 100


class _NumberList(_ParamType):
    """Numbers separated by commas."""

    def __init__(self, name: str, number: type[int | float], least: float | None = None) -> None:
        self.name = name
        self._number = number
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Convert text to numbers."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._number(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write it like 1,2,4", param, ctx)
        if self._least is not None and min(numbers) < self._least:
            self.fail(f"{value!r}: each must be at least {self._least:g}", param, ctx)
        return numbers


class _Size(_ParamType):
    """The side of a square, or width x height."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Convert text to (width, height)."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", value.strip().lower())
        if not match:
            self.fail(f"{value!r} is not a size; write it like 256 or 640x480 (width x height)", param, ctx)
        return int(match[1]), int(match[2] or match[1])


class _SizeOrOriginal(_Size):
    """A size, or ``original``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert text to (width, height); keep ``original``."""
        return value if value == "original" else super().convert(value, param, ctx)


class _Argument(_ParamType):
    """NAME=VALUE, with the value as JSON or plain text."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Convert text to (name, value)."""
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
    help="Folder of calibration images for int8.  [default: synthetic scenes]",
)


def require_option(chosen: str) -> Callable[[Any], Any]:
    """Return the option that demands masks of what is chosen, named by ``chosen``."""
    return click.option(
        "--require",
        type=click.Choice(["identical", "noise", "edges"]),
        help=f"{chosen} must have masks that are identical, differ within noise only, or along edges only.",
    )


debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")

_MODEL_OPTIONS = (
    click.option("--arch", help="Architecture in segmentation_models_pytorch: UnetPlusPlus, FPN, …"),
    click.option("--encoder", "encoder_name", help="Encoder of the model: resnet34, …"),
    click.option("--encoder-depth", type=click.IntRange(1), help="Number of encoder stages that the decoder uses."),
    click.option("--decoder-channels", type=POSITIVE_INTEGERS, help="Channels of each decoder stage: 256,128,64,32."),
    click.option("--in-channels", type=click.IntRange(1), help="1 for gray images, 3 for RGB."),
    click.option("--classes", type=click.IntRange(1), help="Output channels; 1 is a binary mask."),
    click.option("--input-size", type=SIZE, help="Model input in pixels, as 256 or 640x480 (width x height)."),
    click.option("--threshold", type=float, help="Lowest probability of a mask pixel."),
    click.option("--mean", type=NUMBERS, help="Mean per channel, subtracted from images in [0, 1]."),
    click.option("--std", type=NUMBERS, help="Standard deviation per channel, applied after --mean."),
    click.option(
        "--model-arg",
        "model_args",
        type=NAME_VALUE,
        multiple=True,
        help="Another constructor argument, such as decoder_attention_type=scse; repeatable.",
    ),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe a model whose checkpoint does not describe itself."""
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
    """Return the given model options as fields of ``ModelSpec``."""
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
    """Return the given checkpoint, or else the shipped one.

    Raises:
        UsageError: none was given, and this installation has no shipped weights.
    """
    if weights is not None:
        return weights
    if SHIPPED_WEIGHTS.is_file():
        return SHIPPED_WEIGHTS
    raise UsageError("no checkpoint given", hint="pass one with --weights FILE")


def resolve_spec(checkpoint: Path | None, overrides: dict[str, Any], *, onnx: Path | None = None) -> ModelSpec:
    """Return the model spec of the checkpoint or else of the exported file, with the user's overrides applied."""
    from segx.model.checkpoint import spec_in_checkpoint

    said = spec_in_checkpoint(checkpoint) if checkpoint else None
    if said is None and onnx:
        from segx.export import read_artifact

        said = read_artifact(onnx).spec
    return ModelSpec.with_overrides(said, overrides)
