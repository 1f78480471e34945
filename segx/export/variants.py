"""Files derived from an exported one for a precision or an engine, and which of them a variant runs."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import logging
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segx.errors import ArtifactError, ImageError, RuntimeUnavailable, UsageError
from segx.export.artifact import (
    ARTIFACTS,
    Artifact,
    OutputKind,
    content_key,
    other_pixels,
    read_artifact,
    versions_of,
    why_no_export,
)
from segx.export.import_onnx import ImportedModel, import_model, overrides_of
from segx.export.int8 import TOOLS, Engine, Stage, calibration_images, needs_narrow_weights, quantize_onnx
from segx.export.onnx import Exported, default_output, existing_export, export_onnx
from segx.export.site import Site, check_site, write_site
from segx.export.tensorrt import ExportedEngine, export_tensorrt
from segx.export.verify import compare_files, comparison_images
from segx.masks.agreement import LIMITS
from segx.masks.folders import images_of
from segx.masks.image_io import read_inputs
from segx.masks.preprocess import FIRST_IMAGES, doubt_of_pixels
from segx.model.checkpoint import checkpoint_digest, described, model_spec
from segx.model.spec import READING, ModelSpec
from segx.results.types import DerivedFile, ModelFacts, Parity, Work
from segx.runtimes import Precision, Runtime, RuntimeOptions, Variant, registry, runtime_info
from segx.system import machine
from segx.system.derived import cached, read_manifest
from segx.system.files import remove_abandoned, sha256_of, write_bytes
from segx.system.processes import WorkerHung, Workers
from segx.system.progress import SILENT, Progress, Told

logger = logging.getLogger(__name__)

Form = Literal["checkpoint", "onnx", "openvino", "fp16", "int8-onnxruntime", "int8-openvino", "int8-tensorrt"]

# Forms in 8 bits -> the engine they are made for.
_QUANTIZED: Mapping[Form, Engine] = {
    "int8-onnxruntime": "onnxruntime",
    "int8-openvino": "openvino",
    "int8-tensorrt": "tensorrt",
}
_ENGINE_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
# What in the recipe decides the name of the file.
_NAMED_BY = ("source_sha256", "images_sha256", "min_iou_worst", "min_iou_mean")
_PROOF: Any = tuple[Stage, ...] | None  # in the manifest of a derived file: the attempts to quantise it
_TIMEOUT_S = 1800.0
_BUILD_TIMEOUT_S = 6 * 3600.0  # TensorRT times kernels for each batch size, and says nothing meanwhile


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A file derived from an exported one; ``rebuilt`` is False if an up-to-date one existed.

    ``calibration`` is where the images come from that an int8 file was calibrated on, None for generated scenes.
    """

    path: Path
    source: Path
    form: Form
    stages: tuple[Stage, ...] = ()  # attempts to quantise; the last one is the file
    parity: Parity | None = None  # with the source, if the two were compared
    rebuilt: bool = False
    calibration: Path | None = None


def form_of(variant: Variant) -> Form:
    """Return the form that a variant runs; its runtime must compute in its precision."""
    info = runtime_info(variant.runtime)
    if info.takes == "checkpoint":
        return "checkpoint"
    if variant.precision == "int8":
        return next(form for form, engine in _QUANTIZED.items() if engine == (info.engine or "onnxruntime"))
    if info.engine == "openvino":  # computes the fp32 file in other precisions
        return "openvino"
    return "fp16" if variant.precision == "fp16" else "onnx"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """One trained model in every form that runtimes take."""

    spec: ModelSpec
    weights_sha256: str  # of the checkpoint that all files come from
    checkpoint: Path | None = None  # None if only an exported file was given
    onnx: Path | None = None  # None if it was not given and not made yet
    derived: Mapping[Form, Derived] = field(default_factory=dict)
    batch_size: int | None = None  # the only one that the exported file takes; None if it takes any
    work: Work | None = None  # None if it was not counted
    arguments: tuple[str, ...] = ()  # see ModelFacts
    other_pixels: tuple[str, ...] = ()  # see ModelFacts

    def file_for(self, variant: Variant) -> Path:
        """Return the file that a variant runs, once ``with_form`` provided it.

        Raises:
            RuntimeUnavailable: the variant runs a checkpoint, and only an exported file was given.
        """
        form = form_of(variant)
        if form == "checkpoint" and self.checkpoint is None:
            raise RuntimeUnavailable(
                f"{variant.runtime} runs a checkpoint, and only an exported file was given",
                hint="pass the checkpoint with --weights",
            )
        return {"checkpoint": self.checkpoint, "onnx": self.onnx}.get(form) or self.derived[form].path

    def facts(self) -> ModelFacts:
        """Describe the model for the results."""
        return ModelFacts(
            spec=self.spec,
            weights_sha256=self.weights_sha256,
            checkpoint=str(self.checkpoint.absolute()) if self.checkpoint else None,
            onnx=str(self.onnx.absolute()) if self.onnx else None,
            onnx_sha256=sha256_of(self.onnx) if self.onnx else None,
            derived={form: _derived_file(made) for form, made in self.derived.items()},
            work=self.work,
            arguments=self.arguments,
            other_pixels=self.other_pixels,
        )


def _derived_file(made: Derived) -> DerivedFile:
    file = DerivedFile(path=str(made.path.absolute()), sha256=sha256_of(made.path))
    if not made.stages:
        return file
    last = made.stages[-1]
    return dataclasses.replace(
        file,
        float_layers=last.float_layers,
        calibration_images=last.calibration_images,
        held_out_images=last.held_out_images,
        has_margin=last.has_margin,
    )


def resolve_model(
    checkpoint: Path | None, onnx: Path | None, spec: ModelSpec | None, *, progress: Progress = SILENT
) -> ModelFiles:
    """Check that the files given belong together and describe the model they hold. Exports nothing.

    An ONNX file that segx did not export is imported, as the spec says, and a warning tells what was done to it.

    Raises:
        UsageError: neither file was given, or the spec contradicts a file that segx did not export.
        CheckpointError: the checkpoint is missing or broken.
        ArtifactError: the ONNX file is missing, cannot be imported, is not in fp32, does not return logits, or has
            other weights or another spec.
    """
    digest = checkpoint_digest(checkpoint) if checkpoint else None
    if onnx:
        artifact, spec = _imported(onnx, spec, progress)
        _check_fit(artifact, digest, spec)
        return ModelFiles(
            spec=spec,
            weights_sha256=artifact.weights_sha256,
            checkpoint=checkpoint,
            onnx=artifact.path,
            batch_size=artifact.batch_size,
            arguments=("--model", str(artifact.path.absolute()), *spec.options(artifact.spec)),
            other_pixels=_warned_of_other_pixels(artifact.weights_sha256, spec),
        )
    if checkpoint is None or digest is None:
        raise UsageError("no model given", hint="give a checkpoint or an exported model")
    spec = spec or model_spec(checkpoint)
    options = spec.options(described(checkpoint, spec.checkpoint_key).spec)
    if not (spec.mean or spec.std) and described(checkpoint, spec.checkpoint_key).normalisation:
        options += () if "--normalize" in options else ("--normalize", "none")
    return ModelFiles(
        spec=spec,
        weights_sha256=digest,
        checkpoint=checkpoint,
        arguments=("--weights", str(checkpoint.absolute()), *options),
        other_pixels=_warned_of_other_pixels(digest, spec),
    )


def _imported(path: Path, spec: ModelSpec | None, progress: Progress = SILENT) -> tuple[Artifact, ModelSpec]:
    """Return the exported file, made of one that segx did not export as a spec says, and the spec to run it with."""
    made = import_model(path, overrides_of(spec) if spec else None, progress=progress)
    return made.artifact, made.artifact.spec if spec is None or made.is_foreign else spec


def _warned_of_other_pixels(weights_sha256: str, spec: ModelSpec) -> tuple[str, ...]:
    others = other_pixels(weights_sha256, spec)
    if others:
        logger.warning(
            "these weights were exported before for images in %s; now %s: is one of them wrong?",
            "; ".join(others),
            spec.pixels,
        )
    return others


def _check_fit(artifact: Artifact, weights_sha256: str | None, spec: ModelSpec | None) -> None:
    artifact.require_logits().require_fp32()
    if weights_sha256 and artifact.weights_sha256 != weights_sha256:
        raise ArtifactError(
            f"{artifact.path} was exported from other weights ({artifact.checkpoint}, "
            f"{artifact.weights_sha256[:12]}…) than the checkpoint's ({weights_sha256[:12]}…)",
            hint="export these weights, or leave --model out",
        )
    if spec and not artifact.takes(spec):
        raise ArtifactError(
            f"{artifact.path} was exported as {artifact.spec}, without {shlex.join(spec.options(artifact.spec))}",
            hint="leave the model options out, or export again with them"
            if artifact.size_multiple is None
            else f"leave them out, or give an --input-size in multiples of {artifact.size_multiple}",
        )


def spec_of(model: Path) -> ModelSpec:
    """Return the spec that a checkpoint or an ONNX file has by itself; see ``model_spec`` and ``import_model``."""
    return import_model(model).artifact.spec if model.suffix.lower() == ".onnx" else model_spec(model)


def open_runtime(
    model: Path | str,
    runtime: str | None = None,
    *,
    spec: ModelSpec | None = None,
    options: RuntimeOptions | None = None,
) -> Runtime:
    """Load a model file into a runtime and run one inference with it.

    An ONNX file that segx did not export is imported first, in a worker process: a script must guard its main part with
    ``if __name__ == "__main__":``, as ``multiprocessing`` requires.

    Args:
        model: a checkpoint or an ONNX file.
        runtime: its name; None for ``pytorch-cpu`` with a checkpoint and ``onnxruntime-cpu`` with an ONNX file.
        spec: the model's description; None for the file's own. A file that segx did not export is imported as it says.
        options: threads, precision and device; None for all usable cores and the precision of the file.

    Returns:
        A runtime, whose ``infer`` turns (N, C, H, W) float32 images, prepared as by ``read_inputs``, into (N, K, H, W)
        float32 logits.

    Raises:
        RuntimeUnavailable: a package, device or library is missing.
        UsageError: there is no such runtime, it does not support the precision, or it takes another kind of file.
        CheckpointError, ArtifactError: the file cannot be used.
        InferenceError: the inference failed.
    """
    path = Path(model)
    is_onnx = path.suffix.lower() == ".onnx"
    info = runtime_info(runtime or ("onnxruntime-cpu" if is_onnx else "pytorch-cpu"))
    if info.takes != ("onnx" if is_onnx else "checkpoint"):
        raise UsageError(f"{info.name} takes no {path.suffix or 'folder'}: {path}", hint="choose another runtime")
    precision: Any = "fp32"
    if is_onnx:
        artifact, spec = _imported(path, spec)
        path, precision = artifact.require_logits().path, artifact.precision
    options = options or RuntimeOptions(threads=machine.usable_cores(), precision=precision)
    return registry.open_runtime(info.name, path, spec=spec or model_spec(path), options=options)


def with_form(
    workers: Workers,
    files: ModelFiles,
    form: Form,
    *,
    threads: int,
    calibration: str | None = None,
    min_iou: float | None = None,
    any_int8: bool = False,
    within_s: float | None = None,
    progress: Progress = SILENT,
) -> ModelFiles:
    """Provide one form of a model, made in a worker process unless an up-to-date file exists.

    The calling process imports neither torch nor onnx. A checkpoint is returned as it is; every other form first needs
    the exported file, which is made from the checkpoint. ``calibration`` and ``min_iou`` are those of ``derive``;
    ``any_int8`` accepts an existing int8 file whatever images and limits it was made with. A derived form that takes
    longer to make than ``within_s`` is given up.

    Returns:
        ``files`` with the form, and with the exported file if that was needed.

    Raises:
        CheckpointError, ArtifactError, ExportError, RuntimeUnavailable, ImageError, OutputError: it cannot be made.
    """
    if form == "checkpoint":
        return files
    if files.onnx is None:
        assert files.checkpoint  # a model has at least one of the two
        path = existing_export(files.checkpoint, files.weights_sha256, files.spec)
        if path is None:
            progress.say(f"exporting {files.checkpoint.name}")
            path = default_output(files.checkpoint, files.weights_sha256, files.spec)
            arguments = {"checkpoint": files.checkpoint, "spec": files.spec, "output": path, "threads": threads}
            _make(workers, export_onnx, arguments, torch=True, progress=progress)
        files = dataclasses.replace(files, onnx=path)
    source = files.onnx
    if form == "onnx" or source is None:
        return files
    made = existing_form(source, form) if any_int8 or form not in _QUANTIZED else None
    if made is None:
        precision, _, engine = form.rpartition("-")
        told = f"{precision or 'fp32'} for {_ENGINE_NAMES[engine]}" if engine in _ENGINE_NAMES else form
        progress.say(f"preparing {told}{', which takes minutes, once' if form in _QUANTIZED else ''}")
        arguments = {
            "source": source,
            "form": form,
            "calibration": None if calibration is None else Path(calibration),
            "min_iou": min_iou,
            "threads": threads,
        }
        late = RuntimeUnavailable(
            f"preparing {told} takes longer than {within_s or 0:g} s", hint="request it with --precision int8"
        )
        deadline = None if within_s is None else time.monotonic() + within_s

        def say(text: str) -> None:
            if deadline is not None and time.monotonic() > deadline:
                raise late
            progress.say(f"{told}: {text}")

        try:
            made = _make(workers, derive, arguments, progress=Told(say), timeout_s=within_s or _TIMEOUT_S)
        except WorkerHung as error:
            raise (late if within_s else error) from None
    return dataclasses.replace(files, derived={**files.derived, form: made})


def derive(
    source: Path,
    form: Form,
    *,
    output: Path | None = None,
    calibration: Path | None = None,
    min_iou: float | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Derived:
    """Return one form of an exported file, made unless it is up to date; ``onnx`` is the source itself.

    An up-to-date file was made from the same source, images, limits and tool versions. The default output is
    that of ``derived_path``. A file in 8 bits is calibrated and judged on the images of the folder ``calibration``,
    or on generated scenes; ``min_iou``, 0 to 1, holds for every judged image and for their mean, None for
    ``LIMITS["int8"]``.

    Raises:
        ArtifactError, ExportError, RuntimeUnavailable: it cannot be made.
        ImageError, UsageError: the calibration images cannot be used.
        OutputError: the file cannot be written, or segx did not write the file in its place.
    """
    if form == "onnx":
        return Derived(path=source, source=source, form=form)
    recipe = _recipe(source, form)
    if form in _QUANTIZED:
        spec, limits = read_artifact(source).spec, LIMITS["int8"]
        worst, mean = (limits.iou, limits.mean_iou) if min_iou is None else (float(min_iou), float(min_iou))
        progress.say("reading calibration images")
        images, held_out = calibration_images(spec, calibration)
        digest = hashlib.sha256(images.tobytes() + held_out.tobytes()).hexdigest()
        recipe |= {"images_sha256": digest, "min_iou_worst": worst, "min_iou_mean": mean}

    path = output or derived_path(source, form, recipe)

    def make(new: Path) -> tuple[Stage, ...] | None:
        if form in _QUANTIZED:
            return quantize_onnx(
                source,
                images,
                held_out,
                output=new,
                engine=_QUANTIZED[form],
                min_iou_worst=worst,
                min_iou_mean=mean,
                threads=threads,
                progress=progress,
            )
        _rewrite(source, form, new)
        return None

    manifest, rebuilt = cached(path, recipe, make, source=source, proof=_PROOF, why_foreign=why_no_export, force=force)
    stages = manifest.proof or ()
    return Derived(path=path, source=source, form=form, stages=stages, rebuilt=rebuilt, calibration=calibration)


def existing_form(source: Path, form: Form) -> Derived | None:
    """Return the file of a form at its default path if these tools made it of the source; imports no framework.

    For a form in 8 bits the newest, whatever images and limits it was made with.
    """
    recipe = _recipe(source, form)
    names = glob.escape(f"{source.stem}-{form}") + "-*.onnx"
    for path in sorted(ARTIFACTS.glob(names), key=lambda path: path.stat().st_mtime, reverse=True):
        manifest = read_manifest(path, _PROOF)
        if manifest and recipe.items() <= manifest.recipe.items():
            return Derived(path=path, source=source, form=form, stages=manifest.proof or ())
    return None


def write_calibration_list(images: Sequence[Path]) -> Path:
    """Write ``artifacts/calibration-KEY.txt`` with the absolute paths of images, and return its path.

    Raises:
        OutputError: it cannot be written.
    """
    paths = [str(image.absolute()) for image in images]
    path = ARTIFACTS / f"calibration-{content_key(*paths)}.txt"
    write_bytes(path, "".join(f"{line}\n" for line in paths).encode(errors="surrogateescape"))
    return path


def derived_path(source: Path, form: Form, recipe: Mapping[str, Any]) -> Path:
    """Return ``artifacts/NAME-FORM-KEY.onnx``, the default output of ``derive``.

    The key differs for other sources of that name, and for other images and limits of a form in 8 bits.
    """
    chosen = {name: recipe[name] for name in _NAMED_BY if name in recipe}
    return ARTIFACTS / f"{source.stem}-{form}-{content_key(json.dumps(chosen, sort_keys=True))}.onnx"


def _rewrite(source: Path, form: Form, path: Path) -> None:
    # Both modules import onnx_ir, which takes seconds.
    if form == "fp16":
        from segx.export.fp16 import convert_finite

        convert_finite(source, comparison_images(read_artifact(source).spec), path)
    else:
        from segx.export.rewrites import rewrite_for_openvino

        rewrite_for_openvino(source, path)


def _recipe(source: Path, form: Form) -> dict[str, Any]:
    """Return what decides the content of the file, for 8 bits except images and limits."""
    facts = (
        {"engine": _QUANTIZED[form], "narrow_weights": needs_narrow_weights()} if form in _QUANTIZED else {"form": form}
    )
    tools = TOOLS if form in _QUANTIZED else ("segx", "onnx")
    return {"source_sha256": sha256_of(source), **facts, "versions": versions_of(*tools)}


def export_file(
    checkpoint: Path | None,
    *,
    model: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    form: Form = "onnx",
    output: Path | None = None,
    output_kind: OutputKind = "logits",
    dynamic_size: bool = False,
    calibration: Path | None = None,
    min_iou: float | None = None,
    engine_batch_sizes: Sequence[int] = (),
    engine_precision: Precision = "fp32",
    workspace_bytes: int | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Exported | ImportedModel | Derived | ExportedEngine:
    """Export a checkpoint, or import an ONNX model, and make the file that was asked for from it.

    That is the exported or imported file itself, a form derived from it, or, with ``engine_batch_sizes``, a TensorRT
    engine of either. ``overrides`` gives fields of ``ModelSpec`` that the checkpoint or model lacks. Other arguments
    are those of ``export_onnx``, ``derive`` and ``export_tensorrt``; ``output`` is the path of the last file.

    Raises:
        UsageError: neither checkpoint nor model was given.
        SegxError: see the functions named above.
    """
    as_engine = bool(engine_batch_sizes)
    is_last = form == "onnx" and not as_engine
    # The graph of a file may never end, or take all memory; and Ctrl-C must not wait for a library.
    workers = Workers(threads=threads or machine.usable_cores())
    made: Exported | ImportedModel | Derived
    if model is not None:
        progress.say(f"reading {model}")
        made = import_model(model, overrides, output=output if is_last else None, force=force and is_last)
        if made.artifact.path == made.source:  # written by segx: it says itself what it takes
            _check_fit(made.artifact, None, ModelSpec.with_overrides(made.artifact.spec, overrides or {}))
        _warned_of_other_pixels(made.artifact.weights_sha256, made.artifact.spec)
    elif checkpoint is not None:
        spec = model_spec(checkpoint, overrides)
        _warned_of_other_pixels(checkpoint_digest(checkpoint), spec)
        arguments: dict[str, Any] = {
            "checkpoint": checkpoint,
            "spec": spec,
            "output": output if is_last else None,
            "output_kind": output_kind,
            "dynamic_size": dynamic_size,
            "force": force and is_last,
            "threads": threads,
        }
        progress.say(f"exporting {checkpoint.name}")
        exported: Exported = _make(workers, export_onnx, arguments, torch=True, progress=progress)
        made = exported
    else:
        raise UsageError("no model given", hint="give a checkpoint or an ONNX model")
    onnx, spec = made.artifact.path, made.artifact.spec
    if calibration and model is None and checkpoint:
        with contextlib.suppress(ImageError):  # told where int8 is made
            first = read_inputs(images_of(calibration)[:FIRST_IMAGES], spec)
            if doubt := doubt_of_pixels(first, spec, checkpoint):
                progress.warn(doubt)
    if form != "onnx":
        if form not in _QUANTIZED:
            progress.say(f"making the {form} file")
        arguments = {
            "source": onnx,
            "form": form,
            "output": None if as_engine else output,
            "calibration": calibration,
            "min_iou": min_iou,
            "threads": threads,
            "force": force,
        }
        derived: Derived = _make(workers, derive, arguments, progress=progress)
        if form not in _QUANTIZED:
            progress.say("comparing its masks with those of the exported file")
            files = {"source": onnx, "derived": derived.path}
            parity = workers.call(compare_files, files, torch=False, timeout_s=_TIMEOUT_S)
            derived = dataclasses.replace(derived, parity=parity)
        made = derived
        onnx = made.path
    if not as_engine:
        return made
    arguments = {
        "onnx": onnx,
        "spec": spec,
        "batch_sizes": engine_batch_sizes,
        "precision": engine_precision,
        "output": output,
        "workspace_bytes": workspace_bytes,
        "force": force,
        "threads": threads,
    }
    engine: ExportedEngine = _make(workers, export_tensorrt, arguments, progress=progress, timeout_s=_BUILD_TIMEOUT_S)
    return engine


def export_site(folder: Path, checkpoint: Path | None, **options: Any) -> Site:
    """Write a page that runs a model in the browser, with its int8 file if that is the form to make.

    ``options`` are those of ``export_file``.

    Raises:
        OutputError: the folder holds files that segx did not write, or cannot be written.
        SegxError: see ``export_file``.
    """
    check_site(folder)
    made = export_file(checkpoint, **options)
    assert not isinstance(made, ExportedEngine)
    models = {"fp32": made.source, "int8": made.path} if isinstance(made, Derived) else {"fp32": made.artifact.path}
    # A file that takes several sizes has its own in its spec.
    overrides = {name: value for name, value in (options.get("overrides") or {}).items() if name not in READING}
    return write_site(folder, models, ModelSpec.with_overrides(read_artifact(models["fp32"]).spec, overrides))


def _make(
    workers: Workers,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    torch: bool = False,
    progress: Progress,
    timeout_s: float = _TIMEOUT_S,
) -> Any:
    """Call a function that writes a file in a worker; what is left of it is removed if the worker is killed."""
    try:
        return workers.call(function, arguments, torch=torch, timeout_s=timeout_s, progress=progress)
    except BaseException:
        for place in ((arguments.get("output") or ARTIFACTS / "-").parent, Path(tempfile.gettempdir())):
            remove_abandoned(place)
        raise
