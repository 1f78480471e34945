"""Documents on a terminal."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.reporting.document import (
    BLANK,
    Bullets,
    Column,
    Command,
    Datum,
    Document,
    Facts,
    Paragraph,
    Section,
    Table,
    number,
    text,
)
from segx.reporting.renderers.markdown import to_markdown
from segx.reporting.renderers.text import split_command, to_stream, to_text
from segx.system.text import width


def shown(*blocks: Table | Facts | Bullets | Command | Paragraph, columns: int = 80) -> str:
    return to_text(Document("", (), (Section(key="s", blocks=blocks),)), columns=columns)


def table(columns: tuple[Column, ...], *rows: tuple[str, ...], **more: Any) -> Table:
    return Table("", columns, tuple(tuple(map(text, row)) for row in rows), **more)


NAME, MS = Column("name", numeric=False), Column("ms")


def test_numbers_are_aligned_right_and_names_left() -> None:
    assert (
        shown(table((NAME, MS), ("a", "1.5"), ("longer", "120.0"))) == "name       ms\na         1.5\nlonger  120.0\n"
    )


def test_a_message_takes_the_place_of_figures_and_widens_no_column() -> None:
    rows = (("a", "1", "2"), ("b", BLANK, BLANK))
    lines = shown(table((NAME, MS, Column("MiB")), *rows, messages={1: "out of memory"})).splitlines()
    assert lines == ["name  ms  MiB", "a      1    2", "b  out of memory"]


def test_groups_have_a_heading() -> None:
    lines = shown(table((MS,), ("1",), ("2",), groups={0: (text("x"), text("z")), 1: (text("y"),)})).splitlines()
    assert lines == ["ms", "x · z", " 1", "y", " 2"]


def test_the_most_optional_columns_are_dropped_first() -> None:
    columns = (NAME, Column("a" * 30, optional=1), Column("b" * 30, optional=2), MS)
    row = ("n", "1", "2", "3")
    assert "b" * 30 in shown(table(columns, row), columns=80)
    narrow = shown(table(columns, row), columns=60)
    assert "a" * 30 in narrow
    assert "b" not in narrow


def test_a_table_that_is_too_wide_becomes_a_list() -> None:
    columns = (NAME, *(Column(f"column {i}") for i in range(5)))
    rows = (("n", "0", "1 MiB", "2", BLANK, BLANK), ("m", *"45678"))
    assert shown(table(columns, *rows, messages={0: "failed"}), columns=40).splitlines() == [
        "name",
        "n",
        "  column 0: 0  column 1: 1 MiB",
        "  column 2: 2  failed",
        "m",
        "  column 0: 4  column 1: 5  column 2: 6",
        "  column 3: 7  column 4: 8",
    ]
    grouped = shown(table(columns[1:], *(row[1:] for row in rows), groups={0: (text("x"),)}), columns=40)
    assert grouped.startswith("x\n  column 0: 0  column 1: 1 MiB\n")


@pytest.mark.parametrize("columns", range(40, 81, 4))
def test_words_and_names_are_not_broken(columns: int) -> None:
    long, words = "onnxruntime-cpu:fp32", "no driver on this machine that could run it"
    heads = tuple(Column(title, numeric=False) for title in ("where", "what happened", "what to do"))
    out = shown(
        table(heads, (f"{long}; {long}", words, words)), Facts(((long, words), ("a", "x" * 38))), columns=columns
    )
    lines = out.splitlines()
    assert max(map(len, lines)) <= columns
    assert {long, f"{long};", "x" * 38, "machine", "could"} <= set(out.split())


_cell = st.text("ab日 é", max_size=60)


@given(st.lists(st.lists(_cell, min_size=4, max_size=4), max_size=5), st.integers(40, 100))
def test_no_line_is_wider_than_the_terminal(rows: list[list[str]], columns: int) -> None:
    heads = tuple(Column(title, numeric=False) for title in ("name", "a", "b", "c"))
    shown_rows = shown(table(heads, *map(tuple, rows)), columns=columns)
    assert all(width(line) <= columns for line in shown_rows.splitlines())


def test_sections_of_details_are_left_out_and_the_lead_comes_last() -> None:
    sections = (
        Section(key="lead", title="First", blocks=(Paragraph("x"),), lead=True),
        Section(key="more", title="Second", blocks=(Paragraph("y"),)),
        Section(key="all", title="Third", blocks=(Paragraph("z"),), detail=True),
    )
    assert to_text(Document("", (("a", "b"),), sections)) == "a  b\n\nSecond\ny\n\nFirst\nx\n"


@pytest.mark.parametrize("render", [to_text, to_markdown])
def test_a_block_of_an_unknown_type_is_an_error(render: Callable[[Document], str]) -> None:
    document = Document("", (), (Section(key="s", blocks=("not a block",)),))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="not a block"):
        render(document)


def test_foreign_text_cannot_control_the_terminal() -> None:
    hostile = "\x1b[31m\a[bold]x[/bold]"
    out = shown(Facts(((hostile, hostile),)), Paragraph(hostile), Bullets((hostile,)), table((NAME,), (hostile,)))
    assert not {"\x1b", "\a"} & set(out)
    assert out.count("[bold]x[/bold]") == 5


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    document = Document("", (), (Section(key="s", blocks=(table((NAME,), ("x",)), Paragraph("y", "bad"))),))
    assert "\x1b[" not in to_text(document)
    assert "\x1b[31m" in to_text(document, color=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in to_text(document, color=True)


@pytest.mark.parametrize(
    ("variables", "colored"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_a_pipe_has_colours_only_if_they_are_forced(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], *, colored: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    document = Document("", (), (Section(key="s", blocks=(Paragraph("y", "bad"),)),))
    assert ("\x1b[31m" in to_stream(document, io.StringIO())) == colored


def test_a_stream_is_as_wide_as_columns_says_and_80_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    document = Document("", (), (Section(key="s", blocks=(Paragraph("word " * 100),)),))

    def longest() -> int:
        return max(map(len, to_stream(document, stream).splitlines()))

    monkeypatch.setenv("COLUMNS", "123")
    assert 118 < longest() <= 123
    monkeypatch.setenv("COLUMNS", "7")
    assert 35 < longest() <= 40
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("os.get_terminal_size", _no_terminal)
    assert 75 < longest() <= 80


def _no_terminal(*_: object) -> None:
    raise OSError("no terminal")


_argument = st.text("ab'\"$\\ é-|;", min_size=1, max_size=12)


@given(st.lists(_argument, min_size=1, max_size=12), st.integers(20, 60))
def test_a_split_command_is_the_same_to_a_shell(arguments: list[str], columns: int) -> None:
    command = split_command(shlex.join(["segx", *arguments]), columns)
    assert shlex.split(command.replace(" \\\n", "\n")) == ["segx", *arguments]
    lines = command.splitlines()
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert not lines[-1].endswith(" \\")


def test_a_command_is_split_if_it_is_too_long() -> None:
    shown = split_command("segx export --weights w.pth --precision int8", 32)
    assert shown == "  segx export --weights w.pth \\\n    --precision int8"


def test_numbers_are_formatted_once() -> None:
    assert number(None, "{:.1f}") == Datum(BLANK, None, "muted")
    assert number(1.25, "{:.1f} ms").text == "1.2 ms"
