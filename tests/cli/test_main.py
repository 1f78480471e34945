"""The command as a user runs it: what it prints where, and its exit code."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import segx as segx_package
from segx.__main__ import main
from segx.bench import session
from segx.cli.main import cli
from segx.errors import RuntimeUnavailable
from segx.results.store import load_results, to_json
from segx.system.silence import Output
from tests.benching import run_in_process
from tests.cli.command import QUICK, Benched, segx

_PATIENCE_S = 120.0
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a call of the program in this process, in a folder of its own; it starts no workers of cells."""
    run_in_process(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    outputs = tuple(Output(number, "w", closefd=False) for number in (1, 2))
    monkeypatch.setattr("segx.system.silence.replace_outputs", lambda: outputs)

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["segx", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return subprocess.CompletedProcess(sys.argv, left.value.code, out, err)

    return call


def assert_complaint(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that stderr has one line on what is wrong and one on what to do, and stdout nothing."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    error = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert lines[error + 1].startswith("  try: ")
    assert len(lines) == error + 2
    assert "Traceback" not in done.stderr
    assert not done.stdout
    for word in words:
        assert word in "\n".join(lines[error:])


def test_samples_writes_pairs(command: Command, tmp_path: Path) -> None:
    done = command("samples", "--count", "3", "--size", "40x32", "--output", "s")
    assert done.returncode == 0
    assert "3 images and masks of 40x32 pixels" in done.stdout
    for kind in ("images", "masks"):
        assert [p.name for p in sorted((tmp_path / "s" / kind).iterdir())] == [f"sample_{i:05d}.png" for i in range(3)]


@pytest.mark.parametrize("arguments", [("report",), ("bench", "--resume"), ("export", "--model")])
def test_a_path_that_the_system_refuses_is_named(command: Command, arguments: tuple[str, ...]) -> None:
    name = "a" * 300 + ".onnx"
    assert_complaint(command(*arguments, name), 1, f"cannot use {name}", "File name too long", "check this path")


def test_bench_prints_tables_to_stdout_and_progress_to_stderr(benched: Benched) -> None:
    done, folder = benched
    assert done.returncode == 0, done.stderr
    assert re.search(r"^onnxruntime:fp32 · ", done.stdout, re.MULTILINE)
    assert re.search(r"^batch +2 images +ms/image +images/s +±", done.stdout, re.MULTILINE)
    assert "reading images" in done.stderr
    assert "results are in out" in done.stderr
    names = ["pictures", "report.html", "results.json", "table.csv", "table.md"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == names
    rows = list(csv.DictReader((folder / "out" / "table.csv").read_text().splitlines()))
    assert [(row["runtime"], row["status"]) for row in rows[:2]] == [("onnxruntime-cpu", "ok"), ("fake", "ok")]


def test_the_command_line_is_kept_in_the_results(benched: Benched) -> None:
    _, folder = benched
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["command"].startswith("segx bench --model")
    assert results["schema_version"] == 1


def test_json_alone_goes_to_stdout(command: Command, plain_onnx: Path, tmp_path: Path) -> None:
    arguments = ("--model", plain_onnx, "--runtime", "fake", "--batch-size", "1", *QUICK, "--json")
    done = command("bench", *arguments)
    assert json.loads(done.stdout)["cells"][0]["status"] == "ok"
    (folder,) = (tmp_path / "artifacts").iterdir()
    assert folder.name.startswith("bench-")


def test_broken_parity_exits_3_after_the_table(command: Command, plain_onnx: Path, script: Callable[..., None]) -> None:
    script(flipped_pixels=5, flips_from=2)
    arguments = ("--model", plain_onnx, "--runtime", "fake", "--batch-size", "1,2", *QUICK)
    done = command("bench", *arguments)
    assert done.returncode == 3
    assert "masks FAILED: " in " ".join(done.stdout.split())
    assert "error: masks of fake:fp32 at batch 2 differ" in done.stderr


def test_a_failed_default_gate_is_a_row_and_no_error(
    command: Command, plain_onnx: Path, script: Callable[..., None]
) -> None:
    script(flipped_pixels=9, flips_from=3)
    arguments = ("--model", plain_onnx, "--runtime", "onnxruntime-cpu,fake", "--batch-size", "1,3", *QUICK)
    done = command("bench", *arguments)
    assert done.returncode == 0, done.stderr
    assert "masks FAILED: " in " ".join(done.stdout.split())
    asked = command("bench", *arguments, "--max-changed-pixels", "0.1%")
    assert asked.returncode == 3
    assert "error: masks of fake:fp32 at batch 3 differ" in asked.stderr


def test_folders_and_files_of_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    """The folder above a clone has a folder ``segx``, and a user's own files may have the name of a module."""
    (tmp_path / "segx").mkdir()
    for name in ("segx/__init__.py", "numpy.py", "random.py", "torch.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the current folder')\n")
    program = [sys.executable, "-c", "import sys; del sys.path[0]; from segx.__main__ import main; main()"]
    done = subprocess.run([*program, "doctor", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "current folder" not in done.stderr
    ready = {finding["runtime"] for finding in json.loads(done.stdout)["runtimes"] if finding["ready"]}
    assert {"onnxruntime-cpu", "pytorch-cpu"} <= ready


def test_doctor_shows_how_each_runtime_computes_and_versions_if_asked(command: Command) -> None:
    shown, _, versions = command("doctor", "--versions").stdout.partition("\nversions\n")
    rows = {words[0]: words[1:] for line in shown.splitlines() if (words := line.split())}
    titles = rows["runtime"]
    assert set(rows["onnxruntime-cpu"][: titles.index("version")]) <= {"native", "emulated", "no"}
    assert rows["onnxruntime-cpu"][titles.index("fp32")] == "native"
    assert "tf32" not in titles or "cuda" in shown  # a column that is "no" in all rows says nothing
    assert len(shown.splitlines()) <= 25
    assert re.search(r"^ *numpy +\d", versions, re.MULTILINE)


def test_a_name_that_promises_another_format_is_refused(command: Command) -> None:
    for name, hint in (("x.xml", "OpenVINO reads .onnx files as they are"), ("x.pt", "give it the ending .onnx")):
        done = command("export", "--output", name)
        assert done.returncode == 2
        assert f"{name} would be an ONNX file" in done.stderr
        assert hint in done.stderr


def test_doctor_exits_1_if_no_runtime_is_ready(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise RuntimeUnavailable("not here", hint="install it")

    monkeypatch.setattr("segx.system.processes.Workers.call", nothing)
    done = command("doctor")
    assert done.returncode == 1
    assert "not here" in done.stdout
    assert "numpy" not in done.stdout  # of versions, which were not asked for
    assert "error: no runtime is ready" in done.stderr


def test_a_folder_that_holds_a_bench_is_continued_or_left_alone(command: Command, plain_onnx: Path) -> None:
    arguments = ("bench", "--model", plain_onnx, "--runtime", "onnxruntime-cpu", "--batch-size", "1", *QUICK)
    assert command(*arguments, "--output", "out").returncode == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()}
    done = command(*arguments, "--output", "out")
    assert done.returncode == 1
    assert "out already holds a bench" in done.stderr
    assert "continue it with --resume out, or choose another folder" in done.stderr
    assert {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()} == before


_WITH_PATHS = {
    "bench": ("--weights", "--model", "--images", "--masks", "--calibration", "--output", "--resume"),
    "export": ("--weights", "--model", "--calibration", "--output"),
    "predict images --output out": ("--weights", "--model", "--bench", "--output"),
    "predict --output out": ("",),
    "report": ("",),
    "report bench": ("--output",),
    "compare": ("",),
    "compare bench bench": ("--output",),
    "history": ("",),
    "history .": ("--output",),
    "samples": ("--output",),
}


@pytest.mark.parametrize(("given", "option"), [(given, each) for given, all_ in _WITH_PATHS.items() for each in all_])
def test_an_empty_path_is_wrong_usage(command: Command, given: str, option: str) -> None:
    done = command(*given.split(), *filter(None, [option]), "")
    assert done.returncode == 2
    assert list(Path().iterdir()) == []


def test_nothing_measured_exits_1_after_the_table(command: Command, plain_onnx: Path) -> None:
    arguments = ("--model", plain_onnx, "--runtime", "pytorch-cpu", "--precision", "fp32", "--batch-size", "1", *QUICK)
    done = command("bench", *arguments)
    assert done.returncode == 1
    assert re.search(r"^pytorch-cpu:fp32 +\S", done.stdout, re.MULTILINE)
    assert "error: nothing could be measured" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "0"], ["at least 1"]),
        (["--batch-size", "x"], ["1,2,4"]),
        (["--batch-size", ""], ["1,2,4"]),
        (["--runtime", "onnxruntime_cpu"], ["pytorch-cpu", "did you mean onnxruntime-cpu"]),
        (["--min-time", "soon"], ["5s"]),
        (["--budget", "-1s"], ["5s"]),
        (["--memory-limit", "lots"], ["2GB"]),
        (["--memory-limit", "0"], ["memory limit"]),
        (["--timeout", "0"], ["timeout"]),
        (["--threads", "0"], ["--threads"]),
        (["--num-images", "0"], ["--num-images"]),
        (["--nonsense"], ["No such option"]),
        (["--threshold", "1.5"], ["probability"]),
        (["--white-level", "0"], ["white_level 0.0"]),
        (["--input-size", "big"], ["640x480"]),
        (["--model-arg", "novalue"], ["NAME=VALUE"]),
    ],
)
def test_wrong_usage_exits_2(command: Command, arguments: list[str], words: list[str], tmp_path: Path) -> None:
    assert_complaint(command("bench", *arguments), 2, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    ["bench", "export", "demo", "predict photos --output masks", "predict photos --output masks --engine ray"],
)
def test_threads_are_no_more_than_can_be_meant(command: Command, arguments: str) -> None:
    assert_complaint(
        command(*arguments.split(), "--threads", "99999"), 2, "'--threads': 99999 is not in the range 1<=x<=1024"
    )


def make_folder(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / f"{name}.png").write_bytes(data)
    return path


def test_bad_image_folders_exit_1(command: Command, plain_onnx: Path, tmp_path: Path) -> None:
    command("samples", "--count", "1", "--size", "32", "--out", tmp_path / "s")
    good = (tmp_path / "s" / "images" / "sample_00000.png").read_bytes()
    for folder, word in (
        (tmp_path / "missing", "missing"),
        (make_folder(tmp_path / "empty"), "no images"),
        (make_folder(tmp_path / "mixed", a=good, b=good[: len(good) // 2], c=good), "b.png"),
        (make_folder(tmp_path / "hollow", a=b""), "a.png is empty"),
    ):
        done = command("bench", "--model", plain_onnx, "--runtime", "fake", "--images", folder)
        assert_complaint(done, 1, word)
    assert not (tmp_path / "artifacts" / "results.json").exists()


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("missing.safetensors", None, "no checkpoint at missing.safetensors"),
        ("empty.pth", b"", "is empty"),
        ("cut.safetensors", b"\xff" * 50, "header too large"),
        ("unknown.xyz", b"data", "unknown kind"),
    ],
)
def test_bad_checkpoints_exit_1_and_leave_nothing(
    command: Command, name: str, data: bytes | None, word: str, tmp_path: Path
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert_complaint(command("export", "--weights", name), 1, word)
    assert not (tmp_path / "artifacts").exists() or list((tmp_path / "artifacts").iterdir()) == []


def test_foreign_onnx_exits_1(command: Command, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_text("junk")
    assert_complaint(command("bench", "--model", "junk.onnx"), 1, "junk.onnx")


def test_an_error_that_quotes_a_file_is_one_line_and_controls_no_terminal(command: Command, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"schema_version": "\n\x1b[2J"}))
    done = command("report", str(tmp_path))
    assert_complaint(done, 1, r"has schema version \x1b[2J; this")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = segx("bench", "--debug", "--model", "missing.onnx", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ArtifactError" in done.stderr


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        done = segx("samples", "--count", "50", "--size", "128", "--out", mount, cwd=tmp_path)
        assert_complaint(done, 1, "No space left", "free some space")
        names = [p.name for p in (mount / "images").iterdir()]
        assert names
        assert not any(name.startswith(".") for name in names)
    finally:
        subprocess.run(["umount", mount], check=True)


def start_bench(onnx: Path, folder: Path, *options: str, script: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "segx", "bench", "--model", str(onnx), "--num-images", "2", "--warmup", "0"]
    return subprocess.Popen(
        [*command, *options, "--output", "out"],
        cwd=folder,
        env={**os.environ, "SEGX_FAKE_SCRIPT": script},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Press Ctrl-C a second from now, as a terminal does: for the whole process group."""
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def test_ctrl_c_keeps_what_was_measured_and_exits_130(plain_onnx: Path, tmp_path: Path) -> None:
    options = ("--runtime", "fake", *QUICK, "--batch-size", "1,3")
    process = start_bench(plain_onnx, tmp_path, *options, script='{"hangs_from": 3}')
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "results.json").is_file():
        assert time.monotonic() < deadline, "no cell was saved"
        time.sleep(0.05)
    code, stdout, stderr = interrupt(process)  # in the cell that hangs
    assert code == 130
    assert sorted(path.name for path in (tmp_path / "out").glob("table.*")) == ["table.csv", "table.md"]
    assert "not complete" in stdout
    assert "fake:fp32" in stdout
    assert "what was measured is in out" in stderr
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["complete"] is False


def processes_with(word: str) -> list[int]:
    """Return the processes with a word in the environment they were started in, other than those that have ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if word.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_signal_leaves_no_process_even_while_torch_is_imported(
    shipped_checkpoint: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The import of this torch never ends."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(3600)\n"
    )
    word = f"segx-test-{tmp_path}"
    paths = os.pathsep.join([str(tmp_path), str(Path(segx_package.__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-m", "segx", "bench", "--weights", str(shipped_checkpoint), "--runtime", "onnxruntime-cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "SEGX_TEST": word},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    give_up = time.monotonic() + _PATIENCE_S
    while not (tmp_path / "importing").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert process.wait(_PATIENCE_S) == code
    while processes_with(word):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    _, told = process.communicate()
    assert "Traceback" not in told
    assert ("error: interrupted" in told) == (code > 0)


@pytest.mark.parametrize("engine", ["predict.api.segment", "ray.segment_on_ray"])
def test_an_interrupted_prediction_tells_how_to_go_on(
    command: Command, plain_onnx: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"segx.{engine}", interrupted)
    options = ("--engine", "ray" if "ray" in engine else "local", "--output", "masks")
    done = command("predict", "photos", "--model", plain_onnx, *options)
    assert done.returncode == 130
    told = "error: interrupted\n  try: run the command again with --resume; finished masks, if any, are in masks\n"
    assert done.stderr.endswith(told)


def test_an_interrupted_bench_goes_on_by_its_folder_alone(
    command: Command, plain_onnx: Path, script: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script()
    monkeypatch.setenv("HOME", str(plain_onnx.parent))
    really_run, rounds = session.run_rounds, iter(range(9))

    def second_time_interrupted(*arguments: object, **keywords: object) -> None:
        if next(rounds) == 1:
            raise KeyboardInterrupt
        really_run(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "run_rounds", second_time_interrupted)
    options = ("--model", plain_onnx, "--runtime", "fake,onnxruntime-cpu", "--batch-size", "1,3")
    assert command("samples", "--count", "3", "--size", "32", "--output", "given").returncode == 0
    limits = ("--budget", "9m", "--require", "edges", "--json", "--processes", "1")
    begun = command("bench", *options, *QUICK, "--images", "given/images", *limits, "--output", "out 1")
    assert begun.returncode == 130
    assert begun.stderr.endswith(
        "error: interrupted\n  try: continue with segx bench --resume 'out 1'; what was measured is in out 1\n"
    )
    before = load_results("out 1")
    assert before.command.startswith("segx bench --model ~/plain.onnx")
    assert not before.complete

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = command("bench", "--resume", "../out 1")
    words = (f"was started in {tmp_path}", f"cd {tmp_path} && segx bench --resume '{tmp_path}/out 1'")
    assert_complaint(there, 1, *words)
    with_options = command("bench", *options, *QUICK, "--batch-size", "1,4", "--resume", "../out 1")
    assert_complaint(with_options, 1, "had a different batch_sizes: 1, 3; now 1, 4")
    monkeypatch.chdir(tmp_path)
    other = command("bench", "--resume", "out 1", "--batch-size", "1,4")
    assert_complaint(other, 1, "had a different batch_sizes: 1, 3; now 1, 4")

    done = command("bench", "--resume", "out 1", "--budget", "8m")
    assert done.returncode == 0, done.stderr
    assert "fake:fp32" in done.stdout
    after = load_results("out 1")
    assert after.complete
    assert after.options == dataclasses.replace(before.options, budget_s=480.0)
    assert after.command == before.command
    assert after.cells[:2] == before.cells[:2]
    assert command("bench", "--resume", "out 1").returncode == 0
    assert load_results("out 1").options.budget_s == 480.0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "to", [">/dev/full", ">&-", "2>/dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&1 | head -c 1"]
)
def test_a_bench_whose_output_nobody_takes_keeps_its_results(plain_onnx: Path, tmp_path: Path, to: str) -> None:
    command = [sys.executable, "-m", "segx", "bench", "--model", plain_onnx, "--runtime", "fake", "--num-images", "2"]
    line = shlex.join(map(str, [*command, "--batch-size", "1", *QUICK, "--output", "out"]))
    line = f"set -o pipefail; {line} {to}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["complete"]
    assert (tmp_path / "out" / "report.html").is_file()
    if "head" in to:  # a reader that goes away is not a failure
        assert (done.returncode, len(done.stdout), done.stderr) == (0, 1, "")
    elif to.startswith("2>"):
        assert done.returncode == 1
        assert "fake:fp32" in done.stdout
    else:
        assert done.returncode == 1
        assert not done.stdout
        lines = done.stderr.splitlines()[-2:]
        assert "2>&-" in to or (
            lines[0].startswith("error: cannot write to stdout: ") and lines[1].startswith("  try: ")
        )
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("doctor", "--help")])
@pytest.mark.parametrize("to", [">/dev/full", ">&-"])
def test_output_that_nobody_takes_is_one_error(tmp_path: Path, arguments: tuple[str, ...], to: str) -> None:
    line = f"{shlex.join([sys.executable, '-m', 'segx', *arguments])} {to}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: ", "  try: "]


def interrupted_bench(onnx: Path, folder: Path, *options: str, after: str, script: str) -> tuple[int, str, str]:
    """Run a bench at batch 1 that gets Ctrl-C shortly after it printed certain words."""
    process = start_bench(onnx, folder, *options, "--batch-size", "1", script=script)
    assert process.stderr
    printed = ""
    while after not in printed:
        printed += process.stderr.readline()
    return interrupt(process)


def test_ctrl_c_keeps_the_samples_of_unfinished_cells(plain_onnx: Path, tmp_path: Path) -> None:
    options = ("--runtime", "fake", "--min-time", "1h", "--json")
    slow = '{"seconds_per_call": 0.1}'
    code, stdout, stderr = interrupted_bench(plain_onnx, tmp_path, *options, after="sampling", script=slow)
    assert code == 130
    (cell,) = json.loads(stdout)["cells"]  # with --json nothing else is on stdout
    assert cell["stopped"] == "interrupted"
    assert len(cell["samples_s"]) >= 2
    assert "error: interrupted\n  try: continue with segx bench --resume out; what was measured is in out\n" in stderr
    assert "Traceback" not in stderr


ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("weights/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_and_links_of_the_documentation_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    code = "\n".join(re.findall(r"```.*?```|`[^`]+`", text, flags=re.DOTALL))
    for name, rest in re.findall(r"(?:^|`|\$ |uv run )segx ([a-z]+)\b([^`\n#|]*)", code, flags=re.MULTILINE):
        known = {"--help"}
        for param in cli.commands[name].params:
            known |= {*param.opts, *param.secondary_opts}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known, name
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("arguments", [(), *((name,) for name in cli.commands)])
def test_help_fits_80_columns_and_no_sentence_is_cut_off(arguments: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*arguments, "--help"], terminal_width=80, prog_name="segx").output
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("..." in line for line in lines[1:])  # the first is the usage


def test_help_shows_the_options_of_a_model_apart() -> None:
    shown = CliRunner().invoke(cli, ["predict", "--help"], terminal_width=80).output
    own, of_model = shown.split("Model (if the file does not say):")
    assert "--runtime" in own
    assert "--arch" in of_model
    assert "[default: resnet34]" in of_model


def test_help_is_shown_without_a_command(command: Command) -> None:
    done = command()
    assert done.returncode == 0
    assert "Commands:" in done.stdout
    assert done.stderr == ""


def test_a_closed_pipe_gives_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m segx doctor --help | head -c 10"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr


def test_a_pipe_that_does_not_wait_for_its_reader_gets_everything(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = "from segx.system.silence import replace_outputs; replace_outputs(); print('x' * 200_000)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    time.sleep(0.5)  # it is full by now
    with open(reading, "rb") as stream:  # noqa: PTH123 - a descriptor
        assert len(stream.read()) == 200_001
    _, told = process.communicate()
    assert (process.returncode, told) == (0, b"")


@pytest.mark.parametrize(
    ("variables", "is_styled"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_the_line_of_an_error_is_red_on_a_terminal_that_has_colours(
    tmp_path: Path, variables: dict[str, str], is_styled: bool
) -> None:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    subprocess.run(
        [sys.executable, "-m", "segx", "report", "absent"],
        cwd=tmp_path,
        env={**environment, "TERM": "xterm", **variables},
        stderr=theirs,
        check=False,
    )
    os.close(theirs)
    assert (b"\x1b[" in os.read(ours, 65536)) == is_styled
    os.close(ours)


def test_a_terminal_shows_a_progress_bar(plain_onnx: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "segx", "bench", "--model", str(plain_onnx), "--runtime", "fake", *QUICK]
    command += ["--batch-size", "16"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "SEGX_FAKE_SCRIPT": '{"seconds_per_call": 0.3}'}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # the terminal is closed
    assert process.wait() == 0
    assert "━".encode() in shown
    assert b"left" in shown
    assert b"batch 16: sampling fake" in shown


SAVED_BENCH = Path(__file__).parents[2] / "docs" / "results" / "xeon-2026-11-26"


def test_a_plan_in_every_form(command: Command, tmp_path: Path) -> None:
    asked = ("plan", SAVED_BENCH, "--images", "10M", "--deadline", "24h", "--price", "0.40/h")
    shown = command(*asked)
    assert shown.returncode == 0, shown.stderr
    assert "10,000,000" in shown.stdout
    assert shown.stdout.rstrip().splitlines()[-1].endswith(".")
    data = json.loads(command(*asked, "--json").stdout)
    best = data["fleets"][0]
    assert f"{best['machines']} machines with {best['variant']}" in " ".join(shown.stdout.split())
    assert best["price"] == pytest.approx(0.4 * best["machines"] * best["hours"])
    assert command(*asked, "--output", "plan.html").returncode == 0
    page = (tmp_path / "plan.html").read_text()
    section = page[page.index('id="plan"') : page.index('id="variants"')]
    assert all(told in section for told in (best["variant"], "Plan for ", "Images are split evenly"))
    identical = json.loads(command(*asked, "--json", "--require", "identical").stdout)
    assert {fleet["verdict"] for fleet in identical["fleets"]} == {"identical"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--images", "10M"), 2, ["--deadline"]),
        (("--images", "many", "--deadline", "1h"), 2, ["write it like 50000, 200k or 10M"]),
        (("--images", "0", "--deadline", "1h"), 2, ["more than 0"]),
        (("--images", "1", "--deadline", "1h", "--price", "cheap"), 2, ["write it like 0.40/h"]),
    ],
)
def test_a_plan_that_cannot_be_made(command: Command, arguments: tuple[str, ...], code: int, words: list[str]) -> None:
    assert_complaint(command("plan", SAVED_BENCH, *arguments), code, *words)


def test_a_plan_that_no_variant_meets_is_shown_and_exits_3(command: Command) -> None:
    done = command("plan", SAVED_BENCH, "--images", "1", "--deadline", "1ms")
    assert done.returncode == 3
    assert "No variant meets the deadline" in done.stdout
    assert "no variant meets this plan" in done.stderr


@pytest.mark.parametrize("form", ["text", "markdown", "github", "html"])
def test_what_a_bench_required_of_masks_holds_in_its_reports(
    command: Command, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    results = load_results(SAVED_BENCH)
    demanding = dataclasses.replace(results, options=dataclasses.replace(results.options, require="identical"))
    Path("results.json").write_text(to_json(demanding))
    shown = command("report", ".", "--format", form)
    assert shown.returncode == 0, shown.stderr
    text = Path("report.html").read_text() if form == "html" else shown.stdout
    assert "masks identical to the reference" in " ".join(text.split())
    other = command("report", ".", "--format", "text", "--require", "edges")
    assert "along edges only" in " ".join(other.stdout.split())


def test_limits_that_nothing_meets_exit_3(
    command: Command, plain_onnx: Path, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script()
    missed = "error: nothing measured meets the limits: "
    for form in ("text", "markdown", "github", "html"):
        limits = ("--max-latency", "1ms", "--output", "made")
        assert_limit_missed(command("report", SAVED_BENCH, "--format", form, *limits), f"{missed}a call takes at most")
    found = load_results(SAVED_BENCH)
    changed = tuple(cell for cell in found.cells if cell.precision in ("bf16", "int8"))
    demanding = dataclasses.replace(found.options, require="identical")
    results = dataclasses.replace(found, cells=changed, options=demanding)
    monkeypatch.setattr("segx.bench.api.benchmark", lambda *_, **__: results)
    done = command("bench", "--model", plain_onnx, "--require", "identical", "--output", "out")
    assert_limit_missed(done, f"{missed}masks identical to the reference's")
    Path("results.json").write_text(to_json(results))
    assert_limit_missed(command("report", "."), f"{missed}masks identical to the reference's")
    assert command("report", ".", "--require", "edges").returncode == 0
    assert command("report", ".", "--format", "csv").returncode == 0
    failed = tuple(dataclasses.replace(cell, status="parity broken") for cell in found.cells)
    Path("results.json").write_text(to_json(dataclasses.replace(found, cells=failed)))
    assert_limit_missed(command("report", ".", "--max-latency", "9s"), f"{missed}a call takes at most")
    assert command("report", ".").returncode == 0


def assert_limit_missed(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 3
    assert words in done.stderr


def test_a_working_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(segx_package.__file__).parents[1])}
    code = f"mkdir gone && cd gone && rmdir ../gone && exec {shlex.quote(sys.executable)} -P -m segx doctor"
    done = subprocess.run(code, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: the working folder cannot be used: No such file or directory" in done.stderr
