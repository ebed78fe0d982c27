"""The fields of an entry in a table of contents: of the right type and in range, or InvalidImage naming them.

Go writes them (encoding/json): zero fields are left out, null is zero, bytes are base64.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from imgfs.errors import InvalidImage
from imgfs.layer.tarheader import OFFSET_LIMIT

_REPLACEMENT = "\ufffd"  # what Go's encoding/json writes for bytes that are no UTF-8
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)  # RFC 3339
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZERO_TIME = "0001-01-01T00:00:00Z"  # Go's time.Time that was never set
_NO_XATTRS: Mapping[bytes, bytes] = {}

Fields = Mapping[str, Any]


def chunk_digest(fields: Fields, whole: bool) -> bytes:
    """The sha256 of a chunk; zstd:chunked leaves it to the file's where that is one chunk."""
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
    """The number `fields[name]`, from `least` up to the largest size of a file."""
    value = fields.get(name)
    if value is None:
        return 0
    if type(value) is not int or not least <= value <= OFFSET_LIMIT:
        raise InvalidImage(f"{name}: expected a number from {least} to {OFFSET_LIMIT}")
    return value


def path_in(fields: Fields, name: str) -> tuple[str, bytes]:
    """A path as text, without what may stand before the root's names, and as the bytes that it is."""
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
    """A device's (major, minor)."""
    major, minor = number_in(fields, "devMajor"), number_in(fields, "devMinor")
    if max(major, minor) >= 1 << 32:
        raise InvalidImage(f"device number {major}:{minor} is out of range")
    return major, minor


def xattrs_in(fields: Fields) -> Mapping[bytes, bytes]:
    """The extended attributes, whose values are base64 in the table."""
    value = fields.get("xattrs")
    if value is None:
        return _NO_XATTRS
    if type(value) is not dict:
        raise InvalidImage("xattrs: expected an object")
    xattrs = {}
    for name, text in value.items():
        if not name or "\0" in name:
            raise InvalidImage(f"xattrs: {name[:40]!r} is no name for an extended attribute")
        try:
            xattrs[_encoded(name)] = base64.b64decode(text or "", validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise InvalidImage(f"xattrs: {name[:40]!r}: expected base64") from error
    return xattrs


def time_in(fields: Fields) -> int:
    """The modification time in nanoseconds since the epoch."""
    text = fields.get("modtime")
    if not text:
        return 0
    if type(text) is not str:
        raise InvalidImage("modtime: expected a time")
    return _nanoseconds(text)


@lru_cache(maxsize=4096)  # a layer has few times
def _nanoseconds(text: str) -> int:
    """Nanoseconds since the epoch for a time in RFC 3339."""
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
