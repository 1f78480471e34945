"""The manifest of a run: a line per image, from which an interrupted run can be resumed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import msgspec
import numpy as np

from segx.errors import NotComparable, OutputError, ResultsError, SegxError, first_line
from segx.masks.preprocess import MaskArray
from segx.predict.output import MANIFEST_NAME, SETTINGS_NAME, OutputFolder
from segx.predict.sources import Item
from segx.system.files import open_in_place, output_errors, write_text

# 1: without the model's description. 2: with it.
SCHEMA_VERSION = 2
LOCAL, RAY = "local", "ray"  # engines of a prediction

_SYNC_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One image in the manifest; fields that are None are not written.

    Attributes:
        input: ``Item.name``.
        mask: path relative to the output folder.
        masks: those of a multilabel model instead, by class.
        width: of the image, in pixels, as ``height``.
        mask_area: pixels of the mask that are not background; of a multilabel model, that are in any of its masks.
        mask_share: ``mask_area`` as a fraction of the mask, 0 to 1.
        ms: time spent on this image, in milliseconds.
        error: why it failed, on one line; ``hint`` says what to do about it.
    """

    input: str
    status: Literal["done", "failed"]
    mask: str | None = None
    masks: Mapping[str, str] | None = None
    width: int | None = None
    height: int | None = None
    mask_width: int | None = None
    mask_height: int | None = None
    mask_area: int | None = None
    mask_share: float | None = None
    ms: float | None = None
    error: str | None = None
    hint: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of all its masks."""
        return tuple(self.masks.values()) if self.masks else (self.mask,) if self.mask else ()

    @property
    def line(self) -> bytes:
        """The line of a manifest."""
        values = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return (json.dumps(values) + "\n").encode("ascii")

    @classmethod
    def done(
        cls, item: Item, size: tuple[int, int], mask: MaskArray, ms: float, masks: Mapping[str, str] | None = None
    ) -> Entry:
        """Return the entry of an image of ``size`` (width, height) whose mask, or ``class_masks``, were written."""
        height, width = mask.shape[-2:]
        area = int(np.count_nonzero(mask.reshape(-1, height, width).any(axis=0)))
        return cls(
            item.name,
            "done",
            mask=None if masks else item.mask,
            masks=masks or None,
            width=size[0],
            height=size[1],
            mask_width=width,
            mask_height=height,
            mask_area=area,
            mask_share=round(area / (height * width), 6),
            ms=round(ms, 3),
        )

    @classmethod
    def failed(cls, item: Item, error: SegxError) -> Entry:
        """Return the entry of an image that could not be segmented."""
        return cls(item.name, "failed", error=error.message, hint=error.hint)


class Manifest:
    """The manifest of a run, open for more lines; create it with ``Manifest.open`` and use it as a context manager.

    Attributes:
        masks: those of the images that need not be segmented again, by name: their last line says ``done`` and all of
            the masks exist.
    """

    def __init__(self, path: Path, stream: BinaryIO, masks: Mapping[str, Sequence[str]]) -> None:
        self.path, self.masks = path, masks
        self._stream = stream
        self._lock = threading.Lock()
        self._synced_s = time.monotonic()

    @classmethod
    def open(cls, folder: OutputFolder, settings: Mapping[str, Any], *, resume: bool) -> Self:
        """Start a manifest, or continue the existing one; tell the folder which images have lost a mask.

        Args:
            folder: entered already.
            settings: everything that decides what the masks look like, as JSON values by name.
            resume: continue if there is a manifest; start a new one otherwise.

        Raises:
            OutputError: there is a manifest and ``resume`` is not set, or it cannot be written.
            NotComparable: the manifest was started with other settings.
            ResultsError: the manifest or the settings are damaged, or of an unknown version.
        """
        path = folder.path / MANIFEST_NAME
        if not resume:
            refuse_earlier_run(folder.path)
        masks: Mapping[str, Sequence[str]] = {}
        before = stored_settings(folder.path)
        if before is not None:
            refuse_other_settings(before, settings, str(folder.path))
        else:
            _write_settings(folder.path / SETTINGS_NAME, settings)
        stream = os.fdopen(open_in_place(path, os.O_RDWR | os.O_APPEND), "ab", buffering=0)
        if before is not None:
            try:
                masks, folder.lost = _finished(path, stream, folder.path)
            except BaseException:
                stream.close()
                raise
        return cls(path, stream, masks)

    def append(self, entry: Entry) -> None:
        """Add a line that outlives this process at once, and a power failure after a second. Thread-safe.

        Raises:
            OutputError: the disk is full, or the folder is gone.
        """
        data = entry.line
        with self._lock, output_errors(self.path):
            facts = os.fstat(self._stream.fileno())
            if facts.st_nlink == 0:
                raise OutputError(f"{self.path} is gone", hint="choose another folder, or find out what removes it")
            if self._stream.write(data) != len(data):
                self._stream.truncate(facts.st_size)
                raise OutputError(f"cannot write {self.path}: the disk is full", hint="free some space, then --resume")
            if time.monotonic() - self._synced_s >= _SYNC_INTERVAL_S:
                os.fsync(self._stream.fileno())
                self._synced_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def refuse_earlier_run(folder: Path) -> None:
    """Raise an error if a folder has a manifest."""
    if stored_settings(folder) is not None:
        raise earlier_run(str(folder))


def earlier_run(folder: str) -> OutputError:
    """Return the error for a folder with a manifest that is not to be continued."""
    hint = "continue it with --resume, or choose another folder"
    return OutputError(f"{folder} holds the masks of an earlier run", hint=hint)


def stored_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the run whose manifest is in a folder, or None if there is none.

    Raises:
        ResultsError: they cannot be read, or are of an unknown version.
    """
    if not _has_lines(folder):
        return None
    return _read_settings(folder / SETTINGS_NAME)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {first_line(error)}", hint="choose another folder") from error
    return parse_settings(data, str(path))


def parse_settings(data: bytes, path: str) -> dict[str, Any]:
    """Return the settings in the content of ``segx-predict.json``.

    Raises:
        ResultsError: it is damaged, or of an unknown version.
    """
    try:
        values = json.loads(data)
        version, settings = values["schema_version"], dict(values["settings"])
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise ResultsError(f"{path} cannot be read: {first_line(error)}", hint="choose another folder") from error
    if version != SCHEMA_VERSION:
        hint = "resume it with the version of segx that started it, or choose another folder"
        raise ResultsError(f"{path} has version {version}; this segx reads version {SCHEMA_VERSION}", hint=hint)
    return settings


def refuse_other_settings(before: Mapping[str, Any], settings: Mapping[str, Any], folder: str) -> None:
    """Raise NotComparable if the masks in a folder were made with other settings; the first that differs is named."""
    defaults = {"engine": LOCAL, "scaled_decoding": False}
    before, now = ({**defaults, **values} for values in (before, json.loads(json.dumps(dict(settings)))))
    for name in {**now, **before}:
        if before.get(name) != now.get(name):
            raise NotComparable(
                f"the masks in {folder} were made with {name} {before.get(name)}, and this run has {now.get(name)}",
                hint="give the same options as before, or choose another folder",
            )


def settings_file(settings: Mapping[str, Any]) -> str:
    """Return the content of ``segx-predict.json``."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "settings": dict(settings)}, indent=2) + "\n"


def _write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a run that begins; only those of one that left no line are replaced."""
    if path.is_symlink():
        raise OutputError(f"{path} is a link", hint="remove it, or choose another folder")
    if path.exists():
        _read_settings(path)
    write_text(path, settings_file(settings))


def _has_lines(folder: Path) -> bool:
    """Return whether there is a manifest with a line; a run that ended before its first one left nothing to resume."""
    try:
        return (folder / MANIFEST_NAME).stat().st_size > 0
    except OSError:
        return False


def _finished(path: Path, stream: BinaryIO, folder: Path) -> tuple[dict[str, Sequence[str]], frozenset[str]]:
    """Return the masks of finished images by their names, and the names of those of which a mask is gone.

    An incomplete last line is cut off.
    """
    complete_bytes = 0

    def entries() -> Iterator[Entry]:
        nonlocal complete_bytes
        for entry, end in _entries(path):
            complete_bytes = end
            yield entry

    there, lost = finished(entries(), lambda file: os.path.lexists(f"{folder}/{file}"))
    with output_errors(path):
        stream.truncate(complete_bytes)
    return there, lost


def finished(
    entries: Iterable[Entry], exists: Callable[[str], bool]
) -> tuple[dict[str, Sequence[str]], frozenset[str]]:
    """Return the masks of finished images by their names, and the names of those of which a mask is gone."""
    masks: dict[str, Sequence[str]] = {}
    for entry in entries:
        if entry.status == "done" and entry.files:
            masks[entry.input] = entry.files
        else:
            masks.pop(entry.input, None)
    there = {name: files for name, files in masks.items() if all(map(exists, files))}
    return there, frozenset(masks.keys() - there.keys())


def _entries(path: Path) -> Iterator[tuple[Entry, int]]:
    """Yield entries, and the position in the file at which each ends."""
    try:
        with path.open("rb") as stream:
            yield from parse_entries(stream, str(path))
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error


def parse_entries(lines: Iterable[bytes], path: str) -> Iterator[tuple[Entry, int]]:
    """Yield the entries of a manifest's lines, without an incomplete last one, and the position at which each ends.

    Raises:
        ResultsError: another line is damaged.
    """
    end = damaged = 0
    for number, raw in enumerate(lines, 1):
        if damaged:
            raise ResultsError(f"line {damaged} of {path} is damaged", hint="remove that line")
        try:
            entry = msgspec.convert(json.loads(raw), Entry)
            if not raw.endswith(b"\n"):
                raise ValueError
        except (ValueError, RecursionError):
            damaged = number
            continue
        end += len(raw)
        yield entry, end
