"""The model spec: what weights need to become a model, and logits to become a mask."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from segx.errors import UsageError

# In the metadata of an exported file.
METADATA_KEY = "segx.model_spec"
PRECISION_KEY = "segx.precision"

_DEFAULT_ARCH = "UnetPlusPlus"
_EXPORT_AGAIN = "export the model again with this version of segx"


_DEFAULT_ARGUMENTS: Mapping[str, Any] = {"encoder_depth": 4, "decoder_channels": [256, 128, 64, 32]}
_NOT_GIVEN: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A segmentation_models_pytorch model, its input and its threshold.

    Attributes:
        arch: class name in segmentation_models_pytorch.
        encoder_name: encoder name in segmentation_models_pytorch.
        in_channels: image channels, 1 (gray) or 3 (RGB).
        classes: output channels; 1 means a binary mask by ``threshold``, more mean argmax.
        height (px): input height.
        width (px): input width.
        threshold (probability): lowest probability that belongs to the mask, in (0, 1); binary models only.
        mean (share of full brightness): per channel, subtracted from images in [0, 1]; empty for none.
        std (share of full brightness): per channel, divides after ``mean``; empty for none.
        arguments: further constructor arguments (``encoder_depth``, ``decoder_channels``, …), JSON values only. By
            default those of the shipped model for its architecture, the library's own for others.
        checkpoint_key: which weights of a checkpoint that holds several, such as ``ema``; empty for the trained ones.
    """

    arch: str = _DEFAULT_ARCH
    encoder_name: str = "resnet34"
    in_channels: int = 1
    classes: int = 1
    height: int = 256
    width: int = 256
    threshold: float = 0.5
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=lambda: _NOT_GIVEN)
    checkpoint_key: str = ""

    def __post_init__(self) -> None:
        if self.arguments is _NOT_GIVEN:
            object.__setattr__(self, "arguments", dict(_DEFAULT_ARGUMENTS) if self.arch == _DEFAULT_ARCH else {})
        self._check_types()
        if self.in_channels not in (1, 3):
            raise UsageError(f"in_channels is {self.in_channels}", hint="images have 1 (gray) or 3 (RGB) channels")
        if not 1 <= self.classes <= 256:
            raise UsageError(f"classes is {self.classes}", hint="use 1 to 256: masks store class indices in 8 bits")
        if min(self.height, self.width) < 1:
            raise UsageError(
                f"input size {self.width}x{self.height} is not positive", hint="use pixels, such as 256x256"
            )
        if not 0.0 < self.threshold < 1.0:
            raise UsageError(f"threshold {self.threshold} is not a probability", hint="use a number between 0 and 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.in_channels:
                raise UsageError(
                    f"{name} has {len(values)} values for {self.in_channels} channels",
                    hint="pass one value per channel",
                )
        if any(value <= 0 for value in self.std):
            raise UsageError(f"std {self.std} is not positive", hint="pass the standard deviation of each channel")

    def _check_types(self) -> None:
        """Check types: values come from files and the command line, and wrong ones would fail much later."""
        whole = {name: getattr(self, name) for name in ("in_channels", "classes", "height", "width")}
        if wrong := [name for name, value in whole.items() if type(value) is not int]:
            raise UsageError(f"{wrong[0]} {whole[wrong[0]]!r} is not an integer", hint="pass an integer")
        if not all(isinstance(value, str) for value in (self.arch, self.encoder_name, self.checkpoint_key)):
            raise UsageError("arch, encoder_name and checkpoint_key must be text", hint="pass names")
        if not isinstance(self.arguments, Mapping):
            raise UsageError(f"arguments {self.arguments!r} are not a mapping", hint="pass NAME=VALUE")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
                raise UsageError(f"{name} {values} is not finite", hint="pass one finite number per channel")

    @property
    def logit_threshold(self) -> float:
        """The threshold on logits: ln(t / (1 - t)), the inverse of the sigmoid at ``threshold``."""
        return math.log(self.threshold / (1.0 - self.threshold))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.in_channels, self.height, self.width

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(K, H, W) of one image's logits."""
        return self.classes, self.height, self.width

    def __str__(self) -> str:
        depth = self.arguments.get("encoder_depth")
        deep = f", depth {depth}" if depth is not None else ""
        size = f"{self.in_channels}x{self.height}x{self.width}"
        made_of = f"{self.encoder_name}{deep}, " if self.encoder_name else ""
        return f"{self.arch}({made_of}{size}, {self.classes} class{'es' * (self.classes > 1)})"

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys, the same for equal specs."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of ``to_json``.

        Raises:
            UsageError: not JSON, unknown fields, or invalid values.
        """
        try:
            return cls.from_dict(json.loads(text))
        except ValueError as error:
            raise UsageError(f"model spec is not JSON: {error}", hint=_EXPORT_AGAIN) from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of ``dataclasses.asdict``, also after a JSON round trip.

        Raises:
            UsageError: unknown fields or invalid values.
        """
        try:
            unknown = set(values) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
            return cls(**{**values, **{name: tuple(values.get(name, ())) for name in ("mean", "std")}})
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"model spec is malformed: {error}", hint=_EXPORT_AGAIN) from error

    @classmethod
    def with_overrides(cls, base: ModelSpec | None, overrides: Mapping[str, Any]) -> ModelSpec:
        """Return a checkpoint's spec with the user's overrides applied.

        Without a base, the defaults of this class apply. Overriding the architecture resets all arguments to the
        library's defaults, unless the checkpoint has the same architecture; else ``arguments`` are merged key by key.
        """
        values = {f.name: getattr(base or cls(), f.name) for f in fields(cls)}
        plain = {name: value for name, value in overrides.items() if name != "arguments"}
        arguments = dict(values["arguments"])
        if "arch" in plain and (base is None or plain["arch"] != base.arch):
            arguments = {}
        arguments.update(overrides.get("arguments", {}))
        return cls(**{**values, **plain, "arguments": arguments})
