"""Markdown as a parser reads it: text stays text."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from segx.reporting.markdown import cell, code, details, escaped, table
from segx.system.text import printable

_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# Letters that mark something, and words that do together.
_MARKS = [
    *("|", "`", "``", "*", "_", "**", "~~", "<b>", "<script>", "&amp;", "&", "[a](b)", "![", "#", "-", "1.", "+", ">"),
    *("\\", "\x1b[31m", "$x$", "http://a.b", "www.a.b", "a", "=", "---", "é"),
]
_hostile = st.lists(st.sampled_from([*_MARKS, "b ", " ", "\n", "\r"]), max_size=12).map("".join)


def text_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html))


@given(_hostile | st.text())
def test_a_cell_is_read_as_its_text(text: str) -> None:
    html = _PARSER.render(table(["what", "n"], [[text, "1"]], left=(0,)))
    (found,) = re.findall(
        r"<tbody>\s*<tr>\s*<td>(.*?)</td>\s*<td[^>]*>1</td>\s*</tr>\s*</tbody>", html, flags=re.DOTALL
    )
    assert "<" not in found
    assert unescape(found) == printable(text)


@given(_hostile | st.text())
def test_a_line_is_read_as_its_text(text: str) -> None:
    html = _PARSER.render(f"- {escaped(text)}")
    assert "<" not in html.replace("<ul>", "").replace("</ul>", "").replace("<li>", "").replace("</li>", "")
    assert text_of(html).strip() == printable(text).strip()


@given(_hostile)
def test_code_stays_code(text: str) -> None:
    html = _PARSER.render(code(text))
    assert html.count("<pre>") == html.count("<code") == 1
    assert unescape(re.sub(r"</?(pre|code)[^>]*>", "", html)).strip("\n") == printable(text)


@pytest.mark.parametrize(
    "plain", ["4.18", "-54.8%", "1.25x ±0.21", "a_b_c", "0.1.0, x", "pytorch-cpu:fp32", "2+2=4", "a & b"]
)
def test_plain_text_is_not_cluttered(plain: str) -> None:
    assert escaped(plain) == cell(plain) == plain


def test_addresses_are_no_links() -> None:
    assert cell("http://a.b and www.c.d") == "http\\://a.b and www\\.c.d"


def test_columns_are_aligned_in_the_source_and_on_the_page() -> None:
    source = table(["name", "ms"], [["a|b", "1.5"], ["日本", "10.25"]], left=(0,))
    assert source.splitlines() == [
        "| name | ms    |".replace("ms    |", "   ms |"),
        "| ---- | ----: |",
        "| a\\|b |   1.5 |",
        "| 日本 | 10.25 |",
    ]
    assert 'style="text-align:right">1.5' in _PARSER.render(source)


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 titles"):
        table(["a", "b"], [["1"]])


def test_what_is_folded_is_still_markdown() -> None:
    html = _PARSER.render(details("<b>", "**bold**"))
    assert "<summary>&lt;b&gt;</summary>" in html
    assert "<strong>bold</strong>" in html
