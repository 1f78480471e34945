"""Read weights, and what a checkpoint says of its model, without running anything in it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from segx.errors import CheckpointError, UsageError, first_line
from segx.model.mistakes import kind_of
from segx.model.pickled import (
    BROKEN,
    EXPORT_IT,
    SAVE_AGAIN,
    Object,
    Storage,
    StoredTensor,
    broken,
    entries,
    plain,
    read_pickle,
)
from segx.model.spec import METADATA_KEY, ModelSpec, range_of
from segx.system.files import sha256_of

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# In order of preference, where a file holds weights under several of them.
_KNOWN = ("state_dict", "model_state_dict", "model", "module", "_orig_mod")
_AVERAGE = re.compile(r"(?i:(^|[^a-z])(ema|swa|avg|averaged?|shadow|polyak)([^a-z]|$))|EMA")
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BEFORE_ENCODER = re.compile(r"((?:.*?\.)?)encoder\.")
# What may stand behind a model, or end it, without a change of its masks: the threshold applies to logits.
ENDS = ("Identity", "Sigmoid", "Softmax", "Softmax2d", "LogSoftmax", "Tanh", "ArgMax", "Clamp")
# Wrappers that compute nothing themselves, by what their names contain.
_ONLY_HOLDERS = re.compile(r"Parallel|AveragedModel|ModelEma|ModuleDict|ModuleList")
_PARTS = ("encoder.", "decoder.", "segmentation_head.", "classification_head.")
_DEEPEST = 6
_MOST_VISITS = 1_000_000
_MOST_CHANNELS = 256
_FEW = 3
# Batches of training after which the averages of a batch normalisation have settled, also with a momentum of 0.01.
_SETTLED = 500

# Where mean and std are those of images: what the words before them say, or the settings that hold them.
_OF_IMAGES = re.compile(r"image|img|pixel|rgb|channel|input|norm|prep|transform|dataset|(^|_)data", re.IGNORECASE)
_SETTINGS = re.compile(r"hyper_?param|hparam|config|cfg|args|param|option|setting", re.IGNORECASE)

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_CONFIG = "config.json"
_FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


@dataclass(frozen=True)
class _InSafetensors:
    """A tensor in a .safetensors file, which its library reads."""

    file: Path
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def read(self, framework: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework) as opened:
                return opened.get_tensor(self.name)
        except SafetensorError as error:
            raise ValueError(str(error)) from error


_Tensor = StoredTensor | _InSafetensors
_Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class _Weights:
    """One set of weights in a file.

    Attributes:
        keys: keys and prefixes that lead to it.
        tensors: by the names that follow.
        beside: other tensors of the same dictionary, by full name.
        module: the module that they are of, if the file holds it whole.
    """

    keys: tuple[str, ...]
    tensors: Mapping[str, _Tensor]
    beside: Mapping[str, _Tensor]
    module: Object | None = None

    @property
    def of_model(self) -> bool:
        return any(name.startswith(("decoder.", "segmentation_head.")) for name in self.tensors)

    @property
    def is_average(self) -> bool:
        return any(_AVERAGE.search(key) for key in self.keys)

    @property
    def rank(self) -> tuple[bool, list[int]]:
        """The lower, the more likely the weights that are meant."""
        return any(key not in _KNOWN for key in self.keys), [_KNOWN.index(key) for key in self.keys if key in _KNOWN]

    def label(self, all_sets: list[_Weights]) -> str:
        """Return what names this set and none of the others."""
        taken = {key for other in all_sets if other is not self for key in other.keys}
        own = sorted((key for key in self.keys if key not in taken), key=lambda key: key in _KNOWN)
        return own[0] if own and taken else ".".join(self.keys)


@dataclass(frozen=True)
class FirstLayer:
    """The first convolution of an encoder, and its results in training as batch normalisation averaged them.

    ``kernel`` is (K, C, height, width), the others (K,); all are float32.
    """

    kernel: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    mean: np.ndarray[Any, Any]
    variance: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of its model.

    Attributes:
        spec: stored in ``config.json`` of a ``save_pretrained`` folder, in the header of a ``.safetensors`` of segx, or
            in the attributes of a whole module of segmentation_models_pytorch; None otherwise, as in most state dicts.
        normalisation: mean and standard deviation of its training, if it stores them; see ``model_spec``.
        takes_bgr: it says that colours are in the order BGR.
        notes: what a user should know of the choice of weights.
        module: the model within a whole module, as saved.
        first_layer: of its encoder; None if no settled batch normalisation follows it.
    """

    spec: ModelSpec | None
    normalisation: _Normalisation | None
    takes_bgr: bool
    notes: tuple[str, ...]
    module: Object | None
    first_layer: FirstLayer | None


def read_state_dict(path: Path, key: str = "") -> dict[str, torch.Tensor]:
    """Read weights by name, without the keys and prefixes that training adds.

    What a user should know of the choice, such as that there are averaged weights too, is logged as information.

    Args:
        path: a ``.safetensors``, a file of ``torch.save`` with a state dict or a whole module, also within other keys
            and with prefixes; or a ``save_pretrained`` folder.
        key: which weights of a file that holds several, such as ``ema``; empty for the trained ones.

    Returns:
        Name -> tensor, on the CPU, in the stored dtype.

    Raises:
        CheckpointError: missing, empty, truncated, of an unknown format, a pickle that would run code, or without
            weights under the key.
    """
    with _opened(path, key, describe=False) as (tensors, description):
        for note in description.notes:
            logger.info("%s", note)
        try:
            return _loaded(tensors)
        except BROKEN as error:
            raise broken(weights_file(path), error) from error


def _loaded(tensors: Mapping[str, _Tensor]) -> dict[str, torch.Tensor]:
    import torch

    @functools.cache
    def flat(storage: Storage, dtype: str) -> torch.Tensor:
        data = storage.container.read(storage.key)
        kind: torch.dtype = getattr(torch, dtype)
        return torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)

    return {
        name: torch.as_strided(flat(tensor.storage, tensor.dtype), tensor.shape, tensor.stride, tensor.offset)
        if isinstance(tensor, StoredTensor)
        else tensor.read("pt")
        for name, tensor in tensors.items()
    }


def weights_file(path: Path) -> Path:
    """Return the file with the weights: ``path`` itself, or the one in a ``save_pretrained`` folder.

    Raises:
        CheckpointError: the file is missing or empty.
    """
    try:
        candidates = [path / name for name in _FOLDER_WEIGHTS] if path.is_dir() else [path]
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None and path.is_dir():
            raise CheckpointError(
                f"{path} holds neither {' nor '.join(_FOLDER_WEIGHTS)}", hint="pass a folder written by save_pretrained"
            )
        if file is None:
            hint = "pass the path of your trained weights with --weights"
            raise CheckpointError(f"no checkpoint at {path}", hint=hint)
        if file.stat().st_size == 0:
            raise CheckpointError(f"{file} is empty", hint="copy the checkpoint again")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", hint="check the folder's permissions") from error
    return file


def checkpoint_digest(path: Path) -> str:
    """Return the SHA-256 of the weights file, in hexadecimal.

    Raises:
        CheckpointError: the file is missing or unreadable.
    """
    file = weights_file(path)
    try:
        return sha256_of(file)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}", hint="check the file's permissions") from error


def refuse_changed(path: Path, sha256: str) -> None:
    """Raise CheckpointError if a checkpoint or an exported file is another one than a run began with."""
    if checkpoint_digest(path) != sha256:
        raise CheckpointError(
            f"{path} has changed since this run began", hint="run the command again, once nothing replaces the file"
        )


def model_spec(path: Path, overrides: Mapping[str, Any] | None = None) -> ModelSpec:
    """Return the spec of a checkpoint with the user's overrides, and the defaults for what neither says.

    Mean and standard deviation stored in a checkpoint are used unless the user gives others. What a user should know
    of the file, such as that it holds averaged weights too, is logged as a warning. Imports no torch.

    Raises:
        CheckpointError: see ``read_state_dict``.
        UsageError: invalid values.
    """
    given = dict(overrides or {})
    description = described(path, given.get("checkpoint_key", ""))
    spec, normalisation = description.spec, description.normalisation
    for note in description.notes:
        logger.warning("%s", note)
    own = ModelSpec.with_overrides(spec, given)
    if description.takes_bgr and "channel_order" not in given and own.in_channels == 3:
        given["channel_order"] = "bgr"
        own = dataclasses.replace(own, channel_order="bgr")
        logger.warning("%s: colours are in the order BGR, as it says; --channel-order rgb turns them round", path.name)
    if normalisation and not given.keys() & {"mean", "std", "normalize"}:
        channels = own.in_channels
        mean, std = (values * channels if len(values) == 1 else values for values in normalisation)
        told = f"mean {_text(mean)} and std {_text(std)}"
        unit = range_of(mean, std)
        if len(mean) != channels:
            logger.warning("%s: its %s are not used: the model has %d channels", path.name, told, channels)
        elif unit is None:
            logger.warning("%s: its %s are not used: they are not those of images", path.name, told)
        elif unit != own.input_range:
            logger.warning(
                "%s: its %s are not used: they look like those of images in %s; if they are, pass --input-range %s "
                "--mean %s --std %s", path.name, told, unit, unit, _text(mean), _text(std),
            )  # fmt: skip
        else:
            logger.warning("%s: images are normalised with its %s", path.name, told)
            return ModelSpec.with_overrides(spec, {**given, "mean": mean, "std": std})
    return own


def described(path: Path, key: str = "") -> Description:
    """Return what a checkpoint says of its model; it is opened again only if it has changed. Imports no torch.

    Raises:
        CheckpointError: see ``read_state_dict``.
    """
    file = weights_file(path)
    stamps = [(each, each.stat()) for each in (file, path / _CONFIG) if each.is_file()]
    return _described_once(path.absolute(), key, tuple((each, s.st_mtime_ns, s.st_size) for each, s in stamps))


@functools.lru_cache(maxsize=4)
def _described_once(path: Path, key: str, _stamps: tuple[Any, ...]) -> Description:
    with _opened(path, key) as (_, description):
        return description


@contextlib.contextmanager
def _opened(path: Path, key: str, *, describe: bool = True) -> Iterator[tuple[Mapping[str, _Tensor], Description]]:
    """Give the weights of ``path`` that are used, which can be read until the end of the block, and what it says."""
    file = weights_file(path)
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(file.open("rb"))
            content, spec = _content(stream, file)
        except OSError as error:
            raise broken(file, error.strerror) from error
        found = list(_weights_in(content))
        weights, notes = _choose(found, key, file, content)
        settings = content
        if path.is_dir() and describe:
            settings = _config_of_folder(path)
            spec = _spec_of_config(settings["_model_class"], settings, notes)
        path_to_model: list[Object] = []
        around = _Around()
        if spec is None and describe:
            same = [weights, *(other for other in found if other.tensors.keys() == weights.tensors.keys())]
            path_to_model = next((p for each in same if (p := _path_to_model(each))), [])
            around = _around(path_to_model, file)
            notes += around.notes
            spec = _spec_of_module(path_to_model, weights, around, notes)
        outside = {name: t for name, t in weights.tensors.items() if not name.startswith(_PARTS)}
        stored = [*_pairs({**weights.beside, **outside}), *_pairs_in_settings(settings)]
        dropped = {name for mean, std, *_ in stored for name in (mean, std)}
        takes_bgr = any(order == "BGR" for *_, order in stored)
        if left := [name for name in weights.beside if name not in dropped and name != "n_averaged"]:
            shown = ", ".join(left[:_FEW]) + ", …" * (len(left) > _FEW)
            notes.append(f"what is beside the model is left out: {shown}")
        if any(name.startswith("classification_head.") for name in weights.tensors):
            notes.append("its auxiliary classification head is left out")
        tensors = {
            name: tensor
            for name, tensor in weights.tensors.items()
            if not name.startswith("classification_head.") and not (name in outside and name in dropped)
        }
        normalisation = None
        if around.normalisation:
            normalisation = around.normalisation
        elif not (spec and spec.mean):
            normalisation = _only({(mean, std) for *_, mean, std, _ in stored}, notes)
        said = tuple(f"{path.name}: {note}" for note in notes)
        layer = _first_layer(tensors) if describe else None
        module = path_to_model[-1] if path_to_model else None
        yield tensors, Description(spec, normalisation, takes_bgr, said, module, layer)


def _content(stream: BinaryIO, file: Path) -> tuple[Any, ModelSpec | None]:
    """Return what a file holds, with tensors as ``_Tensor``, and the spec that segx wrote into it."""
    start = stream.read(512)
    is_zip = start.startswith(b"PK\x03\x04")
    if not is_zip and (kind := kind_of(start)):
        what, hint = kind
        raise CheckpointError(f"{file} is {what}, not a checkpoint", hint=hint)
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        raise CheckpointError(f"{file} is an ONNX model, not a checkpoint", hint=f"pass it with --model {file}")
    length = int.from_bytes(start[:8], "little")
    if suffix == ".safetensors" or (start[8:9] == b"{" and length < _MAX_HEADER_BYTES):
        return _safetensors(file)
    if is_zip or start.startswith(b"\x80") or suffix in _PICKLES:
        return read_pickle(stream, file), None
    raise CheckpointError(
        f"{file} is of an unknown kind", hint="pass a .safetensors, .pt or .pth file, or a save_pretrained folder"
    )


def _safetensors(file: Path) -> tuple[dict[str, _Tensor], ModelSpec | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            text, names = (opened.metadata() or {}).get(METADATA_KEY), opened.keys()
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise broken(file, error) from error
    tensors: dict[str, _Tensor] = {name: _InSafetensors(file, name, shape) for name, shape in shapes.items()}
    try:
        return tensors, ModelSpec.from_json(text) if text else None
    except UsageError as error:
        raise CheckpointError(f"{file}: {error.message}", hint=error.hint) from error


# Which weights of a file


def _weights_in(content: Any) -> Iterator[_Weights]:
    """Find the sets of weights in the content of a file, at any depth that people use."""
    for keys, value, inner in _containers(content):
        module = value if isinstance(value, Object) and "_modules" in inner else None
        tensors = (
            dict(tensors_of_module(module))
            if module
            else {str(name): each for name, each in inner.items() if isinstance(each, _Tensor)}
        )
        if tensors:
            yield from _by_prefix(tensors, keys, module)


def _containers(content: Any) -> Iterator[tuple[tuple[str, ...], Any, Mapping[Any, Any]]]:
    """Yield everything that holds values by name or place, with the keys that lead to it, but nothing in modules."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    visits = _Visits()
    while waiting:
        keys, value = waiting.pop()
        inner = dict(enumerate(value)) if isinstance(value, list | tuple) else entries(value)
        visits.count(value, len(inner))
        yield keys, value, inner
        if "_modules" not in inner and len(keys) < _DEEPEST:
            parts = (each for each in inner.items() if isinstance(each[1], Mapping | list | tuple | Object))
            waiting += reversed([((*keys, str(name)), each) for name, each in parts])


def tensors_of_module(module: Any) -> Iterator[tuple[str, _Tensor]]:
    """Yield what ``state_dict()`` of a module would hold; a module that holds itself, once."""
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", module, ())]
    visits = _Visits()
    while waiting:
        prefix, value, above = waiting.pop()
        above, inner = (*above, id(value)), entries(value)
        not_saved = inner.get("_non_persistent_buffers_set")
        hidden = not_saved.args[0] if isinstance(not_saved, Object) and not_saved.args else ()
        own = [part for kind in ("_parameters", "_buffers") for part in entries(inner.get(kind)).items()]
        visits.count(value, len(own))
        for name, each in own:
            if isinstance(each, _Tensor) and name not in hidden:
                yield f"{prefix}{name}", each
        parts = entries(inner.get("_modules")).items()
        waiting += reversed([(f"{prefix}{name}.", each, above) for name, each in parts if id(each) not in above])


class _Visits:
    """Count the parts that are visited again: parts that hold each other many times would take forever."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._again = 0

    def count(self, value: Any, parts: int) -> None:
        """Count a visit to something with a number of parts."""
        if id(value) in self._known:
            self._again += 1 + parts
        self._known.add(id(value))
        if self._again > _MOST_VISITS:
            raise CheckpointError(f"the checkpoint uses its parts more than {_MOST_VISITS:,} times", hint=SAVE_AGAIN)


def _by_prefix(tensors: dict[str, _Tensor], keys: tuple[str, ...], module: Object | None) -> Iterator[_Weights]:
    """Divide the tensors of one dictionary into models, by what stands before ``encoder.``.

    Lightning modules keep losses and normalisation outside ``model.``; they are not weights of the network.
    """
    found = [match[1] for name in tensors if (match := _BEFORE_ENCODER.match(name))]
    prefixes = sorted(dict.fromkeys(found), key=len, reverse=True)
    rest, models = dict(tensors), []
    for prefix in prefixes:
        own = {name: rest.pop(name) for name in list(rest) if name.startswith(prefix)}
        models.append((prefix, {_WRAPPERS.sub("", name.removeprefix(prefix)): each for name, each in own.items()}))
    for prefix, own in models or [("", tensors)]:
        yield _Weights((*keys, *prefix.split(".")[:-1]), own, rest if models else {}, module)


def _choose(found: list[_Weights], key: str, file: Path, content: Any) -> tuple[_Weights, list[str]]:
    """Return the weights to use, and what to say of the choice."""
    if not found and not isinstance(content, Mapping | Object):
        raise CheckpointError(
            f"{file} holds a {type(content).__name__.removeprefix('Stored')}, not weights by name", hint=SAVE_AGAIN
        )
    if not found:
        keys = ", ".join(str(each) for each in list(entries(content))[:3]) or "nothing"
        raise CheckpointError(f"{file} holds no weights, only {keys}", hint=SAVE_AGAIN)
    with_encoder = [each for each in found if any(name.startswith("encoder.") for name in each.tensors)]
    models = (
        [each for each in with_encoder if each.of_model] or with_encoder or [max(found, key=lambda w: len(w.tensors))]
    )
    pool = [each for each in models if not key or key in each.keys or f"{'.'.join(each.keys)}.".startswith(f"{key}.")]
    if not pool:
        known = ", ".join(dict.fromkeys(label for each in models if (label := each.label(models))))
        raise CheckpointError(
            f"{file} has no weights under {key!r}",
            hint=f"use one of {known}" if known else "leave --checkpoint-key out: it holds one set of weights",
        )
    ranked = sorted(pool, key=lambda each: (each.is_average, each.rank))
    best = ranked[0]
    label, others = best.label(models), [each for each in models if each is not best]
    rivals = [each for each in pool if (each.is_average, each.rank[0]) == (best.is_average, best.rank[0])]
    if best.rank[0] and len(rivals) > 1:
        known = ", ".join(each.label(models) for each in rivals)
        raise CheckpointError(
            f"{file} holds {len(rivals)} sets of weights: {known}", hint=f"choose one with --checkpoint-key {label}"
        )
    notes = []
    if others or best.rank[0]:
        what = "averaged (EMA) weights" if best.is_average else "weights"
        notes.append(f"the {what} {f'under {label!r}' if label else 'at its top level'} are used")
    for other in [] if key else others:
        what = "averaged (EMA) weights" if other.is_average else "other weights"
        notes.append(f"it also holds {what}: --checkpoint-key {other.label(models)} takes them")
    return best, notes


# What a file says of its model


def _config_of_folder(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config["_model_class"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is missing or is not a save_pretrained config: {first_line(error)}",
            hint="write the folder with model.save_pretrained(folder)",
        ) from error
    return config


def _spec_of_config(arch: str, config: Mapping[str, Any], notes: list[str]) -> ModelSpec:
    names = ("encoder_name", "in_channels", "classes")
    own = {"in_channels": 3} | {name: config[name] for name in names if name in config}
    # Weights come from the file, an activation would have no effect, as the threshold applies to logits, and only the
    # masks are exported. Mean and std are not arguments of the model.
    ignored = (*names, "encoder_weights", "activation", "aux_params", "mean", "std")
    arguments = {
        name: value
        for name, value in config.items()
        if name not in ignored and not name.startswith("_") and "preproc" not in name and value is not None
    }
    try:
        arguments = json.loads(json.dumps(arguments))  # a whole module has tuples
    except TypeError as error:
        raise CheckpointError(f"the arguments of {arch} are not plain values: {error}", hint=SAVE_AGAIN) from error
    multilabel = config.get("activation") == "sigmoid" and own.get("classes", 1) > 1
    if multilabel:
        notes.append(
            f"it ends in a sigmoid, so its {own['classes']} classes may overlap: a mask for each; "
            "--no-multilabel takes the likeliest"
        )
    return ModelSpec(arch=arch, arguments=arguments, multilabel=multilabel, **own)


@dataclass(frozen=True)
class _Around:
    """What the modules that hold a model do before and after it.

    Attributes:
        normalisation: mean and standard deviation of a ``Normalize`` before it.
        sigmoid: one follows it.
        notes: what a user should know.
    """

    normalisation: _Normalisation | None = None
    sigmoid: bool = False
    notes: tuple[str, ...] = ()


def kind_of_module(module: Object) -> str:
    """Return the name of a saved module's class."""
    return module.name.rpartition(".")[2]


def _path_to_model(weights: _Weights) -> list[Object]:
    """Return a model of segmentation_models_pytorch after the modules that hold it; empty if there is none."""
    path: list[Object] = []
    module = weights.module
    while module is not None and len(path) <= _DEEPEST:
        path.append(module)
        if module.name.startswith("segmentation_models_pytorch."):
            return path
        inner = entries(entries(module).get("_modules"))
        module = next((each for name, each in inner.items() if name in weights.keys and isinstance(each, Object)), None)
    return []


def _around(path: list[Object], file: Path) -> _Around:
    """Read what holds a model.

    Raises:
        CheckpointError: a ``Sequential`` runs something before or after it that segx does not.
    """
    normalisation, sigmoid, notes = None, False, []
    for holder, held in itertools.pairwise(path):
        if kind_of_module(holder) != "Sequential":
            if not _ONLY_HOLDERS.search(kind_of_module(holder)):
                notes.append(f"what {kind_of_module(holder)}, which holds the model, computes itself is left out")
            continue
        is_before = True
        for name, part in entries(entries(holder).get("_modules")).items():
            kind = _kind_of_part(part)
            if part is held:
                is_before = False
            elif kind == "Normalize" and is_before and not normalisation and (found := _normalisation_of(part)):
                normalisation = found
            elif kind in ENDS and not is_before:
                sigmoid |= kind == "Sigmoid"
                if kind != "Identity":
                    notes.append(f"the {kind} after the model is left out: masks are made of its logits")
            elif kind != "Identity" and not kind.startswith("Dropout"):
                raise CheckpointError(
                    f"{file} is a Sequential with {kind or type(part).__name__} ({name}) "
                    f"{'before' if is_before else 'after'} the model, which segx would leave out",
                    hint=EXPORT_IT,
                )
    return _Around(normalisation, sigmoid, tuple(notes))


def _kind_of_part(part: Any) -> str:
    """Return the name of a module's class, or what an ``Activation`` of segmentation_models_pytorch holds."""
    kind = kind_of_module(part) if isinstance(part, Object) else ""
    inner = entries(entries(part).get("_modules")).get("activation") if kind == "Activation" else None
    return kind_of_module(inner) if isinstance(inner, Object) else kind


def _normalisation_of(module: Object) -> _Normalisation | None:
    """Return mean and standard deviation of a ``Normalize`` of torchvision, kornia and the like."""
    own = entries(module)
    own = {**own, **entries(own.get("_buffers"))}
    mean, std = (_numbers(own.get(name)) for name in ("mean", "std"))
    return (mean, std) if mean and len(mean) == len(std) and min(std) > 0 else None


def _spec_of_module(path: list[Object], weights: _Weights, around: _Around, notes: list[str]) -> ModelSpec | None:
    """Return the spec of a whole module of segmentation_models_pytorch."""
    if not path:
        return None
    module = path[-1]
    own, arch = entries(module), kind_of_module(module)
    if config := entries(own.get("_hub_mixin_config")):
        return _spec_of_config(arch, {**config, "activation": "sigmoid"} if around.sigmoid else config, notes)
    # Older versions of the library keep no config, but a name such as u-resnet34.
    encoder = entries(entries(own.get("_modules")).get("encoder"))
    head = weights.tensors.get("segmentation_head.0.bias")
    name, channels, depth = str(own.get("name")), encoder.get("_in_channels"), encoder.get("_depth")
    if "-" not in name or head is None or not isinstance(channels, int) or not isinstance(depth, int):
        return None
    return ModelSpec(
        arch=arch,
        encoder_name=name.partition("-")[2],
        in_channels=channels,
        classes=head.size,
        arguments={"encoder_depth": depth},
    )


_Pair = tuple[str, str, tuple[float, ...], tuple[float, ...], Any]


def _pairs(inner: Mapping[Any, Any]) -> Iterator[_Pair]:
    """Yield mean and std of images among named values, after their names, and the order of colours if it is told."""
    for name in inner:
        stem = name.removesuffix("mean") if isinstance(name, str) and name.endswith("mean") else None
        if stem is None or f"{stem}std" not in inner:
            continue
        if not set(filter(None, stem.split("."))) <= set(_KNOWN) and not _OF_IMAGES.search(stem):
            continue
        mean, std = _numbers(inner[name]), _numbers(inner[f"{stem}std"])
        if mean and len(mean) == len(std) and min(std) > 0:
            yield name, f"{stem}std", mean, std, inner.get(f"{stem}input_space")


def _pairs_in_settings(content: Any) -> Iterator[_Pair]:
    for keys, _, inner in _containers(content):
        if "_modules" not in inner and (
            not keys or any(_SETTINGS.search(key) or _OF_IMAGES.search(key) for key in keys)
        ):
            yield from _pairs(inner)


def _numbers(value: Any) -> tuple[float, ...]:
    """Return the numbers of a small tensor, a list or a number; empty for anything else."""
    if isinstance(value, _Tensor):
        if not 1 <= value.size <= _MOST_CHANNELS:
            return ()
        try:
            array = _small_array(value)
        except BROKEN:
            return ()
        return tuple(float(str(number)) for number in array.ravel())  # 0.485, not the float32 next to it
    value = _of_numpy(plain(value))
    values = [_of_numpy(plain(each)) for each in value] if isinstance(value, list | tuple) else [value]
    are_numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    return tuple(float(each) for each in values) if are_numbers else ()


def _of_numpy(value: Any) -> Any:
    """Return the numbers of an array or number of NumPy; anything else as it is."""
    match value:
        case Object(name=str() as name, state=(_, _, Object() as dtype, _, raw)) if name.endswith("._reconstruct"):
            pass
        case Object(name=str() as name, args=(Object() as dtype, raw)) if name.endswith(".scalar"):
            pass
        case _:
            return value
    if isinstance(raw, Object):  # bytes as text, in pickle protocol 2
        raw = raw.args[0].encode("latin1")
    kind = dtype.args[0]
    if kind not in ("f2", "f4", "f8"):
        return value
    numbers = np.frombuffer(raw, kind).tolist()
    return numbers[0] if name.endswith(".scalar") else numbers


def _small_array(tensor: _Tensor) -> np.ndarray[Any, Any]:
    if isinstance(tensor, StoredTensor):
        numbers = np.frombuffer(tensor.storage.container.read(tensor.storage.key), dtype=tensor.dtype)[tensor.offset :]
        last = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride, strict=True))
        if last >= len(numbers):
            raise ValueError("a tensor in it is cut off")
        strides = tuple(step * numbers.itemsize for step in tensor.stride)
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
    array: np.ndarray[Any, Any] = tensor.read("np")
    return array


def _first_layer(tensors: Mapping[str, _Tensor]) -> FirstLayer | None:
    kernels = [name for name, each in tensors.items() if name.startswith("encoder.") and len(each.shape) == 4]
    if not kernels:
        return None
    # The files of safetensors sort their names.
    name = min(kernels, key=lambda each: (each.count("."), tensors[each].shape[1], each))
    count = tensors[name].shape[0]
    averages = [
        each
        for each in tensors
        if each.startswith("encoder.") and each.endswith(".running_mean") and tensors[each].shape == (count,)
        if each.count(".") == name.count(".")
    ]
    if not averages:
        return None

    norm = min(averages).removesuffix("running_mean")
    bias = tensors.get(f"{name.removesuffix('weight')}bias")
    batches = tensors.get(f"{norm}num_batches_tracked")
    try:
        if batches is not None and _small_array(batches) < _SETTLED:
            return None
        found = [_small_array(tensors[each]) for each in (name, f"{norm}running_mean", f"{norm}running_var")]
        kernel, mean, variance = (each.astype(np.float32) for each in found)
        offset = np.zeros(count) if bias is None else _small_array(bias)
    except BROKEN:  # told where the weights are loaded
        return None
    return FirstLayer(kernel, offset.astype(np.float32), mean, variance)


def _only(stored: set[_Normalisation], notes: list[str]) -> _Normalisation | None:
    """Return the mean and std that were found, or say that there are several."""
    if len(stored) > 1:
        notes.append("it stores several means and stds, and none is used: pass --mean and --std")
    return next(iter(stored)) if len(stored) == 1 else None


def _text(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
