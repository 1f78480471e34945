"""``segx predict`` as a user runs it: what it writes and prints, its exit codes, and what survives a kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segx.model import synthetic
from segx.runtimes.fake import SCRIPT_VARIABLE
from tests.builders import read_manifest

_PATIENCE_S = 120.0


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    chance = np.random.default_rng(0)
    for number in range(30):
        place = folder / "more" if number % 3 else folder
        assert cv2.imwrite(str(place / f"{number:02}.png"), chance.integers(0, 256, (40, 50), dtype=np.uint8))
    return folder


class Command:
    def __init__(self, cwd: Path, onnx: Path) -> None:
        self.cwd = cwd
        self.fixed = ("--model", onnx, "--runtime", "fake")
        self.masks = cwd / "masks"

    def arguments(self, *given: str | Path) -> list[str]:
        return [sys.executable, "-m", "segx", "predict", *map(str, (*given, "--output", self.masks, *self.fixed))]

    def __call__(self, *given: str | Path, stdin: str | None = None, **script: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.arguments(*given),
            capture_output=True,
            text=True,
            cwd=self.cwd,
            input=stdin,
            env=self.environment(script),
            check=False,
        )

    @contextlib.contextmanager
    def started(self, *given: str | Path, **script: Any) -> Iterator[subprocess.Popen[str]]:
        """Running, with some masks written, and not yet done."""
        process = subprocess.Popen(
            self.arguments(*given),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.cwd,
            env=self.environment(script),
            start_new_session=True,
        )
        try:
            give_up = time.monotonic() + _PATIENCE_S
            while len(self.done) < 4:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < give_up
                time.sleep(0.01)
            yield process
        finally:
            process.kill()
            process.communicate()

    @staticmethod
    def environment(script: dict[str, Any]) -> dict[str, str]:
        return {**os.environ, SCRIPT_VARIABLE: json.dumps(script)}

    @property
    def done(self) -> list[str]:
        manifest = self.masks / "manifest.jsonl"
        return [line.input for line in read_manifest(manifest) if line.status == "done"] if manifest.exists() else []

    def assert_whole(self) -> None:
        """Every mask can be read, no file is half there, and every line has its mask."""
        left = {path.name for path in self.masks.rglob("*") if path.name.startswith(".")}
        assert left <= {".segx.lock", ".segx-partial"}
        for line in read_manifest(self.masks / "manifest.jsonl"):
            assert line.mask
            assert cv2.imread(str(self.masks / line.mask), cv2.IMREAD_UNCHANGED).shape == (40, 50)
        written = {str(path.relative_to(self.masks)) for path in self.masks.rglob("*.png") if ".segx" not in str(path)}
        assert {line.mask for line in read_manifest(self.masks / "manifest.jsonl")} <= written


@pytest.fixture
def command(tmp_path: Path, plain_onnx: Path) -> Command:
    return Command(tmp_path, plain_onnx)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def assert_gone(pids: list[int]) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_folder_becomes_masks_under_the_same_paths(command: Command, photos: Path) -> None:
    done = command(photos, "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    wanted = {str(path.relative_to(photos)) for path in photos.rglob("*.png")}
    assert {str(path.relative_to(command.masks)) for path in command.masks.rglob("*.png")} == wanted
    assert sorted(command.done) == sorted(wanted)
    command.assert_whole()
    assert "30 of 30 images" in done.stdout
    assert "images/s" in done.stdout
    assert re.search(r"time per image: [a-z]+ \d[\d.]* (ms|µs) \(\d+%\)", " ".join(done.stdout.split()))
    assert "fake:fp32 at batch 4" in done.stderr


def test_json_is_all_that_is_printed(command: Command, photos: Path) -> None:
    values = json.loads(command(photos, "--json").stdout)
    assert (values["images"], values["failed"], values["runtime"], values["batch_size"]) == (30, 0, "fake", 1)
    assert set(values["stages"]) == {"read", "decode", "preprocess", "infer", "postprocess", "encode", "wait"}


def test_failures_are_counted_named_and_the_exit_code_at_the_end(command: Command, photos: Path) -> None:
    (photos / "00.png").write_bytes(b"no image")
    done = command(photos)
    assert done.returncode == 1
    assert "29 of 30 images" in done.stdout
    assert "1 of 30 images failed; the first: 00.png" in done.stderr
    assert "Traceback" not in done.stderr
    again = command(photos, "--resume")
    assert again.returncode == 1
    assert "29 images done by an earlier run" in again.stdout


def test_libraries_in_c_print_nothing_about_damaged_images(command: Command, photos: Path) -> None:
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8))[1].tobytes()
    (photos / "a.jpg").write_bytes(jpeg[:20] + b"extra" + jpeg[20:-40])
    png = bytearray((photos / "00.png").read_bytes())
    png[-20] ^= 1  # in the check of the pixels
    (photos / "b.png").write_bytes(png)
    done = command(photos)
    assert "b.png" in done.stderr
    assert not re.search("JPEG|libpng", done.stderr)


def test_what_is_true_of_many_images_is_told_once(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), np.full((20, 30), 3520, np.uint16))
    (folder / "c.npy").touch()
    done = command(folder)
    for told in ("--white-level 4095", "passed over 1 .npy (c.npy)"):
        assert done.stderr.count(told) == 1
        assert done.stdout.count(told) == 1
    command.masks = tmp_path / "again"
    again = command(folder, "--white-level", "4095")
    assert again.returncode == 0, again.stderr
    assert not again.stderr.count("give --white-level")
    mask: Any = cv2.imread(str(command.masks / "a.png"), cv2.IMREAD_UNCHANGED)
    assert (mask == 255).all()


@pytest.mark.parametrize(("options", "shape"), [((), (30, 20)), (("--ignore-orientation",), (20, 30))])
def test_a_photograph_is_turned_unless_that_is_declined(
    command: Command, tmp_path: Path, options: tuple[str, ...], shape: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
    assert command(tmp_path / "photo.jpg", *options).returncode == 0
    mask: Any = cv2.imread(str(command.masks / "photo.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == shape


def test_large_photographs_are_decoded_at_part_of_their_size(command: Command, tmp_path: Path) -> None:
    scene = next(iter(synthetic.series(1, seed=5, height=1024, width=768))).image
    Image.fromarray(scene).save(tmp_path / "photo.jpg", quality=95)
    assert command(tmp_path / "photo.jpg").returncode == 0
    full: Any = cv2.imread(str(command.masks / "photo.png"), cv2.IMREAD_UNCHANGED)
    command.masks = tmp_path / "scaled"
    assert command(tmp_path / "photo.jpg", "--scaled-decoding").returncode == 0
    scaled: Any = cv2.imread(str(command.masks / "photo.png"), cv2.IMREAD_UNCHANGED)
    assert scaled.shape == full.shape == (1024, 768)
    assert 0 < (scaled != full).mean() < 0.01
    settings = json.loads((command.masks / "segx-predict.json").read_text())["settings"]
    assert settings["scaled_decoding"]
    command.masks = tmp_path / "not"
    done = command(tmp_path / "photo.jpg", "--scaled-decoding", "--overlay")
    assert done.returncode == 2, done.stderr
    assert "leave out --scaled-decoding or --overlay" in done.stderr


def test_a_palette_and_class_names(command: Command, photos: Path) -> None:
    options = ("--palette", "--class-names", "background, cell")
    assert command(photos, *options).returncode == 0
    with Image.open(command.masks / "00.png") as mask:
        assert mask.mode == "P"
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
    settings = json.loads((command.masks / "segx-predict.json").read_text())["settings"]
    assert (settings["palette"], settings["class_names"]) == (True, ["background", "cell"])
    assert [entry["name"] for entry in json.loads((command.masks / "classes.json").read_text())] == [
        "background",
        "cell",
    ]
    assert command(photos, *options, "--resume").returncode == 0
    command.masks = command.cwd / "other"
    wrong = command(photos, "--class-names", "cell")
    assert wrong.returncode == 2, wrong.stderr
    assert "1 class name for masks of 2 values" in wrong.stderr


def test_stop_ends_at_once(command: Command, photos: Path) -> None:
    (photos / "00.png").write_bytes(b"no image")
    done = command(photos, "--on-error", "stop", seconds_per_image=0.05)
    assert done.returncode == 1
    assert "00.png" in done.stderr
    assert len(command.done) < 30
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("photos")
def test_a_list_on_stdin(command: Command) -> None:
    done = command("-", stdin="photos/00.png\nphotos/more/01.png\n")
    assert done.returncode == 0, done.stderr
    assert sorted(command.done) == ["photos/00.png", "photos/more/01.png"]


@pytest.mark.usefixtures("photos")
def test_interrupted_while_stdin_is_silent(command: Command) -> None:
    process = subprocess.Popen(
        command.arguments("-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=command.cwd,
        start_new_session=True,
    )
    assert process.stdin
    process.stdin.write(b"photos/00.png\n")
    process.stdin.flush()
    give_up = time.monotonic() + _PATIENCE_S
    while command.done != ["photos/00.png"]:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(_PATIENCE_S) == 130
    assert process.stderr
    told = process.stderr.read().decode()
    assert "Traceback" not in told
    assert "Fatal" not in told
    process.stdin.close()
    process.stdout and process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_whole_masks_and_no_process(
    command: Command, photos: Path, number: signal.Signals, code: int
) -> None:
    with command.started(photos, seconds_per_image=0.2) as process:
        workers = children_of(process.pid)
        assert workers
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal sends Ctrl-C: to all
        else:
            process.send_signal(number)
        _, told = process.communicate(timeout=_PATIENCE_S)
        assert process.returncode == code
    assert_gone(workers)
    assert "Traceback" not in told
    before = command.done
    assert 4 <= len(before) < 30
    command.assert_whole()
    assert not (command.masks / ".segx-partial").exists()
    assert command(photos, "--resume").returncode == 0
    assert len(command.done) == len(set(command.done)) == 30
    assert command.done[: len(before)] == before


def test_kill_9_then_resume_does_exactly_what_is_missing(command: Command, photos: Path) -> None:
    with command.started(photos, "--batch-size", "2", seconds_per_image=0.2) as process:
        workers = children_of(process.pid)
        process.kill()
        process.wait(_PATIENCE_S)
    assert_gone(workers)
    before = command.done
    assert 4 <= len(before) < 30
    command.assert_whole()
    stamps = {name: (command.masks / name).stat().st_mtime_ns for name in before}
    with (command.masks / "manifest.jsonl").open("ab") as stream:
        stream.write(b'{"input": "more/torn')  # as a power cut may leave it
    done = command(photos, "--resume", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    assert sorted(command.done) == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert {name: (command.masks / name).stat().st_mtime_ns for name in before} == stamps
    assert f"earlier  {len(before)} images" in done.stdout


def test_a_second_run_into_the_folder_is_refused(command: Command, photos: Path) -> None:
    with command.started(photos, seconds_per_image=0.5) as process:
        second = command(photos, "--resume")
        assert second.returncode == 1
        assert f"in use by another run, process {process.pid}" in second.stderr


def test_a_folder_with_masks_is_not_begun_anew_and_resumed_only_with_the_same_settings(
    command: Command, photos: Path
) -> None:
    assert command(photos).returncode == 0
    again = command(photos)
    assert again.returncode == 1
    assert "--resume" in again.stderr
    other = command(photos, "--resume", "--threshold", "0.25")
    assert other.returncode == 1
    assert "threshold 0.5" in other.stderr
    assert "0.25" in other.stderr


def test_auto_goes_on_with_the_variant_of_the_run_before(command: Command, photos: Path) -> None:
    assert command(photos).returncode == 0
    (photos / "new.png").write_bytes((photos / "00.png").read_bytes())
    command.fixed = command.fixed[:2]
    done = command(photos, "--resume")
    assert done.returncode == 0, done.stderr
    assert "fake:fp32" in done.stderr
    assert "1 of 1 image " in done.stdout


def test_the_threshold_and_the_size_are_those_asked_for(command: Command, photos: Path) -> None:
    assert command(photos / "00.png", "--threshold", "0.0001", "--size", "20x10").returncode == 0
    mask: Any = cv2.imread(str(command.masks / "00.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (10, 20)
    assert (mask == 255).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("nowhere",), "nowhere"),
        (("photos", "--batch-size", "0"), "batch size"),
        (("photos", "--batch-size", "many"), "batch size"),
        (("photos", "--size", "large"), "size"),
        (("photos", "--size", "0x5"), "size"),
        (("photos", "--precision", "int4"), "int4"),
        (("photos", "--runtime", "onnxruntim-cpu"), "onnxruntime-cpu"),
        (("photos", "--runtime", "ort,openvino"), "several runtimes"),
        (("photos", "--runtime", "onnxruntime-web"), "only measures what a web page would get"),
        (("photos", "--runtime", "openvino:int8", "--precision", "fp32"), "leave --precision out"),
        (("photos", "--runtime", "openvino", "--device", "cuda"), "openvino does not run on cuda"),
        (("photos", "--threshold", "1.5"), "threshold"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_wrong_usage_is_told_in_two_lines(command: Command, options: tuple[str, ...], words: str) -> None:
    if "--runtime" in options:
        command.fixed = command.fixed[:2]
    done = command(*options)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not command.masks.exists()


def test_a_disk_that_is_full_ends_the_run_in_two_lines(command: Command, tmp_path: Path, photos: Path) -> None:
    """A limit on the size of files stands for it."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20));"
        "from segx.__main__ import main; main()"
    )
    arguments = command.arguments(photos, "--probabilities", "--size", "1000")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments[3:]], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "  try: " in done.stderr
    assert "error: cannot write" in done.stderr
    assert command.done == []
    assert not list(command.masks.rglob("*.npy"))


def test_names_of_every_kind(command: Command, tmp_path: Path, photos: Path) -> None:
    data = (photos / "00.png").read_bytes()
    folder = tmp_path / "odd"
    (folder / "with space").mkdir(parents=True)
    names = [b"with space/a b.png", b"line\nbreak.png", b"not \xff utf-8.png", "grün.png".encode(), b"-dash.png"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(data)
    (folder / "loop").symlink_to(folder)
    (folder / "link.png").symlink_to(folder / "with space" / "a b.png")
    done = command(folder)
    assert done.returncode == 0, done.stderr
    written = {os.fsencode(path.relative_to(command.masks)) for path in command.masks.rglob("*.png")}
    assert written == {*names, b"link.png"}
    assert {os.fsencode(name) for name in command.done} == written


@pytest.mark.parametrize("heavy", ["torch", "onnxruntime", "openvino"])
def test_the_command_itself_imports_no_engine(
    heavy: str, command: Command, photos: Path, tmp_path: Path, script: Callable[..., None]
) -> None:
    script()
    arguments = command.arguments(photos)[3:]
    program = (
        "import sys\nfrom segx.cli.main import cli\n"
        "if __name__ == '__main__':\n"
        "    cli.main(sys.argv[1:], standalone_mode=False)\n"
        f"    sys.exit({heavy!r} in sys.modules)\n"
    )
    (tmp_path / "main.py").write_text(program)
    done = subprocess.run([sys.executable, tmp_path / "main.py", *arguments], cwd=tmp_path, check=False)
    assert done.returncode == 0
