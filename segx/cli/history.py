"""``segx history``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segx.cli.options import SHARE, debug_option

if TYPE_CHECKING:
    from segx.analysis.history import History

_FORMATS = ("text", "markdown", "json", "csv", "html")
_BY_ENDING = {".html": "html", ".htm": "html", ".md": "markdown", ".json": "json", ".csv": "csv", ".txt": "text"}


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    help="What to write.  [default: by the ending of --output, else text]",
)
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: the terminal]")
@click.option("--min-change", type=SHARE, default="5%", show_default=True, help="Mark changes of speed from this on.")
@debug_option
def history(folder: Path, form: str | None, output: Path | None, min_change: float) -> None:
    """Show a series of saved benches over time, and mark changes that are more than noise.

    Reads every results.json below DIR. Runs of the same model, images and settings on the same kind of machine make a
    series; others stand in groups of their own. Files that are damaged or none of segx's are named and passed over.

    \b
    segx history artifacts/
    segx history artifacts/ --output history.html
    segx history benches/ --format markdown --min-change 10%
    """
    from segx.analysis.history import read_history
    from segx.system.files import write_text
    from segx.system.text import printable

    found = read_history(folder, least_change=min_change)
    chosen = form or (_BY_ENDING.get(output.suffix.lower(), "text") if output else "text")
    for path, reason in found.skipped if output or chosen != "text" else ():  # text on the terminal ends with them
        click.echo(f"skipped {printable(str(path))}: {printable(reason)}", err=True)
    text = _written(found, chosen, to_file=output is not None)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
        click.echo(f"wrote {output}", err=True)


def _written(found: History, form: str, *, to_file: bool) -> str:
    from segx.reporting import history_document as forms
    from segx.reporting.terminal import Terminal

    if form == "text":
        return forms.to_text(found, Terminal() if to_file else Terminal.of(sys.stdout))
    if form == "html":
        from segx.reporting.html.page import history_page

        return history_page(found)
    return {"markdown": forms.to_markdown, "json": forms.to_json, "csv": forms.to_csv}[form](found)
