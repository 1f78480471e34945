"""A folder or URL that several machines write masks to, with a manifest in parts: one file for some of the images."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import platform
import posixpath
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segx.errors import OutputError, ResultsError, first_line
from segx.masks.folders import escaped
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
    Write,
    check_relative,
    checked_path,
    legend_file,
    place_new,
    refusal,
)
from segx.predict.sources import file_system, is_local
from segx.system.files import is_url, lock_folder, output_errors, unlock_folder

_PART = f"{MANIFEST_NAME}/part-*.jsonl"
# Names of the files that a part creates, until it has ended; hidden, so that `cat manifest.jsonl/*` leaves it out.
_BEGUN = f"{MANIFEST_NAME}/.part-*.begun"


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What a store held before a run.

    Attributes:
        names: of all files.
        settings: of the run to resume; None if there is none.
        masks: those of finished images, by their names.
        lost: names of images, with a line but without all of their masks, whose other files may be replaced.
        begun: names of files that interrupted parts created, or would have, and which may be replaced.
        next_part: the first number that no part of the manifest has.
    """

    names: Collection[str]
    settings: Mapping[str, Any] | None = None
    masks: Mapping[str, Sequence[str]]
    lost: Collection[str] = ()
    begun: Collection[str] = ()
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
        parts, begun = sorted(fnmatch.filter(names, _PART)), fnmatch.filter(names, _BEGUN)
        if not parts and not begun and MANIFEST_NAME not in names:
            return Earlier(names=names, masks={})
        if not resume:
            raise earlier_run(self.url)
        settings = parse_settings(self.read(SETTINGS_NAME), self._shown(SETTINGS_NAME))
        masks, lost = finished((entry for part in parts for entry in self._entries(part)), names.__contains__)
        numbers = [int(name.rpartition("-")[2].partition(".")[0]) for name in (*parts, *begun)]
        return Earlier(
            names=names,
            settings=settings,
            masks=masks,
            lost=lost,
            begun=frozenset[str]().union(*map(self._read_begun, begun)),
            next_part=max(numbers, default=-1) + 1,
        )

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
            raise OutputError(f"{self._shown(LEGEND_NAME)} already exists", hint=hint)
        if classes:
            self.write(LEGEND_NAME, legend_file(classes))
        self.write(SETTINGS_NAME, settings_file(settings).encode())

    def write_part(self, number: int, entries: Collection[Entry]) -> None:
        """Write a part of the manifest, replacing what an attempt before may have left; raises as ``write``."""
        self.write(_PART.replace("*", f"{number:06}"), b"".join(entry.line for entry in entries))

    def begin(self, number: int, names: Collection[str], own: Collection[str]) -> Collection[str]:
        """Record which files a part will create; return those that it may replace.

        They are its ``own``, of an interrupted run, and those that an attempt before at the same part has recorded.

        Raises:
            OutputError: the record cannot be read or written.
            ResultsError: it is damaged.
        """
        record = _BEGUN.replace("*", f"{number:06}")
        own = frozenset(own)
        try:
            own |= self._read_begun(record)
        except OutputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        new = (name for name in names if not (self.folder and os.path.lexists(self.folder / name)))
        self.write(record, json.dumps(sorted(own.union(new))).encode())
        return own

    def end(self, number: int) -> None:
        """Remove the record of a part whose files all have their lines."""
        self.remove(_BEGUN.replace("*", f"{number:06}"))

    def end_earlier(self, earlier: Earlier) -> None:
        """Remove the records of the parts that an earlier run left."""
        for record in fnmatch.filter(earlier.names, _BEGUN):
            self.remove(record)

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
        """Write a file, replacing one that is there.

        Raises:
            OutputError: it cannot be written.
        """
        self._write(relative, data, replaces=True)

    def put(self, relative: str, data: bytes, *, own: bool = False, taken: bool = False) -> bool:
        """Write a file of an image, and return whether it was written.

        One that exists is replaced if it is the run's ``own``, and else only accepted if it is equal; ``taken`` says
        that it existed before the run.

        Raises:
            ImageError: this path cannot be written, or is taken; others can be written.
            OutputError: nothing can be written any more: the disk is full, or the folder cannot be written to.
        """
        check_relative(relative)
        if self.folder:
            checked_path(self.folder, self._real, relative)
        try:
            if not taken:
                self._write(relative, data, replaces=own)
                return True
        except OutputError as error:
            code = getattr(error.__cause__, "errno", None)
            if self.folder and code == errno.EEXIST and (self.folder / relative).is_dir():
                code = errno.EISDIR
            exists = isinstance(error.__cause__, FileExistsError)
            if not exists and not self.folder:
                raise refusal(relative, error.message.partition(": ")[2]) from error
            if self.folder and code in PATH_ERRORS and not (exists and (self.folder / relative).is_file()):
                raise refusal(relative, PATH_ERRORS[code]) from error
            if not exists:
                raise
        with contextlib.suppress(OutputError):
            if self.read(relative) == data:
                return False
        raise refusal(relative, TAKEN)

    @contextlib.contextmanager
    def together(self, own: Collection[str], taken: Collection[str]) -> Iterator[Write]:
        """Give what writes the files of an image as ``put`` does; none of them is left if the block fails."""
        written: list[str] = []

        def write(relative: str, data: bytes) -> None:
            if self.put(relative, data, own=relative in own, taken=relative in taken):
                written.append(relative)

        try:
            yield write
        except BaseException:
            for relative in written:
                self.remove(relative)
            raise

    def remove(self, relative: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(Exception):  # what is left is replaced or named by the next run
            self._system.rm_file(self._path(relative))

    def _write(self, relative: str, data: bytes, *, replaces: bool) -> None:
        """Write a file; raises OutputError, of a FileExistsError if there is one that is not to be replaced."""
        if self.folder:
            _write_local(self.folder / relative, data, replaces=replaces)
            return
        path = self._path(relative)
        try:
            try:
                self._pipe(path, data, **({} if replaces else {"mode": "create"}))
            except Exception as error:
                if replaces or isinstance(error, FileExistsError):
                    raise
                # Not every store knows that mode, or says that it failed because a file exists.
                if self._system.exists(path):
                    raise FileExistsError(path) from error
                self._pipe(path, data)
        except Exception as error:
            raise self._error("write", relative, error) from error

    def _pipe(self, path: str, data: bytes, **mode: str) -> None:
        try:
            self._system.pipe_file(path, data, **mode)
        except FileNotFoundError:  # of file systems that have folders
            self._system.makedirs(posixpath.dirname(path), exist_ok=True)
            self._system.pipe_file(path, data, **mode)

    def _read_begun(self, record: str) -> frozenset[str]:
        try:
            return frozenset(map(str, json.loads(self.read(record))))
        except (ValueError, TypeError) as error:
            hint = "remove it; masks of that part without a line are then treated as your own files"
            raise ResultsError(f"{self._shown(record)} is damaged", hint=hint) from error

    def _entries(self, part: str) -> Iterator[Entry]:
        lines = self.read(part).splitlines(keepends=True)
        return (entry for entry, _ in parse_entries(lines, self._shown(part)))

    def _path(self, relative: str) -> str:
        return f"{self._root}/{relative}"

    def _shown(self, relative: str) -> str:
        return escaped(f"{self.url.rstrip('/')}/{relative}".rstrip("/"))

    def _error(self, what: str, relative: str, error: Exception) -> OutputError:
        hint = "check the address, your credentials for it, and the network"
        return OutputError(
            f"cannot {what} {self._shown(relative)}: {type(error).__name__}: {first_line(error)}", hint=hint
        )


def _write_local(path: Path, data: bytes, *, replaces: bool) -> None:
    """Write a file completely or not at all, on a file system that machines share.

    No machine removes what another left there, since locks may be those of one machine only.

    Raises:
        OutputError: it cannot be written; of a FileExistsError if there is one that is not to be replaced.
    """
    temporary = path.with_name(f".segx-{platform.node()}-{os.getpid()}-{uuid.uuid4().hex}")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if replaces:
                temporary.replace(path)
            else:
                place_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
