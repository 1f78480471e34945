from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from segx.errors import ImageError, OutputError
from segx.predict import output as module
from segx.predict.output import LOCK_NAME, MANIFEST_NAME, PARTIAL_NAME, OutputFolder

Block = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def out(tmp_path: Path) -> Iterator[OutputFolder]:
    with OutputFolder(tmp_path / "out") as folder:
        yield folder


def files(folder: OutputFolder) -> list[str]:
    shown = [path for path in folder.path.rglob("*") if path.name not in (LOCK_NAME, PARTIAL_NAME)]
    return sorted(str(path.relative_to(folder.path)) for path in shown)


def left_over(folder: OutputFolder) -> list[Path]:
    return list((folder.path / PARTIAL_NAME).iterdir())


# writing


@pytest.mark.parametrize("name", ["a.png", "sub/deep/a.png", "a b\n.png", "\udcff/\udcfe.png", "clip.mp4/000001.png"])
def test_files_are_written_with_their_folders(out: OutputFolder, name: str) -> None:
    out.write(name, b"content")
    assert (out.path / name).read_bytes() == b"content"
    assert left_over(out) == []


def test_nothing_but_the_files_is_left(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "new" / "out") as folder:
        folder.write("a.png", b"x")
    assert [path.name for path in folder.path.iterdir()] == ["a.png"]


def test_files_have_the_permissions_of_ordinary_files(out: OutputFolder) -> None:
    (out.path / "ordinary").touch()
    out.write("a.png", b"x")
    assert (out.path / "a.png").stat().st_mode == (out.path / "ordinary").stat().st_mode


def test_many_threads_may_write(out: OutputFolder) -> None:
    names = [f"{number % 7}/{number}.png" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: out.write(name, name.encode() * 1000), names))
    assert all((out.path / name).read_bytes() == name.encode() * 1000 for name in names)


# names


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "sub/../../a.png", "..", "a\0.png"])
def test_paths_that_would_escape_are_refused_by_name(out: OutputFolder, name: str) -> None:
    with pytest.raises(ImageError, match="outside the output folder") as caught:
        out.write(name, b"x")
    assert module.printable(name) in caught.value.message
    assert files(out) == []


@pytest.mark.parametrize("name", ["", "sub/", "."])
def test_what_is_no_file_name_is_refused(out: OutputFolder, name: str) -> None:
    with pytest.raises(ImageError, match="no path of a file"):
        out.write(name, b"x")


@pytest.mark.parametrize("name", sorted(module._OUR_NAMES))
def test_names_that_the_folder_needs_are_refused(out: OutputFolder, name: str) -> None:
    for path in (name, f"{name}/a.png"):
        with pytest.raises(ImageError, match="needs that name for itself"):
            out.write(path, b"x")


@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_that_leads_out_is_refused(out: OutputFolder, tmp_path: Path, absolute: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    (out.path / "sub").symlink_to(tmp_path / "elsewhere" if absolute else "../elsewhere")
    for name in ("sub/a.png", "sub/deeper/a.png"):
        with pytest.raises(ImageError, match="leads out of the output folder"):
            out.write(name, b"x")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_whose_name_begins_like_the_output_folder_is_outside(out: OutputFolder, tmp_path: Path) -> None:
    (tmp_path / "out2").mkdir()
    (out.path / "sub").symlink_to(tmp_path / "out2")
    with pytest.raises(ImageError, match="leads out"):
        out.write("sub/a.png", b"x")


def test_a_link_that_stays_inside_is_followed(out: OutputFolder) -> None:
    out.write("real/a.png", b"x")
    (out.path / "link").symlink_to(out.path / "real")
    out.write("link/b.png", b"y")
    assert (out.path / "real" / "b.png").read_bytes() == b"y"


def test_the_output_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with OutputFolder(tmp_path / "out") as folder:
        folder.write("sub/a.png", b"x")
    assert (tmp_path / "real" / "sub" / "a.png").exists()


def test_a_link_to_itself_is_refused(out: OutputFolder) -> None:
    (out.path / "loop").symlink_to("loop")
    with pytest.raises(ImageError, match=r"loop/a\.png"):
        out.write("loop/a.png", b"x")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder.png", "a folder of that name is in the way"),
        ("file/a.png", "a file of that name is in the way"),
        ("file/sub/a.png", "a file of that name is in the way"),
        ("x" * 252 + ".png", "the name is too long"),
        ("y" * 256 + "/a.png", "the name is too long"),
    ],
)
def test_a_path_that_cannot_be_written_is_the_fault_of_one_image(out: OutputFolder, name: str, reason: str) -> None:
    (out.path / "folder.png").mkdir()
    (out.path / "file").touch()
    with pytest.raises(ImageError, match=reason):
        out.write(name, b"x")
    assert left_over(out) == []
    out.write("other.png", b"x")


# what is there already


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")
    with OutputFolder(tmp_path) as folder, pytest.raises(ImageError, match=r"a\.png: it was there before"):
        folder.write("a.png", b"x")
    assert path.read_bytes() == b"precious"


def test_a_run_that_goes_on_replaces_what_it_may_have_begun(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"of a run that was killed before it wrote its line")
    (tmp_path / MANIFEST_NAME).touch()
    with OutputFolder(tmp_path) as folder:
        folder.write("a.png", b"x")
    assert (tmp_path / "a.png").read_bytes() == b"x"


@pytest.mark.parametrize("link", ["itself", "hard", "symbolic"])
def test_an_image_is_never_replaced_by_its_own_mask(tmp_path: Path, link: str) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"image")
    target = image if link == "itself" else tmp_path / "out" / "a.png"
    target.parent.mkdir(exist_ok=True)
    if link == "hard":
        target.hardlink_to(image)
    elif link == "symbolic":
        target.symlink_to(image)
    (target.parent / MANIFEST_NAME).touch()
    with OutputFolder(target.parent) as folder, pytest.raises(ImageError, match="it is the image itself"):
        folder.write("a.png", b"mask", source=image)
    assert image.read_bytes() == b"image"


# what makes everything stop


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_stops_everything(out: OutputFolder, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OutputError, match=rf"a\.png: {os.strerror(code)}"):
        out.write("a.png", b"x")
    assert files(out) == []
    assert left_over(out) == []


def test_a_file_that_cannot_be_written_to_its_end_is_not_there(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from segx.errors import OutputError
from segx.predict.output import OutputFolder
with OutputFolder(Path({str(tmp_path / "out")!r})) as folder:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    folder.write("small.png", bytes(1000))
    try:
        folder.write("large.png", bytes(1001))
    except OutputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "large.png: File too large" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.png"]


@pytest.mark.parametrize("made_again", [False, True])
def test_a_folder_that_is_gone_stops_everything(out: OutputFolder, made_again: bool) -> None:
    (out.path / LOCK_NAME).unlink()
    (out.path / PARTIAL_NAME).rmdir()
    out.path.rmdir()
    if made_again:
        out.path.mkdir()
    with pytest.raises(OutputError, match="out is gone") as caught:
        out.write("sub/a.png", b"x")
    assert caught.value.hint
    assert not (out.path / "sub").exists()


def test_a_folder_that_goes_while_a_file_is_written(
    out: OutputFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "fsync", lambda _: out.path.rename(tmp_path / "moved"))
    with pytest.raises(OutputError, match="out is gone"):
        out.write("sub/a.png", b"x")
    assert not out.path.exists()


def test_a_folder_that_may_not_be_written(locked_folder: Path, unprivileged: Block) -> None:
    locked_folder.chmod(0o555)
    with unprivileged(), pytest.raises(OutputError, match="Permission denied"), OutputFolder(locked_folder / "out"):
        pass


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="out"), OutputFolder(tmp_path / "out"):
        pass


# one run at a time

_HOLDER = """
import sys
from pathlib import Path
from segx.predict.output import OutputFolder
with OutputFolder(Path(sys.argv[1])) as folder:
    (folder.path / ".segx-partial" / "17").write_bytes(b"half a m")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in tmp_path/out, which has a file half written."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_second_run_is_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(OutputError, match=f"in use by another run, process {holder.pid}") as caught:
        OutputFolder(tmp_path / "out").__enter__()
    assert "wait" in caught.value.hint
    assert (tmp_path / "out" / PARTIAL_NAME / "17").exists()


def test_a_killed_run_leaves_neither_its_lock_nor_half_a_file(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with OutputFolder(tmp_path / "out") as folder:
        assert left_over(folder) == []
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lock_whose_file_its_holder_removes_meanwhile_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = module.fcntl.flock
    calls = 0

    def removed_just_before(descriptor: int, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / LOCK_NAME).unlink()
        flock(descriptor, how)

    monkeypatch.setattr(module.fcntl, "flock", removed_just_before)
    with OutputFolder(tmp_path):
        assert calls == 2
        with pytest.raises(OutputError, match="in use"), OutputFolder(tmp_path):
            pass


def test_a_run_whose_folder_was_removed_leaves_the_next_one_alone(tmp_path: Path) -> None:
    first = OutputFolder(tmp_path / "out")
    with first:
        (tmp_path / "out").rename(tmp_path / "moved")
        with OutputFolder(tmp_path / "out") as second:
            first.__exit__(None, None, None)
            second.write("a.png", b"x")
            with pytest.raises(OutputError, match="in use"), OutputFolder(tmp_path / "out"):
                pass
            first._lock = os.open(os.devnull, os.O_RDONLY)
