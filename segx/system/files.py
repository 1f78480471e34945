"""Atomic file writes, output folders and digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from segx.errors import OutputError, UsageError

LOCK_NAME = ".segx.lock"
URL_MARK = "://"
_TEMPORARY = ".segx~"
_TMPDIR_HINT = "set TMPDIR to a folder that is writable and has space"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path; move the file there to ``path`` on leaving, or remove it if the block fails.

    Readers see either the old file or the complete new one, even after a crash or power loss (fsync, then rename).
    A device or a pipe, such as /dev/stdout, is written to instead.

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    with output_errors(path):
        if _takes_a_stream(path):
            with temporary_folder() as folder:
                temporary = folder / path.name
                yield temporary
                with temporary.open("rb") as whole, path.open("ab") as stream:
                    shutil.copyfileobj(whole, stream)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, since libraries derive further file names from the one they are given.
        with temporary_folder(path.parent) as folder:
            temporary = folder / path.name
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)


@contextlib.contextmanager
def folder_written_whole(folder: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Give a temporary folder; put it in the place of ``folder`` on leaving, or remove it if the block fails.

    What was in its place is removed if ``check``, which is given its path for the time being, raises nothing.

    Raises:
        OutputError: it cannot be created, or put in its place.
    """
    folder = folder.resolve()
    with output_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as temporary:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
            yield new
            if folder.exists():
                folder.rename(old)
            try:
                if old.exists():
                    check(old)
                new.rename(folder)
            except BaseException:
                if old.exists() and not folder.exists():
                    old.rename(folder)
                raise


def _takes_a_stream(path: Path) -> bool:
    """Return whether a path is a device, a pipe or an open file (/dev/fd/1), which a file must not replace."""
    folder = path.parent.resolve()
    if folder == Path("/dev") or folder.is_relative_to("/proc"):
        return True
    return path.exists() and not (path.is_file() or path.is_dir())


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give an empty folder in ``parent``, or where TMPDIR says, and remove it on leaving.

    The first one that a process makes in a place removes those there whose process was killed.

    Raises:
        OutputError: it cannot be created where TMPDIR says.
        OSError: it cannot be created in ``parent``.
    """
    errors: AbstractContextManager[None] = contextlib.nullcontext()
    if parent is None:
        try:
            parent = Path(tempfile.gettempdir())
        except FileNotFoundError as error:
            raise OutputError(f"no folder for temporary files: {error.strerror}", hint=_TMPDIR_HINT) from error
        errors = output_errors(parent / _TEMPORARY)
    _remove_abandoned_once(parent)
    with errors:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent))
            lock = _lock_temporary(folder, fcntl.LOCK_EX)
            if folder.exists():
                break
            # Before it was locked, another process took it for an abandoned one.
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned(place: Path) -> None:
    """Remove the temporary folders in a place whose process was killed: the kernel has released their locks."""
    for folder in place.glob(f"{_TEMPORARY}*"):
        if (lock := _lock_temporary(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


_remove_abandoned_once = functools.cache(remove_abandoned)


def _lock_temporary(folder: Path, how: int) -> int | None:
    """Lock a temporary folder as long as the descriptor returned is open; None if that cannot be."""
    with contextlib.ExitStack() as on_failure, contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        on_failure.callback(os.close, lock)
        fcntl.flock(lock, how)
        on_failure.pop_all()
        return lock
    return None


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def named_path(given: Path | str) -> Path:
    """Return a path; an empty text, such as of a shell variable that is unset, is not the current folder.

    Raises:
        UsageError: the text is empty.
    """
    if given == "":
        raise UsageError("a path is empty", hint="give a path, such as . for the current folder")
    return Path(given)


def is_url(given: str) -> bool:
    """Return whether a text is a URL, as ``s3://bucket/photos``, and not a path."""
    return URL_MARK in given


def refuse_inputs(output: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError if a file to be written is one that is read, by whatever name or link."""
    for path in inputs:
        with contextlib.suppress(OSError):  # one of the two does not exist
            if output.samefile(path):
                raise OutputError(f"{output} would replace its own source, {path}", hint="choose another --output")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_field(path: Path, key: str) -> str | None:
    """Return the rest of the first line ``key value`` or ``key: value`` of a kernel file; None if there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = (line.removeprefix(key).lstrip(":") for line in lines if line.startswith((f"{key} ", f"{key}:")))
    return next((rest.strip() for rest in found), None)


def read_kibibytes(path: Path, key: str) -> int:
    """Return the bytes of a line ``key: N kB`` of a kernel file; 0 if there is none."""
    return int((read_field(path, key) or "0").split()[0]) * 1024


@contextlib.contextmanager
def folder_for_results(folder: Path) -> Iterator[None]:
    """Create a folder and check that it can be written; remove it again if it is left empty.

    Raises:
        OutputError: the folder cannot be created or written.
    """
    existed = folder.is_dir()
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    try:
        yield
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # not empty, as it should be
                folder.rmdir()


def open_in_place(path: Path, flags: int) -> int:
    """Open a file to be changed where it is, created if it is missing, and return its descriptor.

    Raises:
        OutputError: it cannot be opened, or is a link, symbolic or hard, by which another file would be changed.
    """
    with output_errors(path), contextlib.ExitStack() as on_failure:
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a pipe
                raise
            descriptor = -1
        else:
            on_failure.callback(os.close, descriptor)
            facts = os.fstat(descriptor)
        if descriptor < 0 or not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            raise OutputError(f"{path} is a link, or not a regular file", hint="remove it, or choose another folder")
        on_failure.pop_all()
        return descriptor


def lock_folder(folder: Path) -> int:
    """Lock a folder for one run of segx, and return a descriptor for ``unlock_folder``.

    Raises:
        OutputError: another run has locked it, or it cannot be written.
    """
    path = folder / LOCK_NAME
    while True:
        with contextlib.ExitStack() as unless_held:
            lock = open_in_place(path, os.O_RDWR)
            unless_held.callback(os.close, lock)
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
            if holder and not holder.isdecimal():
                raise OutputError(f"{path} was not written by segx", hint="rename it, or choose another folder")
            with output_errors(path):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise OutputError(
                        f"{folder} is in use by another run" + (f", process {holder}" if holder else ""),
                        hint="wait for it, stop it, or choose another folder",
                    ) from error
            # The holder may have removed the file between open and flock: then another file has that name, or none.
            if holds_lock(folder, lock):
                with output_errors(path):
                    os.truncate(lock, 0)
                    os.write(lock, f"{os.getpid()}\n".encode())
                unless_held.pop_all()
                return lock


def holds_lock(folder: Path, lock: int) -> bool:
    """Return whether the folder is still the one that was locked."""
    try:
        return os.path.samestat((folder / LOCK_NAME).lstat(), os.fstat(lock))
    except OSError:  # the folder may be gone
        return False


def unlock_folder(folder: Path, lock: int) -> None:
    """Remove a lock and close its descriptor."""
    if holds_lock(folder, lock):
        with contextlib.suppress(OSError):
            (folder / LOCK_NAME).unlink()  # before releasing it: see lock_folder
    os.close(lock)


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into an ``OutputError`` with a hint."""
    hints = {
        errno.ENOSPC: "free some space, or choose another folder",
        errno.EDQUOT: "free some space, or choose another folder",
        errno.EROFS: "choose a folder that is writable",
        errno.EACCES: "choose a folder you may write to",
        errno.EPERM: "choose a folder you may write to",
        errno.ENOTDIR: "part of the path is a file; choose another folder",
        errno.ENOSYS: "choose a folder on a file system that has locks",
        errno.ENOLCK: "choose a folder on a file system that has locks",
        errno.EOPNOTSUPP: "choose a folder on a file system that has locks",
        errno.EEXIST: "a file of that name is in the way; choose another folder",
    }
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = hints.get(error.errno or 0, "choose another folder")
        if any(part.startswith(_TEMPORARY) for part in path.parts) and path.is_relative_to(tempfile.gettempdir()):
            hint = _TMPDIR_HINT
        raise OutputError(f"cannot write {path}: {reason}", hint=hint) from error
