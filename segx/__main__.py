"""Entry point of ``segx`` and ``python -m segx``."""

from __future__ import annotations

import logging
import os
import signal
import sys

import click

from segx.cli.main import cli
from segx.errors import SegxError
from segx.system.text import printable


def main() -> None:
    """Run a command; print an error as two lines and exit with its code."""
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
        # The reader of stdout has gone; keep Python from reporting it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code or 0)


def _terminate(*_: object) -> None:
    """Exit with a shell's code for SIGTERM, so that temporary files and workers are cleaned up."""
    sys.exit(128 + signal.SIGTERM)


def _complain(message: str, hint: str, code: int) -> int:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    # Both may quote a file.
    click.echo(printable(message), err=True)
    click.echo(f"  try: {printable(hint)}", err=True)
    return code


if __name__ == "__main__":
    main()
