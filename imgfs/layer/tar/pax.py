"""PAX extended headers: records, and what they say of a member (POSIX pax, "pax Extended Header").

Values stay bytes: paths in a layer are bytes and xattrs are binary, so neither a charset (`hdrcharset`) nor a
newline inside a value means anything here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote_to_bytes

from imgfs.errors import InvalidImage

SPARSE_MAP = b"GNU.sparse.map"
_SPARSE_PIECE = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_TIME = re.compile(rb"([+-]?)([0-9]+)(?:\.([0-9]*))?")
_NUMBER = re.compile(rb"([+-]?)([0-9]+)")
_DIGITS = 19  # of a number in 64 bits, but for zeros before them

Records = Mapping[bytes, bytes]


def parse_records(payload: bytes) -> dict[bytes, bytes]:
    """Decode the payload of an `x` or `g` header: the last record of a keyword wins; raises InvalidImage.

    The repeated `GNU.sparse.offset` and `.numbytes` of sparse format 0.0 come back as one `GNU.sparse.map`,
    the form of 0.1 (GNU tar manual, "PAX Format, Versions 0.0 and 0.1").
    """
    records: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    for key, value in _records(payload):
        if key in _SPARSE_PIECE:
            if key != _SPARSE_PIECE[len(pieces) % 2] or b"," in value:
                raise InvalidImage("the sparse map's records are out of order")
            pieces.append(value)
        else:
            records[key] = value
    if pieces:
        records[SPARSE_MAP] = b",".join(pieces)
    return records


def _records(payload: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each `LENGTH KEY=VALUE\\n`, where the decimal LENGTH counts the whole record, itself included."""
    at = 0
    while at < len(payload):
        space = payload.find(b" ", at)
        digits = payload[at:space] if space > at else b""
        stop = at + _value(digits) if digits.isdigit() else 0
        equals = payload.find(b"=", space + 1, stop)
        if stop > len(payload) or equals <= space + 1 or payload[stop - 1] != 0x0A:
            raise InvalidImage(f"PAX record at byte {at} of the extended header is malformed")
        yield payload[space + 1 : equals], payload[equals + 1 : stop - 1]
        at = stop


def is_xattr(key: bytes) -> bool:
    """Return whether a keyword holds an extended attribute."""
    return key.startswith((_SCHILY, _LIBARCHIVE))


def parse_path(value: bytes) -> bytes:
    """Return a path or link target; raises InvalidImage on a NUL, which no file name can hold."""
    if b"\0" in value:
        raise InvalidImage("a path in a PAX record holds a NUL")
    return value


def parse_decimal(value: bytes) -> int:
    """Return a decimal number in 64 bits, however many zeros are before it; raises InvalidImage."""
    match = _NUMBER.fullmatch(value)
    if not match:
        raise InvalidImage(f"{value[:40]!r} in a PAX record is not a number")
    return -_value(match[2]) if match[1] == b"-" else _value(match[2])


def parse_time(value: bytes) -> int:
    """Decode seconds with a decimal fraction, possibly negative, into nanoseconds; further digits are cut.

    Exact: a float would lose the nanoseconds of today's dates. Raises InvalidImage.
    """
    match = _TIME.fullmatch(value)
    if not match:
        raise InvalidImage(f"{value[:40]!r} in a PAX record is not a time")
    sign, seconds, fraction = match.groups()
    nanoseconds = _value(seconds) * 1_000_000_000 + int((fraction or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if sign == b"-" else nanoseconds


def _value(digits: bytes) -> int:
    """Return a number; its value is limited, not its digits: Go's and star's writers pad with zeros."""
    digits = digits.lstrip(b"0")
    if len(digits) > _DIGITS:
        raise InvalidImage(f"{digits[:40]!r} in a PAX record is more than 64 bits hold")
    return int(digits or b"0")


def parse_xattrs(records: Records) -> dict[bytes, bytes]:
    """Return the extended attributes among the records; raises InvalidImage.

    `SCHILY.xattr.NAME` holds the value as it is (star(5)); `LIBARCHIVE.xattr.NAME` a URL-encoded name and a
    base64 value (libarchive tar(5)). Names of the former are not decoded, like in Go's archive/tar. It counts
    where both are there, as bsdtar writes them.
    """
    xattrs = {}
    for key, value in records.items():
        if key.startswith(_LIBARCHIVE) and _SCHILY + key[len(_LIBARCHIVE) :] not in records:
            name = unquote_to_bytes(key[len(_LIBARCHIVE) :])
            xattrs[_xattr_name(name)] = _base64(value)
    for key, value in records.items():
        if key.startswith(_SCHILY):
            xattrs[_xattr_name(key[len(_SCHILY) :])] = value
    return xattrs


def _xattr_name(name: bytes) -> bytes:
    if not name or b"\0" in name:
        raise InvalidImage(f"{name[:40]!r} is not a name for an extended attribute")
    return name


def _base64(value: bytes) -> bytes:
    """libarchive leaves the padding out."""
    try:
        return base64.b64decode(value.rstrip(b"=") + b"=" * (-len(value.rstrip(b"=")) % 4), validate=True)
    except binascii.Error as error:
        raise InvalidImage(f"a LIBARCHIVE.xattr record is not base64: {error}") from error
