"""The output forms: one file, or folder, for each, and the table of what the commands write."""

from __future__ import annotations

from typing import NamedTuple


class Form(NamedTuple):
    """An output form: the part of a report that it is made of, what renders that, and how its files end."""

    part: str
    renderer: str = ""  # "module:function", imported on use; empty if the part is text already
    endings: tuple[str, ...] = ()


FORMS = {
    "html": Form("page", endings=(".html", ".htm")),
    "text": Form("document", "segx.reporting.renderers.text:to_text", (".txt",)),
    "markdown": Form("document", "segx.reporting.renderers.markdown:to_markdown", (".md",)),
    "csv": Form("rows", "segx.reporting.renderers.csv_json:to_csv", (".csv",)),
    "json": Form("json", endings=(".json",)),
    "github": Form("summary"),
}
