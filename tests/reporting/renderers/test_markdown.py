"""Markdown as a parser reads it, and job summaries and workflow commands as GitHub's runner reads them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from segx.analysis.recommend import Constraints
from segx.errors import OutputError
from segx.reporting.bench_document import bench_document
from segx.reporting.renderers.markdown import (
    SUMMARY_LIMIT_BYTES,
    append,
    cell,
    code,
    details,
    escaped,
    summary,
    summary_file,
    table,
    to_markdown,
    workflow_command,
    workflow_commands,
)
from segx.results.types import Cell, Results, Status
from segx.system.text import printable

MakeResults = Callable[..., Results]

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
def test_a_table_cell_parses_as_its_text(text: str) -> None:
    html = _PARSER.render(table(["what", "n"], [[text, "1"]], left=(0,)))
    (found,) = re.findall(
        r"<tbody>\s*<tr>\s*<td>(.*?)</td>\s*<td[^>]*>1</td>\s*</tr>\s*</tbody>", html, flags=re.DOTALL
    )
    assert "<" not in found
    assert unescape(found) == printable(text)


@given(_hostile | st.text())
def test_a_line_parses_as_its_text(text: str) -> None:
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


def test_addresses_are_not_links() -> None:
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


def test_folded_content_is_still_markdown() -> None:
    html = _PARSER.render(details("<b>", "**bold**"))
    assert "<summary>&lt;b&gt;</summary>" in html
    assert "<strong>bold</strong>" in html


# GitHub Actions


def bench_cell(batch_size: int | None, status: Status = "ok", **changes: Any) -> Cell:
    times = (0.1,) * 8 if status == "ok" else ()
    made = Cell(runtime="onnxruntime-cpu", precision="fp32", batch_size=batch_size, status=status, samples_s=times)
    return dataclasses.replace(made, **changes)


def as_the_runner_reads(line: str) -> tuple[str, str, str]:
    """Command, title and message: ActionCommand.TryParseV2 in the runner's sources, in short."""
    command, _, rest = line.removeprefix("::").partition("::")
    name, _, properties = command.partition(" ")
    titles = dict(part.partition("=")[::2] for part in properties.split(",") if part)

    def plain(text: str, codes: str) -> str:
        for sequence in codes.split():
            text = text.replace(sequence, chr(int(sequence[1:], 16)))
        return text.replace("%25", "%")

    return name, plain(titles["title"], "%0D %0A %3A %2C"), plain(rest, "%0D %0A")


@given(st.text(), st.text())
def test_text_cannot_end_a_workflow_command_or_begin_another(message: str, title: str) -> None:
    line = workflow_command("error", message, title=title)
    assert len(line.splitlines()) == 1
    name, read_title, read_message = as_the_runner_reads(line)
    assert (name, read_title) == ("error", printable(title))
    assert read_message == "\n".join(printable(part) for part in message.split("\n"))


def test_failures_are_errors_and_missing_runtimes_are_warnings(make_results: MakeResults) -> None:
    results = make_results(
        bench_cell(None, "unavailable", runtime="tensorrt", reason="no driver: 100%", remedy="get one,\nsoon"),
        bench_cell(1),
        bench_cell(2, "crashed", reason="::error::no", remedy="look"),
        bench_cell(4, "crashed", reason="::error::no", remedy="look"),
        runtimes=("tensorrt", "onnxruntime-cpu"),
        batch_sizes=(1, 2, 4),
    )
    assert workflow_commands(results) == [
        "::error title=crashed%3A onnxruntime-cpu%3Afp32 batch 2%2C 4::::error::no%0Alook",
        "::warning title=unavailable%3A tensorrt%3Afp32::no driver: 100%25%0Aget one,%0Asoon",
    ]
    assert workflow_commands(results, "A")[0].startswith("::error title=A%3A crashed")
    assert workflow_commands(make_results(bench_cell(1))) == []


@pytest.mark.parametrize("status", ["parity broken", "crashed", "timed out", "failed"])
def test_statuses_that_are_errors(make_results: MakeResults, status: Status) -> None:
    assert workflow_commands(make_results(bench_cell(1, status)))[0].startswith("::error ")


@pytest.mark.parametrize("status", ["unavailable", "out of memory"])
def test_statuses_that_are_warnings(make_results: MakeResults, status: Status) -> None:
    assert workflow_commands(make_results(bench_cell(1, status)))[0].startswith("::warning ")


def test_no_more_annotations_than_github_shows(make_results: MakeResults) -> None:
    sizes = tuple(range(1, 31))
    commands = workflow_commands(
        make_results(*(bench_cell(size, "crashed", reason=f"in {size}") for size in sizes), batch_sizes=sizes)
    )
    assert len(commands) == 10
    assert "21 more" in commands[-1]


def test_the_recommendation_comes_first_and_failures_before_details(make_results: MakeResults) -> None:
    results = make_results(bench_cell(1), bench_cell(2, "crashed", reason="bang", remedy="look"))
    text = summary(bench_document(results))
    assert text.startswith(
        "# segx bench\n\n## Recommendation\n\n**Use onnxruntime-cpu:fp32, batch 1**: 100 ms, 10.0 images/s"
    )
    assert ", 1 of 2 measured\n" in text
    assert text.index("| variant") < text.index("| crashed: bang ") < text.index("<summary>Batch sizes")


def test_limits_change_the_recommendation(make_results: MakeResults) -> None:
    text = summary(bench_document(make_results(bench_cell(1)), Constraints(max_latency_s=0.05)))
    assert "\n\n**Nothing fits" in text.partition("## All variants")[0]


def test_a_bench_without_cells_has_a_summary(make_results: MakeResults) -> None:
    text = summary(bench_document(dataclasses.replace(make_results(), complete=False)))
    assert ", 0 of 0 measured, not complete\n" in text


def test_a_summary_over_the_limit_loses_its_longest_sections_and_says_so(make_results: MakeResults) -> None:
    document = bench_document(make_results(bench_cell(1), bench_cell(2, "crashed", reason="bang " * 200)))
    whole = to_markdown(document)
    size = len(whole.encode())
    assert summary(document, size) == whole
    sections = {section.title: section for section in document.sections if section.title}
    for limit in range(0, size, size // 20):
        text = summary(document, limit)
        kept, _, told = text.partition("\n*Left out, as GitHub shows at most 1 MiB: ")
        left_out = {title for title in sections if title in told}
        assert told.endswith(".*\n")
        assert len(text.encode()) <= limit or left_out == {*sections}
        headings = {title: (f"## {title}\n", f"<summary>{title}</summary>") for title in sections}
        assert left_out == {title for title in sections if not any(heading in kept for heading in headings[title])}
        assert "Recommendation" not in left_out or left_out == {*sections}


def test_a_huge_bench_fits(make_results: MakeResults) -> None:
    sizes = tuple(range(1, 1000))
    cells = (bench_cell(size, "failed", reason=f"reason {size} " + "x" * 1500, remedy="none") for size in sizes)
    text = summary(bench_document(make_results(*cells, batch_sizes=sizes)))
    assert len(text.encode()) <= SUMMARY_LIMIT_BYTES
    assert "Left out, as GitHub shows at most 1 MiB: Not measured (999)" in text


def test_the_summary_file_is_added_to(tmp_path: Path) -> None:
    assert summary_file({}) is None
    assert summary_file({"GITHUB_STEP_SUMMARY": ""}) is None
    path = tmp_path / "summary.md"
    assert summary_file({"GITHUB_STEP_SUMMARY": str(path)}) == path
    append(path, "one\n")
    append(path, "two é\n")
    assert path.read_text(encoding="utf-8") == "one\n\n\ntwo é\n"
    with pytest.raises(OutputError, match="cannot write"):
        append(tmp_path / "missing" / "summary.md", "x")
