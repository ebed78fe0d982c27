"""Reading a tar stream into entries: v7, ustar, GNU and PAX, whatever a layer's builder wrote.

Sans I/O: the reader yields which bytes of the flat layer it needs next and is sent them, so the same code
reads a download as it streams by, a file, or a test's bytes. Payloads are never requested, only their last
byte. Where formats leave a choice, the reader follows Go's archive/tar, which reads layers for every
container engine. A broken archive raises InvalidImage; the stdlib's tarfile would take it for the end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Entry, Extent, Kind
from imgfs.layer.limits import EXTENSION_LIMIT
from imgfs.layer.tar import pax
from imgfs.layer.tar.header import (
    BLOCK,
    OFFSET_LIMIT,
    Header,
    ReadRequest,
    check_owner,
    check_size,
    parse_device,
    parse_header,
)
from imgfs.layer.tar.sparse import MemberLayout, is_pax_sparse, read_old_sparse, read_pax_sparse

__all__ = ["ReadRequest", "parse_tar", "tar_entries"]


# Typeflags (POSIX pax, "ustar Interchange Format"; GNU tar manual). One that is not listed is a regular file:
# so POSIX wants unknown ones read.
_KINDS = {
    b"\0": Kind.FILE,
    b"0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
    b"D": Kind.DIRECTORY,  # GNU incremental: the payload lists the directory's names
}
_HEADER_ONLY = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))  # no payload, whatever their size says: as Go
_EXTENSIONS = frozenset((b"x", b"X", b"g", b"L", b"K"))  # X: what Solaris called x before it was standard
# Never a file of the tree: GNU's volume label and old rename list; Solaris's ACL and xattr blocks; star's
# inode-only records.
_METADATA = frozenset((b"V", b"N", b"A", b"E", b"I"))
_CONTINUED = b"M"  # GNU's multi-volume archives: the rest of a file that another volume has begun
_LINKS = frozenset((Kind.SYMLINK, Kind.HARDLINK))
_DEVICES = frozenset((Kind.CHARACTER, Kind.BLOCK))
_ZEROS = bytes(BLOCK)
_NO_RECORDS: pax.Records = {}


def parse_tar(emit: Callable[[Entry], None]) -> Generator[ReadRequest, bytes, int]:
    """Read a tar stream, calling `emit` for each member in order; return the offset where its content ends.

    The caller answers each ReadRequest with exactly those bytes, or with fewer only where the flat layer
    ends; requests never go back. The next header is requested together with the last byte of the payload
    before it, so a payload cut short is noticed, after its member was emitted; only the padding may be
    missing, as in Go and GNU tar. The end is two zero blocks, one and nothing after it, or nothing at all.
    Raises InvalidImage naming the tar offset of the broken header.
    """
    extensions = _Extensions()
    read = end = member = 0  # flat offsets: what was asked for; the end of the last payload; its header
    while True:
        start = end + -end % BLOCK
        first = max(read, end - 1)
        reply = yield ReadRequest(first, start + BLOCK - first)
        if first < end and not reply:
            raise InvalidImage("the layer ends within this member: truncated", where=_at(member))
        block = reply[start - first :]
        if not block:
            return end
        if len(block) < BLOCK:
            raise InvalidImage("the layer ends within this header: truncated", where=_at(start))
        try:
            if block == _ZEROS:
                yield from _read_end(start + BLOCK)
                return start
            member = start
            read, end = yield from _read_member(block, start + BLOCK, extensions, emit)
        except InvalidImage as error:
            raise InvalidImage(str(error), where=_at(start)) from error


def tar_entries(flat: bytes) -> list[Entry]:
    """Return the entries of a whole tar stream held in memory; raises InvalidImage."""
    entries: list[Entry] = []
    reader = parse_tar(entries.append)
    try:
        want = next(reader)
        while True:
            want = reader.send(flat[want.offset : want.offset + want.length])
    except StopIteration:
        return entries


class _Extensions:
    """What extension headers have said of the next member.

    A global header's records count for no member: Go's archive/tar hands it on as a member of its own, which
    containerd, Docker and podman pass over, and forgets what other headers have said before it.
    """

    def __init__(self) -> None:
        self._records: dict[bytes, bytes] = {}
        self._path = b""
        self._target = b""
        self.pending = False  # whether `take` has anything to say

    def add(self, typeflag: bytes, payload: bytes) -> None:
        """Remember an extension header; a later one of its type replaces it. Raises InvalidImage."""
        if typeflag == b"L":
            self._path = payload.partition(b"\0")[0]
        elif typeflag == b"K":
            self._target = payload.partition(b"\0")[0]
        elif typeflag == b"g":
            pax.parse_records(payload)  # which must be well-formed all the same
            self._forget()
            return
        else:
            self._records = pax.parse_records(payload)
        self.pending = True

    def take(self, header: Header) -> tuple[Header, pax.Records]:
        """Return (header as the extensions have it, records) for one member."""
        records = self._given()
        changed = _apply(records, header)
        if self._path or self._target:
            changed = changed._replace(path=self._path or changed.path, target=self._target or changed.target)
        self._forget()
        return changed, records

    def _forget(self) -> None:
        self._records, self._path, self._target = {}, b"", b""
        self.pending = False

    def _given(self) -> pax.Records:
        """Return the records. An empty value says nothing (POSIX pax: it deletes what was said before).

        But an xattr's is indeed empty, like that of overlayfs's `metacopy`.
        """
        if b"" not in self._records.values():
            return self._records
        return {key: value for key, value in self._records.items() if value or pax.is_xattr(key)}


def _apply(records: pax.Records, header: Header) -> Header:
    """Return the header's fields, the records' where they have them."""
    path = records.get(b"GNU.sparse.name") or records.get(b"path")
    target, size, mtime = records.get(b"linkpath"), records.get(b"size"), records.get(b"mtime")
    uid, gid = records.get(b"uid"), records.get(b"gid")
    return Header(
        header.path if path is None else pax.parse_path(path),
        header.typeflag,
        header.mode,
        header.uid if uid is None else check_owner(pax.parse_decimal(uid)),
        header.gid if gid is None else check_owner(pax.parse_decimal(gid)),
        header.size if size is None else check_size(pax.parse_decimal(size)),
        header.mtime_ns if mtime is None else pax.parse_time(mtime),
        header.target if target is None else pax.parse_path(target),
    )


def _read_member(
    block: bytes, start: int, extensions: _Extensions, emit: Callable[[Entry], None]
) -> Generator[ReadRequest, bytes, tuple[int, int]]:
    """Read one member, whose payload begins at `start`: (the offset read up to, the payload's end)."""
    header, records = parse_header(block), _NO_RECORDS
    if header.typeflag == _CONTINUED:
        raise InvalidImage(
            "a file that another volume has begun: the layer is part of a multi-volume archive"
        )
    if header.typeflag in _EXTENSIONS:
        extensions.add(header.typeflag, (yield from _read_extension(start, header.size)))
        return start + header.size, start + header.size
    if extensions.pending:
        header, records = extensions.take(header)
    if header.typeflag == b"S":
        payload = yield from read_old_sparse(block, start, header.size)
    elif records and header.typeflag not in _HEADER_ONLY and is_pax_sparse(records):
        payload = yield from read_pax_sparse(records, start, header.size)
    else:
        payload = _plain(header, start)
    if payload.end > OFFSET_LIMIT - 2 * BLOCK:
        raise InvalidImage(f"the member ends at {payload.end}, which is out of range")
    if header.typeflag not in _METADATA:
        emit(_entry(block, header, records, payload))
    return payload.start, payload.end


def _read_extension(start: int, size: int) -> Generator[ReadRequest, bytes, bytes]:
    if size > EXTENSION_LIMIT:
        raise InvalidImage(f"an extension header of {size} bytes is more than {EXTENSION_LIMIT}")
    payload = (yield ReadRequest(start, size)) if size else b""
    if len(payload) < size:
        raise InvalidImage("the layer ends within this extension header: truncated")
    return payload


def _read_end(start: int) -> Generator[ReadRequest, bytes, None]:
    """After a zero block: another, or the end of the layer, however it is cut."""
    block = yield ReadRequest(start, BLOCK)
    if block.strip(b"\0"):
        raise InvalidImage("a lone zero block in mid-archive")


def _plain(header: Header, start: int) -> MemberLayout:
    """Return the payload of a member that is not sparse."""
    size = 0 if header.typeflag in _HEADER_ONLY or _is_old_directory(header) else header.size
    return MemberLayout(size, (Extent(0, size, start),) if size else (), start, start + size)


def _is_old_directory(header: Header) -> bool:
    """Return how v7 wrote a directory; it has no payload. A typeflag 0 stays a file, as in Go."""
    return header.typeflag == b"\0" and header.path.endswith(b"/")


def _entry(block: bytes, header: Header, records: pax.Records, payload: MemberLayout) -> Entry:
    kind = _KINDS.get(header.typeflag, Kind.FILE)
    if _is_old_directory(header):
        kind = Kind.DIRECTORY
    is_file = kind is Kind.FILE
    return Entry(
        header.path,
        kind,
        header.mode,
        header.uid,
        header.gid,
        payload.size if is_file else 0,
        header.mtime_ns,
        header.target if kind in _LINKS else b"",
        parse_device(block) if kind in _DEVICES else (0, 0),
        pax.parse_xattrs(records) if records else _NO_RECORDS,
        payload.extents if is_file else (),
    )


def _at(offset: int) -> str:
    return f"tar offset {offset}"
