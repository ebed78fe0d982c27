"""A tar writer for tests, byte by byte: what a layer's builder writes, and what nobody should.

Every function returns the bytes of one or more whole blocks; `archive` joins them. The named members (`file`,
`directory`, ...) take what a test wants to say and add PAX records where ustar has no room. The raw ones
(`header`, `member`, `pax`, `gnu_long`, `sparse_old`, `sparse_pax`) write what they are told, right or wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

BLOCK = 512
USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)

Path = bytes | str
Piece = tuple[int, bytes]  # offset in the file, body
Records = Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]


def archive(*members: bytes) -> bytes:
    """Return a whole tar stream: the members, then two zero blocks."""
    return b"".join(members) + end()


def end() -> bytes:
    """Return the end-of-archive marker."""
    return bytes(2 * BLOCK)


def file(
    path: Path,
    body: bytes = b"",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Return a regular file."""
    return _named(path, b"0", body=body, mode=mode, owner=(uid, gid), mtime_ns=mtime_ns, xattrs=xattrs)


def directory(
    path: Path,
    *,
    mode: int = 0o755,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Return a directory; a trailing slash is up to the caller."""
    return _named(path, b"5", mode=mode, owner=(uid, gid), mtime_ns=mtime_ns, xattrs=xattrs)


def symlink(path: Path, target: Path, *, uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> bytes:
    """Return a symbolic link."""
    return _named(path, b"2", target=target, mode=0o777, owner=(uid, gid), mtime_ns=mtime_ns)


def hardlink(path: Path, target: Path) -> bytes:
    """Return a hard link to `target`, a path of the archive."""
    return _named(path, b"1", target=target)


def device(path: Path, kind: str, major: int, minor: int, *, mode: int = 0o600) -> bytes:
    """Return a device; `kind` is "c" or "b"."""
    return _named(path, {"c": b"3", "b": b"4"}[kind], mode=mode, device=(major, minor))


def fifo(path: Path, *, mode: int = 0o644) -> bytes:
    """Return a named pipe."""
    return _named(path, b"6", mode=mode)


def whiteout(path: Path) -> bytes:
    """Return the whiteout that hides `path` of the layers below (OCI layer.md, "Whiteouts")."""
    parent, slash, name = _bytes(path).rpartition(b"/")
    return file(parent + slash + b".wh." + name)


def opaque(path: Path) -> bytes:
    """Return the marker that hides all lower children of the directory `path`."""
    return file(_bytes(path).rstrip(b"/") + b"/.wh..wh..opq")


def header(
    path: Path = b"",
    typeflag: bytes = b"0",
    *,
    size: int = 0,
    target: Path = b"",
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    mtime: int = 0,
    magic: bytes = USTAR,
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    patch: Mapping[int, bytes] | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One header block. `patch` overwrites bytes at offsets; its checksum is right unless given."""
    block = bytearray(BLOCK)
    fields = {
        0: _bytes(path)[:100],
        100: number(mode, 8),
        108: number(owner[0], 8),
        116: number(owner[1], 8),
        124: number(size, 12),
        136: number(mtime, 12),
        148: b" " * 8,
        156: typeflag,
        157: _bytes(target)[:100],
        257: magic,
        329: number(device[0], 8) if magic != V7 else b"",
        337: number(device[1], 8) if magic != V7 else b"",
        345: prefix,
    }
    for at, text in {**fields, **(patch or {})}.items():
        block[at : at + len(text)] = text
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum
    return bytes(block)


def member(path: Path, typeflag: bytes = b"0", body: bytes = b"", **fields: object) -> bytes:
    """Return a header, its size that of `body`, and the padded body; `fields` as for `header`."""
    return header(path, typeflag, size=len(body), **fields) + padded(body)  # type: ignore[arg-type]  # passed on


def pax(records: Records, typeflag: bytes = b"x") -> bytes:
    """Return a PAX extended header: `x` for the next member, `g` for all that follow."""
    pairs = records.items() if isinstance(records, Mapping) else records
    return member(b"PaxHeaders/0", typeflag, b"".join(record(key, value) for key, value in pairs))


def record(key: bytes, value: bytes) -> bytes:
    """One PAX record; its length counts itself."""
    rest = len(key) + len(value) + 3  # space, =, newline
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def gnu_long(path: Path = b"", target: Path = b"") -> bytes:
    """GNU tar's long name (L) and long link (K) members, for what is not empty."""
    longs = ((b"K", _bytes(target)), (b"L", _bytes(path)))
    return b"".join(member(b"././@LongLink", flag, text + b"\0", magic=GNU) for flag, text in longs if text)


def sparse_old(path: Path, size: int, pieces: Sequence[Piece], **fields: object) -> bytes:
    """An old GNU sparse member of `size` bytes, with extension blocks if there are more than four pieces."""
    slots = [number(offset, 12) + number(len(body), 12) for offset, body in pieces]
    head, tail = slots[:4], slots[4:]
    blocks = [b"".join(tail[at : at + 21]).ljust(504, b"\0") for at in range(0, len(tail), 21)]
    extended = [block + bytes([number + 1 < len(blocks)]) + bytes(7) for number, block in enumerate(blocks)]
    patch = {386: b"".join(head), 482: bytes([bool(tail)]), 483: number(size, 12)}
    stored = b"".join(body for _, body in pieces)
    start = header(path, b"S", size=len(stored), magic=GNU, patch=patch, **fields)  # type: ignore[arg-type]  # passed on
    return start + b"".join(extended) + padded(stored)


def sparse_pax(version: str, path: Path, size: int, pieces: Sequence[Piece]) -> bytes:
    """Return a PAX sparse member in format "0.0", "0.1" or "1.0"."""
    stored = b"".join(body for _, body in pieces)
    numbers = [(b"%d" % offset, b"%d" % len(body)) for offset, body in pieces]
    name, real = (b"GNU.sparse.name", _bytes(path)), b"%d" % size
    common = [(b"GNU.sparse.size", real), (b"GNU.sparse.numblocks", b"%d" % len(pieces))]
    if version == "0.0":
        keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        each = [pair for piece in numbers for pair in zip(keys, piece, strict=True)]
        return pax([*common, *each]) + member(path, body=stored)
    if version == "0.1":
        joined = b",".join(text for piece in numbers for text in piece)
        return pax([*common, name, (b"GNU.sparse.map", joined)]) + member(b"GNUSparseFile.0/x", body=stored)
    lines = [b"%d" % len(pieces), *(text for piece in numbers for text in piece), b""]
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), name, (b"GNU.sparse.realsize", real)]
    return pax(records) + member(b"GNUSparseFile.0/x", body=padded(b"\n".join(lines)) + stored)


def padded(body: bytes) -> bytes:
    """`body` with NULs up to a whole block."""
    return body + bytes(-len(body) % BLOCK)


def number(value: int, width: int) -> bytes:
    """Return a number field: octal and a NUL, or base-256 if that has no room for it."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return base256(value, width)


def base256(value: int, width: int) -> bytes:
    """GNU's binary number field: two's complement with the top bit set."""
    field = bytearray(value.to_bytes(width, "big", signed=True))
    field[0] |= 0x80
    return bytes(field)


def seconds(nanoseconds: int) -> bytes:
    """Return nanoseconds as a PAX time."""
    whole, rest = divmod(abs(nanoseconds), 1_000_000_000)
    return b"%s%d.%09d" % (b"-" if nanoseconds < 0 else b"", whole, rest)


def _named(
    path: Path,
    typeflag: bytes,
    *,
    body: bytes = b"",
    target: Path = b"",
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    mtime_ns: int = 0,
    xattrs: Mapping[bytes, bytes] | None = None,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    records = {b"SCHILY.xattr." + name: value for name, value in (xattrs or {}).items()}
    if len(_bytes(path)) > 100:
        records[b"path"] = _bytes(path)
    if len(_bytes(target)) > 100:
        records[b"linkpath"] = _bytes(target)
    if mtime_ns < 0 or mtime_ns % 1_000_000_000:
        records[b"mtime"] = seconds(mtime_ns)
    mtime = max(0, mtime_ns // 1_000_000_000)
    block = header(
        path, typeflag, size=len(body), target=target, mode=mode, owner=owner, mtime=mtime, device=device
    )
    return (pax(records) if records else b"") + block + padded(body)


def _bytes(path: Path) -> bytes:
    return os.fsencode(path)
