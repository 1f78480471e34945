from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from segx.errors import ImageError
from segx.masks.folders import PassedOver, images_of, list_images
from segx.masks.image_io import read_image, write_png

Block = Callable[[], AbstractContextManager[None]]

ODD_NAMES = ["a b.png", "zeile\numbruch.png", "细胞-ñ-🔬.png", "per%cent.png", "'quote\".png", "-dash.png"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_png(tmp_path / name, pixels)
    assert list_images(tmp_path) == [tmp_path / name]
    np.testing.assert_array_equal(read_image(tmp_path / name, 1)[..., 0], pixels)


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images_are_listed_by_relative_path(tmp_path: Path) -> None:
    _touch(tmp_path, "b.png", "a/z.jpg", "a.tif", "a/b/c.bmp", "a-b.png", "10.png", "9.png")
    listed = [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)]
    assert listed == ["10.png", "9.png", "a/b/c.bmp", "a/z.jpg", "a-b.png", "a.tif", "b.png"]


def test_every_known_extension_counts_in_either_case(tmp_path: Path) -> None:
    names = [f"{i}.{e}" for i, e in enumerate(["png", "PNG", "jpg", "JPEG", "jpeg", "Tif", "tiff", "BMP"])]
    names += ["8.webp", "9.GIF"]
    _touch(tmp_path, *names, "notes.txt", "a.npy", "png", "archive.png.zip")
    assert [p.name for p in list_images(tmp_path)] == names


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png", ".b.png", "._a.png", ".cache/c.png", "sub/.d/e.png", "sub/f.png")
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "f.png"]


def test_a_folder_that_is_hidden_itself_may_be_asked_for(tmp_path: Path) -> None:
    _touch(tmp_path, ".hidden/a.png")
    assert [p.name for p in list_images(tmp_path / ".hidden")] == ["a.png"]


def test_folders_are_no_images(tmp_path: Path) -> None:
    _touch(tmp_path, "folder.png/a.png")
    assert [p.name for p in list_images(tmp_path)] == ["a.png"]


def test_what_only_has_the_name_of_an_image_is_passed_over(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    passed_over = PassedOver()
    assert list_images(tmp_path, passed_over) == [tmp_path / "a.png", tmp_path / "link.png"]
    assert passed_over.line == "passed over 2 no regular file (broken.png, pipe.png)"


def test_masks_are_passed_over_and_what_is_passed_over_is_told(tmp_path: Path) -> None:
    _touch(tmp_path, "images/a.png", "masks/a.png", "old/b.png", "old/segx-predict.json", "notes.txt", ".c.png")
    passed_over = PassedOver()
    assert list_images(tmp_path, passed_over) == [tmp_path / "images" / "a.png"]
    assert passed_over.line == (
        "passed over 1 .txt (notes.txt), 1 folder of an earlier prediction (old), "
        "1 folder of masks beside images (masks), 1 hidden (.c.png)"
    )


def test_pictures_of_a_bench_are_passed_over(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png", "pictures/b.png", "bench/pictures/c.png", "bench/results.json")
    passed_over = PassedOver()
    assert list_images(tmp_path, passed_over) == [tmp_path / "a.png", tmp_path / "pictures" / "b.png"]
    assert "1 folder of pictures of a bench (bench/pictures)" in passed_over.line


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "notes.txt", ".hidden.png")
    with pytest.raises(ImageError, match="has no images") as caught:
        list_images(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "png" in caught.value.hint


@pytest.mark.parametrize(("name", "told"), [("gone", "gone: No such file"), ("a.png", r"a\.png: Not a directory")])
def test_a_missing_folder_is_refused(tmp_path: Path, name: str, told: str) -> None:
    _touch(tmp_path, "a.png")
    with pytest.raises(ImageError, match=told) as caught:
        list_images(tmp_path / name)
    assert caught.value.hint == "pass a folder of images"


def test_an_unreadable_folder_is_refused(locked_folder: Path, unprivileged: Block) -> None:
    _touch(locked_folder, "a.png")
    locked_folder.chmod(0o000)
    with unprivileged(), pytest.raises(ImageError, match="Permission denied"):
        list_images(locked_folder)


def test_a_folder_in_an_unreadable_folder_is_refused(locked_folder: Path, unprivileged: Block) -> None:
    _touch(locked_folder, "sub/a.png")
    locked_folder.chmod(0o000)
    with unprivileged(), pytest.raises(ImageError, match="sub"):
        list_images(locked_folder / "sub")


def test_an_unreadable_folder_further_down_is_not_passed_over(locked_folder: Path, unprivileged: Block) -> None:
    _touch(locked_folder, "a.png", "sub/b.png")
    (locked_folder / "sub").chmod(0o000)
    with unprivileged(), pytest.raises(ImageError, match="sub"):
        list_images(locked_folder)
    (locked_folder / "sub").chmod(0o755)


def test_a_folder_to_which_many_links_lead_is_listed_once(tmp_path: Path) -> None:
    root, outside = tmp_path / "in", tmp_path / "outside"
    _touch(tmp_path, "in/a/x.png", "in/b/x.png", "in/.hidden/x.png", "outside/x.png", "outside/sub/x.png")
    for name, target in (
        ("1", outside), ("2", outside), ("3", outside / "sub"), ("4", root / "b"), ("5", root / ".hidden"),
        ("a/to_b", root / "b"), ("b/to_a", root / "a"), ("../outside/back", root),
    ):  # fmt: skip
        (root / name).symlink_to(target)
    passed_over = PassedOver()
    found = [path.relative_to(root).as_posix() for path in list_images(root, passed_over)]
    assert found == ["1/sub/x.png", "1/x.png", "5/x.png", "a/x.png", "b/x.png"]
    assert "folder found elsewhere too (2, 3, 4" in passed_over.line


def test_links_to_a_folder_that_is_passed_over_by_its_name_are_followed(tmp_path: Path) -> None:
    _touch(tmp_path, "in/a/images/x.png", "in/a/masks/y.png", "in/b/images/x.png", "outside/z.png")
    root = tmp_path / "in"
    for name, target in (("b/masks", "outside"), ("c", "outside"), ("d", "in/a/masks")):
        (root / name).symlink_to(tmp_path / target)
    found = [path.relative_to(root).as_posix() for path in list_images(root)]
    assert found == ["a/images/x.png", "b/images/x.png", "c/z.png", "d/y.png"]


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    _touch(tmp_path, "in/a.png", "elsewhere/b.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path / "in")] == ["in/a.png", "in/link/b.png"]


# images_of


@pytest.mark.parametrize("name", ["list.txt", "list.TXT", "list.lst"])
@pytest.mark.parametrize("text", ["\ufeff/x/b.png\r\n\n/x/a.png\r\n/x/b.png", "/x/b.png\0/x/a.png\0"])
def test_a_list_names_images_once_in_its_order(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert images_of(tmp_path / name) == [Path("/x/b.png"), Path("/x/a.png")]


@pytest.mark.parametrize(("text", "told"), [("", "lists no images"), ("\n \t\r\n  ", "lists no images")])
def test_a_list_without_images_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ImageError, match=rf"list\.txt {told}"):
        images_of(tmp_path / "list.txt")


def test_a_folder_with_the_suffix_of_a_list_is_a_folder(tmp_path: Path) -> None:
    _touch(tmp_path, "a.txt/a.png")
    assert images_of(tmp_path / "a.txt") == [tmp_path / "a.txt" / "a.png"]
