"""Untrusted text as one line that a terminal or a log can show.

The rule: what a person is shown of a text that comes from elsewhere (a name in an image, a path, an answer of
a registry) is one line, and nothing in it is a command to a terminal. What does not print is escaped as C has
it: control characters, signs that turn the direction of text, ends of lines, and bytes that are no UTF-8.
"""

from __future__ import annotations

import os

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED_BYTES = range(0xDC80, 0xDD00)  # how Python has a byte of a path that is no UTF-8 (PEP 383)


def printable(text: str) -> str:
    """Return the text as one printable line; printable characters, and `\\`, stay."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_path(path: bytes) -> str:
    """Return a path as `printable` text from which it can be told again: `\\` is escaped, too."""
    return printable(os.fsdecode(path.replace(b"\\", b"\\\\")))


def _escaped(sign: str) -> str:
    if sign.isprintable():
        return sign
    number = ord(sign)
    if number in _ESCAPED_BYTES:
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return _SHORT.get(sign, f"\\x{number:02x}")
    return f"\\U{number:08x}"
