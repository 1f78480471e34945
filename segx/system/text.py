"""Text from outside (file names, errors, a results file of someone else's) made fit to print."""

from __future__ import annotations

import re
import unicodedata

from rich.cells import cell_len

# Joiners shape letters and emoji, and change nothing about the text around them.
_HARMLESS = "\u200c\u200d"
# What a terminal acts on, what reorders the text around it, and halves of characters, which no encoding can write.
_ACTED_ON = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

_WHITE = re.compile(r"\s*[^\S ]\s*")

_SUBSTITUTES = {
    "±": "+-", "≈": "~", "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "·": ".", "Δ": "d", "→": "->", "’": "'",
    "≥": ">=", "≤": "<=", "²": "2", "µ": "u",
}  # fmt: skip


def printable(text: str) -> str:
    r"""One line on which nothing but its characters happens.

    Line breaks, tabs and other white space become one space. Control characters, marks that change the direction of
    writing and lone surrogates are shown by their code, an escape as ``\x1b``.
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


def written_in(text: str, encoding: str) -> str:
    """The text with what ``encoding`` has no character for replaced: ± by +-, others by their code."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_in_encoding(character, encoding) for character in text)
    return text


def _in_encoding(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return _SUBSTITUTES.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")
    return character


def width(text: str) -> int:
    """Columns that the text takes on a terminal: two for an East Asian letter, none for a combining accent."""
    return len(text) if text.isascii() else cell_len(text)


def padded(text: str, columns: int, *, left: bool) -> str:
    """The text with spaces up to so many columns, flush left or flush right."""
    space = " " * max(0, columns - width(text))
    return text + space if left else space + text


def clipped(text: str, columns: int, *, mark: str = "...") -> str:
    """The text, its middle left out where it takes more than so many columns: a name tells most by its ends."""
    if width(text) <= columns:
        return text
    room = columns - width(mark)
    head, _ = _cut(text, room - room // 2)
    backwards, _ = _cut(text[::-1], room // 2)
    return f"{head}{mark}{backwards[::-1]}"


def wrapped(text: str, columns: int, *, indent: str = "", hanging: str = "") -> list[str]:
    """Lines of at most so many columns, broken at spaces; a word that is longer is cut.

    Args:
        text: one line.
        columns: at least as many as the indents and two more.
        indent: before the first line.
        hanging: before the others.
    """
    lines, line = [], indent
    fresh = True  # nothing but the indent on the line so far
    for word in text.split():
        if not fresh and width(line) + 1 + width(word) > columns:
            lines.append(line)
            line, fresh = hanging, True
        line = line + word if fresh else f"{line} {word}"
        fresh = False
        while width(line) > columns:
            head, line = _cut(line, columns)
            lines.append(head)
            line = hanging + line
    return [*lines, line] if not fresh or not lines else lines


def _cut(line: str, columns: int) -> tuple[str, str]:
    """The start of a line that fits, and the rest; a letter is never separated from its accents."""
    end = taken = 0
    for end, character in enumerate(line):  # noqa: B007  # the place where the loop stops is what is wanted
        taken += width(character)
        if taken > columns:
            break
    return line[:end], line[end:]


def split_command(command: str, columns: int, *, indent: str = "  ") -> list[str]:
    r"""A shell command on lines that can be pasted: broken at spaces with a backslash.

    A word that is longer than a line stays whole: cut, it would be another one.
    """
    words = re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", command)  # as shlex.quote quotes them
    lines: list[str] = []
    line = indent
    for word in words:
        if line.strip() and width(line) + 1 + width(word) > columns - 2:
            lines.append(f"{line} \\")
            line = f"{indent}  "
        line = f"{line} {word}" if line.strip() else line + word
    return [*lines, line]
