"""The model spec: what weights need to become a model, and logits to become a mask."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from typing import Any, Literal, Self, get_args

from segx.errors import UsageError, first_line

# In the metadata of an exported file.
METADATA_KEY = "segx.model_spec"
PRECISION_KEY = "segx.precision"

InputRange = Literal["0-1", "0-255"]
ChannelOrder = Literal["rgb", "bgr"]
Resize = Literal["antialias", "linear", "letterbox"]

Layout = Literal["nchw", "nhwc"]
OutputRange = Literal["logits", "0-1", "0-255"]

# Overrides that say how to read an ONNX file of others, beside fields of ``ModelSpec``; their values, if they are few.
READING: Mapping[str, tuple[str, ...]] = {
    "output_name": (),
    "output_channel": (),
    "layout": get_args(Layout),
    "output_range": get_args(OutputRange),
}

_Normalization = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and standard deviation of the channels, red first.
_NORMALIZATIONS: Mapping[str, _Normalization] = {
    "none": ((), ()),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
}
# What the ImageNet weights of encoders in segmentation_models_pytorch were trained with; the others with "imagenet".
# The library's own get_preprocessing_params asks a server.
_ENCODERS = {
    "inception": "inception",
    "xception": "inception",
    "timm-tf_efficientnet_lite": "inception",
    "dpn": "dpn",
}
# Those of timm, and those for which versions of the library differ.
_UNKNOWN = ("tu-", "timm-mobilenetv3")

# Fields whose option takes the value as it is.
_OPTIONS = {
    "encoder_name": "--encoder",
    "in_channels": "--in-channels",
    "classes": "--classes",
    "threshold": "--threshold",
    "input_range": "--input-range",
    "channel_order": "--channel-order",
    "resize": "--resize",
    "white_level": "--white-level",
    "checkpoint_key": "--checkpoint-key",
}

# The most bands, and pixels of a side, that image files have.
_MOST = 65_535
_DEEPEST = 8  # nesting of arguments

_DEFAULT_ARCH = "UnetPlusPlus"
_EXPORT_AGAIN = "export the model again with this version of segx"


_DEFAULT_ARGUMENTS: Mapping[str, Any] = {"encoder_depth": 4, "decoder_channels": [256, 128, 64, 32]}
_NOT_GIVEN: Mapping[str, Any] = {}
# Overrides that do not simply replace a field.
_NOT_PLAIN = ("arguments", "normalize", "threshold")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A segmentation_models_pytorch model, its input and its threshold.

    Attributes:
        arch: class name in segmentation_models_pytorch.
        encoder_name: encoder name in segmentation_models_pytorch.
        in_channels: image channels: 1 for gray, 3 for colour, or the number of bands.
        classes: output channels; 1 means a binary mask by ``threshold``, more mean argmax unless ``multilabel``.
        height (px): input height.
        width (px): input width.
        threshold (probability): lowest probability that belongs to a mask, in (0, 1); without effect on argmax.
        input_range: what pixels are scaled to, black to full brightness.
        channel_order: order of the channels of a colour image.
        resize: how an image is resized: ``antialias`` is bilinear with antialiasing, as in torchvision;
            ``linear`` is bilinear without, as in OpenCV and Albumentations; ``letterbox`` is ``antialias`` at the
            image's own aspect ratio, centred on black.
        white_level (pixel value): full brightness, 4095 for 12 bits in 16-bit files; None for the highest value of the
            pixels' type.
        mean (units of input_range): per channel of the model, or one for all, subtracted; empty for none.
        std (units of input_range): per channel of the model, divides after ``mean``; empty for none.
        arguments: further constructor arguments (``encoder_depth``, ``decoder_channels``, …), JSON values only. By
            default those of the shipped model for its architecture, the library's own for others.
        checkpoint_key: which weights of a checkpoint that holds several, such as ``ema``; empty for the trained ones.
        class_map: an ONNX file returns classes instead of logits, so only masks can be compared.
        multilabel: classes may overlap: each channel is its own binary mask, by ``threshold``.
    """

    arch: str = _DEFAULT_ARCH
    encoder_name: str = "resnet34"
    in_channels: int = 1
    classes: int = 1
    height: int = 256
    width: int = 256
    threshold: float = 0.5
    input_range: InputRange = "0-1"
    channel_order: ChannelOrder = "rgb"
    resize: Resize = "antialias"
    white_level: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=lambda: _NOT_GIVEN)
    checkpoint_key: str = ""
    class_map: bool = False
    multilabel: bool = False

    def __post_init__(self) -> None:
        if self.arguments is _NOT_GIVEN:
            object.__setattr__(self, "arguments", dict(_DEFAULT_ARGUMENTS) if self.arch == _DEFAULT_ARCH else {})
        self._check_types()
        if not 1 <= self.in_channels <= _MOST:
            raise UsageError(f"in_channels is {self.in_channels}", hint=f"images have 1 to {_MOST} channels")
        if not 1 <= self.classes <= 256:
            raise UsageError(f"classes is {self.classes}", hint="use 1 to 256: masks store class indices in 8 bits")
        if not 1 <= min(self.height, self.width) <= max(self.height, self.width) <= _MOST:
            raise UsageError(
                f"input size {self.width}x{self.height} is not within 1 to {_MOST}", hint="use pixels, such as 256x256"
            )
        if not 0.0 < self.threshold < 1.0:
            raise UsageError(f"threshold {self.threshold} is not a probability", hint="use a number between 0 and 1")
        if self.multilabel and (self.classes == 1 or self.class_map):
            what = "a map of classes" if self.class_map else "one channel"
            raise UsageError(f"the model returns {what}, not one channel for each label", hint="leave --multilabel out")
        self._check_preprocessing()

    def _check_preprocessing(self) -> None:
        for name, value, known in (
            ("input_range", self.input_range, get_args(InputRange)),
            ("channel_order", self.channel_order, get_args(ChannelOrder)),
            ("resize", self.resize, get_args(Resize)),
        ):
            if value not in known:
                raise UsageError(f"{name} {value!r} is unknown", hint=f"use {', '.join(known)}")
        if self.channel_order == "bgr" and self.in_channels != 3:
            raise UsageError(f"channel_order is bgr for {self.in_channels} channels", hint="only 3 have that order")
        if self.white_level is not None and self.white_level <= 0:
            raise UsageError(f"white_level {self.white_level} is not positive", hint="give the brightest pixel value")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) == 1:
                object.__setattr__(self, name, values * self.in_channels)
            elif values and len(values) != self.in_channels:
                raise UsageError(
                    f"{name} has {len(values)} values for {self.in_channels} channels",
                    hint="pass one value per channel, or one for all",
                )
        if any(value <= 0 for value in self.std):
            raise UsageError(f"std {self.std} is not positive", hint="pass the standard deviation of each channel")

    def _check_types(self) -> None:
        """Check types: values come from files and the command line, and wrong ones would fail much later.

        Lists and numbers, also of NumPy, become what ``from_json`` makes, so that equal specs are equal.
        """
        whole = {name: getattr(self, name) for name in ("in_channels", "classes", "height", "width")}
        if wrong := [name for name, value in whole.items() if type(value) is not int]:
            raise UsageError(f"{wrong[0]} {whole[wrong[0]]!r} is not an integer", hint="pass an integer")
        if not all(isinstance(value, str) for value in (self.arch, self.encoder_name, self.checkpoint_key)):
            raise UsageError("arch, encoder_name and checkpoint_key must be text", hint="pass names")
        if not isinstance(self.arguments, Mapping):
            raise UsageError(f"arguments {self.arguments!r} are not a mapping", hint="pass NAME=VALUE")
        if _is_deeper(self.arguments, _DEEPEST):
            raise UsageError("arguments are nested too deeply", hint="pass NAME=VALUE")
        try:
            object.__setattr__(self, "arguments", json.loads(json.dumps(dict(self.arguments))))
        except (TypeError, ValueError) as error:
            raise UsageError(f"arguments are not JSON values: {first_line(error)}", hint="pass plain values") from error
        object.__setattr__(self, "threshold", _number("threshold", self.threshold))
        if self.white_level is not None:
            object.__setattr__(self, "white_level", _number("white_level", self.white_level))
        for name, values in (("mean", self.mean), ("std", self.std)):
            try:
                listed = tuple(None if isinstance(values, str) else values)
            except TypeError as error:
                raise UsageError(f"{name} {values!r} is not a sequence", hint="pass one number per channel") from error
            object.__setattr__(self, name, tuple(_number(name, value) for value in listed))

    @property
    def logit_threshold(self) -> float:
        """The threshold on logits: ln(t / (1 - t)), the inverse of the sigmoid at ``threshold``."""
        return math.log(self.threshold / (1.0 - self.threshold))

    @property
    def exclusive(self) -> bool:
        """Whether a pixel has one of several classes, the one with the largest logit."""
        return self.classes > 1 and not self.multilabel

    @property
    def has_threshold(self) -> bool:
        """Whether masks depend on ``threshold``."""
        return not (self.exclusive or self.class_map)

    def cut_at(self, threshold: float | None) -> ModelSpec:
        """Return the spec with a threshold that the user gave; None keeps its own.

        Raises:
            UsageError: it is no probability, or masks would not depend on it.
        """
        if threshold is None or threshold == self.threshold:
            return self
        if not self.has_threshold:
            why = (
                f"its {self.classes} classes exclude each other"
                if self.exclusive
                else "it returns classes, not probabilities"
            )
            raise UsageError(f"a threshold has no effect on this model: {why}", hint="leave --threshold out")
        return replace(self, threshold=threshold)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.in_channels, self.height, self.width

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(K, H, W) of one image's logits."""
        return self.classes, self.height, self.width

    @property
    def preprocessing(self) -> str:
        """What is done to images, in one line: ``RGB [0, 1], mean/std ImageNet, 320x224``."""
        return f"{self.pixels}, {self.width}x{self.height}" + ("" if self.resize == "antialias" else f" {self.resize}")

    @property
    def pixels(self) -> str:
        """What is done to the pixels of images, in one line: ``RGB [0, 1], mean/std ImageNet``."""
        order = {1: "gray", 3: self.channel_order.upper()}.get(self.in_channels, f"{self.in_channels} channels")
        parts = [f"{order} [{self.input_range.replace('-', ', ')}]", _normalization_text(self.mean, self.std)]
        if self.white_level is not None:
            parts.append(f"white at {self.white_level:g}")
        return ", ".join(parts)

    def __str__(self) -> str:
        depth = self.arguments.get("encoder_depth")
        deep = f", depth {depth}" if depth is not None else ""
        size = f"{self.in_channels}x{self.height}x{self.width}"
        made_of = f"{self.encoder_name}{deep}, " if self.encoder_name else ""
        kind = ", multilabel" * self.multilabel
        return f"{self.arch}({made_of}{size}, {self.classes} class{'es' * (self.classes > 1)}{kind})"

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys, the same for equal specs."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse what ``to_json`` returned.

        Raises:
            UsageError: not JSON, unknown fields, or invalid values.
        """
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"model spec is not JSON: {first_line(error)}", hint=_EXPORT_AGAIN) from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a spec from what ``dataclasses.asdict`` returned, also after a JSON round trip.

        Raises:
            UsageError: unknown fields or invalid values.
        """
        try:
            unknown = set(values) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
            return cls(**values)
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise UsageError(f"model spec is malformed: {first_line(error)}", hint=_EXPORT_AGAIN) from error

    def options(self, base: ModelSpec | None) -> tuple[str, ...]:
        """Return the options of the command line that make this spec of ``base``; the inverse of ``with_overrides``."""
        start = base or type(self)()
        words: list[str] = []
        arguments = start.arguments
        # Without a base, --arch takes the library's own arguments; see with_overrides.
        if self.arch != start.arch or (base is None and not arguments.keys() <= self.arguments.keys()):
            words += ["--arch", self.arch]
            arguments = {}
        for name, option in _OPTIONS.items():
            if (value := getattr(self, name)) != getattr(start, name) and (name != "threshold" or self.has_threshold):
                words += [option, str(value)]
        if self.multilabel != start.multilabel:
            words.append("--multilabel" if self.multilabel else "--no-multilabel")
        if (self.width, self.height) != (start.width, start.height):
            words += ["--input-size", f"{self.width}x{self.height}"]
        if (self.mean, self.std) != (start.mean, start.std):
            words += self._normalization_options()
        for name, value in self.arguments.items():
            if name not in arguments or value != arguments[name]:
                words += _argument_option(name, value)
        return tuple(words)

    def _normalization_options(self) -> list[str]:
        mean, std = (",".join(map(str, values)) for values in (self.mean, self.std))
        if bool(mean) != bool(std):
            return ["--mean", mean] if mean else ["--std", std]
        found, range_ = (self.mean, self.std), self.input_range
        named = (name for name in _NORMALIZATIONS if normalization(name, self.in_channels, input_range=range_) == found)
        return ["--normalize", next(named, f"{mean}/{std}")]

    @classmethod
    def with_overrides(cls, base: ModelSpec | None, overrides: Mapping[str, Any]) -> ModelSpec:
        """Return a checkpoint's spec with the user's overrides applied.

        Without a base, the defaults of this class apply. Overriding the architecture resets all arguments to the
        library's defaults, unless the checkpoint has the same architecture; else ``arguments`` are merged key by key.
        ``normalize`` among the overrides gives mean and std by name; see ``normalization``.

        Raises:
            UsageError: invalid values, or a threshold without effect.
        """
        values = {f.name: getattr(base or cls(), f.name) for f in fields(cls)}
        plain = {name: value for name, value in overrides.items() if name not in _NOT_PLAIN}
        arguments = dict(values["arguments"])
        if "arch" in plain and (base is None or plain["arch"] != base.arch):
            arguments = {}
        arguments.update(overrides.get("arguments", {}))
        values |= plain
        if normalize := overrides.get("normalize"):
            values["mean"], values["std"] = normalization(
                normalize, values["in_channels"], values["encoder_name"], input_range=values["input_range"]
            )
        return cls(**{**values, "arguments": arguments}).cut_at(overrides.get("threshold"))


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UsageError(f"{name} {value!r} is not a finite number", hint="pass plain numbers")
    return number


def _is_deeper(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(levels == 0 or _is_deeper(part, levels - 1) for part in parts)


def _argument_option(name: str, value: Any) -> list[str]:
    """Return the option for a constructor argument: its own if it has one, else ``--model-arg NAME=VALUE``."""
    if name == "encoder_depth" and type(value) is int:
        return ["--encoder-depth", str(value)]
    if name == "decoder_channels" and isinstance(value, list) and value and all(type(each) is int for each in value):
        return ["--decoder-channels", ",".join(map(str, value))]
    # Text that is not JSON is taken as it is.
    is_word = (
        isinstance(value, str) and value.isidentifier() and value not in ("true", "false", "null", "NaN", "Infinity")
    )
    return ["--model-arg", f"{name}={value if is_word else json.dumps(value)}"]


def range_of(mean: tuple[float, ...], std: tuple[float, ...]) -> InputRange | None:
    """Return the pixel range that mean and std seem to be in; None if unknown."""
    highest: Mapping[InputRange, float] = {"0-1": 1, "0-255": 255}
    return next((name for name, most in highest.items() if min((*mean, 0)) >= 0 and max((*mean, *std)) <= most), None)


def normalization(
    text: str, channels: int, encoder_name: str = "", *, input_range: InputRange = "0-1"
) -> _Normalization:
    """Return mean and std per channel.

    ``text`` is ``imagenet``, ``inception``, ``dpn`` or ``none``; ``encoder`` for those that the ImageNet weights of the
    encoder were trained with; or numbers, ``MEAN/STD``, one per channel or one for all. For a gray model, the named
    ones are the means of their three channels. Named ones are in units of ``input_range``, as numbers must be.

    Raises:
        UsageError: neither a name nor numbers, or it is not known for the encoder.
    """
    if text == "encoder":
        if not encoder_name or encoder_name.startswith(_UNKNOWN):
            what = f"encoder {encoder_name}" if encoder_name else "an ONNX file"
            hint = "give the training's numbers as --normalize MEAN/STD, or --normalize imagenet"
            raise UsageError(f"the normalisation of {what} is not known", hint=hint)
        text = next((name for start, name in _ENCODERS.items() if encoder_name.startswith(start)), "imagenet")
    if named := _NORMALIZATIONS.get(text):
        mean, std = named
        if channels == 1 and mean:
            mean, std = ((round(sum(values) / len(values), 3),) for values in named)
        if input_range == "0-255":
            mean, std = (tuple(round(255 * value, 3) for value in values) for values in (mean, std))
        return mean, std
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise UsageError(
            f"normalisation {text!r} is neither a name nor MEAN/STD",
            hint=f"use encoder, {', '.join(_NORMALIZATIONS)}, or numbers such as 0.485,0.456,0.406/0.229,0.224,0.225",
        ) from None
    return mean, std


def _normalization_text(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    if not (mean or std):
        return "no mean/std"
    for name, shown in (("imagenet", "ImageNet"), ("inception", "Inception")):
        if (mean, std) in (normalization(name, 3), normalization(name, 1)):
            return f"mean/std {shown}"
    return " ".join(
        f"{what} {','.join(f'{value:g}' for value in values)}"
        for what, values in (("mean", mean), ("std", std))
        if values
    )
