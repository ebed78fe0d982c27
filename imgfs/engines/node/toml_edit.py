"""Values set in the text of a TOML file: every other line stays as it is, and what was set can be taken back.

A line that was added ends in a mark; one that was replaced is kept behind another. Lines are what newlines
part: so each byte of the others stays, also carriage returns, and a last line that has no newline. Of TOML
this knows tables by their headers and keys of one line. So the result is parsed, and has to be what was asked
for: a file that is written in another way is refused.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress

from imgfs.errors import UsageError

Keys = tuple[str, ...]  # of a table, from the outermost
Value = str | bool | int | list[str]
Document = dict[str, object]
_ADDED, _REPLACED = "  # by imgfs", "# replaced by imgfs: "
_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(#.*)?$")
_PART = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


class TomlEdit:
    """The text of a TOML file, and the document it is to be in the end. Raises UsageError, naming `where`."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._lines = text.split("\n")  # the last one is empty if the text ends with a newline
        self._document = parsed_toml(text, where)

    @property
    def text(self) -> str:
        """Return the text; raises UsageError if it does not say what was set."""
        text = "\n".join(self._lines)
        with suppress(tomllib.TOMLDecodeError):
            if tomllib.loads(text) == self._document:
                return text
        raise UsageError(f"{self._where}: is written in a way that imgfs cannot add to: do it by hand")

    @property
    def document(self) -> Document:
        """Return what the file is to say, with all that was set until now."""
        return self._document

    def set(self, keys: Keys, key: str, value: Value) -> None:
        """Set a value in a table, unless it is that already."""
        found = table(self._document, *keys)
        if key in found and found[key] == value:
            return
        line = f"{_word(key)} = {_literal(value)}{_ADDED}"
        at = self._line_of((*keys, key))
        if at is not None:
            self._lines[at : at + 1] = [f"{_REPLACED}{self._lines[at]}", line]
        elif not keys:
            self._lines.insert(0, line)
        elif (header := self._header_of(keys)) is not None:
            self._lines.insert(self._end_of_added(header), line)
        else:
            self._add(f"[{_name(keys)}]{_ADDED}", line)
        self._inner(keys)[key] = value

    def append(self, keys: Keys, values: Mapping[str, Value]) -> None:
        """Append a table to an array of tables."""
        self._add(
            f"[[{_name(keys)}]]{_ADDED}",
            *(f"{_word(key)} = {_literal(value)}{_ADDED}" for key, value in values.items()),
        )
        array = self._inner(keys[:-1]).setdefault(keys[-1], [])
        if not isinstance(array, list):
            raise UsageError(f"{self._where}: {_name(keys)} is not an array of tables")
        array.append(dict(values))

    def _add(self, *lines: str) -> None:
        """Add lines at the end."""
        end = len(self._lines) - (not self._lines[-1])
        self._lines[end:end] = lines

    def _inner(self, keys: Keys) -> Document:
        """Return a table of the document, made if it is not there."""
        found = self._document
        for key in keys:
            inner = found.setdefault(key, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{self._where}: {_name(keys)} is not a table")
            found = inner
        return found

    def _end_of_added(self, header: int) -> int:
        """Return the line after a header and the lines that were added below it."""
        at = header + 1
        while at < len(self._lines) and self._lines[at].endswith(_ADDED) and "=" in self._lines[at]:
            at += 1
        return at

    def _header_of(self, keys: Keys) -> int | None:
        return next((at for at, table in enumerate(self._headers()) if table == keys), None)

    def _headers(self) -> Sequence[Keys | None]:
        """Return the table that each line is the header of, None if it is of none, or of an array."""
        matches = (_HEADER.match(line) for line in self._lines)
        return [_keys(found[2]) if found and found[1] == "[" else None for found in matches]

    def _line_of(self, wanted: Keys) -> int | None:
        """Return the line that sets a key, by its full name."""
        table: Keys | None = ()
        for at, line in enumerate(self._lines):
            if header := _HEADER.match(line):
                table = _keys(header[2]) if header[1] == "[" else None
            elif table is not None and (found := _KEY.match(line)) and (*table, *_keys(found[1])) == wanted:
                return at
        return None


def parsed_toml(text: str, where: object) -> Document:
    """Return what a file says; raises UsageError, naming it, if that is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}") from error


def table(document: Document, *keys: str) -> Document:
    """Return a table of a document; an empty one if it has none there."""
    found: object = document
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def undone(text: str) -> str:
    """Return the text as it was before values were set in it, byte for byte."""
    kept = [line for line in text.split("\n") if not line.rstrip("\r").endswith(_ADDED)]
    return "\n".join(line.removeprefix(_REPLACED) for line in kept)


def _keys(text: str) -> Keys:
    """Return the parts of a dotted key; none for what is no key."""
    try:
        found: object = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    keys: Keys = ()
    while isinstance(found, dict) and found:
        key, found = next(iter(found.items()))
        keys = (*keys, key)
    return keys


def _name(keys: Keys) -> str:
    return ".".join(map(_word, keys))


def _word(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key)


def _literal(value: Value) -> str:
    """Return a value in TOML: strings, numbers and arrays of strings are as JSON has them."""
    return json.dumps(value, ensure_ascii=False)
