"""Writing entries as a tar stream: what `tar` reads, and what every unpacker of layers reads the same.

A member is a ustar header where that suffices, else a PAX extended header before it (POSIX pax). Nothing but
the entries goes into the bytes: no names of owners, no clock, no process. So the same entries make the same
layer, whose digest a registry may know already.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from urllib.parse import quote_from_bytes

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Entry, Kind
from imgfs.layer.limits import EXTENSION_LIMIT
from imgfs.layer.tar.header import BLOCK, check_owner, check_size

# POSIX pax, "ustar Interchange Format"
_TYPEFLAGS = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_LINKS = frozenset((Kind.SYMLINK, Kind.HARDLINK))
_DEVICES = frozenset((Kind.CHARACTER, Kind.BLOCK))
_NAME, _PREFIX = 100, 155  # bytes of a name or link target, and of what may stand before a name
_SHORT, _LONG = 8, 12  # bytes of the number fields; the last is a NUL, the others octal digits
_PAX_NAME = b"././@PaxHeader"  # what an unpacker that knows no PAX would call it
_SECOND = 1_000_000_000
_END = bytes(2 * BLOCK)

Member = tuple[Entry, Iterable[bytes]]
_Records = dict[bytes, bytes]


def tar_of(members: Iterable[Member]) -> Iterator[bytes]:
    """Write members, each an entry with its bytes, as one whole tar stream, in pieces of any size.

    Paths and targets are written as they are, but a directory's always ends in a slash. `extents` are not
    looked at: the bytes are a file's whole content, its holes as zeros. Raises InvalidImage, naming the
    member, where they are not exactly `entry.size` bytes or no tar can say what the entry does.
    """
    for entry, chunks in members:
        try:
            yield _headers(entry)
            yield from _payload(entry.size, chunks)
        except InvalidImage as error:
            raise InvalidImage(str(error), where=entry.path.decode("utf-8", "backslashreplace")) from error
    yield _END


def header_of(entry: Entry) -> bytes:
    """Return what comes before the bytes of one member, whose path is short; raises InvalidImage."""
    return _headers(entry)


def _payload(size: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes, padded to whole blocks; InvalidImage as soon as they are not `size` long."""
    written = 0
    for chunk in chunks:
        written += len(chunk)
        if written > size:
            raise InvalidImage(f"has more than the {size} bytes its entry says")
        yield chunk
    if written < size:
        raise InvalidImage(f"has {written} bytes, {size - written} fewer than its entry says")
    if size % BLOCK:
        yield bytes(-size % BLOCK)


def _headers(entry: Entry) -> bytes:
    """Return all that comes before the member's bytes."""
    path = _path_of(entry)
    _check(entry, path)
    records = _records(entry, path)
    header = _header(entry, path)
    return _extended_header(records) + header if records else header


def _path_of(entry: Entry) -> bytes:
    is_bare = entry.kind is Kind.DIRECTORY and not entry.path.endswith(b"/")
    return entry.path + b"/" if entry.path and is_bare else entry.path


def _check(entry: Entry, path: bytes) -> None:
    """Raise InvalidImage for what a header can hold but no reader would take for what it is."""
    if not path or b"\0" in path + entry.target:
        raise InvalidImage("no path can be empty or hold a NUL")
    if path.endswith(b"/") and entry.kind is not Kind.DIRECTORY:
        raise InvalidImage("ends in a slash: it would be read as a directory")
    if bool(entry.target) != (entry.kind in _LINKS):
        raise InvalidImage("a target but no link" if entry.target else "a link without a target")
    if any(not 0 <= number < 1 << 32 for number in entry.device):
        raise InvalidImage(f"device number {entry.device[0]}:{entry.device[1]} is out of range")


def _records(entry: Entry, path: bytes) -> _Records:
    """Return what the ustar header has no room for (POSIX pax, "pax Extended Header Keywords")."""
    records = {} if _fits(path) else {b"path": path}
    if entry.target and (len(entry.target) > _NAME or not entry.target.isascii()):
        records[b"linkpath"] = entry.target
    if not all(map(_is_text, records.values())):
        records[b"hdrcharset"] = b"BINARY"
    for key, number in ((b"uid", check_owner(entry.uid)), (b"gid", check_owner(entry.gid))):
        if number >= _limit(_SHORT):
            records[key] = b"%d" % number
    if check_size(entry.size) >= _limit(_LONG):
        records[b"size"] = b"%d" % entry.size
    if entry.mtime_ns != _whole_seconds(entry.mtime_ns) * _SECOND:
        records[b"mtime"] = _time(entry.mtime_ns)
    records.update(_xattr(name, value) for name, value in entry.xattrs.items())
    return records


def _xattr(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return an extended attribute: as star(5) has it, which every unpacker reads.

    But a `=` would end its keyword, so such a name goes into libarchive's form, URL-encoded, with a base64
    value without padding (tar(5)).
    """
    if not name or b"\0" in name:
        raise InvalidImage(f"{name[:40]!r} is not a name for an extended attribute")
    if b"=" in name:
        key = b"LIBARCHIVE.xattr." + quote_from_bytes(name, "").encode()
        return key, base64.b64encode(value).rstrip(b"=")
    return b"SCHILY.xattr." + name, value


def _extended_header(records: _Records) -> bytes:
    """Return a PAX extended header for the next member.

    `hdrcharset` comes first: it says how to take the paths behind it (to libarchive they are UTF-8 else).
    """
    first = [key for key in (b"hdrcharset",) if key in records]
    keys = first + sorted(records.keys() - first)
    payload = b"".join(_record(key, records[key]) for key in keys)
    if len(payload) > EXTENSION_LIMIT:
        raise InvalidImage(f"its names and attributes have more than {EXTENSION_LIMIT} bytes")
    header = _block(_PAX_NAME, typeflag=b"x", mode=0o644, size=len(payload))
    return header + payload + bytes(-len(payload) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the decimal LENGTH counts the whole record, its own digits included."""
    rest = len(key) + len(value) + 3  # space, equals sign, newline
    length = rest + len(str(rest))
    length = rest + len(str(length))  # its digits may have made it a digit longer
    return b"%d %b=%b\n" % (length, key, value)


def _header(entry: Entry, path: bytes) -> bytes:
    prefix, name = _split(_replacement(path)) or (b"", _replacement(path)[:_NAME])
    return _block(
        name,
        prefix=prefix,
        typeflag=_TYPEFLAGS[entry.kind],
        mode=entry.mode & 0o7777,
        owner=(entry.uid, entry.gid),
        size=entry.size,
        mtime=_whole_seconds(entry.mtime_ns),
        target=_replacement(entry.target)[:_NAME],
        device=entry.device if entry.kind in _DEVICES else (0, 0),
    )


def _block(
    name: bytes,
    *,
    typeflag: bytes,
    mode: int,
    size: int,
    prefix: bytes = b"",
    owner: tuple[int, int] = (0, 0),
    mtime: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One ustar header block, with zeros for numbers that a PAX record has to say."""
    head = name.ljust(_NAME, b"\0") + b"".join(_octal(number, _SHORT) for number in (mode, *owner))
    head += _octal(size, _LONG) + _octal(mtime, _LONG)
    tail = typeflag + target.ljust(_NAME, b"\0") + b"ustar\x0000" + bytes(64)  # no names of user and group
    tail += b"".join(map(_device_number, device)) + prefix
    checksum = sum(head) + 8 * ord(" ") + sum(tail)  # its own field counts as spaces
    return (head + b"%06o\0 " % checksum + tail).ljust(BLOCK, b"\0")


def _octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number if 0 <= number < _limit(width) else 0)


def _device_number(number: int) -> bytes:
    """PAX has no keyword for it; the binary form of GNU tar ("Extensions"), which readers take in any header,
    serves where octal digits end. Linux stays below that, with 12 and 20 bits."""
    if number < _limit(_SHORT):
        return _octal(number, _SHORT)
    return (number | 1 << 63).to_bytes(_SHORT, "big")


def _limit(width: int) -> int:
    """Return the first number that a field of `width` bytes, the last of them a NUL, has no room for."""
    return 1 << 3 * (width - 1)


def _whole_seconds(mtime_ns: int) -> int:
    """Return the time as the header has it; 0 where it has no room."""
    seconds = mtime_ns // _SECOND
    return seconds if 0 <= seconds < _limit(_LONG) else 0


def _time(mtime_ns: int) -> bytes:
    """Return seconds since the epoch with a decimal fraction (POSIX pax, "mtime"), exactly."""
    seconds, fraction = divmod(abs(mtime_ns), _SECOND)
    text = b"%b%d" % (b"-" if mtime_ns < 0 else b"", seconds)
    return text + (b".%09d" % fraction).rstrip(b"0") if fraction else text


def _fits(path: bytes) -> bool:
    """Return whether the header's own fields can hold `path`; they are ASCII only (POSIX pax, "ustar")."""
    return path.isascii() and _split(path) is not None


def _split(path: bytes) -> tuple[bytes, bytes] | None:
    """Return (prefix, name) for a path that fits; they are cut at a slash, which neither holds."""
    if len(path) <= _NAME:
        return b"", path
    cut = path.rfind(b"/", 1, min(_PREFIX + 1, len(path) - 1))
    return None if cut < 0 or len(path) - cut - 1 > _NAME else (path[:cut], path[cut + 1 :])


def _replacement(text: bytes) -> bytes:
    """`text` in ASCII, which a header is: itself, or what stands there for the text of a record."""
    return text if text.isascii() else bytes(byte if byte < 0x80 else ord("?") for byte in text)


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
