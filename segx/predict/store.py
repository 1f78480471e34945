"""A folder or URL that several machines write masks to, with a manifest in parts: one file for some of the images."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segx.errors import OutputError, first_line
from segx.predict.manifest import (
    Entry,
    earlier_run,
    finished,
    parse_entries,
    parse_settings,
    refuse_other_settings,
    settings_file,
)
from segx.predict.output import (
    LEGEND_NAME,
    MANIFEST_NAME,
    PATH_ERRORS,
    SETTINGS_NAME,
    TAKEN,
    check_relative,
    checked_path,
    legend_file,
    refusal,
)
from segx.predict.sources import file_system, is_local, printable
from segx.system.files import is_url, lock_folder, output_errors, unlock_folder, write_bytes

_PART = f"{MANIFEST_NAME}/part-*.jsonl"


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What a store held before a run.

    Attributes:
        names: of all files.
        settings: of the run to resume; None if there is none.
        masks: those of finished images, by their names.
        lost: names of images, with a line but without all of their masks, whose other files may be replaced.
        next_part: the first number that no part of the manifest has.
    """

    names: Collection[str]
    settings: Mapping[str, Any] | None = None
    masks: Mapping[str, Sequence[str]]
    lost: Collection[str] = ()
    next_part: int = 0


class Store:
    """A folder or URL that masks are written to; picklable.

    A file is written completely or not at all: into a folder by a rename, to an object store in one request.
    """

    def __init__(self, url: str) -> None:
        if is_url(url):
            self._system, self._root = file_system(url)
        else:
            from fsspec.implementations.local import LocalFileSystem

            self._system, self._root = LocalFileSystem(), os.path.abspath(url)  # noqa: PTH100 - as fsspec has it
        self._local = is_local(self._system)
        self.url = self._root if self._local else url
        self._real = os.path.realpath(self._root) if self._local else ""

    def __reduce__(self) -> tuple[object, ...]:
        return Store, (self.url,)

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one of this machine."""
        return Path(self._root) if self._local else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create a folder and keep other runs of segx out of it; object stores have no locks.

        Raises:
            OutputError: it cannot be created, or another run uses it.
        """
        if not self.folder:
            yield
            return
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(self.folder)
        try:
            yield
        finally:
            unlock_folder(self.folder, lock)

    def earlier(self, *, resume: bool) -> Earlier:
        """Return what is there.

        Raises:
            OutputError: there is an earlier run's manifest, which is not to be continued, or nothing can be listed.
            ResultsError: the manifest is damaged.
        """
        try:
            found = self._system.find(self._root)
        except Exception as error:
            raise self._error("list", "", error) from error
        names = frozenset(posixpath.relpath(path, self._root) for path in found)
        parts = sorted(fnmatch.filter(names, _PART))
        if not parts and MANIFEST_NAME not in names:
            return Earlier(names=names, masks={})
        if not resume:
            raise earlier_run(self.url)
        settings = parse_settings(self.read(SETTINGS_NAME), self._shown(SETTINGS_NAME))
        masks, lost = finished((entry for part in parts for entry in self._entries(part)), names.__contains__)
        numbers = [int(part.removesuffix(".jsonl").rpartition("-")[2]) for part in parts]
        return Earlier(names=names, settings=settings, masks=masks, lost=lost, next_part=max(numbers, default=-1) + 1)

    def start(self, earlier: Earlier, settings: Mapping[str, Any], classes: list[dict[str, Any]] | None) -> None:
        """Write the settings of a run, and the legend of its classes.

        Raises:
            NotComparable: the run to resume has other settings.
            OutputError: they cannot be written, or a file of that name existed before.
            ResultsError: the settings that are there are damaged.
        """
        if earlier.settings is not None:
            refuse_other_settings(earlier.settings, settings, self.url)
        elif SETTINGS_NAME in earlier.names:
            parse_settings(self.read(SETTINGS_NAME), self._shown(SETTINGS_NAME))
        if classes and LEGEND_NAME in earlier.names and self.read(LEGEND_NAME) != legend_file(classes):
            hint = "rename it, or choose another folder"
            raise OutputError(f"{self._shown(LEGEND_NAME)} exists already", hint=hint)
        if classes:
            self.write(LEGEND_NAME, legend_file(classes))
        self.write(SETTINGS_NAME, settings_file(settings).encode())

    def write_part(self, number: int, entries: Collection[Entry]) -> None:
        """Write a part of the manifest, replacing what an attempt before may have left; raises as ``write``."""
        self.write(_PART.replace("*", f"{number:06}"), b"".join(entry.line for entry in entries))

    def read(self, relative: str) -> bytes:
        """Read a file.

        Raises:
            OutputError: it cannot be read.
        """
        try:
            data: bytes = self._system.cat_file(self._path(relative))
        except Exception as error:
            raise self._error("read", relative, error) from error
        return data

    def write(self, relative: str, data: bytes) -> None:
        """Write a file.

        Raises:
            OutputError: it cannot be written.
        """
        if self.folder:
            write_bytes(self.folder / relative, data)
            return
        path = self._path(relative)
        try:
            try:
                self._system.pipe_file(path, data)
            except FileNotFoundError:  # of file systems that have folders
                self._system.makedirs(posixpath.dirname(path), exist_ok=True)
                self._system.pipe_file(path, data)
        except Exception as error:
            raise self._error("write", relative, error) from error

    def put(self, relative: str, data: bytes, *, taken: bool) -> None:
        """Write a file of an image; one that is ``taken`` existed before the run, and is only accepted if it is equal.

        Raises:
            ImageError: this path cannot be written, or is taken; others can be written.
            OutputError: nothing can be written any more: the disk is full, or the folder cannot be written to.
        """
        check_relative(relative)
        if self.folder:
            checked_path(self.folder, self._real, relative)
        if taken:
            with contextlib.suppress(OutputError):
                if self.read(relative) == data:
                    return
            raise refusal(relative, TAKEN)
        try:
            self.write(relative, data)
        except OutputError as error:
            code = getattr(error.__cause__, "errno", None)
            if not self.folder:
                raise refusal(relative, error.message.partition(": ")[2]) from error
            if code in PATH_ERRORS:
                raise refusal(relative, PATH_ERRORS[code]) from error
            raise

    def remove(self, relative: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(Exception):  # what is left is replaced or named by the next run
            self._system.rm_file(self._path(relative))

    def _entries(self, part: str) -> Iterator[Entry]:
        lines = self.read(part).splitlines(keepends=True)
        return (entry for entry, _ in parse_entries(lines, self._shown(part)))

    def _path(self, relative: str) -> str:
        return f"{self._root}/{relative}"

    def _shown(self, relative: str) -> str:
        return printable(f"{self.url.rstrip('/')}/{relative}".rstrip("/"))

    def _error(self, what: str, relative: str, error: Exception) -> OutputError:
        hint = "check the address, your credentials for it, and the network"
        return OutputError(
            f"cannot {what} {self._shown(relative)}: {type(error).__name__}: {first_line(error)}", hint=hint
        )
