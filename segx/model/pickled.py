"""Read what ``torch.save`` wrote without running anything in it, and without torch."""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from segx.errors import CheckpointError

SAVE_AGAIN = "save the weights with torch.save(model.state_dict(), path) or as .safetensors"
EXPORT_IT = "export the module itself with torch.onnx.export, and pass that file: --model FILE.onnx"
_SAVE_OR_EXPORT = f"{SAVE_AGAIN}; if it is not a model of segmentation_models_pytorch, {EXPORT_IT}"

# Classes whose objects are kept as names and state. All others are refused, although an object of theirs would be as
# inert: whoever finds one in a checkpoint should know.
_INERT = re.compile(
    r"(torch\.(nn|optim)|torchvision|segmentation_models_pytorch|timm|kornia)\..+"
    r"|torch\.(Size|Tensor|device|Generator|\w*int\d+|b?float\w*|complex\w+|bool|half|double|long|per_\w+|strided)"
    r"|torch\._utils\._rebuild_\w+|torch\.serialization\._get_layout|torch\.torch_version\.TorchVersion"
    r"|builtins\.(set|frozenset|list|dict|tuple|int|float|bool|str|bytes|bytearray|complex|slice|range|object"
    r"|xrange|unicode|long)"  # range, str and int in pickle protocol 2
    r"|_codecs\.encode|copyreg\._reconstructor|collections\.\w+|types\.SimpleNamespace|functools\.partial|argparse\.Namespace"
    r"|(pathlib(\._local)?|datetime|decimal|fractions|uuid|typing)\.\w+"
    r"|numpy\.(ndarray|dtype|bool_?|str_|u?int\d+|float\d+|dtypes\.\w+|_?core\.(multiarray\.(scalar|_reconstruct)"
    r"|numeric\._frombuffer)|random\._pickle\.\w+)"
    r"|omegaconf\.[\w.]+|yacs\.config\.CfgNode|easydict\.EasyDict|ml_collections\.[\w.]+"
    r"|(pytorch_lightning|lightning|lightning_fabric)\.[\w.]+\.(AttributeDict|\w+Enum|_?\w*Status)"
)
_DTYPES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexDouble": "complex128", "ComplexFloat": "complex64",
}  # fmt: skip
_STORAGE = re.compile(rf"torch\.(?:cuda\.)?({'|'.join(_DTYPES)})Storage|torch\.storage\.(?:Untyped|Typed)Storage")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # the names that pickle protocol 2 keeps to
_BIG_ENDIAN = "it was written on a big-endian machine"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

# Raised by the unpickler and the zip reader for bytes that are not a checkpoint.
BROKEN = (
    pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error, ArithmeticError, AssertionError,
    AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class Container(Protocol):
    """Where the numbers of tensors lie."""

    def read(self, key: str) -> bytearray:
        """Return the bytes of one storage."""


@dataclass(frozen=True)
class Storage:
    """The numbers of one or several tensors; ``dtype`` is empty if the tensors say it."""

    container: Container
    key: str
    dtype: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose numbers stay in the file until they are needed; ``dtype`` is torch's name for it."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if not isinstance(self.storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor in it is malformed")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Object:
    """An object of the file that was not built: the name of its class, what made it, and its state."""

    name = ""
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __init__(self, *args: Any, **_: Any) -> None:
        self.args = args

    def __new__(cls, *_: Any, **__: Any) -> Self:  # noqa: D102
        made = super().__new__(cls)
        # A pickle may make an object without calling ``__init__``.
        made.args, made.state, made.items = (), None, {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, _: Any) -> None:
        """Drop an element, as those of ``add`` and ``extend``."""

    add = extend = append


def plain(value: Any) -> Any:
    """Return the value that an object of OmegaConf wraps, or else the value itself."""
    state = value.state if isinstance(value, Object) else None
    if isinstance(state, Mapping):
        return state.get("_val", state.get("_content", value))
    return value


def entries(value: Any) -> Mapping[Any, Any]:
    """Return what a dictionary, or an object that is one or has attributes, holds by name; empty for others."""
    value = plain(value)
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, Object):
        return {}
    return {**value.state, **value.items} if isinstance(value.state, Mapping) else value.items


class _Unpickler(pickle._Unpickler):  # noqa: SLF001
    """An unpickler that knows no class and no function but those of this file.

    It is the one written in Python: that in C allocates a table as large as the file says.
    """

    def __init__(self, stream: Any, container: Container) -> None:
        super().__init__(stream, encoding="utf-8", errors="surrogateescape")
        self._container = container
        self._classes: dict[str, type] = {}
        self.foreign: list[str] = []
        self.storages: dict[str, Storage] = {}
        self._known: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_type,
            "torch._utils._rebuild_parameter": self._first,
            "torch._utils._rebuild_parameter_with_state": self._first,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": self._first,
            "torch._tensor._rebuild_from_type_v2": self._of_type,
            "torch.storage._load_from_bytes": self._nested,
        }

    def find_class(self, module: str, name: str, /) -> Any:
        """Return a function of this file, or a class of its own for the name, which runs nothing."""
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        if full in self._known:
            return self._known[full]
        if not _STORAGE.fullmatch(full) and not _INERT.fullmatch(full):
            self.foreign.append(full)
        return self._classes.setdefault(full, type("Object", (Object,), {"name": full}))

    def persistent_load(self, pid: Any, /) -> Any:
        """Return the storage that a persistent id names, or the class of a module in the legacy format."""
        match pid:
            case ("storage", type() | Storage() as kind, key, _, *_):
                if isinstance(kind, Storage):  # a storage that was saved by itself
                    return kind
                found = _STORAGE.fullmatch(getattr(kind, "name", ""))
                storage = Storage(self._container, str(key), _DTYPES.get((found and found[1]) or "", ""))
                return self.storages.setdefault(str(key), storage)
            case ("module", type() as kind, *_):
                return kind
            case _:
                raise pickle.UnpicklingError(f"it has the persistent id {str(pid)[:80]}, which no tensor has")

    def _tensor(
        self, storage: Any, offset: int, size: Any, stride: Any, _grad: Any = None, _hooks: Any = None, meta: Any = None
    ) -> Any:
        if meta:  # conjugated or negated
            return Object()
        return StoredTensor(storage, storage.dtype, offset, tuple(size), tuple(stride))

    def _tensor_of_type(
        self, storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, meta: Any = None
    ) -> Any:
        if meta:
            return Object()
        return StoredTensor(storage, dtype.name.removeprefix("torch."), offset, tuple(size), tuple(stride))

    def _first(self, data: Any, *_: Any) -> Any:
        return data

    def _of_type(self, function: Any, _: Any, args: Any, __: Any) -> Any:
        return function(*args)

    def _nested(self, data: bytes) -> Any:
        return _read_stream(io.BytesIO(data), self.foreign)


class _Zip:
    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        self._archive, self._prefix = archive, prefix

    def read(self, key: str) -> bytearray:
        return bytearray(self._archive.read(f"{self._prefix}data/{key}"))


class _Legacy:
    """A stream of pickles that ends with the storages, each after its number of elements."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.places: dict[str, tuple[int, int]] = {}

    def read(self, key: str) -> bytearray:
        start, length = self.places[key]
        self._stream.seek(start)
        return bytearray(self._stream.read(length))


def read_pickle(stream: BinaryIO, file: Path) -> Any:
    """Return the content of a file of ``torch.save``: plain data, ``StoredTensor`` and ``Object``.

    Nothing in the file is run, and no class that it names is imported: objects of modules and of well-known plain data
    become ``Object``. The numbers of the tensors are read from the stream later.

    Raises:
        CheckpointError: the file refers to other classes or functions, is a program of ``torch.jit`` or
            ``torch.export``, or is damaged.
    """
    foreign: list[str] = []
    try:
        content = _read_zip(stream, file, foreign) if zipfile.is_zipfile(stream) else _read_stream(stream, foreign)
    except BROKEN as error:
        if not foreign:
            raise broken(file, error) from error
        content = None
    if any(name.startswith("torch.Q") for name in foreign):
        raise CheckpointError(
            f"{file} holds quantised tensors, which segx does not read",
            hint="pass the float weights: segx quantises them itself, with --precision int8",
        )
    if foreign:
        raise CheckpointError(
            f"{file} is a pickle that would run {', '.join(dict.fromkeys(foreign[:3]))}; it was not loaded",
            hint=f"if you trust its origin, load it where it was made and {_SAVE_OR_EXPORT}",
        )
    return content


def broken(file: Path, cause: object) -> CheckpointError:
    """Return the error of a file that cannot be read."""
    # The text of a LookupError is only what was looked up.
    reason = "it is damaged" if isinstance(cause, LookupError) else " ".join(str(cause).split())[:160]
    reason = reason or "unexpected end of file"
    return CheckpointError(f"{file} cannot be read as a checkpoint: {reason}", hint=f"copy it again, or {SAVE_AGAIN}")


def _read_zip(stream: BinaryIO, file: Path, foreign: list[str]) -> Any:
    archive = zipfile.ZipFile(stream)
    names = archive.namelist()
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    prefix = min(pickles, key=len, default="").removesuffix("data.pkl")
    if any(name.startswith(f"{prefix}code/") or name == f"{prefix}constants.pkl" for name in names):
        raise CheckpointError(f"{file} is a TorchScript program, not weights", hint=_SAVE_OR_EXPORT)
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        raise CheckpointError(f"{file} is an exported program (torch.export), not weights", hint=_SAVE_OR_EXPORT)
    if not pickles:
        raise CheckpointError(
            f"{file} is a zip archive without a checkpoint of torch.save; it holds {', '.join(names[:3]) or 'nothing'}",
            hint="unpack it, and pass the checkpoint inside",
        )
    size = stream.seek(0, io.SEEK_END)
    if large := [entry.filename for entry in archive.infolist() if entry.file_size > size]:
        raise ValueError(f"{large[0]} in it is larger than the whole file")
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") == b"big":
        raise ValueError(_BIG_ENDIAN)
    with archive.open(f"{prefix}data.pkl") as data:
        unpickler = _Unpickler(data, _Zip(archive, prefix))
        unpickler.foreign = foreign
        return unpickler.load()


def _read_stream(stream: BinaryIO, foreign: list[str]) -> Any:
    stream.seek(0)
    container = _Legacy(stream)

    def load() -> tuple[Any, _Unpickler]:
        unpickler = _Unpickler(stream, container)
        unpickler.foreign = foreign
        return unpickler.load(), unpickler

    content, _ = load()
    if content != _LEGACY_MAGIC:
        return content
    load()  # the version of the format
    machine, _ = load()
    if not machine["little_endian"]:
        raise ValueError(_BIG_ENDIAN)
    content, unpickler = load()
    keys, _ = load()
    at, end = stream.tell(), stream.seek(0, io.SEEK_END)
    for key in keys:
        stream.seek(at)
        length = int.from_bytes(stream.read(8), "little") * _item_size(unpickler.storages[str(key)].dtype)
        container.places[str(key)] = at + 8, length
        at += 8 + length
    if at > end:
        raise EOFError("it is truncated")
    return content


def _item_size(dtype: str) -> int:
    if dtype in ("bool", "uint8"):
        return 1
    return int(re.sub(r"\D", "", dtype)) // 8
