from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.errors import ImageError
from segx.predict.item import Item
from segx.predict.lists import ListInputs, _paths
from segx.predict.sources import fetch, open_inputs


def of_text(text: bytes) -> list[Item]:
    return list(open_inputs("-", stdin=io.BytesIO(text)))


def written(folder: Path, text: bytes, name: str = "list.txt") -> str:
    (folder / name).write_bytes(text)
    return str(folder / name)


@pytest.mark.parametrize("name", ["list.txt", "list.LST"])
def test_a_list_file(tmp_path: Path, name: str) -> None:
    inputs = open_inputs(written(tmp_path, b"b.png\nsub/a.jpg\n\nc d.png", name))
    assert inputs.count == 3
    assert [(item.name, item.mask) for item in inputs] == [
        ("b.png", "b.png"),
        ("sub/a.jpg", "sub/a.png"),
        ("c d.png", "c d.png"),
    ]


def test_a_list_on_standard_input() -> None:
    inputs = open_inputs("-", stdin=io.BytesIO(b"a.png\nb.png\n"))
    assert inputs.count is None
    assert [item.name for item in inputs] == ["a.png", "b.png"]
    assert inputs.source == "standard input"


def test_null_bytes_separate_names_with_line_breaks(tmp_path: Path) -> None:
    text = b"line\nbreak.png\0b.png\0\r.png\r\0"
    assert [item.name for item in of_text(text)] == ["line\nbreak.png", "b.png", "\r.png\r"]
    assert open_inputs(written(tmp_path, text)).count == 3


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
    (item,) = open_inputs(written(lists, b"./sub/a.png\n"))
    assert item.name == "sub/a.png"
    assert fetch(item) == b"content"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"../a.png\n", r"\.\. in its path"),
        (b"sub/../../a.png\n", r"\.\. in its path"),
        (b"/\n", "no path of a file"),
        (b".\n", "no path of a file"),
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
        expected = {item.name: item.mask for item in open_inputs(folder)}
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
    with pytest.raises(ImageError, match="no path of a file"):
        fetch(last)


@pytest.mark.parametrize("text", [b"", b"\n\n\r\n", b"\0\0"])
def test_a_list_without_paths(text: bytes) -> None:
    with pytest.raises(ImageError, match="holds no paths"):
        of_text(text)


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"list\.txt is no list of paths"):
        open_inputs(written(tmp_path, b"x" * 200_000))


def test_a_pipe_is_read_as_it_comes() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as feed:  # noqa: PTH123
        items = iter(ListInputs.of_stream(stream, "pipe"))
        for name in (b"a.png", b"b.png"):
            feed.write(name + b"\n")
            assert next(items).name == name.decode()  # would block if a whole buffer were waited for


def test_a_named_pipe_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "names"
    os.mkfifo(path)
    feeder = threading.Thread(target=path.write_bytes, args=(b"a.png\nb.png\n",))
    feeder.start()
    assert [item.name for item in open_inputs(str(path))] == ["a.png", "b.png"]
    feeder.join()


class _Trickling(io.BytesIO):
    """Gives few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self._step = step

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(min(self._step, size or 1))


_PATHS = st.lists(st.binary(min_size=1, max_size=9).filter(lambda b: not set(b) & set(b"\0\n\r\xef")), min_size=1)


@given(_PATHS, st.integers(1, 20))
def test_paths_come_whole_however_the_stream_is_cut(paths: list[bytes], step: int) -> None:
    for end in (b"", b"\n"):
        assert list(_paths(_Trickling(b"\n".join(paths) + end, step), "x")) == paths
    assert list(_paths(_Trickling(b"\0".join(paths) + b"\0", max(step, 10)), "x")) == paths
