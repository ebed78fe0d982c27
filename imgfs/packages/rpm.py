"""rpm's databases: SQLite and ndb, read as files; the headers of packages in them. Berkeley DB is not read.

A header: rpm.org, "RPM V4 Package format", "Header structure", without the magic; all numbers big-endian.
ndb (`Packages.db`): rpm, lib/backend/ndb/rpmpkg.c; numbers little-endian; blocks of 16 bytes.
SQLite: rpm, lib/backend/sqlite.c: the table `Packages` has a header in each row's column `blob`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from imgfs.errors import InvalidImage
from imgfs.packages.package import RPM, Package, text_of
from imgfs.packages.sqlite_file import SqliteFile

ReadAt = Callable[[int, int], bytes]  # (offset, length) -> bytes of a file, fewer at its end

_NAME, _VERSION, _RELEASE, _EPOCH, _LICENSE, _ARCH, _SOURCE = 1000, 1001, 1002, 1003, 1014, 1022, 1044
_STRINGS = (_NAME, _VERSION, _RELEASE, _LICENSE, _ARCH, _SOURCE)
_INT32, _STRING, _I18N = 4, 6, 9  # types of entries
_MOST_ENTRIES = 1 << 16  # rpm's own limit of tags, headerVerifyInfo
_KEY = "gpg-pubkey"  # how the database has a key that is trusted, as if it were a package
_NDB_MAGIC, _SLOT_MAGIC, _BLOB_MAGIC = b"RpmP", b"Slot", b"BlbS"
_PAGE, _SLOT, _BLOCK = 4096, 16, 16
_MOST_SLOT_PAGES = 4096  # a million slots
LARGEST_HEADER = 64 << 20  # bytes


def rpm_package(header: bytes) -> Package | None:
    """Read a header; None for a key. Raises InvalidImage."""
    if len(header) < 8:
        raise InvalidImage("an rpm header that is cut")
    entries, length = struct.unpack_from(">II", header)
    if entries > _MOST_ENTRIES or 8 + 16 * entries + length > len(header):
        raise InvalidImage("an rpm header that is longer than it is")
    data = header[8 + 16 * entries :][:length]
    fields: dict[int, str] = {}
    for tag, kind, offset, _ in struct.iter_unpack(">IIII", header[8 : 8 + 16 * entries]):
        if tag in _STRINGS and kind in (_STRING, _I18N):
            fields.setdefault(tag, text_of(data[offset : offset + 4096].partition(b"\0")[0]))
        elif tag == _EPOCH and kind == _INT32 and offset + 4 <= length:
            fields.setdefault(tag, str(struct.unpack_from(">I", data, offset)[0]))
    if not fields.get(_NAME):
        raise InvalidImage("an rpm header without a name")
    if fields[_NAME] == _KEY:
        return None
    return Package(
        RPM,
        fields[_NAME],
        f"{fields.get(_VERSION, '')}-{fields.get(_RELEASE, '')}",
        architecture=fields.get(_ARCH, ""),
        license=fields.get(_LICENSE, ""),
        source=fields.get(_SOURCE, ""),
        epoch=fields.get(_EPOCH, ""),
    )


def sqlite_headers(read: ReadAt, size: int) -> Iterator[bytes]:
    """Yield the headers in an rpmdb.sqlite of `size` bytes; raises InvalidImage."""
    for row in SqliteFile(read, size).rows("Packages"):
        blob = row[1] if len(row) > 1 else None
        if isinstance(blob, bytes):
            yield blob


def ndb_headers(read: ReadAt, size: int) -> Iterator[bytes]:
    """Yield the headers in a Packages.db of `size` bytes; raises InvalidImage."""
    start = read(0, 32)
    if len(start) < 32 or not start.startswith(_NDB_MAGIC):
        raise InvalidImage("not rpm's ndb")
    pages = min(struct.unpack_from("<I", start, 12)[0], _MOST_SLOT_PAGES, -(-size // _PAGE))
    left = size  # blocks may be shared in a hostile file: what is read in all is bounded
    for page in range(pages):
        for slot in struct.iter_unpack("<4sIII", _whole_slots(read(page * _PAGE, _PAGE))):
            magic, package, block, count = slot
            if magic != _SLOT_MAGIC or not (package and block):
                continue
            left -= count * _BLOCK
            if left < 0 or count * _BLOCK > LARGEST_HEADER:
                raise InvalidImage("rpm's ndb has more packages than bytes")
            yield _ndb_blob(read(block * _BLOCK, count * _BLOCK), package)


def _whole_slots(page: bytes) -> bytes:
    return page[: len(page) - len(page) % _SLOT]


def _ndb_blob(blob: bytes, package: int) -> bytes:
    """Return a blob's bytes; its head has its magic, the package's number, a generation and its length."""
    if len(blob) < 16:
        raise InvalidImage("a package of rpm's ndb lies behind its end")
    magic, number, _, length = struct.unpack_from("<4sIII", blob)
    if magic != _BLOB_MAGIC or number != package or 16 + length > len(blob):
        raise InvalidImage("a package of rpm's ndb is damaged")
    return blob[16 : 16 + length]
