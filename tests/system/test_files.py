from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from segx.errors import OutputError
from segx.system import files
from segx.system.files import (
    LOCK_NAME,
    folder_for_results,
    lock_folder,
    output_errors,
    sha256_of,
    temporary_folder,
    write_bytes,
    write_text,
    written_whole,
)

Block = Callable[[], AbstractContextManager[None]]


def test_bytes_arrive_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.bin", b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.bin"]


def test_missing_folders_are_created(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x" / "y" / "a.bin", b"1")
    assert (tmp_path / "x" / "y" / "a.bin").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["a b.txt", "zeile\numbruch.txt", "细胞 ñ.txt", "x" * 255, "é" * 127, ".hidden"])
def test_any_file_name_works(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "µ")
    assert (tmp_path / name).read_bytes() == "µ".encode()


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old and longer")
    write_text(path, "new")
    assert path.read_text() == "new"


def test_the_old_file_stays_until_the_block_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failing_block_keeps_the_old_file_and_leaves_no_temporary(
    tmp_path: Path, kind: type[BaseException], old: str | None
) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)

    def fail() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            temporary.with_suffix(".data").write_text("what a library wrote beside it")
            raise kind

    with pytest.raises(kind):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_folder_that_a_library_leaves_beside_the_file_is_removed_too(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
        (temporary.parent / "cache").mkdir()
        (temporary.parent / "cache" / "part").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_block_that_writes_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.txt"), written_whole(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_files_get_the_permissions_of_ordinary_files(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("x")
    write_text(tmp_path / "whole", "x")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("below", ["a.txt", "sub/a.txt"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file/.*a\.txt") as caught:
        write_text(tmp_path / "file" / below, "x")
    assert "file" in caught.value.hint
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OutputError, match=r"a\.txt"):
        write_text(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_a_read_only_folder(locked_folder: Path, unprivileged: Block) -> None:
    locked_folder.chmod(0o555)
    with unprivileged(), pytest.raises(OutputError, match=r"a\.txt: Permission denied") as caught:
        write_text(locked_folder / "a.txt", "x")
    assert "you may write to" in caught.value.hint


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match=os.strerror(code)) as caught:
        write_text(path, "new")
    assert "free some space" in caught.value.hint
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk(tmp_path: Path) -> None:
    def fill() -> None:
        with written_whole(tmp_path / "a.txt") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x")

    with pytest.raises(OutputError, match="No space left") as caught:
        fill()
    assert "free some space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), output_errors(Path("a")):
        raise KeyError


def test_the_cause_is_kept() -> None:
    with pytest.raises(OutputError) as caught, output_errors(Path("a")):
        raise OSError(errno.EROFS, "Read-only file system")
    assert isinstance(caught.value.__cause__, OSError)
    assert "writable" in caught.value.hint


def test_an_os_error_without_a_number_keeps_its_text() -> None:
    with pytest.raises(OutputError, match="odd failure"), output_errors(Path("a")):
        raise OSError("odd failure")


@pytest.mark.parametrize("data", [b"", b"abc", bytes(300_000)])
def test_digest_is_sha256(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_an_empty_results_folder_is_removed(tmp_path: Path) -> None:
    with folder_for_results(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()
    assert not (tmp_path / "out").exists()


def test_a_results_folder_with_files_stays(tmp_path: Path) -> None:
    with folder_for_results(tmp_path / "out"):
        (tmp_path / "out" / "a").write_text("x")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_an_existing_results_folder_stays(tmp_path: Path) -> None:
    with folder_for_results(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_results_folder_is_removed_if_the_block_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with folder_for_results(tmp_path / "out"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_results_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="out"), folder_for_results(tmp_path / "out"):
        pass


def test_an_unwritable_results_folder_is_an_error(locked_folder: Path, unprivileged: Block) -> None:
    locked_folder.chmod(0o555)
    with unprivileged(), pytest.raises(OutputError, match="Permission denied"), folder_for_results(locked_folder):
        pass


@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard", "pipe"])
def test_what_is_changed_in_place_is_no_link(tmp_path: Path, kind: str) -> None:
    other, path = tmp_path / "other", tmp_path / LOCK_NAME
    if kind != "dangling":
        other.write_text("of another folder")
    if kind == "hard":
        path.hardlink_to(other)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(other)
    with pytest.raises(OutputError, match=r"\.segx\.lock is a link, or not a regular file"):
        lock_folder(tmp_path)
    assert kind == "dangling" or other.read_text() == "of another folder"
    assert other.exists() == (kind != "dangling")


def test_a_file_of_the_user_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("mine")
    with pytest.raises(OutputError, match="was not written by segx"):
        lock_folder(tmp_path)
    assert (tmp_path / LOCK_NAME).read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As some network file systems are."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OutputError, match=os.strerror(number)) as caught:
        lock_folder(tmp_path)
    assert "has locks" in caught.value.hint


def test_text_that_is_not_unicode_is_written_by_its_codes(tmp_path: Path) -> None:
    write_text(tmp_path / "a.html", "name \udcff")
    assert (tmp_path / "a.html").read_text() == r"name \udcff"


_HOLD = """
import sys, time
from pathlib import Path
from segx.system.files import temporary_folder
with temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("written")
    print(folder, flush=True)
    time.sleep(3600)
"""


def test_temporary_folders_of_killed_processes_are_removed_at_the_next_write(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with contextlib.ExitStack() as running:
        processes = [
            running.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in range(2)
        ]
        for process in processes:
            running.callback(process.kill)
        abandoned, living = (Path(process.stdout.readline().strip()) for process in processes if process.stdout)
        assert abandoned.parent == living.parent == tmp_path
        (tmp_path / ".mine").mkdir()
        processes[0].kill()
        processes[0].wait()
        write_text(tmp_path / "a.txt", "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, ".mine", "a.txt"])
        assert (living / "half").read_text() == "written"


def test_a_full_folder_for_temporary_files_names_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inputs = Path(".segx~12345678") / "inputs.f32"
    with pytest.raises(OutputError, match=str(tmp_path)) as caught, output_errors(tmp_path / inputs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "TMPDIR" in caught.value.hint
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match="gone") as caught, temporary_folder():
        pass
    assert "TMPDIR" in caught.value.hint


def test_a_pipe_and_a_device_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    (tmp_path / "link").symlink_to("/dev/null")
    write_text(tmp_path / "link", "text")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert Path("/dev/null").is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_an_open_file_is_written_to_by_its_descriptor(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        write_text(Path(f"/dev/fd/{file.fileno()}"), "text")
    assert (tmp_path / "file").read_text() == "text"


def test_an_open_file_keeps_what_stands_in_it(tmp_path: Path) -> None:
    """As with ``--output /dev/stdout >> log``."""
    (tmp_path / "log").write_text("before ")
    with (tmp_path / "log").open("a") as log:
        write_text(Path(f"/dev/fd/{log.fileno()}"), "text")
    assert (tmp_path / "log").read_text() == "before text"
