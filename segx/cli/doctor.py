"""``segx doctor``."""

from __future__ import annotations

import click

from segx.cli.options import debug_option


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, and nothing else.")
@debug_option
def doctor(as_json: bool) -> None:
    """Show this machine, the versions, and every runtime: ready, or why not and what to do.

    \b
    segx doctor
    """
    from segx.reporting.doctor_document import examine, to_json, to_text
    from segx.system.progress import progress_on

    with progress_on() as progress:
        diagnosis = examine(progress)
    click.echo(to_json(diagnosis) if as_json else to_text(diagnosis), nl=False)
