from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.errors import ImageError, UsageError
from segx.masks.image_io import list_images
from segx.predict.folders import FolderInputs, _matches
from segx.predict.sources import fetch, open_inputs

Block = Callable[[], AbstractContextManager[None]]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(given: Path | str, leave_out: Path | None = None) -> list[str]:
    return [item.name for item in open_inputs(str(given), leave_out=leave_out)]


def counted(inputs: FolderInputs) -> int | None:
    """The count, once it is known."""
    for thread in threading.enumerate():
        if thread.name == "segx-count":
            thread.join()
    return inputs.count


def test_the_order_is_that_of_relative_paths(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/z.jpg", "a.tif", "a/b/c.bmp", "a-b.png", "10.png", "9.png", "a/note.txt", ".h/x.png")
    found = names(tmp_path)
    assert found == ["10.png", "9.png", "a/b/c.bmp", "a/z.jpg", "a-b.png", "a.tif", "b.png"]
    assert found == [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]


def test_items_say_where_to_read_and_where_the_mask_goes(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.jpg", "sub/a.tif", "b.jpg")
    items = {item.name: item for item in open_inputs(str(tmp_path))}
    assert items["sub/a.jpg"].path == tmp_path / "sub" / "a.jpg"
    assert items["sub/a.jpg"].mask == "sub/a.jpg.png"
    assert items["sub/a.tif"].mask == "sub/a.tif.png"
    assert items["b.jpg"].mask == "b.png"


def test_a_folder_named_like_a_mask_is_no_obstacle(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png/x.png", "b/x.png", "b.png")
    assert {item.name: item.mask for item in open_inputs(str(tmp_path))} == {
        "a.jpg": "a.jpg.png",
        "a.png/x.png": "a.png/x.png",
        "b/x.png": "b/x.png",
        "b.png": "b.png",
    }


@pytest.mark.parametrize(
    "name", [b"a b.png", b"zeile\num.png", b"\xff\xfe.png", "细胞.png".encode(), b"-x.png", b"%d*.png"]
)
def test_any_name_is_found_and_read(tmp_path: Path, name: bytes) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    Path(path).write_bytes(b"content")
    (item,) = open_inputs(str(tmp_path))
    assert item.name == os.fsdecode(name)
    assert item.mask == item.name
    assert fetch(item) == b"content"


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.png", "in/b.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert names(tmp_path / "in") == ["b.png", "c.png", "link/a.png"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.png", "b/y.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    assert names(tmp_path) == ["a/other/y.png", "a/x.png", "b/other/x.png", "b/y.png", "itself.png"]


def test_what_cannot_be_read_is_an_item_that_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    os.mkfifo(tmp_path / "pipe.png")
    for item in open_inputs(str(tmp_path)):
        with pytest.raises(ImageError, match=item.name):
            fetch(item)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png")
    (item,) = open_inputs(str(tmp_path))
    item.path.unlink()
    with pytest.raises(ImageError, match=r"sub/a\.png: No such file"):
        fetch(item)


def test_an_unreadable_folder_fails_by_name_and_the_others_go_on(locked_folder: Path, unprivileged: Block) -> None:
    touch(locked_folder, "a.png", "m/b.png", "z.png")
    (locked_folder / "m").chmod(0o000)
    with unprivileged():
        items = list(open_inputs(str(locked_folder)))
        assert [item.name for item in items] == ["a.png", "m", "z.png"]
        with pytest.raises(ImageError, match="cannot read m: Permission denied"):
            fetch(items[1])
    (locked_folder / "m").chmod(0o755)


def test_a_folder_that_cannot_be_read_at_all(locked_folder: Path, unprivileged: Block) -> None:
    touch(locked_folder, "a.png")
    locked_folder.chmod(0o000)
    with unprivileged(), pytest.raises(ImageError, match="Permission denied"):
        open_inputs(str(locked_folder))


def test_a_folder_that_vanishes_after_it_was_opened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    inputs = open_inputs(str(tmp_path / "in"))
    (tmp_path / "in").rmdir()
    with pytest.raises(ImageError, match="No such file"):
        list(inputs)


def test_a_folder_without_images(tmp_path: Path) -> None:
    touch(tmp_path, "note.txt", "sub/.hidden.png")
    with pytest.raises(ImageError, match="holds no images") as caught:
        list(open_inputs(str(tmp_path)))
    assert "png" in caught.value.hint


def test_the_masks_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "masks/a.png", "sub/masks/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "masks")
    assert names(tmp_path, tmp_path / "masks") == ["a.png", "sub/masks/a.png"]


def test_masks_of_a_folder_made_later_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    inputs = iter(open_inputs(str(tmp_path), leave_out=tmp_path / "masks"))
    touch(tmp_path, "masks/a.png")
    assert [item.name for item in inputs] == ["a.png"]


@pytest.mark.parametrize("pattern", ["", "*.png"])
def test_masks_among_the_images_are_refused(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match="among the images"):
        open_inputs(str(tmp_path / pattern), leave_out=tmp_path)


def test_the_count_is_found_in_the_background(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n // 10}/{n}.png" for n in range(50)))
    inputs = FolderInputs(tmp_path)
    assert inputs.count is None
    next(iter(inputs))
    assert counted(inputs) == 50


def test_of_a_large_folder_one_directory_is_in_memory(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / f"{number:02}"
        folder.mkdir()
        for image in range(250):
            (folder / f"an_image_with_quite_a_long_name_{image:04}.png").touch()
    tracemalloc.start()
    try:
        total = sum(1 for _ in FolderInputs(tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 10_000
    assert peak < 1_000_000  # 10,000 names and paths would be several megabytes


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["1.png", "2.png"]),
        ("?.jpg", ["3.jpg"]),
        ("[12].*", ["1.png", "2.png"]),
        ("*/*.png", ["a/4.png", "b/6.png"]),
        ("**/*.png", ["1.png", "2.png", "a/4.png", "a/c/5.png", "b/6.png"]),
        ("**", ["1.png", "2.png", "3.jpg", "a/4.png", "a/c/5.png", "b/6.png"]),
        ("a/**/?.png", ["4.png", "c/5.png"]),
        ("a/*/5.png", ["c/5.png"]),
        ("*", ["1.png", "2.png", "3.jpg"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, found: list[str]) -> None:
    touch(tmp_path, "1.png", "2.png", "3.jpg", "a/4.png", "a/c/5.png", "b/6.png", "note.txt", ".h.png", "a/.h/7.png")
    assert names(tmp_path / pattern) == found


def test_a_relative_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "x1/a.png", "x2/b.png", "y/c.png")
    monkeypatch.chdir(tmp_path)
    assert names("x*/*.png") == ["x1/a.png", "x2/b.png"]


def test_a_glob_passes_over_folders_that_cannot_match(locked_folder: Path, unprivileged: Block) -> None:
    touch(locked_folder, "a/1.png", "b/2.png", "a/deeper/3.png")
    (locked_folder / "b").chmod(0o000)
    with unprivileged():
        assert names(locked_folder / "a*" / "*.png") == ["a/1.png"]
    (locked_folder / "b").chmod(0o755)


def test_a_glob_ends_in_a_loop_of_links(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert names(tmp_path / "**" / "*.png") == ["a/x.png"]


def test_a_glob_that_matches_nothing_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(ImageError, match=r"\*\.tif holds no images"):
        list(open_inputs(str(tmp_path / "*.tif")))
    with pytest.raises(UsageError, match=r"no folder .*gone"):
        open_inputs(str(tmp_path / "gone" / "*.tif"))


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "set[1]/a.png", "set1/b.png")
    assert names(tmp_path / "set[1]") == ["a.png"]


_PARTS = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4).map(tuple)
_PATTERNS = st.lists(st.sampled_from(["a", "*", "?", "**", "a*"]), max_size=4).map(tuple)


@given(_PARTS, _PATTERNS)
def test_a_folder_that_leads_to_a_match_is_entered(parts: tuple[str, ...], pattern: tuple[str, ...]) -> None:
    from segx.predict.folders import _may_lead

    if parts and _matches(parts, pattern):
        assert all(_may_lead(parts[:depth], pattern) for depth in range(1, len(parts)))
