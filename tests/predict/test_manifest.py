"""The manifest survives kills and power failures, and a run resumes from it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.errors import ImageError, NotComparable, OutputError, ResultsError, SegxError
from segx.predict import manifest as module
from segx.predict.manifest import Entry, Manifest, stored_settings
from segx.predict.output import MANIFEST_NAME, SETTINGS_NAME, OutputFolder
from segx.predict.sources import Item
from tests.builders import read_manifest
from tests.mutations import damaged, damaged_json, few_or_many, read_all

Block = Callable[[], AbstractContextManager[None]]

SETTINGS: dict[str, Any] = {"model": "abc", "variant": "fake:fp32", "threshold": 0.5, "size": (640, 480)}


@pytest.fixture
def out(tmp_path: Path) -> Iterator[OutputFolder]:
    with OutputFolder(tmp_path / "out") as folder:
        yield folder


def done(name: str) -> Entry:
    return Entry(name, "done", mask=f"{name}.png")


def failed(name: str) -> Entry:
    return Entry(name, "failed", error="broken")


def begin(out: OutputFolder, *lines: Entry, masks: bool = True) -> Path:
    with Manifest.open(out, SETTINGS, resume=False) as manifest:
        for line in lines:
            manifest.append(line)
            if masks and line.mask:
                (out.path / line.mask).touch()
    return manifest.path


def go_on(out: OutputFolder, **changes: Any) -> set[str]:
    with Manifest.open(out, {**SETTINGS, **changes}, resume=True) as manifest:
        return {*manifest.masks}


# lines


def test_the_area_of_several_classes_is_all_but_the_background() -> None:
    mask = np.array([[0, 1, 2], [0, 0, 255]], np.uint8)
    assert Entry.done(Item("a.png", Path("x")), (3, 2), mask, 1.0).mask_area == 3


def test_a_run_of_several_masks_goes_on_where_one_of_them_is_missing(out: OutputFolder) -> None:
    """Its area is what any of them covers."""
    mask = np.array([[[0, 255]], [[255, 255]]], np.uint8)
    paths = {name: {"x": f"x/{name}.png", "y": f"y/{name}.png"} for name in "ab"}
    lines = [Entry.done(Item(f"{name}.jpg", Path("x")), (2, 1), mask, 1.0, paths[name]) for name in "ab"]
    assert lines[0].mask_area == 2
    assert lines[0].mask_share == 1.0
    begin(out, *lines, masks=False)
    for file in ("x/a.png", "y/a.png", "x/b.png"):
        (out.path / file).parent.mkdir(exist_ok=True)
        (out.path / file).touch()
    assert go_on(out) == {"a.jpg"}


def test_a_line_per_image(out: OutputFolder) -> None:
    item = Item("sub/a.jpg", Path("a.jpg"))
    mask = np.zeros((240, 320), np.uint8)
    mask[:12] = 1
    mask[12:24] = 255
    begin(
        out,
        Entry.done(item, (640, 480), mask, 12.34567),
        Entry.failed(item, ImageError("a.jpg is broken", hint="remove it")),
        masks=False,
    )
    first, second = map(json.loads, (out.path / MANIFEST_NAME).read_text().splitlines())
    assert first == {
        "input": "sub/a.jpg",
        "status": "done",
        "mask": "sub/a.png",
        "width": 640,
        "height": 480,
        "mask_width": 320,
        "mask_height": 240,
        "mask_area": 7680,
        "mask_share": 0.1,
        "ms": 12.346,
    }
    assert second == {
        "input": "sub/a.jpg",
        "status": "failed",
        "error": "a.jpg is broken",
        "hint": "remove it",
    }


_NAMES = st.text(st.characters(exclude_characters="\0") | st.sampled_from('\udc80\udcff\n\r\u2028"'), min_size=1)


@given(st.lists(st.builds(Entry, _NAMES, st.sampled_from(["done", "failed"]), mask=_NAMES, error=_NAMES | st.none())))
def test_lines_come_back_as_they_were(lines: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as folder, OutputFolder(Path(folder)) as out:
        path = begin(out, *lines, masks=False)
        assert list(read_manifest(path)) == lines


def test_lines_of_many_threads_stay_whole(out: OutputFolder) -> None:
    names = [f"{number}-{'x' * (number % 300)}" for number in range(1000)]
    with Manifest.open(out, SETTINGS, resume=False) as manifest, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: manifest.append(done(name)), names))
    assert sorted(line.input for line in read_manifest(manifest.path)) == sorted(names)


def test_a_line_is_there_at_once(out: OutputFolder) -> None:
    with Manifest.open(out, SETTINGS, resume=False) as manifest:
        manifest.append(done("a"))
        assert [line.input for line in read_manifest(manifest.path)] == ["a"]


def test_lines_reach_the_disk_now_and_then(out: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    synced: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.os, "fsync", lambda _: synced.append(now[0]))
    with Manifest.open(out, SETTINGS, resume=False) as manifest:
        synced.clear()
        for now[0] in (100.0, 100.9, 101.0, 101.5, 103.0):
            manifest.append(done("a"))
    assert synced == [101.0, 103.0]


# going on


def test_done_is_what_has_a_line_and_a_mask(out: OutputFolder) -> None:
    begin(out, done("a"), done("b"), failed("c"), done("d"))
    (out.path / "b.png").unlink()
    assert go_on(out) == {"a", "d"}


def test_the_last_line_of_an_image_counts(out: OutputFolder) -> None:
    begin(out, failed("a"), done("a"), done("b"), failed("b"))
    assert go_on(out) == {"a"}


def test_names_that_are_no_utf8_are_done_too(out: OutputFolder) -> None:
    begin(out, done("\udcff\n"))
    assert go_on(out) == {"\udcff\n"}


def test_lines_are_added_to_those_that_are_there(out: OutputFolder) -> None:
    path = begin(out, done("a"))
    with Manifest.open(out, SETTINGS, resume=True) as manifest:
        manifest.append(done("b"))
    assert [line.input for line in read_manifest(path)] == ["a", "b"]


def test_a_run_is_continued_that_was_begun_before_there_was_an_option(out: OutputFolder) -> None:
    begin(out, done("a"))
    now = {**SETTINGS, "scaled_decoding": False}
    with Manifest.open(out, now, resume=True) as manifest:
        assert {*manifest.masks} == {"a"}
    with pytest.raises(NotComparable, match="scaled_decoding"):
        Manifest.open(out, {**SETTINGS, "scaled_decoding": True}, resume=True)


def test_going_on_where_nothing_is_begins_anew(out: OutputFolder) -> None:
    assert go_on(out) == frozenset()
    assert (out.path / MANIFEST_NAME).read_bytes() == b""


def test_a_new_run_does_not_write_into_an_old_one(out: OutputFolder) -> None:
    path = begin(out, done("a"))
    before = path.read_bytes()
    with pytest.raises(OutputError, match="holds the masks of an earlier run") as caught:
        Manifest.open(out, SETTINGS, resume=False)
    assert "--resume" in caught.value.hint
    assert path.read_bytes() == before


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(out: OutputFolder) -> None:
    path = begin(out, done("a"), done("b\udcff"), done("c"))
    whole = path.read_bytes()
    ends = [number + 1 for number, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert len(list(read_manifest(path))) == kept
        with Manifest.open(out, SETTINGS, resume=True) as manifest:
            assert len(manifest.masks) == kept
            manifest.append(done("a"))
        lines = list(read_manifest(path))
        assert len(lines) == kept + 1
        assert lines[-1] == done("a")


@pytest.mark.parametrize("tail", [bytes(4096), bytes(10) + b"\n", b"{}\n", b"[1]\n", b'{"input": "b"', b"\xff\xfe\n"])
def test_a_last_line_that_a_power_cut_left_is_cut_off(out: OutputFolder, tail: bytes) -> None:
    path = begin(out, done("a"))
    before = path.read_bytes()
    path.write_bytes(before + tail)
    assert go_on(out) == {"a"}
    assert path.read_bytes() == before


def test_a_damaged_line_further_up_is_named_and_nothing_is_cut(out: OutputFolder) -> None:
    path = begin(out, done("a"), done("b"), done("c"))
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + b"nonsense\n" + lines[2]
    path.write_bytes(damaged)
    with pytest.raises(ResultsError, match=r"line 2 of .*manifest\.jsonl is damaged"):
        go_on(out)
    assert path.read_bytes() == damaged


# settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "xyz"}, "with model abc, and this run has xyz"),
        ({"variant": "fake:int8"}, "with variant fake:fp32, and this run has fake:int8"),
        ({"threshold": 0.4}, "with threshold 0.5, and this run has 0.4"),
        ({"size": "original"}, r"with size \[640, 480\], and this run has original"),
        ({"overlay": True}, "with overlay None, and this run has True"),
    ],
)
def test_other_settings_do_not_go_on(out: OutputFolder, changes: dict[str, Any], message: str) -> None:
    path = begin(out, done("a"))
    before = path.read_bytes()
    with pytest.raises(NotComparable, match=message):
        go_on(out, **changes)
    assert path.read_bytes() == before


def test_the_settings_can_be_asked_for(out: OutputFolder) -> None:
    assert stored_settings(out.path) is None
    begin(out, done("a"))
    assert stored_settings(out.path) == {**SETTINGS, "size": [640, 480]}


def test_settings_without_a_manifest_are_of_a_run_that_never_began(out: OutputFolder) -> None:
    begin(out, done("a")).unlink()
    assert stored_settings(out.path) is None
    assert go_on(out, model="xyz") == frozenset()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 2, "settings": 3}'])
def test_damaged_settings_are_named(out: OutputFolder, text: str) -> None:
    begin(out, done("a"))
    (out.path / SETTINGS_NAME).write_text(text)
    with pytest.raises(ResultsError, match=SETTINGS_NAME):
        go_on(out)


def test_settings_of_a_later_version_are_refused(out: OutputFolder) -> None:
    begin(out, done("a"))
    (out.path / SETTINGS_NAME).write_text('{"schema_version": 99, "settings": {}}')
    with pytest.raises(ResultsError, match="version 99"):
        go_on(out)


def test_missing_settings_are_named(out: OutputFolder) -> None:
    begin(out, done("a"))
    (out.path / SETTINGS_NAME).unlink()
    with pytest.raises(ResultsError, match=SETTINGS_NAME):
        go_on(out)


def test_a_run_that_ended_before_its_first_line_is_no_run_to_go_on_with(out: OutputFolder) -> None:
    begin(out)
    begin(out)
    assert stored_settings(out.path) is None
    assert go_on(out, model="xyz") == frozenset()
    assert json.loads((out.path / SETTINGS_NAME).read_text())["settings"]["model"] == "xyz"


@pytest.mark.parametrize("link", ["symbolic", "dangling", "hard"])
@pytest.mark.parametrize("name", [MANIFEST_NAME, SETTINGS_NAME])
@pytest.mark.parametrize("resume", [False, True])
def test_links_are_not_followed(out: OutputFolder, tmp_path: Path, link: str, name: str, resume: bool) -> None:
    other, path = tmp_path / "other", out.path / name
    if resume:
        begin(out, done("a"))
        path.rename(other)
    elif link != "dangling":
        other.write_text("of another folder")
    before = other.read_bytes() if other.exists() else None
    path.hardlink_to(other) if link == "hard" else path.symlink_to(other)
    with contextlib.suppress(SegxError):  # a file that is only read may be a link
        Manifest.open(out, SETTINGS, resume=resume).append(done("b"))
    assert (other.read_bytes() if other.exists() else None) == before


@pytest.mark.parametrize("name", [MANIFEST_NAME, SETTINGS_NAME])
@pytest.mark.parametrize("resume", [False, True])
def test_files_of_the_user_with_these_names_are_kept(out: OutputFolder, name: str, resume: bool) -> None:
    (out.path / name).write_text("the user's")
    with pytest.raises(ResultsError, match="cannot be read") as caught:
        Manifest.open(out, SETTINGS, resume=resume)
    assert "--resume" not in caught.value.hint
    assert (out.path / name).read_text() == "the user's"


# what makes everything stop


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk() -> None:
    with (
        Path("/dev/full").open("ab", buffering=0) as stream,
        pytest.raises(OutputError, match="No space left") as caught,
    ):
        Manifest(Path("manifest.jsonl"), stream, {}).append(done("a"))
    assert "free some space" in caught.value.hint


def test_half_a_line_is_taken_back(out: OutputFolder) -> None:
    path = begin(out, done("a"))
    before = path.read_bytes()

    class Nearly:
        def __init__(self) -> None:
            self.real = path.open("ab", buffering=0)
            self.fileno, self.truncate, self.close = self.real.fileno, self.real.truncate, self.real.close

        def write(self, data: bytes) -> int:
            return self.real.write(data[:5])

    stream: Any = Nearly()
    with Manifest(path, stream, {}) as manifest, pytest.raises(OutputError, match="disk is full"):
        manifest.append(done("b"))
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_a_manifest_that_is_gone(out: OutputFolder, how: str) -> None:
    with Manifest.open(out, SETTINGS, resume=False) as manifest:
        manifest.append(done("a"))
        if how == "unlink":
            manifest.path.unlink()
        else:
            (out.path / "other").touch()
            (out.path / "other").replace(manifest.path)
        with pytest.raises(OutputError, match=r"manifest\.jsonl is gone"):
            manifest.append(done("b"))


def test_a_manifest_that_cannot_be_read(locked_folder: Path, unprivileged: Block) -> None:
    locked_folder.chmod(0o777)
    with unprivileged(), OutputFolder(locked_folder / "out") as out:
        path = begin(out, done("a"))
        path.chmod(0)
        with pytest.raises(SegxError, match="Permission denied"):
            go_on(out)


def test_an_os_error_keeps_its_reason(out: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(OutputError, match="Read-only"):
        begin(out)


_RUN = """
import os, signal, sys, threading
from pathlib import Path
from segx.predict.output import OutputFolder
from segx.predict.manifest import Manifest, Entry

out, count, after_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with OutputFolder(out) as folder, Manifest.open(folder, {}, resume=True) as manifest:
    threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for number in range(count):
        name = f"{number % 5}/{number}"
        if name not in manifest.masks:
            folder.write(name + ".png", name.encode() * 100_000)
            manifest.append(Entry(name, "done", mask=name + ".png"))
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [300])
def test_masks_are_whole_and_none_is_made_twice(tmp_path: Path, count: int) -> None:
    out = tmp_path / "out"
    for number in range(12):
        command = [sys.executable, "-c", _RUN, str(out), str(count), str(0.01 + 0.007 * number)]
        subprocess.run(command, check=False, timeout=100)
        for path in out.rglob("*.png"):
            name = str(path.relative_to(out).with_suffix(""))
            assert path.read_bytes() == name.encode() * 100_000
    assert (out / "manifest.jsonl").exists()
    subprocess.run([sys.executable, "-c", _RUN, str(out), str(count), "100"], check=True, timeout=100)
    lines = [line.input for line in read_manifest(out / "manifest.jsonl")]
    assert len(lines) == len(set(lines)) == count
    with OutputFolder(out) as folder, Manifest.open(folder, {}, resume=True) as manifest:
        assert len(manifest.masks) == count
    assert not list(out.glob(".segx*"))


@few_or_many
@pytest.mark.parametrize("name", [MANIFEST_NAME, SETTINGS_NAME])
def test_damaged_manifests_and_settings_are_results_errors(out: OutputFolder, name: str, count: int) -> None:
    line = b'{"input": "a.png", "status": "done", "mask": "a.png", "width": 3, "height": 3, "ms": 1.0}'
    settings = b'{"schema_version": 2, "settings": {"runtime": "x"}, "kept": ["z.png"]}'
    whole = {MANIFEST_NAME: line + b"\n" + line + b"\n", SETTINGS_NAME: settings}

    def resume(data: bytes) -> None:
        for each, content in {**whole, name: data}.items():
            (out.path / each).write_bytes(content)
        with Manifest.open(out, {"runtime": "x"}, resume=True):
            pass

    if name == MANIFEST_NAME:
        read_all((first + b"\n" + whole[name] for first in damaged_json(line, count)), resume)
        read_all(damaged(whole[name], count), resume)
    else:
        read_all(damaged_json(settings, count), resume)
