"""Atomic file writes, output folders and digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from segx.errors import OutputError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path; move the file there to ``path`` on leaving, or remove it if the block fails.

    Readers see either the old file or the complete new one, even after a crash or power loss (fsync, then rename).

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, since libraries derive further file names from the one they are given.
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}-", dir=path.parent))
    temporary = folder / path.name
    try:
        with output_errors(path):
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    write_bytes(path, text.encode("utf-8"))


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
        errno.EEXIST: "a file of that name is in the way; choose another folder",
    }
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = hints.get(error.errno or 0, "choose another folder")
        raise OutputError(f"cannot write {path}: {reason}", hint=hint) from error
