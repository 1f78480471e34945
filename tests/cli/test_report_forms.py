"""``segx report`` and ``segx history`` as commands: what stands on stdout, in files and in GitHub's summary."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

SAVED = Path(__file__).parents[1] / "results" / "results.json"
ENGINES = ("torch", "torchvision", "segmentation_models_pytorch", "onnxruntime", "openvino", "tensorrt")


def segx(*arguments: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_") and name != "COLUMNS"}
    return subprocess.run(
        [sys.executable, "-m", "segx", *map(str, arguments)],
        cwd=folder,
        env={**known, "PYTHONUTF8": "1", **variables},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def save(folder: Path, **changes: Any) -> Path:
    """A bench with something changed; cells have 12 rounds, and ``slower`` multiplies their times."""
    values = json.loads(SAVED.read_text())
    slower = changes.pop("slower", 1.0)
    for cell in values["cells"]:
        if cell["samples_s"]:
            cell["samples_s"] = [cell["samples_s"][0] * slower * (1 + 0.001 * i) for i in range(12)]
            cell["rounds"] = [{"number": number, "runs": 1} for number in range(12)]
    values.update(changes)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> Sequence[str]:
    """Names of folders in ``tmp_path``: the second took twice as long."""
    save(tmp_path / "monday", created="2026-11-02T08:00:00+00:00")
    save(tmp_path / "tuesday", created="2026-11-03T08:00:00+00:00", slower=2.0, segx="0.2.0")
    return "monday", "tuesday"


def test_text_fits_the_terminal_and_stands_alone_on_stdout(tmp_path: Path, two: Sequence[str]) -> None:
    done = segx("report", two[0], "--format", "text", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    wide = segx("report", two[0], "--format", "text", folder=tmp_path, COLUMNS="200").stdout
    assert max(map(len, wide.splitlines())) > 80


def test_a_terminal_without_unicode_gets_question_marks(tmp_path: Path, two: Sequence[str]) -> None:
    done = segx("report", two[0], "--format", "text", folder=tmp_path, PYTHONUTF8="0", PYTHONIOENCODING="iso8859-5")
    assert done.returncode == 0
    whole = segx("report", two[0], "--format", "text", folder=tmp_path).stdout
    assert done.stdout == whole.encode("ascii", "replace").decode()
    assert done.stdout != whole


def test_json_is_the_results_in_the_current_version(tmp_path: Path, two: Sequence[str]) -> None:
    done = segx("report", two[0], "--format", "json", folder=tmp_path)
    values = json.loads(done.stdout)
    assert values["created"] == "2026-11-02T08:00:00+00:00"
    assert values["schema_version"] == 1


def test_csv_and_markdown_are_written_by_the_ending_of_the_file(tmp_path: Path, two: Sequence[str]) -> None:
    for name in ("out.csv", "out.md", "out.json", "out.txt"):
        done = segx("report", two[0], "--output", name, folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, "")
        assert f"wrote {name}" in done.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert len(rows) == len(json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["cells"])
    assert (tmp_path / "out.md").read_text(encoding="utf-8").startswith("# segx bench\n")
    assert max(map(len, (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines())) <= 80


def test_the_format_asked_for_counts_more_than_the_ending(tmp_path: Path, two: Sequence[str]) -> None:
    segx("report", two[0], "--output", "out.html", "--format", "csv", folder=tmp_path)
    assert (tmp_path / "out.html").read_text().startswith("bench,created,")


def test_a_form_that_a_command_lacks_is_refused(tmp_path: Path, two: Sequence[str]) -> None:
    for form in ("csv", "html"):
        name = f"out.{form}"
        done = segx("compare", *two, "--output", name, folder=tmp_path)
        assert done.returncode == 2
        assert f"this report has no {form} form; choose another --output ending, or --format" in done.stderr
        assert not (tmp_path / name).exists()


def test_limits_count_in_text_and_markdown_and_are_refused_where_they_cannot(
    tmp_path: Path, two: Sequence[str]
) -> None:
    limit = ("--max-latency", "1ms")
    for form in ("text", "markdown", "github"):
        assert "Nothing fits" in segx("report", two[0], "--format", form, *limit, folder=tmp_path).stdout
    page = segx("report", two[0], "--output", "page.html", *limit, folder=tmp_path)
    assert page.stdout.startswith("page.html\nNothing fits")
    for arguments in ((two[0], "--format", "csv"), (two[0], "--format", "json"), two):
        done = segx("report", *arguments, *limit, folder=tmp_path)
        assert done.returncode == 2
        assert "limits apply to the recommendation of one bench" in done.stderr


def test_several_benches_stand_side_by_side(tmp_path: Path, two: Sequence[str]) -> None:
    done = segx("report", *two, folder=tmp_path)
    assert done.stdout.startswith("A  monday, 2026-")
    assert "0.50x" in done.stdout
    assert re.search("segx +A 0.1.0, B 0.2.0", done.stdout)
    rows = list(csv.DictReader(io.StringIO(segx("report", *two, "--format", "csv", folder=tmp_path).stdout)))
    ratios = [float(row["vs_first"]) for row in rows if row["vs_first"]]
    assert ratios
    assert ratios == pytest.approx([0.5] * len(ratios))
    assert json.loads(segx("report", *two, "--format", "json", folder=tmp_path).stdout)["masks_compare"] is True


def test_a_page_of_several_benches_needs_a_name(tmp_path: Path, two: Sequence[str]) -> None:
    done = segx("report", *two, "--format", "html", folder=tmp_path)
    assert done.returncode == 2
    assert "--output" in done.stderr
    done = segx("report", *two, "--output", "both.html", folder=tmp_path)
    assert done.stdout == "both.html\n"
    assert "monday / tuesday" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_github_gets_a_summary_and_annotations(tmp_path: Path, two: Sequence[str]) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("from before\n")
    done = segx("report", two[0], "--format", "github", folder=tmp_path, GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 0
    assert all(line.startswith("::warning title=") for line in done.stdout.splitlines())
    assert "unavailable" in done.stdout
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("from before\n\n\n# segx bench\n\n## Recommendation\n")
    again = segx("report", *two, "--format", "github", folder=tmp_path, GITHUB_STEP_SUMMARY=str(summary))
    assert "::warning title=tuesday%3A unavailable" in again.stdout
    assert "# segx bench, side by side" in summary.read_text(encoding="utf-8")


def test_outside_of_github_the_summary_is_printed_and_annotations_are_not_in_it(
    tmp_path: Path, two: Sequence[str]
) -> None:
    done = segx("report", two[0], "--format", "github", folder=tmp_path)
    assert done.stdout.startswith("# segx bench\n")
    assert "::warning" not in done.stdout
    assert "::warning" in done.stderr
    done = segx("report", two[0], "--format", "github", "--output", "s.md", folder=tmp_path, GITHUB_STEP_SUMMARY="no/x")
    assert done.stdout.startswith("::warning")
    assert (tmp_path / "s.md").read_text(encoding="utf-8").startswith("# segx bench\n")


def test_what_cannot_be_read_is_an_error_in_one_line(tmp_path: Path, two: Sequence[str]) -> None:
    for arguments in (("report", "nowhere", "--format", "text"), ("report", *two, "nowhere"), ("history", "nowhere")):
        done = segx(*arguments, folder=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "nowhere" in done.stderr
        assert "Traceback" not in done.stderr


def test_hostile_text_cannot_act_on_the_terminal_or_begin_a_command(tmp_path: Path) -> None:
    hostile = "x\x1b]0;title\x07\n::error::no\n| <script>alert(1)</script>"
    save(tmp_path / "bad", segx=hostile, reference=hostile)
    for form in ("text", "markdown", "csv", "github"):
        done = segx("report", "bad", "--format", form, folder=tmp_path)
        assert done.returncode == 0
        assert not {"\x1b", "\x07"} & set(done.stdout + done.stderr)
        assert not any(line.startswith("::error") for line in (done.stdout + done.stderr).splitlines())


@pytest.mark.usefixtures("two")
def test_history_marks_what_became_slower(tmp_path: Path) -> None:
    done = segx("history", ".", folder=tmp_path)
    assert done.returncode == 0
    assert "2 runs below" in done.stdout
    assert "what else differs from run 1: segx 0.1.0 → 0.2.0" in done.stdout
    assert "slower: 0.50x" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "slower" not in segx("history", ".", "--min-change", "150%", folder=tmp_path).stdout.partition("Bars:")[0]
    assert "at least 2.5% from" in " ".join(
        segx("history", ".", "--min-change", "2.5%", folder=tmp_path).stdout.split()
    )


@pytest.mark.usefixtures("two")
def test_history_names_what_it_passes_over(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    done = segx("history", ".", "--format", "json", folder=tmp_path)
    assert done.stderr.startswith("skipped broken/results.json: not JSON: ")
    data = json.loads(done.stdout)
    assert [skipped["path"] for skipped in data["skipped"]] == ["broken/results.json"]
    assert "- broken/results.json: not JSON" in segx("history", ".", folder=tmp_path).stdout


@pytest.mark.parametrize(
    ("name", "start"), [("h.html", "<!doctype html>"), ("h.md", "# segx history"), ("h.csv", "group,"), ("h.json", "{")]
)
@pytest.mark.usefixtures("two")
def test_history_is_written_by_the_ending_of_the_file(tmp_path: Path, name: str, start: str) -> None:
    done = segx("history", ".", "--output", name, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)


def test_neither_command_imports_an_engine(tmp_path: Path, two: Sequence[str]) -> None:
    for arguments in (["report", *two, "--format", "markdown"], ["history", "."]):
        code = (
            "import sys; from segx.cli.main import cli; cli.main(%r, standalone_mode=False); "
            "print(*sys.modules, sep='\\n', file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code % arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert not {line.partition(".")[0] for line in done.stderr.splitlines()} & set(ENGINES)
