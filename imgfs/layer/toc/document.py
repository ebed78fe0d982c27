"""The JSON document of a table of contents, read under bounds: its entries, and their fields.

`toc_fields` yields one entry at a time, so memory is that of one entry and the text, however many there are.
The other functions read one field of an entry: they return a value of the right type and in range, or raise
InvalidImage naming the field. Only the document's digest is trusted: any image's author may have written it.

Go's encoding/json writes it: zero fields are left out, null is zero, bytes are base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache

from imgfs.errors import InvalidImage
from imgfs.layer.limits import TOC_ENTRIES_LIMIT as ENTRIES_LIMIT
from imgfs.layer.limits import TOC_ENTRY_LIMIT as ENTRY_LIMIT
from imgfs.layer.limits import TOC_LIMIT as LIMIT
from imgfs.layer.tar.header import OFFSET_LIMIT
from imgfs.oci.fields import words_of_json

_VERSION = 1  # the only one (eStargz, "TOC"; zstd:chunked says the same)
_SPACE = re.compile(r"[ \t\n\r]*")  # RFC 8259, section 2
_REPLACEMENT = "\ufffd"  # what Go's encoding/json writes for bytes that are no UTF-8
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)  # RFC 3339
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZERO_TIME = "0001-01-01T00:00:00Z"  # Go's time.Time that was never set
_NO_XATTRS: Mapping[bytes, bytes] = {}

Fields = Mapping[str, object]


def toc_fields(body: bytes) -> Iterator[dict[str, object]]:
    """Yield the objects of `entries`, in order, out of `{"version": 1, "entries": […], …}`.

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


def chunk_digest(fields: Fields, whole: bool) -> bytes:
    """Read the sha256 of a chunk; zstd:chunked gives only the file's digest where the file is one chunk."""
    text = fields.get("chunkDigest") or (fields.get("digest") if whole else None)
    if type(text) is str and len(text) == 71 and text.startswith("sha256:"):
        try:
            digest = bytes.fromhex(text[7:])
        except ValueError:
            digest = b""
        if len(digest) == 32:  # fromhex passes over spaces
            return digest
    raise InvalidImage("chunkDigest: expected a sha256 digest")


def number_in(fields: Fields, name: str, least: int = 0) -> int:
    """Read the number `fields[name]`, from `least` to the largest size of a file; 0 if it is absent."""
    value = fields.get(name)
    if value is None:
        return 0
    if type(value) is not int or not least <= value <= OFFSET_LIMIT:
        raise InvalidImage(f"{name}: expected a number from {least} to {OFFSET_LIMIT}")
    return value


def path_in(fields: Fields, name: str) -> tuple[str, bytes]:
    """Read a path: as text without a leading `./` or `/`, and as its bytes."""
    value = fields.get(name)
    if type(value) is not str or "\0" in value:
        raise InvalidImage(f"{name}: expected a path")
    if _REPLACEMENT in value:
        raise InvalidImage(f"{name}: the table of contents has lost bytes that are not UTF-8")
    return value.removeprefix("./").lstrip("/"), _encoded(value)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, smuggled in by an escape
        raise InvalidImage(f"not text: {error.reason}") from error


def device_in(fields: Fields) -> tuple[int, int]:
    """Read a device's (major, minor)."""
    major, minor = number_in(fields, "devMajor"), number_in(fields, "devMinor")
    if max(major, minor) >= 1 << 32:
        raise InvalidImage(f"device number {major}:{minor} is out of range")
    return major, minor


def xattrs_in(fields: Fields) -> Mapping[bytes, bytes]:
    """Read the extended attributes, whose values are base64 in the table."""
    value = fields.get("xattrs")
    if value is None:
        return _NO_XATTRS
    if type(value) is not dict:
        raise InvalidImage("xattrs: expected an object")
    xattrs = {}
    for name, text in value.items():
        if not name or "\0" in name:
            raise InvalidImage(f"xattrs: {name[:40]!r} is not a name for an extended attribute")
        try:
            xattrs[_encoded(name)] = base64.b64decode(text or "", validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise InvalidImage(f"xattrs: {name[:40]!r}: expected base64") from error
    return xattrs


def time_in(fields: Fields) -> int:
    """Read the modification time, in nanoseconds since the epoch."""
    text = fields.get("modtime")
    if not text:
        return 0
    if type(text) is not str:
        raise InvalidImage("modtime: expected a time")
    return _nanoseconds(text)


@lru_cache(maxsize=4096)  # a layer has few times
def _nanoseconds(text: str) -> int:
    """Return nanoseconds since the epoch for a time in RFC 3339."""
    if text == _ZERO_TIME:
        return 0
    match = _TIME.fullmatch(text)
    if not match:
        raise InvalidImage(f"modtime: {text[:40]!r} is not a time")
    try:
        when = datetime.fromisoformat(match[1] + match[3])
    except ValueError as error:
        raise InvalidImage(f"modtime: {text[:40]!r} is not a time: {error}") from error
    since = when - _EPOCH
    return (since.days * 86400 + since.seconds) * 1_000_000_000 + int((match[2] or "")[:9].ljust(9, "0"))


class _Text:
    """JSON text and a position in it. Values are decoded out of a window, which bounds the length of one."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = 0  # of the window in the text
        self._window = text[:ENTRY_LIMIT]
        self._at = 0  # in the window
        self._decode = json.JSONDecoder().raw_decode

    def error(self, message: str) -> InvalidImage:
        """Return an error that names the current character."""
        return InvalidImage(message, where=f"TOC character {self._start + self._at}")

    def value(self) -> object:
        """Read the next value, of any type."""
        self._peek()
        while True:
            try:
                value, self._at = self._decode(self._window, self._at)
            except (ValueError, RecursionError) as error:
                if self._at and self._slide():  # the window may have cut it
                    continue
                raise self.error(f"not JSON, or too long: {words_of_json(error)}") from error
            return value

    def members(self) -> Iterator[str]:
        """Yield the names of an object; the caller reads each name's value before it takes the next name."""
        for _ in self._separated("{", "}"):
            name = self.value()
            if not isinstance(name, str):
                raise self.error("expected a name")
            self._expect(":")
            yield name

    def elements(self) -> Iterator[dict[str, object]]:
        """Yield the objects of an array; null counts as an empty one."""
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
        """Raise InvalidImage if more text follows."""
        if self._peek():
            raise self.error("more after the end of the table of contents")

    def _separated(self, opening: str, closing: str) -> Iterator[None]:
        """Yield before each value between the brackets; the caller reads the value."""
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
        """Return the next character that is no white space, '' at the end."""
        while True:
            match = _SPACE.match(self._window, self._at)
            assert match  # the pattern matches an empty string too
            self._at = match.end()
            if self._at < len(self._window) or not self._slide():
                return self._window[self._at : self._at + 1]

    def _slide(self) -> bool:
        """Move the window to the current position; return True if it holds any text."""
        self._start += self._at
        self._at = 0
        self._window = self._text[self._start : self._start + ENTRY_LIMIT]
        return bool(self._window)
