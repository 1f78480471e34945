"""``segx doctor``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from segx.cli.options import debug_option
from segx.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from segx.reporting.command_documents import Diagnosis
    from segx.system.progress import Progress

_TIMEOUT_S = 300.0


@click.command()
@click.option("--versions", is_flag=True, help="Also list the packages that affect speed or masks, with versions.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, and nothing else.")
@debug_option
def doctor(versions: bool, as_json: bool) -> None:
    """Show which runtimes are ready, and why the others are not.

    Also shows this machine, and what to do about anything missing. The exit code is 1 if no runtime is ready.

    \b
    segx doctor
    """
    import dataclasses

    from segx.reporting.command_documents import doctor_document
    from segx.reporting.renderers.csv_json import to_json
    from segx.reporting.renderers.text import to_stream
    from segx.system.progress import progress_on

    with progress_on() as progress:
        diagnosis = examine(progress)
    if as_json:
        click.echo(to_json(dataclasses.asdict(diagnosis)), nl=False)
    else:
        click.echo(to_stream(doctor_document(diagnosis, versions=versions), sys.stdout), nl=False, color=True)
    if not any(finding.ready for finding in diagnosis.runtimes):
        first = diagnosis.runtimes[0]
        raise RuntimeUnavailable(f"no runtime is ready: {first.runtime}: {first.reason}", hint=first.remedy)


def examine(progress: Progress) -> Diagnosis:
    """Describe the machine and try every runtime, without a model, each in a process of its own."""
    from segx.errors import SegxError
    from segx.reporting.command_documents import Diagnosis, Finding
    from segx.results.provenance import describe_machine
    from segx.runtimes import RUNTIMES, RuntimeOptions, check_runtime, precision_support
    from segx.system import machine
    from segx.system.processes import Workers

    options = RuntimeOptions(threads=machine.usable_cores())
    workers = Workers(threads=options.threads)
    findings = []
    for name, info in RUNTIMES.items():
        progress.say(f"trying {name}")
        try:
            arguments = {"name": name, "options": options}
            facts = workers.call(check_runtime, arguments, torch=info.torch, timeout_s=_TIMEOUT_S)
            findings.append(Finding(name, ready=True, facts=facts, precisions=precision_support(info)))
        except SegxError as error:
            findings.append(Finding(name, ready=False, reason=error.message, remedy=error.hint))
    return Diagnosis(describe_machine(), tuple(findings))
