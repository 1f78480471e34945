"""Foreign text is safe to print."""

from __future__ import annotations

import os
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.system.text import command_line, padded, printable, width

_any_text = st.text(st.characters())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Größe 日本 👩‍🔬", "Größe 日本 👩‍🔬"),
        ("'a  b.pth'", "'a  b.pth'"),
        ("two\r\nlines\tand a tab ", "two lines and a tab"),
        ("\x1b[31mred\x1b[0m\a", "\\x1b[31mred\\x1b[0m\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("half \udc80", "half \\udc80"),
        ("tag \U000e0041", "tag \\U000e0041"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown_by_its_code(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(_any_text)
def test_printable_text_is_one_line_without_controls_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert printable(shown) == shown
    shown.encode("utf-8")


def test_width_is_that_of_the_terminal() -> None:
    assert [width(text) for text in ("abc", "日本", "e\u0301", "±")] == [3, 4, 1, 1]
    assert padded("日", 4, left=True) == "日  "
    assert padded("日", 4, left=False) == "  日"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("{here}/my weights.pth", "'my weights.pth'"),
        ("{here}/-w.pth", "./-w.pth"),
        ("{here}", "."),
        ("--weights={here}/w=1.pth", "--weights=w=1.pth"),
        ("{home}/my weights.pth", "~/'my weights.pth'"),
        ("--weights={home}/w.pth", "--weights ~/w.pth"),
        ("/else where/w.pth", "'/else where/w.pth'"),
        ("~/w.pth", "'~/w.pth'"),
        ("1,2", "1,2"),
    ],
)
def test_a_command_names_its_folders_from_here_and_works_when_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, shown: str
) -> None:
    home, here = tmp_path, tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    word = word.format(home=home, here=here)
    assert command_line(["segx", word]) == f"segx {shown}"
    printed = subprocess.check_output(["sh", "-c", command_line(["printf", "%s\n", word])], text=True).splitlines()
    plain = [os.path.abspath(path) for path in "=".join(printed).removeprefix("--weights=").splitlines()]  # noqa: PTH100
    if word.removeprefix("--weights=").startswith("/"):
        assert plain == [word.removeprefix("--weights=")]


def test_a_command_is_shown_where_the_working_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert command_line(["segx", "/a/b.pth"]) == "segx /a/b.pth"
