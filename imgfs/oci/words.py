"""The words of an instruction's line: quotes, backslashes and variables, as in a Dockerfile.

Docker's Dockerfile reference, "Environment replacement": a part of what a shell knows, and no shell runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from imgfs.errors import UsageError

_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""", re.DOTALL)
_VARIABLE = r"""\$(?:(?P<name>\w+)|\{(?P<braced>\w+)(?::(?P<rule>[-+])(?P<word>[^{}]*))?\}|(?P<wrong>\{))"""
_PIECE = re.compile(
    r"""'(?P<literal>[^']*)'|"(?P<quoted>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)|""" + _VARIABLE,
    re.DOTALL | re.ASCII,
)
_QUOTED_PIECE = re.compile(r'\\(?P<escaped>["$\\])|' + _VARIABLE, re.ASCII)


def words(line: str) -> list[str]:
    """Split a line at the spaces outside quotes, which stay; raises UsageError for a quote left open."""
    if _WORD.sub("", line).strip():
        raise UsageError("a quote is not closed, or a backslash ends the line")
    return _WORD.findall(line)


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`text` without its quotes and backslashes, and with the values of its variables; raises UsageError.

    Variables are `$NAME`, `${NAME}`, `${NAME:-WORD}` and `${NAME:+WORD}`; one that is not set is empty.
    """
    words(text)
    return _PIECE.sub(lambda match: _expanded(match, environment), text)


def _expanded(match: re.Match[str], environment: Mapping[str, str]) -> str:
    found = match.groupdict()
    kept = found["escaped"] if found["escaped"] is not None else found.get("literal")
    if kept is not None:
        return str(kept)
    if found.get("quoted") is not None:
        return _QUOTED_PIECE.sub(lambda inner: _expanded(inner, environment), found["quoted"])
    return _value(found, environment)


def _value(found: Mapping[str, str | None], environment: Mapping[str, str]) -> str:
    if found["wrong"]:
        raise UsageError("a variable is $NAME, ${NAME}, ${NAME:-WORD} or ${NAME:+WORD}")
    value = environment.get(found["name"] or found["braced"] or "", "")
    if found["rule"] is None:
        return value
    other = expand(found["word"] or "", environment)
    return value or other if found["rule"] == "-" else value and other
