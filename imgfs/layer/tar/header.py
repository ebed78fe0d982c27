"""One 512-byte tar header: its fields, its numbers, its checksum.

Every member of every layer passes through here under the interpreter's lock, so the usual header is decoded
with few calls; what is unusual may be slow. Formats: POSIX pax, "ustar Interchange Format"; GNU tar manual,
"Basic Tar Format".
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple
from zlib import adler32

from imgfs.errors import InvalidImage

BLOCK = 512
OFFSET_LIMIT = (1 << 63) - 1  # of any size or offset: what off_t and SQLite hold

# name, mode, uid, gid, size, mtime, chksum, typeflag, linkname, magic with version
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s")
_POSIX_MAGIC = b"ustar\0"
_GNU_MAGIC = b"ustar  \0"
_PREFIX = 345
_BLANK_CHECKSUM = 8 * ord(" ")  # the checksum counts its own field as spaces


class ReadRequest(NamedTuple):
    """A request for the flat layer's bytes `[offset, offset + length)`."""

    offset: int
    length: int


class Header(NamedTuple):
    """A header block's fields. `size` counts the stored payload's bytes; `mode` is twelve bits."""

    path: bytes
    typeflag: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes


def parse_header(block: bytes) -> Header:
    """Decode a 512-byte header block; raises InvalidImage."""
    name, mode, uid, gid, size, mtime, checksum, typeflag, target, magic = _FIELDS.unpack_from(block)
    try:
        told = parse_number(checksum)
    except InvalidImage as error:
        raise InvalidImage("not a tar header: its checksum is not a number") from error
    if told != _byte_sum(block) - sum(checksum) + _BLANK_CHECKSUM:
        _check_signed(block, checksum)
    path = name.partition(b"\0")[0]
    if block[_PREFIX] and magic.startswith(b"ustar"):
        path = _prefixed(block, magic, path)
    return Header(
        path,
        typeflag,
        _mode(mode),
        _owner(uid),
        _owner(gid),
        check_size(parse_number(size)),
        parse_number(mtime) * 1_000_000_000,
        target.partition(b"\0")[0],
    )


def parse_device(block: bytes) -> tuple[int, int]:
    """Return the (major, minor) of a device's header; (0, 0) before ustar, which had no such fields."""
    if not block.startswith(b"ustar", 257):
        return 0, 0
    major, minor = parse_number(block[329:337]), parse_number(block[337:345])
    if not (0 <= major < 1 << 32 and 0 <= minor < 1 << 32):
        raise InvalidImage(f"device number {major}:{minor} is out of range")
    return major, minor


def has_gnu_magic(block: bytes) -> bool:
    """Return whether a header is GNU tar's own format: only there do sparse fields mean something."""
    return block.startswith(_GNU_MAGIC, 257)


def parse_number(field: bytes) -> int:
    """Decode a number field: octal, padded with spaces or NULs, or GNU's base-256; raises InvalidImage."""
    digits = field.strip(b" \0")
    try:
        if digits.isdigit():  # int() alone would take signs, underscores and 0o
            return int(digits, 8)
    except ValueError:
        digits = b"?"
    return _unusual_number(field, digits)


def check_size(size: int) -> int:
    """`size`, a length in bytes, or InvalidImage if no file can have it."""
    if 0 <= size <= OFFSET_LIMIT:
        return size
    raise InvalidImage(f"size {size} is out of range")


def check_owner(owner: int) -> int:
    """Return a uid or gid in Linux's 32 bits; a negative one wraps, as with chown(2). Raises InvalidImage."""
    if 0 <= owner < 1 << 32:
        return owner
    if -(1 << 31) <= owner < 0:
        return owner + (1 << 32)
    raise InvalidImage(f"owner {owner} is out of range")


@lru_cache(maxsize=1024)  # a layer has few modes
def _mode(field: bytes) -> int:
    return parse_number(field) & 0o7777


@lru_cache(maxsize=1024)  # and few owners
def _owner(field: bytes) -> int:
    return check_owner(parse_number(field))


def _unusual_number(field: bytes, digits: bytes) -> int:
    if not digits:
        return 0
    if field[0] & 0x80:
        return _base256(field)
    head = digits.partition(b"\0")[0].rstrip(b" ")  # as in C, a NUL ends the field whatever follows it
    if not head.isdigit() or head.strip(b"01234567"):
        raise InvalidImage(f"{field!r} is not a number")
    return int(head, 8)


def _base256(field: bytes) -> int:
    """Return the big-endian two's complement number after the top bit (GNU tar manual, "Extensions")."""
    bits = 8 * len(field) - 1
    number = int.from_bytes(field, "big") & ((1 << bits) - 1)
    if number >> (bits - 1):
        number -= 1 << bits
    if not -OFFSET_LIMIT <= number <= OFFSET_LIMIT:
        raise InvalidImage(f"number {number} is out of range")
    return number


def _byte_sum(block: bytes) -> int:
    """Return the sum of 512 bytes.

    Adler-32's low half, begun at 0, is the byte sum modulo 65521: exact for 256 bytes, which reach 65280 at
    most (RFC 1950, 8.2), and many times faster than `sum`.
    """
    return (adler32(block[:256], 0) & 0xFFFF) + (adler32(block[256:], 0) & 0xFFFF)


def _check_signed(block: bytes, checksum: bytes) -> None:
    """Raise InvalidImage unless the checksum is that of signed chars, as some old tars computed it."""
    blanked = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blanked)
    if parse_number(checksum) != signed:
        raise InvalidImage("not a tar header: its checksum is wrong")


def _prefixed(block: bytes, magic: bytes, path: bytes) -> bytes:
    """`path` behind the prefix field, where the format has one.

    POSIX ustar has 155 bytes of it, star ("tar" at 508) 131. GNU keeps times there; but Go before 1.8, which
    wrote many an old image, put a prefix under GNU's magic: like Go's archive/tar (reader.go, readHeader),
    believe in it if those times are no numbers.
    """
    if magic.startswith(_POSIX_MAGIC):
        width = 131 if block.endswith(b"tar\0") else 155
    elif magic == _GNU_MAGIC and block[_PREFIX : _PREFIX + 155].isascii() and not _has_times(block):
        width = 155
    else:
        return path
    prefix = block[_PREFIX : _PREFIX + width].partition(b"\0")[0]
    return prefix + b"/" + path


def _has_times(block: bytes) -> bool:
    """Return whether GNU's atime and ctime (12 bytes each, at 345 and 357) are numbers."""
    try:
        parse_number(block[345:357])
        parse_number(block[357:369])
    except InvalidImage:
        return False
    return True
