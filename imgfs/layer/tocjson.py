"""The JSON of a table of contents, one entry at a time: memory for one entry, however many there are.

Nothing is believed of the bytes but that their digest is right: an image can be made by anybody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from imgfs.errors import InvalidImage
from imgfs.layer.limits import TOC_ENTRIES_LIMIT as ENTRIES_LIMIT
from imgfs.layer.limits import TOC_ENTRY_LIMIT as ENTRY_LIMIT
from imgfs.layer.limits import TOC_LIMIT as LIMIT

_VERSION = 1  # all that there is (eStargz, "TOC"; zstd:chunked says the same)
_SPACE = re.compile(r"[ \t\n\r]*")  # RFC 8259, section 2


def toc_fields(body: bytes) -> Iterator[dict[str, Any]]:
    """The objects of `entries`, in order, out of `{"version": 1, "entries": […], …}`.

    Raises InvalidImage, naming the character, for what is no such JSON or too long.
    """
    if len(body) > LIMIT:
        raise InvalidImage(f"a table of contents of {len(body)} bytes is more than {LIMIT}")
    try:
        text = _Text(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidImage(f"the table of contents is not UTF-8: {error}") from error
    seen = set()
    for name in text.members():
        if name in seen:
            raise text.error(f"a second {name[:40]!r}")
        seen.add(name)
        if name == "entries":
            yield from text.elements()
        elif name == "version" and (version := text.value()) != _VERSION:
            raise text.error(f"version {version!r:.40}; imgfs knows version {_VERSION}")
        elif name != "version":
            text.value()
    text.end()


class _Text:
    """JSON text and how far it is read. Values are decoded out of a window, which bounds what one takes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = 0  # of the window in the text
        self._window = text[:ENTRY_LIMIT]
        self._at = 0  # in the window
        self._decode = json.JSONDecoder().raw_decode

    def error(self, message: str) -> InvalidImage:
        """What is wrong, and at which character."""
        return InvalidImage(message, where=f"TOC character {self._start + self._at}")

    def value(self) -> Any:
        """The value that comes next, of any type."""
        self._peek()
        while True:
            try:
                value, self._at = self._decode(self._window, self._at)
            except (ValueError, RecursionError) as error:
                if self._at and self._slide():  # the window may have cut it
                    continue
                raise self.error(f"not JSON, or too long: {error}") from error
            return value

    def members(self) -> Iterator[str]:
        """The names of an object; before the next is asked for, its value must have been read."""
        for _ in self._separated("{", "}"):
            name = self.value()
            if not isinstance(name, str):
                raise self.error("expected a name")
            self._expect(":")
            yield name

    def elements(self) -> Iterator[dict[str, Any]]:
        """The objects of an array, or of null, which has none."""
        if self._peek() != "[":
            if self.value() is not None:
                raise self.error("entries: expected an array")
            return
        for number, _ in enumerate(self._separated("[", "]")):
            value = self.value()
            if type(value) is not dict:
                raise self.error("expected an object")
            if number >= ENTRIES_LIMIT:
                raise self.error(f"more than {ENTRIES_LIMIT} entries")
            yield value

    def end(self) -> None:
        """Raise InvalidImage if there is more."""
        if self._peek():
            raise self.error("more after the end of the table of contents")

    def _separated(self, opening: str, closing: str) -> Iterator[None]:
        """Once for each of the values between the brackets, which the caller reads."""
        self._expect(opening)
        if self._peek() == closing:
            self._at += 1
            return
        while True:
            yield
            mark = self._peek()
            self._at += 1
            if mark == closing:
                return
            if mark != ",":
                self._at -= 1
                raise self.error(f"expected ',' or {closing!r}")

    def _expect(self, mark: str) -> None:
        if self._peek() != mark:
            raise self.error(f"expected {mark!r}")
        self._at += 1

    def _peek(self) -> str:
        """The next character that is no space, empty at the end."""
        while True:
            match = _SPACE.match(self._window, self._at)
            assert match  # it matches nothing, too
            self._at = match.end()
            if self._at < len(self._window) or not self._slide():
                return self._window[self._at : self._at + 1]

    def _slide(self) -> bool:
        """Begin the window where reading is; whether that brings any text."""
        self._start += self._at
        self._at = 0
        self._window = self._text[self._start : self._start + ENTRY_LIMIT]
        return bool(self._window)
