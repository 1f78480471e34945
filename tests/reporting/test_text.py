from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.reporting.text import aligned
from segx.system.text import width


def test_numbers_stand_right_and_names_left() -> None:
    table = aligned(["name", "ms"], [["a", "1.5"], ["longer", "120.0"]], left=frozenset({0}))
    assert table.splitlines() == [
        "name       ms",
        "------  -----",
        "a         1.5",
        "longer  120.0",
    ]


def test_no_rows_leave_titles_and_rule() -> None:
    assert aligned(["a", "bc"], []) == "a  bc\n-  --"


def test_no_line_ends_in_blanks() -> None:
    table = aligned(["name", "note"], [["a", ""], ["b", "words"]], left=frozenset({0, 1}))
    assert all(line == line.rstrip() for line in table.splitlines())


def test_a_short_row_ends_in_free_text_that_widens_no_column() -> None:
    table = aligned(["name", "ms", "MiB"], [["a", "1", "2"], ["b", "out of memory, after all"]], left=frozenset({0}))
    assert table.splitlines() == ["name  ms  MiB", "----  --  ---", "a      1    2", "b     out of memory, after all"]


def test_a_row_with_too_many_cells_is_refused() -> None:
    with pytest.raises((ValueError, IndexError)):
        aligned(["a", "b"], [["1", "2", "3"]])


_word = st.text("abcxyz019", min_size=1, max_size=8)


@given(st.lists(st.tuples(_word, _word, _word), max_size=5))
def test_every_row_is_as_wide_as_the_rule(rows: list[tuple[str, str, str]]) -> None:
    lines = aligned(["t", "uu", "vvv"], rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {len(line) for line in lines} == {len(lines[1])}
    assert [tuple(line.split()) for line in lines[2:]] == rows


_cell = st.text("ab日 é", max_size=60)


@given(st.lists(st.lists(_cell, min_size=4, max_size=4), max_size=5), st.integers(40, 100))
def test_no_line_is_wider_than_the_terminal(rows: list[list[str]], columns: int) -> None:
    table = aligned(["name", "a", "b", "c"], rows, left={0}, columns=columns)
    assert all(width(line) <= columns for line in table.splitlines())


def test_a_table_that_is_too_wide_becomes_several_of_the_same_width() -> None:
    rows = [["1", "x" * 8, "y" * 8, "z" * 8, "w" * 8], ["2", "out of memory, after all"]]
    assert aligned(["n", "a", "b", "c", "d"], rows, columns=40).splitlines() == [
        "n         a         b",
        "-  --------  --------",
        "1  xxxxxxxx  yyyyyyyy",
        "2  out of memory, after all",
        "n         c         d",
        "-  --------  --------",
        "1  zzzzzzzz  wwwwwwww",
    ]


def test_free_text_is_wrapped_beside_its_cells() -> None:
    table = aligned(["batch", "ms", "MiB"], [["4", "out of memory: it is all full; use less of it"]], columns=40)
    assert table.splitlines()[2:] == ["    4  out of memory: it is all full;", "       use less of it"]


def test_a_heading_among_the_rows_stands_in_every_part() -> None:
    rows = [["the variant"], ["1", "x" * 20, "y" * 20]]
    lines = aligned(["n", "a", "b"], rows, columns=40).splitlines()
    assert lines.count("the variant") == 2
