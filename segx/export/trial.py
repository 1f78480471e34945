"""A foreign model with a wrapped input, run to find out what it takes and returns."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from segx.errors import ArtifactError, UsageError
from segx.export import adapt
from segx.export.verify import TrialRun, sample_images
from segx.masks.preprocess import FloatArray, in_batches, preprocess
from segx.model.spec import ModelSpec

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
# Sides that each of these divides and no other of them that is larger; common strides first.
_STRIDES = {stride: stride * (128 // stride + 1) for stride in (1, 2, 4, 8, 16, 32, 64, 14, 28, 128)}
_BATCHES = (2, 4, 8, 16, 32)
_SCENES, _SEED = 3, 11
_LARGEST_FACTOR = 32
_MOST_CLASSES_GUESSED = 32
_FULL_FROM = 128  # the largest of numbers that are probabilities times 255
# Outputs that differ by a smaller share of the largest value differ by rounding only.
_SAME = 1e-3

_Run = Callable[[FloatArray], npt.NDArray[Any]]


def command(path: Path, option: str, value: str = "") -> str:
    """Return a command that settles what a file does not tell."""
    words = ["segx", "export", "--model", str(path), f"--{option}", *([value] if value else [])]
    return f"`{shlex.join(words)}`"


def close(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Return True if two outputs differ by rounding only."""
    if a.shape != b.shape:
        return False
    scale = max(1e-6, float(np.abs(np.nan_to_num(a)).max(initial=0)))
    return bool(np.allclose(a.astype(np.float64), b, rtol=0, atol=_SAME * scale, equal_nan=True))


@dataclass(frozen=True)
class _Arrangement:
    """Where an output has its axes: ``missing`` is the one to insert, None for four axes."""

    missing: int | None
    channels_last: bool
    factors: tuple[int, int]  # by which rows and columns are fewer than the image's
    class_axis: int  # where classes are


@dataclass
class Trial:
    """A foreign model with a wrapped input, and what is known of it.

    ``said`` collects a sentence for everything that is done to its output, or that the file tells otherwise.
    """

    path: Path
    model: ir.Model
    channels: int
    overrides: Mapping[str, Any]
    layout: str
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.multilabel: bool = self.overrides.get("multilabel", False)  # known once the output is made logits

    def stride(self, batch: int, size: list[int | None]) -> int | None:
        """Return the number that heights and widths must be multiples of; None if it is not found."""
        run = self._run()
        for stride, side in _STRIDES.items():
            height, width = (fixed or side for fixed in size)
            with contextlib.suppress(ArtifactError):
                got = run(np.zeros((batch, self.channels, height, width), dtype=np.float32))
                self._arrangement(got, batch, height, width)
                return stride
        return None

    def batch_size(self, fixed: int | None, height: int, width: int) -> int | None:
        """Return the only batch size that the model takes, None for any."""
        run = self._run()
        two = np.random.default_rng(_SEED).random((2, self.channels, height, width), dtype=np.float32)
        if fixed is not None:
            self._refuse_random(run, np.resize(two, (fixed, *two.shape[1:])))
            return fixed
        try:
            one = run(two[:1])
        except ArtifactError:
            for count in _BATCHES:
                with contextlib.suppress(ArtifactError):
                    run(np.resize(two, (count, *two.shape[1:])))
                    self.said.append(f"the graph takes only batches of {count}, although its input says any")
                    return count
            raise
        self._refuse_random(run, two[:1])
        with contextlib.suppress(ArtifactError):
            both = run(two)
            if len(both) == 2 and both.ndim == one.ndim:
                if close(both, np.concatenate([one, run(two[1:])])):
                    return None
                self.said.append("one image at a time: in a batch, images change each other's output")
                return 1
        self.said.append("one image at a time: the graph fixes the batch size to 1, although its input says any")
        return 1

    def make_logits(self, spec: ModelSpec, batch: int) -> tuple[int, bool]:
        """Make the output logits; return the number of classes, and whether it is a map of classes without logits."""
        output, images = adapt.Output(self.model), _probes(spec)
        if (channel := self.overrides.get("output_channel")) is not None:
            self._pick(channel, output, images[:batch])
        removed = self._remove_ending(output, images[:batch]) if self._range is None else ""
        run = self._run()
        outputs = [run(each) for each in in_batches(images, batch)]
        where = self._arrangement(outputs[0], batch, spec.height, spec.width)
        bounded = not removed and output.ends_in_probabilities()
        dtype = outputs[0].dtype
        self.said += output.arrange(dtype=dtype, axis=where.missing, channels_last=where.channels_last)
        values = self._finite(np.concatenate([_arranged(each, where) for each in outputs]))
        whole = dtype.kind in "iub" and self._range is None
        classes, class_map = values.shape[1], whole
        if classes == 1 and (whole or (not removed and self._holds_indices(values))):
            classes, class_map = self._map_to_logits(output, values, known=dtype == np.bool_), True
        elif classes == 1 and not removed:
            self._to_logits(output, values, bounded=bounded)
        elif classes > 1 and not whole:
            self._judge_channels(values, removed, bounded=bounded)
            if self.multilabel and not removed:
                self._to_logits(output, values, bounded=bounded)
        given = self.overrides.get("classes", classes)
        if not class_map and given != classes:
            raise UsageError(f"{self.path} returns {classes} channels, not {given} classes", hint="leave --classes out")
        if where.factors != (1, 1):
            output.enlarge(where.factors, "nearest" if class_map else "linear")
            how = "by nearest neighbour" if class_map else "bilinearly"
            self.said.append(f"the output is smaller than the image and enlarged by {where.factors[0]} {how}")
        return classes, class_map

    def _pick(self, channel: int, output: adapt.Output, images: FloatArray) -> None:
        got = self._run()(images)
        where = self._arrangement(got, len(images), *images.shape[2:])
        count = _arranged(got, where).shape[1]
        if channel >= count:
            raise UsageError(f"{self.path} has no channel {channel}", hint=f"use 0 to {count - 1}")
        output.pick(channel, where.class_axis)
        self.said.append(f"channel {channel} is used of {count}")

    def _remove_ending(self, output: adapt.Output, images: FloatArray) -> str:
        """Remove what keeps the order of logits from the end; return the activation."""
        if output.remove_argmax():
            self.said.append("removed the final ArgMax: the mask takes the class of the largest logit")
        removed = "Sigmoid" if output.remove_sigmoid() else ""
        if not removed:
            got = self._run()(images)
            where = self._arrangement(got, len(images), *images.shape[2:])
            removed = "Softmax" if output.remove_softmax(where.class_axis, got.ndim) else ""
        if removed:
            self.said.append(f"removed the final {removed}: masks are computed and compared on logits")
        return removed

    @property
    def _range(self) -> str | None:
        given: str | None = self.overrides.get("output_range")
        return given

    def _finite(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return finite values; others are said, and become one of the finite ones."""
        finite = np.isfinite(values)
        if not finite.any():
            raise ArtifactError(f"{self.path} returns no finite numbers", hint="export the model again")
        if finite.all():
            return values
        self.said.append("the output is not finite for some generated, black or white images")
        return np.where(finite, values, values[finite].flat[0])

    def _holds_indices(self, values: npt.NDArray[Any]) -> bool:
        """Return True for whole numbers in floating point that cannot be logits."""
        return self._range is None and bool(
            np.ptp(values) > 0 and values.min() >= 0 and np.array_equal(values, np.rint(values))
        )

    def _map_to_logits(self, output: adapt.Output, values: npt.NDArray[Any], *, known: bool) -> int:
        """Turn class indices into logits, a map of booleans (``known``) too, and return the number of classes."""
        classes: int | None = self.overrides.get("classes", 1 if known else None)
        found = np.unique(values).astype(float)
        if classes is None or len(found) > max(classes, 2) or (classes > 2 and found[-1] >= classes):
            listed = ", ".join(f"{value:g}" for value in found[:8]) + (", …" if len(found) > 8 else "")
            told = "and not of how many classes" if classes is None else f"which is not a map of {classes} classes"
            guess = "1" if len(found) == 2 and found[-1] > 1 else str(max(2, int(found[-1]) + 1))
            hint = f"give the number of classes with background: {command(self.path, 'classes', guess)}"
            if len(found) > _MOST_CLASSES_GUESSED:
                hint = f"if these are probabilities: {command(self.path, 'output-range', '0-255')}; if not, --classes N"
            raise UsageError(f"{self.path} returns whole numbers ({listed} on generated images), {told}", hint=hint)
        classes = 1 if classes == 2 else classes
        output.to_one_hot(classes)
        what = "all but 0 are foreground" if classes == 1 else f"{classes} classes"
        self.said.append(f"the output is a map of class indices ({what}), judged by masks alone")
        return classes

    def _to_logits(self, output: adapt.Output, values: npt.NDArray[Any], *, bounded: bool) -> None:
        """Turn one channel of probabilities into logits; logits stay as they are."""
        low, high = float(values.min()), float(values.max())
        full = {"0-1": 1.0, "0-255": 255.0}.get(self._range or "")
        if self._range is None and low >= 0:
            if not (bounded or high <= 1 or _FULL_FROM <= high <= 255):
                raise UsageError(
                    f"{self.path} returns {low:.3g} to {high:.3g} on generated, black and white images: logits are "
                    "below 0 outside the mask, and probabilities are in [0, 1] or [0, 255]",
                    hint=f"say what it returns: {command(self.path, 'output-range', 'logits')}, 0-1 or 0-255",
                )
            full = 1.0 if bounded or high <= 1 else 255.0
        if full is not None:
            output.to_logits(full)
            self.said.append(f"the output is a probability in [0, {full:g}] and becomes its logit in the graph")

    def _judge_channels(self, values: npt.NDArray[Any], removed: str, *, bounded: bool) -> None:
        """Find out whether several channels exclude each other.

        Raises:
            UsageError: it cannot be told.
        """
        channels = values.shape[1]
        within = bounded or (values.min() >= 0 and values.max() <= 1)
        overlapping = removed == "Sigmoid" or bool(within and not np.allclose(values.sum(axis=1), 1, atol=1e-2))
        is_told = self._range is not None or bool({"multilabel", "classes"} & self.overrides.keys())
        if overlapping and not is_told and not removed:
            raise UsageError(
                f"{self.path} returns {channels} channels of probabilities that do not add up to 1: they may overlap",
                hint=f"if classes may overlap, take a mask of each: {command(self.path, 'multilabel')}; if they "
                f"exclude each other, the largest: {command(self.path, 'no-multilabel')}",
            )
        self.multilabel = self.multilabel or (overlapping and not is_told)
        if self.multilabel:
            self.said.append(
                f"its {channels} channels may overlap: a mask for each; --no-multilabel takes the largest, "
                "--output-channel one of them"
            )
        elif overlapping:
            self.said.append(
                f"its {channels} channels may overlap, and the largest is taken, as told; --multilabel gives a mask of "
                "each"
            )

    def _run(self) -> _Run:
        trial = TrialRun(ir.to_proto(self.model), self.path)
        name = str(self.model.graph.outputs[0].name)
        hint = "see that the model runs in ONNX Runtime by itself, and export it again"
        if "height" in self.overrides:
            hint = "give another --input-size, or export it again"

        def run(images: FloatArray) -> npt.NDArray[Any]:
            return trial.run([name], images, hint=hint)[0]

        return run

    def _refuse_random(self, run: _Run, images: FloatArray) -> None:
        if not close(run(images), run(images)):
            random = sorted(
                {name for names in adapt.operators_of(self.model).values() for name in names} & set(_RANDOM)
            )
            raise ArtifactError(
                f"{self.path} returns different values each time it runs"
                + (f", because of {', '.join(random)}" if random else ""),
                hint="export it again after model.eval()",
            )

    def _arrangement(self, got: npt.NDArray[Any], batch: int, height: int, width: int) -> _Arrangement:
        """Return how the output of a batch is arranged.

        Raises:
            ArtifactError: it has no image, or an image of another form than the input's.
        """
        shape = got.shape
        candidates: list[tuple[int | None, bool, tuple[int, ...]]] = []
        if len(shape) == 4 and shape[0] == batch:
            candidates = [(None, False, shape[2:]), (None, True, shape[1:3])]
        elif len(shape) == 3 and shape[0] == batch:
            candidates = [(1, False, shape[1:])]
        elif len(shape) == 3 and batch == 1:
            candidates = [(0, False, shape[1:]), (0, True, shape[:2])]
        if self.layout == "nhwc":
            candidates.reverse()
        for exact in (True, False):
            for missing, channels_last, sides in candidates:
                rows, columns = sides
                factors = height // max(rows, 1), width // max(columns, 1)
                if (rows * factors[0], columns * factors[1]) != (height, width) or factors[0] != factors[1]:
                    continue
                if factors[0] > _LARGEST_FACTOR:  # not an image, but a class for all of it
                    continue
                if not exact or factors == (1, 1):
                    return _Arrangement(
                        missing, channels_last, factors, len(shape) - 1 if channels_last else len(shape) - 3
                    )
        raise ArtifactError(
            f"{self.path} returns {shape} for images {(batch, self.channels, height, width)}: no logits (N, K, H, W) "
            "of their size or a whole part of it",
            hint="segx compares masks pixel by pixel: resize the logits to the image's size in the model",
        )


def _arranged(got: npt.NDArray[Any], where: _Arrangement) -> npt.NDArray[Any]:
    """Return outputs as (N, K, H, W)."""
    if where.missing is not None:
        got = np.expand_dims(got, where.missing)
    return np.moveaxis(got, -1, 1) if where.channels_last else got


def _probes(spec: ModelSpec) -> FloatArray:
    """Return generated scenes, noise, a black and a white image, preprocessed, (N, C, H, W) float32."""
    size = (spec.height, spec.width, spec.in_channels)
    noise = np.random.default_rng(_SEED).integers(0, 256, size, dtype=np.uint8)
    others = (noise, np.zeros_like(noise), np.full_like(noise, 255))
    plain = dataclasses.replace(spec, white_level=None)
    return np.concatenate(
        [sample_images(spec, _SCENES, seed=_SEED), np.stack([preprocess(each, plain) for each in others])]
    )
