"""Text from outside is fit to print."""

from __future__ import annotations

import io
import shlex
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.reporting.sparkline import sparkline
from segx.reporting.terminal import Terminal
from segx.system.text import clipped, padded, printable, split_command, width, wrapped, written_in

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


@given(_any_text, st.sampled_from(["ascii", "latin-1", "cp437", "utf-8"]))
def test_text_can_be_written_in_any_encoding(text: str, encoding: str) -> None:
    written_in(printable(text), encoding).encode(encoding)


def test_characters_that_an_encoding_lacks_have_substitutes() -> None:
    assert written_in("≈1.5x ±0.2 – 日", "ascii") == "~1.5x +-0.2 - \\u65e5"
    assert written_in("≈1.5x ±0.2", "latin-1") == "~1.5x ±0.2"


def test_width_is_that_of_the_terminal() -> None:
    assert [width(text) for text in ("abc", "日本", "e\u0301", "±")] == [3, 4, 1, 1]
    assert padded("日", 4, left=True) == "日  "
    assert padded("日", 4, left=False) == "  日"


@given(st.lists(st.text("ab日é-", min_size=1, max_size=30)), st.integers(10, 40))
def test_wrapped_lines_fit_and_lose_nothing(words: list[str], columns: int) -> None:
    lines = wrapped(" ".join(words), columns, indent="- ", hanging="    ")
    assert all(width(line) <= columns for line in lines)
    assert lines[0].startswith("- ")
    assert all(line.startswith("    ") for line in lines[1:])
    assert "".join(line.replace(" ", "") for line in lines)[1:] == "".join(words)


@given(st.text("ab日-", max_size=40), st.integers(5, 30))
def test_clipped_text_fits_and_keeps_its_ends(text: str, columns: int) -> None:
    short = clipped(text, columns)
    assert width(short) <= columns
    if short != text:
        head, _, tail = short.partition("...")
        assert text.startswith(head)
        assert text.endswith(tail)


_argument = st.text("ab'\"$\\ é-|;", min_size=1, max_size=12)


@given(st.lists(_argument, min_size=1, max_size=12), st.integers(20, 60))
def test_a_split_command_is_the_same_to_a_shell(arguments: list[str], columns: int) -> None:
    lines = split_command(shlex.join(["segx", *arguments]), columns)
    assert shlex.split("\n".join(lines).replace(" \\\n", "\n")) == ["segx", *arguments]
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert not lines[-1].endswith(" \\")


def test_a_command_is_split_where_it_is_too_long() -> None:
    assert split_command("segx export --weights w.pth --precision int8", 32) == [
        "  segx export --weights w.pth \\",
        "    --precision int8",
    ]


def test_bars_stand_on_zero_and_name_what_failed() -> None:
    assert sparkline([8.0, 4.0, 1.0, 0.0]) == "█▅▂▁"
    assert sparkline([6.9, 8.0]) == "▇█"
    assert sparkline([1.0, float("nan"), None]) == "█×·"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""


@given(st.lists(st.none() | st.just(float("nan")) | st.floats(0, 1e9)))
def test_bars_have_a_character_for_every_figure_in_every_encoding(values: list[float | None]) -> None:
    assert len(sparkline(values)) == len(values)
    plain = sparkline(values, encoding="ascii")
    assert len(plain) == len(values)
    plain.encode("ascii")


@given(st.lists(st.floats(0.001, 1e6), min_size=2))
def test_a_higher_bar_is_never_a_lower_figure(values: list[float]) -> None:
    for encoding, bars in (("utf-8", "▁▂▃▄▅▆▇█"), ("ascii", "_.-~=+*#")):
        heights = [bars.index(bar) for bar in sparkline(values, encoding=encoding)]
        assert heights == [
            height for _, height in sorted(zip(values, heights, strict=True), key=lambda pair: pair[0])
        ] or (sorted(values) != values)
        pairs = sorted(zip(values, heights, strict=True))
        assert [height for _, height in pairs] == sorted(height for _, height in pairs)


def test_a_terminal_is_as_wide_as_columns_says_and_80_where_nothing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setenv("COLUMNS", "123")
    assert Terminal.of(stream) == Terminal(123, "latin-1")
    monkeypatch.setenv("COLUMNS", "7")
    assert Terminal.of(stream).columns == 40
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("os.get_terminal_size", _no_terminal)
    assert Terminal.of(stream).columns == 80


def _no_terminal(*_: object) -> None:
    raise OSError("no terminal")
