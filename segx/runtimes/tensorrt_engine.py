"""TensorRT engines as files; what each is for and tied to stands beside it. Foreign and stale ones are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segx.errors import ArtifactError, ExportError
from segx.model.spec import ModelSpec
from segx.runtimes.base import Precision
from segx.runtimes.cuda import cuda
from segx.runtimes.tensorrt_api import BuildRequest, Engine, Tensor, build
from segx.system import machine
from segx.system.files import sha256_of, write_bytes, write_text

logger = logging.getLogger(__name__)

# 1: first version.
SCHEMA_VERSION = 1

# For engines and timings that are made on the way; all of it can be deleted and is made again.
CACHE_FOLDER = Path("artifacts") / "tensorrt-cache"

# TensorRT's names of the types that a network of each precision must put out, and must not.
_NARROW = frozenset({"HALF", "BF16", "INT8", "FP8", "INT4", "FP4"})
_TELLING: Mapping[Precision, str] = {"fp16": "HALF", "bf16": "BF16", "int8": "INT8"}

_FLOAT = "FLOAT"

_DIGITS = 16
_AGAIN = "build it again with `segx export --format tensorrt`"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What an engine is tied to.

    Attributes:
        tensorrt: version.
        gpu: name, as the driver has it.
        compute_capability: of the GPU's architecture.
        system: operating system and architecture.
        cuda_runtime: version of the CUDA runtime library; for the record.
        cuda_driver: highest version of CUDA that the driver runs; for the record.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    system: str
    cuda_runtime: str
    cuda_driver: str

    def differences(self, other: Environment) -> list[str]:
        """What keeps an engine of ``self`` from running in ``other``, in words with both values."""
        words = {
            "tensorrt": "TensorRT",
            "gpu": "GPU",
            "compute_capability": "compute capability",
            "system": "system",
        }
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in words}
        return [f"{words[name]} {ours}, here {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]

    def key(self) -> str:
        """Equal for environments that can share engines."""
        return _digest({"tensorrt": self.tensorrt, "gpu": self.gpu, "cc": self.compute_capability, "os": self.system})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything but the environment that decides what an engine holds.

    Attributes:
        onnx_sha256: digest of the model.
        precision: what it computes in; the model's own types but for TF32.
        input_shape: (C, H, W) of one image.
        output_shape: (K, H, W) of one image's logits.
        batch_sizes: one optimisation profile each.
        workspace_bytes: limit of the builder; None for none.
    """

    onnx_sha256: str
    precision: Precision
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    batch_sizes: tuple[int, ...]
    workspace_bytes: int | None = None

    @classmethod
    def of(
        cls, onnx: Path, spec: ModelSpec, precision: Precision, batch_sizes: tuple[int, ...], workspace: int | None
    ) -> Recipe:
        """The recipe for a model's file.

        Raises:
            ArtifactError: there is no such file.
        """
        if not onnx.is_file():
            raise ArtifactError(f"no ONNX file at {onnx}", hint="make it with `segx export`")
        return cls(
            onnx_sha256=sha256_of(onnx),
            precision=precision,
            input_shape=spec.input_shape,
            output_shape=spec.output_shape,
            batch_sizes=batch_sizes,
            workspace_bytes=workspace,
        )

    def key(self) -> str:
        """Equal for equal recipes."""
        return _digest(asdict(self))


@dataclass(frozen=True, kw_only=True)
class EngineManifest:
    """What is written to ``NAME.engine.json``.

    Attributes:
        recipe: see ``Recipe``.
        environment: where it was built, and the only place where it runs.
        engine_sha256: digest of the file this stands beside.
        layer_types: TensorRT's name of a type -> layers of the network that put it out.
        tf32: whether the builder was allowed TF32, read back from it.
        created: ISO 8601 in UTC.
    """

    recipe: Recipe
    environment: Environment
    engine_sha256: str
    layer_types: Mapping[str, int]
    tf32: bool
    created: str

    def to_json(self) -> str:
        """Text for the file."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> EngineManifest:
        """Inverse of ``to_json``.

        Raises:
            ValueError, KeyError, TypeError: it is not one, or of another version.
        """
        values = dict(json.loads(text))
        if (found := values.pop("schema_version")) != SCHEMA_VERSION:
            raise ValueError(f"schema version {found}, not {SCHEMA_VERSION}")
        recipe = values.pop("recipe")
        tuples = {name: tuple(recipe[name]) for name in ("input_shape", "output_shape", "batch_sizes")}
        environment = Environment(**values.pop("environment"))
        return cls(recipe=Recipe(**{**recipe, **tuples}), environment=environment, **values)


def manifest_path(engine: Path) -> Path:
    """Where the manifest of an engine stands."""
    return engine.with_name(f"{engine.name}.json")


def environment_here(device_index: int, tensorrt: str) -> Environment:
    """What engines that are built now on this GPU are tied to.

    Args:
        device_index: which CUDA device.
        tensorrt: version of TensorRT.

    Raises:
        RuntimeUnavailable: CUDA cannot be used.
    """
    device = cuda().device(device_index)
    return Environment(
        tensorrt=tensorrt,
        gpu=device.name,
        compute_capability=device.compute_capability,
        system=f"{platform.system()} {platform.machine()}",
        cuda_runtime=cuda().runtime_version(),
        cuda_driver=cuda().driver_version(),
    )


def cache_name(onnx: Path, recipe: Recipe, here: Environment, builder: str = "") -> str:
    """Name without suffix for an engine that is kept: equal names mean that one can stand for the other.

    Args:
        onnx: the model; its name is for people.
        recipe: see ``Recipe``.
        here: see ``environment_here``.
        builder: name and version of who calls TensorRT, if it is not segx.
    """
    sizes = "-".join(map(str, recipe.batch_sizes))
    return f"{onnx.stem}-{recipe.precision}-b{sizes}-{_digest([recipe.key(), here.key(), builder])}"


def cached_timings(folder: Path, here: Environment) -> Path:
    """Where the measurements of builds in an environment are kept."""
    return folder / f"timings-{here.key()}.cache"


def build_engine(
    onnx: Path, recipe: Recipe, here: Environment, *, output: Path, timings: Path, threads: int
) -> EngineManifest:
    """Build an engine and write it with its manifest, each whole or not at all; takes minutes.

    Args:
        onnx: the model.
        recipe: see ``Recipe.of``.
        here: see ``environment_here``.
        output: where to write the engine.
        timings: file of earlier builds' measurements; read if it is there, and brought up to date.
        threads: processors that the builder may use.

    Raises:
        RuntimeUnavailable: TensorRT cannot be used.
        ExportError: TensorRT cannot read or build the model, or the model is not of the recipe's precision.
        ArtifactError: the model does not give float32 logits.
        OutOfMemory: memory ran out.
        OutputError: a file cannot be written.
    """
    request = BuildRequest(
        onnx=onnx,
        input_shape=recipe.input_shape,
        batch_sizes=recipe.batch_sizes,
        tf32=recipe.precision == "tf32",
        workspace_bytes=recipe.workspace_bytes,
        timing_cache=_read_if_there(timings),
        threads=threads,
    )
    logger.info("building a TensorRT engine for batch sizes %s: this takes minutes", recipe.batch_sizes)

    def check(layer_types: Mapping[str, int]) -> None:
        if problem := precision_problem(recipe.precision, layer_types):
            raise ExportError(f"{onnx}: {problem}", hint=f"export the model in {recipe.precision}")

    built = build(request, check=check)
    input_and_output(Engine(built.plan, threads=threads), recipe)  # what cannot be loaded is not worth keeping
    manifest = EngineManifest(
        recipe=recipe,
        environment=here,
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        layer_types=built.layer_types,
        tf32=built.tf32,
        created=machine.now(),
    )
    write_bytes(output, built.plan)
    write_text(manifest_path(output), manifest.to_json())
    write_bytes(timings, built.timing_cache)
    return manifest


def fresh_engine(engine: Path, recipe: Recipe, here: Environment) -> EngineManifest | None:
    """The manifest, if the engine is there, is unchanged, and was built here by this recipe; else None."""
    try:
        manifest = EngineManifest.from_json(manifest_path(engine).read_text(encoding="utf-8"))
        unchanged = manifest.engine_sha256 == sha256_of(engine)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or not ours: the engine is built again
    return manifest if unchanged and manifest.recipe == recipe and not manifest.environment.differences(here) else None


def read_manifest(engine: Path) -> EngineManifest:
    """What an engine's manifest says.

    Raises:
        ArtifactError: the engine is missing, or has no manifest of ours.
    """
    if not engine.is_file():
        raise ArtifactError(f"no engine at {engine}", hint=_AGAIN)
    try:
        return EngineManifest.from_json(manifest_path(engine).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{engine} has no manifest that can be read: {error!r}", hint=_AGAIN) from error


def read_engine(engine: Path, here: Environment) -> tuple[bytes, EngineManifest]:
    """Read an engine that is to run here.

    Raises:
        ArtifactError: as ``read_manifest``; or it was changed, or built for another GPU or version.
    """
    manifest = read_manifest(engine)
    if different := manifest.environment.differences(here):
        raise ArtifactError(f"{engine} was built elsewhere: {'; '.join(different)}", hint=_AGAIN)
    plan = engine.read_bytes()
    if (digest := hashlib.sha256(plan).hexdigest()) != manifest.engine_sha256:
        raise ArtifactError(
            f"{engine} was changed: its SHA-256 is {digest[:12]}…, and {manifest.engine_sha256[:12]}… in its manifest",
            hint=_AGAIN,
        )
    return plan, manifest


def check_fit(engine: Path, manifest: EngineManifest, spec: ModelSpec, precision: Precision) -> None:
    """Whether an engine is what is asked for.

    Raises:
        ArtifactError: it computes in another precision, or on images of another shape.
    """
    recipe = manifest.recipe
    asked = {"precision": precision, "input": spec.input_shape, "output": spec.output_shape}
    holds = {"precision": recipe.precision, "input": recipe.input_shape, "output": recipe.output_shape}
    if wrong := [f"{name} {holds[name]}, asked for {asked[name]}" for name in asked if asked[name] != holds[name]]:
        raise ArtifactError(f"{engine} does not fit: {'; '.join(wrong)}", hint="give the engine of this model")


def input_and_output(engine: Engine, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Input and output of an engine.

    Raises:
        ArtifactError: they are not one each, float32, and of the recipe's shapes.
    """
    tensors = engine.tensors()
    images = [tensor for tensor in tensors if tensor.is_input]
    logits = [tensor for tensor in tensors if not tensor.is_input]
    found = [(tensor.dtype, tensor.shape[1:]) for tensor in (*images, *logits)]
    if len(images) != 1 or found != [(_FLOAT, recipe.input_shape), (_FLOAT, recipe.output_shape)]:
        raise ArtifactError(
            f"the engine's input and output are {found}, not float32 {recipe.input_shape} and {recipe.output_shape}",
            hint="export the model with --output-kind logits and float32 input and output",
        )
    return images[0], logits[0]


def precision_problem(precision: Precision, layer_types: Mapping[str, int]) -> str | None:
    """Why a network of these types does not compute in this precision, or None if it does.

    A strongly typed network computes in its own types and TensorRT says nothing when they are wider than asked for.
    """
    told = ", ".join(f"{count} layers in {name}" for name, count in sorted(layer_types.items()))
    narrow = sorted(_NARROW.intersection(layer_types))
    if precision in _TELLING:
        return None if _TELLING[precision] in narrow else f"asked for {precision}, and nothing in it is: {told}"
    return f"asked for {precision}, and it is not: {told}" if narrow else None


def with_batch_size(recipe: Recipe, batch_size: int) -> Recipe:
    """The same recipe for one batch size."""
    return dataclasses.replace(recipe, batch_sizes=(batch_size,))


def _read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # absent, or not for us: the build measures anew


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_DIGITS]
