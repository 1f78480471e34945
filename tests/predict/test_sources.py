"""Every kind of source gives the right items, and unreadable ones fail by name."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import tempfile
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segx.errors import ImageError, SegxError, UsageError
from segx.masks import folders, image_io
from segx.masks.folders import escaped, list_images, matches, paths_in
from segx.masks.image_io import read_image
from segx.predict.sources import (
    FolderSource,
    Item,
    decode,
    fetch,
    mask_name,
    open_source,
)


def _masks(*names: str) -> dict[str, str]:
    return {name: mask_name(name, set(names).__contains__) for name in names}


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("a.png", "a.png"),
        ("a.PNG", "a.png"),
        ("a.jpg", "a.png"),
        ("sub/dir.x/a.Tiff", "sub/dir.x/a.png"),
        ("a b\n.jpeg", "a b\n.png"),
        ("scan", "scan.png"),
        ("scan.webp", "scan.png"),
        ("scan.xyz", "scan.xyz.png"),
        ("a.jPg", "a.jPg.png"),
        ("clip.mp4/000012", "clip.mp4/000012.png"),
        ("\udcff.bmp", "\udcff.png"),
    ],
)
def test_the_suffix_of_an_image_becomes_png(name: str, mask: str) -> None:
    assert mask_name(name, lambda _: False) == mask
    assert Item(name, Path(name)).mask == mask


def test_images_that_differ_only_in_the_suffix_keep_it() -> None:
    assert _masks("a.jpg", "a.png", "a.tif", "b.tif") == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png",
        "a.tif": "a.tif.png",
        "b.tif": "b.png",
    }


def test_a_name_that_another_mask_would_have_is_left_to_it() -> None:
    assert _masks("a.jpg", "a.png", "a.jpg.png") == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png",
        "a.jpg.png": "a.jpg.png.png",
    }


def test_a_folder_in_the_way_of_a_mask_is_avoided() -> None:
    assert mask_name("a.jpg", {"a.jpg", "a.png"}.__contains__) == "a.jpg.png"


_SUFFIXES = st.lists(st.sampled_from([".png", ".jpg", ".JPG", ".Tif", ".tIf", ".bmp", ".webp", ""]), max_size=4)
_NAMES = st.builds(lambda stem, suffixes: stem + "".join(suffixes), st.sampled_from(["a", "b"]), _SUFFIXES)


@given(st.sets(_NAMES, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_no_two_images_of_a_folder_share_a_mask_whatever_the_order(names: set[str], order: random.Random) -> None:
    shuffled = sorted(names)
    order.shuffle(shuffled)
    masks = _masks(*shuffled)
    assert len(set(masks.values())) == len(masks)
    assert masks == _masks(*sorted(names))
    assert all(mask.endswith(".png") for mask in masks.values())


def test_items_with_the_same_fault_are_equal() -> None:
    first, second = (Item("a.png", Path("a.png"), fault=ImageError("a.png is broken", hint="copy it")) for _ in "12")
    assert first == second


@given(st.text())
def test_a_name_is_shown_on_one_printable_line(name: str) -> None:
    shown = escaped(name)
    assert shown.isprintable()
    shown.encode("utf-8")


def test_plain_names_are_shown_as_they_are() -> None:
    assert escaped("sub/a b-细胞.png") == "sub/a b-细胞.png"
    assert escaped("a\nb\udcff\x1b") == r"a\nb\udcff\x1b"


Block = Callable[[], AbstractContextManager[None]]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(given: Path | str, exclude: Path | None = None) -> list[str]:
    return [item.name for item in open_source(str(given), exclude=exclude)]


def counted(inputs: FolderSource) -> int | None:
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
    items = {item.name: item for item in open_source(str(tmp_path))}
    assert items["sub/a.jpg"].path == tmp_path / "sub" / "a.jpg"
    assert items["sub/a.jpg"].mask == "sub/a.jpg.png"
    assert items["sub/a.tif"].mask == "sub/a.tif.png"
    assert items["b.jpg"].mask == "b.png"


def test_a_folder_named_like_a_mask_is_no_obstacle(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png/x.png", "b/x.png", "b.png")
    assert {item.name: item.mask for item in open_source(str(tmp_path))} == {
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
    (item,) = open_source(str(tmp_path))
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
    assert names(tmp_path) == ["a/x.png", "b/y.png", "itself.png"]


def test_what_cannot_be_read_is_an_item_that_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    os.mkfifo(tmp_path / "pipe.png")
    for item in open_source(str(tmp_path)):
        with pytest.raises(ImageError, match=item.name):
            fetch(item)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png")
    (item,) = open_source(str(tmp_path))
    item.path.unlink()
    with pytest.raises(ImageError, match=r"sub/a\.png: No such file"):
        fetch(item)


def test_an_unreadable_folder_fails_by_name_and_the_others_go_on(locked_folder: Path, unprivileged: Block) -> None:
    touch(locked_folder, "a.png", "m/b.png", "z.png")
    (locked_folder / "m").chmod(0o000)
    with unprivileged():
        items = list(open_source(str(locked_folder)))
        assert [item.name for item in items] == ["a.png", "m", "z.png"]
        with pytest.raises(ImageError, match="cannot read m: Permission denied"):
            fetch(items[1])
    (locked_folder / "m").chmod(0o755)


def test_a_folder_that_cannot_be_read_at_all(locked_folder: Path, unprivileged: Block) -> None:
    touch(locked_folder, "a.png")
    locked_folder.chmod(0o000)
    with unprivileged(), pytest.raises(ImageError, match="Permission denied"):
        open_source(str(locked_folder))


def test_a_folder_that_vanishes_after_it_was_opened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    inputs = open_source(str(tmp_path / "in"))
    (tmp_path / "in").rmdir()
    with pytest.raises(ImageError, match="No such file"):
        list(inputs)


def test_a_folder_without_images(tmp_path: Path) -> None:
    touch(tmp_path, "note.txt", "sub/.hidden.png")
    with pytest.raises(ImageError, match="has no images") as caught:
        list(open_source(str(tmp_path)))
    assert "png" in caught.value.hint


def test_what_a_search_passes_over_is_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "._a.png", ".cache/b.png", "1.npy", "2.npy", "sub/3.npy", "4.npy", "README")
    source = open_source(str(tmp_path))
    assert [item.name for item in source] == ["a.png"]
    assert source.passed_over.line == (
        "passed over 4 .npy (1.npy, 2.npy, 4.npy, …), 2 hidden (._a.png, .cache), 1 without suffix (README)"
    )


def test_nothing_passed_over_is_nothing_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "notes.txt")
    source = open_source(str(tmp_path / "*.png"))
    assert [item.name for item in source] == ["a.png"]
    assert not source.passed_over.line


def test_masks_beside_images_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png", "more/masks/b.png")
    source = open_source(str(tmp_path))
    assert [item.name for item in source] == ["images/a.png", "more/masks/b.png"]
    assert source.passed_over.line == "passed over 1 folder of masks beside images (masks)"
    assert names(str(tmp_path / "*" / "a.png")) == ["images/a.png", "masks/a.png"]  # asked for
    assert names(tmp_path / "masks") == ["a.png"]


def test_masks_of_an_earlier_prediction_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/a.png", "out/segx-predict.json", "data/b.png", "data/manifest.jsonl")
    source = open_source(str(tmp_path))
    assert [item.name for item in source] == ["a.png", "data/b.png"]
    assert source.passed_over.line == (
        "passed over 1 .jsonl (data/manifest.jsonl), 1 folder of an earlier prediction (out)"
    )


def test_the_masks_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "masks/a.png", "sub/masks/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "masks")
    assert names(tmp_path, tmp_path / "masks") == ["a.png", "sub/masks/a.png"]


def test_masks_of_a_folder_made_later_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    inputs = iter(open_source(str(tmp_path), exclude=tmp_path / "masks"))
    touch(tmp_path, "masks/a.png")
    assert [item.name for item in inputs] == ["a.png"]


@pytest.mark.parametrize("pattern", ["", "*.png"])
def test_masks_among_the_images_are_refused(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match="among the images"):
        open_source(str(tmp_path / pattern), exclude=tmp_path)


def test_the_count_is_found_in_the_background(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n // 10}/{n}.png" for n in range(50)))
    inputs = FolderSource(tmp_path)
    assert inputs.count is None
    next(iter(inputs))
    assert counted(inputs) == 50


def test_of_a_large_folder_one_directory_is_in_memory(tmp_path: Path) -> None:
    for number in range(50):
        folder = tmp_path / f"{number:02}"
        folder.mkdir()
        for image in range(50):
            (folder / f"an_image_with_quite_a_long_name_{image:04}.png").touch()
    ours = tracemalloc.Filter(inclusive=True, filename_pattern=folders.__file__)  # not the interpreter's own tables
    held, total = [], 0
    tracemalloc.start()
    try:
        for total, _ in enumerate(FolderSource(tmp_path), start=1):
            if total % 125 == 0:
                snapshot = tracemalloc.take_snapshot().filter_traces([ours])
                held.append(sum(trace.size for trace in snapshot.traces))
    finally:
        tracemalloc.stop()
    assert total == 2_500
    assert max(held) < 50_000  # 2,500 names and paths would be over 250 kB


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
    with pytest.raises(ImageError, match=r"\*\.tif has no images"):
        list(open_source(str(tmp_path / "*.tif")))
    with pytest.raises(UsageError, match=r"no folder .*gone"):
        open_source(str(tmp_path / "gone" / "*.tif"))


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "set[1]/a.png", "set1/b.png")
    assert names(tmp_path / "set[1]") == ["a.png"]


_PARTS = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4).map(tuple)
_PATTERNS = st.lists(st.sampled_from(["a", "*", "?", "**", "a*"]), max_size=4).map(tuple)


@given(_PARTS, _PATTERNS)
def test_a_folder_that_leads_to_a_match_is_entered(parts: tuple[str, ...], pattern: tuple[str, ...]) -> None:
    if parts and matches(parts, pattern):
        assert all(matches(parts[:depth], pattern, below=True) for depth in range(1, len(parts)))


def of_text(text: bytes) -> list[Item]:
    return list(open_source("-", stdin=io.BytesIO(text)))


def written(folder: Path, text: bytes, name: str = "list.txt") -> str:
    (folder / name).write_bytes(text)
    return str(folder / name)


@pytest.mark.parametrize("name", ["list.txt", "list.LST"])
def test_a_list_file(tmp_path: Path, name: str) -> None:
    inputs = open_source(written(tmp_path, b"b.png\nsub/a.jpg\n\nc d.png", name))
    assert inputs.count == 3
    assert [(item.name, item.mask) for item in inputs] == [
        ("b.png", "b.png"),
        ("sub/a.jpg", "sub/a.png"),
        ("c d.png", "c d.png"),
    ]


def test_a_list_on_standard_input() -> None:
    inputs = open_source("-", stdin=io.BytesIO(b"a.png\nb.png\n"))
    assert inputs.count is None
    assert [item.name for item in inputs] == ["a.png", "b.png"]
    assert inputs.name == "standard input"


def test_null_bytes_separate_names_with_line_breaks(tmp_path: Path) -> None:
    text = b"line\nbreak.png\0b.png\0\r.png\r\0"
    assert [item.name for item in of_text(text)] == ["line\nbreak.png", "b.png", "\r.png\r"]
    assert open_source(written(tmp_path, text)).count == 3


def test_line_ends_and_marks_of_windows_are_no_part_of_a_name() -> None:
    assert [item.name for item in of_text(b"\xef\xbb\xbfa.png\r\n\r\nb.png\r\nc.png\r")] == ["a.png", "b.png", "c.png"]


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(path)).write_bytes(b"content")
    (item,) = of_text(path)
    assert os.fsencode(item.name) == path
    assert fetch(item) == b"content"


def test_absolute_paths_keep_all_of_it_below_the_output_folder() -> None:
    (item,) = of_text(b"/data//set/./a.jpg\n")
    assert (item.name, item.path, item.mask) == ("/data/set/a.jpg", Path("/data/set/a.jpg"), "data/set/a.png")


def test_relative_paths_count_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"content")
    lists = tmp_path / "lists"
    lists.mkdir()
    monkeypatch.chdir(tmp_path)
    (item,) = open_source(written(lists, b"./sub/a.png\n"))
    assert item.name == "sub/a.png"
    assert fetch(item) == b"content"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"../a.png\n", r"\.\. in its path"),
        (b"sub/../../a.png\n", r"\.\. in its path"),
        (b"/\n", "not the path of a file"),
        (b".\n", "not the path of a file"),
    ],
)
def test_paths_that_would_escape_fail_by_name_and_the_others_go_on(text: bytes, reason: str) -> None:
    first = b"/ok.png\n" if text.startswith(b"/") else b"ok.png\n"
    items = of_text(first + text + first)
    assert len(items) == 3
    assert items[1].name == text.decode().strip()
    assert items[0].fault is items[2].fault is None
    with pytest.raises(ImageError, match=reason):
        fetch(items[1])


@pytest.mark.parametrize(("first", "second"), [(b"a.png", b"/a.png"), (b"/a.png", b"a.png")])
def test_paths_of_two_kinds_are_not_mixed(first: bytes, second: bytes) -> None:
    items = of_text(first + b"\n" + second)
    assert items[0].fault is None
    with pytest.raises(ImageError, match=r"is (absolute|relative) in a list of (absolute|relative) paths"):
        fetch(items[1])


def test_urls_in_a_list_are_named_apart_from_paths_and_without_credentials() -> None:
    signed = b"https://user:secret@host/a.jpg?sig=secret#x"
    items = of_text(b"\n".join((b"s3://data/a.jpg", b"gs://data/a.jpg", b"/data/a.jpg", signed, b"s3://data/b#1?.jpg")))
    masks = ["s3/data/a.png", "gs/data/a.png", "data/a.png", "https/host/a.png", "s3/data/b#1?.png"]
    assert [(item.mask, item.fault) for item in items] == [(mask, None) for mask in masks]
    assert "secret" not in items[3].name
    for reads, told in ((items[3].read, "https.*host/a.jpg"), (of_text(b"no://a")[0].read, "no://a")):
        assert reads
        with pytest.raises(SegxError, match=told) as raised:
            reads()
        assert "secret" not in str(raised.value)


def test_images_that_differ_only_in_the_suffix_keep_it_as_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "b").mkdir()
    listed = {item.name.rpartition("/")[2]: item.mask for item in of_text(b"\n".join(map(bytes, tmp_path.iterdir())))}
    root = str(tmp_path)[1:]
    assert {name: listed[name] for name in ("a.jpg", "a.png", "b.jpg")} == {
        "a.jpg": f"{root}/a.jpg.png",
        "a.png": f"{root}/a.png",
        "b.jpg": f"{root}/b.png",
    }


_FOUND = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["a", "b", "c", "sub/a", "c.png/b"]),
        st.sampled_from(["", ".jpg", ".png"]),
        st.sampled_from([".jpg", ".png", ".PNG", ".tIf"]),
    ),
)


@given(st.sets(_FOUND, min_size=1, max_size=8).filter(lambda names: "c.png" not in names))
def test_a_list_of_a_folder_gives_the_masks_of_the_folder(names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in names:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).touch()
        expected = {item.name: item.mask for item in open_source(folder)}
        assert {item.name: item.mask for item in of_text("\n".join(names).encode())} == expected
        assert expected.keys() == names
        assert len(set(expected.values())) == len(names)


def test_missing_files_fail_by_name() -> None:
    (item,) = of_text(b"gone\n.png\0")
    with pytest.raises(ImageError, match=r"gone\\n\.png: No such file") as caught:
        fetch(item)
    assert "\n" not in caught.value.message


def test_a_null_byte_that_comes_late_is_no_path() -> None:
    lines = b"a.png\n" * 20_000 + b"b\0.png\n"
    *_, last = of_text(lines)
    with pytest.raises(ImageError, match="not the path of a file"):
        fetch(last)


@pytest.mark.parametrize("text", [b"", b"\n\n\r\n", b"\0\0"])
def test_a_list_without_paths(text: bytes) -> None:
    with pytest.raises(ImageError, match="has no paths"):
        of_text(text)


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"list\.txt is not a list of paths"):
        open_source(written(tmp_path, b"x" * 200_000))


def test_a_pipe_is_read_as_it_comes() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as feed:  # noqa: PTH123
        items = iter(open_source("-", stdin=stream))
        for name in (b"a.png", b"b.png"):
            feed.write(name + b"\n")
            assert next(items).name == name.decode()  # would block if a whole buffer were waited for


def test_a_named_pipe_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "names"
    os.mkfifo(path)
    feeder = threading.Thread(target=path.write_bytes, args=(b"a.png\nb.png\n",))
    feeder.start()
    assert [item.name for item in open_source(str(path))] == ["a.png", "b.png"]
    feeder.join()


class _Trickling(io.BytesIO):
    """Gives few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self._step = step

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(min(self._step, size or 1))


_PATHS = st.lists(
    st.binary(min_size=1, max_size=9).filter(lambda b: b.strip() and not set(b) & set(b"\0\n\r\xef")), min_size=1
)


@given(_PATHS, st.integers(1, 20))
def test_paths_come_whole_however_the_stream_is_cut(paths: list[bytes], step: int) -> None:
    for end in (b"", b"\n"):
        assert list(paths_in(_Trickling(b"\n".join(paths) + end, step), "x")) == paths
        assert list(paths_in(_Trickling(b"\xef\xbb\xbf" + b"\n".join(paths) + end, step), "x")) == paths
    assert list(paths_in(_Trickling(b"\0".join(paths) + b"\0", step), "x")) == paths


def film(path: Path, values: list[int]) -> Path:
    """Every frame of one gray value."""
    code = cv2.VideoWriter.fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), code, 10, (64, 48))
    for value in values:
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "100%d:a b.mp4"])
def test_every_frame_is_an_item(tmp_path: Path, name: str) -> None:
    inputs = open_source(str(film(tmp_path / name, [0, 80, 160, 240])))
    items = list(inputs)
    assert inputs.count == 4
    assert [item.name for item in items] == [f"{name}/{number:06}" for number in range(4)]
    assert [item.mask for item in items] == [f"{name}/{number:06}.png" for number in range(4)]
    for item, value in zip(items, [0, 80, 160, 240], strict=True):
        pixels = decode(fetch(item), item, 1)
        assert pixels.shape == (48, 64, 1)
        assert abs(float(pixels.mean()) - value) < 4


def test_frames_are_decoded_as_they_are_asked_for(tmp_path: Path) -> None:
    items = iter(open_source(str(film(tmp_path / "a.avi", [0, 100, 200]))))
    first = next(items)
    assert first.frame is not None
    kept = first.frame.copy()
    next(items)
    np.testing.assert_array_equal(first.frame, kept)  # not the capture's own buffer


@pytest.mark.parametrize("content", [b"", b"no video" * 100])
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.mp4 is not a video"):
        open_source(str(tmp_path / "bad.mp4"))


def test_a_video_cut_off_gives_the_frames_it_has_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = film(tmp_path / "cut.avi", [200] * 40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames = len(list(open_source(str(path))))
    assert 0 < frames < 40
    assert f"cut.avi announces 40 frames but has {frames}" in caplog.text


def test_a_whole_video_is_no_cause_for_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(open_source(str(film(tmp_path / "a.avi", [0, 100, 200]))))) == 3
    assert not caplog.text


def test_a_name_that_is_no_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.mp4"))
    film(tmp_path / "a.mp4", [0, 0]).rename(path)
    with pytest.raises(ImageError, match=r"\\udcff\.mp4: its name is not UTF-8"):
        open_source(str(path))


def noise(*shape: int) -> image_io.MaskArray:
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8, endpoint=True)


def saved(path: Path, pixels: image_io.PixelArray | None = None) -> Path:
    assert cv2.imwrite(str(path), noise(20, 30, 3) if pixels is None else pixels)
    return path


# one image


def test_one_image(tmp_path: Path) -> None:
    inputs = open_source(str(saved(tmp_path / "a.jpg")))
    assert inputs.count == 1
    (item,) = inputs
    assert (item.name, item.mask) == ("a.jpg", "a.png")


@pytest.mark.parametrize("name", ["gone", "gone.png", "gone.txt", "nul\0.png"])
def test_what_does_not_exist_is_wrong_usage(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot read") as caught:
        open_source(str(tmp_path / name))
    assert caught.value.message.isprintable()
    assert "folder" in caught.value.hint


def test_what_is_neither_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "a.zip").touch()
    with pytest.raises(UsageError, match=r"a\.zip is not a folder, image, video or list"):
        open_source(str(tmp_path / "a.zip"))


# fetch and decode


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_fetch_and_decode_are_read_image(tmp_path: Path, suffix: str, channels: int) -> None:
    path = saved(tmp_path / f"a.{suffix}")
    item = Item("a", path)
    np.testing.assert_array_equal(decode(fetch(item), item, channels), read_image(path, channels))


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    item = Item("a", saved(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(decode(fetch(item), item, 1)[..., 0], pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_frame_of_a_video_needs_no_file(channels: int) -> None:
    item = Item("clip.mp4/000000", Path("gone.mp4"), frame=noise(4, 6, 3))
    got = decode(fetch(item), item, channels)
    expected = (
        noise(4, 6, 3)[..., ::-1] if channels == 3 else cv2.cvtColor(noise(4, 6, 3), cv2.COLOR_BGR2GRAY)[..., None]
    )
    np.testing.assert_array_equal(got, expected)


def test_broken_images_are_called_by_their_names_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    item = Item("sub/bad\n.png", tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"sub/bad\\n\.png is not an image"):
        decode(fetch(item), item, 1)


def test_unreadable_files_are_named(locked_folder: Path, unprivileged: Block) -> None:
    path = saved(locked_folder / "a.png")
    path.chmod(0)
    with unprivileged(), pytest.raises(ImageError, match=r"a\.png: Permission denied"):
        fetch(Item("a.png", path))


@pytest.mark.parametrize("path", ["/dev/zero", "folder", "pipe"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match=r"cannot read x\.png: (it is not a regular file|Is a directory)"):
        fetch(Item("x.png", tmp_path / path))


def test_files_that_are_refused_are_closed(tmp_path: Path) -> None:
    def next_descriptor() -> int:
        number = os.open(os.devnull, os.O_RDONLY)
        os.close(number)
        return number

    before = next_descriptor()
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageError):
            fetch(Item("x.png", path))
    assert next_descriptor() == before


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageError, match=r"a\.png is empty"):
        fetch(Item("a.png", tmp_path / "a.png"))


def test_a_file_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ImageError, match=r"a\.png is 1024\.0 GiB large") as caught:
        fetch(Item("a.png", path))
    assert "tiles" in caught.value.hint


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def _tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 100)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def _jpeg(width: int, height: int) -> bytes:
    data = cv2.imencode(".jpg", noise(8, 8), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[1].tobytes()
    start = data.index(b"\xff\xc2") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (_png(30_000, 40_000), "30000x40000"),
        (_bmp(30_000, 40_000), "30000x40000"),
        (_bmp(30_000, -40_000), "30000x40000"),
        (_tiff(30_000, 40_000), "30000x40000"),
        (_jpeg(60_000, 50_000), "60000x50000"),
    ],
    ids=["png", "bmp", "bmp upside down", "tiff", "jpeg"],
)
def test_a_huge_image_is_refused_before_memory_is_taken(data: bytes, size: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=rf"huge has {size} pixels, more than 134,217,728"):
            decode(data, Item("huge", Path("huge")), 1)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_the_limit_itself_is_allowed(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    data = cv2.imencode(suffix, noise(20, 30))[1].tobytes()
    item = Item("a", Path("a"))
    monkeypatch.setattr(image_io, "MAX_PIXELS", 600)
    assert decode(data, item, 1).shape == (20, 30, 1)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 599)
    with pytest.raises(ImageError, match="30x20 pixels, more than 599"):
        decode(data, item, 1)


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM", b"II*\0", b"MM\0*"])
def test_a_broken_header_is_a_broken_image(start: bytes) -> None:
    with pytest.raises(ImageError, match=r"bad is (broken|not an image)"):
        decode(start + bytes(range(60)), Item("bad", Path("bad")), 1)


def _in_all_formats() -> list[bytes]:
    pixels = noise(12, 15, 3)
    suffixes = (".png", ".jpg", ".bmp", ".tif", ".webp", ".gif", ".ppm", ".avif")
    plain: list[bytes] = [cv2.imencode(suffix, pixels)[1].tobytes() for suffix in suffixes]
    stream = io.BytesIO()
    Image.fromarray(pixels).quantize(8).save(stream, "TIFF", compression="tiff_lzw")
    wavelets = io.BytesIO()
    Image.fromarray(pixels).save(wavelets, "JPEG2000", num_resolutions=1)
    return [*plain, stream.getvalue(), wavelets.getvalue()]


_CHANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=5)


@given(st.sampled_from(_in_all_formats()), _CHANGES, st.integers(1, 10_000), st.sampled_from([1, 3]))
def test_damaged_images_are_decoded_or_refused_by_name(
    data: bytes, changes: list[tuple[int, int]], length: int, channels: int
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(data)] = value
    said = ""
    pixels = None
    try:
        pixels = decode(bytes(damaged[:length]), Item("bad", Path("bad")), channels)
    except ImageError as error:
        said = error.message
    assert said.startswith("bad ") if pixels is None else pixels.shape[2] == channels


@pytest.mark.parametrize("pattern", ["**", "**/*.png", "*/*.png"])
def test_a_glob_passes_over_the_masks_of_an_earlier_run(tmp_path: Path, pattern: str) -> None:
    for name in ("a/b.png", "masks/a/b.png", "masks/b.png", "masks/segx-predict.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = open_source(f"{tmp_path}/{pattern}")
    assert [item.name for item in source] == ["a/b.png"]
    assert "folder of an earlier prediction (masks)" in source.passed_over.line
