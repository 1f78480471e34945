"""What runs the model, and what is written for each image: the options that `segx predict` and its API take."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from segx.errors import UsageError
from segx.runtimes import Device, Precision, Variant, resolve_name, runtime_info

if TYPE_CHECKING:
    from segx.model.spec import ModelSpec
    from segx.results.types import Required

AUTO = "auto"


@dataclass(frozen=True)
class RuntimeRequest:
    """What is to run the model.

    Attributes:
        runtime: a name as on the command line (``openvino``, ``ort``, ``openvino-cpu:int8``), which becomes the full
            one, or ``auto`` for the fastest that passed its gate in a benchmark of these weights on this machine, or
            that a short probe finds.
        precision: None for fp32 with a named runtime, and for the fastest with ``auto``.
        batch_size: images per call; None for the fastest measured, else 1 on a CPU and the fastest of a short probe on
            a GPU.
        require: with ``auto``, choose among variants whose masks a benchmark found ``identical`` to the reference's,
            different by its ``noise`` only, or along ``edges`` only.
        bench: folder of the only benchmark that counts; None for those in ``artifacts`` and those that were started in
            this working directory.
        device: of a runtime that is named without one, and of those that ``auto`` chooses from; by default a named
            runtime runs on the CPU.
        threads: of the runtime; None for all usable cores.

    Raises:
        UsageError: a value is not allowed.
    """

    runtime: str = AUTO
    precision: Precision | None = None
    batch_size: int | None = None
    require: Required | None = None
    bench: Path | str | None = None
    device: Device | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        kinds: dict[str, Any] = {"precision": Precision, "device": Device}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value not in (None, *get_args(kind)):
                raise UsageError(f"{name} {value!r} is not known", hint=f"give {', '.join(get_args(kind))}")
        for name, value in (("batch size", self.batch_size), ("threads", self.threads)):
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise UsageError(f"{name} {value!r} is too small or not whole", hint="give an integer of at least 1")
        if self.runtime == AUTO:
            return
        hint = f"give one, or {AUTO} for the fastest"
        full, _, own = resolve_name(self.runtime, self.device, hint=hint).partition(":")
        if runtime_info(full).in_browser:
            hint = "use onnxruntime-cpu, or `segx demo` for masks in a browser"
            raise UsageError(f"{full} only measures what a web page would get", hint=hint)
        if own and self.precision not in (None, own):
            raise UsageError(f"{self.runtime} is not {self.precision}", hint="leave --precision out")
        object.__setattr__(self, "runtime", full)
        object.__setattr__(self, "precision", cast("Precision", own) if own else self.precision)

    @classmethod
    def of(cls, runtime: RuntimeRequest | str) -> RuntimeRequest:
        """Return the request for a runtime that may be given by its name.

        Raises:
            UsageError: a value is not allowed, or one that only applies to ``auto`` is given with a name.
        """
        request = runtime if isinstance(runtime, cls) else cls(str(runtime))
        if request.require and request.runtime != AUTO:
            raise UsageError(
                f"--require chooses among runtimes, but {request.runtime} is given", hint="leave one of the two out"
            )
        return request

    @property
    def variant(self) -> Variant:
        """The variant of a named runtime.

        Raises:
            UsageError: there is no such runtime, or it does not support the precision.
        """
        info = runtime_info(self.runtime)
        if self.precision not in (None, *info.precisions):
            supported = f"it supports {', '.join(info.precisions)}"
            raise UsageError(f"{info.name} does not support {self.precision}", hint=supported)
        return Variant(info.name, self.precision or "fp32")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What to write for each image, and how to treat what is already there and what fails.

    Attributes:
        size: size of the masks: ``"original"`` for that of each image, or (width, height) in pixels.
        probabilities: write ``NAME.probabilities.npy`` too.
        overlay: write ``NAME.overlay.jpg``, the image with the mask's outline, too.
        palette: write masks as PNG with a colour for each value, which image viewers show; the values are unchanged.
        class_names: a name for each value of a mask, background first; written to ``classes.json``. For a multilabel
            model, a name for each channel, given to its folder of masks instead of its number.
        resume: continue the run that the output folder holds.
        ignore_orientation: segment the pixels as stored, without applying EXIF or TIFF orientation.
        scaled_decoding: decode JPEG images at 1/2, 1/4 or 1/8 of their size while that is at least twice the model's;
            faster for large ones, but edges of masks may move by a pixel of the model's. Not with ``overlay``.
        fsync: wait for each file to be on the disk before its image counts as done, so that a power failure loses none.
        on_error: skip an image that cannot be segmented, or stop at the first one.

    Raises:
        UsageError: a value is not allowed.
    """

    size: Literal["original"] | tuple[int, int] = "original"
    probabilities: bool = False
    overlay: bool = False
    palette: bool = False
    class_names: tuple[str, ...] = ()
    resume: bool = False
    ignore_orientation: bool = False
    scaled_decoding: bool = False
    fsync: bool = True
    on_error: Literal["skip", "stop"] = "skip"

    def __post_init__(self) -> None:
        if self.size != "original":
            if [isinstance(side, Integral) and side > 0 for side in self.size] != [True, True]:
                size = "x".join(map(str, self.size))
                raise UsageError(f"size {size} is not a width and height", hint="give pixels, as in 640x480")
            object.__setattr__(self, "size", tuple(map(int, self.size)))
        if self.scaled_decoding and self.overlay:
            raise UsageError(
                "an overlay shows the image at its full size", hint="leave out --scaled-decoding or --overlay"
            )
        if self.on_error not in ("skip", "stop"):
            raise UsageError(f"on_error is {self.on_error!r}", hint="give skip or stop")

    def check_model(self, spec: ModelSpec) -> None:
        """Raise UsageError if the images of a model must not be treated as these options say."""
        if self.scaled_decoding and spec.resize == "linear":
            raise UsageError(
                "--scaled-decoding averages pixels, and this model takes images that are resized without averaging "
                "(--resize linear)",
                hint="leave out --scaled-decoding",
            )
