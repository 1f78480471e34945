"""Entry point of ``segx`` and of ``python -m segx``: run a command, turn what goes wrong into two lines and a code."""

from __future__ import annotations

import logging
import os
import signal
import sys

import click

from segx.cli.main import cli
from segx.errors import SegxError


def main() -> None:
    """Entry point: run a command, turn errors into two lines and an exit code."""
    debug = "--debug" in sys.argv[1:]
    if debug:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("segx").setLevel(logging.DEBUG)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(standalone_mode=False)
    except SegxError as error:
        if debug:
            raise
        code = _complain(error.message, error.hint, error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "segx"
        code = _complain(error.format_message(), f"see `{path} --help`", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = _complain("interrupted", "run the command again", 130)
    except BrokenPipeError:
        # The reader of our output is gone; keep Python from complaining about it once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code or 0)


def _terminate(*_: object) -> None:
    """Leave as after an error, so that temporary files and workers go too; the exit code is the shell's for SIGTERM."""
    sys.exit(128 + signal.SIGTERM)


def _complain(message: str, hint: str, code: int) -> int:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message, err=True)
    click.echo(f"  try: {hint}", err=True)
    return code


if __name__ == "__main__":
    main()
