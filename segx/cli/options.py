"""Option values with units, and the options that several commands share."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from segx.errors import GateNotMet, UsageError
from segx.model.spec import READING, ChannelOrder, InputRange, ModelSpec, Resize

if TYPE_CHECKING:
    from segx.analysis.recommend import Constraints
    from segx.results.types import Results
    from segx.system.progress import Progress

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # older versions of click cannot be subscripted

SHIPPED_WEIGHTS = Path(__file__).resolve().parents[2] / "weights" / "weights_001.safetensors"

_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class _Parsed(_ParamType):
    """What a function makes of the text of an option; its ``ValueError`` is wrong usage."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert text; a default may be a value already."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _NamedPath(click.Path):
    """A path; an empty one, such as of a shell variable that is unset, is not the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; give a path, such as . for the current folder", param, ctx)
        return super().convert(value, param, ctx)


def _quantity(name: str, number: type[int | float], units: Mapping[str, float], example: str) -> _Parsed:
    """Return the type of numbers with a unit; values are in the base unit."""

    def parse(text: str) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z/]*)", text.strip())
        if not match or match[2].lower() not in units:
            raise ValueError(f"{text!r} is not a valid {name}; write it like {example}")
        value = float(match[1]) * units[match[2].lower()]
        if math.isinf(value):
            raise ValueError(f"{text!r} is too large; write it like {example}")
        return number(value)

    return _Parsed(name, parse)


def _numbers(name: str, number: type[int | float], least: float = -math.inf) -> _Parsed:
    """Return the type of numbers separated by commas; values are tuples."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            numbers = tuple(number(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"{text!r} is not a list of numbers; write it like 1,2,4") from None
        if min(numbers) < least:
            raise ValueError(f"{text!r}: each must be at least {least:g}")
        return numbers

    return _Parsed(name, parse)


def _share(text: str) -> float:
    """Convert a percentage to a fraction."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*%", text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a percentage; write it like 5%")
    return float(match[1]) / 100


def _size(text: str) -> tuple[int, int]:
    """Return width and height."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match:
        raise ValueError(f"{text!r} is not a size; write it like 256 or 640x480 (width x height)")
    return int(match[1]), int(match[2] or match[1])


def _batch_size(text: str) -> int | None:
    """Return the number of images per call, None for auto."""
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ValueError(f"{text!r} is not a batch size; give auto or at least 1")
    return int(text)


def _name_value(text: str) -> tuple[str, Any]:
    """Split NAME=VALUE; the value is JSON or plain text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


SECONDS = _quantity("duration", float, _SECONDS, "5s, 500ms or 2m")
BYTES = _quantity("amount of memory", int, _BYTES, "2GB or 512MiB")
POSITIVE_INTEGERS = _numbers("integers", int, least=1)
NUMBERS = _numbers("numbers", float)
SIZE = _Parsed("size", _size)
NAMES = _Parsed("names", lambda text: tuple(name.strip() for name in text.split(",")))
BATCH_SIZE_OR_AUTO = _Parsed("batch size", _batch_size)
SIZE_OR_ORIGINAL = _Parsed("size", lambda text: text if text == "original" else _size(text))
IMAGES = _quantity("number of images", int, _COUNTS, "50000, 200k or 10M")
PRICE = _quantity("price", float, {"": 1.0, "/h": 1.0}, "0.40/h")
SHARE = _Parsed("percentage", _share)
NAME_VALUE = _Parsed("name=value", _name_value)
PATH = _NamedPath(path_type=Path)
PATH_OR_URL = _NamedPath()
COUNT = click.IntRange(1)
# More than any machine has cores; engines take memory for each, and some end the process without it.
THREADS = click.IntRange(1, 1024)

weights_option = click.option(
    "--weights",
    type=PATH,
    help="Checkpoint: a state dict, a whole module, or a save_pretrained folder.  [default: the shipped UNet++]",
)

onnx_option = click.option("--model", "onnx", type=PATH, help="ONNX file to run instead of exporting one.")

device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Run only on this device; also resolves names without a device, such as ort.",
)


def calibration_option(default: str) -> Callable[[Any], Any]:
    """Return the option for images to calibrate int8 on; ``default`` names those that it is calibrated on without."""
    return click.option(
        "--calibration",
        type=PATH,
        help="Images to calibrate int8 on and to judge it by, 12 or more: a folder, or a .txt or .lst list of "
        f"paths.  [default: {default}]",
    )


def require_option(chosen: str) -> Callable[[Any], Any]:
    """Return the option that demands masks; ``chosen`` says of what: Recommend only a variant."""
    return click.option(
        "--require",
        type=click.Choice(["identical", "noise", "edges"]),
        help=f"{chosen} whose masks are identical to the reference's, or differ only within its noise or along edges.",
    )


def check_limits(results: Results, given: Constraints | None = None) -> None:
    """Raise GateNotMet if there are limits, the bench's own or ``given`` ones, and nothing meets them."""
    from segx.analysis.recommend import decide
    from segx.reporting.prose import limits

    decision = decide(results, given)
    if not decision.pick and (broken := limits(decision.constraints)):
        raise GateNotMet(
            f"nothing measured meets the limits: {'; '.join(broken)}",
            hint="measure other runtimes, precisions or batch sizes, or loosen the limits",
        )


details_option = click.option(
    "--details",
    is_flag=True,
    help="Print everything: all batch sizes, percentiles, start-up, masks, what disturbed the run, definitions.",
)

debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")

_MODEL_OPTIONS = (
    click.option("--arch", help="Class of segmentation_models_pytorch: Unet, FPN, …  [default: UnetPlusPlus]"),
    click.option("--encoder", "encoder_name", help="Encoder of segmentation_models_pytorch.  [default: resnet34]"),
    click.option("--encoder-depth", type=COUNT, help="Stages of the encoder that the decoder uses."),
    click.option("--decoder-channels", type=POSITIVE_INTEGERS, help="Channels of each decoder stage: 256,128,64,32."),
    click.option("--in-channels", type=COUNT, help="Channels of the images: 1 for gray, 3 for colour.  [default: 1]"),
    click.option("--classes", type=COUNT, help="Channels of the output; 1 makes a binary mask.  [default: 1]"),
    click.option(
        "--multilabel/--no-multilabel",
        default=None,
        help="Whether classes may overlap. If so, each has its own mask, cut at --threshold; if not, each pixel gets "
        "the likeliest class.",
    ),
    click.option(
        "--input-size",
        type=SIZE,
        help="Input in pixels, as 256 or 640x480 (width x height).  [default: 256]",
    ),
    click.option(
        "--threshold",
        type=float,
        help="Probability from which a pixel belongs to the mask; not for exclusive classes.  [default: 0.5]",
    ),
    click.option(
        "--normalize",
        help="Mean and standard deviation that the model was trained with: none, imagenet, inception, dpn, encoder "
        "(those of the encoder's ImageNet weights in segmentation_models_pytorch), or numbers as MEAN/STD.  [default: "
        "those in the checkpoint, else none]",
    ),
    click.option(
        "--mean", type=NUMBERS, help="Mean per channel, or one for all, subtracted after scaling to --input-range."
    ),
    click.option("--std", type=NUMBERS, help="Standard deviation per channel, applied after --mean."),
    click.option(
        "--checkpoint-key",
        help="Which weights to take from a file that holds several: ema, …  [default: the trained ones]",
    ),
    click.option(
        "--input-range",
        type=click.Choice(get_args(InputRange)),
        help="Range that pixels are scaled to before --mean and --std.  [default: 0-1]",
    ),
    click.option(
        "--channel-order",
        type=click.Choice(get_args(ChannelOrder)),
        help="Order of the colour channels that the model expects.  [default: rgb]",
    ),
    click.option(
        "--resize",
        type=click.Choice(get_args(Resize)),
        help="How images are resized: antialias (like torchvision), linear (like OpenCV), letterbox (keeps the aspect "
        "ratio).  [default: antialias]",
    ),
    click.option(
        "--white-level",
        type=float,
        help="Pixel value of full brightness, such as 4095 for 12 bits in 16.  [default: the type's highest]",
    ),
    click.option(
        "--model-arg",
        "model_args",
        type=NAME_VALUE,
        multiple=True,
        help="Another argument of the model's class, such as decoder_attention_type=scse. Repeatable.",
    ),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe a model whose checkpoint does not describe itself."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


_READING_OPTIONS = (
    click.option("--output-name", help="Output that holds the masks, if the file has several."),
    click.option("--output-channel", type=click.IntRange(0), help="Output channel to take, if several may overlap."),
    click.option(
        "--layout",
        type=click.Choice(READING["layout"]),
        help="Whether the channels of the input come first or last.  [default: inferred from their number]",
    ),
    click.option(
        "--output-range",
        type=click.Choice(READING["output_range"]),
        help="What the file returns: logits, or probabilities in 0-1 or 0-255.  [default: found by running it]",
    ),
)


def foreign_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how to read an ONNX file where it does not tell."""
    for option in reversed(_READING_OPTIONS):
        command = option(command)
    return command


# Headings of the help, in this order, below the options that have none.
_HEADINGS: Mapping[str, tuple[str, ...]] = {
    "Model (if the file does not say)": (
        "arch", "encoder_name", "encoder_depth", "decoder_channels", "in_channels", "classes", "multilabel",
        "threshold", "model_args", "checkpoint_key",
    ),
    "Image preparation (if the file does not say)": (
        "input_size", "resize", "input_range", "white_level", "channel_order", "normalize", "mean", "std",
    ),
    "ONNX files that segx did not export": tuple(READING),
}  # fmt: skip


class GroupedCommand(click.Command):
    """A command whose help has its options under headings: its own, then those that describe a model."""

    def __init__(self, *args: Any, headings: Mapping[str, tuple[str, ...]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headings = {**(headings or {}), **_HEADINGS}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options below their headings."""
        shown = (param for param in self.get_params(ctx) if isinstance(param, click.Option))
        records = {param.name: record for param in shown if (record := param.get_help_record(ctx))}
        grouped = {name for names in self._headings.values() for name in names}
        sections = {"Options": tuple(name for name in records if name not in grouped), **self._headings}
        for heading, names in sections.items():
            if listed := [records[name] for name in names if name in records]:
                with formatter.section(heading):
                    formatter.write_dl(listed)


def filled(kind: type[Any], given: Mapping[str, Any]) -> Any:
    """Fill a dataclass with the options given under the names of its fields; its defaults apply to the others."""
    fields = (field.name for field in dataclasses.fields(kind))
    return kind(**{name: given[name] for name in fields if given.get(name) is not None})


def spec_overrides(
    *,
    encoder_depth: int | None,
    decoder_channels: tuple[int, ...] | None,
    input_size: tuple[int, int] | None,
    model_args: tuple[tuple[str, Any], ...],
    normalize: str | None,
    **others: Any,
) -> dict[str, Any]:
    """Return the model options among those of a command as far as they were given.

    They are fields of ``ModelSpec``, and what else ``import_model`` takes.
    """
    fields = {*ModelSpec.__dataclass_fields__, *READING}
    overrides = {name: value for name, value in others.items() if name in fields and value is not None}
    if normalize is not None:
        if {"mean", "std"} & overrides.keys():
            raise click.UsageError("--normalize sets mean and std; leave --mean and --std out")
        overrides["normalize"] = normalize
    arguments = dict(model_args)
    if encoder_depth is not None:
        arguments["encoder_depth"] = encoder_depth
    if decoder_channels is not None:
        arguments["decoder_channels"] = list(decoder_channels)
    if input_size is not None:
        overrides["width"], overrides["height"] = input_size
    return {**overrides, "arguments": arguments} if arguments else overrides


def resolve_onnx(
    onnx: Path | None, overrides: dict[str, Any], progress: Progress
) -> tuple[Path | None, dict[str, Any]]:
    """Return the ONNX file to run, and the overrides that it has not taken in: all if segx exported it."""
    if onnx is None:
        refuse_reading_options(overrides)
        return None, overrides
    from segx.export import import_model

    imported = import_model(onnx, overrides, progress=progress)
    return imported.artifact.path, {} if imported.is_foreign else overrides


def refuse_reading_options(overrides: Mapping[str, Any]) -> None:
    """Raise UsageError for options that only have an effect on a foreign ONNX file."""
    if useless := next((name for name in READING if name in overrides), None):
        raise click.UsageError(f"--{useless.replace('_', '-')} has no effect without --model; leave it out")


def resolve_weights(weights: Path | None) -> Path:
    """Return the given checkpoint, or else the shipped one; UsageError if this installation has none."""
    if weights is not None:
        return weights
    if SHIPPED_WEIGHTS.is_file():
        return SHIPPED_WEIGHTS
    raise UsageError("no checkpoint given", hint="pass one with --weights FILE")


def resolve_spec(checkpoint: Path | None, overrides: dict[str, Any], *, onnx: Path | None = None) -> ModelSpec:
    """Return the model spec of the checkpoint or else of the exported file, with the user's overrides applied."""
    from segx.model.checkpoint import described, model_spec

    if checkpoint is None and "checkpoint_key" in overrides:
        raise UsageError("--checkpoint-key chooses weights from a checkpoint, but none is given", hint="leave it out")
    if checkpoint and not onnx:
        return model_spec(checkpoint, overrides)
    said = described(checkpoint, overrides.get("checkpoint_key", "")).spec if checkpoint else None
    if said is None and onnx:
        from segx.export import read_artifact

        said = read_artifact(onnx).spec
    return ModelSpec.with_overrides(said, overrides)
