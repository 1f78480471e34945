"""What has been done: a line per image in a manifest, from which an interrupted run goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from segx.errors import NotComparable, OutputError, ResultsError, SegxError
from segx.predict.item import Item
from segx.predict.output import MANIFEST_NAME, SETTINGS_NAME, OutputFolder
from segx.predict.outputs import Written
from segx.system.files import output_errors, write_text

# 1: first version.
SCHEMA_VERSION = 1

_SYNC_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Line:
    """One image in the manifest.

    Attributes:
        input: the image's name; ``Item.name``.
        status: ``done`` or ``failed``.
        mask: path of the mask relative to the output folder, None of a failed one.
        width: of the image in pixels, None where it could not be read.
        height: of the image in pixels.
        mask_width: of the mask in pixels.
        mask_height: of the mask in pixels.
        mask_area: pixels of the mask that are not background.
        mask_share: of the mask that is not background, 0 to 1.
        ms: what was spent on this image alone, in milliseconds.
        error: why it failed, on one line.
        hint: what to do about it.
    """

    input: str
    status: Literal["done", "failed"]
    mask: str | None = None
    width: int | None = None
    height: int | None = None
    mask_width: int | None = None
    mask_height: int | None = None
    mask_area: int | None = None
    mask_share: float | None = None
    ms: float | None = None
    error: str | None = None
    hint: str | None = None

    @classmethod
    def done(cls, item: Item, size: tuple[int, int], written: Written, ms: float) -> Line:
        """An image whose mask was written; ``size`` is the image's (width, height)."""
        return cls(
            item.name,
            "done",
            mask=written.mask,
            width=size[0],
            height=size[1],
            mask_width=written.width,
            mask_height=written.height,
            mask_area=written.area_pixels,
            mask_share=round(written.area_pixels / (written.width * written.height), 6),
            ms=round(ms, 3),
        )

    @classmethod
    def failed(cls, item: Item, error: SegxError, *, ms: float | None = None) -> Line:
        """An image that could not be segmented."""
        spent = None if ms is None else round(ms, 3)
        return cls(item.name, "failed", ms=spent, error=error.message, hint=error.hint)


_FIELDS = tuple(field.name for field in dataclasses.fields(Line))


class Ledger:
    """The manifest of a run, open for more lines. Made by ``Ledger.open``; a context manager.

    Attributes:
        done: names of the images that need not be done again: their last line says so, and their mask is there.
    """

    def __init__(self, path: Path, stream: BinaryIO, done: frozenset[str]) -> None:
        self.path = path
        self.done = done
        self._stream = stream
        self._lock = threading.Lock()
        self._synced_s = time.monotonic()

    @classmethod
    def open(cls, folder: OutputFolder, settings: Mapping[str, Any], *, resume: bool) -> Self:
        """Begin a manifest, or go on with the one that is there.

        Args:
            folder: entered already, so that no other run writes there.
            settings: what decides how masks come out, as JSON values by name: model digest, variant, threshold, ….
            resume: go on where a manifest is there; without one begin anew.

        Raises:
            OutputError: there is a manifest and ``resume`` is not set, or it cannot be written.
            NotComparable: the run that began it had other settings; the message names one, and both values.
            ResultsError: the manifest or the settings are damaged, or of an unknown version.
        """
        path = folder.path / MANIFEST_NAME
        if not resume:
            refuse_earlier_run(folder.path)
        done = frozenset[str]()
        if _has_begun(folder.path):
            _check_same(folder.path, settings)
            done = _finished(path, folder.path)
        else:
            values = {"schema_version": SCHEMA_VERSION, "settings": dict(settings)}
            write_text(folder.path / SETTINGS_NAME, json.dumps(values, indent=2) + "\n")
        with output_errors(path):
            return cls(path, path.open("ab", buffering=0), done)

    def append(self, line: Line) -> None:
        """Add a line; it outlives this process at once, and a power cut after a second. Safe from several threads.

        Raises:
            OutputError: the disk is full, or the folder is gone.
        """
        values = {name: value for name in _FIELDS if (value := getattr(line, name)) is not None}
        data = (json.dumps(values) + "\n").encode("ascii")
        with self._lock, output_errors(self.path):
            facts = os.fstat(self._stream.fileno())
            if facts.st_nlink == 0:
                raise OutputError(f"{self.path} is gone", hint="choose another folder, or find out who removes it")
            if self._stream.write(data) != len(data):
                self._stream.truncate(facts.st_size)
                raise OutputError(f"cannot write {self.path}: the disk is full", hint="free some space, then --resume")
            if time.monotonic() - self._synced_s >= _SYNC_INTERVAL_S:
                os.fsync(self._stream.fileno())
                self._synced_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def _has_begun(folder: Path) -> bool:
    """Whether there is a manifest with a line; a run that ended before its first one left nothing to go on with."""
    try:
        return (folder / MANIFEST_NAME).stat().st_size > 0
    except OSError:
        return False


def refuse_earlier_run(folder: Path) -> None:
    """A run that does not go on with another begins in a folder of its own.

    Raises:
        OutputError: the folder holds a manifest.
    """
    if _has_begun(folder):
        raise OutputError(
            f"{folder} holds the masks of an earlier run", hint="go on with --resume, or choose another folder"
        )


def stored_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the run that a folder holds the manifest of; None where there is none.

    Raises:
        ResultsError: they cannot be read, or are of an unknown version.
    """
    path = folder / SETTINGS_NAME
    if not _has_begun(folder):
        return None
    try:
        values = json.loads(path.read_bytes())
        version, settings = values["schema_version"], dict(values["settings"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultsError(f"{path} cannot be read: {error}", hint="choose another folder") from error
    if version != SCHEMA_VERSION:
        hint = "go on with the version of segx that began it, or choose another folder"
        raise ResultsError(f"{path} has version {version}, and this segx knows {SCHEMA_VERSION}", hint=hint)
    return settings


def read_manifest(path: Path) -> Iterator[Line]:
    """The lines of a manifest; a last one that was cut off is left out.

    Raises:
        ResultsError: it cannot be read, or another line is damaged.
    """
    return (line for line, _ in _lines(path))


def _check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    before = stored_settings(folder) or {}
    now = json.loads(json.dumps(dict(settings)))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise NotComparable(
                f"the masks in {folder} were made with {name} {before.get(name)}, and this run has {now.get(name)}",
                hint="give the same options as then, or choose another folder",
            )


def _finished(path: Path, folder: Path) -> frozenset[str]:
    """Names of what is done; cuts off a torn last line."""
    masks: dict[str, str] = {}
    whole_bytes = 0
    for line, end in _lines(path):
        whole_bytes = end
        if line.status == "done" and line.mask is not None:
            masks[line.input] = line.mask
        else:
            masks.pop(line.input, None)
    with output_errors(path):
        os.truncate(path, whole_bytes)
    return frozenset(name for name, mask in masks.items() if os.path.lexists(f"{folder}/{mask}"))


def _lines(path: Path) -> Iterator[tuple[Line, int]]:
    """Lines, and where in the file each ends."""
    end = 0
    damaged = 0
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if damaged:
                    raise ResultsError(f"line {damaged} of {path} is damaged", hint="remove that line")
                try:
                    line = Line(**json.loads(raw))
                    if not raw.endswith(b"\n"):
                        raise ValueError
                except (ValueError, TypeError):
                    damaged = number
                    continue
                end += len(raw)
                yield line, end
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error
