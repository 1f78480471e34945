"""Text that is shown: foreign text made safe to print, percentages as given, and numbers rounded down."""

from __future__ import annotations

import math
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

# Joiners shape letters and emoji, and change nothing about the text around them.
_HARMLESS = "\u200c\u200d"
# What a terminal acts on, what reorders the text around it, and halves of characters, which no encoding can write.
_ACTED_ON = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

_WHITE = re.compile(r"\s*[^\S ]\s*")


def printable(text: str) -> str:
    r"""Return text on one line that cannot control a terminal.

    Line breaks, tabs and other white space become one space. Control characters, marks that change the direction of
    writing and lone surrogates are replaced by their code, an escape by ``\x1b``.
    """
    joined = _WHITE.sub(" ", text).strip(" ")
    if joined.isascii() and joined.isprintable():
        return joined
    return "".join(_shown(character) for character in joined)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _ACTED_ON or character in _HARMLESS:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def command_line(words: Iterable[str]) -> str:
    """Return a command for a shell, with absolute paths named from the working folder or from ``~``."""
    return " ".join(map(_from_here, words))


def _from_here(word: str) -> str:
    option, equals, path = word.partition("=") if word.startswith("--") else ("", "", word)
    if not path.startswith("/"):
        return shlex.quote(word)
    if (below := _below(Path.cwd, path)) is not None:
        below = f"./{below}" if below.startswith("-") and not option else below
        return shlex.quote(f"{option}{equals}{below}")
    if (below := _below(Path.home, path)) is not None:
        # A shell expands ~ only where it is not quoted and begins a word.
        return f"{option and shlex.quote(option) + ' '}~/{shlex.quote(below)}"
    return shlex.quote(word)


def _below(folder: Callable[[], Path], path: str) -> str | None:
    try:
        return str(Path(path).relative_to(folder()))
    except (OSError, RuntimeError, ValueError):  # the folder is gone, or unknown; the path is elsewhere
        return None


def percentage(share: float) -> str:
    """Return a share as the percentage that the user gave, not rounded: ``2.5%``."""
    return f"{share * 100:.10g}%"


def rounded_down(value: float, places: int) -> str:
    """Return a number with so many places that is not larger: 0.98999 is ``0.9899``."""
    scaled = round(value * 10**places, 6)  # 0.819 * 10,000 is just below 8190
    return f"{math.floor(scaled) / 10**places:.{places}f}"


def width(text: str) -> int:
    """Return the columns of text on a terminal: two per East Asian letter, none per combining accent."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - reading images needs none of rich

    return cell_len(text)


def padded(text: str, columns: int, *, left: bool) -> str:
    """Pad text with spaces to a number of columns."""
    space = " " * max(0, columns - width(text))
    return text + space if left else space + text
