"""Entry point of ``segx`` and ``python -m segx``."""

# ruff: noqa: PLC0415 - signals are handled before anything that takes time is imported

from __future__ import annotations

import os
import signal
import sys
import time

# A signal may come twice, from a terminal and from a program that passes it on; after this time it is a second one.
_TWICE_S = 1.0


class _Interrupted(KeyboardInterrupt):
    """A signal to end; a plain KeyboardInterrupt that passes ``exec`` makes Python end by SIGINT, even if caught."""


class _Signals:
    """Ctrl-C, ``kill`` and a closed terminal interrupt the command; the second time they end it at once."""

    def __init__(self) -> None:
        self.number = signal.SIGINT
        self._since: float | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _: object) -> None:
        if self._since is None:
            self.number, self._since = signal.Signals(number), time.monotonic()
            raise _Interrupted
        if time.monotonic() - self._since > _TWICE_S:
            os._exit(128 + number)  # the kernel ends the workers


def main() -> None:
    """Run a command; print an error as two lines and exit with its code."""
    signals = _Signals()
    from segx.system.silence import replace_outputs

    stdout, stderr = replace_outputs()
    debug = "--debug" in sys.argv[1:]
    try:
        code = _run(debug)
    except KeyboardInterrupt as interrupt:
        hint = interrupt.args[0] if interrupt.args else "run the command again"
        name = "" if signals.number == signal.SIGINT else f" by {signals.number.name}"
        code = _complain(f"interrupted{name}", hint, 128 + signals.number)
    sys.stdout.flush()
    if stdout.lost:
        hint = "give it a file or a pipe that takes it; what was written to files is complete"
        code = code or _complain(f"cannot write to stdout: {stdout.lost}", hint, 1)
    sys.exit(code or int(bool(stderr.lost)))


def _run(debug: bool) -> int:
    import logging
    from pathlib import Path

    import click

    from segx.cli.main import cli
    from segx.errors import SegxError

    if debug:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("segx").setLevel(logging.DEBUG)
    try:
        Path.cwd()
    except OSError as error:
        return _complain(f"the working folder cannot be used: {error.strerror}", "change to another folder", 1)
    try:
        return cli.main(standalone_mode=False) or 0
    except SegxError as error:
        if debug:
            raise
        return _complain(error.message, error.hint, error.exit_code)
    except OSError as error:
        if debug or error.filename is None:
            raise
        return _complain(f"cannot use {error.filename}: {error.strerror}", "check this path and its permissions", 1)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "segx"
        return _complain(error.format_message(), f"see `{path} --help`", error.exit_code)
    except click.Abort as error:
        # A command that can go on says how in its own interrupt, which click replaces.
        said = error.__cause__.args if isinstance(error.__cause__, KeyboardInterrupt) else ()
        raise KeyboardInterrupt(*said) from error


def _complain(message: str, hint: str, code: int) -> int:
    import click

    from segx.system.text import printable

    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    click.secho("error: ", fg="red", bold=True, nl=False, err=True, color=False if plain else None)
    # Both may quote a file.
    click.echo(printable(message), err=True)
    click.echo(f"  try: {printable(hint)}", err=True)
    return code


if __name__ == "__main__":
    main()
