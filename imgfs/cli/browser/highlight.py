"""Colours of a text, by Pygments: chosen by the file's name, never by trying what its bytes could be.

The bytes are a stranger's and Pygments works by regular expressions: it gets lines that are bounded in number
and length, and what it has not coloured in time stays plain.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
from pygments.util import ClassNotFound
from rich.syntax import Syntax
from rich.text import Text

_THEME = "ansi_dark"  # the terminal's own colours
_LARGEST = 32 * 1024  # characters that are coloured
_BUDGET = 0.5  # seconds
_INTERPRETERS = ("python", "bash", "sh", "perl", "ruby", "node", "lua", "php")


def highlighted(name: str, lines: Sequence[str]) -> Text:
    """Return printable lines as one text, coloured as its name says."""
    whole = "\n".join(lines)
    lexer = _lexer(name, lines[0] if lines else "")
    if lexer is None:
        return Text(whole)
    theme = Syntax.get_theme(_THEME)
    text, ends = Text(), time.monotonic() + _BUDGET
    for kind, value in lexer.get_tokens(whole[:_LARGEST]):
        text.append(value, theme.get_style_for_token(kind))
        if time.monotonic() > ends:
            break
    text.append(whole[len(text) :])
    return text


def compared(lines: Sequence[str]) -> Text:
    """Return the lines of a unified diff, coloured."""
    styles = {"+": "green", "-": "red", "@": "cyan"}
    return Text("\n").join(Text(line, styles.get(line[:1], "")) for line in lines)


def _lexer(name: str, first: str) -> Lexer | None:
    interpreter = first.rpartition("/")[2] if first.startswith("#!") else ""
    words = interpreter.split()
    program = words[-1].rstrip("0123456789.") if words else ""
    try:
        if program in _INTERPRETERS:
            return get_lexer_by_name(program, stripnl=False, ensurenl=False)
        return get_lexer_for_filename(name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
