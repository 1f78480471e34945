"""``segx report``, and the page that every bench leaves behind, as a user gets them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segx.cli.main import cli
from segx.errors import OutputError
from tests.benching import run_in_process
from tests.cli.command import QUICK, Benched, segx


def test_a_bench_ends_with_a_page(benched: Benched) -> None:
    done, folder = benched
    assert done.returncode == 0, done.stderr
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert "onnxruntime-cpu:fp32" in page
    assert "fake:fp32" in page
    assert "Choose something else for" in page or "All masks are identical" in page


def test_report_prints_the_path_of_the_page_and_nothing_else(benched: Benched) -> None:
    _, folder = benched
    for results in ("out", "out/results.json"):
        (folder / "out" / "report.html").unlink()
        done = segx("report", results, cwd=folder)
        assert (done.returncode, done.stdout, done.stderr) == (0, "out/report.html\n", "")
        assert (folder / "out" / "report.html").is_file()


def test_report_writes_where_it_is_told_under_the_limits_given(benched: Benched, tmp_path: Path) -> None:
    _, folder = benched
    limits = ("--max-latency", "50ms", "--max-memory", "2GB", "--min-iou", "0.5")
    done = segx("report", "out", "--output", tmp_path / "new" / "page.html", *limits, cwd=folder)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    for words in ("a call takes at most 50 ms", "memory at most 1.863 GiB", "at least 0.5"):
        assert words in page


@pytest.mark.parametrize("output", ["out/results.json", "link", "hard", "out/pictures/index.json"])
@pytest.mark.parametrize(
    "command", [("report", "out"), ("report", "out", "out"), ("compare", "out", "out"), ("history", ".")]
)
def test_results_are_not_replaced_by_what_is_made_of_them(
    benched: Benched, tmp_path: Path, command: tuple[str, ...], output: str
) -> None:
    shutil.copytree(benched[1] / "out", tmp_path / "out")
    (tmp_path / "link").symlink_to("out/results.json")
    (tmp_path / "hard").hardlink_to(tmp_path / "out" / "results.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    arguments = [str(tmp_path / word) if word in ("out", ".") else word for word in command]
    with pytest.raises(OutputError, match="would replace its own source"):
        cli.main([*arguments, "--output", str(tmp_path / output)], standalone_mode=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere",), 1, "does not exist"),
        (("out", "--output", "out/results.json/page.html"), 1, "cannot write"),
        (("out", "--max-latency", "fast"), 2, "is not a valid duration"),
    ],
)
def test_wrong_use_is_a_complaint_and_no_traceback(
    benched: Benched, arguments: tuple[str, ...], code: int, words: str
) -> None:
    _, folder = benched
    done = segx("report", *arguments, cwd=folder)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_damaged_pictures_are_a_warning_and_leave_the_page_whole(benched: Benched) -> None:
    _, folder = benched
    index = folder / "out" / "pictures" / "index.json"
    whole = index.read_bytes()
    index.write_text("{")
    try:
        done = segx("report", "out", "--output", "without.html", cwd=folder)
    finally:
        index.write_bytes(whole)
    assert done.returncode == 0
    assert "no pictures in the report" in done.stderr
    assert (folder / "without.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_a_bench_whose_page_cannot_be_written_is_still_a_bench(
    plain_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("cannot write the page", hint="free some space")

    run_in_process(monkeypatch)
    monkeypatch.setattr("segx.reporting.renderers.html.page.write_bench_page", full)
    arguments = ("bench", "--model", str(plain_onnx), "--runtime", "fake", "--batch-size", "1", *QUICK)
    cli.main([*arguments, "--output", str(tmp_path / "out")], standalone_mode=False)
    printed = capsys.readouterr()
    assert "no report: cannot write" in printed.err
    assert "fake:fp32" in printed.out
    assert (tmp_path / "out" / "results.json").is_file()


def test_a_page_that_is_not_of_the_bench_is_not_replaced(benched: Benched, tmp_path: Path) -> None:
    _, folder = benched
    shutil.copytree(folder / "out", tmp_path / "out")
    for _ in range(2):
        assert segx("report", "out", cwd=tmp_path).returncode == 0
    (tmp_path / "out" / "report.html").write_text("mine")
    done = segx("report", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "does not belong to this bench" in done.stderr
    assert (tmp_path / "out" / "report.html").read_text() == "mine"


def test_the_parent_of_a_bench_imports_the_library_of_the_page_only_at_the_end() -> None:
    code = "import sys, segx.bench.api, segx.cli.bench\nprint('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
