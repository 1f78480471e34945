"""Read weights from files without executing anything in them."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segx.errors import CheckpointError, UsageError
from segx.model.spec import METADATA_KEY, ModelSpec
from segx.system.files import sha256_of

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_PICKLES = (".pt", ".pth", ".ckpt", ".bin")
_FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SAVE_AGAIN = "save the weights with torch.save(model.state_dict(), path) or as .safetensors"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read weights by name, without the wrappers and prefixes that training adds.

    Args:
        path: ``.safetensors``, a ``.pt``/``.pth``/``.ckpt``/``.bin`` state dict, also inside ``state_dict`` or
            ``model`` and with the prefixes ``module.``, ``model.``, ``_orig_mod.``; or a ``save_pretrained`` folder.

    Returns:
        Name -> tensor, on the CPU, in the stored dtype.

    Raises:
        CheckpointError: missing, empty, truncated, of an unknown format, or a pickle that would run code.
    """
    file = weights_file(path)
    if file.suffix == ".safetensors":
        state: Any = _read_safetensors(file)
    elif file.suffix in _PICKLES:
        state = _read_pickle(file)
    else:
        raise CheckpointError(
            f"{file} is of an unknown kind", hint="pass a .safetensors, .pt or .pth file, or a save_pretrained folder"
        )
    return _strip_prefixes(_unwrap(state, file))


def weights_file(path: Path) -> Path:
    """Return the file with the weights: ``path`` itself, or the one in a ``save_pretrained`` folder.

    Raises:
        CheckpointError: the file is missing or empty.
    """
    try:
        return _weights_file(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", hint="check the folder's permissions") from error


def _weights_file(path: Path) -> Path:
    candidates = [path / name for name in _FOLDER_WEIGHTS] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None and path.is_dir():
        raise CheckpointError(
            f"{path} holds neither {' nor '.join(_FOLDER_WEIGHTS)}", hint="pass a folder written by save_pretrained"
        )
    if file is None:
        raise CheckpointError(f"no checkpoint at {path}", hint="pass the path of your trained weights with --weights")
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file} is empty", hint="copy the checkpoint again")
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


def spec_in_checkpoint(path: Path) -> ModelSpec | None:
    """Return the spec stored with a checkpoint, or None; most state dicts have none.

    A ``save_pretrained`` folder has it in ``config.json``, a file of segx in the header of the ``.safetensors``.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    file = weights_file(path)
    if path.is_dir():
        return _spec_of_folder(path)
    if file.suffix != ".safetensors":
        return None
    text = _safetensors_metadata(file).get(METADATA_KEY)
    try:
        return ModelSpec.from_json(text) if text else None
    except UsageError as error:
        raise CheckpointError(f"{file}: {error.message}", hint=error.hint) from error


def _spec_of_folder(folder: Path) -> ModelSpec:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        arch = config.pop("_model_class")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} is missing or is not a save_pretrained config: {error}",
            hint="write the folder with model.save_pretrained(folder)",
        ) from error
    own = {"in_channels": 3} | {k: config.pop(k) for k in ("encoder_name", "in_channels", "classes") if k in config}
    # Weights come from the file; an activation would have no effect, as the threshold applies to logits.
    ignored = ("encoder_weights", "activation")
    arguments = {k: v for k, v in config.items() if k not in ignored and not k.startswith("_") and v is not None}
    return ModelSpec(arch=arch, arguments=arguments, **own)


def _safetensors_metadata(file: Path) -> Mapping[str, str]:
    """Return the free-text part of the header (u64 length, then JSON), read without a framework."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(_MAX_HEADER_BYTES, file.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        return header.get("__metadata__") or {}
    except (OSError, ValueError, AttributeError) as error:
        raise _broken(file, error) from error


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise _broken(file, error) from error


def _read_pickle(file: Path) -> object:
    import torch

    is_zip = zipfile.is_zipfile(file)
    try:
        # Never retry with weights_only=False: that would run any code in the file.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; an unreadable file is an error below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if foreign := _foreign_globals(file):
            raise CheckpointError(
                f"{file} is a pickle that would run {', '.join(foreign[:3])}; it was not loaded",
                hint=f"if you trust its origin, load it where it was made and {_SAVE_AGAIN}",
            ) from error
        raise _broken(file, "it is not a PyTorch checkpoint") from error
    except OSError as error:
        raise _broken(file, error) from error
    except (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
            struct.error) as error:  # fmt: skip
        # Raised by the unpickler for bytes that are not a pickle.
        if "TorchScript" in str(error):
            raise CheckpointError(f"{file} is a TorchScript program, not weights", hint=_SAVE_AGAIN) from error
        raise _broken(file, "it is damaged" if is_zip else "it is truncated or not a PyTorch checkpoint") from error


def _foreign_globals(file: Path) -> list[str]:
    """Return the names that a pickle would import beyond those of every state dict, without running it."""
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                inner = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
                data = archive.read(inner) if inner else b""
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
            return []
    else:
        data = file.read_bytes()
    stream = io.BytesIO(data)
    names: list[str] = []
    with contextlib.suppress(ValueError):  # truncated: keep the names found so far
        while stream.tell() < len(data):  # a legacy file is several pickles in a row, then raw numbers
            names += _globals_of_pickle(stream)
    tensors = ("torch._utils.", "torch.storage.", "collections.OrderedDict")
    storage = re.compile(r"torch\.(\w+Storage|\w*int\d+|b?float\w*|bool|half|double|long)")
    return [n for n in dict.fromkeys(names) if not n.startswith(tensors) and not storage.fullmatch(n)]


def _globals_of_pickle(stream: io.BytesIO) -> Iterator[str]:
    memo: dict[int, str | None] = {}
    pushed: list[str | None] = []  # strings on the stack; None for anything else
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
            pushed.append(None)
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(part or "?" for part in pushed[-2:])
            pushed.append(None)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = pushed[-1] if pushed else None
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = pushed[-1] if pushed else None
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            pushed.append(memo.get(int(argument or 0)))
        elif opcode.stack_after:
            pushed.append(argument if isinstance(argument, str) else None)


def _broken(file: Path, cause: object) -> CheckpointError:
    reason = " ".join(str(cause).split())[:160] or "unexpected end of file"
    return CheckpointError(f"{file} cannot be read as a checkpoint: {reason}", hint=f"copy it again, or {_SAVE_AGAIN}")


def _unwrap(state: object, file: Path) -> dict[str, torch.Tensor]:
    import torch

    for _ in _WRAPPERS:
        if not isinstance(state, Mapping):
            break
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{file} holds a {type(state).__name__}, not weights by name", hint=_SAVE_AGAIN)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(str(key) for key in list(state)[:3]) or "nothing"
        raise CheckpointError(f"{file} holds no weights, only {keys}", hint=_SAVE_AGAIN)
    return tensors


def _strip_prefixes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the prefix of training wrappers before ``encoder.``, and drop tensors without it.

    Lightning modules keep losses and normalisation outside ``model.``; they are not weights of the network.
    """
    prefix = next((name[: name.index("encoder.")] for name in state if "encoder." in name), "")
    rest = prefix
    while rest:
        known = next((p for p in _PREFIXES if rest.startswith(p)), None)
        if known is None:
            return state
        rest = rest.removeprefix(known)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
