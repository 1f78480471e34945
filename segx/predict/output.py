"""The output folder: locked by one run, and written so that no file in it is ever half there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from segx.errors import ImageError, OutputError
from segx.predict.item import printable
from segx.system.files import output_errors

MANIFEST_NAME = "manifest.jsonl"
SETTINGS_NAME = "segx-predict.json"
LOCK_NAME = ".segx.lock"
PARTIAL_NAME = ".segx-partial"

_OUR_NAMES = frozenset((MANIFEST_NAME, SETTINGS_NAME, LOCK_NAME, PARTIAL_NAME))
# What is wrong with one path, not with the disk: the other images can go on.
_OF_ONE_PATH = {
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENOTDIR: "a file of that name is in the way",
    errno.EEXIST: "a file of that name is in the way",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EILSEQ: "the file system takes no such name",
    errno.EINVAL: "the file system takes no such name",
    errno.ELOOP: "a link there leads to itself",
}


class OutputFolder:
    """Makes the folder, keeps other runs out of it while this one lasts, and writes files into it.

    Use it as a context manager. What a killed run left half written is removed on entering.

    Args:
        path: the folder; made with its parents where it is missing.

    Raises:
        OutputError: on entering: it cannot be made or written, or another run is at work in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path / PARTIAL_NAME
        self._numbers = itertools.count()
        self._lock = -1
        self._root = ""
        self._replaces = False

    def __enter__(self) -> Self:
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / LOCK_NAME)
            try:
                shutil.rmtree(self._partial, ignore_errors=True)
                self._partial.mkdir()
            except OSError:
                os.close(self._lock)
                raise
        self._root = os.path.realpath(self.path)
        # Where a run goes on, a mask may have been finished without its line in the manifest.
        self._replaces = (self.path / MANIFEST_NAME).exists()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lock = self.path / LOCK_NAME
        with contextlib.suppress(OSError):  # the folder may be gone
            if os.path.samestat(lock.stat(), os.fstat(self._lock)):
                shutil.rmtree(self._partial, ignore_errors=True)
                lock.unlink()  # while it is held: see _locked
        os.close(self._lock)

    def path_of(self, relative: str) -> Path:
        """Where a file belongs.

        Args:
            relative: path with ``/``, such as ``Item.mask``.

        Raises:
            ImageError: it would lie outside the folder (absolute, ``..``, a link that leads out), or is the name of a
                file that the folder needs for itself; the message names it.
        """
        parts = relative.split("/")
        if relative.startswith("/") or ".." in parts or "\0" in relative:
            raise _refused(relative, "it would lie outside the output folder")
        if parts[0] in _OUR_NAMES:
            raise _refused(relative, "the output folder needs that name for itself")
        if parts[-1] in ("", "."):
            raise _refused(relative, "it is no path of a file")
        path = self.path / relative
        above = os.path.realpath(path.parent)
        if above != self._root and not above.startswith(self._root.removesuffix("/") + "/"):
            raise _refused(relative, "a link there leads out of the output folder")
        return path

    def write(self, relative: str, data: bytes, *, source: Path | None = None) -> None:
        """Write a file, whole or not at all; folders in its path are made. Safe to call from several threads.

        A file that was there before the first run into this folder is not replaced.

        Args:
            relative: path with ``/``.
            data: its content.
            source: the image it was made from, which is never replaced.

        Raises:
            ImageError: this one path cannot be written; others can.
            OutputError: nothing can be written any more: the disk is full, the folder is gone.
        """
        target = self.path_of(relative)
        self._check_free(target, relative, source)
        temporary = self._partial / str(next(self._numbers))
        try:
            with output_errors(self.path / relative):
                self._write_partial(temporary, data)
                self._put_in_place(temporary, target, relative)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def _check_free(self, target: Path, relative: str, source: Path | None) -> None:
        if not os.path.lexists(target):
            return
        if target.is_dir():
            raise _refused(relative, _OF_ONE_PATH[errno.EISDIR])
        if not self._replaces:
            raise _refused(relative, "it was there before, or an image is given twice")
        with contextlib.suppress(OSError):
            if source is not None and target.samefile(source):
                raise _refused(relative, "it is the image itself")

    def _write_partial(self, temporary: Path, data: bytes) -> None:
        try:
            stream = temporary.open("xb")
        except FileNotFoundError as error:
            raise self._gone() from error
        with stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    def _put_in_place(self, temporary: Path, target: Path, relative: str) -> None:
        try:
            try:
                temporary.replace(target)
            except FileNotFoundError as error:
                if not temporary.exists():
                    raise self._gone() from error  # nor is it made again
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(target)
        except OSError as error:
            if error.errno in _OF_ONE_PATH:
                raise _refused(relative, _OF_ONE_PATH[error.errno]) from error
            raise

    def _gone(self) -> OutputError:
        hint = "choose another folder, or find out who removes it"
        return OutputError(f"the output folder {self.path} is gone", hint=hint)


def _refused(relative: str, reason: str) -> ImageError:
    return ImageError(
        f"cannot write {printable(relative)}: {reason}", hint="rename the image, or choose another folder"
    )


def _locked(path: Path) -> int:
    """Take the lock, or raise OutputError or OSError. Whoever held it has removed the file: look that it is there."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(lock)):
                    os.truncate(lock, 0)
                    os.write(lock, f"{os.getpid()}\n".encode())
                    return lock
        except BlockingIOError as error:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise OutputError(
                f"{path.parent} is in use by another run" + (f", process {holder}" if holder else ""),
                hint="wait for it, stop it, or choose another folder",
            ) from error
        except OSError:
            os.close(lock)
            raise
        os.close(lock)
